"""Labels beside a chart that do not cover each other."""

from __future__ import annotations


def spread(heights: list[float], gap: float) -> list[float]:
    """Move ascending heights as little as needed until neighbours are ``gap`` apart."""
    # Groups of touching labels; each is centred on the mean of where its members belong.
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _bottom(groups[-1], gap) - _top(groups[-2], gap) < gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_bottom(group, gap) + gap * i for group in groups for i in range(len(group))]


def _bottom(group: list[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _top(group: list[float], gap: float) -> float:
    return sum(group) / len(group) + gap * (len(group) - 1) / 2
