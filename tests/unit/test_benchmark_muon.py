"""Going on with Muon: the arithmetic of the table, and what is trained."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "muon_from_adam" / "run.py"
spec = importlib.util.spec_from_file_location("muon_from_adam", FILE)
assert spec is not None and spec.loader is not None
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


def ways(**losses: float) -> dict[str, Any]:
    """The same loss for every seed and domain, plus the seed's own."""
    return {
        name.replace("_", " then "): {
            "losses": {s: dict.fromkeys(benchmark.DOMAINS, x + s) for s in benchmark.SEEDS}
        }
        for name, x in losses.items()
    }


def test_the_mismatch_is_what_muon_costs_more_on_the_base_of_adam() -> None:
    found = benchmark.differences(ways(adam_adam=2.0, adam_muon=2.25, muon_adam=1.5, muon_muon=1.0))
    assert found["all"] == found["code"]
    assert found["all"]["adam"] == pytest.approx([0.25] * 3)
    assert found["all"]["muon"] == pytest.approx([-0.5] * 3)
    assert found["all"]["mismatch"] == pytest.approx([0.75] * 3)
    assert benchmark.shown([0.5, 1.0, 1.5]) == "+1.0000 ± 0.2887"


def test_rates_are_chosen_on_a_seed_that_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every run starts from the base of its own seed, at the rate that its way has chosen."""
    best = {("adam", "adam"): 2e-3, ("muon", "adam"): 4e-3, ("adam", "muon"): 8e-3}
    trained: list[tuple[Any, ...]] = []

    def train(work: Path, name: str, by: str, seed: int, rate: float, base: str = "") -> Any:
        trained.append((by, seed, rate, base))
        of = base.split("-")[1] if base else by
        loss = abs(rate - best.get((by, of), 2e-3)) + (0 if seed == benchmark.CHOSEN_ON else rate)
        return dict.fromkeys(benchmark.DOMAINS, loss)

    monkeypatch.setattr(benchmark, "train", train)
    found = benchmark.measure(tmp_path)
    assert {way: one["rate"] for way, one in found["ways"].items()} == {
        "adam then adam": 2e-3,
        "adam then muon": 4e-3,
        "muon then adam": 8e-3,
        "muon then muon": 2e-3,
    }
    assert benchmark.CHOSEN_ON not in benchmark.SEEDS
    assert all(base.endswith(f"-{seed}") for _, seed, _, base in trained if base)
