"""The built-in GPT entry: what Megatron's training loop asks of a script, for wheels without one.

The wheels of megatron-core 0.17 and later hold the training loop, but not ``pretrain_gpt.py``. This
is that script's part: a forward step, a loss, the datasets, and the call of ``pretrain``.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import megatron.core.datasets.utils as dataset_utils
import torch
from megatron.core.enums import ModelType
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.transformer.multi_token_prediction import get_mtp_ranks
from megatron.core.utils import StragglerDetector, get_attr_wrapped_model
from megatron.training import argument_utils, arguments, get_args, get_timers, inprocess_restart
from megatron.training.arguments import core_transformer_config_from_args
from megatron.training.training import pretrain
from torch import Tensor

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.flow.forward import FROM_SUMS
from domain_pretrain.hosts.gpt.batch import get_batch, is_packed
from domain_pretrain.hosts.gpt.data import datasets

# What this version of Megatron has.
BUILDS_MODEL = hasattr(argument_utils, "gpt_config_from_args")  # since 0.19
PACKS_ON_TP_RANK_0 = not hasattr(arguments, "parse_and_validate_args")  # until 0.17

SPIKE_FACTOR = 10  # a loss this many times the largest one seen is a spike
LossReport = tuple[Tensor, Tensor, dict[str, Tensor]]

# What a loss must not be, what the host then says, and whether it stops.
Check = tuple[Callable[[Tensor], Any], str, bool]
NAN: Check = (torch.isnan, "found NaN in local forward loss calculation", True)
INFINITE: Check = (torch.isinf, "found Inf in local forward loss calculation", True)


def forward_step(
    data_iterator: Iterator[dict[str, Tensor]] | None,
    model: Any,
    return_schedule_plan: bool = False,
) -> tuple[Any, partial[LossReport]]:
    """Run one microbatch through this rank's model chunk.

    Returns:
        The chunk's output: per-token losses ``[b, s / cp]`` in nats on the last stage, hidden
        states elsewhere, or a schedule plan if asked for; and the loss function to call with it.
    """
    args, timers, straggler = get_args(), get_timers(), StragglerDetector()
    timers("batch-generator", log_level=2).start()
    with straggler(bdata=True):
        config = get_attr_wrapped_model(model, "config")
        vp_stage = get_attr_wrapped_model(model, "vp_stage")
        batch, packed_seq_params = get_batch(data_iterator, args, config, vp_stage)
    timers("batch-generator").stop()

    inputs = (batch["tokens"], batch["position_ids"], batch["attention_mask"])
    targets = {"labels": batch["labels"], "loss_mask": batch["loss_mask"]}
    with straggler:
        if return_schedule_plan:
            output = model.build_schedule_plan(*inputs, **targets)
        else:
            output = model(*inputs, **targets, packed_seq_params=packed_seq_params)
    return output, partial(loss_func, batch["loss_mask"], model=model)


def loss_func(loss_mask: Tensor, losses: Tensor, model: Any = None) -> LossReport:
    """Sum the losses of one microbatch; Megatron divides once it has summed over the ranks.

    Args:
        loss_mask: ``[b, s / cp]``, 1 where a token counts.
        losses: per-token losses, the same shape, nats.
        model: unused; Megatron's own scripts pass it, and so do we for wrappers that read it.

    Returns:
        The sum (to differentiate), the number of tokens (int32, a scalar), and the report for the
        log, ``[sum, count]`` under ``lm loss``: valid on each rank of the last stage for its part.
    """
    mask = loss_mask.view(-1).float()
    loss = torch.sum(losses.view(-1).float() * mask)
    num_tokens = mask.sum().detach().to(torch.int)
    report = torch.cat([loss.detach().clone().view(1), num_tokens.view(1)])
    return _finish(loss, report, num_tokens, NAN, INFINITE)


def _of_sums(loss: Tensor, report: Tensor, num_tokens: Tensor) -> LossReport:
    """``loss_func``'s answer, of sums that the plugin's kernel made instead of it on a GPU.

    They are finite, or NaN where a token is not: one check is enough, and each waits for the
    device.
    """
    return _finish(loss, report, num_tokens, NAN)


setattr(loss_func, FROM_SUMS, _of_sums)


def _finish(loss: Tensor, report: Tensor, num_tokens: Tensor, *unreal: Check) -> LossReport:
    """Hand the loss to the rerun machine, which distinguishes a broken device from a broken run."""
    args, machine = get_args(), get_rerun_state_machine()
    checks = [*unreal] if args.check_for_nan_in_loss_and_grad else []
    if args.check_for_spiky_loss:
        spike = partial(machine.is_unexpectedly_large, threshold=SPIKE_FACTOR, context="loss")
        checks.append((spike, "Spiky loss", False))
    for reject, message, fatal in checks:
        # A forward pass is deterministic: a second one must give the same bits.
        machine.validate_result(
            result=loss, rejection_func=reject, message=message, tolerance=0.0, fatal=fatal
        )
    return loss, num_tokens, {"lm loss": report}


def embedding_ranks(pp_ranks: list[int]) -> list[int]:
    """Of a pipeline's ranks, those that hold the word embeddings: first, tied output, MTP."""
    args = get_args()
    ranks = {pp_ranks[0], *get_mtp_ranks(pp_ranks, core_transformer_config_from_args(args))}
    if not args.untie_embeddings_and_output_weights:
        ranks.add(pp_ranks[-1])
    return sorted(ranks)


