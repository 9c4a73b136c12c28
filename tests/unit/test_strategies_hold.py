"""``hold`` by hand, against a model that answers to its share, and what it refuses; ``ramp``."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from domain_pretrain.errors import ConfigError
from domain_pretrain.strategies import Course, Observation, Reweighter, build
from domain_pretrain.strategies.section import StepRule

NAMES = ("general", "code", "maths")
SHARE = np.array([0.2, 0.6, 0.2])
YES = np.ones(3, bool)


def seen(course: Course, **changes: Any) -> Observation:
    loss = np.array([2.0, 1.0, 3.0])
    made = Observation(NAMES, 5, YES, loss, YES, loss, 100 * loss, SHARE, course, 100 * SHARE)
    return replace(made, **changes)


def held(**options: Any) -> Any:
    given = {"domains": "general", "epsilon": 0.1, "scale": 0.05, **options}
    return build("hold", given, NAMES)


def valid(general: float, **course: Any) -> Course:
    return Course(valid={"general": general, "code": 9.0}, **course)


def logit(part: float) -> float:
    return math.log(part / (1 - part))


def test_one_move_by_hand() -> None:
    """base 2.0; the rate falls from its peak, so the warm-up is over; then d = 0.25 with half of
    A = 0.2 left: goal 0.1 + 0.1, e = 0.05/0.05 = 1, I = logit(0.2) + 0.15, ρ = sigmoid(I + 1)."""
    rule = held(anneal=0.2)
    weights, state = rule(seen(valid(2.0, lr=1.0, last_lr=0.2)), {})
    np.testing.assert_allclose(weights, SHARE, rtol=1e-14)  # where the blend has it
    weights, state = rule(seen(valid(2.25, lr=0.6, last_lr=0.2)), state)
    assert (state["risen"], state["goal"]) == (pytest.approx(0.25), pytest.approx(0.2))
    share = 1 / (1 + math.exp(-(logit(0.2) + 1.15)))
    # The others keep their 3 : 1.
    expected = [share, 0.75 * (1 - share), 0.25 * (1 - share)]
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    # Between evaluations nothing moves.
    again, after = rule(seen(Course(lr=0.5, last_lr=0.2)), state)
    np.testing.assert_array_equal(again, weights)
    assert after["integral"] == state["integral"] == pytest.approx(logit(0.2) + 0.15)


def test_epsilon_may_be_a_part_of_the_bases_loss() -> None:
    """4 % of 2.5, the mean of 2.0 and 3.0, are the same as 0.1 nats."""
    names, states = ["general", "maths"], []
    for epsilon in (0.1, "4%"):
        rule, state = held(domains=names, epsilon=epsilon, anneal=0.05), {}
        for general in (2.0, 2.3, 2.2):
            course = Course(
                valid={"general": general, "maths": 3.0}, errors=dict.fromkeys(names, 0.1)
            )
            _, state = rule(seen(course), state)
        states.append(state)
    assert states[1]["epsilon"] == states[1]["goal"] == pytest.approx(0.1)
    arrays = {key: pytest.approx(states[0][key], nan_ok=True) for key in ("base", "held")}
    assert states[0] == {**states[1], **arrays}
    options = rule.options
    (found,) = options.findings(state | {"vague": 1}, 7)
    assert "epsilon is 0.1" in found.message
    assert not list(options.doubts(10))  # not known in nats yet
    said = options.summary(state, NAMES, Course(valid={"general": 2.2, "maths": 3.0}))
    assert said is not None
    assert "general and maths is base + 0.100 nats, epsilon 0.1;" in said


@pytest.mark.parametrize("epsilon", [0, -0.1, math.nan, True, "1", "0%", "-1%", "one %", None, [1]])
def test_epsilon_is_an_amount(epsilon: Any) -> None:
    with pytest.raises(ConfigError, match=r"epsilon: give nats above 0, or a percentage"):
        held(epsilon=epsilon)


def test_nothing_moves_while_the_learning_rate_rises() -> None:
    rule, state = held(), {}
    for lr, loss in ((0.25, 2.0), (0.5, 2.9), (1.0, 2.9)):
        weights, state = rule(seen(valid(loss, lr=lr)), state)
        np.testing.assert_allclose(weights, SHARE, rtol=1e-14)
    weights, state = rule(seen(valid(2.9)), state)
    assert weights[0] > 0.8


def test_several_held_domains_are_judged_by_their_mean() -> None:
    rule = held(domains=["general", "code"])
    _, state = rule(seen(Course(valid={"general": 2.0, "code": 1.0})), {})
    # One of them alone says nothing.
    _, state = rule(seen(Course(valid={"general": 5.0})), state)
    assert "risen" not in state
    _, state = rule(seen(Course(valid={"general": 2.3, "code": 1.1})), state)
    assert state["risen"] == pytest.approx(0.2)


def test_it_does_not_wind_up_at_a_bound() -> None:
    rule = held()
    _, state = rule(seen(valid(2.0)), {})
    for _ in range(50):
        weights, state = rule(seen(valid(4.0)), state)
    assert weights[0] == pytest.approx(0.9)
    # As soon as the loss is on its goal again, the share is what it was before the excursion.
    weights, state = rule(seen(valid(2.1)), state)
    assert weights[0] == pytest.approx(0.2)


def run(epsilon: float, sensitivity: float, **options: Any) -> tuple[list[float], dict[str, Any]]:
    """A model whose general loss goes, in a few evaluations, to 0.6·(1 − ρ)·sensitivity."""
    rule, state, loss, losses = held(epsilon=epsilon, **options), {}, 2.0, []
    for _ in range(60):
        weights, state = rule(seen(valid(loss)), state)
        loss += 0.3 * (2.0 + 0.6 * sensitivity * (1 - weights[0]) - loss)
        losses.append(loss - 2.0)
    return losses, state


@pytest.mark.parametrize("epsilon", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("sensitivity", [0.8, 1.0, 1.5])
def test_it_lands_where_it_is_told_to(epsilon: float, sensitivity: float) -> None:
    losses, _ = run(epsilon, sensitivity)
    assert losses[-1] == pytest.approx(epsilon, abs=max(0.1 * epsilon, 0.01))


def test_a_goal_out_of_reach_or_idle_is_told_once() -> None:
    options = held().options
    for loss, severity, words in ((3.0, "warning", "out of reach"), (2.0, "info", "leaves room")):
        rule = held(epsilon=0.1 if loss > 2 else 0.5)
        _, state = rule(seen(valid(2.0)), {})
        told = []
        for iteration in range(9):
            _, state = rule(seen(valid(loss)), state)
            told += rule.options.findings(state, iteration)
            # Nothing is known of a loss that is not finite, and nothing is told of it again.
            _, state = rule(seen(Course(valid={"code": 9.0})), state)
            told += rule.options.findings(state, iteration)
        (finding,) = told
        assert (finding.rule, finding.domain, finding.severity) == ("hold", "general", severity)
        assert words in finding.cause
        assert finding.evidence["risen"] == pytest.approx(loss - 2.0)
    assert list(options.findings({}, 1)) == []


def test_the_constant_share_that_it_amounts_to() -> None:
    _, state = run(0.2, 1.0)
    assert state["held_tokens"] / state["all_tokens"] == pytest.approx(0.2), "as it was sampled"
    options = held(epsilon=0.2).options
    had = "general had 0.200 of the tokens: the constant share to try without hold"
    said = options.summary(state, NAMES, Course())
    assert said is not None and said.startswith(f"hold: {had}")
    now = Course(valid={"general": 1.969}, errors={"general": 0.004})
    said = options.summary(state, NAMES, now)
    assert said is not None
    assert said.startswith(f"hold: general is base − 0.031 ± 0.004 nats, epsilon 0.2; {had}")
    assert options.summary({}, NAMES, now) is None


def test_the_share_that_the_tokens_had() -> None:
    """By sampling, what came in each step; by weights, what it counted for, which is ρ but in the
    first step, whatever the sampling is."""
    tokens = 1000 * SHARE
    for how, expected in (({"share": SHARE, "actuator": "sampling"}, 0.2), ({}, 0.875)):
        rule = reweighter({**SECTION, "low": 0.875, "high": 0.9, "domains": ["general"]}, **how)
        memory = rule.start()
        for loss in [2.0] * 101:
            memory = rule.advance(
                memory, 2.0 * tokens, tokens, batch_tokens=1000, course=valid(loss)
            )
        had = memory.state["held_tokens"] / memory.state["all_tokens"]
        assert had == pytest.approx(expected, abs=0.01)


def test_other_domains_that_are_held_from_a_resume_on() -> None:
    """The base is of the model, and stays; the account and the controller are of general."""
    _, state = run(0.2, 1.0)
    rule = held(domains="maths")
    weights, state = rule(seen(Course(valid={"maths": 3.0})), state)
    np.testing.assert_allclose(weights, SHARE, rtol=1e-14)  # as the blend has it
    assert state["base"][0] == 2.0
    assert (state["steps"], state["held_tokens"], state["all_tokens"]) == (1, 20.0, 100.0)


def test_a_set_that_tells_too_little_is_told_of_once() -> None:
    """ε 0.1 with a rise known to ± 0.02: 2² times as many samples would know it to a tenth."""
    rule, state, told = held(), {}, []
    # Of a rise far above ε, a tenth of it is enough.
    for loss, error in ((2.0, None), (2.3, 0.02), (2.1, 0.02), (2.1, 0.02), (2.1, 0.001)):
        course = valid(loss, errors={} if error is None else {"general": error})
        _, state = rule(seen(course), state)
        told.append(list(rule.options.findings(state, 7)))
    assert [len(one) for one in told] == [0, 0, 1, 0, 0]
    ((finding,),) = [one for one in told if one]
    assert finding.message == "general is base + 0.100 ± 0.020 nats, and epsilon is 0.1"
    assert "evaluate.samples some 4 times as many" in finding.advice
    assert finding.evidence["error"] == 0.02


def test_an_error_is_of_its_own_evaluation() -> None:
    """Where nothing is known of a rise, nothing is said of it: not what an earlier one's was."""
    rule = held()
    _, state = rule(seen(valid(2.0)), {})
    _, state = rule(seen(valid(2.1, errors={"general": 0.02})), state)
    assert len(list(rule.options.findings(state, 1))) == 1
    _, state = rule(seen(valid(2.1)), state)
    assert "error" not in state
    assert not list(rule.options.findings(state, 2))


