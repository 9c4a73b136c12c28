"""The results as Markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from arms import ARMS, DATA, FRONT, FRONT_AGAIN, STATIC, VARIANTS
from front import LEAST, Estimate, Point, at, distance, tolerance, verdict
from plan import CONFIRMATION, RATES, TUNING, Case, Plan
from training import WIDTHS


@dataclass(frozen=True)
class Row:
    """An arm on the seeds for which it, and its whole front, are done.

    Attributes:
        arm: of :data:`arms.ARMS`.
        lr: its peak.
        seeds: those.
        points: by seed.
        distances: from the front, by seed; NaN outside of it.
        share: general's mean part of the weighted tokens.
        sensed: what general has risen by on the sensor's text, by seed: what ``hold`` steers by.
    """

    arm: str
    lr: float
    seeds: tuple[int, ...]
    points: tuple[Point, ...]
    distances: tuple[float, ...]
    share: float
    sensed: tuple[float, ...] = ()

    @property
    def risen(self) -> Estimate:
        return Estimate.of([risen for risen, _ in self.points])

    @property
    def target(self) -> Estimate:
        return Estimate.of([target for _, target in self.points])

    @property
    def distance(self) -> Estimate:
        """NaN if one of the runs lies outside of its front."""
        return Estimate.of(self.distances)


def rows(plan: Plan, data: str = "clean", size: str = "medium") -> list[Row]:
    """Of every arm that has a confirmation run, at the rate that was chosen for it."""
    found = []
    for arm in ARMS:
        lr = plan.rate(arm) or plan.static_rate
        cases = [] if lr is None else [Case(arm, lr, seed, data, size) for seed in CONFIRMATION]
        cases = [case for case in cases if plan.comparable(case)]
        if cases:
            shares = [general_share(plan.results[case.name]) for case in cases]
            points = tuple(plan.point(case) for case in cases)
            distances = tuple(plan.distance(case) for case in cases)
            seeds = tuple(case.seed for case in cases)
            sensed = tuple(_sensed(plan.results[case.name]) for case in cases)
            found.append(Row(arm, cases[0].lr, seeds, points, distances, fmean(shares), sensed))
    return found


def general_share(result: dict[str, Any]) -> float:
    """Its mean part of the tokens, as they were weighted, over the windows of the log."""
    return fmean(share.get("general", 0.0) for _, share in result["shares"])


def _sensed(result: dict[str, Any]) -> float:
    """From before the first step to the end; NaN where it was not looked at twice."""
    looks = result.get("sensor", [])
    return looks[-1][1] - looks[0][1] if len(looks) > 1 else math.nan


def page(result: dict[str, Any], plan: Plan) -> str:
    """Everything: where it comes from, the comparison, and what was chosen."""
    parts = [
        "# Does steering help? All numbers",
        f"`{result['command']}`; commit {result['commit']}, torch {result['torch']}, "
        f"{result['date']}. {progress(plan)} {machines(plan)}",
        "General: test loss − the base's. Target: mean test loss of code and maths. Distance: "
        "target loss − that of the static front of the same seed at the same general loss; below 0 "
        "is better. Nats a token; mean over the confirmation seeds ± half of the 95 % interval "
        "(Student's t). It is about the order of the data alone: there is one base model of a size "
        "and machine, and one test text. Each verdict stands for itself: of twenty, one may come "
        "by chance.",
    ]
    main = ("clean", "medium")
    sections = {(data, size): rows(plan, data, size) for size in WIDTHS for data in DATA}
    told = in_short(sections[main], plan)
    for (data, size), found in sections.items():
        if (data, size) != main:
            told += in_short(found, plan, f"{size if data == 'clean' else data}: ")
    if told:
        parts += ["## In short", "\n".join(told)]
    for (data, size), found in sections.items():
        if found:
            title = DATA[data]
            parts += [f"## {title[0].upper()}{title[1:]}; {size} model", comparison(found)]
            parts += [landings(found, plan)] if _held(found) else []
            parts += [left_out(plan, data, size)]
            parts += [made_again(plan)] if (data, size) == main else []
    parts += ["## What was chosen, on the tuning seed", chosen(plan)]
    return "\n\n".join(part for part in parts if part) + "\n"


def in_short(found: Iterable[Row], plan: Plan, what: str = "") -> list[str]:
    """A line for each arm of which something may be said, the best first: for the docs."""
    lines = []
    for row in sorted(found, key=lambda row: row.distance.mean):
        if row.arm in STATIC or row.distance.count < LEAST or math.isnan(row.distance.mean):
            continue
        number = ARMS[row.arm].epsilon
        ends = f"general {row.risen}"
        if number is not None:
            epsilon = plan.epsilons[number]
            worst = max((risen - epsilon for risen, _ in row.points), key=abs)
            ends += f" for ε {epsilon:g}, the worst run {worst:+.3f} from it"
        lines.append(
            f"* **{what}{ARMS[row.arm].title}**: {verdict(row.distance)} ({row.distance} nats of "
            f"the targets at equal general loss; {ends}; general's share {row.share:.2f})"
        )
    return lines


def progress(plan: Plan) -> str:
    """How much is done of what can be named."""
    counts = [
        f"{stage} {sum(run.name in plan.results for run in runs)} of {len(runs)}"
        for stage, runs in plan.stages().items()
        if runs
    ]
    return f"Runs: {', '.join(counts)}."


def machines(plan: Plan) -> str:
    """Which of them have made how many runs."""
    counts = Counter(one["processor"] for one in plan.results.values())
    return f"Made on: {', '.join(f'{name} ({count})' for name, count in counts.most_common())}."


def comparison(found: Iterable[Row]) -> str:
    header = ["arm", "rate", "general's share", "general", "target", "n", "distance", "verdict"]
    cells = []
    for row in found:
        far = ["", "the front"] if row.arm in STATIC else [str(row.distance), verdict(row.distance)]
        numbers = [f"{row.lr:g}", f"{row.share:.3f}", str(row.risen), f"{row.target.mean:.4f}"]
        cells.append([ARMS[row.arm].title, *numbers, str(len(row.points)), *far])
    return markdown(header, cells)


def _held(found: Iterable[Row]) -> Iterator[tuple[Row, int]]:
    return ((row, e) for row in found if (e := ARMS[row.arm].epsilon) is not None)


def landings(found: Iterable[Row], plan: Plan) -> str:
    """Where the runs of hold end, beside where they were told to."""
    cells = []
    for row, number in _held(found):
        epsilon = plan.epsilons[number]
        misses = [risen - epsilon for risen, _ in row.points]
        most = tolerance(epsilon)
        lands = "every run" if all(abs(miss) <= most for miss in misses) else "no"
        told, sensed = (
            " ".join(f"{miss:+.3f}" for miss in of)
            for of in (misses, [risen - epsilon for risen in row.sensed])
        )
        cells.append([ARMS[row.arm].title, f"{epsilon:g}", told, sensed, f"{most:.3f}", lands])
    header = ["general − ε on the test text, by seed", "on the sensor's", "tolerance"]
    return markdown(["arm", "ε", *header, "lands (test text)"], cells)


def left_out(plan: Plan, data: str, size: str) -> str:
    """How far the curve is to be trusted between its points; empty where no seed has one."""
    fronts = [plan.front(seed, None, data, size) for seed in CONFIRMATION]
    whole = [front for front in fronts if len(front) == len(FRONT)]
    told = []
    for number, share in enumerate(FRONT):
        far = [distance(front[number], [front]) for front in whole]
        if far and not math.isnan(fmean(far)):
            told.append(f"{share:g}: {fmean(far):+.4f}")
    if not told:
        return ""
    return (
        "The front is a curve through a few points. A point that is left out lies from the curve "
        f"through the others, by general's share: {', '.join(told)} nats (below 0: the curve is "
        "too high there, and flatters what is compared with it). With all points, half as far "
        "apart, the error is some quarter of that midway between two, and none at a point."
    )


def made_again(plan: Plan) -> str:
    """Of the arms that started from another base; empty where there is one base."""
    found = []
    for seed in CONFIRMATION:
        first, again = plan.front(seed), plan.front(seed, again=True)
        if len(again) == len(FRONT_AGAIN) and len(first) == len(FRONT):
            far = [target - at(first, risen) for risen, target in again]
            found.append(fmean(one for one in far if not math.isnan(one)))
    if not found:
        return ""
    arms = {case.arm for case in plan.confirmed() if plan.elsewhere(case)}
    titles = ", ".join(ARMS[arm].title for arm in ARMS if arm in arms)
    return (
        f"Made on another machine, from a base that was trained there: {titles}. They are compared "
        f"with {len(FRONT_AGAIN)} of the constant blends, which were run there, too, and end "
        f"{Estimate.of(found)} nats of the targets from the front above, at equal general loss."
    )


def chosen(plan: Plan) -> str:
    """Rates, ε and the options of hold, with what they were chosen by."""
    parts = [f"Rate of the front: {plan.static_rate or 'not known yet'}. ε: {plan.epsilons}."]
    tried = []
    for number, options in enumerate(VARIANTS):
        for arm in ("hold-1", "hold-2"):
            cases = [Case(arm, plan.static_rate or 0, seed, variant=number) for seed in TUNING]
            tried += _tried(plan, [str(dict(options)), ARMS[arm].title], cases)
    if tried:
        of = "" if plan.variant is None else f"; chosen: {dict(VARIANTS[plan.variant])}"
        parts.append(f"Options of hold{of}.")
        parts.append(markdown(["options", "arm", "general", "distance"], tried))
    tried = []
    for arm in ARMS:
        for lr in RATES:
            cases = [Case(arm, lr, seed) for seed in TUNING]
            mark = "**" if plan.rate(arm) == lr else ""
            tried += _tried(plan, [ARMS[arm].title, f"{mark}{lr:g}{mark}"], cases)
    parts.append(markdown(["arm", "rate", "general", "distance"], tried) if tried else "")
    return "\n\n".join(parts)


def _tried(plan: Plan, title: list[str], cases: Sequence[Case]) -> list[list[str]]:
    done = [case for case in cases if case.name in plan.results]
    if not done:
        return []
    risen = fmean(plan.point(case)[0] for case in done)
    far = fmean(plan.distance(case) for case in done)
    return [[*title, f"{risen:+.4f}", "outside of the front" if math.isnan(far) else f"{far:+.4f}"]]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
