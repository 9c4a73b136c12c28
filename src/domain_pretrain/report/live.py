"""What is known of a run while it trains: its files, followed as they grow."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from domain_pretrain.records.reader import (
    EVENTS_FILE,
    METRICS_FILE,
    Lines,
    event_of,
    finding_of,
    is_event,
    is_header,
    parse_line,
)
from domain_pretrain.records.record import Event, Finding
from domain_pretrain.records.tail import Tail
from domain_pretrain.report.history import START, corpus_tokens, number

WINDOWS = 32  # of each domain, as its curve shows them; the pace is of as many
KEPT = 100  # alarms, and as many events


@dataclass
class Row:
    """A domain by now.

    Attributes:
        losses: of its last windows, nats; NaN where not finite.
        iteration: of the last window in which it had tokens.
        valid: loss of its last evaluation; None: there was none.
        share: of the window's tokens, 0 to 1.
        weight, mix: as the line has them; None where it has none.
        consumed: training tokens so far; None where the line does not say.
    """

    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOWS))
    iteration: int = 0
    valid: float | None = None
    share: float = 0.0
    weight: float | None = None
    mix: float | None = None
    consumed: float | None = None


class LiveRun:
    """A run by now, from the lines of its files.

    Attributes:
        rows: by domain, in the order of the config.
        iteration: of the last window.
        train_iters: at which training ends; None where the header does not say.
        lm_loss: of the last window; NaN where not finite.
        host: the host's numbers of that window.
        corpus_tokens: tokens of each domain's training data, as far as they are known.
        alarms: the last that were found.
        events: the last that happened, without the start.
        unreadable: lines that are none of ours.
    """

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.iteration = 0
        self.train_iters: int | None = None
        self.lm_loss = math.nan
        self.host: dict[str, float] = {}
        self.corpus_tokens: dict[str, float] = {}
        self.alarms: list[Finding] = []
        self.events: list[Event] = []
        self.unreadable = 0
        self._lines = Lines()
        self._pace: deque[tuple[int, float, float]] = deque(maxlen=WINDOWS)

    def add(self, line: bytes) -> None:
        """A whole line of ``domain_metrics.jsonl``."""
        try:
            entry = self._lines.entry(line)
        except ValueError:
            self.unreadable += bool(line.strip())
            return
        if is_event(entry):
            self._add_event(event_of(entry), entry)
        elif entry["split"] == "train":
            self._add_window(entry)
        elif entry["split"] == "valid":
            for name, values in entry["domains"].items():
                self._row(name).valid = number(values["loss"])

    def add_finding(self, line: bytes) -> None:
        """A whole line of ``domain_events.jsonl``, where events stand, too."""
        entry = parse_line(line)
        if entry is None:
            self.unreadable += bool(line.strip())
        elif "finding" in entry:
            # It is told once more when its documents are known.
            alarm = replace(finding_of(entry), documents=())
            self.alarms = [*(one for one in self.alarms if one != alarm), alarm][-KEPT:]

    def alarms_of(self, name: str) -> list[Finding]:
        """Found in the windows that the curve of a domain shows."""
        since = self._pace[0][0] if self._pace else 0
        return [one for one in self.alarms if one.domain == name and one.iteration >= since]

    @property
    def tokens_per_second(self) -> float | None:
        """Over the last windows."""
        timed = [(tokens, seconds) for _, seconds, tokens in self._pace if seconds > 0]
        return sum(tokens for tokens, _ in timed) / sum(s for _, s in timed) if timed else None

    @property
    def seconds_left(self) -> float | None:
        """Until training ends, at the pace of the last windows; None where it cannot be told."""
        timed = [(iteration, seconds) for iteration, seconds, _ in self._pace if seconds > 0]
        if self.train_iters is None or len(timed) < 2:
            return None
        done = timed[-1][0] - timed[0][0]
        if done <= 0:
            return None
        left = max(0, self.train_iters - self.iteration)
        return left * sum(seconds for _, seconds in timed[1:]) / done

    def _add_event(self, event: Event, entry: dict[str, Any]) -> None:
        if is_header(entry):
            for name in entry["domains"]:
                self._row(name)
            self.corpus_tokens.update(corpus_tokens(entry))
            self.train_iters = entry.get("train_iters")
            self._pace.clear()  # perhaps on other devices
        if event.name != START:
            # Once: a run that is killed before its next checkpoint resumes at the same place again.
            self.events = [*(one for one in self.events if one != event), event][-KEPT:]

    def _add_window(self, entry: dict[str, Any]) -> None:
        self.iteration = entry["iteration"]
        self.lm_loss = number(entry.get("lm_loss"))
        host = entry.get("host")
        self.host = (
            {key: number(value) for key, value in host.items()} if isinstance(host, dict) else {}
        )
        domains = entry["domains"]
        tokens = sum(values["tokens"] for values in domains.values())
        seconds = self.host.get("seconds", 0.0)
        self._pace.append((self.iteration, seconds if seconds > 0 else 0.0, tokens))
        for name, values in domains.items():
            row = self._row(name)
            row.losses.append(number(values["loss"]))
            row.iteration = self.iteration
            row.share = values["tokens"] / tokens if tokens else 0.0
            row.weight = _known(values.get("weight"))
            row.mix = _known(values.get("mix"))
            row.consumed = _known(values.get("consumed_tokens"))

    def _row(self, name: str) -> Row:
        return self.rows.setdefault(name, Row())


class Follower:
    """Both files of a run, read on and on.

    Args:
        folder: the run's ``--domain-log-dir``; it may be yet to come.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS_FILE
        self._metrics, self._events = Tail(self.path), Tail(folder / EVENTS_FILE)
        self.run: LiveRun | None = None

    def read(self) -> bool:
        """Read what was added; whether there was anything.

        A resume replaces the files: then all is read again.
        """
        replaced = [tail.replaced() for tail in (self._metrics, self._events)]
        if any(replaced):
            self.close()
            self._metrics, self._events = Tail(self.path), Tail(self.path.with_name(EVENTS_FILE))
            self.run = None
        lines = 0
        for tail, add in ((self._metrics, LiveRun.add), (self._events, LiveRun.add_finding)):
            for line in tail.lines():
                self.run = self.run or LiveRun()
                add(self.run, line)
                lines += 1
        return any(replaced) or lines > 0

    def written_at(self) -> float | None:
        """When the run wrote last, in seconds since 1970."""
        return self._metrics.written_at()

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._events.close()


def _known(value: Any) -> float | None:
    found = number(value)
    return None if math.isnan(found) else found
