"""The strategies' names and options, and the errors that point at the key of ``reweight``."""

import math

import numpy as np
import pytest

from domain_pretrain.errors import ConfigError
from domain_pretrain.strategies import Observation, Options, Reweighter, build, register
from domain_pretrain.strategies.registry import STRATEGIES, StrategyOptions
from domain_pretrain.strategies.section import parse_reweight
from domain_pretrain.strategies.temperature import Temperature

NAMES = ("a", "b")
SEEN = Observation(
    names=NAMES,
    step=0,
    active=np.ones(2, bool),
    loss=np.array([1.0, 2.0]),
    present=np.ones(2, bool),
    step_loss=np.array([1.0, 2.0]),
    tokens=np.ones(2),
)


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, "hot", True, None])
def test_a_bad_temperature_names_the_key(temperature):
    with pytest.raises(ConfigError, match=r"^reweight\.temperature: "):
        build("linupper", {"temperature": temperature}, NAMES)


@pytest.mark.parametrize(
    "change", [{"start": 0}, {"end": -1.0}, {"steps": -1}, {"steps": 0.5}, {"shape": "quick"}]
)
def test_a_bad_schedule_names_the_key(change):
    schedule = {"start": 4.0, "end": 1.0, "steps": 10, **change}
    with pytest.raises(ConfigError, match=rf"^reweight\.temperature\.{next(iter(change))}: "):
        build("linupper", {"temperature": schedule}, NAMES)


def test_an_unknown_key_suggests_the_nearest_and_lists_the_known():
    with pytest.raises(ConfigError) as error:
        build("linupper", {"temprature": 1.0}, NAMES, also=("strategy", "clip"))
    assert str(error.value) == (
        "reweight.temprature: unknown key; did you mean 'temperature'? "
        "(known keys: temperature, strategy, clip)"
    )
    with pytest.raises(ConfigError, match=r"^reweight\.temperature: unknown key"):
        build("uniform", {"temperature": 1.0}, NAMES)


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("group_dro", {"step_size": 0}, "step_size"),
        ("group_dro", {"adjustment": -1}, "adjustment"),
        ("group_dro", {"smoothing": 1.5}, "smoothing"),
        ("excess", {}, "reference"),
        ("excess", {"reference": 3}, "reference"),
        ("excess", {"reference": {"a": "low", "b": 1}}, "reference"),
        ("velocity", {"target": {"a": 1, "b": math.nan}}, "target"),
        ("bandit", {"smoothing": -0.1}, "smoothing"),
        ("learnability", {"fit_steps": -1}, "fit_steps"),
        ("static", {"weights": {"a": 0, "b": 1}}, r"weights\.a"),
    ],
)
def test_bad_options_name_the_key(name, options, key):
    with pytest.raises(ConfigError, match=rf"^reweight\.{key}: "):
        build(name, options, NAMES)


def test_an_unknown_strategy_suggests_the_nearest():
    with pytest.raises(ConfigError, match="unknown strategy 'linuper'; did you mean 'linupper'"):
        build("linuper", {}, NAMES)
    with pytest.raises(ConfigError, match=r"unknown strategy 'zzz' \(known: bandit, excess"):
        build("zzz", {}, NAMES)


def steep(seen, state, options):
    return seen.weights(seen.loss[seen.active] ** options.power), state


class SteepOptions(Options):
    power: float = 2.0


def test_a_rule_of_somebody_else(monkeypatch):
    monkeypatch.setattr(STRATEGIES, "_rules", dict(STRATEGIES._rules))  # it is forgotten after
    register("steep", SteepOptions)(steep)
    # 1² : 2² = 0.2, 0.8; 1³ : 2³.
    weights, _ = build("steep", {}, NAMES)(SEEN, {})
    np.testing.assert_allclose(weights, [0.2, 0.8], rtol=1e-15)
    weights, _ = build("steep", {"power": 3.0}, NAMES)(SEEN, {})
    np.testing.assert_allclose(weights, [1 / 9, 8 / 9], rtol=1e-15)


def test_a_rule_that_is_for_sampling_alone(monkeypatch):
    class ForSampling(StrategyOptions):
        steers = ("sampling",)

    monkeypatch.setattr(STRATEGIES, "_rules", dict(STRATEGIES._rules))
    register("even", ForSampling)(lambda seen, state, options: (seen.weights(1.0), state))
    section = parse_reweight({"strategy": "even"})
    Reweighter.build(section, NAMES, actuator="sampling", where="mix.dynamic", horizon=1e3)
    message = "^reweight.strategy: even moves sampling, and here it would move losses"
    with pytest.raises(ConfigError, match=message):
        Reweighter.build(section, NAMES, horizon=1e3)


def test_temperature_schedule():
    linear = Temperature(start=4.0, end=1.0, steps=10)
    assert [linear.at(t) for t in (-5, 0, 5, 10, 99)] == [4, 4, 2.5, 1, 1]
    # Cosine: half of the way at half of the time, (1 + cos 60°)/2 = 3/4 left at a third.
    cosine = Temperature(start=5.0, end=1.0, steps=6, shape="cosine")
    assert cosine.at(0) == 5
    assert cosine.at(2) == pytest.approx(4, rel=1e-15)
    assert cosine.at(3) == pytest.approx(3, rel=1e-15)
    assert cosine.at(6) == 1


def test_the_rule_follows_the_schedule():
    schedule = {"start": 4.0, "end": 1.0, "steps": 10}
    moving, fixed = (build("linupper", {"temperature": t}, NAMES) for t in (schedule, 2.5))
    at_five = Observation(**{**vars(SEEN), "step": 5})
    np.testing.assert_array_equal(moving(at_five, {})[0], fixed(SEEN, {})[0])