def main() -> None:
    """Parse Megatron's command line and train.

    Raises:
        UnsupportedError: a flag asks for what this entry cannot do.
    """
    _keep_prebuilt_helpers()
    refuse_unsupported(arguments.parse_args(ignore_unknown_args=True))
    run, store = inprocess_restart.maybe_wrap_for_inprocess_restart(pretrain)
    call: dict[str, Any] = {
        "train_valid_test_dataset_provider": datasets,
        "model_type": ModelType.encoder_or_decoder,
        "forward_step_func": forward_step,
        "get_embedding_ranks": embedding_ranks,
        "store": store,
    }
    defaults = {"tokenizer_type": "GPT2BPETokenizer"}
    if not hasattr(arguments, "parse_and_validate_args"):  # 0.17 parses inside pretrain
        run(**call, model_provider=_model_provider(), args_defaults=defaults)
        return
    args = arguments.parse_and_validate_args(args_defaults=defaults)
    if BUILDS_MODEL:
        model = argument_utils.gpt_config_from_args(args)
        run(argument_utils.pretrain_cfg_container_from_args(args, model), **call)
    else:  # 0.18
        config = argument_utils.pretrain_cfg_container_from_args(args)
        run(config, **call, model_provider=_model_provider())


def refuse_unsupported(args: Namespace) -> None:
    """Stop before training where a flag would be ignored or crash later.

    Raises:
        UnsupportedError: naming the flags and where they are supported.
    """
    flags = ["yaml_cfg", "hybrid_context_parallel", "logits_load_dir"]
    if not BUILDS_MODEL:
        flags += ["use_legacy_models", "record_memory_history", "use_grouped_gemm_for_dense_mlp"]
    given = [f"--{flag.replace('_', '-')}" for flag in flags if getattr(args, flag, None)]
    if given:
        raise UnsupportedError(
            f"the built-in GPT entry does not support {', '.join(given)}; give Megatron's own "
            "script first: -m domain_pretrain path/to/pretrain_gpt.py ..."
        )
    sizes = (args.tensor_model_parallel_size, args.pipeline_model_parallel_size)
    if PACKS_ON_TP_RANK_0 and args.sft and (min(sizes) > 1 or args.context_parallel_size > 1):
        raise UnsupportedError(
            "--sft in megatron-core 0.17 brings the document boundaries neither to all TP ranks of "
            "later stages nor to CP ranks; use megatron-core >= 0.18, or TP only, or PP only"
        )
    if (
        is_packed(args)
        and (args.micro_batch_size or 1) > 1
        and args.pipeline_model_parallel_size > 1
    ):
        raise UnsupportedError(
            f"packed rows with --micro-batch-size {args.micro_batch_size} and pipeline stages: "
            "Megatron lays the rows end to end, but hands them on between stages side by side; "
            "use --micro-batch-size 1"
        )


def _model_provider() -> Any:
    from domain_pretrain.hosts.gpt.model import model_provider

    return model_provider


def _keep_prebuilt_helpers() -> None:
    """Spare the wheel a call of ``make``: it holds the compiled helpers, but no Makefile."""
    if not Path(dataset_utils.__file__).with_name("Makefile").exists():
        dataset_utils.compile_helpers = lambda: None
