"""The steering experiment's table, computed again from its files by other means.

Nothing of the experiment's arithmetic is used below, and nothing of scipy: names of runs are taken
apart, the curve, the interval and the choices are written down anew.
"""

from __future__ import annotations

import json
import math
import re
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(FOLDER / "steering"), str(FOLDER)]

import report  # noqa: E402
from plan import Case, Plan  # noqa: E402
from training import Run  # noqa: E402

RATES = ("0.0005", "0.001", "0.002")
SHARES = ("0.05", "0.15", "0.3", "0.4", "0.5", "0.6", "0.7")
TUNING, CONFIRMATION = ("1001",), ("6", "7", "8", "9", "10")
T = {5: 2.77645}  # 97.5 % point of Student's t by number of seeds, from tables
Results = dict[str, Any]
Point = tuple[float, float]


def world(run: Run) -> dict[str, Any]:
    """Losses with noise of their own in every run; rates, seeds and arms differ."""
    rng = np.random.default_rng(zlib.crc32(run.name.encode()))
    if run.base is None:
        test = {"general": 2.0, "code": 2.5, "maths": 3.5}
        windows = [[10, {"general": 1.0}]]
        made = {"processor": run.name, "config": {}}
        return {"test": test, "shares": windows, "sensor": [], **made}
    # Another base for every seed; and one for what was made on another machine: worse by 0.1.
    elsewhere = any(name in run.name for name in ("again", "velocity", "learnability"))
    moved = 0.01 * run.seed + 0.5 * elsewhere
    share = run.blend["general"]["general"]
    rule = run.config.get("mix", {}).get("dynamic") or run.config.get("reweight") or {}
    seed = np.random.default_rng(run.seed).normal(0, 0.01)
    off = 0.01 * math.log(run.lr / 1e-3) ** 2
    risen = 0.4 * (1 - share) ** 2 + 0.02 * off + seed
    target = 1.5 + 0.3 * (1 - math.sqrt(max(risen - seed, 0) / 0.45)) ** 2 + off - seed
    if rule.get("strategy") == "hold":
        risen = rule["epsilon"] + rng.normal(0, 0.01) + 0.1 * (rule["anneal"] == 0)
        target = 1.5 + 0.3 * (1 - math.sqrt(max(risen, 0) / 0.45)) ** 2 - 0.005 + off - seed
    target += rng.normal(0, 0.002) + 0.01 * (rule.get("strategy") == "linupper") + 0.1 * elsewhere
    risen += rng.normal(0, 0.001)
    start = {"general": 2.0 + moved, "code": 2.5, "maths": 3.5}
    test = {"general": 2.0 + moved + risen, "code": target - 0.2, "maths": target + 0.2}
    sensor = [[0, 1.9], [128, 2.1], [256, 1.9 + risen + rng.normal(0, 0.005)]]
    shares = [[step, {"general": share + rng.normal(0, 0.01)}] for step in (10, 20)]
    made = {"start": start, "processor": f"machine {run.seed}", "config": run.config}
    return {"test": test, "shares": shares, "sensor": sensor, **made}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all runs, as the experiment leaves them."""
    work, results = tmp_path_factory.mktemp("work"), {}
    while True:
        runs = [run for runs in Plan(results).stages().values() for run in runs]
        new = [run for run in runs if run.name not in results]
        if not new:
            return work
        for run in new:
            results[run.name] = world(run)
            file = work / run.name / "result.json"
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps({"of": [], "result": results[run.name]}))


def gather(work: Path) -> Results:
    return {
        str(file.parent.relative_to(work)): json.loads(file.read_text())["result"]
        for file in sorted(work.rglob("result.json"))
    }


# --- the same, anew ------------------------------------------------------------------------------


def pchip(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """Fritsch and Butland's monotone cubic, with one-sided three-point ends."""
    h, slope = np.diff(x), np.diff(y) / np.diff(x)
    d = np.zeros(len(x))
    for k in range(1, len(x) - 1):
        if slope[k - 1] * slope[k] > 0:
            w1, w2 = 2 * h[k] + h[k - 1], h[k] + 2 * h[k - 1]
            d[k] = (w1 + w2) / (w1 / slope[k - 1] + w2 / slope[k])
    for end, (h0, h1), (s0, s1) in ((0, h[:2], slope[:2]), (-1, h[:-3:-1], slope[:-3:-1])):
        first = ((2 * h0 + h1) * s0 - h0 * s1) / (h0 + h1)
        if first * s0 <= 0:
            first = 0.0
        elif s0 * s1 <= 0 and abs(first) > 3 * abs(s0):
            first = 3 * s0
        d[end] = first
    k = int(np.clip(np.searchsorted(x, at) - 1, 0, len(h) - 1))
    t = (at - x[k]) / h[k]
    blend = [(1 + 2 * t) * (1 - t) ** 2, t**2 * (3 - 2 * t)]
    bend = [t * (1 - t) ** 2, t**2 * (t - 1)]
    return float(
        blend[0] * y[k] + blend[1] * y[k + 1] + h[k] * (bend[0] * d[k] + bend[1] * d[k + 1])
    )


