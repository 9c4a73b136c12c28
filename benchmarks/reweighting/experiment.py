"""The order of the runs: base model, learning rates on seeds of their own, then the comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from arms import ARMS, reweight
from training import Run, result_of

BASE_SEED = 1000
TUNING_SEEDS = (1001, 1002)  # the evaluation's are 1, 2, 3, …: no rate is chosen on them
LR_FACTOR = 2.0


@dataclass(frozen=True)
class Experiment:
    """How large it is, and where it lies.

    Attributes:
        work: folder of the runs.
        corpora: folder of the data.
        tokenizer: Megatron's flags for it.
        arms: which of :data:`arms.ARMS`.
        seeds: runs of each treatment.
        steps: optimizer steps of each run.
        evaluations: batches of the final evaluation.
        most_rates: where the search for a learning rate gives up.
        jobs: runs at a time.
    """

    work: Path
    corpora: Path
    tokenizer: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: int
    steps: int
    evaluations: int
    most_rates: int
    jobs: int

    def conduct(self) -> dict[str, Any]:
        """Run what is not done yet; everything that was measured, by arm."""
        if any(ARMS[arm].continued for arm in self.arms):
            self._base()
        with ThreadPoolExecutor(self.jobs) as pool:
            sweeps = dict(zip(self.arms, pool.map(self._sweep, self.arms), strict=True))
            # Seed by seed, so that what is there after an interruption compares all arms.
            cases = list(product(range(1, self.seeds + 1), self.arms))
            done = pool.map(lambda case: self._compare(*case, best(sweeps[case[1]])), cases)
            rows: dict[str, list[dict[str, Any]]] = {arm: [] for arm in self.arms}
            for (_, arm), results in zip(cases, done, strict=True):
                rows[arm] += results
        return {
            arm: {
                "title": ARMS[arm].title,
                "sweep": [{"lr": lr, "mean": means} for lr, means in sorted(sweeps[arm].items())],
                "lr": best(sweeps[arm]),
                "runs": rows[arm],
            }
            for arm in self.arms
        }

    @property
    def _checkpoint(self) -> Path:
        return self.work / "base" / "checkpoint"

    def _base(self) -> None:
        """One base model for all: continued pretraining starts from a checkpoint that is given."""
        general = {"general": {"general": 1.0}}
        lr = ARMS["clean"].first_lr
        run = Run("base", general, BASE_SEED, lr, self.steps, self.evaluations // 3)
        self._result(Run(**{**vars(run), "save": self._checkpoint}))

    def _sweep(self, arm: str) -> dict[float, list[float]]:
        """Mean validation loss of uniform by learning rate, on the tuning seeds."""

        def losses(lr: float) -> list[float]:
            runs = (self._run(arm, "uniform", seed, lr) for seed in TUNING_SEEDS)
            return [fmean(self._result(run)["valid"].values()) for run in runs]

        return search(losses, ARMS[arm].first_lr, self.most_rates)

    def _compare(self, seed: int, arm: str, lr: float) -> list[dict[str, Any]]:
        """All treatments with one seed: the same first weights and the same data, in order."""
        rows: list[dict[str, Any]] = []
        average: Mapping[str, float] | None = None
        for treatment in ARMS[arm].treatments:
            result = self._result(self._run(arm, treatment, seed, lr, average))
            rows.append({"treatment": treatment, "seed": seed, "lr": lr, **result})
            if treatment == "linupper":
                average = result["weights"]
        return rows

    def _run(
        self,
        arm: str,
        treatment: str,
        seed: int,
        lr: float,
        average: Mapping[str, float] | None = None,
    ) -> Run:
        return Run(
            name=f"{arm}/{treatment}-lr{lr:g}-seed{seed}",
            blend=ARMS[arm].blend,
            seed=seed,
            lr=lr,
            steps=self.steps,
            evaluations=self.evaluations,
            reweight=reweight(treatment, seed, average),
            pinned=("general",) if treatment == "pinned" else (),
            load=self._checkpoint if ARMS[arm].continued else None,
        )

    def _result(self, run: Run) -> dict[str, Any]:
        result = result_of(run, self.corpora, self.tokenizer, self.work)
        losses = "  ".join(f"{name} {loss:.4f}" for name, loss in result["valid"].items())
        print(f"{run.name:<36} {losses}  ({result['seconds']:.0f} s)", flush=True)
        return result


def search(
    losses: Callable[[float], list[float]], first: float, most: int
) -> dict[float, list[float]]:
    """Try learning rates a factor apart until the best one has neighbours on both sides.

    Args:
        losses: learning rate → the loss with each tuning seed; lower is better.
        first: the middle of the first three.
        most: rates at most.

    Returns:
        What was measured, by learning rate.
    """
    measured = {first: losses(first)}
    while len(measured) < most:
        lr = best(measured)
        missing = [rate for rate in (lr / LR_FACTOR, lr * LR_FACTOR) if rate not in measured]
        if not missing:
            break
        measured[missing[0]] = losses(missing[0])
    return measured


def best(measured: Mapping[float, list[float]]) -> float:
    """The learning rate of the lowest mean."""
    return min(measured, key=lambda lr: fmean(measured[lr]))
