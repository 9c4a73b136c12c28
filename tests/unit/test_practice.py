"""The rules of practice say what they see, with numbers, and nothing where there is nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from domain_pretrain.report.history import History
from domain_pretrain.report.practice import Check, check

WINDOWS = 200


def flat(loss: float) -> list[float]:
    """With some noise, so that an error is known."""
    return [loss + 0.01 * (-1) ** window for window in range(WINDOWS)]


def line(start: float, end: float) -> list[float]:
    slope = np.linspace(start, end, WINDOWS)
    return [float(one) + 0.01 * (-1) ** at for at, one in enumerate(slope)]


def history(losses: Mapping[str, Sequence[float]], rates: Sequence[float] = ()) -> History:
    found = History(domains=list(losses))
    for window in range(WINDOWS):
        domains = {
            name: {"loss": of[window], "loss_sum": 1000 * of[window], "tokens": 1000, "samples": 1}
            for name, of in losses.items()
        }
        host = {"learning_rate": rates[window]} if rates else {}
        entry = {"iteration": window + 1, "split": "train", "domains": domains, "host": host}
        found.add(entry)
    return found


def rules(losses: Mapping[str, Sequence[float]], **entropy: float) -> dict[str, Check]:
    return {one.rule: one for one in check(history(losses), entropy)}


# With an entropy of 5 nats: losses, and the one rule that names the domain.
CASES = [
    (flat(2.0), "Low at the start"),
    (line(4.0, 1.5), "Falling"),
    (flat(4.9), "High to the end"),
    (line(6.0, 4.9), "High to the end"),  # it fell, and is high
    (line(3.0, 4.0), "Rises and stays up"),
    (line(3.0, 0.5), "Very low"),
]


@pytest.mark.parametrize(("losses", "rule"), CASES, ids=[f"{c[0][0]:.1f} {c[1]}" for c in CASES])
def test_a_domain_is_named_by_its_rule(losses: list[float], rule: str) -> None:
    found = rules({"a": losses, "still": flat(3.0)}, a=5.0, still=5.0)
    assert "a" in found[rule].seen
    named = {title for title, one in found.items() if "a" in one.seen}
    assert named <= {rule, "Start and end less than 2-fold apart"}
    said = found[rule].seen["a"]
    # Both ends in numbers, and what they are measured by.
    assert f"{np.mean(losses[:10]):.3f} → {np.mean(losses[-10:]):.3f} nats" in said
    assert "5.00" in said


def test_without_an_entropy_high_and_low_are_beside_the_median() -> None:
    losses = {"low": flat(1.0), "a": flat(3.0), "b": flat(3.1), "c": flat(3.0), "high": flat(6.0)}
    found = rules(losses)
    assert list(found["Low at the start"].seen) == ["low"]
    assert list(found["High to the end"].seen) == ["high"]
    assert "the median domain, which starts at 3.0" in found["High to the end"].meaning


def test_one_domain_alone_is_neither_high_nor_low() -> None:
    assert list(rules({"a": flat(9.0)})) == ["Start and end less than 2-fold apart"]


def test_all_rising_points_to_the_rate_and_not_to_replay() -> None:
    found = rules({"a": line(2, 3), "b": line(1, 2)})
    assert list(found["All domains rise"].seen) == ["a", "b"]
    assert "Rises and stays up" not in found
    assert "learning rate" in found["All domains rise"].meaning


def test_a_rise_that_is_over_does_not_stay() -> None:
    bump = [*flat(2.0)[: WINDOWS - 20], *[2.2] * 20]  # high at the very end alone
    assert "Rises and stays up" not in rules({"a": bump, "b": flat(2.0)})


def test_a_change_within_its_error_is_none() -> None:
    noise = [2 + 0.5 * (-1) ** (window // 3) for window in range(WINDOWS)]
    noise[-5:] = [2.4] * 5
    assert "Rises and stays up" not in rules({"a": noise, "b": flat(2.0)})


def test_few_fold_is_a_ratio() -> None:
    title = "Start and end less than 2-fold apart"
    found = rules({"a": line(3.0, 2.0), "b": line(3.0, 1.0), "c": flat(3.0)})
    assert list(found[title].seen) == ["a", "c"]
    assert found[title].seen["a"].startswith("1.4")  # 2.98 / 2.02


def test_a_loss_that_is_not_finite_is_no_case_of_any_rule() -> None:
    found = rules({"a": [float("nan")] * WINDOWS, "b": flat(2.0)})
    assert all("a" not in one.seen for one in found.values())


def rate(rule: str, of: Callable[[int], float]) -> str | None:
    found = check(history({"a": flat(2.0)}, [of(window) for window in range(WINDOWS)]), {})
    return next((one.seen[""] for one in found if one.rule == rule), None)


def plateau(peak: float, warm_up: int, decay: int) -> Callable[[int], float]:
    return lambda at: peak * min(1, (at + 1) / warm_up, (WINDOWS - at) / decay)


@pytest.mark.parametrize(("peak", "said"), [(1e-3, "its peak is 0.001"), (5e-6, None)])
def test_peaks(peak: float, said: str | None) -> None:
    assert rate("Learning rate", plateau(peak, 10, 10)) == said


@pytest.mark.parametrize(
    ("warm_up", "decay", "warms", "decays"),
    [
        (10, 10, None, None),
        (60, 10, "it rises over 30.0% of the run", None),
        (10, 60, None, "it falls over 29.5% of the run"),
        (1, 1, "it has no warm-up", "it has no decay"),
    ],
)
def test_shares_of_warm_up_and_decay(
    warm_up: int, decay: int, warms: str | None, decays: str | None
) -> None:
    of = plateau(5e-6, warm_up, decay)
    assert rate("Warm-up of the learning rate", of) == warms
    assert rate("Decay of the learning rate", of) == decays
