"""Where a loss jumps: the run ends, or goes back and leaves out what it read since.

The rank that owns the writers lets the tracker name a checkpoint from before the jump, sets aside
those after it, whose run has read what is left out, then writes the decision; every rank ends. What
dies in between is whole: a run that goes back without having written that it does comes to the same
jump, and decides the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from domain_pretrain.checkpoints.tracker import (
    checkpoints_of,
    iteration_of,
    read_tracker,
    set_aside,
    write_tracker,
)
from domain_pretrain.checkpoints.whole import find_damage
from domain_pretrain.data.mix.plan import Plan
from domain_pretrain.data.order import Order, breaks
from domain_pretrain.errors import ConfigError
from domain_pretrain.flow.moment import Moment
from domain_pretrain.hosts.support import REFUSED_WITH_ROLLBACK, check_flags
from domain_pretrain.paths import is_remote
from domain_pretrain.process import notice
from domain_pretrain.records.console import say
from domain_pretrain.records.exporter import Publisher
from domain_pretrain.records.journal import Start, note_decision, read_starts
from domain_pretrain.records.reader import metrics_path, stream_lines
from domain_pretrain.records.record import Event, Finding
from domain_pretrain.watch.decision import (
    DECISIONS_FILE,
    EXIT_CODE,
    Back,
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
                set_aside(self._save, decision.resume)
            add_decision(self._save, decision)
        if self._log_dir is not None:
            told = decision.model_dump(mode="json", exclude_defaults=True, exclude={"blocks"})
            note_decision(self._log_dir, moment.iteration, moment.consumed_samples, told)
        publisher.event(Event(decision.action, moment.iteration, str(decision)))
        say(f"domain_pretrain: {decision}")

    def _decide(self, spike: Finding, moment: Moment) -> Decision:
        at = onset_of(spike)
        mark = None if self._log_dir is None else last_mark(self._log_dir, at)
        if mark is None:
            back: Back | str = f"the metrics file has no line of iteration {at:,} or before"
        else:
            back = self._way_back(mark, moment.consumed_samples)
        return decide(
            spike,
            self._watching,
            [] if self._save is None else read_decisions(self._save),
            onset=at if mark is None else mark.iteration,
            back=back,
        )

    def _way_back(self, mark: Mark, consumed: int) -> Back | str:
        """To before ``mark``; or why there is none."""
        none = f"no checkpoint is left of iteration {mark.iteration:,} or before"
        save, plan, log_dir = self._save, self._plan, self._log_dir
        if save is None or plan is None or log_dir is None:
            return none
        try:
            starts = of_this_stream(read_starts(log_dir))
        except ConfigError as error:
            return str(error)
        since = starts[0].iteration
        resume = newest_whole(save, mark.iteration, since)
        if resume is None:
            also = f" and after {since:,}, where the run began to mix its data as it does now"
            return none + (also if since else "")
        samples = plan.position(mark.consumed), plan.passed(consumed)
        blocks: dict[int, tuple[int, ...]] = {}
        if plan.block is not None:
            known = last_mark(log_dir, resume)  # what lies before has been decided by then
            first = max(0 if known is None else plan.passed(known.consumed), plan.begin)
            told = {number: one for start in starts for number, one in start.blocks.items()}
            for number in range(first // plan.block, (samples[1] - 1) // plan.block + 1):
                if number not in told:
                    return f"the journal does not tell what was decided of block {number:,}"
                blocks[number] = tuple(told[number].counts.values())
        return Back(resume, samples, blocks)


def last_mark(log_dir: Path, iteration: int) -> Mark | None:
    """Of the metrics file, the last training window up to an iteration; None: it has none."""
    found = None
    if metrics_path(log_dir).is_file():
        for line in stream_lines(log_dir):
            if line.get("split") == "train" and line["iteration"] <= iteration:
                found = Mark(line["iteration"], line["consumed_samples"])
    return found


def newest_whole(save: Path, most: int, since: int) -> int | None:
    """The newest checkpoint up to what the tracker names that is not torn; None: there is none.

    Args:
        save: folder of the checkpoints.
        most: its iteration at most.
        since: it comes after that one.
    """
    named = iteration_of(read_tracker(save)) or 0
    for iteration, folder in sorted(checkpoints_of(save).items(), reverse=True):
        if since < iteration <= min(most, named):
            with suppress(ConfigError):  # an index that none of ours has
                if find_damage(folder) is None:
                    return iteration
    return None


def of_this_stream(starts: Sequence[Start]) -> Sequence[Start]:
    """Of a run's starts, the last ones that all read the stream of the very last: at each position
    the same sample, as long as the blocks that are decided on the way are the same.

    A run that goes back to before the first of them reads its present stream from there on, and
    then has other samples where it is to leave some out.
    """
    now = Order.load(starts[-1].order)
    others = (
        number
        for number, start in enumerate(starts)
        if any(breaks(before := Order.load(start.order), now)) or _origin(before) != _origin(now)
    )
    return starts[max(others, default=-1) + 1 :]


def _origin(order: Order) -> tuple[Any, ...]:
    """What the place of a sample hangs on, besides what :func:`.breaks` compares."""
    return tuple((order.mix or {}).get(key) for key in ("begin", "taken", "omissions"))


def tell_rollbacks(
    decisions: Sequence[Decision], iteration: int, publisher: Publisher | None
) -> None:
    """At a start: what it leaves out, and on the rank that writes, an event of each way back, at
    the iteration that it goes to; once the run is past that, the event has been told.
    """
    for decision in decisions:
        if decision.action == "rollback":
            notice(f"rollback: {decision}")
            if publisher is not None and iteration <= (decision.resume or 0):
                publisher.event(Event("rollback", decision.resume or 0, str(decision)))
