"""The datasets of the built-in GPT entry."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from megatron.core import parallel_state as mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
from megatron.training import get_args
from megatron.training.arguments import core_transformer_config_from_args
from megatron.training.datasets.fim_dataset import GPTFIMDataset, GPTFIMDatasetConfig
from megatron.training.datasets.sft_dataset import SFTDataset
from megatron.training.utils import get_blend_and_blend_per_split, is_first_or_last_pipeline_stage

from domain_pretrain.hosts.gpt.batch import holds_mtp, is_packed
from domain_pretrain.json_file import read_json


def datasets(
    num_samples: Sequence[int], vp_stage: int | None = None
) -> tuple[Any | None, Any | None, Any | None]:
    """Build the train, validation and test datasets; None each where this rank reads no data.

    Args:
        num_samples: how many samples each of the three must hold.
        vp_stage: index of the model chunk that they are for.
    """
    args = get_args()
    if args.sft:
        kind = SFTDataset
    elif args.mock_data:
        kind = MockGPTDataset
    else:
        kind = GPTFIMDataset if args.fim_data else GPTDataset
    reads = partial(_reads_data, args, core_transformer_config_from_args(args), vp_stage)
    return BlendedMegatronDatasetBuilder(kind, num_samples, reads, _dataset_config(args)).build()


# Megatron then calls it on every rank, and we say which of them read.
datasets.is_distributed = True  # type: ignore[attr-defined]


def _reads_data(args: Namespace, config: Any, vp_stage: int | None) -> bool:
    if mpu.get_tensor_model_parallel_rank() != 0:
        return False
    # Every stage's attention needs the document boundaries.
    return (
        is_packed(args) or is_first_or_last_pipeline_stage(vp_stage) or holds_mtp(config, vp_stage)
    )


def _dataset_config(args: Namespace) -> GPTDatasetConfig:
    """Fill the dataset's config from the arguments.

    Most fields are called as their argument is; only the others are written out. A field that this
    Megatron does not have is left out.
    """
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    kind = GPTFIMDatasetConfig if args.fim_data else GPTDatasetConfig
    values = vars(args) | {
        "random_seed": args.seed,
        "sequence_length": args.seq_length,
        "blend": blend,
        "blend_per_split": blend_per_split,
        "path_to_cache": args.data_cache_path,
        "tokenizer": build_tokenizer(args),
        "create_attention_mask": args.create_attention_mask_in_dataloader,
        "fast_cache_load": args.dataloader_fast_cache_load,
        "defer_npy_index_mmap": args.dataloader_defer_npy_index_mmap,
        "inter_document_masking": is_packed(args) and not args.sft,
        "sequence_parallel_size": args.tensor_model_parallel_size * args.sequence_parallel,
        "fim_extra_tokens": {
            token: getattr(args, f"fim_{token}_token")
            for token in ("prefix", "middle", "suffix", "pad", "eod")
        },
    }
    if args.per_dataset_sequences_path is not None:
        values["sequences_per_dataset"] = read_json(args.per_dataset_sequences_path)
    return kind(
        **{field.name: values[field.name] for field in fields(kind) if field.name in values}
    )
