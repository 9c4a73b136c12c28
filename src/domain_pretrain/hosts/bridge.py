"""Megatron-Bridge, and NeMo on top of it: their callbacks and their forward step, no patches.

::

    domains = BridgeDomains("domains.yaml")
    pretrain(config, domains.watch(forward_step), callbacks=[domains])

Callbacks are told apart by their names, so nothing of Megatron-Bridge is imported here.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from domain_pretrain.catalog import Catalog
from domain_pretrain.config import DomainConfig
from domain_pretrain.errors import ConfigError, IntegrityError, UnsupportedError
from domain_pretrain.flow import steer
from domain_pretrain.flow.metrics_file import check_log_dir
from domain_pretrain.flow.publish import Publisher
from domain_pretrain.flow.step import DomainStep, Moment
from domain_pretrain.flow.tap import Source
from domain_pretrain.hosts.ranks import device_of, groups_of, kernels_of, owns_writers
from domain_pretrain.hosts.support import REFUSED_WITH_WEIGHTS, check_flags
from domain_pretrain.stats import Split

STATE_FILE = "domain_pretrain.json"


class BridgeDomains:
    """A callback of Megatron-Bridge, and the wrapper of the forward step that goes with it.

    Args:
        config: the YAML file; without it every prefix of the blend is a domain.
        log_dir: for the metrics file; default: the TensorBoard folder, else the save folder.
        reweight: as ``--domain-reweight``.
        backend: as ``--domain-backend``.
        allow_domain_change: as ``--allow-domain-change``.
    """

    def __init__(
        self,
        config: str | Path | None = None,
        *,
        log_dir: str | Path | None = None,
        reweight: str | None = None,
        backend: str = "auto",
        allow_domain_change: bool = False,
    ) -> None:
        self._config = DomainConfig() if config is None else DomainConfig.load(config)
        self._reweight = self._config.reweighting(reweight)
        self._given_log_dir = log_dir
        self._backend = backend
        self._allow_domain_change = allow_domain_change
        self._catalog: Catalog | None = None
        self._step: DomainStep | None = None
        self._split: Split | None = None  # what the schedule that runs now reads
        self._source: Source | None = None
        self._sources: dict[Split, Source] = {}
        self._forwards = 0  # of this attempt at a step
        self._forwards_of_attempt = 0
        self._trained = False

    # The forward step.

    def watch(self, forward_step: Callable[..., Any]) -> Callable[..., Any]:
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
        def watched(*args: Any, **kwargs: Any) -> Any:
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
            wrapped = self._step.wrap_forward_step(forward, self._source, training=training)
            return wrapped(given.arguments["data_iterator"])

        return watched

    def _open_attempt(self, step: DomainStep) -> None:
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
        """Reduce, publish, move the weights on."""
        from megatron.core.num_microbatches_calculator import get_num_microbatches

        assert self._step is not None
        self._split = None
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

    def _enter(self, split: Split, context: Any) -> DomainStep:
        if self._step is None:
            self._step = self._build(context.state)
        assert self._catalog is not None
        entry = self._catalog.split(split)
        if entry is not None and split not in self._sources:
            table = torch.tensor(entry.domain_of_dataset)
            by_id = entry.constant_domain is None
            self._sources[split] = Source(table if by_id else None, entry.constant_domain)
        self._split, self._source = split, self._sources.get(split)
        return self._step

    def _leave_evaluation(self, context: Any) -> None:
        assert self._step is not None and self._split is not None
        split, self._split = self._split, None
        progress = context.state.train_state
        self._step.close_evaluation(
            split, progress.step, progress.consumed_train_samples, final=self._trained
        )

    def _build(self, state: Any) -> DomainStep:
        """All ranks get here together, at the first callback of a loop."""
        cfg = state.cfg
        _refuse(cfg)
        if self._reweight is not None:
            check_flags(cfg.model, REFUSED_WITH_WEIGHTS)
        self._catalog = Catalog.build(
            cfg.dataset.blend, cfg.dataset.blend_per_split, self._config, mock_data=False
        )
        device = device_of(self._backend, reweighting=self._reweight is not None)
        groups = groups_of(cfg.train.micro_batch_size, device)
        backend = kernels_of(self._config, device)
        steering = steer.of_config(
            self._config,
            self._reweight,
            self._catalog.names,
            groups,
            device,
            tokens_per_step=cfg.train.global_batch_size * cfg.model.seq_length,
            backend=backend,
        )
        step = DomainStep(
            self._catalog.names,
            groups,
            device,
            self._publisher(state) if owns_writers() else None,
            steering,
            backend,
            config_hash=self._config.digest(),
            allow_domain_change=self._allow_domain_change,
        )
        if state.train_state.step > 0:
            step.load_state_dict(_load(cfg.checkpoint.load, state.train_state.step))
        return step

    def _publisher(self, state: Any) -> Publisher:
        cfg = state.cfg
        folder = self._given_log_dir or cfg.logger.tensorboard_dir or cfg.checkpoint.save
        log_dir = Path(folder) if folder else None
        if log_dir is not None:
            check_log_dir(log_dir)
        return Publisher(
            log_dir,
            state.tensorboard_logger,
            state.wandb_logger,
            self._config.channel_loss.average,
            after_iteration=state.train_state.step,
        )


def _refuse(cfg: Any) -> None:
    if not hasattr(cfg.dataset, "blend"):
        raise UnsupportedError(
            f"{type(cfg.dataset).__name__} is no blend of Megatron data: the plugin needs a "
            "GPTDatasetConfig, whose samples say which prefix they are of"
        )
    if getattr(cfg.model, "cuda_graph_impl", None) == "full_iteration":
        raise UnsupportedError(
            "cuda_graph_impl full_iteration replays steps without the forward step that the plugin "
            "watches; use another cuda_graph_impl"
        )
    if cfg.dist.use_decentralized_pg:
        raise UnsupportedError(
            "use_decentralized_pg: the plugin finds its process groups in megatron.core's "
            "parallel_state"
        )


def _state_file(folder: str, step: int) -> Path:
    return Path(folder, f"iter_{step:07d}", STATE_FILE)


def _load(folder: str, step: int) -> dict[str, Any]:
    path = _state_file(folder, step)
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing: the checkpoint was written without the plugin; start with "
            "finetune, or train on without it"
        )
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return state
