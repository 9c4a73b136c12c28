"""The GPT model for hosts that cannot build one from their arguments (megatron-core 0.17, 0.18)."""

from __future__ import annotations

from typing import Any

from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.experimental_attention_variant_module_specs import (
    get_transformer_block_with_experimental_attention_variant_spec,
)
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_decoder_layer_specs,
    get_gpt_mtp_block_spec,
)
from megatron.core.models.gpt.heterogeneous.heterogeneous_layer_specs import (
    get_gpt_heterogeneous_layer_spec,
)
from megatron.core.transformer.spec_utils import import_module
from megatron.training import get_args
from megatron.training.arguments import core_transformer_config_from_args


def model_provider(
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
    config: Any = None,
    pg_collection: Any = None,
) -> GPTModel:
    """Build the chunk of the model that this pipeline stage holds.

    Args:
        pre_process: whether the chunk embeds tokens.
        post_process: whether the chunk computes the loss.
        vp_stage: index of the chunk; None without virtual pipeline stages.
        config: a ``TransformerConfig`` to use instead of the arguments'.
        pg_collection: process groups to use instead of the global ones.
    """
    args = get_args()
    config = config or core_transformer_config_from_args(args)
    return GPTModel(
        config,
        transformer_layer_spec=_decoder(config, vp_stage),
        mtp_block_spec=_mtp(config, vp_stage),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        fp16_lm_cross_entropy=args.fp16_lm_cross_entropy,
        parallel_output=True,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
        rope_scaling=args.use_rope_scaling,
        vp_stage=vp_stage,
        pg_collection=pg_collection,
    )


def _decoder(config: Any, vp_stage: int | None) -> Any:
    """The spec of one layer where all are alike, else of the whole block."""
    args = get_args()
    if args.spec is not None:
        return import_module(args.spec)
    if args.experimental_attention_variant is not None:
        return get_transformer_block_with_experimental_attention_variant_spec(
            config, vp_stage=vp_stage
        )
    if args.num_experts:
        return get_gpt_decoder_block_spec(config, **_layer_options(config), vp_stage=vp_stage)
    if args.heterogeneous_layers_config_path is not None:
        return get_gpt_heterogeneous_layer_spec(
            config, config.transformer_impl == "transformer_engine"
        )
    return get_gpt_decoder_layer_specs(config, **_layer_options(config))[-1]


def _mtp(config: Any, vp_stage: int | None) -> Any:
    """The spec of the multi-token prediction block, whose layers are like the decoder's last."""
    if config.mtp_num_layers is None:
        return None
    options = _layer_options(config)
    layer = get_gpt_decoder_layer_specs(config, **options)[-1]
    return get_gpt_mtp_block_spec(
        config,
        layer,
        use_transformer_engine=options["use_transformer_engine"],
        vp_stage=vp_stage,
    )


def _layer_options(config: Any) -> dict[str, Any]:
    args = get_args()
    return {
        "use_transformer_engine": config.transformer_impl == "transformer_engine",
        "normalization": args.normalization,
        "qk_l2_norm": args.qk_l2_norm,
    }
