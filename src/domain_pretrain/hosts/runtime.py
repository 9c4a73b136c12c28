"""One process of a Megatron run: from the host's args and groups to the plugin's step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from domain_pretrain.config import DomainConfig
from domain_pretrain.data.mix.describe import tell_left_out
from domain_pretrain.data.mix.plan import Plan
from domain_pretrain.data.resumption import ACCOUNT
from domain_pretrain.errors import ConfigError, IntegrityError, UnsupportedError
from domain_pretrain.evaluate.above_base import AboveBase
from domain_pretrain.flags import PluginArgs, plugin_args
from domain_pretrain.flow.step import Step
from domain_pretrain.flow.tap import Source
from domain_pretrain.hosts import checkpoint, experts, upstream
from domain_pretrain.hosts.adapters import Adapters, refusals, refuse_adapters
from domain_pretrain.hosts.base import check_base
from domain_pretrain.hosts.base_model import check_model, tell_doubts
from domain_pretrain.hosts.channels import with_domains
from domain_pretrain.hosts.command_line import flags_of_command_line, read_data_flags
from domain_pretrain.hosts.facts import RunFacts, log_dir_of
from domain_pretrain.hosts.fixed_set import FixedSet
from domain_pretrain.hosts.mindspeed_support import REFUSALS as MINDSPEED
from domain_pretrain.hosts.probes.probing import Probing
from domain_pretrain.hosts.reads import tell_data
from domain_pretrain.hosts.session import Session, report_nonfinite
from domain_pretrain.hosts.support import check_flags
from domain_pretrain.process import notice
from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.records.samples import Samples
from domain_pretrain.stats import Split


class Runtime:
    """A run of Megatron, from its validated args on.

    Args:
        args: the host's.
        session: the run, checked; None without channel loss: then nothing is done.
        adapters: of LoRA; None where all is trained.
    """

    def __init__(
        self, args: Any = None, session: Session | None = None, adapters: Adapters | None = None
    ) -> None:
        self.args = args
        self._session = session
        self._adapters = adapters
        self._above: AboveBase | None = None
        self._state: dict[str, Any] | None = None
        self._checkpoint = ""  # that holds state of ours, where one was loaded
        self._step: Step | None = None
        self._evaluation: Split | None = None
        self._final = False
        self._set = 0  # of several, which the present evaluation reads
        self._validation: list[Any] = []  # the host's data, for each model chunk
        self._fixed: FixedSet | None = None
        self._reads_fixed = False
        self._probing: Probing | None = None
        self._before_first_step = True
        self._knows_routers = False
        self._streams = 0  # that have been built
        self._training: Any = None  # the data set that this rank trains on, if it reads any
        self._data: dict[str, Any] | None = None  # what the training data is built from

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
            experts.install(None)
            return cls(args)
        check_base(args)
        check_model(args)
        tell_doubts(args)
        config = DomainConfig.load(options.domain_config) if options.domain_config else None
        session = Session(_facts(args, options), options, config or DomainConfig())
        experts.install(session.config.adapt.experts)
        return cls(args, session, _adapters(args, session))

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
        if trains:
            self._check_loaded()
        step = self._session.build(
            get_tensorboard_writer(),
            get_wandb_writer(),
            after_iteration=args.iteration if trains else None,
            consumed_samples=args.consumed_train_samples,
            state=self._state,
            data=self._data,
        )
        if self._state is not None:
            if self._session.reweighting is not None and "reweight" not in self._state:
                notice("the checkpoint's run did not reweight: all multipliers start at one")
        elif not trains:
            pass
        elif args.iteration > 0:
            notice(
                "the checkpoint holds no domain_pretrain state (it was written without the plugin, "
                f"or --no-load-optim was given): {_FROM_HERE}"
            )
        elif getattr(args, "finetune", False) and getattr(args, "load", None):
            notice(f"--finetune leaves the checkpoint's domain_pretrain state behind: {_FROM_HERE}")
        return step

    def _check_loaded(self) -> None:
        """What a checkpoint holds must have arrived.

        Raises:
            IntegrityError: the host read it and did not hand it on.
        """
        args = self.args
        left_out = getattr(args, "no_load_optim", False) or args.iteration == 0
        if self._checkpoint and self._state is None and not left_out:
            raise IntegrityError(
                f"{self._checkpoint} holds domain_pretrain's state, but the host did not hand it "
                "on: it loads the LR scheduler in a way that the plugin does not know; give "
                "--no-load-optim to go on without (counts and weights start afresh)"
            )

    def source(self) -> Source | None:
        """Of the schedule that the host is about to run; None if it is not known."""
        assert self._session is not None
        if self._reads_fixed and self._fixed is not None:
            return self._fixed.source
        if self._evaluation is None:
            return self._session.source("train")
        return self._session.source(self._evaluation, self._set)

    # Steps.

    def close_step(self, result: Any, given: tuple[Any, ...] = ()) -> None:
        """After the host's train_step: ``result`` is what it returned for what it was given."""
        if upstream.gave_up(result):
            self.report_nonfinite(training=True)
            return
        step = self.step
        step.close(upstream.moment_after(result, self.args, given, step.device, steers=step.steers))

    def report_nonfinite(self, *, training: bool) -> None:
        """Where the host stops in a step or an evaluation: name the domains that may be why."""
        report_nonfinite(self.step, training=training)

    # Evaluations: open → sets of (attempts → step) → close.

    @property
    def evaluating(self) -> bool:
        """Whether the host is inside one of its own evaluations."""
        return self._evaluation is not None

    def open_evaluation(self, prefix: str) -> None:
        """Before the host evaluates; its ``prefix`` says on what."""
        self._evaluation, self._final = upstream.evaluated(prefix)
        self._set = -1
        self.step.evaluation.open()

    def open_set(self) -> None:
        """Before the host evaluates on one set of data, of one or several."""
        self._set += 1
        self.step.evaluation.open_set()

    def open_attempt(self, microbatches: int) -> None:
        """Before the host runs the schedule of a step of an evaluation, again perhaps."""
        self.step.evaluation.open_attempt(microbatches)

    def close_evaluation_step(self) -> None:
        """After a step of an evaluation."""
        self.step.evaluation.close_step()

    def close_set(self, result: Any) -> None:
        """After the host evaluated on one set; ``result`` is what it returned."""
        if not upstream.ran_out_of_time(result):
            self.step.evaluation.close_set()

    def close_evaluation(self, iteration: int) -> Samples | None:
        """After the host's evaluation at ``iteration``; its samples where they are counted."""
        split, self._evaluation = self._evaluation, None
        assert split is not None
        consumed = self.args.consumed_train_samples
        return self.step.close_evaluation(split, iteration, consumed, final=self._final)

    # The training data, and the stream in its place.

    def keep_builder(self, builder: Any) -> None:
        """Before the host builds data: the first that is for training is what the run reads."""
        if self._data is None and builder.sizes[0]:
            self._data = tell_data(builder)

    @property
    def mixes(self) -> bool:
        """Whether the config's ``mix`` is in force."""
        return self._session is not None and self._session.plan is not None

    def build_stream(self, build: Callable[[Any], list[Any]], builder: Any) -> list[Any]:
        """In place of the host's ``build`` of ``builder``; see :func:`.stream.build`."""
        from domain_pretrain.hosts import stream

        assert self._session is not None and self._session.stream is not None
        own = self._session.stream
        self._streams += 1

        def resume(lengths: Sequence[int]) -> Plan:
            return own.resume(lengths, self._state, self.args.consumed_train_samples)

        wait = None if own.board is None else own.board.wait
        already_read = self._session.reading.already_read
        built = stream.build(build, builder, own.plan, wait, resume, already_read)
        # Once for each model chunk of this rank: not every chunk of rank 0 reads data.
        decide = partial(own.omissions, self.args.consumed_train_samples, self._state or {})
        settled = stream.settle(built[0], decide, own.epochs)
        if settled is not None:
            own.settle(*settled)
            for told in () if built[0] is None else tell_left_out(built[0].locator):
                notice(told)
        elif built[0] is not None:
            built[0].omit(own.plan.omissions)
        return built

    def keep_training(self, dataset: Any) -> None:
        """After the host has built its data, for each model chunk; None: this rank reads none."""
        self._training = dataset if self._training is None else self._training

    def check_stream(self, training_data: Any) -> None:
        """After the host has built its data: what it trains on must have become the stream.

        Raises:
            UnsupportedError: the script builds its data in another way.
        """
        if self.mixes and training_data is not None and not self._streams:
            raise UnsupportedError(
                f"mix: the script's training data, a {type(training_data).__name__}, does not come "
                "from Megatron's BlendedMegatronDatasetBuilder, so the stream cannot take its "
                "place; leave mix out of the config"
            )

    def with_channels(self, built: Any) -> Any:
        """The host's data sets, with a domain for each token where the data has channels."""
        assert self._session is not None
        documents = self._session.catalog.documents
        return with_domains(built, documents) if documents else built

    # The fixed validation set, in place of what the host happens to read.

    def keep_validation(self, dataset: Any) -> None:
        """After the host has built the data of a model chunk; None: this rank reads none."""
        self._validation.append(dataset)

    def _validation_of(self, model: Sequence[Any]) -> list[Any]:
        """The host's data for each chunk of the model; None: this rank reads none.

        Some scripts have it built on the first tensor-parallel rank alone.
        """
        return [*[None] * len(model), *self._validation][-len(model) :]

    def has_fixed_set(self, prefix: str) -> bool:
        """Whether the evaluation that the host calls ``prefix`` is to be on the fixed set."""
        assert self._session is not None
        wanted = self._session.config.evaluate.samples is not None
        return wanted and upstream.evaluated(prefix)[0] == "valid"

    def evaluate_fixed_set(self, prefix: str, iteration: int, *run: Any) -> None:
        """Evaluate on it, on every rank, and publish; ``run`` is what :meth:`FixedSet.run` takes.

        Raises:
            UnsupportedError: the script's data are not Megatron's.
        """
        assert self._session is not None
        samples = self._session.config.evaluate.samples
        assert samples is not None
        if self._fixed is None:
            domains, built = self._session.validation_domains(), self._validation_of(run[1])
            self._fixed = FixedSet(self.args, built, domains, samples, self.step.device)
        self._measure_base(samples, prefix, *run)
        self._run_fixed_set(prefix, *run)
        self._tell_above_base(iteration, self.close_evaluation(iteration))

    def _run_fixed_set(self, prefix: str, *run: Any) -> None:
        assert self._fixed is not None
        self.step.count_by_sample(self._fixed.domains)
        self.open_evaluation(prefix)
        self._reads_fixed = True
        try:
            with upstream.kept_attention_logits(run[1]):
                self._fixed.run(*run)
        finally:
            self._reads_fixed = False

    def _measure_base(self, samples: int, prefix: str, *run: Any) -> None:
        """With adapters: the base on the same samples, unless the checkpoint knows it.

        Before the first step of new adapters it is the same model. But a run may start from
        others, or be asked for it late; without them it is the base at any time.
        """
        if self._adapters is None or not self._adapters.options.compare_base:
            return
        if self._above is None:
            self._above = AboveBase(samples, (self._state or {}).get(_ABOVE))
        if not self._above.known:
            with self._adapters.off(run[1]):
                self._run_fixed_set(prefix, *run)
            self._evaluation = None
            base = self.step.evaluation.close(self.step.groups.dp_cp_size)
            if base is not None and base[1] is not None:
                self._above.take(base[1])

    def _tell_above_base(self, iteration: int, samples: Samples | None) -> None:
        scores = () if self._above is None or samples is None else self._above.scores(samples)
        if scores and self.step.publisher is not None:
            consumed = self.args.consumed_train_samples
            self.step.publisher.scores(Evaluated(iteration, consumed, scores, self._final))

    def before_step(self, *run: Any) -> None:
        """Before the host's train_step: count experts where it will be logged; and at the first of
        a run that is new, or whose rule has no base yet, see where the model stands."""
        self._expect_experts(run[1])
        first, self._before_first_step = self._before_first_step, False
        here = self.args.iteration
        if not first:
            return
        if self._adapters is not None:
            self._adapters.check_there()
        if (here == 0 or self.step.baseless) and self.has_fixed_set(f"iteration {here}"):
            self.evaluate_fixed_set(f"iteration {here}", here, *run)
        if here == 0:
            self.probe("iteration 0", 0, *run)

    def _expect_experts(self, model: Sequence[Any]) -> None:
        counts = self.step.experts
        if counts is None:
            return
        if not self._knows_routers:
            experts.begin(counts, model)
            self._knows_routers = True
        counts.expect(logged=upstream.will_log(self.args))

    # Probes.

    def probe(self, prefix: str, iteration: int, *run: Any) -> None:
        """After an evaluation that the host calls ``prefix``, on every rank: ask what is due.

        Args:
            prefix, iteration: of the evaluation.
            run: what :meth:`Probing.run` takes of the host.

        Raises:
            ConfigError: a probe failed before anything was trained.
        """
        session = self._session
        assert session is not None
        if not session.probes:
            return
        split, final = upstream.evaluated(prefix)
        if self._probing is None:
            self._probing = Probing(
                session.probes,
                session.config.evaluate.every,
                by_bytes=session.by_bytes,
                args=self.args,
                device=self.step.device,
                publisher=self.step.publisher,
            )
        if split == "valid" and self._probing.due(iteration, final=final):
            with upstream.kept_attention_logits(run[1]):
                self._probing.run(
                    iteration,
                    *run,
                    reads=[one is not None for one in self._validation_of(run[1])],
                    final=final,
                    trained=iteration > 0 and not getattr(self.args, "skip_train", False),
                )

    # Adapters, and what a checkpoint has of them.

    def adapt(self, model: Any) -> None:
        """After the host has made a chunk of its model; see :meth:`.Adapters.add_to`."""
        if self._adapters is not None:
            self._adapters.add_to(model)

    def before_read(self, wanted: dict[str, Any]) -> None:
        """Before the host reads a checkpoint's tensors; see :meth:`.Adapters.before_read`."""
        if self._adapters is not None:
            self._adapters.before_read(wanted)

    # Checkpoints.

    def state_leaf(self) -> str | None:
        """The plugin's part of a checkpoint; None where there is none yet."""
        # Before the first step, what was loaded is handed on: Megatron may only convert a format.
        if self._step is None:
            return None if self._state is None else checkpoint.pack(self._state)
        kept = (self._state or {}).get(_ABOVE) if self._above is None else self._above.state_dict()
        above = {_ABOVE: kept} if kept else {}
        return checkpoint.pack({**self._step.state_dict(), **self._account(), **above})

    def _account(self) -> dict[str, Any]:
        """What was read of each prefix; nothing on ranks that do not know, of which 0 is none."""
        from domain_pretrain.hosts.consumption import samples_by_prefix

        assert self._session is not None
        if self._training is None:
            return {}
        found = samples_by_prefix(self._training, self.args.consumed_train_samples)
        account = None if found is None else self._session.account(*found)
        return {} if account is None else {ACCOUNT: account}

    def load_state_leaf(self, leaf: Any) -> None:
        """Keep a checkpoint's state until the step is built."""
        self._state = checkpoint.unpack(leaf)

    def look_into(self, loaded: dict[str, Any], folder: str) -> None:
        """After the host has read a checkpoint: put our leaf in where its format left it out.

        Args:
            loaded: what the host read, which it is about to hand on.
            folder: that it was read from.

        Raises:
            ConfigError: its vocabulary is padded to another size, or it has other adapters.
        """
        if self._adapters is None:
            refuse_adapters(loaded, folder)
        else:
            self._adapters.look_into(loaded, folder)
        self._check_vocabulary(loaded.get("args"), folder)
        scheduler = loaded.get(checkpoint.SCHEDULER)
        if not isinstance(scheduler, dict):
            return  # not asked for
        if checkpoint.STATE_KEY not in scheduler:
            leaf = checkpoint.find_missed(folder)
            if leaf is None:
                return
            scheduler[checkpoint.STATE_KEY] = leaf
        self._checkpoint = folder

    def _check_vocabulary(self, saved: Any, folder: str) -> None:
        """The rows that pad the embedding are in every loss, and they go with TP.

        Distributed checkpoints are loaded regardless: rows are cut off, or left as they were made.
        """
        args = self.args
        old, new = (getattr(one, "padded_vocab_size", None) for one in (saved, args))
        if old is None or new is None or old == new:
            return
        assert self._session is not None
        tp = getattr(args, "tensor_model_parallel_size", 1)
        what = f"{folder} has a vocabulary padded to {old:,}, this run to {new:,}"
        keep = (
            f"give --make-vocab-size-divisible-by {old // tp} for the same rows"
            if old % tp == 0
            else f"{old:,} rows cannot be parted over TP = {tp}"
        )
        if getattr(args, "finetune", False) or self._session.options.allow_domain_change:
            notice(f"WARNING: {what}: losses change with the rows; {keep}")
            return
        raise ConfigError(
            f"{what}, which changes the model and every loss: {keep}, or --allow-domain-change to "
            "carry on with other rows"
        )


