"""What became of every domain: the tables at the end of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from domain_pretrain.records.console import SHOWN
from domain_pretrain.records.reader import EVENTS_FILE
from domain_pretrain.records.record import Finding
from domain_pretrain.report.history import History
from domain_pretrain.report.series import MOST, Mean, Series
from domain_pretrain.stats import perplexity

PART = 0.05  # of a domain's windows, at the start and at the end, whose mean is shown
NONE = "–"
ERRORS = 2  # a change of fewer standard errors may be chance


@dataclass(frozen=True)
class Summary:
    """One domain over a run. A loss is None where there was no window; NaN where not finite.

    Attributes:
        tokens: training tokens consumed in this run.
        epochs: ``tokens`` divided by those of the domain's corpus; None where that is not known.
        start, end: mean training loss of its first and last windows, nats.
        valid: loss of its last evaluation, nats.
        valid_error: standard error of that; None where it is not known.
    """

    domain: str
    tokens: float
    epochs: float | None
    start: Mean | None
    end: Mean | None
    valid: float | None
    valid_error: float | None = None

    @property
    def valid_mean(self) -> Mean | None:
        """``valid`` with its error."""
        return None if self.valid is None else Mean(self.valid, self.valid_error)

    @property
    def ppl(self) -> float | None:
        """Perplexity on the validation set where there is one, else in training."""
        loss = self.valid
        if loss is None and self.end is not None:
            loss = self.end.value
        return None if loss is None else perplexity(loss)

    @property
    def unchanged(self) -> bool:
        """Whether the training loss ends where it started, as far as its errors can tell."""
        if self.start is None or self.end is None:
            return False
        if self.start.error is None or self.end.error is None:
            return False
        error = math.hypot(self.start.error, self.end.error)
        return abs(self.end.value - self.start.value) <= ERRORS * error


def summarise(history: History) -> list[Summary]:
    """The domains of a run, in order."""
    return [
        _summary(history.train, history.valid, name, [name], history) for name in history.domains
    ]


def summarise_parents(history: History) -> list[Summary]:
    """What several of its domains are part of: their sums, over again."""
    train, valid = history.train_parents, history.valid_parents
    found = []
    for name in dict.fromkeys([*train.names, *valid.names]):
        parts = [one for one in history.domains if f"{one}/".startswith(f"{name}/")]
        found.append(replace(_summary(train, valid, name, parts, history), domain=f"{name}/…"))
    return found


def _summary(
    train: Series, valid: Series, name: str, parts: Sequence[str], history: History
) -> Summary:
    tokens = math.fsum(history.tokens.get(part, 0.0) for part in parts)
    sizes = [history.corpus_tokens.get(part) for part in parts]
    size = None if None in sizes else math.fsum(size or 0.0 for size in sizes)
    start, end = train.ends(name, PART) if name in train else (None, None)
    last = valid.last(name) if name in valid else None
    epochs, error = tokens / size if size else None, history.valid_errors.get(name)
    return Summary(name, tokens, epochs, start, end, last, error)


def loss_table(
    summaries: Sequence[Summary], title: str | None = None, parents: Sequence[Summary] = ()
) -> Table:
    """The table, without the columns that have nothing to say in this run.

    Args:
        summaries: of the domains.
        title: above it.
        parents: below the domains, since they are the same tokens.
    """
    epochs = any(summary.epochs is not None for summary in summaries)
    valid = any(summary.valid is not None for summary in summaries)
    notes = []
    if any(summary.end is not None and summary.end.error is not None for summary in summaries):
        notes += [
            f"± standard error of the mean over the first and the last {PART:.0%} of the windows, "
            f"{MOST} at most",
            f"≈ no change beyond {ERRORS} standard errors",
        ]
    if any(summary.valid_error is not None for summary in summaries):
        notes.append("± of a validation loss: over the samples of evaluate.samples")
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption="\n".join(notes) or None,
        caption_justify="left",
    )
    table.add_column("domain")
    table.add_column("tokens", justify="right")
    if epochs:
        table.add_column("epochs", justify="right")
    table.add_column("train loss\nstart → end", justify="right")
    if valid:
        table.add_column("valid\nloss", justify="right")
    table.add_column("valid\nppl" if valid else "train\nppl", justify="right")
    for place, summary in enumerate([*summaries, *parents]):
        if parents and place == len(summaries):
            table.add_section()
        cells = [summary.domain, f"{summary.tokens:,.0f}"]
        if epochs:
            cells.append(written(summary.epochs, ",.2f"))
        arrow = "≈" if summary.unchanged else "→"
        cells.append(f"{written_mean(summary.start)} {arrow} {written_mean(summary.end)}")
        if valid:
            cells.append(written_mean(summary.valid_mean))
        shown = None if valid and summary.valid is None else summary.ppl
        table.add_row(*cells, written(shown, ",.2f"))
    return table


# Name in the file → name for a person, and how it is written.
HOST = {
    "learning_rate": ("learning rate", ".3g"),
    "grad_norm": ("gradient norm", ".3f"),
    "max_attention_logit": ("largest attention logit", ".2f"),
    "tokens_per_second": ("tokens per second", ",.0f"),
}


def host_rows(history: History) -> Iterator[tuple[str, ...]]:
    """Of each of the host's numbers that the file has: title, start, end, least, largest."""
    for name, (title, spec) in HOST.items():
        if name in history.host:
            start, end = (mean.value for mean in history.host.ends(name, PART))
            curve = history.host.curve(name)
            if name == "learning_rate":  # has no noise, but a warm-up
                start, end = history.host.first(name), history.host.last(name)
            known = [float(x) for x in (*curve.low, *curve.high) if math.isfinite(x)]
            least, largest = (min(known), max(known)) if known else (math.nan, math.nan)
            yield title, *(written(x, spec) for x in (start, end, least, largest))