def test_the_error_of_several_held_domains() -> None:
    """Of a mean of two: √(0.3² + 0.4²)/2; where one is not known, none."""
    rule = held(domains=["general", "code"])
    errors = {"general": 0.03, "code": 0.04}
    _, state = rule(seen(Course(valid={"general": 2.0, "code": 1.0})), {})
    _, now = rule(seen(Course(valid={"general": 2.1, "code": 1.1}, errors=errors)), state)
    assert now["error"] == pytest.approx(0.025)
    lone = Course(valid={"general": 2.1, "code": 1.1}, errors={"general": 0.03})
    assert "error" not in rule(seen(lone), state)[1]
    # It decides nothing.
    assert now["share"] == rule(seen(lone), state)[1]["share"]


# --- with data that are not enough for every share ----------------------------------------------


def test_data_that_are_not_enough_bound_the_share_and_it_does_not_wind_up() -> None:
    """General's data allow 0.4: the integral stays within, so that the share leaves it at once."""
    most = {"general": 0.4, "code": 1.0, "maths": 1.0}
    rule, told = held(), []
    _, state = rule(seen(valid(2.0)), {})
    for iteration in range(9):
        weights, state = rule(seen(valid(4.0, most=most)), state)
        assert weights[0] == pytest.approx(0.4)
        told += rule.options.findings(state, iteration)
    (finding,) = told
    assert "a share of 0.40 does not bring it back, which is all that mix.dynamic.epo" in (
        finding.message
    )
    assert "more epochs" in finding.advice
    weights, state = rule(seen(valid(2.1, most=most)), state)
    assert weights[0] <= 0.2 + 1e-9
    # The data allow more again: the options' bound is in force.
    _, state = rule(seen(valid(9.0)), state)
    assert (state["share"], state["limited"]) == (0.9, False)


