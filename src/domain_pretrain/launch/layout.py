"""Does the layout fit the devices, the model and the batch? Megatron's rules, before it starts."""

from __future__ import annotations

from collections.abc import Iterator

from domain_pretrain.launch.flags import Flags


def data_parallel_size(flags: Flags, world: int) -> int:
    """DP of ``world`` = TP x PP x CP x DP; rounded down where it is not an integer."""
    return world // model_parallel_size(flags)


def model_parallel_size(flags: Flags) -> int:
    """TP x PP x CP: the devices that share one replica of the model and its sequence."""
    return (
        flags.tensor_model_parallel_size
        * flags.pipeline_model_parallel_size
        * flags.context_parallel_size
    )


def layout_problems(flags: Flags, world: int) -> Iterator[str]:
    """What is wrong, one sentence each; nothing where the layout is right.

    Args:
        flags: of the command; what they do not say is not checked.
        world: number of processes, one per device.
    """
    yield from _devices(flags, world)
    yield from _model(flags)
    yield from _experts(flags, world)
    yield from _batch(flags, data_parallel_size(flags, world))


def _devices(flags: Flags, world: int) -> Iterator[str]:
    if world % model_parallel_size(flags):
        yield (
            f"world size {world} is not a multiple of TP x PP x CP = "
            f"{flags.tensor_model_parallel_size} x {flags.pipeline_model_parallel_size} x "
            f"{flags.context_parallel_size} = {model_parallel_size(flags)}"
        )


def _model(flags: Flags) -> Iterator[str]:
    tp, pp = flags.tensor_model_parallel_size, flags.pipeline_model_parallel_size
    cp, heads, layers = flags.context_parallel_size, flags.num_attention_heads, flags.num_layers
    if heads and heads % tp:
        yield f"--num-attention-heads {heads} is not a multiple of TP = {tp}"
    groups = flags.num_query_groups
    if flags.group_query_attention and groups % tp and tp % groups:
        yield f"--num-query-groups {groups} and TP = {tp}: neither is a multiple of the other"
    if layers and not _uneven(flags):
        stages, unit = pp, "PP"
        if flags.num_layers_per_virtual_pipeline_stage:
            stages, unit = pp * flags.num_layers_per_virtual_pipeline_stage, "PP x layers per stage"
        if layers % stages:
            yield f"--num-layers {layers} is not a multiple of {unit} = {stages}"
    if flags.num_layers_per_virtual_pipeline_stage and pp == 1:
        yield "--num-layers-per-virtual-pipeline-stage needs PP > 1"
    if flags.seq_length and cp > 1 and flags.seq_length % (2 * cp):
        yield f"--seq-length {flags.seq_length} is not a multiple of 2 x CP = {2 * cp}"
    if flags.seq_length and flags.sequence_parallel and flags.seq_length // cp % tp:
        yield f"--seq-length {flags.seq_length} / CP is not a multiple of TP = {tp}"


def _uneven(flags: Flags) -> bool:
    return bool(
        flags.decoder_first_pipeline_num_layers
        or flags.decoder_last_pipeline_num_layers
        or flags.pipeline_model_parallel_layout
    )


def _experts(flags: Flags, world: int) -> Iterator[str]:
    ep = flags.expert_model_parallel_size
    etp = flags.expert_tensor_parallel_size or flags.tensor_model_parallel_size
    if flags.num_experts and flags.tensor_model_parallel_size > 1 and not flags.sequence_parallel:
        yield "experts with TP > 1 need --sequence-parallel"
    if ep == 1:
        return
    if not flags.num_experts:
        yield f"--expert-model-parallel-size {ep} without --num-experts"
    elif flags.num_experts % ep:
        yield f"--num-experts {flags.num_experts} is not a multiple of EP = {ep}"
    grid = etp * ep * flags.pipeline_model_parallel_size
    if world % grid:
        yield (
            f"world size {world} is not a multiple of expert TP x EP x PP = {etp} x {ep} x "
            f"{flags.pipeline_model_parallel_size} = {grid}"
        )


def _batch(flags: Flags, dp: int) -> Iterator[str]:
    micro, batch = flags.micro_batch_size or 1, flags.global_batch_size
    step = micro * max(dp, 1)
    if batch and batch % step:
        yield (
            f"--global-batch-size {batch} is not a multiple of micro batch x DP = {micro} x {dp} "
            f"= {step}; the nearest is {max(batch // step, 1) * step}"
        )
    elif (
        batch
        and flags.num_layers_per_virtual_pipeline_stage
        and batch // step % flags.pipeline_model_parallel_size
    ):
        yield (
            f"virtual pipeline stages need microbatches in multiples of PP = "
            f"{flags.pipeline_model_parallel_size}: there are {batch // step}"
        )
    for size in (flags.rampup_batch_size or ())[:2]:
        if size % step:
            yield f"--rampup-batch-size {size} is not a multiple of micro batch x DP = {step}"