def host_table(history: History) -> Table | None:
    """The host's numbers over the run; None where the file has none."""
    table = Table()
    for title in ("", "start", "end", "least", "largest"):
        table.add_column(title, justify="right" if title else "left")
    for row in host_rows(history):
        table.add_row(*row)
    return table if table.row_count else None


def event_lines(history: History) -> list[str]:
    """What happened to the run: its resumes in one line, anything else in a line each."""
    # Once each: a run that is killed before its next checkpoint resumes at the same place again.
    events = dict.fromkeys(mark.event for mark in history.marks)
    resumes = dict.fromkeys(event.iteration for event in events if event.name == "resume")
    lines = [f"resumed after iteration {', '.join(map(str, resumes))}"] if resumes else []
    for event in events:
        if event.name != "resume":
            detail = f": {event.detail}" if event.detail else ""
            lines.append(f"after iteration {event.iteration}: {event.name}{detail}")
    return lines


def average_note(named: Sequence[tuple[str, History]]) -> str | None:
    """Which losses cannot be held against each other; None where all are means over the same."""
    if len({average for _, history in named for average in history.averages}) < 2:
        return None
    told = ", ".join(
        f"over {' and '.join(f'{one}s' for one in sorted(history.averages))} in {name}"
        for name, history in named
    )
    return (
        f"Losses by another average (channel_loss.average) are other numbers; do not compare them: "
        f"they are means {told}."
    )


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """What the alarms found: a line each, of no more than a person reads."""
    lines = [
        f"{one.severity} at iteration {one.iteration}, {one.rule}: {one.message}"
        for one in findings[:SHOWN]
    ]
    rest = len(findings) - SHOWN
    return [*lines, f"… {rest} more in {EVENTS_FILE}"] if rest > 0 else lines


def written_mean(mean: Mean | None) -> str:
    """For a person, with its error where that is known."""
    if mean is None:
        return NONE
    return written(mean.value) + ("" if mean.error is None else f" ± {mean.error:.3f}")


def written(value: float | None, spec: str = ".3f") -> str:
    """For a person: what is not known, and what is not finite, too."""
    if value is None:
        return NONE
    return "NaN" if math.isnan(value) else format(value, spec)
