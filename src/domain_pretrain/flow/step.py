"""A training step from batch to log: tap → loss → ledger → windows → publish."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from domain_pretrain.errors import ConfigError, IntegrityError
from domain_pretrain.flow.agreement import check_agreement, known_everywhere
from domain_pretrain.flow.conservation import check_conservation
from domain_pretrain.flow.continuity import Meaning, check_base, check_continuity
from domain_pretrain.flow.evaluation import Evaluation
from domain_pretrain.flow.experts import ExpertCounts
from domain_pretrain.flow.forward import Forward
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.ledger import Ledger
from domain_pretrain.flow.mixing import Mixer
from domain_pretrain.flow.moment import Moment
from domain_pretrain.flow.steer import Steering
from domain_pretrain.flow.tap import Source
from domain_pretrain.flow.windows import Windows
from domain_pretrain.kernels.digest import Digest
from domain_pretrain.kernels.domain_reduce import Backend, select
from domain_pretrain.process import notice
from domain_pretrain.records.exporter import Publisher
from domain_pretrain.records.record import Event, Finding, Record, reweighted
from domain_pretrain.records.samples import Samples, dump, load
from domain_pretrain.records.score import Score, difference
from domain_pretrain.stats import DomainStats, Split
from domain_pretrain.strategies.course import Course
from domain_pretrain.watch import Reading, Watch

STATE_VERSION = 1


class Step:
    """The plugin's side of one training process: what the seams of every host call.

    Every rank has one and calls its methods in the same order; only the ranks that count see
    batches and losses, and only the rank that owns the host's writers has a publisher.

    Args:
        agreed: what must be the same on every rank, besides the names and what is in force.
        mixing: decides what the next steps read; None: nothing of it follows the losses.
        react: is given what the alarms found in a logged window, on every rank; may end the run.
        meaning: goes into the state, to be compared when a run resumes from it.
        allow_domain_change: load state of another meaning, by name.
        continued: whether another stream of samples goes on exactly where the state's stood.
        begun: tells which stages of the stream begin between two counts of consumed samples.
        consumed_samples: where training starts.
        experts: counts which experts each domain's tokens go to; None: nobody does.
    """

    # The rerun machine may run a step three times: first, again in place, again from a checkpoint;
    # and each time the host may start over without a limit on what experts receive.
    _most_attempts: float = 3 * 2

    def __init__(
        self,
        names: tuple[str, ...],
        groups: Groups,
        device: torch.device,
        publisher: Publisher | None = None,
        steering: Steering | None = None,
        backend: Backend | None = None,
        watch: Watch | None = None,
        *,
        agreed: str = "",
        meaning: Meaning | None = None,
        allow_domain_change: bool = False,
        continued: bool = False,
        mixing: Mixer | None = None,
        begun: Callable[[int, int], Iterable[str]] | None = None,
        consumed_samples: int = 0,
        react: Callable[[Sequence[Finding], Moment], None] | None = None,
        experts: ExpertCounts | None = None,
    ) -> None:
        self.names = names
        self.groups = groups
        self.device = device
        self.publisher = publisher
        self.steering = steering
        self.watch = watch
        self.mixing = mixing
        self.experts = experts
        self._react = react
        weighted = steering is not None
        derived = steering is not None and steering.step_multipliers is not None
        self.windows = Windows(names, device, layers=1 + weighted, host_repeats=groups.host_repeats)
        backend = backend or select("auto", device)
        self._train = Forward(
            groups,
            Ledger(len(names), groups, device, weighted=weighted, derived=derived),
            backend,
            steering,
            experts,
        )
        evaluate = Forward(groups, Ledger(len(names), groups, device), backend)
        # What the host evaluates on, and the fixed set; the present one of the two.
        self._of_host = self.evaluation = Evaluation(names, evaluate)
        self._of_fixed_set: Evaluation | None = None
        self._digest = Digest(json.dumps([names, agreed]), device)
        self._meaning = meaning or Meaning(names)
        self._allow_domain_change, self._continued = allow_domain_change, continued
        self._begun, self._consumed = begun, consumed_samples
        self._proven = False
        self._attempts = 0
        self._stats: DomainStats | None = None  # of the step that ended last, once read
        self._known_everywhere: frozenset[str] | None = None  # numbers of the host
        # Of the fixed set, for the step after the evaluation; nats by domain. And what a rule has
        # as its base, sample by sample.
        self._valid: dict[str, float] = {}
        self._errors: dict[str, float] = {}
        self._base: dict[str, Score] = {}
        self._logged_at: float | None = None  # seconds, of a clock with no particular start

    # A training step: open → microbatches → close.

    def open(self) -> None:
        """Start an attempt at a step; what an earlier attempt counted is forgotten.

        Raises:
            IntegrityError: so many attempts without a :meth:`close` that the host's train_step
                must bypass the plugin.
        """
        self._attempts += 1
        if self._attempts > self._most_attempts:
            raise IntegrityError(
                f"{self._most_attempts} training schedules ran, but no step was closed: the script "
                "calls a train_step of its own, which bypasses the plugin's seam; use Megatron's "
                "train loop"
            )
        self._train.ledger.open()
        if self.experts is not None:
            self.experts.open()

    def wrap_forward_step(
        self, forward_step: Callable[..., Any], source: Source, *, training: bool
    ) -> Callable[..., Any]:
        """The host's ``forward_step_func`` with the tap before it and the sums behind it."""
        return (self._train if training else self.evaluation.forward).wrap(forward_step, source)

    def close(self, moment: Moment) -> None:
        """End a step, on every rank: reduce, check, add to the windows, publish."""
        self._reduce()
        if moment.log or not self._proven:
            self._read()
        microbatches = moment.microbatches * self.groups.dp_cp_size
        evaluated = bool(self._valid) and not moment.skipped
        if evaluated:
            course = replace(moment.course, valid=self._valid, errors=self._errors)
            moment = replace(moment, course=course)
            self._valid, self._errors = {}, {}
        self._commit(microbatches, moment)
        if self.mixing is not None:  # a skipped step has read its samples all the same
            self.mixing.commit(None if moment.skipped else self._read(), moment)
        if not moment.skipped:
            self._tell_found(moment.iteration)
            if self.watch is not None:
                groups = self.groups
                replicas = groups.dp_cp_size // groups.cp_size
                self.watch.trained(moment.microbatches * replicas * groups.micro_batch_size)
        if moment.log or moment.scalars or not self._proven:
            # Also of the steps that nobody read: what is published must be whole.
            self.windows.check()
            self._proven = True
        self._tell_stages(moment)
        experts = None
        if self.experts is not None:
            experts = self.experts.close(moment.microbatches, moment.batch_tokens)
        # Every rank restarts its windows, so that every rank has the same state to checkpoint.
        if moment.scalars:
            if self.publisher is not None:
                window = self.windows.read(Windows.SCALARS)
                record = self._record(window, moment)
                self.publisher.scalars(replace(record, host=moment.host, experts=experts))
            self.windows.restart(Windows.SCALARS)
        if moment.log:
            found: Sequence[Finding] = ()
            if self.publisher is not None or self.watch is not None:
                window = self.windows.read(Windows.LOG)
                if self.publisher is not None:
                    record = self._record(window, moment)
                    host = self._host(moment)
                    self.publisher.line(replace(record, host=host, experts=experts))
                if self.watch is not None:
                    seen = self._window(self.watch, window[0], moment)
                    found = self._look(self.watch, replace(seen, experts=experts))
            self.windows.restart(Windows.LOG)
            if self._react is not None:
                self._react(found, moment)

    def _tell_stages(self, moment: Moment) -> None:
        """A stage begins after the step, or within it: by where the run stands alone, so that a
        resumed run tells the same."""
        before, self._consumed = self._consumed, moment.consumed_samples
        for stage in () if self._begun is None else self._begun(before, self._consumed):
            notice(f"after iteration {moment.iteration:,}: {stage}")
            if self.publisher is not None:
                self.publisher.event(Event("stage", moment.iteration, stage))

    def count_by_sample(self, domains: tuple[int, ...]) -> None:
        """Before an evaluation on the fixed set, on every rank: count it sample by sample.

        Args:
            domains: domain index of each of its samples, of which the batches tell the number.
        """
        if self._of_fixed_set is None:
            self._of_fixed_set = self._of_host.by_sample(domains)
        self.evaluation = self._of_fixed_set

    def close_evaluation(
        self, split: Split, iteration: int, consumed_samples: int, *, final: bool
    ) -> Samples | None:
        """End an evaluation, on every rank: reduce, publish what is whole of it, and give back its
        samples where they are counted."""
        found = self.evaluation.close(self.groups.dp_cp_size)
        self.evaluation = self._of_host
        if found is None:
            return None
        stats, samples = found
        risen = self._compare(samples)
        if split == "valid" and self.steers:
            losses = {name: totals.loss() for name, totals in stats if not totals.nonfinite}
            errors = {name: error for name, (_, error) in risen.items() if error is not None}
            if final:
                self._tell_summary(Course(valid=losses, errors=errors))
            else:
                self._valid, self._errors = losses, errors
        if self.publisher is not None:
            record = Record(
                split,
                iteration,
                consumed_samples,
                stats,
                final=final,
                samples=samples,
                risen=risen or None,
            )
            self.publisher.scalars(record)
            self.publisher.line(record)
        if self.watch is not None:
            average = self.watch.known.average
            own = {} if samples is None else samples.errors(average)
            seen = self.watch.evaluation(split, iteration, stats, own)
            self._look(self.watch, seen, final=final)
        return samples

    @property
    def steers(self) -> bool:
        """Whether something follows the losses."""
        return bool(self._deciders)

    @property
    def _deciders(self) -> list[Steering | Mixer]:
        """What follows the losses, if anything does."""
        return [one for one in (self.steering, self.mixing) if one is not None]

    @property
    def baseless(self) -> list[str]:
        """Domains that a rule compares with a base, and has none of yet."""
        return [name for name, has in self._bases() if not has]

    def _bases(self) -> Iterator[tuple[str, bool]]:
        for one in self._deciders:
            terms, state = one.terms
            yield from terms.bases(state, self.names).items()

    def _compare(self, samples: Samples | None) -> dict[str, tuple[float, float | None]]:
        """What each domain with a base has risen by, and its standard error; those that have none
        yet get theirs, as the rule's own will be."""
        found: dict[str, tuple[float, float | None]] = {}
        for name, has in self._bases():
            score = None if samples is None else samples.score(name)
            if score is None:
                continue
            if not has:
                self._base[name] = score
            elif name in self._base:
                found[name] = difference(self._base[name], score)
        return found

    def _tell_found(self, iteration: int) -> None:
        """What a rule has to tell of a step that it has taken."""
        if self.publisher is None:
            return
        for one in self._deciders:
            terms, state = one.terms
            for finding in terms.findings(state, iteration):
                self.publisher.finding(finding)

    def _tell_summary(self, course: Course) -> None:
        for one in self._deciders:
            terms, state = one.terms
            if (summary := terms.summary(state, self.names, course)) is not None:
                notice(summary)

    def nonfinite_domains(self, *, training: bool) -> list[str]:
        """Domains with a non-finite loss on this rank in the present attempt; synchronises."""
        stats = self._train.ledger.read(self.names).stats if training else self.evaluation.read()
        return [name for name, totals in stats if totals.nonfinite]

    def _reduce(self) -> None:
        """Make the step's sums global, with a digest of what was in force."""
        ledger = self._train.ledger
        found = [one.in_force for one in self._deciders]
        in_force = [one for one in found if one is not None]
        ledger.sign(self._digest.of(torch.cat(in_force) if in_force else None))
        ledger.reduce()
        self._stats = None

    def _read(self) -> DomainStats:
        """The step's global sums, once the ranks have been proven to agree; synchronises."""
        if self._stats is None:
            sums, steering = self._train.ledger.read(self.names), self.steering
            # Weights made within the forward pass are known to the last stage alone.
            everywhere = steering is None or steering.step_multipliers is not None
            own = sums.words if everywhere or self.groups.last_stage else None
            check_agreement(own, sums.agreed, self.groups)
            check_conservation(sums.stats, sums.host)
            self._stats = sums.stats
        return self._stats

    def _commit(self, microbatches: int | None, moment: Moment) -> None:
        """Add a reduced step to the windows; the weights learn from it unless it was skipped."""
        self._attempts = 0
        ledger = self._train.ledger
        if self.steering is not None and self.steering.step_multipliers is not None:
            ledger.weigh(self.steering.step_multipliers)
        self.windows.add(ledger, microbatches, skipped=moment.skipped)
        if self.steering is not None and not moment.skipped:
            self.steering.commit(self._read, moment.batch_tokens, moment.course)

    def _record(self, window: list[DomainStats], moment: Moment) -> Record:
        stats, *weighted = window
        tokens, samples = self.windows.consumed()
        record = Record("train", moment.iteration, moment.consumed_samples, stats, tokens, samples)
        if self.steering is not None:
            record = reweighted(record, weighted[0], self.steering.diagnostics(stats))
        return record if self.mixing is None else replace(record, mix=self.mixing.shares)

    def _host(self, moment: Moment) -> dict[str, float]:
        """The host's numbers, and the seconds since the last line: the sums are here, so no device
        is behind."""
        now, last = time.perf_counter(), self._logged_at
        self._logged_at = now
        return {**moment.host, **({} if last is None else {"seconds": now - last})}

    def _window(self, watch: Watch, stats: DomainStats, moment: Moment) -> Reading:
        """What the alarms see of a logged window: the same on every rank."""
        if self._known_everywhere is None:  # once, by the first logged step
            self._known_everywhere = known_everywhere(moment.host, self.groups)
        host = {name: one for name, one in moment.host.items() if name in self._known_everywhere}
        return watch.window(moment.iteration, moment.consumed_samples, stats, host)

    def _look(self, watch: Watch, seen: Reading, *, final: bool = False) -> Sequence[Finding]:
        """Ask the alarms, on every rank; the publisher's rank tells what they found.

        What they found is in force from here on: the ranks prove in the next step that all did.
        """
        found = [replace(one, final=final) for one in watch.read(seen)]
        if found:
            self._digest.note(json.dumps([[one.rule, one.domain, one.cause] for one in found]))
        if self.publisher is not None:
            for finding in found:
                self.publisher.finding(finding)
        return found

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Python primitives, the same on every rank."""
        watched = {} if self.watch is None else self.watch.state_dict()
        return {
            "version": STATE_VERSION,
            **self._meaning.dump(),
            **self.windows.state_dict(),
            **({} if self.steering is None else {"reweight": self.steering.state_dict()}),
            **({} if self.mixing is None else {"mix": self.mixing.state_dict()}),
            **({"watch": watched} if watched else {}),
            **({"valid": self._valid, "errors": self._errors} if self._valid else {}),
            **(
                {"base": {name: dump(one) for name, one in self._base.items()}}
                if self._base
                else {}
            ),
        }

    def load_state_dict(
        self, state: dict[str, Any], iteration: int = 0, consumed_samples: int = 0
    ) -> None:
        """Restore what :meth:`state_dict` gave, by domain name; what has changed is told.

        Args:
            state: of the checkpoint.
            iteration: that it was written after.
            consumed_samples: that its run had trained on.

        Raises:
            ConfigError: domains or data differ and that was not allowed, or the state is newer.
        """
        if state["version"] > STATE_VERSION:
            raise ConfigError(
                f"the checkpoint's domain_pretrain state has version {state['version']}, this "
                f"installation reads up to {STATE_VERSION}: install a newer domain_pretrain"
            )
        for change in check_continuity(
            state,
            self._meaning,
            allow=self._allow_domain_change,
            continued=self._continued,
            consumed=consumed_samples,
        ):
            notice(f"WARNING: the checkpoint was written with {change}")
            if self.publisher is not None:
                self.publisher.event(Event("change", iteration, change))
        self.windows.load_state_dict(state)
        if self.steering is not None and "reweight" in state:
            self.steering.load_state_dict(state["reweight"])
        if self.mixing is not None and "mix" in state:
            self.mixing.load_state_dict(state["mix"], continued=self._continued)
        self._valid, self._errors = (
            {name: one for name, one in state.get(key, {}).items() if name in self.names}
            for key in ("valid", "errors")
        )
        if based := [name for name, has in self._bases() if has]:
            allow = self._allow_domain_change
            for change in check_base(state, self._meaning, based, allow=allow):
                notice(f"WARNING: {change}")
            scores = {name: load(parts, name) for name, parts in state.get("base", {}).items()}
            self._base = {name: one for name, one in scores.items() if one and name in based}
        if self.watch is not None:
            self.watch.load_state_dict(state.get("watch", {}))
