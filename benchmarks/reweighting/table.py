"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from arms import DOMAINS, TREATMENTS
from paired import Measure, Row, difference, domain_loss, level, mean_loss, rows_of, worst_loss

MEASURES: dict[str, Measure] = {
    **{name: domain_loss(name) for name in DOMAINS},
    "mean": mean_loss,
    "worst": worst_loss,
}

# (treatment, against, what a difference between the two would mean)
CONTRASTS = (
    ("linupper", "uniform", "linupper, all in all"),
    ("static", "uniform", "its average weights, held fixed"),
    ("linupper", "static", "what its dynamics add"),
    ("linupper", "shuffled", "which domain gets which weight"),
    ("pinned", "uniform", "linupper, the general domain pinned"),
)


def page(result: Mapping[str, Any]) -> str:
    """Everything: where it comes from, losses, contrasts, learning rates."""
    arms = result["arms"]
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    parts = [
        "# Does reweighting help? All numbers",
        f"`{result['command']}`: {result['steps']} steps a run; {result['device']}, "
        f"commit {result['commit']}, {versions}, {result['date']}",
        "\n".join(f"* {of['title']}" for of in arms.values()),
        "## Validation losses\n\nUnweighted, nats per token, of clean text; means over n seeds.\n\n"
        + losses(arms),
        "## Paired differences from uniform\n\n"
        "Mean over the seeds ± its standard error; below 0 is better.\n\n" + differences(arms),
        "## One treatment against another, mean of the domains\n\n" + contrasts(arms, mean_loss),
        "## The same, worst domain\n\n" + contrasts(arms, worst_loss),
        "## Learning rate of uniform\n\n"
        "On seeds of their own; bold is the one that all runs of the arm take.\n\n" + rates(arms),
    ]
    return "\n\n".join(parts) + "\n"


def losses(arms: Mapping[str, Any]) -> str:
    """Each arm's treatments: validation losses, and the weights behind them."""
    rows = []
    for arm, treatment, runs in _treated(arms):
        mine = rows_of(runs, treatment)
        levels = [f"{level(runs, treatment, measure).mean:.4f}" for measure in MEASURES.values()]
        weights = " / ".join(
            f"{fmean(row['weights'][name] for row in mine):.2f}" for name in DOMAINS
        )
        effective = f"{fmean(row['effective_domains'] for row in mine):.2f}"
        rows.append([arm, TREATMENTS[treatment], *levels, weights, effective, str(len(mine))])
    weights = "multipliers " + " / ".join(DOMAINS)
    header = ["arm", "treatment", *MEASURES, weights, "effective domains", "n"]
    return markdown(header, rows)


def differences(arms: Mapping[str, Any]) -> str:
    """Each arm's treatments against its uniform."""
    rows = [
        [arm, TREATMENTS[treatment]]
        + [str(difference(runs, treatment, "uniform", measure)) for measure in MEASURES.values()]
        for arm, treatment, runs in _treated(arms)
        if treatment != "uniform"
    ]
    return markdown(["arm", "treatment − uniform", *MEASURES], rows)


def _treated(arms: Mapping[str, Any]) -> Iterator[tuple[str, str, Sequence[Row]]]:
    """(arm, treatment, all runs of the arm)."""
    for arm, of in arms.items():
        for treatment in TREATMENTS:
            if rows_of(of["runs"], treatment):
                yield arm, treatment, of["runs"]


def contrasts(arms: Mapping[str, Any], measure: Measure) -> str:
    """One treatment against another, arm by arm."""
    rows = []
    for treatment, against, meaning in CONTRASTS:
        cells = []
        for of in arms.values():
            both = rows_of(of["runs"], treatment) and rows_of(of["runs"], against)
            cells.append(str(difference(of["runs"], treatment, against, measure)) if both else "")
        if any(cells):
            title = f"{TREATMENTS[treatment]} − {TREATMENTS[against]}"
            rows.append([title, meaning, *cells])
    return markdown(["difference", "which is", *arms], rows)


def rates(arms: Mapping[str, Any]) -> str:
    """Mean validation loss of uniform by learning rate; the chosen one is bold."""
    rows = []
    for arm, of in arms.items():
        cells = []
        for point in of["sweep"]:
            cell = f"{point['lr']:g}: {fmean(point['mean']):.4f}"
            cells.append(f"**{cell}**" if point["lr"] == of["lr"] else cell)
        edge = of["lr"] in (of["sweep"][0]["lr"], of["sweep"][-1]["lr"])
        rows.append([arm, ", ".join(cells) + (" (at the edge of the grid)" if edge else "")])
    return markdown(["arm", "rate: mean validation loss"], rows)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
