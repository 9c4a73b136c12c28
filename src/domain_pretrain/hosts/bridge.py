"""Megatron-Bridge, and NeMo on top of it: their callbacks and their forward step, no patches.

::

    domains = BridgeDomains("domains.yaml")
    pretrain(config, domains.wrap(forward_step), callbacks=[domains])

Callbacks are told apart by their names, so nothing of Megatron-Bridge is imported here.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist

from domain_pretrain.config import DomainConfig
from domain_pretrain.errors import ConfigError, IntegrityError, UnsupportedError
from domain_pretrain.flags import PluginArgs
from domain_pretrain.flow.moment import Moment
from domain_pretrain.flow.step import Step
from domain_pretrain.flow.tap import Source
from domain_pretrain.hosts.session import RunFacts, Session, log_dir_of, report_nonfinite
from domain_pretrain.hosts.support import Refusal, full_iteration_graph
from domain_pretrain.process import notice
from domain_pretrain.stats import Split

STATE_FILE = "domain_pretrain.json"


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
        self._forwards = 0  # in this attempt at a step
        self._forwards_of_attempt = 0
        self._trained = False

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
            if training:
                self._open_attempt(self._step)
            if self._source is None:
                return forward(given.arguments["data_iterator"])
            counted = self._step.wrap_forward_step(forward, self._source, training=training)
            return counted(given.arguments["data_iterator"])

        return wrapped

    def watch(self, forward_step: Callable[..., Any]) -> Callable[..., Any]:
        """The name of :meth:`wrap` in version 0.1."""
        notice("BridgeDomains.watch is called wrap now; the old name still works")
        return self.wrap(forward_step)

    def _open_attempt(self, step: Step) -> None:
        """The rerun machine may run a step again, unseen by callbacks: an attempt has a known
        number of forward passes."""
        if self._forwards % self._forwards_of_attempt == 0:
            step.open()
        self._forwards += 1

    # Callbacks.

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
        self._step.close(
            Moment(
                iteration=iteration,
                consumed_samples=progress.consumed_train_samples + batch,
                log=iteration % cfg.logger.log_interval == 0,
                scalars=iteration % cfg.logger.tensorboard_log_interval == 0,
                microbatches=microbatches,
                skipped=bool(context.skipped_iter),
            )
        )

    def on_train_end(self, context: Any) -> None:
        """What is evaluated from here on is final."""
        self._trained = True

    def on_eval_start(self, context: Any) -> None:
        """Start a validation."""
        self._enter("valid", context).open_evaluation()

    def on_eval_end(self, context: Any) -> None:
        """Publish a validation."""
        self._leave_evaluation(context)

    def on_test_start(self, context: Any) -> None:
        """Start the test."""
        self._enter("test", context).open_evaluation()

    def on_test_end(self, context: Any) -> None:
        """Publish the test."""
        self._leave_evaluation(context)

    def on_checkpoint_save(self, context: Any) -> None:
        """Put the plugin's state beside what was saved."""
        if self._step is None or dist.get_rank() != 0:
            return
        path = _state_file(context.state.cfg.checkpoint.save, context.state.train_state.step)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(self._step.state_dict()), encoding="utf-8")
        os.replace(partial, path)

    # The step.

    def _enter(self, split: Split, context: Any) -> Step:
        if self._session is None or self._step is None:
            self._session, self._step = self._build(context.state)
        self._split, self._source = split, self._session.source(split)
        return self._step

    def _leave_evaluation(self, context: Any) -> None:
        assert self._step is not None and self._split is not None
        split, self._split = self._split, None
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
        step = session.build(state.tensorboard_logger, state.wandb_logger, after_iteration=started)
        if started > 0:
            step.load_state_dict(_load(cfg.checkpoint.load, started))
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
)


def _facts(cfg: Any, options: PluginArgs) -> RunFacts:
    from megatron.core import __version__ as version

    restart = getattr(cfg, "inprocess_restart", None)
    own = SimpleNamespace(inprocess_restart=bool(getattr(restart, "enabled", False)))
    return RunFacts(
        core_version=version,
        flags=_Settings(own, cfg.model, cfg.train, cfg.dataset, cfg.dist, cfg.ddp, cfg.checkpoint),
        refusals=REFUSALS,
        blends=lambda: (cfg.dataset.blend, cfg.dataset.blend_per_split),
        validation_set_names=None,
        micro_batch_size=cfg.train.micro_batch_size,
        global_batch_size=cfg.train.global_batch_size,
        seq_length=cfg.model.seq_length,
        log_dir=log_dir_of(options.domain_log_dir, cfg.logger.tensorboard_dir, cfg.checkpoint.save),
    )


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


def _state_file(folder: str, step: int) -> Path:
    return Path(folder, f"iter_{step:07d}", STATE_FILE)


def _load(folder: str, step: int) -> dict[str, Any]:
    path = _state_file(folder, step)
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing: the checkpoint was written without the plugin; start with "
            "finetune, or continue without the plugin"
        )
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return state
