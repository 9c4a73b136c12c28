"""The whole way of a step: what is in force when, odd domains, resume."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain_pretrain.errors import ConfigError
from domain_pretrain.strategies import Reweighter
from domain_pretrain.strategies.section import parse_reweight

NAMES = ("a", "b", "c")
NEEDED = {
    "static": {"weights": {"a": 1, "b": 2, "c": 3}},
    "excess": {"reference": {"a": 1, "b": 1, "c": 1}},
    "velocity": {"target": {"a": 1, "b": 1, "c": 1}},
    "learnability": {"ignore_steps": 1, "fit_steps": 2},
}
RULES = (
    *("uniform", "linupper", "quadratic", "extremes", "group_dro", "bandit"),
    *NEEDED,
)


def reweighter(
    strategy="linupper", names=NAMES, pinned=(), floor=None, horizon=1e3, share=None, **options
):
    given_options = {"strategy": strategy, "warmup_steps": 0, **options}
    given_options.update(NEEDED.get(strategy, {}))
    section = parse_reweight(given_options)
    return Reweighter.build(
        section, names, horizon=horizon, pinned=pinned, floor=floor, share=share
    )


ALL = {name: reweighter(name, warmup_steps=1) for name in RULES}


def run(rule, steps, memory=None):
    """steps: (losses, tokens) each."""
    memory = memory or rule.start()
    for losses, tokens in steps:
        loss_sum = [loss * n if n else 0.0 for loss, n in zip(losses, tokens, strict=True)]
        sums = np.array(loss_sum, float), np.array(tokens, float)
        memory = rule.advance(memory, *sums, batch_tokens=0)
    return memory


def assert_same(one, other):
    assert one.step == other.step
    np.testing.assert_array_equal(one.multipliers, other.multipliers)
    np.testing.assert_array_equal(one.weights, other.weights)
    assert one.ema.dump(NAMES) == other.ema.dump(NAMES)


def test_by_hand():
    # Losses 1, 3, 5: h = −1, 0, 1, scores 0, 1, 1; no uniform part: w ∝ 1, e, e.
    # Shares 1/2, 1/4, 1/4: c·(1/2 + e/2) = 1 → m = 2/(1 + e) and e times that.
    memory = run(reweighter(uniform_part=0), [([1, 3, 5], [20, 10, 10])])
    m = 2 / (1 + math.e)
    np.testing.assert_allclose(memory.multipliers, [m, math.e * m, math.e * m], rtol=1e-14)


def test_ones_until_the_warm_up_ends():
    rule = reweighter(warmup_steps=3)
    memory, in_force = rule.start(), []
    for _ in range(5):
        in_force.append(memory.multipliers.tolist() == [1, 1, 1])
        memory = run(rule, [([1, 3, 5], [10, 10, 10])], memory)
    # The first three steps train with ones; the fourth has weights, made of those three.
    assert in_force == [True, True, True, False, False]


@pytest.mark.parametrize("warmup_steps", [1, 3])
def test_bandit_counts_from_one_at_its_first_weights(warmup_steps):
    # Rewards 2 and 6: p = 1/4, 3/4. t = 1: √(ln 2 / 2) > 1/2, so ε = 1/2: equal weights.
    # t = 2: ε = √(ln 2 / 4), p_a = (1 − 2·ε)/4 + ε = 1/4 + ε/2.
    rule = reweighter("bandit", names=("a", "b"), warmup_steps=warmup_steps, uniform_part=0)
    step = ([math.log(2), math.log(6)], [10, 10])
    memory = run(rule, [step] * warmup_steps)
    assert memory.weights.tolist() == [0.5, 0.5]
    memory = run(rule, [step], memory)
    assert memory.weights[0] == pytest.approx(0.25 + math.sqrt(math.log(2) / 4) / 2, rel=1e-13)


def test_pinned_domains_have_one_and_no_say():
    memory = run(reweighter(pinned=["a"], uniform_part=0), [([1, 3, 5], [20, 10, 10])])
    # Without a: losses 3, 5, scores 0, 1; w = 1 : e on equal shares: m = 2/(1 + e), 2e/(1 + e).
    np.testing.assert_allclose(
        memory.multipliers, [1, 2 / (1 + math.e), 2 * math.e / (1 + math.e)], rtol=1e-14
    )
    assert memory.multipliers[0] == 1
    assert memory.weights[0] == 0


def test_a_domain_never_seen_has_one_until_it_is():
    rule = reweighter()
    memory = run(rule, [([1, 3, 9], [20, 10, 0])] * 4)
    assert memory.multipliers[2] == 1
    assert memory.weights[2] == 0
    memory = run(rule, [([1, 3, 9], [20, 10, 1])], memory)
    assert memory.multipliers[2] != 1
    later = run(rule, [([1, 3, 9], [20, 10, 0])], memory)  # absent again: its loss is remembered
    assert later.ema.loss[2] == 9
    # The others' losses stay 1 and 3 but for the rounding of their sums and counts.
    assert later.weights[2] == pytest.approx(memory.weights[2], rel=1e-13)


@pytest.mark.parametrize("objective", ["token_share", "domain_mean"])
def test_the_multipliers_do_not_jump_however_long_a_domain_is_absent(objective):
    # 30 of 3·H = 48 tokens: c's share nearly halves in a step, from 1/7 to below 1e-12 in 42 steps
    # and to 0 in 1,200.
    rule = reweighter(objective=objective, horizon=16)
    memory = run(rule, [([2, 4, 9], [20, 10, 5])] * 3)
    for _ in range(1300):
        before, memory = memory, run(rule, [([2, 4, 9], [20, 10, 0])], memory)
        m, share = memory.multipliers, memory.ema.share
        # c takes share·(m − 1) out of the sum, at most 2·share, before and after. So much do a and
        # b take over together, who have 2/7 of the tokens or more: 2·(1 + 1)·7/2 = 14 of its share.
        assert abs(m - before.multipliers)[:2].max() <= 14 * before.ema.share[2] + 1e-9
        assert abs(share @ m - 1) <= 1e-12
    assert share[2] == 0
    # linupper: scores 0, 4/7, 1, with the uniform part; a and b share the sum, 2/3 and 1/3 of it.
    w = 0.99 * np.exp([0, 4 / 7, 1]) / np.exp([0, 4 / 7, 1]).sum() + 0.01 / 3
    if objective == "domain_mean":
        expected = [1.5 * w[0] / (w[0] + w[1]), 3 * w[1] / (w[0] + w[1]), 3]
    else:
        expected = w / (2 / 3 * w[0] + 1 / 3 * w[1])
    np.testing.assert_allclose(m, expected, rtol=1e-9)


def test_a_domain_with_a_nan_keeps_its_last_estimate():
    rule = reweighter()
    memory = run(rule, [([1, 3, 5], [10, 10, 10])] * 2)
    after = run(rule, [([1, 3, math.nan], [10, 10, 10])], memory)
    assert after.ema.loss[2] == memory.ema.loss[2]
    # The others' losses and shares are the same but for the rounding of their sums and counts.
    np.testing.assert_allclose(after.multipliers, memory.multipliers, rtol=1e-13)
    never = run(rule, [([1, 3, math.inf], [10, 10, 10])] * 2)
    assert never.multipliers[2] == 1
    assert abs(never.ema.share @ never.multipliers - 1) <= 1e-12


def test_one_domain_is_left_alone():
    memory = run(reweighter(names=("a",)), [([2.0], [10])] * 3)
    assert memory.multipliers.tolist() == [1]


def test_no_tokens_at_all():
    memory = run(reweighter(), [([0, 0, 0], [0, 0, 0])] * 2)
    assert memory.multipliers.tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", [name for name in RULES if name != "static"])
def test_equal_losses_leave_the_host_as_it_is(name):
    # A loss that is a power of two: whatever is rounded in a sum of tokens is rounded alike in the
    # sum of losses, so that equal losses are equal after the division too.
    memory = run(ALL[name], [([2.0, 2.0, 2.0], [8, 5, 3])] * 6)
    assert memory.multipliers.tolist() == [1, 1, 1]


def test_a_thousand_domains():
    names = tuple(f"d{i}" for i in range(1000))
    rng = np.random.default_rng(0)
    memory = run(
        reweighter(names=names),
        [(rng.uniform(1, 9, 1000), rng.integers(0, 5, 1000)) for _ in range(5)],
    )
    assert np.isfinite(memory.multipliers).all()
    assert abs(math.fsum(memory.ema.share * memory.multipliers) - 1) <= 1e-12
    assert (memory.multipliers[~memory.ema.seen] == 1).all()


losses = st.floats(0, 30) | st.sampled_from([math.nan, math.inf])
tokens = st.sampled_from([0.0, 0.0, 1.0, 17.0, 5e5])
steps = st.lists(
    st.tuples(st.tuples(losses, losses, losses), st.tuples(tokens, tokens, tokens)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60)
@given(name=st.sampled_from(RULES), history=steps)
def test_the_sum_rule_and_the_bounds_at_every_step(name, history):
    rule = ALL[name]
    memory = rule.start()
    for step in history:
        memory = run(rule, [step], memory)
        m, share = memory.multipliers, memory.ema.share
        assert np.isfinite(m).all()
        assert (m >= 0.2).all()
        assert (m <= 3.0).all()
        assert abs(share @ m - share.sum()) <= 1e-12
        assert (m[~memory.ema.seen] == 1).all()


@settings(max_examples=40)
@given(name=st.sampled_from(RULES), history=steps, kill=st.integers(0, 6))
def test_resume_is_bit_identical(name, history, kill):
    rule = ALL[name]
    unbroken = run(rule, history)
    half = run(rule, history[:kill])
    saved = json.loads(json.dumps(rule.dump(half)))
    back = rule.load(saved)
    assert_same(back, half)
    assert_same(run(rule, history[kill:], back), unbroken)


def moving(t):
    return [1 + 4 / t, 3 + 2 / t, 5 + 1 / t**0.3], [20, 10, 5 * (t % 2)]


@pytest.mark.parametrize("name", RULES)
def test_another_order_of_domains_keeps_everything(name):
    rule, order = ALL[name], [2, 0, 1]
    other = reweighter(name, names=tuple(NAMES[i] for i in order), warmup_steps=1)
    memory = run(rule, [moving(t) for t in range(1, 9)])
    back = other.load(rule.dump(memory))
    np.testing.assert_array_equal(back.multipliers, memory.multipliers[order])
    loss, count = moving(9)
    expected = run(rule, [(loss, count)], memory).multipliers[order]
    found = run(other, [([loss[i] for i in order], [count[i] for i in order])], back)
    np.testing.assert_allclose(found.multipliers, expected, rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in RULES if name not in NEEDED])
def test_another_list_of_domains(name):
    memory = run(ALL[name], [moving(t) for t in range(1, 9)])
    other = reweighter(name, names=("c", "new", "a"), warmup_steps=1)
    back = other.load(ALL[name].dump(memory))
    assert back.multipliers.tolist() == [1, 1, 1]
    assert back.step == 8
    np.testing.assert_array_equal(back.ema.loss[[0, 2]], memory.ema.loss[[2, 0]])
    after = run(other, [([5, 2, 1], [10, 10, 10])], back)
    assert abs(after.ema.share @ after.multipliers - 1) <= 1e-12


def test_another_strategy_takes_the_losses_only():
    memory = run(ALL["group_dro"], [moving(t) for t in range(1, 9)])
    saved = ALL["group_dro"].dump(memory)
    assert set(saved["state"]) == {"weights"}
    back = ALL["bandit"].load(saved)
    assert back.state == {}
    after = run(ALL["bandit"], [([5, 2, 1], [10, 10, 0])], back)  # c is absent in its first step
    assert np.isfinite(after.multipliers).all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),  # as they were
        ({"strategy": "uniform"}, [1, 1, 1]),
        ({"pinned": ("b",)}, "within"),
        ({"clip": (0.9, 1.1)}, "within"),
        ({"floor": {"a": 0.95}}, "within"),
        ({"warmup_steps": 200}, [1, 1, 1]),
        ({"share": np.array([0.8, 0.1, 0.1])}, "within"),
    ],
)
def test_what_was_saved_with_other_settings_keeps_to_these(changes, expected):
    """Multipliers are in force before a step is folded in: for the bounds, the domains and the
    blend of now."""
    memory = run(ALL["linupper"], [moving(t) for t in range(1, 9)])
    assert abs(memory.multipliers - 1).min() > 0.1
    rule = reweighter(**{"strategy": "linupper", "warmup_steps": 1, **changes})
    back = rule.load(json.loads(json.dumps(ALL["linupper"].dump(memory))))
    if expected is None:
        expected = memory.multipliers.tolist()
    if expected != "within":
        assert back.multipliers.tolist() == expected
        return
    share = changes.get("share", back.ema.share)
    assert abs(share @ back.multipliers - 1) <= 1e-12
    assert (rule.bounds.low <= back.multipliers).all()
    assert (back.multipliers <= rule.bounds.high).all()
    assert (back.multipliers != 1).any()


def test_a_domain_that_is_no_longer_pinned_has_no_weight_yet():
    rule = reweighter(pinned=("b",))
    memory = run(rule, [moving(t) for t in range(1, 9)])
    assert (memory.multipliers != 1).any()
    assert reweighter().load(rule.dump(memory)).multipliers.tolist() == [1, 1, 1]


def test_the_checkpoint_holds_primitives_only():
    memory = run(ALL["velocity"], [moving(t) for t in range(1, 4)])
    saved = ALL["velocity"].dump(memory)
    assert json.loads(json.dumps(saved, allow_nan=False)) == saved


def test_the_horizon_of_the_options_wins():
    assert reweighter(horizon=5.0).horizon == 5
    assert reweighter(horizon=5.0, ema_tokens=7.0).horizon == 7


def test_errors_at_start_up_name_the_key():
    with pytest.raises(ConfigError, match=r"^reweight\.temprature: unknown key; did you mean"):
        reweighter(temprature=2.0)
    with pytest.raises(ConfigError, match=r"^reweight\.temperature: "):
        reweighter(temperature=0)
    with pytest.raises(ConfigError, match=r"^reweight\.strategy: unknown strategy 'linuper'"):
        reweighter("linuper")
    with pytest.raises(ConfigError, match=r"^reweight\.ema_tokens: "):
        reweighter(ema_tokens=0)
    with pytest.raises(ConfigError, match="did you mean 'uniform_part'"):
        reweighter(unifrom_part=0.1)