def _facts(args: Any, options: PluginArgs) -> RunFacts:
    from megatron.core import __version__ as version

    def blends() -> Any:
        from megatron.training.utils import get_blend_and_blend_per_split

        read_data_flags(args)
        return get_blend_and_blend_per_split(args)

    return RunFacts(
        core_version=version,
        flags=args,
        refusals=MINDSPEED,
        blends=blends,
        validation_set_names=getattr(args, "validation_set_names", None),
        micro_batch_size=args.micro_batch_size,
        offers=frozenset({"progress", "lr"}),
        log_dir=log_dir_of(
            options.domain_log_dir,
            getattr(args, "tensorboard_dir", None),
            getattr(args, "save", None),
        ),
    )


def _adapters(args: Any, session: Session) -> Adapters | None:
    """What the config asks for, checked.

    Raises:
        DomainPretrainError: it cannot be, or cannot be right.
    """
    from megatron.core import __version__ as version

    from domain_pretrain.hosts import mindspeed

    lora, evaluate = session.config.adapt.lora, session.config.evaluate
    if lora is None:
        return None
    if mindspeed.present():
        raise UnsupportedError(
            "adapt.lora was not tried under MindSpeed, which replaces the layers that adapters "
            "stand beside; MindSpeed-LLM has a LoRA of its own"
        )
    compares = lora.compare_base and evaluate.samples is not None
    check_flags(args, refusals(lora, compares=compares))
    return Adapters(lora, args, version)


_ABOVE = "above_base"  # in the plugin's part of a checkpoint
_FROM_HERE = (
    "tokens and samples consumed per domain, and domain weights if any, start afresh from here"
)
