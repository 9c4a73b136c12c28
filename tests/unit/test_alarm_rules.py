"""Each alarm finds what it is for, once, and nothing in a run that is as it should be."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from support.made_up_runs import NAMES, MadeUpRun, only

from domain_pretrain.errors import ConfigError
from domain_pretrain.records.events_file import finding_entry
from domain_pretrain.watch import Known, Watch, cause
from domain_pretrain.watch.scores import GRACE, KEPT, Score, Scores
from domain_pretrain.watch.section import Watching
from domain_pretrain.watch.watch import DEFAULT

KNOWN = Known(
    entropy=dict.fromkeys(NAMES, 5.0),
    tokens=dict.fromkeys(NAMES, 1e9),
    documents=dict.fromkeys(NAMES, 1000),
    duplicates=dict.fromkeys(NAMES, 0),
    pinned=frozenset({"general"}),
    shares=lambda first, stop: {"general": 0.64, "code": 0.16, "maths": 0.16, "rare": 0.04},
)
SETTLED = 120  # windows


def told(findings: list[Any]) -> list[tuple[str, str | None]]:
    return [(one.rule, one.domain) for one in findings]


@pytest.mark.parametrize("seed", range(10))
def test_a_clean_run_has_no_finding(seed: int) -> None:
    run = MadeUpRun(Watching(), KNOWN, seed)
    found = []
    for _ in range(6):
        found += run.evaluate(dict.fromkeys(NAMES, 3.0 - run.iteration / 1000))
        found += run.steps(100)
    assert not found


# Spikes, and what is behind them.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", [1, -1])
def test_one_domain_jumps(name: str, way: int) -> None:
    run = MadeUpRun(Watching(), KNOWN)
    run.steps(SETTLED)
    (finding,) = run.step(add={name: 3.0 * way if way > 0 else -2.5})
    assert (finding.rule, finding.domain, finding.iteration) == ("spike", name, SETTLED + 1)
    assert finding.cause == cause.DATA
    assert finding.evidence["direction"] == ("up" if way > 0 else "down")
    assert finding.evidence["iterations"] == [SETTLED + 1, SETTLED + 2]
    assert SETTLED - 3 <= finding.evidence["onset"] <= SETTLED
    assert finding.advice
    assert not run.steps(60), "told once"


def test_onset_is_before_a_slow_rise() -> None:
    """The window in which it begins is not trusted either, though it is no alarm yet."""
    run = MadeUpRun(only("spike"), KNOWN)
    run.steps(SETTLED)
    assert not run.step(add={"general": 0.29})  # 3 to 6 standard deviations
    (finding,) = run.step(add={"general": 2.0})
    assert finding.evidence["onset"] == SETTLED


def test_a_jump_that_stays_is_told_once_more() -> None:
    run = MadeUpRun(only("spike"), KNOWN)
    run.steps(SETTLED)
    first, second = run.steps(60, add={"code": 3.0})
    assert (first.severity, second.severity) == ("warning", "error")
    assert second.iteration == first.iteration + 3
    assert second.evidence["sustained"]
    assert second.evidence["onset"] == first.evidence["onset"]
    assert told(run.steps(5, add={"code": 6.0}))[0] == ("spike", "code"), "cleared in between"


def test_data_that_moved_the_optimizer() -> None:
    run = MadeUpRun(Watching(), KNOWN)
    run.steps(SETTLED)
    (finding,) = run.step(add={"code": 3.0}, grad_norm=10.0)
    assert finding.cause == cause.DATA_MOVED_OPTIMIZER


def test_all_domains_jump() -> None:
    """One finding, and no spike of each."""
    run = MadeUpRun(Watching(), KNOWN)
    run.steps(SETTLED)
    found = run.steps(60, add=dict.fromkeys(NAMES, 2.0), grad_norm=10.0)
    assert told(found) == [("all_moved", None)]
    assert found[0].cause == cause.OPTIMIZER
    assert found[0].evidence["learning_rate"] == 1e-3


def test_what_follows_when_all_have_moved_is_no_news() -> None:
    run = MadeUpRun(only("spike"), KNOWN)
    run.steps(SETTLED)
    assert not run.step(add=dict.fromkeys(NAMES, 2.0))
    assert not run.steps(8)
    assert not run.step(add={"code": 3.0})
    run.steps(16)
    assert told(run.step(add={"code": 3.0})) == [("spike", "code")]


def test_a_little_in_all_domains_hides_no_spike() -> None:
    """Data that moves the optimizer moves the others' losses, too, which in a large batch shows."""
    large: dict[str, Any] = {"samples": dict.fromkeys(NAMES, 20_000)}
    little = dict.fromkeys(NAMES, 0.08)
    run = MadeUpRun(only("all_moved", "spike"), KNOWN)
    run.steps(SETTLED, **large)
    (finding,) = run.step(add={**little, "code": 3.0}, **large)
    assert (finding.rule, finding.domain) == ("spike", "code")
    assert finding.cause == cause.DATA_MOVED_OPTIMIZER
    assert finding.evidence["moved"] == len(NAMES)
    run = MadeUpRun(only("all_moved", "spike"), KNOWN)
    run.steps(SETTLED, **large)
    assert not run.step(add=little, **large)
    assert not run.steps(5, **large)
    assert told(run.step(add={"code": 3.0}, **large)) == [("spike", "code")]