def test_others_whose_data_are_not_enough_leave_the_rest_to_what_is_held() -> None:
    most = {"general": 1.0, "code": 0.2, "maths": 0.1}
    rule, told = held(), []
    _, state = rule(seen(valid(2.0)), {})
    for iteration in range(9):
        weights, state = rule(seen(valid(1.0, most=most)), state)
        told += rule.options.findings(state, iteration)
    np.testing.assert_allclose(weights, [0.7, 0.2, 0.1], rtol=1e-12)
    (finding,) = told
    assert (finding.severity, "the others no more" in finding.message) == ("info", True)
    assert state["share"] == pytest.approx(0.7)


def test_what_a_domain_cannot_give_comes_from_its_own_side() -> None:
    """0.8 for code and maths, 3 : 1; code has 0.3 left, so maths gives 0.5, and general's stays."""
    rule = held()
    _, state = rule(seen(valid(2.0)), {})
    most = {"general": 1.0, "code": 0.3, "maths": 1.0}
    weights, _ = rule(seen(Course(most=most)), state)
    np.testing.assert_allclose(weights, [0.2, 0.3, 0.5], rtol=1e-12)


def test_data_that_are_used_up() -> None:
    rule = held()
    _, state = rule(seen(valid(2.0)), {})
    most = {"general": 0.0, "code": 0.6, "maths": 0.5}
    weights, state = rule(seen(valid(3.0, most=most)), state)
    assert np.isfinite(weights).all() and weights.sum() == pytest.approx(1)
    assert weights[0] == 0.0
    assert math.isfinite(state["integral"])


SECTION = {"strategy": "hold", "domains": ["general"], "epsilon": 0.1}
TOLD = frozenset({"valid", "lr", "progress"})


def reweighter(section: dict[str, Any], offers: frozenset[str] = TOLD, **how: Any) -> Reweighter:
    return Reweighter.build(StepRule(**section), NAMES, offers=offers, **how)