def where(results: Results, name: str, group: str = "clean-medium") -> Point:
    one = results[f"{group}/{name}"]
    base, test = one["start"]["general"], one["test"]
    return test["general"] - base, (test["code"] + test["maths"]) / 2


def curve(
    results: Results,
    seed: str,
    rate: str,
    at: float,
    group: str = "clean-medium",
    shares: tuple[str, ...] = SHARES,
) -> float:
    points = np.array(
        sorted(where(results, f"static-{s}-lr{rate}-seed{seed}", group) for s in shares)
    )
    if not points[0, 0] <= at <= points[-1, 0]:
        return math.nan
    return pchip(points[:, 0], points[:, 1], at)


def far(results: Results, name: str, rates: tuple[str, ...] = RATES, group: str = "clean-medium"):
    x, y = where(results, name, group)
    seed = name.rpartition("seed")[2]
    found = np.array([curve(results, seed, rate, x, group) for rate in rates])
    return y - np.nanmin(found) if np.isfinite(found).any() else math.nan


def rate_of_the_front(results: Results) -> str:
    spans = [
        [where(results, f"static-{s}-lr{rate}-seed{seed}")[0] for s in SHARES]
        for rate in RATES
        for seed in TUNING
    ]
    low, high = max(map(min, spans)), min(map(max, spans))
    places = np.linspace(low, high, 11)[1:-1]
    means = [
        np.mean([curve(results, seed, rate, x) for seed in TUNING for x in places])
        for rate in RATES
    ]
    return RATES[int(np.argmin(means))]


def rate_of(results: Results, arm: str) -> str:
    means = [
        np.mean([far(results, f"{arm}-lr{rate}-seed{seed}") for seed in TUNING]) for rate in RATES
    ]
    return RATES[1] if np.isnan(means).all() else RATES[int(np.nanargmin(means))]


def interval(values: list[float]) -> str:
    """As the table writes it."""
    if np.isnan(values).any():
        return "outside of the front"
    half = T[len(values)] * np.std(values, ddof=1) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return f"{'−' if mean < 0 else '+'}{abs(mean):.4f} ± {half:.4f}"


# The table's titles of the arms that are computed again.
ARMS = {
    "hold-1": "hold by sampling, small ε",
    "hold-2": "hold by sampling, large ε",
    "hold-weights-1": "hold by weights, small ε",
    "ramp-up": "ramp 0 → 0.6",
    "linupper-1": "linupper, r = 1",
    "group-dro": "group_dro",
}


def sections(page: str) -> dict[str, list[list[str]]]:
    """Cells of every table line, by heading."""
    found: dict[str, list[list[str]]] = {}
    for part in re.split(r"^## ", page, flags=re.M)[1:]:
        title, _, text = part.partition("\n")
        lines = [line for line in text.splitlines() if line.startswith("| ")]
        found[title] = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return found


