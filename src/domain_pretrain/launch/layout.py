"""Do the processes and the batch fit the layout? What is certain without asking the host.

Everything else is the host's to say; see :mod:`.host`. What a rule here would refuse, some option
of some host makes right: uneven stages, batches that grow, other ways to cut a sequence.
"""

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
    if world % model_parallel_size(flags):
        yield (
            f"world size {world} is not a multiple of TP x PP x CP = "
            f"{flags.tensor_model_parallel_size} x {flags.pipeline_model_parallel_size} x "
            f"{flags.context_parallel_size} = {model_parallel_size(flags)}"
        )
        return  # then there is no DP
    batch, micro = flags.global_batch_size, flags.micro_batch_size
    dp = data_parallel_size(flags, world)
    if batch and micro and batch % (step := micro * dp) and not flags.changes_its_batch:
        yield (
            f"--global-batch-size {batch} is not a multiple of micro batch x DP = {micro} x {dp} "
            f"= {step}; the nearest is {max(batch // step, 1) * step}"
        )
