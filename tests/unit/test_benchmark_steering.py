"""The steering experiment: its arithmetic, what it chooses by, and the configs that it writes."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(FOLDER / "steering"), str(FOLDER)]

import conduct  # noqa: E402
import report  # noqa: E402
import table  # noqa: E402
from arms import ARMS, DATA, FRONT, HOLD, Known, blend  # noqa: E402
from front import Estimate, at, distance, point, tolerance, verdict  # noqa: E402
from plan import BASE_LR, CONFIRMATION, RATES, STAGES, TUNING, Case, Plan  # noqa: E402
from training import Run, read, shares  # noqa: E402

from domain_pretrain.config import DomainConfig  # noqa: E402
from domain_pretrain.strategies import Reweighter  # noqa: E402
from domain_pretrain.strategies.section import LaggedReweight  # noqa: E402
from domain_pretrain.whole_file import whole_file  # noqa: E402

BASE = {"general": 2.0, "code": 2.5, "maths": 3.5}
KNOWN = Known(BASE, {"general": 2.1, "code": 1.5, "maths": 1.5}, (0.05, 0.2), {"anneal": 0.1})


def curve(risen: float) -> float:
    """A front: convex and falling."""
    return 1.5 + 0.3 * (1 - math.sqrt(risen / 0.4)) ** 2


SEEDS_FRONT = [(risen, curve(risen)) for risen in (0.01, 0.05, 0.1, 0.2, 0.3, 0.4)]


def test_a_run_is_a_point_of_general_and_the_targets() -> None:
    assert point({"general": 2.1, "code": 1.0, "maths": 2.0}, BASE) == pytest.approx((0.1, 1.5))


def test_the_front_is_a_curve_and_not_chords() -> None:
    """Between two points, a chord of a convex front would lie above it, and flatter all others."""
    assert at(SEEDS_FRONT, 0.1) == pytest.approx(curve(0.1))
    chord = (curve(0.1) + curve(0.2)) / 2
    assert chord - curve(0.15) > 0.002
    assert at(SEEDS_FRONT, 0.15) == pytest.approx(curve(0.15), abs=0.0007)
    assert math.isnan(at(SEEDS_FRONT, 0.005))
    assert math.isnan(at(SEEDS_FRONT, 0.41))


def test_a_distance_is_from_the_best_front_at_the_same_general_loss() -> None:
    worse = [(risen, target + 0.05) for risen, target in SEEDS_FRONT]
    assert distance((0.1, curve(0.1) - 0.01), [worse, SEEDS_FRONT]) == pytest.approx(-0.01)
    # A front that does not reach there says nothing, and none at all is no distance.
    assert distance((0.1, 1.9), [worse, SEEDS_FRONT[3:]]) == pytest.approx(1.85 - curve(0.1))
    assert math.isnan(distance((0.5, 1.9), [worse, SEEDS_FRONT]))
    # A point of the front is judged by the others: this one is a bump.
    bumped = [*SEEDS_FRONT, (0.15, curve(0.15) + 0.02)]
    assert distance(bumped[-1], [bumped]) == pytest.approx(0.02, abs=0.0007)


def test_an_interval_is_students() -> None:
    """Values 1 … 5: mean 3, deviation √2.5; t for 4 degrees of freedom is 2.776."""
    found = Estimate.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0
    assert found.half == pytest.approx(2.7764 * math.sqrt(2.5 / 5), rel=1e-4)
    assert Estimate.of([1.0]).half == math.inf
    assert math.isnan(Estimate.of([1.0, math.nan]).mean)


@pytest.mark.parametrize(
    ("mean", "half", "count", "expected"),
    [
        (-0.01, 0.005, 5, "beats every static blend"),
        (-0.01, 0.005, 4, "none yet"),
        (-0.003, 0.006, 5, "as good, within 0.005"),
        (0.002, 0.001, 5, "as good, within 0.005"),
        (0.02, 0.01, 5, "worse than the static blend"),
        (0.0, 0.01, 5, "not told apart"),
        (math.nan, math.inf, 5, "cannot be compared"),
    ],
)
def test_what_may_be_said(mean: float, half: float, count: int, expected: str) -> None:
    assert verdict(Estimate(mean, half, count)) == expected


def test_the_tolerance_is_a_tenth_and_a_hundredth_at_least() -> None:
    assert (tolerance(0.3), tolerance(0.02)) == pytest.approx((0.03, 0.01))


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("arm", ARMS)
def test_the_plugin_takes_every_config(arm: str, data: str, tmp_path: Path) -> None:
    parts = blend(ARMS[arm].share, data)
    weights = [weight for corpora in parts.values() for weight in corpora.values()]
    assert sum(weights) == pytest.approx(1)
    run = Run("name", parts, 1, 1e-3, 10, config=ARMS[arm].config(KNOWN))
    path = tmp_path / "domains.yaml"
    path.write_text(yaml.safe_dump(run.domains(tmp_path)))
    config = DomainConfig.load(path)
    offers = frozenset({"valid", "lr", "progress"})
    if config.mix.dynamic is not None:
        Reweighter.build(config.mix.dynamic, tuple(parts), offers=offers, actuator="sampling")
    elif isinstance(config.reweight, LaggedReweight):
        Reweighter.build(config.reweight, tuple(parts), offers=offers)
    else:
        assert (config.reweight is None) == arm.startswith("static")


def world(run: Run, *, lands: bool = True) -> dict[str, Any]:
    """What a run gives where the front is ``curve``, 1e-3 the best rate, and hold 0.01 below it.

    Of hold's options, ``anneal: 0`` ends far above its ε.
    """
    if run.base is None:
        shares = [[10, {"general": 1.0}]]
        return {"test": BASE, "shares": shares, "processor": "one", "config": {}}
    share = run.blend["general"]["general"]
    off = abs(math.log(run.lr / 1e-3)) / 50
    rule = run.config.get("mix", {}).get("dynamic") or run.config.get("reweight") or {}
    risen, target = 0.4 * (1 - share) ** 2 + off, None
    if rule.get("strategy") == "hold":
        risen = rule["epsilon"] + (0.05 if not rule["anneal"] else 0.0)
        target = curve(risen) - 0.01 + off
    target = curve(risen) + off if target is None else target
    test = {"general": 2.0 + risen, "code": target - 0.1, "maths": target + 0.1}
    windows = [[10, {"general": share, "code": 1 - share}]]
    made = {"start": BASE, "processor": "one", "config": run.config}
    return {"test": test, "shares": windows, **made}


@cache
def conducted(most: int = 10**9) -> Mapping[str, Any]:
    """All runs that there are to run, in their order, or the first of them."""
    results: dict[str, Any] = {}
    while True:
        stages = Plan(results).stages()
        new = [run for runs in stages.values() for run in runs if run.name not in results]
        if not new or len(results) >= most:
            return results
        for run in new[: most - len(results)]:
            results[run.name] = world(run)


def test_everything_is_run_once_and_in_order() -> None:
    results = conducted()
    plan = Plan(results)
    stages = plan.stages()
    assert tuple(stages) == STAGES
    names = [run.name for runs in stages.values() for run in runs]
    assert len(set(names)) == len(names) == len(results)
    assert next(iter(results)) == "base/medium"
    for arm in ARMS:
        rate = plan.rate(arm)
        assert rate is not None
        assert all(Case(arm, rate, seed).name in results for seed in (*TUNING, *CONFIRMATION))


def test_what_is_chosen_comes_from_the_tuning_seeds_alone() -> None:
    results = conducted()
    plan = Plan(results)
    assert plan.static_rate == 1e-3
    # 0.4·(1 − 0.5)² and 0.4·(1 − 0.15)².
    assert plan.epsilons == (0.1, 0.29)
    assert {plan.rate(arm) for arm in HOLD} == {1e-3}
    assert plan.variant != 0  # which does not end at its ε, though it is below the front
    ends = tuple(f"seed{seed}" for seed in CONFIRMATION)
    without = Plan({name: one for name, one in results.items() if not name.endswith(ends)})
    for key in ("static_rate", "epsilons", "variant", "known"):
        assert getattr(without, key) == getattr(plan, key)


@pytest.mark.parametrize("most", [0, 1, 20, 40, 75, 100])
def test_a_plan_that_is_not_done_names_the_next_runs(most: int) -> None:
    results = conducted(most)
    stages = Plan(results).stages()
    assert tuple(stages) == tuple(stage for stage in STAGES if stage in stages)
    left = [run for runs in stages.values() for run in runs if run.name not in results]
    assert left
    assert "Runs: base" in table.progress(Plan(results))


def runs_of(
    work: Path, monkeypatch: pytest.MonkeyPatch, **given: Any
) -> list[tuple[str, list[str]]]:
    """What is begun, with the models that are there then; a base takes longer than other runs."""
    begun = []

    def result_of(run: Run, data: Path, tokenizer: Any, work: Path) -> dict[str, Any]:
        begun.append((run.name, sorted(conduct.gather(work))))
        time.sleep(0.2 * (run.base is None))
        file = work / run.name / "result.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as whole:  # the other job may be looking
            whole.write(json.dumps({"result": world(run)}).encode())
        return {**world(run), "seconds": 0.0}

    monkeypatch.setattr(conduct, "result_of", result_of)
    monkeypatch.setattr(conduct.corpora, "build", lambda data: [])
    conduct.conduct(work, jobs=2, end=math.inf, **given)
    return begun


def test_no_run_begins_before_its_base_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = runs_of(tmp_path, monkeypatch, only=["base", "front"])
    assert begun[0] == ("base/medium", [])
    assert len(begun) == 22
    assert all("base/medium" in there for _, there in begun[1:])


def test_what_another_machine_has_run_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its models are not here: a base that what is left starts from is trained anew."""
    kept = conducted()
    assert not runs_of(tmp_path, monkeypatch, only=list(STAGES), kept=kept)
    few = {name: one for name, one in kept.items() if not name.startswith(("dirty", "clean-tiny"))}
    begun = runs_of(tmp_path, monkeypatch, only=["dirty"], kept=few)
    assert begun[0] == ("base/medium", [])
    assert {name for name, _ in begun[1:]} == {name for name in kept if name.startswith("dirty")}
    begun = runs_of(tmp_path, monkeypatch, only=["scale"], kept=few)
    assert begun[0][0] == "base/tiny"
    assert {name for name, _ in begun[1:]} == {name for name in kept if "clean-tiny" in name}
    assert conduct.gather(tmp_path).keys() | few.keys() == kept.keys()


