"""What a replay comes to: was it the data, or the state of the model?"""

from __future__ import annotations

import math

from rich.table import Table

from domain_pretrain.records.score import Score, difference
from domain_pretrain.report.significance import LEVEL, chance

Pair = tuple[Score, Score]
"""Of the same samples: before, and after."""

WORDS = {
    (True, False): "data: the checkpoint before the jump already finds the suspects harder than "
    "the control, which is no harder after it",
    (False, True): "state: to the checkpoint before the jump the suspects are nothing special; "
    "after it the control has become harder, too",
    (True, True): "data that moved the optimizer: the suspects are harder than the control from "
    "the start, and after them the control has become harder, too",
    (False, False): "neither: the suspects are no harder than the control, which has not become "
    "harder",
}
"""By whether the suspects stand out at first, and whether the control has risen."""
TOO_FEW = "too few samples: a difference without a standard error decides nothing"


def judge(suspects: Pair, control: Pair) -> str:
    """The verdict, in words.

    A difference counts where chance makes one as large in at most one of twenty (Student's t: of
    many samples, two standard errors), and where the loss is no number any more.
    """
    apart = difference(control[0], suspects[0])
    risen = difference(*control)
    if apart[1] is None or risen[1] is None:
        return TOO_FEW
    fewest = min(len(suspects[0].parts), len(control[0].parts))
    stand_out = _is_above(*apart, fewest)
    broken = math.isfinite(control[0].mean) and not math.isfinite(control[1].mean)
    return WORDS[stand_out, broken or _is_above(*risen, len(control[0].parts))]


def _is_above(delta: float, error: float | None, draws: int) -> bool:
    return error is not None and delta > 0 and chance(delta, error, draws) <= LEVEL


def replay_table(labels: tuple[str, str], suspects: Pair, control: Pair) -> Table:
    """Loss of both groups at both checkpoints, and the differences either way; nats a token."""
    table = Table(caption="nats a token ± standard error", caption_justify="left")
    table.add_column("samples")
    for name in (*labels, "after − before"):
        table.add_column(name, justify="right")
    for name, pair in (("suspects", suspects), ("control", control)):
        cells = [_cell(f"{one.mean:.3f}", one.error) for one in pair]
        delta, error = difference(*pair)
        table.add_row(f"{name} ({len(pair[0].parts)})", *cells, _cell(f"{delta:+.3f}", error))
    apart = [difference(*two) for two in zip(control, suspects, strict=True)]
    cells = [_cell(f"{delta:+.3f}", error) for delta, error in apart]
    table.add_row("suspects − control", *cells, "")
    return table


def _cell(number: str, error: float | None) -> str:
    return number if error is None else f"{number} ± {error:.3f}"