def test_the_table(work: Path, tmp_path: Path) -> None:
    results = gather(work)
    report.write(results, tmp_path / "cpu.json")
    text = (tmp_path / "cpu.md").read_text()
    page = sections(text)
    rows = page["Three clean domains; medium model"]
    static = rate_of_the_front(results)
    for arm, title in ARMS.items():
        rate = rate_of(results, arm)
        names = [f"{arm}-lr{rate}-seed{seed}" for seed in CONFIRMATION]
        distances = [far(results, name) for name in names]
        points = np.array([where(results, name) for name in names])
        windows = [results[f"clean-medium/{name}"]["shares"] for name in names]
        share = np.mean([one["general"] for of in windows for _, one in of])
        row = next(row for row in rows if row[0] == title)
        assert row[1:-1] == [
            rate,
            f"{share:.3f}",
            interval(points[:, 0].tolist()),
            f"{points[:, 1].mean():.4f}",
            "5",
            interval(distances),
        ]
    # ε, by the middle rate's blends of 50 % and 15 %, and where hold ends.
    epsilons = [
        round(np.mean([where(results, f"static-{s}-lr0.001-seed{k}")[0] for k in TUNING]), 2)
        for s in ("0.5", "0.15")
    ]
    for arm, epsilon in (("hold-1", epsilons[0]), ("hold-2", epsilons[1])):
        names = [f"{arm}-lr{rate_of(results, arm)}-seed{seed}" for seed in CONFIRMATION]
        misses = [where(results, name)[0] - epsilon for name in names]
        looks = [results[f"clean-medium/{name}"]["sensor"] for name in names]
        sensed = [of[-1][1] - of[0][1] - epsilon for of in looks]
        most = max(0.1 * epsilon, 0.01)
        assert [
            ARMS[arm],
            f"{epsilon:g}",
            " ".join(f"{one:+.3f}" for one in misses),
            " ".join(f"{one:+.3f}" for one in sensed),
            f"{most:.3f}",
            "every run" if max(map(abs, misses)) <= most else "no",
        ] in rows
    # How far the front's own points lie from the curve without them.
    (_, medium) = text.split("Three clean domains; medium model")
    told = re.findall(r"by general's share: (.*?) nats", medium)[0]
    for share in SHARES[1:-1]:
        off = []
        for seed in CONFIRMATION:
            points = [where(results, f"static-{s}-lr{static}-seed{seed}") for s in SHARES]
            own = points.pop(SHARES.index(share))
            others = np.array(sorted(points))
            off.append(own[1] - pchip(others[:, 0], others[:, 1], own[0]))
        assert f"{share}: {np.mean(off):+.4f}" in told.split(", ")
    # What was made elsewhere has a front of its own.
    again, middle, offs = "clean-medium-again", SHARES[:5], []
    for seed in CONFIRMATION:
        points = [where(results, f"static-{s}-lr{static}-seed{seed}", again) for s in middle]
        offs.append(np.nanmean([y - curve(results, seed, static, x) for x, y in points]))
    assert f"and end {interval(offs)} nats of the targets from the front above" in text
    assert "was trained there: velocity, learnability. They" in text
    rate, found = rate_of(results, "velocity"), []
    for seed in CONFIRMATION:
        x, y = where(results, f"velocity-lr{rate}-seed{seed}")
        found.append(y - curve(results, seed, static, x, again, middle))
    assert [row[6] for row in rows if row[0] == "velocity"] == [interval(found)]
    assert f"machine 6 ({sum('seed6' in name for name in results)})" in text
    # Other data have a front of their own, at the one rate.
    for data, title in (("dirty", "30 % of code's training text is scrambled"),):
        rate = rate_of(results, "excess")
        names = [f"excess-lr{rate}-seed{seed}" for seed in CONFIRMATION]
        distances = [far(results, name, (static,), f"{data}-medium") for name in names]
        row = next(row for row in page[f"{title}; medium model"] if row[0] == "excess")
        assert row[6] == interval(distances)


def test_no_run_is_compared_with_a_front_of_another_base(work: Path) -> None:
    """The other rates were run on another machine, and end lower by 0.1 there."""
    results = gather(work)
    static = rate_of_the_front(results)
    for name, one in results.items():
        confirms = name.rpartition("seed")[2] in CONFIRMATION
        if name.startswith("clean-medium/static") and f"lr{static}-" not in name and confirms:
            moved = {"general": 0.3, "code": -0.1, "maths": -0.1}
            test = {key: loss + moved[key] for key, loss in one["test"].items()}
            start = {**one["start"], "general": one["start"]["general"] + 0.3}
            results[name] = {**one, "test": test, "start": start}
    plan = Plan(results)
    for seed in CONFIRMATION:
        name = f"hold-1-lr{rate_of(results, 'hold-1')}-seed{seed}"
        case = Case("hold-1", float(rate_of(results, "hold-1")), int(seed))
        assert plan.distance(case) == pytest.approx(far(results, name, (static,)), abs=1e-9)


def test_no_seed_is_compared_with_rates_that_others_lack(work: Path) -> None:
    """An experiment that was interrupted: two seeds have the fronts of other rates, lower ones."""
    results = gather(work)
    static = rate_of_the_front(results)
    lower = {}
    for name, one in results.items():
        seed = name.rpartition("seed")[2]
        if name.startswith("clean-medium/static") and seed in CONFIRMATION:
            if f"lr{static}-" in name:
                lower[name] = one
            elif seed in ("6", "7"):
                test = {key: loss - 0.1 * (key != "general") for key, loss in one["test"].items()}
                lower[name] = {**one, "test": test}
        else:
            lower[name] = one
    import table

    (row,) = [one for one in table.rows(Plan(lower)) if one.arm == "hold-1"]
    names = [f"hold-1-lr{row.lr:g}-seed{seed}" for seed in CONFIRMATION]
    expected = [far(results, name, (static,)) for name in names]
    assert row.distances == pytest.approx(expected, abs=1e-9)


def test_results_that_do_not_belong_together_are_refused(work: Path, tmp_path: Path) -> None:
    """A run of another ε, as where it was run before ε was chosen from this base."""
    results = gather(work)
    name = next(name for name in results if name.startswith("clean-tiny/hold-1"))
    dynamic = {**results[name]["config"]["mix"]["dynamic"], "epsilon": 0.5}
    results[name] = {**results[name], "config": {"mix": {"dynamic": dynamic}}}
    with pytest.raises(ValueError, match=f"{name} was run with .*'epsilon': 0.5"):
        report.write(results, tmp_path / "cpu.json")
    assert not list(tmp_path.iterdir())
