"""The seams of Megatron-LM: what is wrapped, and why there.

Each wrapper calls the original and passes on what it does not know. None of ``get_batch``,
``loss_func``, ``training_log`` and ``pretrain`` is touched: their signatures and places change from
version to version, while the targets below have been stable since core 0.12.
"""

from __future__ import annotations

import functools
import inspect
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from domain_pretrain.backends import cpu, select
from domain_pretrain.errors import DomainPretrainError, WriterError
from domain_pretrain.flags import add_arguments
from domain_pretrain.flow.tap import BatchTap
from domain_pretrain.hosts.command_line import data_from_config, flags_of_command_line
from domain_pretrain.hosts.runtime import Runtime
from domain_pretrain.process import rank
from domain_pretrain.seams.seam import Seam


class _Current:
    """The run of this process. Seams live as long as the process, which may have several runs."""

    runtime = Runtime()


@contextmanager
def clear_exit() -> Iterator[None]:
    """Turn a deliberate stop at start-up into its message and exit code 2, without a traceback."""
    try:
        yield
    except DomainPretrainError as error:
        # Every rank finds the same mistake, and one of them says it.
        if isinstance(error, WriterError) or rank() == 0:
            print(f"domain_pretrain: error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def _add_arguments(original: Callable[..., Any]) -> Callable[..., Any]:
    def add_megatron_arguments(parser: ArgumentParser) -> Any:
        result = original(parser)
        add_arguments(parser)
        with clear_exit():
            if select(flags_of_command_line().domain_backend) == "cpu":
                _say_once(cpu.describe(cpu.add_default_flags(parser)))
            data_path = data_from_config()
            if data_path is not None:
                parser.set_defaults(data_path=data_path)
        return result

    return add_megatron_arguments


@functools.cache
def _say_once(text: str) -> None:
    """Megatron builds its parser several times per run."""
    if rank() == 0:
        print(text, flush=True)


def _validate_args(original: Callable[..., Any]) -> Callable[..., Any]:
    def validate_args(args: Any, *rest: Any, **kwargs: Any) -> Any:
        result = original(args, *rest, **kwargs)
        with clear_exit():
            _Current.runtime = Runtime.of(args)
        return result

    return validate_args


def _get_schedule(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_forward_backward_func(*args: Any, **kwargs: Any) -> Any:
        schedule = original(*args, **kwargs)
        _start_if_not_validated()
        if not _Current.runtime.active:
            return schedule
        with clear_exit():
            step = _Current.runtime.step
        source = _Current.runtime.next_source()

        @functools.wraps(schedule)
        def counted_schedule(*args: Any, **kwargs: Any) -> Any:
            forward_step, training = kwargs["forward_step_func"], not kwargs["forward_only"]
            if training:
                step.open()
            counted = training or _Current.runtime.evaluating
            if source is None or not counted or kwargs.get("collect_non_loss_data"):
                wrapped = _only_tap(forward_step)
            else:
                wrapped = step.wrap_forward_step(forward_step, source, training=training)
            try:
                return schedule(*args, **{**kwargs, "forward_step_func": wrapped})
            except Exception:
                _Current.runtime.report_nonfinite(training=training)
                raise

        return counted_schedule

    return get_forward_backward_func


def _only_tap(forward_step: Callable[..., Any]) -> Callable[..., Any]:
    """Take dataset_id out of the batches, count nothing."""

    @functools.wraps(forward_step)
    def tapped(data_iterator: Any, *args: Any, **kwargs: Any) -> Any:
        tap = None if data_iterator is None else BatchTap(data_iterator)
        return forward_step(tap, *args, **kwargs)

    return tapped


def _start_if_not_validated() -> None:
    """Where ``validate_args`` was bound before our seam, or ``--yaml-cfg`` bypasses it."""
    from megatron.training.global_vars import get_args

    if _Current.runtime.args is not get_args():
        with clear_exit():
            _Current.runtime = Runtime.of(get_args())


def _train_step(original: Callable[..., Any]) -> Callable[..., Any]:
    def train_step(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if _Current.runtime.active:
            _Current.runtime.close_step(result)
        return result

    return train_step


def _evaluate(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    def evaluate_and_print_results(*args: Any, **kwargs: Any) -> Any:
        _start_if_not_validated()
        if not _Current.runtime.active:
            return original(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        _Current.runtime.open_evaluation(given["prefix"])
        result = original(*args, **kwargs)
        # Megatron's prefix is "iteration N" while training and "iteration N on … set" at the end.
        _Current.runtime.close_evaluation(given["iteration"], final=" on " in given["prefix"])
        return result

    return evaluate_and_print_results


STATE_KEY = "domain_pretrain"


def _state_dict(original: Callable[..., Any]) -> Callable[..., Any]:
    def state_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = original(self, *args, **kwargs)
        ours = _Current.runtime.state_dict() if _Current.runtime.active else None
        return state if ours is None else {**state, STATE_KEY: ours}

    return state_dict


def _load_state_dict(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_state_dict(self: Any, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        state = dict(state_dict)
        ours = state.pop(STATE_KEY, None)
        if ours is not None and _Current.runtime.active:
            _Current.runtime.load_state_dict(ours)
        return original(self, state, *args, **kwargs)

    return load_state_dict


_TRAINING = "megatron.training.training"
_SCHEDULER = "megatron.core.optimizer_param_scheduler:OptimizerParamScheduler"

SEAMS: tuple[Seam, ...] = (
    Seam(
        "arguments",
        "megatron.training.arguments:add_megatron_arguments",
        ("parser",),
        "a module global that every entry's parser goes through, whatever __main__ imported",
        _add_arguments,
    ),
    Seam(
        "start",
        "megatron.training.arguments:validate_args",
        ("args",),
        "the last moment before process groups and devices are touched: mistakes cost nothing",
        _validate_args,
    ),
    Seam(
        "schedule",
        f"{_TRAINING}:get_forward_backward_func",
        (),
        "what it returns takes forward_step_func and data_iterator by keyword in every version: "
        "batches and losses of every microbatch pass here, in training and evaluation",
        _get_schedule,
    ),
    Seam(
        "step",
        f"{_TRAINING}:train_step",
        (),
        "returns once per optimizer step, after re-runs, with (loss_dict, skipped, …)",
        _train_step,
    ),
    Seam(
        "evaluation",
        f"{_TRAINING}:evaluate_and_print_results",
        ("prefix", "iteration"),
        "brackets one evaluation and says which split it is of",
        _evaluate,
    ),
    Seam(
        "save",
        f"{_SCHEDULER}.state_dict",
        (),
        "is part of every checkpoint format, and plain Megatron ignores an additional key",
        _state_dict,
    ),
    Seam(
        "load",
        f"{_SCHEDULER}.load_state_dict",
        ("state_dict",),
        "the counterpart of save; skipped by --finetune and --no-load-optim, as it should be",
        _load_state_dict,
    ),
)
