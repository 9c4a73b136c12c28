"""A run by now as one screen: a line about all, a row for each domain, what was found."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from domain_pretrain.report.live import LiveRun, Row
from domain_pretrain.report.table import NONE, written

BARS = "▁▂▃▄▅▆▇█"
TOLD = 5  # alarms and events below the table
STYLES = {"info": "cyan", "warning": "yellow", "error": "bold red"}
_AROUND = 6  # lines of a table besides its rows: borders, heads of two lines, what is left out
_LEAST = 3  # rows, however small the terminal is


def frame(run: LiveRun, *, height: int, idle_s: float | None = None) -> RenderableType:
    """One screen.

    Args:
        run: what is known.
        height: lines of the terminal; of more domains than fit, those that have an alarm or a loss
            that is not finite are shown, and those with the highest loss.
        idle_s: seconds since the run wrote last; None: it is not said.
    """
    told = _told(run)
    head = Text(" · ".join(_head(run)))
    table = _table(run, max(_LEAST, height - _AROUND - 2 - len(told)))
    foot = [] if idle_s is None else [f"last line {duration(idle_s)} ago"]
    if run.unreadable:
        foot.append(f"{run.unreadable} lines left out that cannot be read")
    return Group(head, table, *told, *([Text(", ".join(foot), style="dim")] if foot else []))


def waiting(path: object) -> Text:
    """In place of it, where nothing is written yet."""
    return Text(f"waiting for {path}: a run with --channel-loss writes it", style="dim")


def sparkline(values: Sequence[float]) -> str:
    """A bar for each value, between the lowest and the highest; ``×`` for one not finite."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        BARS[round((value - low) * scale)] if math.isfinite(value) else "×" for value in values
    )


def duration(seconds: float) -> str:
    """``42 s``, ``7 min 5 s``, ``3 h 20 min``, ``2 d 4 h``."""
    whole = max(0, round(seconds))
    for size, name, small, part in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // small} {part}"
    return f"{whole} s"


def _head(run: LiveRun) -> list[str]:
    of = ""
    if run.train_iters:
        of = f" of {run.train_iters:,} ({run.iteration / run.train_iters:.0%})"
    words = [f"iteration {run.iteration:,}{of}", f"lm loss {written(run.lm_loss)}"]
    for key, name, spec in (
        ("learning_rate", "lr", ".3g"),
        ("grad_norm", "grad norm", ".3f"),
        ("max_attention_logit", "max logit", ".2f"),
    ):
        if key in run.host:
            words.append(f"{name} {written(run.host[key], spec)}")
    if run.tokens_per_second is not None:
        words.append(f"{run.tokens_per_second:,.0f} tokens/s")
    if run.train_iters and run.iteration >= run.train_iters:
        words.append("done")
    elif run.seconds_left is not None:
        words.append(f"{duration(run.seconds_left)} left")
    return words


def _table(run: LiveRun, fit: int) -> Table:
    names = _shown(run, fit)
    rows = [run.rows[name] for name in names]
    alarms = {name: list(dict.fromkeys(a.rule for a in run.alarms_of(name))) for name in names}
    # Name, whether any domain has it, and how it is written.
    optional = [
        ("valid\nloss", any(row.valid is not None for row in rows), lambda n, r: written(r.valid)),
        ("share of\ntokens", True, lambda n, r: _share(r.share if _there(run, r) else None)),
        (
            "multi-\nplier",
            any(row.weight is not None for row in rows),
            lambda n, r: written(r.weight, ".2f"),
        ),
        ("share of\nstream", any(row.mix is not None for row in rows), lambda n, r: _share(r.mix)),
        (
            "tokens\nso far",
            any(row.consumed is not None for row in rows),
            lambda n, r: written(r.consumed, ",.0f"),
        ),
        (
            "epochs",
            any(name in run.corpus_tokens for name in names),
            lambda n, r: _epochs(run, n, r),
        ),
        ("alarms", any(alarms.values()), lambda n, r: ", ".join(alarms[n])),
    ]
    columns = [(title, text) for title, any_has_it, text in optional if any_has_it]
    table = Table()
    table.add_column("domain", overflow="ellipsis", no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    table.add_column("last windows", no_wrap=True)
    for title, _ in columns:
        table.add_column(title, justify="left" if title == "alarms" else "right", no_wrap=True)
    for name, row in zip(names, rows, strict=True):
        last = row.losses[-1] if row.losses else None
        style = "red" if last is not None and math.isnan(last) else "yellow" if alarms[name] else ""
        cells = (text(name, row) for _, text in columns)
        table.add_row(name, written(last), sparkline(row.losses), *cells, style=style)
    hidden = len(run.rows) - len(names)
    if hidden:
        table.add_row(f"… {hidden} more", style="dim")
    return table


def _shown(run: LiveRun, fit: int) -> list[str]:
    """As many as fit: all in their order, or the worst first."""
    if len(run.rows) <= fit:
        return list(run.rows)
    alarmed = {alarm.domain for alarm in run.alarms if run.alarms_of(alarm.domain or "")}

    def rank(name: str) -> tuple[bool, bool, float]:
        losses = run.rows[name].losses
        last = losses[-1] if losses else -math.inf
        return name not in alarmed, not math.isnan(last), 0.0 if math.isnan(last) else -last

    return sorted(run.rows, key=rank)[:fit]


def _told(run: LiveRun) -> list[Text]:
    """The last alarms and events, the newest below."""
    lines = []
    for alarm in run.alarms:
        cause = f" ({alarm.cause})" if alarm.cause else ""
        text = f"iteration {alarm.iteration:,}: {alarm.severity}: {alarm.message}{cause}"
        lines.append((alarm.iteration, text, STYLES[alarm.severity]))
    for event in run.events:
        what = "resumed" if event.name == "resume" else event.name
        detail = f": {event.detail}" if event.detail else ""
        lines.append(
            (event.iteration, f"after iteration {event.iteration:,}: {what}{detail}", "bold")
        )
    lines.sort(key=lambda line: line[0])
    return [
        Text(text, style=style, no_wrap=True, overflow="ellipsis")
        for _, text, style in lines[-TOLD:]
    ]


def _there(run: LiveRun, row: Row) -> bool:
    """Whether the last window had tokens of a domain."""
    return bool(row.losses) and row.iteration == run.iteration


def _epochs(run: LiveRun, name: str, row: Row) -> str:
    size = run.corpus_tokens.get(name)
    return written(row.consumed / size if size and row.consumed is not None else None, ".2f")


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"
