"""One run on any host: facts of the host → checks → the plugin's step. The only assembly.

Megatron-LM, MindSpeed-LLM and Megatron-Bridge gather the same :class:`RunFacts`, each in its own
way, and get the same checks and the same step. What a checkpoint holds, each host tells itself.
"""

from __future__ import annotations

import atexit
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from domain_pretrain.adapt.recipes import RECIPES
from domain_pretrain.config import DomainConfig
from domain_pretrain.data.catalog import Catalog
from domain_pretrain.data.channels import leaves_of, read_channels
from domain_pretrain.data.content import check_content
from domain_pretrain.data.mix import carry
from domain_pretrain.data.mix.blocks import Block
from domain_pretrain.data.mix.describe import describe, tell_begun, warn_of_idle
from domain_pretrain.data.mix.plan import Plan, make_plan
from domain_pretrain.data.origin import Constant, Sets
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.data.reading import Reading
from domain_pretrain.data.resumption import account
from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate import build_probes
from domain_pretrain.flags import PluginArgs
from domain_pretrain.flow.continuity import Meaning
from domain_pretrain.flow.experts import ExpertCounts
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.mixing import Mixing
from domain_pretrain.flow.steer import Reweighting
from domain_pretrain.flow.step import Step
from domain_pretrain.flow.tap import Source
from domain_pretrain.hosts.evaluations import (
    check_evaluations,
    check_fixed_set,
    check_followed,
)
from domain_pretrain.hosts.facts import RunFacts
from domain_pretrain.hosts.known import known_of
from domain_pretrain.hosts.ownership import own_folder
from domain_pretrain.hosts.probes.checks import check_probing, look_up
from domain_pretrain.hosts.ranks import (
    device_of,
    groups_of,
    kernels_of,
    owns_writers,
)
from domain_pretrain.hosts.reads import tell_run
from domain_pretrain.hosts.rollback import (
    Reaction,
    check_rollback,
    leave_out,
    tell_rollbacks,
)
from domain_pretrain.hosts.streaming import Streaming
from domain_pretrain.hosts.support import (
    REFUSALS,
    REFUSED_WITH_CHANNELS,
    REFUSED_WITH_EXPERTS,
    REFUSED_WITH_FIXED_SET,
    REFUSED_WITH_MIX,
    REFUSED_WITH_OTHER_TEST_DATA,
    REFUSED_WITH_PROBES,
    REFUSED_WITH_WEIGHTS,
    check_flags,
    check_version,
)
from domain_pretrain.process import notice, rank
from domain_pretrain.records.exporter import Publisher, configured
from domain_pretrain.records.journal import note_start, tell_block
from domain_pretrain.records.publisher import open_publisher
from domain_pretrain.records.writer import check_folder, check_log_dir
from domain_pretrain.stats import Split
from domain_pretrain.strategies import Reweighter
from domain_pretrain.watch import Watch
from domain_pretrain.watch.command import Command, check_command
from domain_pretrain.watch.decision import decisions_of
from domain_pretrain.watch.documents import Documents


