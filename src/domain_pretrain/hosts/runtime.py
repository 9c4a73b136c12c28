"""One process of a Megatron run: from the host's args and groups to the plugin's DomainStep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from domain_pretrain.catalog import Catalog, check_files
from domain_pretrain.config import (
    DomainConfig,
    PluginArgs,
    Reweight,
    plugin_args,
)
from domain_pretrain.flow import steer
from domain_pretrain.flow.ledger import Groups
from domain_pretrain.flow.metrics_file import check_log_dir
from domain_pretrain.flow.publish import Publisher
from domain_pretrain.flow.steer import Steering
from domain_pretrain.flow.step import DomainStep, Moment
from domain_pretrain.flow.tap import Source
from domain_pretrain.hosts.command_line import check_data_flags, flags_of_command_line
from domain_pretrain.hosts.mindspeed_support import REFUSALS as MINDSPEED
from domain_pretrain.hosts.ranks import device_of, groups_of, kernels_of, notice, owns_writers, rank
from domain_pretrain.hosts.support import (
    REFUSALS,
    REFUSED_WITH_WEIGHTS,
    check_flags,
    check_version,
)
from domain_pretrain.kernels.domain_reduce import Backend
from domain_pretrain.stats import Split


class Runtime:
    """What the seams share. Inactive, and without any effect, until channel loss is asked for."""

    def __init__(self) -> None:
        self.args: Any = None
        self.active = False
        self._plugin = PluginArgs()
        self._catalog: Catalog | None = None
        self._config = DomainConfig()
        self._reweight: Reweight | None = None
        self._state: dict[str, Any] | None = None
        self._step: DomainStep | None = None
        self._evaluation: Split | None = None
        self._evaluation_sets = 0
        self._tables: dict[Split, Source] = {}

    def start(self, args: Any) -> None:
        """Read and check everything that can be wrong, once the host has validated its args.

        Raises:
            DomainPretrainError: before a process group or a GPU is touched.
        """
        self.__init__()  # type: ignore[misc]
        self.args = args
        given = args if hasattr(args, "channel_loss") else flags_of_command_line()
        self._plugin = plugin_args(given)
        if not self._plugin.channel_loss:
            return
        from megatron.core import __version__ as version
        from megatron.training.utils import get_blend_and_blend_per_split

        check_version(version, allow_unknown=self._plugin.allow_unknown_host)
        check_flags(args, REFUSALS + MINDSPEED)
        if self._plugin.domain_config:
            self._config = DomainConfig.load(self._plugin.domain_config)
        check_data_flags(args)
        blend, per_split = get_blend_and_blend_per_split(args)
        self._catalog = Catalog.build(
            blend,
            per_split,
            self._config,
            mock_data=bool(getattr(args, "mock_data", False)),
            multiple_validation_sets=bool(getattr(args, "multiple_validation_sets", False)),
            validation_set_names=getattr(args, "validation_set_names", None),
        )
        self._reweight = self._config.reweighting(self._plugin.domain_reweight)
        self._steering(Groups(), torch.device("cpu"))  # its mistakes are found here
        if self._reweight is not None:
            check_flags(args, REFUSED_WITH_WEIGHTS)
        if self._reweight is not None and not getattr(args, "calculate_per_token_loss", False):
            notice(
                "WARNING: the domains are reweighted without --calculate-per-token-loss: Megatron "
                "then averages the loss within each microbatch (and CP rank), so a token's weight "
                "also depends on how many others share its microbatch; give the flag for weights "
                "that are exact over the global batch (docs/reweighting.md)"
            )
        if not getattr(args, "sft", False):  # there the prefixes are conversation files
            for prefixes, _ in filter(None, (blend, *(per_split or ()))):
                check_files(prefixes)
        if owns_writers():
            directory = self._log_dir()
            if directory is not None:
                check_log_dir(directory)
        self.active = True

    def _log_dir(self) -> Path | None:
        args = self.args
        directory = (
            self._plugin.domain_log_dir
            or getattr(args, "tensorboard_dir", None)
            or getattr(args, "save", None)
        )
        return Path(directory) if directory else None

    @property
    def step(self) -> DomainStep:
        """The process's DomainStep, built at first use: all ranks must get here together."""
        if self._step is None:
            assert self._catalog is not None
            self._step = self._build(self._catalog)
        return self._step

    def _build(self, catalog: Catalog) -> DomainStep:
        device = device_of(self._plugin.domain_backend, reweighting=self._reweight is not None)
        groups = groups_of(self.args.micro_batch_size, device)
        backend = kernels_of(self._config, device)
        step = DomainStep(
            catalog.names,
            groups,
            device,
            self._publisher() if owns_writers() else None,
            self._steering(groups, device, backend),
            backend,
            config_hash=self._config.digest(),
            allow_domain_change=self._plugin.allow_domain_change,
        )
        if self._state is not None:
            step.load_state_dict(self._state)
            if self._reweight is not None and "reweight" not in self._state:
                notice("the checkpoint's run did not reweight: all multipliers start at one")
        elif self.args.iteration > 0:
            notice(
                "the checkpoint holds no domain_pretrain state (it was written without the plugin, "
                f"or --no-load-optim was given): {_FROM_HERE}"
            )
        elif getattr(self.args, "finetune", False) and getattr(self.args, "load", None):
            notice(f"--finetune leaves the checkpoint's domain_pretrain state behind: {_FROM_HERE}")
        return step

    def _steering(
        self, groups: Groups, device: torch.device, backend: Backend | None = None
    ) -> Steering | None:
        assert self._catalog is not None
        return steer.of_config(
            self._config,
            self._reweight,
            self._catalog.names,
            groups,
            device,
            tokens_per_step=self.args.global_batch_size * self.args.seq_length,
            backend=backend,
        )

    def _publisher(self) -> Publisher:
        from megatron.training.global_vars import get_tensorboard_writer, get_wandb_writer

        args = self.args
        trains = not getattr(args, "skip_train", False)
        return Publisher(
            self._log_dir(),
            get_tensorboard_writer(),
            get_wandb_writer(),
            self._config.channel_loss.average,
            after_iteration=args.iteration if trains else None,
        )

    # Where the samples come from.

    def next_source(self) -> Source | None:
        """The source of the schedule that the host is about to fetch; None if it is not known.

        The host fetches a schedule once for each validation set, in their order.
        """
        assert self._catalog is not None
        if self._evaluation is None:
            return self._source("train")
        source = self._source(self._evaluation, self._evaluation_sets)
        self._evaluation_sets += 1
        return source

    def _source(self, split: Split, validation_set: int = 0) -> Source | None:
        assert self._catalog is not None
        entry = self._catalog.split(split)
        if entry is None:
            return None
        if entry.validation_sets is not None:
            return Source(constant=entry.validation_sets[validation_set])
        if entry.constant_domain is not None:
            return Source(constant=entry.constant_domain)
        if split not in self._tables:
            self._tables[split] = Source(torch.tensor(entry.domain_of_dataset))
        return self._tables[split]

    # Steps and evaluations.

    def close_step(self, result: Any) -> None:
        """After the host's train_step: ``result`` is what it returned."""
        if result[3]:  # should_exit: the rerun machine gave up on this step, nothing was updated
            self.report_nonfinite(training=True)
            return
        self.step.close(self._moment(skipped=bool(result[1])))

    def report_nonfinite(self, *, training: bool) -> None:
        """Where the host stops in a step or an evaluation: name the domains that may be why."""
        bad = self.step.nonfinite_domains(training=training)
        if bad:
            plural = "s" * (len(bad) > 1)
            print(
                f"domain_pretrain: loss is not finite in domain{plural} {', '.join(bad)}, "
                f"on rank {rank()}",
                flush=True,
            )

    def _moment(self, *, skipped: bool = False) -> Moment:
        from megatron.core.num_microbatches_calculator import get_num_microbatches

        args = self.args
        iteration = args.curr_iteration + 1
        microbatches = get_num_microbatches()
        batch = microbatches * args.micro_batch_size * args.data_parallel_size
        return Moment(
            iteration=iteration,
            consumed_samples=args.consumed_train_samples + batch,
            log=iteration % args.log_interval == 0,
            scalars=iteration % args.tensorboard_log_interval == 0,
            microbatches=microbatches,
            skipped=skipped,
        )

    @property
    def evaluating(self) -> bool:
        """Whether the host is inside one of its own evaluations."""
        return self._evaluation is not None

    def open_evaluation(self, prefix: str) -> None:
        """Before the host evaluates; its ``prefix`` says what on."""
        self._evaluation = "test" if "test set" in prefix else "valid"
        self._evaluation_sets = 0
        self.step.open_evaluation()

    def close_evaluation(self, iteration: int, *, final: bool) -> None:
        """After the host's evaluation at ``iteration``; ``final``: training has ended."""
        split, self._evaluation = self._evaluation, None
        assert split is not None
        self.step.close_evaluation(split, iteration, self.args.consumed_train_samples, final=final)

    # Checkpoints.

    def state_dict(self) -> dict[str, Any] | None:
        """The plugin's part of a checkpoint; None where there is none yet."""
        # Before the first step, what was loaded is handed on: Megatron may only convert a format.
        return self._state if self._step is None else self._step.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep a checkpoint's state until the step is built."""
        self._state = state


_FROM_HERE = (
    "tokens and samples consumed per domain, and domain weights if any, start afresh from here"
)


RUNTIME = Runtime()