def test_the_page_and_the_picture(tmp_path: Path) -> None:
    report.write(conducted(), tmp_path / "cpu.json")
    written = (tmp_path / "cpu.json").read_text()
    assert json.loads(written)["runs"] == conducted(), "each run is a line, whole"
    assert sum('"test": {' in line for line in written.splitlines()) == len(conducted())
    page = (tmp_path / "cpu.md").read_text()
    (hold,) = [
        line
        for line in page.split("medium model")[1].splitlines()
        if line.startswith("| hold by sampling, small ε | 0.001")
    ]
    assert "| −0.01" in hold
    assert "beats every static blend" in hold
    assert "| hold by sampling, small ε | 0.1 | +0.000 +0.000" in page
    assert "every run" in page
    short = page.split("## In short")[1].split("##")[0].split("\n")
    (line,) = [line for line in short if line.startswith("* **hold by sampling, small ε**")]
    assert "beats every static blend (−0.01" in line
    assert "for ε 0.1, the worst run +0.000 from it" in line
    assert not any("static 0" in line for line in short)
    for what in ("tiny", "small", "dirty", "rare"):
        assert any(line.startswith(f"* **{what}: hold by sampling, small ε**") for line in short)
    assert "{'anneal': 0.0, 'scale': 0.05}" in page
    assert (tmp_path / "cpu.png").stat().st_size > 10_000