@pytest.mark.parametrize(
    ("zs", "grad_z", "expected"),
    [
        ([9], None, cause.UNCLEAR),
        ([9, 0], None, cause.DATA),
        ([9, 9], None, cause.OPTIMIZER),
        ([9, 0, 0], 9.0, cause.DATA_MOVED_OPTIMIZER),
        ([9, 0, 0], -9.0, cause.DATA),
        ([9, -9, 0, 0], 0.0, cause.UNCLEAR),
        ([9, 9, 9, 0], 0.0, cause.OPTIMIZER),
        ([0, 0], 9.0, cause.UNCLEAR),
        ([], None, cause.UNCLEAR),
        ([9, 5, 5], None, cause.DATA_MOVED_OPTIMIZER),
        ([9, 9, 5], None, cause.OPTIMIZER),
        ([9, 9, 5, 5, 0], None, cause.UNCLEAR),
        ([9, 5, 0, 0], None, cause.DATA_MOVED_OPTIMIZER),
    ],
)
def test_cause(zs: list[float], grad_z: float | None, expected: str) -> None:
    """Of changes of 0.02 nats a standard deviation, where those of 0.15 matter."""
    scores = {str(number): Score(1.0 + 0.02 * z, 1.0, z) for number, z in enumerate(zs)}
    assert cause.likely(scores, grad_z, nats=0.15, part=0.05) == expected


# What the domain itself is like.


def test_dirty() -> None:
    run = MadeUpRun(only("dirty"), KNOWN)
    found = run.steps(400, losses={"code": 4.9})
    assert told(found) == [("dirty", "code")]
    assert found[0].iteration == 313, "a million tokens, of which 160,000 are of code"
    assert found[0].cause == cause.DATA
    assert found[0].evidence["ratio"] > 0.9


def test_dirty_waits() -> None:
    """For steps, for tokens of the run, and for some of the domain."""
    high, many = {"losses": {"rare": 4.9}}, {"general": 10_000}
    run = MadeUpRun(only("dirty", dirty={"tokens": 1e9}), KNOWN)
    assert not run.steps(400, **high)
    run = MadeUpRun(only("dirty"), KNOWN)
    assert not run.steps(199, **high, samples=many)
    assert told(run.steps(1, **high, samples=many)) == [("dirty", "rare")]
    run = MadeUpRun(only("dirty", dirty={"tokens": 1e7}), KNOWN)
    assert not run.steps(400, **high, samples=many), "51,200 tokens of it"


def test_newlines_only() -> None:
    entropy = {**KNOWN.entropy, "maths": 0.1}
    found = MadeUpRun(only("dirty", "too_low"), Known(entropy=entropy)).steps(
        300, losses={"maths": 0.2}
    )
    assert told(found) == [("dirty", "maths")]
    assert found[0].iteration == 1
    assert "0.10 nats" in found[0].message


def test_without_a_yardstick_there_is_nothing_to_say() -> None:
    run = MadeUpRun(only("dirty", "too_low", dirty={"tokens": 0.0}))
    assert not run.steps(300, losses={"code": 9.0, "maths": 0.01})


