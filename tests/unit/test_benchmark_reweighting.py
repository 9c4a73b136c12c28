"""The reweighting experiment: its arithmetic, its search, and the configs that it writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "benchmarks" / "reweighting"
sys.path.insert(0, str(FOLDER))

import paired  # noqa: E402
import table  # noqa: E402
from arms import ARMS, DOMAINS, reweight  # noqa: E402
from experiment import search  # noqa: E402
from training import CONTROL, Run, read  # noqa: E402

from domain_pretrain.config import DomainConfig  # noqa: E402
from domain_pretrain.strategies import Observation, build  # noqa: E402
from domain_pretrain.strategies.registry import STRATEGIES  # noqa: E402


def row(treatment: str, seed: int, *losses: float) -> dict[str, Any]:
    valid = dict(zip(DOMAINS, losses, strict=True))
    weights = dict.fromkeys(DOMAINS, 1.0)
    return {
        "treatment": treatment,
        "seed": seed,
        "valid": valid,
        "weights": weights,
        "effective_domains": 3.0,
    }


ROWS = [
    row("uniform", 1, 2.0, 1.0, 3.0),  # mean 2.0
    row("uniform", 2, 3.0, 2.0, 4.0),  # mean 3.0
    row("linupper", 2, 3.3, 1.7, 3.4),  # mean 2.8: Δ −0.2
    row("linupper", 1, 1.7, 1.0, 3.0),  # mean 1.9: Δ −0.1
]


def test_differences_are_taken_within_a_seed() -> None:
    """−0.1 and −0.2: mean −0.15, deviation 0.0707, standard error 0.05."""
    found = paired.difference(ROWS, "linupper", "uniform", paired.mean_loss)
    assert (found.mean, found.error, found.count) == pytest.approx((-0.15, 0.05, 2))
    assert str(found) == "−0.1500 ± 0.0500"


def test_the_worst_domain_is_that_of_each_run() -> None:
    """3.0 and 3.4, against 3.0 and 4.0."""
    found = paired.difference(ROWS, "linupper", "uniform", paired.worst_loss)
    assert (found.mean, found.error) == pytest.approx((-0.3, 0.3))


def test_one_seed_has_no_error() -> None:
    assert str(paired.level(ROWS[:1], "uniform", paired.mean_loss)) == "+2.0000 ± ?"


def test_unpaired_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"linupper has seeds \[2\], uniform has \[1, 2\]"):
        paired.difference(ROWS[:3], "linupper", "uniform", paired.mean_loss)


@pytest.mark.parametrize("lowest", [1e-3, 4e-3, 3e-2])
def test_the_search_ends_between_two_neighbours(lowest: float) -> None:
    measured = search(lambda lr: [abs(np.log2(lr / lowest)), 0.0], 4e-3, 9)
    rates = sorted(measured)
    best = min(rates, key=lambda lr: measured[lr])
    assert abs(np.log2(best / lowest)) <= 0.5
    assert rates[0] < best < rates[-1]


def test_the_search_gives_up() -> None:
    assert len(search(lambda lr: [lr], 1.0, 5)) == 5


@pytest.mark.parametrize("arm", ARMS)
def test_the_plugin_takes_every_config(arm: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(CONTROL))
    monkeypatch.setattr(STRATEGIES, "_rules", dict(STRATEGIES._rules))
    monkeypatch.delitem(sys.modules, "shuffled_linupper", raising=False)
    for treatment in ARMS[arm].treatments:
        section = reweight(treatment, 1, {"general": 0.9, "code": 1.3, "maths": 0.8})
        run = Run("name", ARMS[arm].blend, 1, 1e-3, 10, 1, section, pinned=("general",))
        path = tmp_path / "domains.yaml"
        path.write_text(yaml.safe_dump(run.config(tmp_path)))
        config = DomainConfig.load(path)
        assert config.reweight is not None
        build(config.reweight.strategy, config.reweight.model_extra or {}, DOMAINS)


def test_shuffled_weights_are_linuppers_on_other_domains(monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(CONTROL))
    monkeypatch.setattr(STRATEGIES, "_rules", dict(STRATEGIES._rules))
    monkeypatch.delitem(sys.modules, "shuffled_linupper", raising=False)
    seen = Observation(
        names=DOMAINS,
        step=0,
        active=np.ones(3, bool),
        loss=np.array([2.0, 1.3, 1.0]),  # scores 1, 0.6, 0: three different weights
        present=np.ones(3, bool),
        step_loss=np.ones(3),
        tokens=np.ones(3),
    )
    right = build("linupper", {}, DOMAINS)(seen, {})[0]
    for seed in (1, 2):
        options = {key: reweight("shuffled", seed, None)[key] for key in ("shift",)}
        wrong = build("shuffled_linupper", options, DOMAINS)(seen, {})[0]
        # Normalised again in another order: a few roundings.
        np.testing.assert_allclose(sorted(wrong), sorted(right), rtol=1e-15)
        assert not np.isclose(wrong, right).any()


def test_average_weights_are_token_weighted_and_leave_the_warm_up_out() -> None:
    """general: (1.2·100 + 0.9·200)/300 = 1.0; the window that ends with the warm-up is left out."""

    def window(iteration: int, **domains: tuple[float, int]) -> dict[str, Any]:
        parts = {name: {"weight": w, "tokens": n} for name, (w, n) in domains.items()}
        reweighting = {"effective_domains": 2.0 + iteration / 100}
        return {
            "iteration": iteration,
            "split": "train",
            "domains": parts,
            "reweighting": reweighting,
        }

    final = {"split": "valid", "domains": {n: {"loss": 1.5, "tokens": 8} for n in DOMAINS}}
    entries = [
        window(20, general=(1.0, 999), code=(1.0, 9), maths=(1.0, 9)),
        window(30, general=(1.2, 100), code=(0.5, 10)),
        window(40, general=(0.9, 200), code=(0.5, 10), maths=(1.4, 5)),
        final,
    ]
    run = Run("name", {}, 1, 1e-3, 40, 1, {"warmup_steps": 20})
    result = read(entries, run)
    assert result["weights"] == pytest.approx({"general": 1.0, "code": 0.5, "maths": 1.4})
    assert result["effective_domains"] == pytest.approx(2.35)
    assert result["valid"] == dict.fromkeys(DOMAINS, 1.5)
    assert [at for at, _ in result["curve"]] == [30, 40]


def test_the_table_has_the_differences_and_the_chosen_rate() -> None:
    arms = {
        "clean": {
            "sweep": [{"lr": 1e-3, "mean": [2.0, 3.0]}, {"lr": 2e-3, "mean": [2.1, 3.1]}],
            "lr": 1e-3,
            "runs": ROWS,
        }
    }
    assert "| clean | linupper | 2.5000 | 1.3500 | 3.2000 | 2.3500 | 3.2000 |" in table.losses(arms)
    found = table.differences(arms).splitlines()[-1].split(" | ")
    assert found[-2:] == ["−0.1500 ± 0.0500", "−0.3000 ± 0.3000 |"]
    assert "| −0.1500 ± 0.0500 |" in table.contrasts(arms, paired.mean_loss)
    assert "**0.001: 2.5000**" in table.rates(arms)
    assert "edge" in table.rates(arms)
