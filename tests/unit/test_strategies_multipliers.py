"""Weights → multipliers: the sum rule, the bounds, and exact ones."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from domain_pretrain.errors import ConfigError
from domain_pretrain.section import parse
from domain_pretrain.strategies.diagnostics import diagnose
from domain_pretrain.strategies.multipliers import (
    Bounds,
    MultiplierOptions,
    mixed,
    multipliers,
)

FREE = (0.0, 1e9)
NAMES = ("a", "b", "c")


def scale(weights, share, *, objective="token_share", clip=(0.2, 3.0), active=None, **bounds):
    names = NAMES[: len(weights)]
    active = np.ones(len(weights), bool) if active is None else np.array(active)
    return multipliers(
        np.array(weights), active, np.array(share), Bounds.build(names, clip, **bounds), objective
    )


# -- by hand -------------------------------------------------------------------------------------


def test_token_share_tilts_what_the_host_does():
    # m ∝ w: (1/4, 3/4), shares (1/2, 1/2): c·(1/4 + 3/4)/2 = 1 → c = 2.
    np.testing.assert_allclose(scale([0.25, 0.75], [0.5, 0.5]), [0.5, 1.5], rtol=1e-15)
    # Shares (0.8, 0.2): c·(0.2 + 0.15) = 1 → m = 0.25/0.35, 0.75/0.35.
    np.testing.assert_allclose(scale([0.25, 0.75], [0.8, 0.2]), [5 / 7, 15 / 7], rtol=1e-15)


def test_domain_mean_divides_by_the_share():
    # m = w/share: 0.5/0.8, 0.5/0.2. Equal weights, so each domain is half of the loss.
    m = scale([0.5, 0.5], [0.8, 0.2], objective="domain_mean")
    np.testing.assert_allclose(m, [0.625, 2.5], rtol=1e-15)


def test_clipping_keeps_the_sum():
    # Unclipped (1/11, 10/11)·2 at equal shares = (0.18, 1.82). The first is clipped to 0.2, so the
    # second must be 1.8.
    np.testing.assert_allclose(scale([1 / 11, 10 / 11], [0.5, 0.5]), [0.2, 1.8], rtol=1e-15)


def test_clipping_one_side_may_bring_another_to_its_bound():
    # Shares (0.2, 0.4, 0.4), w = (0.9, 0.09, 0.01): unclipped m_a = 0.9/0.22 = 4.1 → 3. Left for b
    # and c: 1 − 0.6 = 0.4 = 0.4·(m_b + m_c), so m_b + m_c = 1, 9 : 1 → 0.9, 0.1; c is below 0.2:
    # m_c = 0.2, m_b = 0.8.
    m = scale([0.9, 0.09, 0.01], [0.2, 0.4, 0.4])
    np.testing.assert_allclose(m, [3.0, 0.8, 0.2], rtol=1e-14)


def test_pinned_and_floor():
    # b is pinned with half of the tokens: a and c share the other half.
    # a : c = 1 : 3 at shares 1/4 each: c·(1 + 3)/4 = 1/2 → 0.5, 1.5.
    m = scale([0.25, 0, 0.75], [0.25, 0.5, 0.25], active=[True, False, True], pinned=["b"])
    np.testing.assert_allclose(m, [0.5, 1, 1.5], rtol=1e-15)
    assert m[1] == 1.0
    # a must keep 0.9: c gets the rest, (0.5 − 0.225)/0.25 = 1.1.
    m = scale(
        [0.25, 0, 0.75],
        [0.25, 0.5, 0.25],
        active=[True, False, True],
        pinned=["b"],
        floor={"a": 0.9},
    )
    np.testing.assert_allclose(m, [0.9, 1, 1.1], rtol=1e-15)


def test_a_domain_never_seen_has_multiplier_one():
    m = scale([0.25, 0.75, 0], [0.5, 0.5, 0], active=[True, True, False])
    np.testing.assert_allclose(m, [0.5, 1.5, 1], rtol=1e-15)


def test_the_uniform_part():
    # (1 − 0.1)·(0, 1) + 0.05, over the two active ones.
    w = mixed(np.array([0, 0, 1.0]), np.array([True, False, True]), 0.1)
    np.testing.assert_allclose(w, [0.05, 0, 0.95], rtol=1e-15)


def test_a_zero_weight_alone_can_still_reach_the_sum():
    # The only weighted domain has a tenth of the tokens: at 3 it gives 0.3, so the others, of
    # weight 0, are needed for the other 0.7.
    m = scale([1.0, 0.0, 0.0], [0.1, 0.5, 0.4])
    np.testing.assert_allclose(m, [3, 7 / 9, 7 / 9], rtol=1e-12)


def test_exactly_ones():
    assert scale([1 / 3] * 3, [0.7, 0.2, 0.1]).tolist() == [1, 1, 1]
    assert scale([1.0], [1.0]).tolist() == [1]
    assert scale([1.0], [1.0], objective="domain_mean").tolist() == [1]
    assert scale([0.5, 0.5], [0.5, 0.5], objective="domain_mean").tolist() == [1, 1]
    assert scale([0, 0, 0], [0, 0, 0], active=[False] * 3).tolist() == [1, 1, 1]
    assert scale([0.1, 0.9], [0.5, 0.5], floor={"a": 1.0, "b": 1.0}).tolist() == [1, 1]


def test_a_floor_of_one_is_no_pin():
    # As above (0.2, 1.8): b's floor is out of the way.
    m = scale([1 / 11, 10 / 11], [0.5, 0.5], floor={"b": 1.0})
    np.testing.assert_allclose(m, [0.2, 1.8], rtol=1e-15)
    # Where a cannot fall, b cannot rise.
    assert scale([1 / 11, 10 / 11], [0.5, 0.5], floor={"a": 1.0}).tolist() == [1, 1]
    # Beside a at 1, b : c = 10 : 1 at a quarter each: b + c = 2, c is clipped to 0.2.
    m = scale([1 / 12, 10 / 12, 1 / 12], [0.5, 0.25, 0.25], floor={"a": 1.0})
    np.testing.assert_allclose(m, [1, 1.8, 0.2], rtol=1e-15)


@pytest.mark.parametrize("absent", [1e-3, 1e-11, 1e-12, 1e-13, 1e-15, 1e-30, 1e-300, 5e-324, 0.0])
def test_a_share_that_fades_leaves_the_others_as_they_are(absent):
    # a and b alone, of equal weights and shares 0.8, 0.2: 0.5/0.8 and 0.5/0.2. c is at its clip and
    # takes 3·share of the sum 1 + share: a and b keep m·(1 − 2·share).
    m = scale([0.3, 0.3, 0.4], [0.8, 0.2, absent], objective="domain_mean")
    left = 1 - 2 * absent
    np.testing.assert_allclose(m, [0.625 * left, 2.5 * left, 3], rtol=1e-14)
    assert m[2] == 3
    # The others' weights compare as they do without it, however small they are beside its own.
    m = scale([1e-20, 1e-20, 1 - 2e-20], [0.8, 0.2, absent], objective="domain_mean")
    np.testing.assert_allclose(m, [0.625 * left, 2.5 * left, 3], rtol=1e-14)
    m = scale([1e-20, 3e-20, 1 - 4e-20], [0.5, 0.5, absent])  # token_share
    np.testing.assert_allclose(m, [0.5 * left, 1.5 * left, 3], rtol=1e-14)


def test_two_shares_that_faded_and_one_domain_that_is_left():
    m = scale([0.1, 0.2, 0.7], [1e-15, 0, 1.0], objective="domain_mean", clip=(0.0, 50.0))
    np.testing.assert_allclose(m, [50, 50, 1], rtol=1e-13)


# -- properties ----------------------------------------------------------------------------------


ROUNDING = 1e-12  # relative: sums and quotients of a dozen terms

# A share: common, rare, faded over a long absence, and gone.
shares = (
    st.floats(0.01, 1)
    | st.floats(-15, -2).map(lambda power: 10.0**power)
    | st.sampled_from([0.0, 5e-324, 1e-300, 1e-13, 1e-12])
)
weight_lists = st.lists(
    st.floats(0, 1) | st.floats(-30, 0).map(lambda power: 10.0**power) | st.just(0.0),
    min_size=8,
    max_size=8,
)
lows = st.sampled_from([0.0, 0.2, 0.999]) | st.floats(0, 0.999)
highs = st.sampled_from([1.0000001, 3.0, 50.0, 1000.0]) | st.floats(1.0000001, 1000)
flags = st.lists(st.sampled_from([True, True, True, False]), min_size=8, max_size=8)
floors = st.lists(st.sampled_from([None, None, 0.3, 0.9, 1.0]), min_size=8, max_size=8)
objectives = st.sampled_from(["token_share", "domain_mean"])


@st.composite
def cases(draw):
    """weights, active, share, bounds, objective; a domain that is not active may be pinned."""
    size = draw(st.integers(2, 8))
    names = tuple(f"d{i}" for i in range(size))
    share = np.array(draw(st.lists(shares, min_size=size, max_size=size)))
    share[draw(st.integers(0, size - 1))] = 1.0  # somebody has tokens
    low, high = draw(lows), draw(highs)
    if draw(st.sampled_from([False, False, True])):
        # With the first at its upper bound and the second at its lower one the sum is complete:
        # the c that is left over depends on negligible shares alone.
        share *= 1e-12
        share[:2] = (1 - low) / (high - low), (high - 1) / (high - low)
    share /= share.sum()
    active = np.array(draw(flags)[:size])
    weights = np.where(active, draw(weight_lists)[:size], 0.0)
    if active.any():
        weights = weights / weights.sum() if weights.sum() > 0 else active / active.sum()
    bounds = Bounds.build(
        names,
        (low, high),
        pinned=[name for name, free in zip(names, active, strict=True) if not free],
        floor={n: f for n, f in zip(names, draw(floors), strict=False) if f is not None},
    )
    return weights, active, share, bounds, draw(objectives)


def case(weights, share, clip, objective):
    """One of :func:`cases`, written out."""
    weights, share = np.array(weights), np.array(share)
    bounds = Bounds.build(NAMES[: len(share)], clip)
    return weights, np.ones(len(share), bool), share, bounds, objective


@settings(max_examples=300)
@given(case=cases())
@example(case([0.5, 0.5], [1.0, 5e-324], (0.2, 3.0), "domain_mean"))
# The first at 1.8 and the second at 0.2 complete the sum.
@example(case([1 - 2e-12, 0.0, 2e-12], [0.5, 0.5, 3e-16], (0.2, 1.8), "token_share"))
def test_the_sum_is_one_and_the_bounds_hold(case):
    _, active, share, bounds, _ = case
    m = multipliers(*case)
    assert abs(math.fsum(share * m) - math.fsum(share)) <= ROUNDING
    assert (bounds.low <= m).all()
    assert (m <= bounds.high).all()
    assert (m[~active] == 1).all()


@settings(max_examples=300)
@given(case=cases())
def test_a_larger_tilt_is_never_a_smaller_multiplier(case):
    weights, active, share, bounds, objective = case
    m = multipliers(*case)
    for i in np.flatnonzero(active):
        for j in np.flatnonzero(active):
            # w_i/base_i >= w_j/base_j, without a quotient; ties by rounding left out.
            one, other = weights[i], weights[j]
            if objective == "domain_mean":
                one, other = one * share[j], other * share[i]
            if bounds.low[i] == bounds.low[j] and one > max(other * (1 + ROUNDING), 1e-290):
                assert m[i] >= m[j]


def bracket(weights, share, low, high, objective):
    """What each multiplier lies between, by plain bisection in 50 digits.

    At the c for a sum that is too small by ``ROUNDING``, and at the c for one that is too large.
    """
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 50, -9999, 9999
        base = share if objective == "domain_mean" else np.ones_like(share)
        q, lowest, highest = ([Decimal(float(x)) for x in row] for row in (share, low, high))
        none = Decimal("1e-100")  # of a weight, for the order in which domains leave their bounds
        tilt = [
            max(Decimal(float(w)) / Decimal(float(b)), none) if b else none
            for w, b in zip(weights, base, strict=True)
        ]

        def at(c):
            rows = zip(tilt, lowest, highest, strict=True)
            return [min(max(c * t, lo), hi) for t, lo, hi in rows]

        def c_for(target):
            below, above = Decimal("1e-500"), Decimal("1e200")
            for _ in range(80):  # 1,600 nats / 2^80: c is right to 1e-21 of itself
                c = (below * above).sqrt()
                total = sum(a * b for a, b in zip(q, at(c), strict=True))
                below, above = (c, above) if total < target else (below, c)
            return c

        low_sum, high_sum = (sum(q) * (1 + sign * Decimal(ROUNDING)) for sign in (-1, 1))
        return np.array(at(c_for(low_sum)), float), np.array(at(c_for(high_sum)), float)


@settings(max_examples=150)
@given(case=cases())
def test_an_independent_bisection_finds_the_same(case):
    weights, active, share, bounds, objective = case
    if share[active].sum() < 1e-290:  # subnormal: products with few digits
        return
    low, high = bounds.low[active], bounds.high[active]
    least, most = bracket(weights[active], share[active], low, high, objective)
    m = multipliers(*case)[active]
    # Without tokens there is no w/share.
    compared = (share[active] > 1e-290) | (objective == "token_share")
    assert (m >= least * (1 - ROUNDING))[compared].all()
    assert (m <= most * (1 + ROUNDING))[compared].all()


@settings(max_examples=300)
@given(
    case=cases(),
    row=st.integers(0, 7),
    power=st.floats(-320, -4),
    factor=st.sampled_from([0.0, 0.1, 10.0]),
)
@example(
    case=case([0.3, 0.3, 0.4], [0.8, 0.2, 0.0], (0.2, 3.0), "domain_mean"),
    row=2,
    power=-11.5,
    factor=0.1,
)
def test_a_negligible_share_that_moves_hardly_moves_the_others(case, row, power, factor):
    weights, active, share, bounds, objective = case
    row %= len(share)
    others = np.arange(len(share)) != row
    if not (active[row] and share[others].any()):
        return
    share[others] /= share[others].sum()
    before, after = share.copy(), share.copy()
    before[row], after[row] = 10.0**power, factor * 10.0**power
    one = multipliers(weights, active, before, bounds, objective)
    two = multipliers(weights, active, after, bounds, objective)
    # The sum rule: the others keep Σ share·(m − 1) = s·(1 − m_row). All of them move the same way,
    # as c does, so that none moves by more than that sum, divided by its own share.
    span = max(1 - bounds.low[row], bounds.high[row] - 1)
    moved = (before[row] + after[row]) * span
    for i in np.flatnonzero(others & (share > 1e-6)):
        rounding = ROUNDING * (share[i] * max(one[i], 1) + 1)
        assert share[i] * abs(one[i] - two[i]) <= moved + rounding


@pytest.mark.parametrize("bounds", [(0.5, math.nextafter(1, 2)), (math.nextafter(1, 0), 2.0)])
def test_bounds_that_are_a_rounding_away_from_one(bounds):
    """The sum at a bound may then be above or below what it must be, by its own rounding."""
    generator = np.random.default_rng(0)
    for _ in range(1500):
        domains = generator.integers(2, 40)
        share, weights = generator.dirichlet(np.ones(domains), 2)
        low, high = (np.full(domains, bound) for bound in bounds)
        found = multipliers(
            weights, np.ones(domains, bool), share, Bounds(low, high), "token_share"
        )
        assert share @ found == pytest.approx(1, rel=1e-13)
        assert (found >= low).all() and (found <= high).all()


def test_a_thousand_domains():
    rng = np.random.default_rng(1)
    names = tuple(f"d{i}" for i in range(1000))
    bounds, active = Bounds.build(names, (0.2, 3.0)), np.ones(1000, bool)
    share, weights = rng.dirichlet(np.full(1000, 0.05)), rng.dirichlet(np.full(1000, 0.1))
    for objective in ("token_share", "domain_mean"):
        m = multipliers(weights, active, share, bounds, objective)
        assert abs(math.fsum(share * m) - 1) <= 1e-12
        assert m.min() >= 0.2
        assert m.max() <= 3.0


@settings(max_examples=60)
@given(case=cases())
def test_equal_weights_are_exactly_ones_under_token_share(case):
    _, active, share, bounds, _ = case
    weights = np.where(active, 1 / max(active.sum(), 1), 0)
    assert (multipliers(weights, active, share, bounds, "token_share") == 1).all()


# -- options and diagnostics ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_options", "key"),
    [
        ({"clip": [1.2, 3.0]}, "reweight.clip"),
        ({"clip": [0.2, 0.9]}, "reweight.clip"),
        ({"clip": [-0.1, 2]}, "reweight.clip"),
        ({"uniform_part": 1.5}, "reweight.uniform_part"),
        ({"warmup_steps": -1}, "reweight.warmup_steps"),
        ({"warmup_steps": 1.5}, "reweight.warmup_steps"),
        ({"objective": "tokens"}, "reweight.objective"),
        ({"uniform_part": True}, "reweight.uniform_part"),
        ({"clip": [0.2, math.inf]}, "reweight.clip"),
        ({"clip": [0.2, 1e300]}, "reweight.clip"),
    ],
)
def test_bad_options_name_the_key(given_options, key):
    with pytest.raises(ConfigError, match=rf"^{key}"):
        parse(MultiplierOptions, given_options, "reweight")


@pytest.mark.parametrize("clip", [[0, 1], [1, 3], [1, 1], [1.0, 3.0]])
def test_a_clip_that_leaves_nothing_but_ones_is_refused(clip):
    with pytest.raises(
        ConfigError,
        match=r"^reweight\.clip: with a bound of exactly 1 .* low < 1 < high, or take rew",
    ):
        parse(MultiplierOptions, {"clip": clip}, "reweight")
    parse(MultiplierOptions, {"clip": [0, 1.0000001]}, "reweight")
    parse(MultiplierOptions, {"clip": [0.999, 1000]}, "reweight")


def test_bad_floor_and_unknown_names():
    with pytest.raises(
        ConfigError, match=r"floor of domain 'a': must be between 0 and 1, got 1\.5"
    ):
        Bounds.build(NAMES, (0.2, 3.0), floor={"a": 1.5})
    with pytest.raises(ConfigError, match="pinned: there is no domain 'd'"):
        Bounds.build(NAMES, (0.2, 3.0), pinned=["d"])
    with pytest.raises(ConfigError, match="floor: there is no domain 'd'"):
        Bounds.build(NAMES, (0.2, 3.0), floor={"d": 0.5})


def test_diagnostics():
    # n = (100, 300, 0), m = (0.2, 1.5, 1): n·m = 20, 450 of 470; n·m² = 4 + 675 = 679.
    # w = (0.2, 0.8, 0): 1/(0.04 + 0.64) = 1.470588.
    found = diagnose(
        np.array([0.2, 0.8, 0]),
        np.array([0.2, 1.5, 1.0]),
        np.array([100.0, 300.0, 0.0]),
        Bounds.build(NAMES, (0.2, 3.0), pinned=["c"]),
    )
    assert found.effective_domains == pytest.approx(1.470588, abs=1e-6)
    assert found.effective_tokens == pytest.approx(470**2 / (400 * 679), rel=1e-14)
    assert found.clip_rate == 0.5


def test_diagnostics_of_nothing():
    zeros, ones = np.zeros(3), np.ones(3)
    found = diagnose(zeros, ones, zeros, Bounds.build(NAMES, (0.2, 3.0)))
    assert (found.effective_domains, found.clip_rate) == (0, 0)
    assert found.effective_tokens == 1


def test_free_range_is_the_formula_itself():
    # Nothing clipped: Σ w_d·L_d over domain means equals Σ share·m·L.
    rng = np.random.default_rng(2)
    w, share, loss = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3)), rng.uniform(1, 9, 3)
    m = scale(w, share, objective="domain_mean", clip=FREE)
    assert share @ (m * loss) == pytest.approx(w @ loss, rel=1e-14)
