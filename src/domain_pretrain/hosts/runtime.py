"""One process of a Megatron run: from the host's args and groups to the plugin's step."""

from __future__ import annotations

from typing import Any

from domain_pretrain.config import DomainConfig
from domain_pretrain.flags import PluginArgs, plugin_args
from domain_pretrain.flow.moment import Moment
from domain_pretrain.flow.step import Step
from domain_pretrain.flow.tap import Source
from domain_pretrain.hosts.command_line import check_data_flags, flags_of_command_line
from domain_pretrain.hosts.mindspeed_support import REFUSALS as MINDSPEED
from domain_pretrain.hosts.session import RunFacts, Session, log_dir_of, report_nonfinite
from domain_pretrain.process import notice
from domain_pretrain.stats import Split


class Runtime:
    """A run of Megatron, from its validated args on.

    Args:
        args: the host's.
        session: the run, checked; None without channel loss: then nothing is done.
    """

    def __init__(self, args: Any = None, session: Session | None = None) -> None:
        self.args = args
        self._session = session
        self._state: dict[str, Any] | None = None
        self._step: Step | None = None
        self._evaluation: Split | None = None
        self._evaluation_sets = 0

    @property
    def active(self) -> bool:
        """Whether channel loss was asked for."""
        return self._session is not None

    @classmethod
    def of(cls, args: Any) -> Runtime:
        """Read and check everything that can be wrong, once the host has validated its args.

        Raises:
            DomainPretrainError: before a process group or a GPU is touched.
        """
        options = plugin_args(args if hasattr(args, "channel_loss") else flags_of_command_line())
        if not options.channel_loss:
            return cls(args)
        config = DomainConfig.load(options.domain_config) if options.domain_config else None
        return cls(args, Session(_facts(args, options), options, config or DomainConfig()))

    @property
    def step(self) -> Step:
        """The process's step, built at first use: all ranks must get here together."""
        if self._step is None:
            self._step = self._build()
        return self._step

    def _build(self) -> Step:
        from megatron.training.global_vars import get_tensorboard_writer, get_wandb_writer

        assert self._session is not None
        args = self.args
        trains = not getattr(args, "skip_train", False)
        step = self._session.build(
            get_tensorboard_writer(),
            get_wandb_writer(),
            after_iteration=args.iteration if trains else None,
        )
        if self._state is not None:
            step.load_state_dict(self._state)
            if self._session.reweighting is not None and "reweight" not in self._state:
                notice("the checkpoint's run did not reweight: all multipliers start at one")
        elif args.iteration > 0:
            notice(
                "the checkpoint holds no domain_pretrain state (it was written without the plugin, "
                f"or --no-load-optim was given): {_FROM_HERE}"
            )
        elif getattr(args, "finetune", False) and getattr(args, "load", None):
            notice(f"--finetune leaves the checkpoint's domain_pretrain state behind: {_FROM_HERE}")
        return step

    def next_source(self) -> Source | None:
        """The source of the schedule that the host is about to fetch; None if it is not known.

        The host fetches a schedule once for each validation set, in their order.
        """
        assert self._session is not None
        if self._evaluation is None:
            return self._session.source("train")
        source = self._session.source(self._evaluation, self._evaluation_sets)
        self._evaluation_sets += 1
        return source

    # Steps and evaluations.

    def close_step(self, result: Any) -> None:
        """After the host's train_step: ``result`` is what it returned."""
        if result[3]:  # should_exit: the rerun machine gave up on this step, nothing was updated
            self.report_nonfinite(training=True)
            return
        self.step.close(self._moment(skipped=bool(result[1])))

    def report_nonfinite(self, *, training: bool) -> None:
        """Where the host stops in a step or an evaluation: name the domains that may be why."""
        report_nonfinite(self.step, training=training)

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
        """Before the host evaluates; its ``prefix`` says on what."""
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


def _facts(args: Any, options: PluginArgs) -> RunFacts:
    from megatron.core import __version__ as version

    def blends() -> Any:
        from megatron.training.utils import get_blend_and_blend_per_split

        check_data_flags(args)
        return get_blend_and_blend_per_split(args)

    return RunFacts(
        core_version=version,
        flags=args,
        refusals=MINDSPEED,
        blends=blends,
        validation_set_names=getattr(args, "validation_set_names", None),
        micro_batch_size=args.micro_batch_size,
        global_batch_size=args.global_batch_size,
        seq_length=args.seq_length,
        log_dir=log_dir_of(
            options.domain_log_dir,
            getattr(args, "tensorboard_dir", None),
            getattr(args, "save", None),
        ),
    )


_FROM_HERE = (
    "tokens and samples consumed per domain, and domain weights if any, start afresh from here"
)
