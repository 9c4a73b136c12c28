"""A line of many domains without a name and a key for each number: a list for each column.

The header of a run names its domains once; a compact line says which of them are there, and gives
their numbers in that order. :func:`expand` gives back what :func:`compact` took, bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WIDE_UP_TO = 64  # domains; a line of a run with more is compact


def compact(entry: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A line with its domains as columns.

    Args:
        entry: with ``domains`` by name.
        names: all domains of the run, in the order of its header.

    Returns:
        The line with ``columns`` instead of ``domains``; and with ``present``, the places of its
        domains in ``names``, where not all are there. ``loss`` is left out: the sums say it.
    """
    line = {key: value for key, value in entry.items() if key != "domains"}
    domains = entry["domains"]
    if len(domains) < len(names):
        line["present"] = [place for place, name in enumerate(names) if name in domains]
    keys = dict.fromkeys(key for domain in domains.values() for key in domain if key != "loss")
    line["columns"] = {
        # Without nonfinite: 0 of them.
        key: [domain.get(key, 0 if key == "nonfinite" else None) for domain in domains.values()]
        for key in keys
    }
    return line


def expand(line: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The line that :func:`compact` took.

    Args:
        line: with ``columns``, each of the same length.
        names: of the header that stands before it.

    Raises:
        ValueError: they do not belong together.
    """
    entry = {key: value for key, value in line.items() if key not in ("present", "columns")}
    columns, places = line["columns"], line.get("present", range(len(names)))
    count = len(next(iter(columns.values()), ()))
    if count != len(places) or (count and places[-1] >= len(names)):
        raise ValueError(f"{count} domains, which no line before it names")
    keys = ("loss", *columns)
    rows = zip(_losses(columns), *columns.values(), strict=True)
    entry["domains"] = {
        names[place]: dict(zip(keys, row, strict=True))
        for place, row in zip(places, rows, strict=True)
    }
    for domain in entry["domains"].values() if "nonfinite" in columns else ():
        if not domain["nonfinite"]:
            del domain["nonfinite"]
    of_experts = [key for key in columns if key.startswith("expert_")]
    for domain in entry["domains"].values() if of_experts else ():
        if domain[of_experts[0]] is None:  # it had no token in the one step that they are of
            for key in of_experts:
                del domain[key]
    return entry


def _losses(columns: Mapping[str, Sequence[Any]]) -> Iterable[float | None]:
    """Each domain's mean loss, by the average of its run; None where it is not finite."""
    if "sample_loss_sum" in columns:
        sums, counts = columns["sample_loss_sum"], columns["samples"]
    else:
        sums, counts = columns.get("loss_sum", ()), columns.get("tokens", ())
    broken = columns.get("nonfinite") or [0] * len(sums)
    for total, count, bad in zip(sums, counts, broken, strict=True):
        yield None if bad or not count else total / count
