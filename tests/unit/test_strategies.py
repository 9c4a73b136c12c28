"""Each rule against numbers worked by hand (in the comments), and what all rules have in common."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain_pretrain.errors import ConfigError, IntegrityError
from domain_pretrain.strategies import Course, Observation, available, build
from domain_pretrain.strategies.learnability import add_point, slope

NAMES = ("a", "b", "c")
BUILT_IN = (
    "uniform",
    "linupper",
    "quadratic",
    "extremes",
    "static",
    "group_dro",
    "excess",
    "velocity",
    "learnability",
    "bandit",
    "hold",
    "ramp",
)


def observe(loss, *, step=0, step_loss=None, tokens=None, active=None, names=None):
    """What a rule sees; a NaN in ``loss`` is a domain never seen, in ``step_loss`` one absent."""
    loss = np.array(loss, dtype=float)
    step_loss = loss if step_loss is None else np.array(step_loss, dtype=float)
    return Observation(
        names=names or NAMES[: len(loss)],
        step=step,
        active=np.isfinite(loss) if active is None else np.array(active),
        loss=loss,
        present=np.isfinite(step_loss),
        step_loss=step_loss,
        tokens=np.full(len(loss), 100.0) if tokens is None else np.array(tokens, dtype=float),
        share=np.full(len(loss), 1 / len(loss)),
        course=Course(progress=0.5),
        weighed_tokens=np.full(len(loss), 10.0),
    )


def options_of(name, names):
    """What a rule cannot do without."""
    by_domain = {n: 1.0 for n in names}
    if name == "hold":
        return {"domains": names[0], "epsilon": 0.1}
    if name == "ramp":
        return {"start": by_domain, "end": by_domain}
    needed = {"static": "weights", "excess": "reference", "velocity": "target"}
    return {needed[name]: by_domain} if name in needed else {}


def ready(name, names=NAMES, **options):
    return build(name, {**options_of(name, names), **options}, names)


SIX = tuple(f"d{i}" for i in range(6))
READY = {name: ready(name) for name in BUILT_IN}
# learnability would wait for 1,000 steps.
QUICK = {"learnability": {"ignore_steps": 0, "fit_steps": 2}}
READY_SIX = {name: ready(name, SIX, **QUICK.get(name, {})) for name in BUILT_IN}


def test_every_rule_is_registered():
    assert set(BUILT_IN) <= set(available())


# -- by hand -------------------------------------------------------------------------------------


def test_uniform():
    weights, _ = ready("uniform")(observe([1, 9, 4]), {})
    assert weights.tolist() == [1 / 3] * 3


def test_static():
    # 1 : 2 : 5 of 8.
    rule = ready("static", weights={"a": 1, "b": 2.0, "c": 5.0})
    weights, _ = rule(observe([1, 9, 4]), {})
    np.testing.assert_allclose(weights, [0.125, 0.25, 0.625], rtol=1e-15)


# Losses 1, 2, 3, 5: lowest 1, highest 5, so h = (2·L − 6)/4 = −1, −0.5, 0, 1.
FOUR = ("a", "b", "c", "d")
LOSSES = [1.0, 2.0, 3.0, 5.0]


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("linupper", [0.0, 0.5, 1.0, 1.0]),  # min(h + 1, 1)
        ("quadratic", [0.0, 0.75, 1.0, 0.0]),  # 1 − h²
        ("extremes", [1.0, 0.5, 0.0, 1.0]),  # |h|
    ],
)
def test_loss_shapes(name, scores):
    weights, _ = ready(name, FOUR)(observe(LOSSES, names=FOUR), {})
    powers = [math.e**score for score in scores]
    np.testing.assert_allclose(weights, [p / sum(powers) for p in powers], rtol=1e-14)
    # Temperature 0.5 doubles the scores.
    weights, _ = ready(name, FOUR, temperature=0.5)(observe(LOSSES, names=FOUR), {})
    powers = [math.e ** (2 * score) for score in scores]
    np.testing.assert_allclose(weights, [p / sum(powers) for p in powers], rtol=1e-14)


def test_linupper_in_decimals():
    # e^0 = 1, e^0.5 = 1.64872, e^1 = 2.71828 twice; sum 8.08528.
    weights, _ = ready("linupper", FOUR)(observe(LOSSES, names=FOUR), {})
    np.testing.assert_allclose(weights, [0.123681, 0.203917, 0.336201, 0.336201], atol=1e-6)


def test_the_published_range_of_linupper_over_many_samples():
    # The paper's setting, 128 losses, evenly spread here. Half of the scores are 1, the other half
    # run from 0 to 1: mean of e^s = (e + (e − 1))/2 = 2.218, so N·w goes from 1/2.218 = 0.451 to
    # e/2.218 = 1.225.
    names = tuple(f"s{i}" for i in range(128))
    weights, _ = ready("linupper", names)(observe(np.linspace(1, 5, 128), names=names), {})
    assert 128 * weights.min() == pytest.approx(0.451, abs=0.003)
    assert 128 * weights.max() == pytest.approx(1.225, abs=0.003)


def test_group_dro():
    # q = (1/2, 1/2), η = 1/2, L = (ln 4, 0): factors e^(ln 4 / 2) = 2 and 1 → 2/3, 1/3;
    # the same again: 4/5, 1/5.
    rule = ready("group_dro", ("a", "b"), step_size=0.5, smoothing=0)
    weights, state = rule(observe([math.log(4), 0.0]), {})
    np.testing.assert_allclose(weights, [2 / 3, 1 / 3], rtol=1e-14)
    weights, state = rule(observe([math.log(4), 0.0], step=1), state)
    np.testing.assert_allclose(weights, [0.8, 0.2], rtol=1e-14)


def test_group_dro_adjustment():
    # Equal losses, C = 10·ln 2, n = (100, 400): C/√n = ln 2, ln 2 / 2; η = 2 → factors 4, 2.
    rule = ready("group_dro", ("a", "b"), step_size=2, adjustment=10 * math.log(2), smoothing=0)
    weights, _ = rule(observe([0.0, 0.0], tokens=[100, 400]), {})
    np.testing.assert_allclose(weights, [2 / 3, 1 / 3], rtol=1e-14)


def test_excess():
    # λ = max((1 + ln 3, 2) − (1, 5), 0) = (ln 3, 0); η 1: softmax = 3/4, 1/4;
    # c = 0.1: 0.9·(3/4, 1/4) + 0.05 = 0.725, 0.275. Then again: 0.725·3 : 0.275 = 2.175 : 0.275
    # = 87/98, 11/98 → 0.9·87/98 + 0.05, 0.9·11/98 + 0.05.
    rule = ready("excess", ("a", "b"), reference={"a": 1.0, "b": 5.0}, step_size=1, smoothing=0.1)
    seen = observe([1 + math.log(3), 2.0])
    weights, state = rule(seen, {})
    np.testing.assert_allclose(weights, [0.725, 0.275], rtol=1e-14)
    weights, _ = rule(seen, state)
    np.testing.assert_allclose(weights, [0.9 * 87 / 98 + 0.05, 0.9 * 11 / 98 + 0.05], rtol=1e-13)


def test_excess_below_the_reference_counts_when_asked():
    # λ = (0, −ln 3), not clipped: 1 : 1/3 = 3/4, 1/4.
    rule = ready(
        "excess",
        ("a", "b"),
        reference={"a": 1.0, "b": 5.0},
        step_size=1,
        smoothing=0,
        clip_at_zero=False,
    )
    weights, _ = rule(observe([1.0, 5 - math.log(3)]), {})
    np.testing.assert_allclose(weights, [0.75, 0.25], rtol=1e-14)


def test_velocity():
    # Initial (5, 4), target (1, 2). Now (3, 2): V = 2/4 = 0.5 and 0/2 = 0.
    # η = 2·ln 9: factors e^(ln 9) = 9 and 1 → 0.9, 0.1.
    rule = ready(
        "velocity",
        ("a", "b"),
        target={"a": 1.0, "b": 2.0},
        initial={"a": 5.0, "b": 4.0},
        step_size=2 * math.log(9),
        smoothing=0,
    )
    weights, _ = rule(observe([3.0, 2.0]), {})
    np.testing.assert_allclose(weights, [0.9, 0.1], rtol=1e-14)
    # Past the target counts as at it: V of b stays 0.
    weights, _ = rule(observe([3.0, 1.0]), {})
    np.testing.assert_allclose(weights, [0.9, 0.1], rtol=1e-14)


def test_velocity_remembers_the_first_loss():
    rule = ready(
        "velocity", ("a", "b"), target={"a": 1.0, "b": 2.0}, step_size=2 * math.log(9), smoothing=0
    )
    _, state = rule(observe([5.0, 4.0], step=-1), {})
    weights, _ = rule(observe([3.0, 2.0]), state)  # as above
    np.testing.assert_allclose(weights, [0.9, 0.1], rtol=1e-14)


def test_velocity_without_a_way_to_go():
    # a starts at its target: no way, V = 0; b: V = 1. η = ln 3: 1 : 3.
    rule = ready(
        "velocity", ("a", "b"), target={"a": 2.0, "b": 1.0}, step_size=math.log(3), smoothing=0
    )
    weights, _ = rule(observe([2.0, 2.0]), {})
    np.testing.assert_allclose(weights, [0.25, 0.75], rtol=1e-14)
    # The same when it starts below its target: V is 0, not −1/−1.
    weights, _ = rule(observe([1.0, 2.0]), {})
    np.testing.assert_allclose(weights, [0.25, 0.75], rtol=1e-14)


def test_bandit():
    # Rewards at first sight: e^ln 2 = 2, e^ln 6 = 6. t = 8: ε = √(ln 2 / (2·8)) = 0.208138.
    # p = (1 − 2ε)·(1/4, 3/4) + ε = 0.25 + ε/2, 0.75 − ε/2.
    rule = ready("bandit", ("a", "b"))
    seen = observe([math.log(2), math.log(6)], step=7)
    weights, state = rule(seen, {})
    np.testing.assert_allclose(weights, [0.25 + 0.104069, 0.75 - 0.104069], atol=1e-6)
    # Then a gives 12, b is absent: R = 0.9·2 + 0.1·12 = 3, and 6. t = 200 ln 2: ε = 0.05 → t = 139.
    seen = observe([1.0, 1.0], step_loss=[math.log(12), math.nan], step=138)
    weights, state = rule(seen, state)
    epsilon = math.sqrt(math.log(2) / 278)
    np.testing.assert_allclose(weights[0], (1 - 2 * epsilon) / 3 + epsilon, rtol=1e-13)
    np.testing.assert_allclose(state["reward"], [3, 6], rtol=1e-13)


def test_bandit_explores_first():
    # t = 1: √(ln 2 / 2) = 0.59 > 1/2, so ε = 1/K: uniform.
    weights, _ = ready("bandit", ("a", "b"))(observe([1.0, 9.0]), {})
    assert weights.tolist() == [0.5, 0.5]


def learn(laws, steps, *, tokens=1000.0, **options):
    """Run learnability over exact power laws (e, b, a) of all tokens."""
    names = tuple(f"d{i}" for i in range(len(laws)))
    rule = ready("learnability", names, ignore_steps=0, fit_steps=5, **options)
    state = {}
    for t in range(1, steps + 1):
        n = tokens * len(laws) * t
        loss = [e + b * n**-a for e, b, a in laws]
        seen = observe(loss, step=t, tokens=[tokens * t] * len(laws), names=names)
        weights, state = rule(seen, state)
    return weights, n


def test_learnability_finds_the_law():
    # On exact laws with exponents of the grid the fit is exact, so the slopes are a·b·n^(−a)/n;
    # with two domains of 40 steps of 1000 tokens n = 80,000.
    # a: 0.5·300·80000^(−0.5) = 150/282.8427 = 0.530330. b: 0.25·40·80000^(−0.25)
    # = 10/16.817928 = 0.594604. Of their sum, 1.124934: 0.471432, 0.528568.
    weights, n = learn([(2.0, 300.0, 0.5), (1.0, 40.0, 0.25)], 40, smoothing=0)
    assert n == 80_000
    np.testing.assert_allclose(weights, [0.471432, 0.528568], atol=1e-6)


def test_learnability_gives_nothing_to_what_does_not_fall():
    # A constant (noise) and a rising loss have slope 0.
    weights, _ = learn([(3.0, 0.0, 0.5), (2.0, -50.0, 0.5), (2.0, 300.0, 0.5)], 30, smoothing=0)
    np.testing.assert_allclose(weights, [0, 0, 1], atol=1e-9)


def test_learnability_averages_over_time():
    # Constant weights w of the fit from step 5 to t. The average starts at 1/2 and counts every
    # step, so just after step 5 it is untouched: result 0.9·0.5 + 0.1·w, w = 0 for the constant.
    weights, _ = learn([(3.0, 0.0, 0.5), (2.0, 300.0, 0.5)], 5)
    np.testing.assert_allclose(weights, [0.45, 0.55], atol=1e-9)
    # Step 6: average 0.5 + (0 − 0.5)/6 = 0.416667 → 0.9·0.416667 = 0.375.
    weights, _ = learn([(3.0, 0.0, 0.5), (2.0, 300.0, 0.5)], 6)
    np.testing.assert_allclose(weights, [0.375, 0.625], atol=1e-9)


def test_learnability_keeps_the_floor_above_zero():
    # Loss 8 at n = 1, 1/2 at n = 16: steeper than n^(−0.8), so every line through both points in
    # x = n^(−a) ends below 0 and the best laws have e = 0. The steepest fits best: a = 0.8,
    # x = 16^(−0.8) = 0.108819, b = (8·1 + 0.5·x)/(1 + x²) = 7.960150,
    # slope 0.8·7.960150·0.108819/16 = 0.043311.
    moments = np.zeros((1, 16, 6))
    for tokens, loss in ((1.0, 8.0), (16.0, 0.5)):
        moments = add_point(moments, tokens, np.array([loss]))
    np.testing.assert_allclose(slope(moments, 16.0), [0.043311], atol=1e-6)


def straightforward_slope(tokens, losses):
    """The fit from the points themselves, one exponent after the other."""
    n, y, best = np.array(tokens), np.array(losses), (math.inf, 0.0)
    for a in np.arange(1, 17) * 0.05:
        x = n**-a
        (e, b), *_ = np.linalg.lstsq(np.stack([np.ones_like(x), x], axis=1), y, rcond=None)
        if b < 0:
            e, b = y.mean(), 0.0
        elif e < 0:
            e, b = 0.0, (x * y).sum() / (x * x).sum()
        best = min(best, (((y - e - b * x) ** 2).sum(), a * b * n[-1] ** -a / n[-1]))
    return best[1]


# The last two: a law with its floor at 0 competes closely with one above.
@pytest.mark.parametrize("seed", [*range(20), 552, 1506])
def test_learnability_is_least_squares_on_noisy_points(seed):
    rng = np.random.default_rng(seed)
    steps = int(rng.integers(3, 30))
    tokens = np.cumsum(rng.uniform(1, 50, steps))
    losses = rng.uniform(0, 2) + rng.uniform(-2, 8) * tokens ** -rng.uniform(0.1, 1.5)
    losses = np.abs(losses + rng.normal(0, 0.1, steps))
    moments = np.zeros((1, 16, 6))
    for n, loss in zip(tokens, losses, strict=True):
        moments = add_point(moments, float(n), np.array([loss]))
    expected = straightforward_slope(tokens, losses)
    np.testing.assert_allclose(slope(moments, float(tokens[-1])), [expected], rtol=1e-6, atol=1e-12)


def test_learnability_ignores_the_first_steps():
    # The same laws, but nonsense in the first three steps.
    names = ("a", "b")
    rule, state = ready("learnability", names, ignore_steps=3, fit_steps=20, smoothing=0), {}
    for t in range(1, 41):
        n = 2000.0 * t
        loss = [2 + 300 * n**-0.5, 1 + 40 * n**-0.25] if t > 3 else [99.0 / t, 5.0]
        weights, state = rule(observe(loss, step=t, tokens=[n / 2, n / 2]), state)
        if t < 23:
            assert weights.tolist() == [0.5, 0.5]
    np.testing.assert_allclose(weights, [0.471432, 0.528568], atol=1e-6)


def test_learnability_gives_a_newcomer_the_mean_slope():
    names = ("a", "b", "c")
    rule, state = ready("learnability", names, ignore_steps=0, fit_steps=20, smoothing=0), {}
    for t in range(1, 41):
        n = 2000.0 * t
        late = 3.0 if t == 40 else math.nan
        loss = [2 + 300 * n**-0.5, 1 + 40 * n**-0.25, late]
        weights, state = rule(observe(loss, step=t, tokens=[n / 2, n / 2, 0]), state)
    # Slopes as above, the third their mean: 2/3 of (0.471432, 0.528568), and 1/3.
    np.testing.assert_allclose(weights, [0.314288, 0.352379, 1 / 3], atol=1e-6)


def test_learnability_averages_a_newcomer_from_its_first_weight():
    # c is flat, so its weight is 0 from the first; a is as flat, but its average began uniform.
    names = ("a", "b", "c")
    rule, state = ready("learnability", names, ignore_steps=0, fit_steps=1, smoothing=1.0), {}
    for t in range(1, 41):
        n = 2000.0 * t
        loss = [3.0, 2 + 300 * n**-0.5, 3.0 if t > 20 else math.nan]
        weights, state = rule(observe(loss, step=t, tokens=[n / 2, n / 2, 0]), state)
    assert weights[2] == pytest.approx(0, abs=1e-12)
    assert weights[0] > 0.01


def test_learnability_waits_for_enough_steps():
    weights, _ = learn([(3.0, 0.0, 0.5), (2.0, 300.0, 0.5)], 4)
    assert weights.tolist() == [0.5, 0.5]


# -- what all rules have in common ---------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_equal_losses_give_exactly_equal_weights(name):
    rule, state = ready(name), {}
    for step in range(-3, 20):
        weights, state = rule(observe([2.5, 2.5, 2.5], step=step), state)
        assert weights.tolist() == [1 / 3] * 3


@pytest.mark.parametrize("name", BUILT_IN)
def test_one_domain_and_none(name):
    weights, state = ready(name)(observe([math.nan, 2.0, math.nan], step=1), {})
    assert weights.tolist() == [0, 1, 0]
    weights, state = ready(name)(observe([math.nan] * 3, step=1), {})
    assert weights.tolist() == [0, 0, 0]
    assert state == {}


@pytest.mark.parametrize("name", BUILT_IN)
def test_rules_do_not_write_into_what_they_are_given(name):
    rule = ready(name, **({"fit_steps": 1, "ignore_steps": 0} if name == "learnability" else {}))
    state = {}
    for step in range(3):
        seen = observe([1.0, 2.0, 4.0], step=step)
        for value in (seen.loss, seen.step_loss, seen.active, seen.present, seen.tokens):
            value.flags.writeable = False
        before = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in state.items()}
        for value in state.values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
        _, new = rule(seen, state)
        assert state.keys() == before.keys()
        for key, value in before.items():
            np.testing.assert_array_equal(state[key], value)
        state = new


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_thousand_domains(name):
    names = tuple(f"d{i}" for i in range(1000))
    rule, state = ready(name, names), {}
    for step in range(2):
        weights, state = rule(observe(np.linspace(0.1, 12, 1000), step=step, names=names), state)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (weights >= 0).all()


@pytest.mark.parametrize("name", ["group_dro", "excess", "velocity"])
def test_weights_that_climb_are_held_during_the_warm_up(name):
    rule, state = ready(name), {}
    for step in range(-50, 0):
        weights, state = rule(observe([9.0, 5.0, 4.0], step=step), state)
        assert weights.tolist() == [1 / 3] * 3
    first, _ = rule(observe([9.0, 5.0, 4.0], step=0), state)
    fresh, _ = rule(observe([9.0, 5.0, 4.0], step=0), {})
    np.testing.assert_array_equal(first, fresh)


@pytest.mark.parametrize("name", ["group_dro", "excess"])
def test_a_domain_that_joins_later_starts_at_the_mean(name):
    rule = ready(name, step_size=0.5, smoothing=0)
    _, state = rule(observe([9.0, 5.0, math.nan]), {})
    q = state["weights"][:2]
    weights, _ = rule(observe([0.5, 0.5, 0.5], step=1), state)  # equal gains: q renormalised
    np.testing.assert_allclose(weights, np.array([*q, q.mean()]) / 1.5, rtol=1e-13)


def test_smoothing_bounds_the_way_back():
    # Held at the floor for long, a weight must not need as long to return (no wind-up).
    # The floor: w = 0.999·w·e^(−0.1·8) + 0.0005 = 0.448880·w + 0.0005 → w = 0.000907 (1 − w ≈ 1).
    rule, state = ready("group_dro", ("a", "b"), step_size=0.1), {}
    for step in range(5000):
        weights, state = rule(observe([9.0, 1.0], step=step), state)
    assert weights[1] == pytest.approx(0.000907, rel=1e-3)
    for step in range(20):
        weights, state = rule(observe([1.0, 9.0], step=step), state)
    assert weights[1] > 0.9


losses = st.lists(st.floats(0, 50) | st.just(math.nan), min_size=1, max_size=6)


@settings(max_examples=60)
@given(name=st.sampled_from(BUILT_IN), history=st.lists(losses, min_size=1, max_size=5))
def test_weights_are_a_distribution_whatever_is_seen(name, history):
    rule, state, known = READY_SIX[name], {}, np.full(6, np.nan)
    for step, row in enumerate(history):
        now = np.full(6, np.nan)
        now[: len(row)] = row
        known = np.where(np.isnan(now), known, now)
        seen = observe(known, step=step, step_loss=now, names=SIX, tokens=[1e3 * (step + 1)] * 6)
        weights, state = rule(seen, state)
        assert np.isfinite(weights).all()
        assert (weights >= 0).all()
        assert not weights[~seen.active].any()
        assert weights.sum() == pytest.approx(1.0 if seen.active.any() else 0.0, abs=1e-12)


@settings(max_examples=40)
@given(
    name=st.sampled_from(BUILT_IN),
    loss=st.lists(st.floats(0.1, 15), min_size=3, max_size=3),
    order=st.permutations(range(3)),
)
def test_the_order_of_domains_does_not_matter(name, loss, order):
    rule = READY[name]
    weights, _ = rule(observe(loss), {})
    names = tuple(NAMES[i] for i in order)
    moved, _ = rule(observe([loss[i] for i in order], names=names), {})
    np.testing.assert_allclose(moved, weights[list(order)], rtol=1e-12)


@settings(max_examples=60)
@given(
    loss=st.lists(st.floats(0.1, 15), min_size=3, max_size=3),
    shift=st.floats(0, 10),
    scale=st.floats(0.5, 20),
)
def test_shapes_look_only_at_the_position_within_the_range(loss, shift, scale):
    if max(loss) - min(loss) < 0.01:
        return
    weights, _ = READY["linupper"](observe(loss), {})
    moved, _ = READY["linupper"](observe([scale * x + shift for x in loss]), {})
    np.testing.assert_allclose(moved, weights, rtol=1e-9)


def test_losses_that_agree_but_for_rounding_count_as_equal():
    weights, _ = ready("linupper")(observe([2.0, 2.0 + 4e-16, 2.0 - 5e-8]), {})
    assert weights.tolist() == [1 / 3] * 3


def test_a_tiny_temperature_stays_finite():
    weights, _ = ready("linupper", temperature=1e-300)(observe([1.0, 2.0, 3.0]), {})
    assert weights.tolist() == [0, 0.5, 0.5]


def test_a_rule_that_gives_no_distribution_is_stopped():
    strategy = ready("uniform")
    for bad in ([0.5, 0.5, 0.5], [math.nan, 0.5, 0.5], [-0.5, 0.5, 1.0], [1.0]):
        broken = type(strategy)("mine", lambda *_, w=bad: (np.array(w), {}), strategy.options)
        with pytest.raises(IntegrityError, match="'mine' gave weights that are no distribution"):
            broken(observe([1.0, 2.0, 3.0]), {})
    with pytest.raises(IntegrityError, match="negative or not finite"):
        observe([1.0, 2.0]).weights(np.array([1.0, math.inf]))


def test_a_missing_value_for_a_domain_is_found_at_start_up():
    with pytest.raises(ConfigError, match=r"reweight\.weights: no value for domain 'c'"):
        build("static", {"weights": {"a": 1, "b": 1}}, NAMES)
    with pytest.raises(ConfigError, match=r"reweight\.reference: no value for domain 'b', 'c'"):
        build("excess", {"reference": {"a": 1}}, NAMES)
    with pytest.raises(ConfigError, match=r"reweight\.target: there is no domain 'lw'"):
        build("velocity", {"target": {"a": 1, "b": 1, "c": 1, "lw": 2}}, NAMES)