@pytest.mark.parametrize(("start", "words"), [(0, "has seen it before"), (300, "it repeats")])
def test_too_low(start: int, words: str) -> None:
    run = MadeUpRun(only("too_low"), KNOWN)
    assert not run.steps(start)
    found = run.steps(100, losses={"general": 0.5})
    assert told(found) == [("too_low", "general")]
    assert words in found[0].message
    assert found[0].iteration == start + 3


@pytest.mark.parametrize(("rule", "limit"), [("too_low", 0.75), ("dirty", 4.5)])
def test_a_loss_that_hovers_around_the_limit_is_told_once(rule: str, limit: float) -> None:
    run = MadeUpRun(only(rule, dirty={"tokens": 0.0}), KNOWN)
    found = run.steps(400, losses={"code": limit})  # a window's noise is 0.1
    assert told(found) == [(rule, "code")]
    away = run.steps(32, losses={"code": 2.5})
    assert told([*away, *run.steps(40, losses={"code": limit})]) == [(rule, "code")]


def test_copies_in_the_manifest() -> None:
    run = MadeUpRun(Watching(), Known(documents={"code": 1000}, duplicates={"code": 400}))
    found = run.steps(50)
    assert told(found) == [("duplicate", "code")]
    assert found[0].iteration == 1
    assert "400 of code's 1,000 documents (40%)" in found[0].message


@pytest.mark.parametrize(("corpus", "expected"), [(30_000.0, [("duplicate", "code")]), (1e9, [])])
def test_a_second_epoch_that_is_known_by_heart(corpus: float, expected: list[Any]) -> None:
    """A loss that falls and stays low tells of copies only where there can be some."""
    run = MadeUpRun(only("duplicate"), Known(tokens={"code": corpus}))
    run.steps(SETTLED)
    assert told(run.steps(60, add={"code": -1.5})) == expected


def test_starved() -> None:
    run = MadeUpRun(only("starved"), KNOWN)
    assert not run.steps(40)
    found = run.steps(200, samples={"code": 2})
    assert told(found) == [("starved", "code")]
    assert "plan" in found[0].message
    first, stop = found[0].evidence["iterations"]
    assert (stop, stop - first) == (found[0].iteration + 1, 7), "7 · 0.16 · 50 are 56 samples"
    assert found[0].evidence["due"] == pytest.approx(56.0)
    assert not run.steps(40)
    assert told(run.steps(200, samples={"code": 0})) == [("starved", "code")]


@pytest.mark.parametrize("share", [0.3, 0.64, 1.0])
def test_starved_is_by_the_plan_however_large_its_share(share: float) -> None:
    """Also where most of what is planned, or all of it, is of the domain that does not come."""
    planned = {"general": share, "code": 1 - share}
    known = Known(shares=lambda first, stop: {name: one for name, one in planned.items() if one})
    for part, expected in ((0.55, []), (0.45, [("starved", "general")])):
        came = {"general": round(100 * share * part), "code": round(100 * (1 - share))}
        run = MadeUpRun(only("starved"), known)
        found = run.steps(50, samples={**dict.fromkeys(NAMES, 0), **came}, read=100)
        assert told(found) == expected


def test_an_update_that_is_skipped_starves_nobody() -> None:
    run = MadeUpRun(only("starved"), KNOWN)
    run.steps(40)
    run.consumed += 100_000
    assert not run.steps(40)


def test_forgetting() -> None:
    run = MadeUpRun(only("forgetting"), KNOWN)
    found = []
    for loss in (2.0, 1.9, 2.5, 1.9, 2.5, 2.6, 2.7):
        run.steps(40)
        found.append(run.evaluate({"general": loss, "code": 2 * loss}))
    assert [told(one) for one in found] == [[]] * 5 + [[("forgetting", "general")]] + [[]]
    assert found[5][0].evidence["first"] == pytest.approx(2.0)


def test_forgetting_says_nothing_while_the_error_is_not_known() -> None:
    """Of a domain that is trained on too rarely, or only validated on."""
    run = MadeUpRun(only("forgetting", forgetting={"domains": ["rare"]}), KNOWN)
    losses = [{"rare": loss} for loss in (2.0, 2.2, 2.3, 2.4)]
    run.steps(GRACE - 1)
    assert not [one for loss in losses for one in run.evaluate(loss)]
    run = MadeUpRun(only("forgetting", forgetting={"domains": ["rare"]}), KNOWN)
    found = [one for loss in losses for one in run.evaluate(loss, errors={"rare": 0.04})]
    assert told(found) == [("forgetting", "rare")], "of one sample 0.32, of 64 and 64 0.057"
    assert found[0].evidence["error"] == pytest.approx(0.04 * 2**0.5)


