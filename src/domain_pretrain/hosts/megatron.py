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
from domain_pretrain.errors import DomainPretrainError, LocalError
from domain_pretrain.flags import add_arguments, plugin_args
from domain_pretrain.flow.tap import BatchTap
from domain_pretrain.hosts import upstream
from domain_pretrain.hosts.checkpoint import STATE_KEY
from domain_pretrain.hosts.command_line import data_from_config, flags_of_command_line
from domain_pretrain.hosts.overridden import check_typed
from domain_pretrain.hosts.runtime import Runtime
from domain_pretrain.process import rank
from domain_pretrain.seams.seam import Seam


class _Current:
    """The run of this process. Seams live as long as the process, which may have several runs."""

    runtime = Runtime()
    parser: ArgumentParser | None = None  # that has read the command line


def _runtime() -> Runtime:
    """The run that the host is in, whichever seam gets to hear of it first.

    It starts at ``validate_args``, unless that was bound before our seam (``enable()`` after
    ``import megatron``), or ``--yaml-cfg`` bypasses it.
    """
    args = upstream.running_args()
    if args is not None and _Current.runtime.args is not args:
        with clear_exit():
            _Current.runtime = Runtime.of(args)
    return _Current.runtime


@contextmanager
def clear_exit() -> Iterator[None]:
    """Turn a deliberate stop at start-up into its message and exit code 2, without a traceback."""
    try:
        yield
    except DomainPretrainError as error:
        # Every rank finds the same mistake, and one of them says it.
        if isinstance(error, LocalError) or rank() == 0:
            print(f"domain_pretrain: error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def _add_arguments(original: Callable[..., Any]) -> Callable[..., Any]:
    def add_megatron_arguments(parser: ArgumentParser) -> Any:
        result = original(parser)
        add_arguments(parser)
        _Current.parser = parser
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
        with clear_exit():
            if plugin_args(args).channel_loss:
                check_typed(args, _Current.parser)
        result = original(args, *rest, **kwargs)
        with clear_exit():
            _Current.runtime = Runtime.of(args)
        return result

    return validate_args


def _get_schedule(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_forward_backward_func(*args: Any, **kwargs: Any) -> Any:
        schedule, runtime = original(*args, **kwargs), _runtime()
        if not runtime.active:
            return schedule
        with clear_exit():
            step = runtime.step
        source = runtime.source()

        @functools.wraps(schedule)
        def counted_schedule(*args: Any, **kwargs: Any) -> Any:
            forward_step, training = kwargs["forward_step_func"], upstream.updates(kwargs)
            counted = training or runtime.evaluating
            if source is None or not counted or kwargs.get("collect_non_loss_data"):
                wrapped = _only_tap(forward_step)
            else:
                if training:
                    step.open()
                else:
                    runtime.open_attempt(kwargs["num_microbatches"])
                wrapped = step.wrap_forward_step(forward_step, source, training=training)
            try:
                return schedule(*args, **{**kwargs, "forward_step_func": wrapped})
            except Exception:
                runtime.report_nonfinite(training=training)
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


def _train_step(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    def train_step(*args: Any, **kwargs: Any) -> Any:
        runtime = _runtime()
        if runtime.active:
            given = signature.bind(*args, **kwargs).arguments
            with clear_exit():
                runtime.before_step(*(given[name] for name in _RUN))
        result = original(*args, **kwargs)
        if _Current.runtime.active:
            _Current.runtime.close_step(result, (*args, *kwargs.values()))
        return result

    return train_step


def _evaluate_and_print(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    def evaluate_and_print_results(*args: Any, **kwargs: Any) -> Any:
        runtime = _runtime()
        if not runtime.active:
            return original(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        which = given["prefix"], given["iteration"], *(given[name] for name in _RUN)
        with clear_exit():
            fixed = runtime.has_fixed_set(given["prefix"])
            if not fixed:
                runtime.open_evaluation(given["prefix"])
        result = original(*args, **kwargs)
        if not fixed:
            runtime.close_evaluation(given["iteration"])
        with clear_exit():
            if fixed:
                runtime.evaluate_fixed_set(*which)
            runtime.probe(*which)
        return result

    return evaluate_and_print_results


def _datasets(original: Callable[..., Any]) -> Callable[..., Any]:
    def build_train_valid_test_datasets(*args: Any, **kwargs: Any) -> Any:
        built, runtime = original(*args, **kwargs), _runtime()
        if runtime.active:
            with clear_exit():
                runtime.check_stream(built[0])
                runtime.keep_training(built[0])
                built = runtime.with_channels(built)
            runtime.keep_validation(built[1])
        return built

    return build_train_valid_test_datasets


def _build_blend(original: Callable[..., Any]) -> Callable[..., Any]:
    def build(self: Any, *args: Any, **kwargs: Any) -> Any:
        runtime = _runtime()
        if runtime.active:
            runtime.keep_builder(self)
        if not (runtime.active and runtime.mixes):
            return original(self, *args, **kwargs)
        with clear_exit():
            return runtime.build_stream(lambda one: original(one, *args, **kwargs), self)

    return build


def _evaluate(original: Callable[..., Any]) -> Callable[..., Any]:
    def evaluate(*args: Any, **kwargs: Any) -> Any:
        runtime = _Current.runtime
        if not runtime.evaluating:
            return original(*args, **kwargs)
        runtime.open_set()
        result = original(*args, **kwargs)
        runtime.close_set(result)
        return result

    return evaluate


def _evaluation_step(original: Callable[..., Any]) -> Callable[..., Any]:
    def on_eval_step_end(*args: Any, **kwargs: Any) -> Any:
        if _Current.runtime.evaluating:
            _Current.runtime.close_evaluation_step()
        return original(*args, **kwargs)

    return on_eval_step_end


def _state_dict(original: Callable[..., Any]) -> Callable[..., Any]:
    def state_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
        state, runtime = original(self, *args, **kwargs), _runtime()
        leaf = runtime.state_leaf() if runtime.active else None
        return state if leaf is None else {**state, STATE_KEY: leaf}

    return state_dict


def _load_state_dict(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_state_dict(self: Any, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        state, runtime = dict(state_dict), _runtime()
        leaf = state.pop(STATE_KEY, None)
        if leaf is not None and runtime.active:
            runtime.load_state_leaf(leaf)
        return original(self, state, *args, **kwargs)

    return load_state_dict


def _new_model(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        runtime = _runtime()
        if runtime.active:
            with clear_exit():
                runtime.adapt(self)

    return __init__


def _read_checkpoint(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    def _load_base_checkpoint(*args: Any, **kwargs: Any) -> Any:
        runtime = _runtime()
        wanted = signature.bind(*args, **kwargs).arguments.get("sharded_state_dict")
        if wanted is not None and runtime.active:
            with clear_exit():
                runtime.before_read(wanted)
        result = original(*args, **kwargs)
        loaded, folder = result[:2]
        if loaded and runtime.active:
            with clear_exit():
                runtime.look_into(loaded, str(folder))
        return result

    return _load_base_checkpoint


_TRAINING = "megatron.training.training"
# What an evaluation takes of the parameters of the host's functions.
_RUN = ("forward_step_func", "model", "config")
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
        _RUN,
        "returns once per optimizer step, after re-runs, with (loss_dict, skipped, …)",
        _train_step,
    ),
    Seam(
        "training data",
        "megatron.core.datasets.blended_megatron_dataset_builder:"
        "BlendedMegatronDatasetBuilder.build",
        (),
        "makes the blend of every script and every version, and says from what; where mix is asked "
        "for, it is called for each prefix's one pass, and for the validation and test data",
        _build_blend,
    ),
    Seam(
        "data",
        f"{_TRAINING}:build_train_valid_test_datasets",
        (),
        "gives the data sets of every script, before they are hidden in iterators",
        _datasets,
    ),
    Seam(
        "evaluation",
        f"{_TRAINING}:evaluate_and_print_results",
        ("prefix", "iteration", *_RUN),
        "brackets one evaluation and says which split it is of",
        _evaluate_and_print,
    ),
    Seam(
        "evaluation of a set",
        f"{_TRAINING}:evaluate",
        (),
        "brackets one set of validation data and says whether time ran out on it",
        _evaluate,
    ),
    Seam(
        "evaluation step",
        "megatron.training.ft_integration:on_eval_step_end",
        (),
        "comes once a step, behind the attempts that the host made at it, also at one that a CUDA "
        "graph replayed",
        _evaluation_step,
    ),
    Seam(
        "model",
        "megatron.core.models.gpt.gpt_model:GPTModel.__init__",
        (),
        "makes each chunk of the model, whatever the script: adapters are added before DDP and "
        "the optimizer collect what is trained",
        _new_model,
    ),
    Seam(
        "read",
        "megatron.training.checkpointing:_load_base_checkpoint",
        ("sharded_state_dict",),
        "knows the folder that is loaded: formats that load into a template leave our state "
        "behind; and what is asked of it, in which a base has no adapters",
        _read_checkpoint,
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
