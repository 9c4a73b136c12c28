"""Megatron-Bridge, and NeMo on top of it: their callbacks and their forward step, no patches.

::

    domains = BridgeDomains("domains.yaml")
    pretrain(config, domains.wrap(forward_step), callbacks=[domains])

Callbacks are told apart by their names, so nothing of Megatron-Bridge is imported here.

The state of a checkpoint rides in the host's own ``train_state.pt``: callbacks are given the train
state, and the host asks it for its contents whenever a checkpoint is *requested*, of every kind and
in every version. ``on_checkpoint_save`` comes too late: the host calls it when a checkpoint is
complete, an asynchronous one several steps later, and does not say which.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from domain_pretrain.config import DomainConfig
from domain_pretrain.errors import ConfigError, IntegrityError, UnsupportedError
from domain_pretrain.flags import PluginArgs
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.moment import Moment
from domain_pretrain.flow.step import Step
from domain_pretrain.flow.tap import Source
from domain_pretrain.hosts.checkpoint import STATE_KEY
from domain_pretrain.hosts.facts import RunFacts, log_dir_of
from domain_pretrain.hosts.session import Session, report_nonfinite
from domain_pretrain.hosts.support import full_iteration_graph
from domain_pretrain.hosts.upstream import host_numbers
from domain_pretrain.json_file import read_json
from domain_pretrain.process import notice
from domain_pretrain.refusal import Refusal
from domain_pretrain.stats import Split

OLD_STATE_FILE = "domain_pretrain.json"  # beside it, in checkpoints that were written before


class BridgeDomains:
    """A callback of Megatron-Bridge, and the wrapper of the forward step that goes with it.

    Args:
        config: the YAML file; without it, every prefix of the blend is a domain.
        log_dir: for the metrics file; default: the TensorBoard folder, else the save folder.
        reweight: as ``--domain-reweight``.
        backend: as ``--domain-backend``.
        allow_domain_change: as ``--allow-domain-change``.
        allow_unknown_host: as ``--allow-unknown-host``.
    """

    def __init__(
        self,
        config: str | Path | None = None,
        *,
        log_dir: str | Path | None = None,
        reweight: str | None = None,
        backend: str = "auto",
        allow_domain_change: bool = False,
        allow_unknown_host: bool = False,
    ) -> None:
        self._config = DomainConfig() if config is None else DomainConfig.load(config)
        if self._config.mix.asked_for:
            raise UnsupportedError(
                "mix is not supported with Megatron-Bridge, whose training data the callbacks do "
                "not reach: leave mix out of the config"
            )
        if self._config.adapt.lora is not None:
            raise UnsupportedError(
                "adapt.lora is for Megatron-LM's own scripts; Megatron-Bridge has the same LoRA "
                "itself: give its ConfigContainer a `peft`, and leave adapt.lora out"
            )
        if any(domain.channels for domain in self._config.domains.values()):
            raise UnsupportedError(
                "`channels: true` is not supported with Megatron-Bridge, whose data sets the "
                "callbacks do not reach: prepare the data with --by instead, a file a domain"
            )
        if self._config.watch.on_spike == "rollback":
            raise UnsupportedError(
                "watch.on_spike: rollback cuts samples out of the plugin's stream, which there is "
                "not with Megatron-Bridge: give on_spike: stop, or log"
            )
        self._config.reweighting(reweight)  # its mistakes are found here, before Megatron starts
        self._options = PluginArgs(
            channel_loss=True,
            domain_reweight=reweight,
            domain_log_dir=None if log_dir is None else str(log_dir),
            domain_backend=backend,
            allow_domain_change=allow_domain_change,
            allow_unknown_host=allow_unknown_host,
        )
        self._session: Session | None = None
        self._step: Step | None = None
        self._split: Split | None = None  # what the present schedule reads
        self._source: Source | None = None
        self._forwards = 0  # in this step or evaluation, attempts that were repeated included
        self._forwards_of_attempt = 0  # or of an evaluation
        self._trained = False
        self._captured = self._saved = 0  # checkpoints requested, and complete

    # The forward step.

    def wrap(self, forward_step: Callable[..., Any]) -> Callable[..., Any]:
        """``forward_step``, with the ids taken from the batch before it and the sums behind it.

        Raises:
            ConfigError: it has no parameter ``data_iterator``.
        """
        signature = inspect.signature(forward_step)
        if "data_iterator" not in signature.parameters:
            takes = ", ".join(signature.parameters)
            raise ConfigError(f"the forward step must take data_iterator, it takes {takes}")

        # Megatron-Bridge looks up parameters of the original to see whether it wants the state.
        @functools.wraps(forward_step)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            if self._step is None or self._split is None:
                raise IntegrityError(
                    "the forward step runs outside of the plugin's callbacks: give the same object "
                    "to pretrain(..., callbacks=[...])"
                )

            def forward(data_iterator: Any) -> Any:
                given.arguments["data_iterator"] = data_iterator
                return forward_step(*given.args, **given.kwargs)

            training = self._split == "train"
            if training and self._forwards % self._forwards_of_attempt == 0:
                # The rerun machine may run a step again, unseen by callbacks.
                self._step.open()
            self._forwards += 1
            if self._source is None:
                return forward(given.arguments["data_iterator"])
            counted = self._step.wrap_forward_step(forward, self._source, training=training)
            return counted(given.arguments["data_iterator"])

        return wrapped

    def watch(self, forward_step: Callable[..., Any]) -> Callable[..., Any]:
        """The name of :meth:`wrap` in version 0.1."""
        notice("BridgeDomains.watch is called wrap now; the old name still works")
        return self.wrap(forward_step)

    # Callbacks.

    def on_train_start(self, context: Any) -> None:
        """Have the plugin's state saved and restored with the host's."""
        step = self._start(context.state)

        def state() -> dict[str, Any]:
            self._captured += 1
            return step.state_dict()

        _carry(context.state.train_state, state)

    def on_train_step_start(self, context: Any) -> None:
        """Start a step."""
        from megatron.core.num_microbatches_calculator import get_num_microbatches

        self._enter("train", context)
        self._forwards = 0
        self._forwards_of_attempt = get_num_microbatches() * len(context.model)

    def on_train_step_end(self, context: Any) -> None:
        """Reduce, publish, update the weights."""
        from megatron.core.num_microbatches_calculator import get_num_microbatches

        assert self._step is not None
        self._split = None
        if context.skipped_iter and _abandoned():
            report_nonfinite(self._step, training=True)
            return
        cfg, progress = context.state.cfg, context.state.train_state
        iteration, microbatches = progress.step + 1, get_num_microbatches()
        batch = microbatches * cfg.train.micro_batch_size * cfg.data_parallel_size
        log = iteration % cfg.logger.log_interval == 0
        self._step.close(
            Moment(
                iteration=iteration,
                consumed_samples=progress.consumed_train_samples + batch,
                log=log,
                scalars=iteration % cfg.logger.tensorboard_log_interval == 0,
                microbatches=microbatches,
                batch_tokens=batch * cfg.model.seq_length,
                skipped=bool(context.skipped_iter),
                host=host_numbers(context.optimizer, context.grad_norm) if log else {},
            )
        )

    def on_train_end(self, context: Any) -> None:
        """What is evaluated from here on is final."""
        self._trained = True

    def on_eval_start(self, context: Any) -> None:
        """Start a validation."""
        self._enter_evaluation("valid", context)

    def on_eval_end(self, context: Any) -> None:
        """Publish a validation."""
        self._leave_evaluation(context)

    def on_test_start(self, context: Any) -> None:
        """Start the test."""
        self._enter_evaluation("test", context)

    def on_test_end(self, context: Any) -> None:
        """Publish the test."""
        self._leave_evaluation(context)

    def on_checkpoint_save(self, context: Any) -> None:
        """Prove that the checkpoint, complete by now, took the plugin's state along.

        Raises:
            IntegrityError: it did not.
        """
        if self._step is None or dist.get_rank() != 0:  # which writes the train state
            return
        self._saved += 1
        if self._saved > self._captured:
            raise IntegrityError(
                "Megatron-Bridge saved a checkpoint without asking its train state what to save, "
                "so the plugin's state is not in it, and a run that resumes from it would count "
                "wrongly: unset checkpoint.custom_manager_class, or use a version of "
                "Megatron-Bridge that docs/bridge.md names"
            )

    # The step.

    def _start(self, state: Any) -> Step:
        if self._session is None or self._step is None:
            self._session, self._step = self._build(state)
        return self._step

    def _enter(self, split: Split, context: Any) -> Step:
        step = self._start(context.state)
        assert self._session is not None
        self._split, self._source = split, self._session.source(split)
        return step

    def _enter_evaluation(self, split: Split, context: Any) -> None:
        step = self._enter(split, context)
        step.evaluation.open()
        microbatches = _microbatches_of_evaluation(context.state.cfg, step.groups)
        step.evaluation.open_attempt(microbatches)  # callbacks do not tell one step from another
        self._forwards = 0
        self._forwards_of_attempt = microbatches * len(context.model)

    def _leave_evaluation(self, context: Any) -> None:
        """The host does not get here where time ran out on it."""
        assert self._step is not None and self._split is not None
        split, self._split = self._split, None
        if self._forwards != self._forwards_of_attempt:
            # The host repeats a schedule that overflowed, and no callback tells which.
            notice(
                f"WARNING: the evaluation ({split}) had {self._forwards} forward passes instead of "
                f"{self._forwards_of_attempt}: some are in it twice, so it is not published"
            )
            return
        self._step.evaluation.close_step()
        self._step.evaluation.close_set()
        progress = context.state.train_state
        self._step.close_evaluation(
            split, progress.step, progress.consumed_train_samples, final=self._trained
        )

    def _build(self, state: Any) -> tuple[Session, Step]:
        """All ranks get here together, at the first callback of a loop."""
        cfg, started = state.cfg, state.train_state.step
        if not hasattr(cfg.dataset, "blend"):
            raise UnsupportedError(
                f"{type(cfg.dataset).__name__} is not a blend of Megatron data: the plugin needs a "
                "GPTDatasetConfig, whose samples say which prefix they come from"
            )
        session = Session(_facts(cfg, self._options), self._options, self._config)
        if self._config.evaluate.samples is not None:
            raise UnsupportedError(
                "evaluate.samples: Megatron-Bridge's callbacks cannot start an evaluation of their "
                "own; leave it out, or train with Megatron-LM"
            )
        if self._config.adapt.experts.counts:
            raise UnsupportedError(
                "adapt.experts: with Megatron-Bridge, whose callbacks do not tell which step will "
                "be logged, it was never run; leave it out, or train with Megatron-LM"
            )
        if session.probes:
            raise UnsupportedError(
                "evaluate.probes: Megatron-Bridge's callbacks cannot run the model; leave them "
                "out, or ask the exported checkpoint"
            )
        self._trained = bool(getattr(getattr(cfg, "validation", None), "skip_train", False))
        step = session.build(
            state.tensorboard_logger,
            state.wandb_logger,
            after_iteration=None if self._trained else started,
            consumed_samples=state.train_state.consumed_train_samples,
            state=_load(cfg.checkpoint, started) if started > 0 else None,
        )
        return session, step


class _Settings:
    """The sections of a Megatron-Bridge config as one object, as Megatron-LM has its flags."""

    def __init__(self, *sections: Any) -> None:
        self._sections = sections

    def __getattr__(self, name: str) -> Any:
        for section in self._sections:
            if hasattr(section, name):
                return getattr(section, name)
        raise AttributeError(name)


REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "a full-iteration CUDA graph",
        full_iteration_graph,
        "it replays steps without the forward step that the plugin wraps; use another "
        "cuda_graph_impl or scope",
    ),
    Refusal(
        "dist.use_decentralized_pg",
        lambda a: bool(getattr(a, "use_decentralized_pg", False)),
        "the plugin finds its process groups in megatron.core's parallel_state",
    ),
    Refusal(
        "dataset.multiple_validation_sets",
        lambda a: bool(getattr(a, "multiple_validation_sets", False)),
        "callbacks do not say which of the sets an evaluation reads; give one validation blend",
    ),
    Refusal(
        "checkpoint.non_persistent_ckpt_type: local",
        lambda a: getattr(a, "non_persistent_ckpt_type", None) == "local",
        "the host hands the plugin's part of a local checkpoint to nobody when it resumes; use "
        "non_persistent_ckpt_type: global, or drop it",
    ),
)


# Of the host's config; where two have a setting of one name, the first one counts.
SECTIONS = (
    *("model", "train", "dataset", "dist", "ddp", "checkpoint"),
    *("optimizer", "scheduler"),  # what one compares runs by
)


def _facts(cfg: Any, options: PluginArgs) -> RunFacts:
    from megatron.core import __version__ as version

    restart = getattr(cfg, "inprocess_restart", None)
    own = SimpleNamespace(inprocess_restart=bool(getattr(restart, "enabled", False)))
    return RunFacts(
        core_version=version,
        flags=_Settings(own, *(getattr(cfg, name) for name in SECTIONS)),
        refusals=REFUSALS,
        blends=lambda: (cfg.dataset.blend, cfg.dataset.blend_per_split),
        validation_set_names=None,
        micro_batch_size=cfg.train.micro_batch_size,
        log_dir=log_dir_of(options.domain_log_dir, cfg.logger.tensorboard_dir, cfg.checkpoint.save),
    )


def _microbatches_of_evaluation(cfg: Any, groups: Groups) -> int:
    """How many an evaluation has per data-parallel rank."""
    # Since 0.5 it has a section, and batches, of its own; the host fills in what is not given.
    settings = _Settings(getattr(cfg, "validation", None), cfg.train)
    batch = getattr(settings, "eval_global_batch_size", None) or cfg.train.global_batch_size
    rows = getattr(settings, "eval_micro_batch_size", None) or cfg.train.micro_batch_size
    ranks = groups.dp_cp_size // groups.cp_size
    return int(settings.eval_iters * (batch // (rows * ranks)))


# A step that the rerun machine gave up.


def _abandoned() -> bool:
    """Whether the host is about to stop in the step that ended, without an update.

    The callback's context says only that there was no update. The rerun machine knows, on every
    rank alike; asking it again changes nothing, and repeats its line in the log.
    """
    from megatron.core.rerun_state_machine import get_rerun_state_machine

    _, should_exit, _ = get_rerun_state_machine().should_checkpoint_and_exit()
    return bool(should_exit)


# Checkpoints.


def _carry(train_state: Any, ours: Callable[[], dict[str, Any]]) -> None:
    """Let ``train_state``, whose contents the host saves, hold ours, too; the host ignores it."""
    original = train_state.state_dict

    @functools.wraps(original)
    def state_dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**original(*args, **kwargs), STATE_KEY: ours()}

    train_state.state_dict = state_dict


def _folders(checkpoint: Any, step: int) -> Iterator[Path]:
    """Where the host finds the checkpoint of ``step``, in the order in which it looks."""
    name = f"iter_{step:07d}"
    if checkpoint.load:
        yield Path(checkpoint.load)  # which may be the folder of one checkpoint
    if getattr(checkpoint, "non_persistent_ckpt_type", None) == "global":
        if checkpoint.non_persistent_global_ckpt_dir:
            yield Path(checkpoint.non_persistent_global_ckpt_dir, name)
        else:
            for folder in filter(None, (checkpoint.save, checkpoint.load)):
                yield Path(folder, "non_persistent", name)
    if checkpoint.load:
        yield Path(checkpoint.load, name)


def _load(checkpoint: Any, step: int) -> dict[str, Any]:
    """The state in the checkpoint that the host has resumed from.

    Args:
        checkpoint: the host's settings.
        step: where the host stands now.

    Raises:
        ConfigError: there is none.
    """
    for folder in _folders(checkpoint, step):
        file = folder / "train_state.pt"
        if not file.is_file():
            continue
        saved = torch.load(file, map_location="cpu", weights_only=True)
        if int(saved["step"]) != step:
            continue
        state: dict[str, Any] | None = saved.get(STATE_KEY)
        if state is None and (folder / OLD_STATE_FILE).is_file():
            state = read_json(folder / OLD_STATE_FILE)
        if state is None:
            raise ConfigError(
                f"{file} holds no state of the plugin: the checkpoint was written without it; set "
                "checkpoint.finetune=True to start counting afresh, or continue without the plugin"
            )
        return state
    places = ", ".join(str(folder) for folder in _folders(checkpoint, step)) or "nowhere"
    raise ConfigError(
        f"the run continues after step {step}, but no train_state.pt of that step was found "
        f"(looked in {places}), without which the plugin cannot go on counting; set "
        "checkpoint.finetune=True to start counting afresh, or continue without the plugin"
    )