@pytest.mark.parametrize(("most", "drawn"), [(20, False), (43, False), (49, True)])
def test_few_confirmation_runs_give_no_verdict(most: int, drawn: bool, tmp_path: Path) -> None:
    """43: a part of the first seed's front; 49: one seed, whole."""
    report.write(conducted(most), tmp_path / "cpu.json")
    page = (tmp_path / "cpu.md").read_text()
    assert "beats" not in page
    assert "In short" not in page
    assert ("none yet" in page) == drawn
    assert (tmp_path / "cpu.png").exists() == drawn


def test_the_docs_say_what_the_results_say() -> None:
    page = (FOLDER / "steering/results/cpu.md").read_text("utf-8")
    docs = (FOLDER.parent / "docs/reweighting.md").read_text("utf-8")
    short = page.split("## In short")[1].split("\n## ")[0]
    told = [line for line in short.splitlines() if line.startswith("* ")]
    assert told, "of all arms of which something may be said"
    assert told == [line for line in docs.splitlines() if "at equal general loss; general" in line]


def test_hold_sees_all_that_is_held_out_where_it_is_judged() -> None:
    """96 samples tell a rise of 0.07 to ± 0.008, which is most of the tolerance."""
    runs = [run for runs in Plan(conducted()).stages().values() for run in runs]
    seen = {(run.seed, run.samples) for run in runs if "hold" in str(run.config)}
    assert seen == {
        (seed, 480 if seed in CONFIRMATION else 96) for seed in (*TUNING, *CONFIRMATION)
    }


def test_what_is_kept_of_a_run() -> None:
    def entry(split: str, iteration: int, **domains: dict[str, float]) -> dict[str, Any]:
        return {"split": split, "iteration": iteration, "domains": domains}

    trained = [
        entry("valid", 0, general={"loss": 2.0, "tokens": 9}),
        entry("train", 10, general={"loss": 2.5, "tokens": 300, "weight": 0.5}),
        entry("train", 20, general={"loss": 2.4, "tokens": 300}, code={"loss": 1, "tokens": 100}),
        entry("valid", 20, general={"loss": 2.1, "tokens": 9}),
    ]
    tested = [entry("valid", 1, **{name: {"loss": 1.5, "tokens": 8} for name in BASE})]
    kept = read(trained, tested)
    assert kept["test"] == dict.fromkeys(BASE, 1.5)
    assert kept["sensor"] == [[0, 2.0], [20, 2.1]]
    assert kept["shares"] == [[10, {"general": 1.0}], [20, {"general": 0.75, "code": 0.25}]]
    assert kept["last_train"] == {"general": 2.4, "code": 1}


def test_a_share_is_of_the_weighted_tokens() -> None:
    """general 0.5·300 = 150, code 1.5·100 = 150."""
    domains = {"general": {"tokens": 300, "weight": 0.5}, "code": {"tokens": 100, "weight": 1.5}}
    assert shares({"domains": domains}) == {"general": 0.5, "code": 0.5}


def test_the_front_and_the_rates_span_something() -> None:
    assert list(FRONT) == sorted(FRONT)
    assert len(FRONT) >= 5
    assert BASE_LR in RATES
    assert len(CONFIRMATION) >= 5
    assert not set(TUNING) & set(CONFIRMATION)