def test_forgetting_allows_for_noise() -> None:
    """Of 64 samples each, the standard error of the difference is about 0.3 · √(2/64) = 0.05."""
    run = MadeUpRun(only("forgetting"), KNOWN)
    run.steps(40)
    found = [run.evaluate({"general": loss}) for loss in (2.0, 2.1, 2.1, 2.1)]
    assert not any(found), "2 % would be 0.04"


def test_forgetting_of_domains_that_are_named() -> None:
    section = only("forgetting", forgetting={"domains": ["code"]})
    run = MadeUpRun(section, KNOWN)
    run.steps(GRACE)
    found = [run.evaluate({"general": loss, "code": loss}) for loss in (2.0, 3.0, 3.0)]
    assert told(found[2]) == [("forgetting", "code")]
    with pytest.raises(ConfigError, match=r"watch.alarms.forgetting.domains.*'coed'.*'code'"):
        Watch(only("forgetting", forgetting={"domains": ["coed"]}), NAMES)


def flat(rate: float) -> list[Any]:
    run = MadeUpRun(only("plateau", plateau={"steps": 400}), KNOWN)
    run.steps(200, losses={"rare": 2.0})
    return run.steps(600, losses={"general": 2.0 - run.iteration * 1e-4}, rate=rate)


def test_plateau() -> None:
    """Of the domain that has samples enough to tell; a falling one is none."""
    run = MadeUpRun(only("plateau", plateau={"steps": 400}), KNOWN)
    found: list[Any] = []
    for _ in range(1000):
        falling = 4.0 - run.iteration * 2e-3
        found += run.step(losses={"general": 2.0, "code": falling, "maths": falling})
    assert told(found) == [("plateau", "general")]
    assert found[0].severity == "info"
    assert found[0].evidence["fall"] < 0.01


def test_no_plateau_where_the_rate_is_low_or_the_run_short() -> None:
    run = MadeUpRun(only("plateau", plateau={"steps": 400}), KNOWN)
    run.step(rate=1.0)
    assert not run.steps(800, losses={"general": 2.0}, rate=0.05)
    assert not MadeUpRun(only("plateau"), KNOWN).steps(900, losses={"general": 2.0})


@pytest.mark.parametrize(
    ("nonfinite", "why"),
    [
        ({"code": 7}, cause.DATA),
        (dict.fromkeys(NAMES, 7), cause.OPTIMIZER),
    ],
)
def test_nonfinite(nonfinite: dict[str, int], why: str) -> None:
    run = MadeUpRun(Watching(), KNOWN)
    run.steps(50)
    found = run.steps(3, nonfinite=nonfinite)
    assert told(found) == [("nonfinite", name) for name in NAMES if name in nonfinite]
    assert {one.cause for one in found} == {why}
    assert not run.steps(5)
    assert run.step(nonfinite=nonfinite), "again, after it was over"


# What all have in common.


def faulty(names: tuple[str, ...] = NAMES) -> MadeUpRun:
    return MadeUpRun(
        Watching(alarms={"dirty": {"tokens": 0.0}, "plateau": {"steps": 100}}), KNOWN, names=names
    )


def play(run: MadeUpRun, first: int, stop: int) -> list[Any]:
    found: list[Any] = []
    for number in range(first, stop):
        if number % 50 == 0:
            found += run.evaluate(dict.fromkeys(NAMES, 2.0 + number / 1000))
        add = {"code": 4.0} if 150 < number < 170 else {}
        add = dict.fromkeys(NAMES, 3.0) if 250 < number < 256 else add
        nonfinite = {"maths": 3} if number == 290 else {}
        samples = {"code": 1} if number > 200 else {}
        found += run.step(add=add, nonfinite=nonfinite, samples=samples, losses={"rare": 4.9})
    return found


def test_a_resumed_run_finds_the_same() -> None:
    """The state goes through JSON, as in a checkpoint; also in the middle of something."""
    whole = play(faulty(), 0, 320)
    rules = {one.rule for one in whole}
    assert rules >= {"spike", "all_moved", "dirty", "starved", "forgetting", "nonfinite"}
    for stop in (20, 152, 201, 253):
        run = faulty()
        found = play(run, 0, stop)
        saved = json.loads(json.dumps(run.watch.state_dict()))
        run.watch = faulty().watch
        run.watch.begin(0, 0)
        run.watch.load_state_dict(saved)
        assert [*found, *play(run, stop, 320)] == whole


