"""Which runs, in the order of their importance; a pure function of what the earlier ones gave.

Everything that is chosen (ε, learning rates, the options of ``hold``) is chosen here, by rule, on
the tuning seed. The confirmation seeds only ever answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from statistics import fmean
from typing import Any

from arms import (
    ARMS,
    DATA,
    FEW,
    FRONT,
    FRONT_AGAIN,
    HOLD,
    MAIN,
    MIDDLE,
    OTHERS,
    SCALED,
    STATIC,
    VARIANTS,
    Arm,
    Known,
    blend,
)
from front import CLOSE, Point, at, distance, point
from training import WIDTHS, Run

BASE_SEED, TUNING, CONFIRMATION = 1000, (1001,), (6, 7, 8, 9, 10)
BASE_STEPS, BASE_LR = 4000, 2e-3
STEPS = 256
EVERY = {True: 8, False: 32}  # steps between two looks at the sensor, with hold and without
# Samples of a look. The few of the tuning seed told a rise of 0.07 to ± 0.008 only, of which hold
# warned; where it is judged by where it ends, it sees all that is held out for it.
SENSOR, WHOLE_SENSOR = 96, 480
RATES = (5e-4, 1e-3, 2e-3)
# ε: what these constant blends cost of general, at the middle rate.
EPSILON_SHARES = (0.5, 0.15)
STAGES = (
    *("base", "front", "hold", "confirm", "main", "others"),
    *("again", "dirty", "rare", "scale", "rates"),
)

Results = Mapping[str, Mapping[str, Any]]


def base_of(size: str) -> Run:
    """The model that all runs of a size start from: general text alone, to a plateau."""
    general = {"general": {"general": 1.0}}
    name = f"base/{size}"
    return Run(name, general, BASE_SEED, BASE_LR, BASE_STEPS, size, every=100, samples=SENSOR)


@dataclass(frozen=True)
class Case:
    """A run by what the experiment calls it.

    Attributes:
        arm: of :data:`arms.ARMS`.
        lr: its peak.
        seed: of the order of the data.
        data: of :data:`arms.DATA`.
        size: of the model.
        variant: of ``hold``'s options, on the tuning seed; None: those that were chosen.
        again: the very same, where the arms that started from another base were run.
    """

    arm: str
    lr: float
    seed: int
    data: str = "clean"
    size: str = "medium"
    variant: int | None = None
    again: bool = False

    @property
    def name(self) -> str:
        tried = "" if self.variant is None else f"-variant{self.variant}"
        group = f"{self.data}-{self.size}{'-again' if self.again else ''}"
        return f"{group}/{self.arm}{tried}-lr{self.lr:g}-seed{self.seed}"


class Plan:
    """What there is to run, given what has been run.

    Args:
        results: of the runs that are done, by the name of the run.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.rate = cache(self._rate)  # asked for every case

    def stages(self) -> dict[str, list[Run]]:
        """The runs of every stage, as far as they can be named by now, done or not, in order."""
        named = self._named()
        return {stage: named[stage] for stage in STAGES if stage in named}

    def check(self) -> None:
        """Of what is done, that it was run as the other results say by now.

        Raises:
            ValueError: one was run with another config, as where ε was another then.
        """
        for run in (run for runs in self.stages().values() for run in runs):
            done = self.results.get(run.name)
            if done is not None and done["config"] != run.config:
                raise ValueError(
                    f"{run.name} was run with {done['config']}, and by the other results it is "
                    f"{run.config}: delete it from the results, and run it again"
                )

    def _named(self) -> dict[str, list[Run]]:
        found: dict[str, list[Run]] = {"base": [base_of("medium")], "front": []}
        found["front"] = [
            self._run(case) for lr in RATES for case in self._front(TUNING, lr, "clean", "medium")
        ]
        if not self.epsilons:
            return found
        found["hold"] = [self._run(case) for case in self._variants()]
        if self.variant is None:
            return found
        found["hold"] += [self._run(case) for case in self._tuning(HOLD)]
        if not self._rates(HOLD):
            return found
        found["confirm"] = [self._run(case) for case in self._confirmation(HOLD)]
        for stage, arms in (("main", MAIN), ("others", OTHERS)):
            found[stage] = [self._run(case) for case in self._tuning(arms)]
            if self._rates(arms):
                found[stage] += [self._run(one) for one in self._confirmation(arms, front=False)]
        found["again"] = [self._run(case) for case in self.again()]
        for data in DATA:
            if data != "clean" and self._rates(FEW):
                few = {name: ARMS[name] for name in FEW}
                found[data] = [self._run(case) for case in self._confirmation(few, data)]
        found["scale"] = []
        for size in WIDTHS:
            if size != "medium":
                held = {name: ARMS[name] for name in SCALED}
                cases = self._confirmation(held, size=size)
                found["scale"] += [base_of(size), *(self._run(case) for case in cases)]
        # A static blend may want another rate where general counts more, or less, than on average.
        found["rates"] = [
            self._run(case)
            for lr in RATES
            if lr != self.static_rate
            for case in self._front(CONFIRMATION, lr, "clean", "medium")
        ]
        return found

    # What was chosen, on the tuning seed; nothing, or None, as long as runs are missing.

    @cached_property
    def base(self) -> Mapping[str, float]:
        """On the test text."""
        done = self.results.get(base_of("medium").name)
        return {} if done is None else done["test"]

    @cached_property
    def epsilons(self) -> tuple[float, ...]:
        """ε, to two digits: what :data:`EPSILON_SHARES` cost of general at the middle rate."""
        cases = [
            [Case(f"static-{share:g}", RATES[1], seed) for seed in TUNING]
            for share in EPSILON_SHARES
        ]
        if not self._all(case for row in cases for case in row) or not self.static_rate:
            return ()
        means = [fmean(self.point(case)[0] for case in row) for row in cases]
        return tuple(max(round(mean, 2), 0.01) for mean in means)

    @cached_property
    def static_rate(self) -> float | None:
        """The rate whose front is lowest, on the mean over where the fronts of all rates are."""
        fronts = {
            lr: [self.front(seed, lr) for seed in TUNING]
            for lr in RATES
            if self._all(self._front(TUNING, lr, "clean", "medium"))
        }
        if len(fronts) < len(RATES):
            return None
        every = [front for of in fronts.values() for front in of]
        low = max(min(risen for risen, _ in front) for front in every)
        high = min(max(risen for risen, _ in front) for front in every)
        places = [low + (high - low) * part / 10 for part in range(1, 10)]
        if low >= high:  # they have no general loss in common
            return RATES[1]
        return min(fronts, key=lambda lr: fmean(at(one, x) for one in fronts[lr] for x in places))

    @cached_property
    def variant(self) -> int | None:
        """Of hold's options: which end nearest to their ε, among those no further than
        :data:`.CLOSE` from the front."""
        assert self.static_rate is not None
        found = {}
        for number in range(len(VARIANTS)):
            cases = [one for one in self._variants() if one.variant == number]
            if not self._all(cases):
                return None
            miss = fmean(abs(self.point(one)[0] - self._epsilon(one)) for one in cases)
            far = fmean(self.distance(one) for one in cases)
            found[number] = (not far <= CLOSE, miss)  # NaN is not
        return min(found, key=lambda number: found[number])

    def _rate(self, arm: str) -> float | None:
        """The rate of an arm: nearest to, or furthest below, the front."""
        if arm in STATIC:
            return self.static_rate
        cases = [Case(arm, lr, seed) for lr in RATES for seed in TUNING]
        if not self._all(cases):
            return None
        means = {lr: fmean(self.distance(one) for one in cases if one.lr == lr) for lr in RATES}
        # Outside of the front there is nothing to compare with: the middle rate, then.
        known = {lr: mean for lr, mean in means.items() if not math.isnan(mean)}
        return min(known, key=lambda lr: known[lr]) if known else RATES[1]

    @property
    def known(self) -> Known:
        cases = [Case(f"static-{MIDDLE:g}", RATES[1], seed) for seed in TUNING]
        tests = [self.results[case.name]["test"] for case in cases if self._all([case])]
        options = {} if not self.epsilons or self.variant is None else VARIANTS[self.variant]
        reference = {name: fmean(one[name] for one in tests) for name in tests[0]} if tests else {}
        return Known(self.base, reference, self.epsilons, options)

    # Points of runs that are done.

    def point(self, case: Case) -> Point:
        one = self.results[case.name]
        return point(one["test"], one["start"])

    def front(
        self,
        seed: int,
        lr: float | None = None,
        data: str = "clean",
        size: str = "medium",
        *,
        again: bool = False,
    ) -> list[Point]:
        """The seed's static runs that are done, from one base."""
        lr = lr or self.static_rate
        if lr is None:
            return []
        cases = self._front((seed,), lr, data, size, again=again)
        done = (case for case in cases if case.name in self.results)
        return [self.point(case) for case in done if not self.elsewhere(case)]

    def elsewhere(self, case: Case) -> bool:
        """Whether it started from another base than its front did, as another machine trains.

        No matter on the tuning seed, where the rates of an arm are compared with each other.
        """
        if case.seed in TUNING:
            return False
        front = replace(case, arm=f"static-{MIDDLE:g}", lr=self.static_rate or 0)
        starts = [
            self.results[one.name]["start"] for one in (case, front) if one.name in self.results
        ]
        return len(starts) == 2 and starts[0] != starts[1]

    def comparable(self, case: Case) -> bool:
        """Whether it is done, and the front that it is compared with."""
        if case.name not in self.results:
            return False
        front = self.front(case.seed, data=case.data, size=case.size)
        again = self.front(case.seed, data=case.data, size=case.size, again=True)
        whole = len(again) == len(FRONT_AGAIN) or not self.elsewhere(case)
        return whole and len(front) == len(FRONT)

    def distance(self, case: Case) -> float:
        """From the lowest of the seed's fronts: of those rates that all seeds are compared with; or
        from that of its own base, where it started elsewhere."""
        if self.elsewhere(case):
            front = self.front(case.seed, data=case.data, size=case.size, again=True)
            return distance(self.point(case), [front])
        fronts = (self.front(case.seed, lr, case.data, case.size) for lr in self._compared(case))
        return distance(self.point(case), [one for one in fronts if len(one) == len(FRONT)])

    def _compared(self, case: Case) -> list[float]:
        """Rates whose front is whole on every seed that has the whole front of :attr:`static_rate`,
        of the tuning seeds or of the confirmation seeds.

        A rate that some seeds have, and others have not yet, would make their distances differ in
        what they are distances from.
        """
        seeds = TUNING if case.seed in TUNING else CONFIRMATION
        done = [
            {
                seed
                for seed in seeds
                if len(self.front(seed, lr, case.data, case.size)) == len(FRONT)
            }
            for lr in (self.static_rate, *RATES)
        ]
        return [lr for lr, whole in zip(RATES, done[1:], strict=True) if whole >= done[0]]

    # Cases.

    def _front(
        self, seeds: Iterable[int], lr: float, data: str, size: str, *, again: bool = False
    ) -> list[Case]:
        shares = FRONT_AGAIN if again else FRONT
        arms = [f"static-{share:g}" for share in shares]
        return [Case(arm, lr, seed, data, size, again=again) for seed in seeds for arm in arms]

    def again(self) -> list[Case]:
        """What is run again where runs of the clean data started from another base."""
        if self.static_rate is None or not any(map(self.elsewhere, self.confirmed())):
            return []
        return self._front(CONFIRMATION, self.static_rate, "clean", "medium", again=True)

    def confirmed(self) -> list[Case]:
        """The arms' runs of the clean data, done or not."""
        return list(self._confirmation({**HOLD, **MAIN, **OTHERS}, front=False))

    def _variants(self) -> list[Case]:
        assert self.static_rate is not None
        return [
            Case(arm, self.static_rate, seed, variant=number)
            for number in range(len(VARIANTS))
            for arm in HOLD
            for seed in TUNING
        ]

    def _tuning(self, arms: Iterable[str]) -> list[Case]:
        return [Case(arm, lr, seed) for arm in arms for lr in RATES for seed in TUNING]

    def _confirmation(
        self, arms: Mapping[str, Arm], data: str = "clean", size: str = "medium", front: bool = True
    ) -> Iterator[Case]:
        """Seed by seed, so that what is there after an interruption compares all arms."""
        assert self.static_rate is not None
        for seed in CONFIRMATION:
            if front:
                yield from self._front((seed,), self.static_rate, data, size)
            for arm in arms:
                yield Case(arm, self.rate(arm) or self.static_rate, seed, data, size)

    def _run(self, case: Case) -> Run:
        arm, known = ARMS[case.arm], self.known
        held = arm.epsilon is not None
        if case.variant is not None:
            known = replace(known, hold=VARIANTS[case.variant])
        return Run(
            name=case.name,
            blend=blend(arm.share, case.data),
            seed=case.seed,
            lr=case.lr,
            steps=STEPS,
            size=case.size,
            config=arm.config(known),
            every=EVERY[held],
            samples=WHOLE_SENSOR if held and case.seed in CONFIRMATION else SENSOR,
            base=base_of(case.size).name,
        )

    def _epsilon(self, case: Case) -> float:
        number = ARMS[case.arm].epsilon
        assert number is not None
        return self.epsilons[number]

    def _rates(self, arms: Iterable[str]) -> bool:
        return all(self.rate(arm) is not None for arm in arms)

    def _all(self, cases: Iterable[Case]) -> bool:
        return bool(self.base) and all(case.name in self.results for case in cases)
