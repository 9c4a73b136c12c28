"""Weights → multipliers: the sum rule, the bounds, and exact ones."""

import math

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
    assert scale([0.1, 0.9], [0.5, 0.5], clip=(1.0, 1.0)).tolist() == [1, 1]


# -- properties ----------------------------------------------------------------------------------


@st.composite
def cases(draw, largest=12):
    domains = draw(st.integers(1, largest))
    row = st.lists(st.floats(0, 1), min_size=domains, max_size=domains)
    flags = st.lists(st.booleans(), min_size=domains, max_size=domains)
    share = np.array(draw(row)) ** 4  # also very rare domains
    share = share / share.sum() if share.sum() > 0 else np.full(domains, 1 / domains)
    active = np.array(draw(flags))
    weights = np.where(active, np.array(draw(row)) ** 8, 0)
    if weights.sum() > 0:
        weights /= weights.sum()
    clip = (draw(st.floats(0, 1)), draw(st.floats(1, 50)))
    floor = {f"d{i}": f for i, f in enumerate(draw(row)) if f > 0.7}
    objective = draw(st.sampled_from(["token_share", "domain_mean"]))
    return weights, active, share, clip, floor, objective


@settings(max_examples=150)
@given(case=cases())
@example(
    case=(  # a subnormal share
        np.array([0.5, 0.5]),
        np.array([True, True]),
        np.array([1.0, 5e-324]),
        (0.2, 3.0),
        {},
        "domain_mean",
    )
)
def test_the_sum_is_one_and_the_bounds_hold(case):
    weights, active, share, clip, floor, objective = case
    names = tuple(f"d{i}" for i in range(len(share)))
    bounds = Bounds.build(names, clip, floor=floor)
    m = multipliers(weights, active, share, bounds, objective)
    assert np.isfinite(m).all()
    assert abs(math.fsum(share * m) - math.fsum(share)) <= 1e-12
    assert (bounds.low <= m).all()
    assert (m <= bounds.high).all()
    assert (m[~active] == 1).all()


@settings(max_examples=60)
@given(case=cases())
def test_more_weight_is_never_a_smaller_multiplier(case):
    weights, active, share, clip, _, _ = case
    names = tuple(f"d{i}" for i in range(len(share)))
    m = multipliers(weights, active, share, Bounds.build(names, clip), "token_share")
    order = np.argsort(weights[active])
    assert (np.diff(m[active][order]) >= 0).all()


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
    _, active, share, clip, floor, _ = case
    names = tuple(f"d{i}" for i in range(len(share)))
    weights = np.where(active, 1 / max(active.sum(), 1), 0)
    m = multipliers(weights, active, share, Bounds.build(names, clip, floor=floor), "token_share")
    assert (m == 1).all()


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
    ],
)
def test_bad_options_name_the_key(given_options, key):
    with pytest.raises(ConfigError, match=rf"^{key}"):
        parse(MultiplierOptions, given_options, "reweight")


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