def test_multipliers_make_the_tokens_shares_what_they_are_to_be() -> None:
    """``Σ share·m = 1`` with ``share·m = ρ`` for the held domain, by losses and by sampling."""
    for how in ({}, {"share": SHARE, "actuator": "sampling"}):
        rule = reweighter(SECTION, **how)
        memory = rule.start()
        tokens = 1000 * SHARE
        for loss in (2.0, 2.0, 2.3):
            memory = rule.advance(
                memory, 2.0 * tokens, tokens, batch_tokens=1000, course=valid(loss)
            )
        share = memory.state["share"]
        assert share > 0.9 * 0.9
        np.testing.assert_allclose(
            SHARE * memory.multipliers, [share, 0.75 * (1 - share), 0.25 * (1 - share)], rtol=1e-9
        )
        again = rule.load(rule.dump(memory))
        np.testing.assert_array_equal(again.state["base"][:2], memory.state["base"][:2])
        np.testing.assert_array_equal(again.multipliers, memory.multipliers)


@pytest.mark.parametrize(
    ("section", "offers", "message"),
    [
        ({"domains": ["genral"]}, TOLD, "no domain 'genral'; did you mean 'general'"),
        ({"domains": list(NAMES)}, TOLD, "names all domains"),
        ({"low": 0.9}, TOLD, r"low 0\.9 should be less than high 0\.9"),
        ({"clip": [0.5, 2.0]}, TOLD, r"reweight\.clip has no effect with strategy hold"),
        ({"objective": "token_share"}, TOLD, r"reweight\.objective has no effect"),
        ({"training_base": {"code": 2.0}}, TOLD, r"training_base: there is no domain 'code'"),
        ({"training_base": {}}, TOLD, "training_base: no value for domain 'general'"),
        ({"interval": 5}, TOLD, r"interval has no effect without training_base"),
        ({}, frozenset({"lr"}), r"hold needs the losses of a fixed .*evaluate\.samples"),
        ({}, frozenset({"valid"}), "hold needs the learning rate"),
    ],
)
def test_what_it_refuses(section: dict[str, Any], offers: frozenset[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reweighter({**SECTION, **section}, offers)


def test_training_losses_stand_in_for_validation_losses() -> None:
    """base 2.0, the average now 2.25: d = 0.25, e = (0.25 − 0.1)/0.05 = 3, every second step."""
    rule, state = held(training_base={"general": 2.0}, interval=2), {}
    course = Course(valid={"general": 9.0})  # of another text: not looked at
    now = np.array([2.25, 1.0, 3.0])
    weights, state = rule(seen(course, loss=now), state)
    np.testing.assert_allclose(weights, SHARE, rtol=1e-14)
    assert not state["judged"]
    weights, state = rule(seen(course, loss=now), state)
    assert state["judged"]
    assert state["risen"] == pytest.approx(0.25)
    assert weights[0] == pytest.approx(1 / (1 + math.exp(-(logit(0.2) + 0.15 * 3 + 3))))
    assert "base" not in state  # of another text, should validation losses take over
    assert rule.options.bases(state, NAMES) == {}
    said = rule.options.summary(state, NAMES, Course())
    assert said is not None
    assert "general's training loss is base + 0.250 nats, epsilon 0.1;" in said
    (doubt,) = rule.options.doubts(0)
    assert "on the very text" in doubt


def test_training_losses_need_no_validation_set() -> None:
    section = {**SECTION, "training_base": {"general": 2.0}}
    reweighter(section, frozenset({"lr"}))
    with pytest.raises(ConfigError, match="hold needs the learning rate"):
        reweighter(section, frozenset())


# --- ramp ----------------------------------------------------------------------------------------

ENDS = {"start": {"general": 0, "code": 3, "maths": 1}, "end": {n: 1 for n in NAMES}}


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, [0, 3 / 4, 1 / 4]),
        (0.25, [1 / 6, (3 / 4 + 1 / 3) / 2, (1 / 4 + 1 / 3) / 2]),
        (0.5, [1 / 3] * 3),
        (0.9, [1 / 3] * 3),
    ],
)
def test_a_ramp(progress: float, expected: list[float]) -> None:
    rule = build("ramp", {**ENDS, "until": 0.5}, NAMES)
    weights, state = rule(seen(Course(progress=progress)), {})
    np.testing.assert_allclose(weights, expected, rtol=1e-14)
    assert state == {}


def test_a_ramp_needs_both_ends_and_a_known_end_of_the_run() -> None:
    with pytest.raises(ConfigError, match="no value for domain 'maths'"):
        build("ramp", {**ENDS, "end": {"general": 1, "code": 1}}, NAMES)
    with pytest.raises(ConfigError, match="ramp needs how far the run is"):
        reweighter({"strategy": "ramp", **ENDS}, frozenset())