class Session:
    """A run that has passed all checks.

    Args:
        facts: of the host.
        options: the plugin's own flags.
        config: the YAML file.

    Raises:
        DomainPretrainError: something is wrong, or cannot be right; no device has been touched.
    """

    def __init__(self, facts: RunFacts, options: PluginArgs, config: DomainConfig) -> None:
        self.facts, self.options, self.config = facts, options, config
        check_version(facts.core_version, allow_unknown=options.allow_unknown_host)
        check_flags(facts.flags, REFUSALS + facts.refusals)
        self._check_recipes()
        blend, per_split = facts.blends()
        self.catalog = Catalog.build(
            blend,
            per_split,
            config.domains,
            mock_data=facts.on("mock_data"),
            multiple_validation_sets=facts.on("multiple_validation_sets"),
            validation_set_names=facts.validation_set_names,
        )
        valid, test = self.catalog.split("valid"), self.catalog.split("test")
        if valid and test and valid != test:
            check_flags(facts.flags, REFUSED_WITH_OTHER_TEST_DATA)
        self.reading = Reading.check(
            blend,
            per_split,
            getattr(facts.flags, "split", None),
            getattr(facts.flags, "seq_length", 1),
            self.catalog.prefixes,
            # With --sft, the prefixes are conversation files.
            files=not facts.on("sft") and not facts.on("mock_data"),
        ).after(config.mix.already_read)
        channels = read_channels(config.domains, self.catalog.prefixes, self.reading.indices)
        if channels:
            check_flags(facts.flags, REFUSED_WITH_CHANNELS)
            self.catalog = self.catalog.parted(channels)
        self._check_experts(parted=bool(channels))
        names = self.catalog.names
        self.reweighting = self._check_reweighting(names)
        self._watch = Watch(config.watch, names)
        self._exporters = configured(config.exporters, names)
        self._decisions = decisions_of(facts.flags)
        plan = leave_out(self._check_mix(), self._decisions)
        check_rollback(config.watch, facts.flags, mixes=config.mix.asked_for)
        self.stream: Streaming | None = None
        if plan is not None:
            self.stream = Streaming(
                plan,
                self._check_dynamic(plan),
                self.reading,
                partial(facts.order, self.reading),
                go_on=config.mix.on_change == "continue",
                regardless=options.allow_domain_change,
                decisions=self._decisions,
            )
        check_evaluations(facts.flags, self.reading)
        if config.evaluate.samples is not None:
            check_fixed_set(facts.flags, self.reading)
            check_flags(facts.flags, REFUSED_WITH_FIXED_SET)
        self._check_followed(config.evaluate.samples or 0)
        self.probes = build_probes(config.evaluate.probes)
        if self.probes:
            check_flags(facts.flags, REFUSED_WITH_PROBES)
            check_probing(facts.flags, self.reading)
        self.by_bytes = False  # whether the tokens are; where probes run
        if rank() == 0:
            check_content(self.reading, facts.flags)
            for one in channels.values():
                one.check_numbers()
        if owns_writers():
            check_command(config.watch.command)
            if self.probes:
                self.by_bytes = look_up(facts.flags, self.reading, self.probes)
            if facts.log_dir is not None:
                check_log_dir(facts.log_dir)
            check_folder(getattr(facts.flags, "tensorboard_dir", None), "--tensorboard-dir")
        self._sources: dict[Split, Source] = {}

    def _check_recipes(self) -> None:
        flags = self.facts.flags
        for recipe in RECIPES:
            if not recipe.applies(flags):
                continue
            check_flags(flags, recipe.refusals)
            for doubt in recipe.doubts:
                if doubt.applies(flags):
                    notice(f"WARNING: {doubt.flags}: {doubt.why}")

    def _check_experts(self, *, parted: bool) -> None:
        if not self.config.adapt.experts.counts:
            return
        check_flags(self.facts.flags, REFUSED_WITH_EXPERTS)
        if parted:
            raise ConfigError(
                "adapt.experts counts by sample, and a domain has channels: a sample may then have "
                "tokens of several domains; leave channels or adapt.experts out"
            )

    def _check_reweighting(self, names: tuple[str, ...]) -> Reweighting | None:
        section, facts = self.config.reweighting(self.options.domain_reweight), self.facts
        if section is None:
            return None
        domains = self.config.domains
        found = Reweighting.check(
            section,
            names,
            average=self.config.channel_loss.average,
            pinned=[
                leaf for name, d in domains.items() if d.pinned for leaf in leaves_of(name, names)
            ],
            floor={
                leaf: d.floor
                for name, d in domains.items()
                if d.floor is not None
                for leaf in leaves_of(name, names)
            },
            offers=self._offers(),
        )
        check_flags(facts.flags, REFUSED_WITH_WEIGHTS)
        if not facts.on("calculate_per_token_loss"):
            notice(
                "WARNING: the domains are reweighted without --calculate-per-token-loss: Megatron "
                "then averages the loss within each microbatch (and CP rank), so a token's weight "
                "also depends on how many others share its microbatch; give the flag for weights "
                "that are exact over the global batch (docs/reweighting.md)"
            )
        return found

    def _check_mix(self) -> Plan | None:
        """The stream that the config asks for; None: the host's own blend."""
        facts, mix = self.facts, self.config.mix
        if not mix.asked_for or facts.on("skip_train"):
            return None
        check_flags(facts.flags, REFUSED_WITH_MIX)
        plan = make_plan(
            mix,
            self.reading,
            self.catalog.prefixes,
            samples=facts.samples,
            seq_length=facts.flags.seq_length,
            look_up=rank() == 0,
        )
        for what, how in describe(plan, self.catalog.prefixes):
            notice(f"mix: {what}: {how}")
        for warning in warn_of_idle(plan):
            notice(f"WARNING: {warning}")
        self.catalog = self.catalog.with_ids("train")  # also where the host would blend nothing
        return plan

    @property
    def plan(self) -> Plan | None:
        """Of the stream; None: the host's own blend."""
        return None if self.stream is None else self.stream.plan

    def account(
        self, samples: Sequence[int], epochs: Sequence[int | None]
    ) -> dict[str, Any] | None:
        """For a checkpoint, what was read of each prefix; None: that is not known.

        Args:
            samples: of every prefix of the training data.
            epochs: samples that one epoch of each has; see :class:`.Consumed`.
        """
        blend, flags = self.reading.blends[0], self.facts.flags
        in_order = getattr(flags, "dataloader_type", None) in (None, "single")
        if blend is None or len(blend[0]) != len(samples) or not in_order:
            return None
        if getattr(flags, "phase_transition_iterations", None):
            return None
        resumed = None if self.stream is None else self.stream.resumed
        left_behind = {} if resumed is None else resumed.left_behind
        own = account(blend[0], samples, epochs, self.reading)
        return carry.dump({**left_behind, **own})

    def _check_dynamic(self, plan: Plan) -> Mixing | None:
        """What decides the shares of the stream; None: nothing does."""
        dynamic = self.config.mix.dynamic
        if dynamic is None:
            return None
        if self.reweighting is not None:
            raise ConfigError(
                "mix.dynamic and reweight both follow the losses, and their effects on a domain "
                "would multiply: take one out (--domain-reweight none leaves the second out)"
            )
        return Mixing.check(
            dynamic,
            plan,
            self.catalog.names,
            self.catalog.prefixes,
            pinned=[name for name, domain in self.config.domains.items() if domain.pinned],
            average=self.config.channel_loss.average,
            batch=self.facts.largest_batch,
            offers=self._offers(),
        )

    def _check_followed(self, samples: int) -> None:
        """Rules that follow the losses of what they hold: of ``samples`` validation samples of
        every domain, or of what is trained on."""
        facts, mixing = self.facts, None if self.stream is None else self.stream.mixing
        found = [("mix.dynamic", None if mixing is None else mixing.rule)]
        found += [("reweight", getattr(self.reweighting, "rule", None))]
        for where, rule in found:
            if not isinstance(rule, Reweighter) or facts.on("skip_train"):
                continue
            terms = rule.strategy.terms
            followed = terms.bases({}, self.catalog.names)
            tokens = samples * len(followed) * getattr(facts.flags, "seq_length", 1)
            doubts = list(terms.doubts(tokens))
            if followed:
                validated = dict.fromkeys(self.catalog.names[d] for d in self.validation_domains())
                steps = (facts.samples or math.inf) / (facts.largest_batch or 1)
                doubts += check_followed(facts.flags, followed, validated, steps, where)
            for doubt in doubts:
                notice(f"WARNING: {doubt}")

    def _offers(self) -> frozenset[str]:
        """What a rule may be told of the course of the run."""
        fixed = self.config.evaluate.samples is not None
        return self.facts.offers | ({"valid"} if fixed else set())

    def build(
        self,
        tensorboard: Any,
        wandb: Any,
        *,
        after_iteration: int | None,
        consumed_samples: int = 0,
        state: dict[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> Step:
        """The step of this process; all ranks call this together, once groups and devices exist.

        Args:
            tensorboard, wandb: the host's writers, on the rank that owns them.
            after_iteration: where this run starts; None where it does not train.
            consumed_samples: that it skips.
            state: of the plugin, in the checkpoint that it starts from.
            data: of :func:`.tell_data`, where the host has built its data by now.

        Raises:
            DomainPretrainError: the state is of a run that meant or read something else.
        """
        order = None if after_iteration is None else self.facts.order(self.reading, self.plan)
        if owns_writers() and after_iteration is not None:
            # Not before: a preflight starts as a run does, perhaps beside the run that trains.
            self._owned = own_folder(getattr(self.facts.flags, "save", None))
        self._watch.known = known_of(
            self.config,
            self.catalog,
            self.reading,
            self.plan,
            seq_length=getattr(self.facts.flags, "seq_length", 1),
            alarms=self._watch.names,
        )
        self._watch.begin(after_iteration or 0, consumed_samples)
        device = device_of(self.options.domain_backend, reweighting=self.reweighting is not None)
        groups: Groups = groups_of(self.facts.micro_batch_size, device)
        backend = kernels_of(self.config.channel_loss.kernels, device)
        publisher: Publisher | None = None
        if owns_writers():
            publisher = open_publisher(
                self.facts.log_dir,
                tensorboard,
                wandb,
                self.config.channel_loss.average,
                after_iteration=after_iteration,
                corpus_tokens=self._watch.known.tokens,
                hyperparameters=self.facts.hyperparameters,
                config=self.config.settings(self.options.domain_reweight),
                others=self._exporters,
                tracer=self._tracer(),
                more=[Command(self.config.watch.command)] if self.config.watch.command else (),
            )
            atexit.register(publisher.close)
        mixer = None
        if self.stream is not None and after_iteration is not None:
            mixer = self.stream.start(device, None if publisher is None else self._tell_block)
        step = Step(
            self.catalog.names,
            groups,
            device,
            publisher,
            None if self.reweighting is None else self.reweighting.start(groups, device, backend),
            backend,
            self._watch,
            agreed=self._agreed(),
            meaning=Meaning(
                self.catalog.names,
                self.catalog.prefixes,
                self.config.settings(self.options.domain_reweight),
                order,
            ),
            allow_domain_change=self.options.allow_domain_change,
            continued=self.stream is not None and self.stream.continues,
            mixing=mixer,
            begun=self._begun(),
            consumed_samples=consumed_samples,
            react=None
            if self.config.watch.on_spike == "log"
            else Reaction(
                self.config.watch,
                self.plan,
                getattr(self.facts.flags, "save", None),
                self.facts.log_dir,
                publisher,
            ),
            experts=ExpertCounts(self.catalog.names, groups, device)
            if self.config.adapt.experts.counts
            else None,
        )
        if state is not None:
            step.load_state_dict(state, after_iteration or 0, consumed_samples)
        if after_iteration and step.baseless:
            notice(
                f"WARNING: the checkpoint has no base of {' and '.join(step.baseless)}: the base "
                f"is what the validation set says now, after iteration {after_iteration:,}, with "
                "all that was lost before; to hold what an earlier model knew, start from that "
                "one, with --finetune"
            )
        if self.plan is not None and self.plan.cuts and after_iteration is not None:
            position = self.plan.position(consumed_samples)
            notice(
                f"mix.skip: {consumed_samples:,} samples are consumed; the next one is at position "
                f"{position:,} of the stream"
            )
        if after_iteration is not None:
            tell_rollbacks(self._decisions, after_iteration, publisher)
        if publisher is not None and order is not None and self.facts.log_dir is not None:
            reads = tell_run(
                self.facts.flags,
                self.facts.core_version,
                self.reading,
                self.catalog.prefixes,
                self.plan,
                data,
                self.catalog.channels(),
            )
            start = after_iteration or 0
            held = [] if mixer is None else map(self._told_block, mixer.blocks.live.values())
            told = order.dump(), reads, [*held]
            note_start(self.facts.log_dir, start, consumed_samples, *told)
        if mixer is not None:
            if consumed_samples and "mix" not in (state or {}) and not mixer.blocks.plan.taken:
                notice(
                    "WARNING: the checkpoint does not say what mix.dynamic had decided: it goes on "
                    "as if the shares had been those of the blend, and may read samples again"
                )
            mixer.begin(after_iteration or 0, consumed_samples)
        return step

    def _tracer(self) -> Documents | None:
        """Of the documents behind findings, where the run leaves what a trace needs."""
        folder = self.facts.log_dir
        return None if folder is None or not self.reading.indices else Documents(folder)

    def _begun(self) -> Callable[[int, int], Iterable[str]] | None:
        """Tells the stages of the stream that begin on the way; None where there is only one."""
        if self.plan is None or len(self.plan.stages) == 1:
            return None
        return partial(tell_begun, self.plan, self.catalog.prefixes)

    def _tell_block(
        self, iteration: int, consumed_samples: int, block: Block, shares: Mapping[str, float]
    ) -> None:
        """On the rank that writes."""
        if self.facts.log_dir is not None:
            told = self._told_block(block)
            tell_block(self.facts.log_dir, iteration, consumed_samples, shares, **told)

    def _told_block(self, block: Block) -> dict[str, Any]:
        """For the journal."""
        assert self.plan is not None
        starts, counts = (
            dict(zip(self.plan.prefixes, numbers.tolist(), strict=True))
            for numbers in (block.start, block.counts)
        )
        return {"block": block.number, "starts": starts, "counts": counts}

    def _agreed(self) -> str:
        """What decides whose a token is and what it weighs: it must be the same on every rank.

        Of the config, what it has come to here: a glob may match other files on another node, while
        paths may differ between nodes without any harm.
        """
        reweighting = None if self.reweighting is None else self.reweighting.agreed()
        channel_loss = self.config.channel_loss.model_dump()
        watch = self.config.watch.model_dump()
        mix = None if self.plan is None else self.plan.dump()
        mixing = None if self.stream is None else self.stream.mixing
        dynamic = None if mixing is None else mixing.agreed()
        documents = [one.domains for one in self.catalog.documents.values()]
        read = self.reading.already_read
        of_tokens = (self.catalog.splits, documents, None if read is None else read.digest)
        return repr((of_tokens, reweighting, channel_loss, watch, mix, dynamic))

    def validation_domains(self) -> tuple[int, ...]:
        """Domain index of every prefix of the validation blend, in its order."""
        blend = self.reading.blends[1]
        names = self.catalog.names
        prefixes = () if blend is None else blend[0]
        return tuple(names.index(self.catalog.prefixes[normalise(p)]) for p in prefixes)

    def source(self, split: Split, position: int = 0) -> Source | None:
        """How the samples of one schedule tell their domain; None where the split has no data.

        Args:
            split: that the schedule reads.
            position: which one of several validation sets.
        """
        origin = self.catalog.split(split)
        if isinstance(origin, Sets):
            return Source(Constant(origin.domains[position]))
        if origin is not None and split not in self._sources:
            self._sources[split] = Source(origin)
        return self._sources.get(split)


def report_nonfinite(step: Step, *, training: bool) -> None:
    """Where the host stops in a step or an evaluation: name the domains that may be why."""
    bad = step.nonfinite_domains(training=training)
    if bad:
        plural = "s" * (len(bad) > 1)
        print(
            f"domain_pretrain: loss is not finite in domain{plural} {', '.join(bad)}, "
            f"on rank {rank()}",
            flush=True,
        )
