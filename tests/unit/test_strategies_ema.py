"""The memory of losses and shares, and its form in a checkpoint."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain_pretrain.rules import state
from domain_pretrain.stats import SCALE, Column, DomainStats
from domain_pretrain.strategies.ema import Ema, default_horizon, reduced

NAN = math.nan


def fold(ema, loss_sum, tokens, horizon):
    return ema.fold(np.array(loss_sum, float), np.array(tokens, float), horizon)


def test_a_long_horizon_is_the_mean_over_all_tokens():
    # (20, 10) and (5, 1): 25/11, not the mean of means 3.5.
    ema = fold(fold(Ema.empty(1), [20], [10], 1e18), [5], [1], 1e18)
    assert ema.loss[0] == pytest.approx(25 / 11, rel=1e-15)


def test_by_hand():
    # Horizon 10/ln 2: 10 tokens halve. 10 tokens of loss 4, then 10 of loss 1:
    # (20 + 10)/(5 + 10) = 2. Then 20 tokens of loss 2: (30/4 + 40)/(15/4 + 20) = 2.
    horizon = 10 / math.log(2)
    ema = fold(Ema.empty(1), [40], [10], horizon)
    assert ema.loss[0] == 4
    ema = fold(ema, [10], [10], horizon)
    assert ema.loss[0] == pytest.approx(2, rel=1e-15)
    ema = fold(ema, [40], [20], horizon)
    assert ema.loss[0] == pytest.approx(47.5 / 23.75, rel=1e-15)


def test_an_absent_domain_keeps_its_estimate_bit_for_bit():
    ema = fold(Ema.empty(2), [3, 7], [1, 3], 50)
    for _ in range(2000):
        ema = fold(ema, [5, 0], [2, 0], 50)
    assert ema.loss[1] == 7 / 3
    assert ema.steps.tolist() == [2001, 1]
    assert ema.consumed.tolist() == [4001, 3]


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_what_is_not_finite_is_not_folded_in(bad):
    ema = fold(Ema.empty(2), [3, 7], [1, 3], 50)
    after = fold(ema, [3, bad], [1, 3], 50)
    assert after.loss[1] == 7 / 3
    assert after.loss_tokens[1] == 3  # and its weight against what comes next
    assert after.steps.tolist() == [2, 1]
    assert after.consumed.tolist() == [2, 6]  # the tokens were there
    first = fold(Ema.empty(2), [3, bad], [1, 3], 50)
    assert first.seen.tolist() == [True, False]
    assert np.isnan(first.loss[1])


def test_never_seen_is_nan_and_shares_start_at_zero():
    ema = Ema.empty(2)
    assert np.isnan(ema.loss).all()
    assert ema.share.tolist() == [0, 0]


def test_shares_by_hand():
    # Two domains, horizon 10/ln 2: shares halve every 20 tokens of any domain. (15, 5), then
    # (0, 20): (7.5, 22.5) of 30.
    ema = fold(Ema.empty(2), [1, 1], [15, 5], 10 / math.log(2))
    assert ema.share.tolist() == [0.75, 0.25]
    ema = fold(ema, [0, 1], [0, 20], 10 / math.log(2))
    np.testing.assert_allclose(ema.share, [0.25, 0.75], rtol=1e-14)


def test_default_horizon():
    assert default_horizon(1000, 4) == 16 * 250


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(st.floats(0, 20), st.sampled_from([0.0, 0.5, 1.0, 1e3, 1e9, 1e13])),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([1.0, 1e6, 1e30]),
)
def test_the_estimate_lies_between_the_losses_seen(history, horizon):
    ema = Ema.empty(1)
    for loss, tokens in history:
        ema = fold(ema, [loss * tokens], [tokens], horizon)
    seen = [loss for loss, tokens in history if tokens]
    if not seen:
        assert np.isnan(ema.loss[0])
    else:
        assert min(seen) * (1 - 1e-12) <= ema.loss[0] <= max(seen) * (1 + 1e-12)


# -- DomainStats ---------------------------------------------------------------------------------


def stats(rows):
    """rows: (loss_sum, tokens, samples, sample_loss_sum, nonfinite) per domain."""
    sums = np.zeros((len(rows) + 1, len(Column)), np.int64)
    for i, row in enumerate(rows):
        sums[i] = [round(v * SCALE[c]) for v, c in zip(row, Column, strict=True)]
    return DomainStats(tuple("abcd"[: len(rows)]), sums)


def test_reduced_takes_the_mean_that_was_chosen():
    # b is absent; c has a NaN token. a: token mean 25/11, sample mean 3.5.
    found = stats([(25, 11, 2, 7, 0), (0, 0, 0, 0, 0), (9, 3, 1, 3, 1)])
    loss_sum, tokens = reduced(found)
    np.testing.assert_array_equal(loss_sum, [25, 0, NAN])
    np.testing.assert_array_equal(tokens, [11, 0, 3])
    loss_sum, tokens = reduced(found, "sample")
    np.testing.assert_array_equal(loss_sum, [3.5 * 11, 0, NAN])
    np.testing.assert_array_equal(tokens, [11, 0, 3])


# -- checkpoint form -----------------------------------------------------------------------------

NAMES = ("a", "b", "c")


def test_state_by_name_in_primitives():
    kept = {"q": np.array([0.1, NAN, 0.3]), "m": np.arange(6.0).reshape(3, 2), "count": 7}
    saved = state.dump(kept, NAMES)
    assert saved == {
        "q": {"a": 0.1, "c": 0.3},
        "m": {"a": [0, 1], "b": [2, 3], "c": [4, 5]},
        "count": 7,
    }
    assert json.loads(json.dumps(saved)) == saved
    back = state.load(saved, NAMES)
    assert back["count"] == 7
    np.testing.assert_array_equal(back["q"], kept["q"])
    np.testing.assert_array_equal(back["m"], kept["m"])


def test_state_in_another_order_with_domains_gone_and_new():
    saved = state.dump({"q": np.array([1.0, 2.0, 3.0]), "m": np.arange(6.0).reshape(3, 2)}, NAMES)
    back = state.load(saved, ("new", "c", "a"))
    np.testing.assert_array_equal(back["q"], [NAN, 3, 1])
    np.testing.assert_array_equal(back["m"], [[NAN, NAN], [4, 5], [0, 1]])


def test_state_of_which_nothing_is_known_is_left_out():
    saved = state.dump({"q": np.full(3, NAN)}, NAMES)
    assert saved == {"q": {}}
    assert state.load(saved, NAMES) == {}


@pytest.mark.parametrize("value", [np.zeros(2), {1, 2}, object(), None])
def test_state_that_a_checkpoint_cannot_take(value):
    with pytest.raises(TypeError, match="state 'q' is"):
        state.dump({"q": value}, NAMES)


def test_ema_round_trip():
    ema = fold(Ema.empty(3), [3, 0, 7], [1, 0, 3], 50)
    back = Ema.load(json.loads(json.dumps(ema.dump(NAMES))), NAMES)
    for field in ("loss_sum", "loss_tokens", "share_tokens", "consumed", "steps"):
        np.testing.assert_array_equal(getattr(back, field), getattr(ema, field))
    moved = Ema.load(ema.dump(NAMES), ("c", "new"))
    np.testing.assert_array_equal(moved.loss, [7 / 3, NAN])
    assert moved.seen.tolist() == [True, False]
