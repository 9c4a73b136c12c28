"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from arms import DOMAINS, TREATMENTS
from paired import Row, difference, domain_loss, level, mean_loss, rows_of, worst_loss

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
        f"`{result['command']}`, {result['steps']} steps a run; {result['device']}, "
        f"commit {result['commit']}, {versions}, {result['date']}",
        "## Validation losses (unweighted, nats per token), means over the seeds\n\n"
        + losses(arms),
        "## Paired differences (mean ± standard error; below 0 the first is better)\n\n"
        + contrasts(arms),
        "## Learning rate of uniform, on seeds of their own\n\n" + rates(arms),
    ]
    return "\n\n".join(parts) + "\n"


def losses(arms: Mapping[str, Any]) -> str:
    """Each arm's treatments: losses, differences from uniform, weights."""
    rows = []
    for arm, of in arms.items():
        runs: Sequence[Row] = of["runs"]
        for treatment, title in TREATMENTS.items():
            mine = rows_of(runs, treatment)
            if not mine:
                continue
            measures = [*(domain_loss(name) for name in DOMAINS), mean_loss, worst_loss]
            levels = [f"{level(runs, treatment, measure).mean:.4f}" for measure in measures]
            deltas = ["", ""]
            if treatment != "uniform":
                deltas = [
                    str(difference(runs, treatment, "uniform", measure))
                    for measure in (mean_loss, worst_loss)
                ]
            weights = " / ".join(
                f"{fmean(row['weights'][name] for row in mine):.2f}" for name in DOMAINS
            )
            effective = f"{fmean(row['effective_domains'] for row in mine):.2f}"
            rows.append([arm, title, *levels, *deltas, effective, weights, str(len(mine))])
    header = ["arm", "treatment", *DOMAINS, "mean", "worst", "Δ mean", "Δ worst"]
    header += ["effective domains", "multipliers " + " / ".join(DOMAINS), "n"]
    return markdown(header, rows)


def contrasts(arms: Mapping[str, Any]) -> str:
    """Mean validation loss, one treatment against another, arm by arm."""
    rows = []
    for treatment, against, meaning in CONTRASTS:
        cells = []
        for of in arms.values():
            both = rows_of(of["runs"], treatment) and rows_of(of["runs"], against)
            cells.append(str(difference(of["runs"], treatment, against, mean_loss)) if both else "")
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