def test_a_run_resumed_within_a_window_counts_all_that_it_read() -> None:
    run = MadeUpRun(only("starved"), KNOWN)
    run.watch.trained(1000)
    saved = json.loads(json.dumps(run.watch.state_dict()))
    run.watch = MadeUpRun(only("starved"), KNOWN).watch
    run.watch.load_state_dict(saved)
    (finding, *_) = run.step(samples={"general": 600, "maths": 160, "rare": 40})
    assert (finding.domain, finding.evidence["due"]) == ("code", pytest.approx(0.16 * 1808))


def test_the_order_of_the_domains_is_all_the_same() -> None:
    def by_place(found: list[Any]) -> list[Any]:
        return sorted((one.iteration, one.rule, str(one.domain), one.message) for one in found)

    assert by_place(play(faulty(NAMES[::-1]), 0, 320)) == by_place(play(faulty(), 0, 320))


def test_rules_are_pure() -> None:
    """Asked twice about the same, they answer the same: nothing they were given has changed."""
    run = faulty()
    play(run, 0, 150)
    states = {name: {**state} for name, state in run.watch._states.items()}
    before = json.dumps(run.watch.state_dict())
    first = run.watch.read(run.watch.evaluation("valid", 150, _stats(9.0)))
    run.watch._states.update(states)
    assert json.dumps(run.watch.state_dict()) == before
    assert run.watch.read(run.watch.evaluation("valid", 150, _stats(9.0))) == first


def _stats(loss: float) -> Any:
    from support.made_up_runs import SAMPLES, stats_of

    return stats_of(NAMES, dict.fromkeys(NAMES, loss), SAMPLES)


def test_every_finding_can_be_written_down() -> None:
    for finding in play(faulty(), 0, 320):
        json.dumps(finding_entry(finding), allow_nan=False)
        assert finding.advice
        assert finding.cause or finding.rule == "plateau"


def test_turned_off() -> None:
    assert Watch(Watching(), NAMES).names == DEFAULT
    off = Watch(Watching(alarms={"spike": False}), NAMES)
    assert set(DEFAULT) - set(off.names) == {"spike"}
    with pytest.raises(ConfigError, match=r"watch.alarms: unknown alarm 'spikes'.*'spike'"):
        Watch(Watching(alarms={"spikes": False}), NAMES)


@pytest.mark.parametrize(
    ("alarm", "options"),
    [
        ("spike", {"deviations": 0}),
        ("spike", {"part": 2}),
        ("dirty", {"ratio": "high"}),
        ("starved", {"samples": -1}),
        ("plateau", {"stpes": 3}),
    ],
)
def test_wrong_options(alarm: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"watch\.alarms\.{alarm}\."):
        Watch(Watching(alarms={alarm: options}), NAMES)


# Scores.


def test_a_score_needs_enough_windows() -> None:
    scores = Scores(("a", "b"))
    for _ in range(GRACE):
        assert scores.score({"a": (1.0, 4.0)}) == {}
    assert set(scores.score({"a": (1.0, 4.0), "b": (1.0, 4.0)})) == {"a"}


def test_a_straight_fall_is_no_anomaly() -> None:
    scores = Scores(("a",))
    for step in range(KEPT + 20):
        found = scores.score({"a": (5 - 0.05 * step, 4.0)})
    assert found["a"].expected == pytest.approx(found["a"].loss)
    assert abs(found["a"].z) < 1e-6


@pytest.mark.parametrize("samples", [1, 16, 400])
def test_scores_of_noise_are_of_unit_size(samples: int) -> None:
    """Whatever the samples of a window, also where their number varies."""
    rng = np.random.default_rng(0)
    scores, found = Scores(("a",)), []
    for step in range(600):
        count = samples * (1 + step % 3)
        got = scores.score({"a": (2 + rng.normal(0, 0.5 / np.sqrt(count)), float(count))})
        found += [score.z for score in got.values()]
    assert 0.8 < np.std(found) < 1.3
    assert scores.noise()["a"] == pytest.approx(0.5, rel=0.3)
