"""Where a loss jumps: the run ends, or goes back and leaves out what it read since.

The rank that owns the writers lets the tracker name a checkpoint from before the jump, then writes
the decision; every rank ends. What dies in between is whole: a run that goes back without having
written that it does comes to the same jump, and decides the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from domain_pretrain.checkpoints.tracker import (
    checkpoints_of,
    iteration_of,
    read_tracker,
    write_tracker,
)
from domain_pretrain.data.mix.plan import Plan
from domain_pretrain.errors import ConfigError
from domain_pretrain.flow.moment import Moment
from domain_pretrain.hosts.support import REFUSED_WITH_ROLLBACK, check_flags
from domain_pretrain.paths import is_remote
from domain_pretrain.process import notice
from domain_pretrain.records.console import say
from domain_pretrain.records.exporter import Publisher
from domain_pretrain.records.journal import note_decision
from domain_pretrain.records.reader import metrics_path, stream_lines
from domain_pretrain.records.record import Event, Finding
from domain_pretrain.watch.decision import (
    DECISIONS_FILE,
    EXIT_CODE,
    Decision,
    add_decision,
    cuts_of,
    decide,
    onset_of,
    read_decisions,
    spike_of,
)
from domain_pretrain.watch.section import Watching


def leave_out(plan: Plan | None, decisions: Sequence[Decision]) -> Plan | None:
    """The stream without what rollbacks have cut out of it.

    Raises:
        ConfigError: there is no stream to cut.
    """
    cuts = cuts_of(decisions)
    if plan is None and cuts:
        raise ConfigError(
            f"{DECISIONS_FILE} beside the checkpoints says that samples of the stream are left "
            "out, and without mix the run would read them: give the config's mix as before"
        )
    return plan if plan is None else plan.without(cuts)


def check_rollback(watching: Watching, flags: Any, *, mixes: bool) -> None:
    """What a rollback needs.

    Raises:
        UnsupportedError: the run would not come back to the checkpoints that it saves.
        ConfigError: there is no stream to cut.
    """
    if watching.on_spike != "rollback":
        return
    check_flags(flags, REFUSED_WITH_ROLLBACK)
    if not mixes:
        raise ConfigError(
            "watch.on_spike: rollback cuts samples out of the plugin's stream, and without mix the "
            "run reads Megatron's own blend: give the blend as one stage, as in mix: {schedule: "
            "[{weights: {general: 5, finance: 1}}]} (docs/rollback.md), or on_spike: stop"
        )


class Mark(NamedTuple):
    """After a logged iteration, so many samples are consumed."""

    iteration: int
    consumed: int


class Reaction:
    """What a run does where it finds a spike; every rank has one, and calls it together.

    Args:
        watching: of the config.
        plan: of the stream; None: the host's own blend.
        save: where the checkpoints go; None: nowhere.
        log_dir: of the metrics file.
        publisher: on the rank that writes, else None.
    """

    def __init__(
        self,
        watching: Watching,
        plan: Plan | None,
        save: str | None,
        log_dir: Path | None,
        publisher: Publisher | None,
    ) -> None:
        self._watching, self._plan = watching, plan
        self._save = None if save is None or is_remote(save) else Path(save)
        self._log_dir, self._publisher = log_dir, publisher

    def __call__(self, found: Sequence[Finding], moment: Moment) -> None:
        """After a logged window.

        Raises:
            SystemExit: with :data:`.EXIT_CODE`, on every rank, where one of ``found`` is a spike.
        """
        spike = spike_of(found)
        if spike is None:
            return
        if self._publisher is not None:
            self._record(spike, moment, self._publisher)
            self._publisher.close()  # the others wait: what is told late would be cut off
        if dist.is_initialized():
            dist.barrier()  # the world, no payload: the launcher ends all once the first has ended
        raise SystemExit(EXIT_CODE)

    def _record(self, spike: Finding, moment: Moment, publisher: Publisher) -> None:
        """The tracker first: see the top of the file."""
        decision = self._decide(spike, moment)
        if self._save is not None:
            if decision.resume is not None:
                write_tracker(self._save, decision.resume)
            add_decision(self._save, decision)
        if self._log_dir is not None:
            told = decision.model_dump(mode="json", exclude_defaults=True)
            note_decision(self._log_dir, moment.iteration, moment.consumed_samples, told)
        publisher.event(Event(decision.action, moment.iteration, str(decision)))
        say(f"domain_pretrain: {decision}")

    def _decide(self, spike: Finding, moment: Moment) -> Decision:
        mark = resume = samples = None
        if self._save is not None and self._plan is not None and self._log_dir is not None:
            mark = last_mark(self._log_dir, onset_of(spike))
        if mark is not None and self._plan is not None and self._save is not None:
            named = iteration_of(read_tracker(self._save))
            newest = 0 if named is None else min(mark.iteration, named)
            resume = max((at for at in checkpoints_of(self._save) if at <= newest), default=None)
            first = self._plan.position(mark.consumed)
            samples = (first, self._plan.passed(moment.consumed_samples))
        return decide(
            spike,
            self._watching,
            [] if self._save is None else read_decisions(self._save),
            onset=None if mark is None else mark.iteration,
            resume=resume,
            samples=samples,
        )


def last_mark(log_dir: Path, iteration: int) -> Mark | None:
    """Of the metrics file, the last training window up to an iteration; None: it has none."""
    found = None
    if metrics_path(log_dir).is_file():
        for line in stream_lines(log_dir):
            if line.get("split") == "train" and line["iteration"] <= iteration:
                found = Mark(line["iteration"], line["consumed_samples"])
    return found


def tell_rollbacks(
    decisions: Sequence[Decision], iteration: int, publisher: Publisher | None
) -> None:
    """At a start: what it leaves out, and on the rank that writes, an event of each way back.

    Later than that, the event has been told.
    """
    for decision in decisions:
        if decision.action == "rollback":
            notice(f"rollback: {decision}")
            again = decision.resume is not None and iteration <= decision.resume
            if publisher is not None and again:
                publisher.event(Event("rollback", iteration, str(decision)))
