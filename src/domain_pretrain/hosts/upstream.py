"""What the plugin reads of Megatron's training loop by name or position: all of it, in one place.

The development branch moves such things, from globals to configs and process group collections.
``tests/e2e/test_hosts.py`` runs what stands here on every supported version.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from domain_pretrain.adapt.muon import asks_for_logits
from domain_pretrain.errors import UnsupportedError
from domain_pretrain.flow.moment import Moment
from domain_pretrain.hosts.ranks import largest_of_model
from domain_pretrain.stats import Split
from domain_pretrain.strategies.course import Course

if TYPE_CHECKING:
    import torch


def running_args() -> Any:
    """The args of the run in this process; None before the host has set them."""
    # Its scheduler may be in use without its training loop.
    return getattr(sys.modules.get("megatron.training.global_vars"), "_GLOBAL_ARGS", None)


def updates(schedule: Mapping[str, Any]) -> bool:
    """Whether a schedule with these arguments is part of a training step."""
    return not schedule["forward_only"]


def gave_up(train_step: Sequence[Any]) -> bool:
    """Whether the host leaves after this step, of which nothing was made (``should_exit``)."""
    return bool(train_step[3])


def ran_out_of_time(evaluate: Sequence[Any]) -> bool:
    """Whether ``--exit-duration-in-mins`` ended this evaluation before its end."""
    return bool(evaluate[2])


def optimizer_of(given: Iterable[Any]) -> Any:
    """The optimizer among what ``train_step`` was called with; None where there is none."""
    # By what it can do: its place and the other arguments change.
    return next((one for one in given if hasattr(one, "param_groups")), None)


def host_numbers(optimizer: Any, grad_norm: float | None) -> dict[str, float]:
    """Learning rate and gradient norm, as far as they are known; both are on the host already."""
    numbers = {} if grad_norm is None else {"grad_norm": float(grad_norm)}
    group = _group(optimizer)
    return numbers if group is None else {"learning_rate": float(group["lr"]), **numbers}


def _group(optimizer: Any) -> Any:
    """The parameters whose rate the host logs: the first that follow ``--lr``."""
    for group in getattr(optimizer, "param_groups", ()):
        if group.get("default_config", not group.get("is_decoupled_lr", False)):
            return group
    return None


def attention_logit(train_step: Sequence[Any], args: Any) -> float | None:
    """The largest attention logit of the step, of this rank's layers and heads.

    None where it was not asked for; it was reduced over the data and context parallel ranks.
    """
    return float(train_step[7]) if asks_for_logits(args) else None


@contextmanager
def kept_attention_logits(model: Iterable[Any]) -> Iterator[None]:
    """What passes through the model's attention within does not count for ``--qk-clip``.

    Transformer Engine's attention counts evaluations, too, until the next step takes the largest.

    Args:
        model: its chunks.
    """
    name = "current_max_attn_logits"
    found = [m for chunk in model for m in chunk.modules() if hasattr(m, name)]
    before = [getattr(one, name) for one in found]
    try:
        yield
    finally:
        for one, logits in zip(found, before, strict=True):
            setattr(one, name, logits)


def moment_after(
    train_step: Sequence[Any],
    args: Any,
    given: Iterable[Any],
    device: torch.device,
    *,
    steers: bool = False,
) -> Moment:
    """Where training stands after a step, which has not been counted yet; called by all ranks.

    Args:
        train_step: what it returned.
        args: the host's.
        given: what it was called with.
        device: where the run's sums are.
        steers: whether something follows the course of the run.
    """
    from megatron.core.num_microbatches_calculator import get_num_microbatches

    iteration, microbatches = args.curr_iteration + 1, get_num_microbatches()
    batch = microbatches * args.micro_batch_size * args.data_parallel_size
    consumed = args.consumed_train_samples + batch
    log = iteration % args.log_interval == 0
    scalars = iteration % args.tensorboard_log_interval == 0
    told = log or scalars
    optimizer = optimizer_of(given) if told or steers else None
    course = Course()
    if steers:
        scheduler = next((one for one in given if hasattr(one, "get_lr")), None)
        course = course_of(args, consumed, optimizer, scheduler)
    host = host_numbers(optimizer, train_step[5]) if told else {}
    logit = attention_logit(train_step, args) if told else None
    if logit is not None:
        host["max_attention_logit"] = largest_of_model(logit, device)
    return Moment(
        iteration=iteration,
        consumed_samples=consumed,
        log=log,
        scalars=scalars,
        microbatches=microbatches,
        batch_tokens=batch * args.seq_length,
        skipped=bool(train_step[1]),
        host=host,
        course=course,
    )


def will_log(args: Any) -> bool:
    """Whether the host will log the step that is about to begin."""
    return bool((args.curr_iteration + 1) % args.log_interval == 0)


def course_of(args: Any, consumed: int, optimizer: Any, scheduler: Any) -> Course:
    """How far the run is; the optimizer's rate is already that of the next step.

    Args:
        args: the host's.
        consumed: samples, so far.
        optimizer: the host's.
        scheduler: of its learning rate, which counts in samples.
    """
    samples = args.train_samples or args.train_iters * args.global_batch_size
    group, peak = _group(optimizer), args.lr
    if group is None or scheduler is None or not peak:
        return Course(progress=consumed / samples)
    at_end = copy.copy(scheduler)
    at_end.num_steps = samples  # the decay may end before the run, or after it, or never
    last = at_end.get_lr(group)
    return Course(consumed / samples, float(group["lr"]) / peak, float(last) / peak)


# "iteration 10" while training, and after it "iteration 10 on validation set", "… on test set".
_PREFIX = re.compile(r"iteration \d+(?P<final> on (?P<split>validation|test) set)?")


def evaluated(prefix: str) -> tuple[Split, bool]:
    """Which split an evaluation with this prefix is of, and whether training has ended.

    Raises:
        UnsupportedError: the host calls it something else.
    """
    found = _PREFIX.fullmatch(prefix)
    if found is None:
        raise UnsupportedError(
            f"Megatron evaluates {prefix!r}, and the plugin knows 'iteration N', with 'on "
            "validation set' or 'on test set' behind it: it cannot tell which split that is; use a "
            "supported version, or the script's own names for its evaluations"
        )
    return "test" if found["split"] == "test" else "valid", found["final"] is not None
