"""Rules that follow validation losses: what a run must have, and what a resume may change."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.prefixes import write_prefix

from domain_pretrain.config import DomainConfig
from domain_pretrain.data.order import Order
from domain_pretrain.data.tokenizer import Tokenizer
from domain_pretrain.errors import ConfigError
from domain_pretrain.flags import PluginArgs
from domain_pretrain.flow.continuity import Meaning, check_base
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.steer import Lagged
from domain_pretrain.flow.step import Step
from domain_pretrain.hosts.facts import RunFacts
from domain_pretrain.hosts.session import Session
from domain_pretrain.section import parse
from domain_pretrain.strategies import Course, Observation, Reweighter, build
from domain_pretrain.strategies.section import StepRule

NAMES = ("general", "code")
CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {"domains": "general", "epsilon": 0.05}
HOLD = {"strategy": "hold", **OPTIONS}
CONFIGS = {
    "mix.dynamic": {"mix": {"dynamic": {**HOLD, "block": 16}}},
    "reweight": {"reweight": HOLD},
}
OFFERS = frozenset({"valid", "lr", "progress"})


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    for name in NAMES:
        write_prefix(tmp_path / name, [100] * 200)
        write_prefix(tmp_path / "valid" / name, [100] * 50)
    return {name: str(tmp_path / name) for name in NAMES}


def start(
    data: dict[str, str],
    config: dict[str, Any],
    valid: tuple[str, ...] = NAMES,
    samples: int = 600,
    **flags: Any,
) -> Session:
    """A run of 200 steps of 16 samples of 8 tokens, that evaluates every 5."""
    folder = Path(data["general"]).parent
    domains = {
        name: {"data": [data[name], *([str(folder / "valid" / name)] if name in valid else [])]}
        for name in NAMES
    }
    blends = [
        ([data[name] for name in NAMES], [1.0, 1.0]),
        ([str(folder / "valid" / name) for name in valid], [1.0] * len(valid)),
        None,
    ]
    given: dict[str, Any] = {
        "seq_length": 8,
        "split": None,
        "global_batch_size": 16,
        "train_iters": 200,
        "eval_iters": 1,
        "eval_interval": 5,
        "calculate_per_token_loss": True,
        "seed": 1,
        **flags,
    }
    facts = RunFacts(
        core_version="0.19.2",
        flags=SimpleNamespace(**given),
        refusals=(),
        blends=lambda: (None, blends),
        validation_set_names=None,
        micro_batch_size=1,
        log_dir=None,
        offers=frozenset({"lr", "progress"}),
    )
    config = {"domains": domains, "evaluate": {"samples": samples}, **config}
    return Session(facts, PluginArgs(channel_loss=True), parse(DomainConfig, config))


@pytest.mark.parametrize("where", CONFIGS)
def test_a_run_that_has_all_it_needs(
    where: str, data: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    start(data, CONFIGS[where])
    start(data, CONFIGS[where], valid=("general",))  # of what is not held, nothing is asked
    assert "WARNING" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("where", CONFIGS)
def test_a_held_domain_without_validation_data(where: str, data: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=rf"{where}: 'general' .* no validation .*of code\)"):
        start(data, CONFIGS[where], valid=("code",))


@pytest.mark.parametrize("where", CONFIGS)
@pytest.mark.parametrize(
    ("how", "words"),
    [
        # 200 steps / 25: 8 times.
        ({"eval_interval": 25}, "--eval-interval 25.* 8 times in 200 .*give --eval-interval 5"),
        # √(2·0.05/(10·8)) = 0.035; 2/(0.05·0.1²) = 4,000 tokens.
        ({"samples": 10}, r"epsilon is 0\.05 .* 80 .*± 0\.035: .* 4,000 tokens of general"),
    ],
)
def test_what_is_doubtful_is_told_at_the_start(
    where: str,
    how: dict[str, Any],
    words: str,
    data: dict[str, str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    start(data, CONFIGS[where], **how)
    told = " ".join("".join(capfd.readouterr()).split())
    assert told.count("WARNING") == 1
    assert re.search(words, told)
    start(data, CONFIGS[where], skip_train=True, **how)  # nothing is followed there
    assert "WARNING" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("where", CONFIGS)
def test_a_pinned_domain_contradicts(where: str) -> None:
    how: dict[str, Any] = {"where": where, "offers": OFFERS}
    Reweighter.build(StepRule(**HOLD), NAMES, **how)
    with pytest.raises(ConfigError, match=r"domains\.code\.pinned: hold decides the share of ever"):
        Reweighter.build(StepRule(**HOLD), NAMES, pinned=["code"], **how)
    ends = dict.fromkeys(NAMES, 1)
    ramp = StepRule(strategy="ramp", start=ends, end=ends)
    Reweighter.build(ramp, NAMES, pinned=["code"], **how)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"reweight": {**HOLD, "scope": "microbatch"}}, "needs the losses of whole steps"),
        (
            {
                "domains": {"general": {"data": ["a"], "channels": True}, "code": {"data": ["b"]}},
                "evaluate": {"samples": 4},
                "reweight": HOLD,
            },
            "channels, which do not go with evaluate.samples",
        ),
    ],
)
def test_what_has_no_whole_losses_of_a_domain(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(DomainConfig, config)


# --- what the base was measured on ---------------------------------------------------------------


def seen(course: Course) -> Observation:
    yes, ones = np.ones(2, bool), np.ones(2)
    return Observation(NAMES, 5, yes, ones, yes, ones, ones, ones / 2, course, ones)


def test_which_domains_have_a_base() -> None:
    rule = build("hold", OPTIONS, NAMES)
    options: Any = rule.options
    assert options.bases({}, NAMES) == {"general": False}
    _, state = rule(seen(Course(valid={"general": 2.0})), {})
    assert options.bases(state, NAMES) == {"general": True}
    # One that is held from now on, and was not measured then, gets its own when it is.
    both: Any = build(
        "hold", {**OPTIONS, "domains": ["general", "code"]}, (*NAMES, "maths")
    ).options
    state = {"base": np.array([2.0, np.nan, np.nan])}
    assert both.bases(state, (*NAMES, "maths")) == {"general": True, "code": False}


def test_a_domain_that_joins_gets_a_base_of_its_own() -> None:
    names = ("general", "code", "maths")
    rule = build("hold", {**OPTIONS, "domains": ["general", "code"]}, names)
    yes, ones = np.ones(3, bool), np.ones(3)
    state: dict[str, Any] = {"base": np.array([2.0, np.nan, np.nan]), "warm": True, "lr": 1.0}
    valid = {"general": 2.5, "code": 3.0}
    for risen in (None, 0.25):  # the mean of 0.5 and 0
        course = Course(valid=valid)
        now = Observation(names, 5, yes, ones, yes, ones, ones, ones / 3, course, ones)
        weights, state = rule(now, state)
        assert state.get("risen") == risen
        assert np.isfinite(weights).all()
    assert state["base"][:2].tolist() == [2.0, 3.0]


def order(valid: list[list[Any]], part: tuple[float, float] = (0.8, 0.9)) -> Order:
    train = [["/train", 1.0, 10, 100]]
    return Order(
        [train, valid, None],
        [[0.0, 0.8], list(part), None],
        {"--seed": 1},
        Tokenizer("t", None).dump(),
        100,
    )


def meaning(samples: int = 64, **of: Any) -> Meaning:
    valid = [["/general", 0.5, 20, 200], ["/code", 0.5, 30, 300]]
    settings = {"evaluate.samples": samples}
    prefixes = {"/general": "general", "/code": "code", "/new": "general"}
    prefixes["/moved/general"] = "general"
    return Meaning(NAMES, prefixes, settings, order(**{"valid": valid, **of}))


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (meaning(128), r"evaluate\.samples 64 → 128"),
        (meaning(valid=[["/general", 0.5, 21, 210], ["/code", 0.5, 30, 300]]), "200 → 210 tokens"),
        (meaning(valid=[["/new", 0.5, 40, 400], ["/code", 0.5, 30, 300]]), "gone /general; new /n"),
        (meaning(part=(0.8, 1.0)), r"validation part of --split .* → .*100"),
    ],
)
def test_a_base_of_another_text_is_refused(now: Meaning, words: str) -> None:
    saved = json.loads(json.dumps(meaning().dump()))
    with pytest.raises(ConfigError, match=f"not the checkpoint's: .*{words}.*--finetune to meas"):
        check_base(saved, now, ["general"], allow=False)
    (told,) = check_base(saved, now, ["general"], allow=True)
    assert "was measured on that one" in told


@pytest.mark.parametrize(
    "now",
    [
        meaning(),
        # Of another domain; files that have moved; how often a prefix is read.
        meaning(valid=[["/general", 0.5, 20, 200], ["/code", 0.5, 31, 310]]),
        meaning(valid=[["/moved/general", 0.5, 20, 200], ["/code", 0.5, 30, 300]]),
        meaning(valid=[["/general", 0.9, 20, 200], ["/code", 0.1, 30, 300]]),
        # One that does not train follows nothing.
        replace(meaning(128), order=None),
    ],
)
def test_a_base_of_the_same_text_is_taken(now: Meaning) -> None:
    assert check_base(meaning().dump(), now, ["general"], allow=False) == []


def step(now: Meaning, *, allow: bool = False) -> Step:
    rule = StepRule(**HOLD)
    steering = Lagged(Reweighter.build(rule, NAMES, offers=OFFERS), "token", CPU)
    made = Step(NAMES, Groups(), CPU, None, steering, meaning=now, allow_domain_change=allow)
    assert made.baseless == ["general"]
    return made


def test_a_step_goes_on_from_a_base_of_its_own_text_alone(
    capfd: pytest.CaptureFixture[str],
) -> None:
    first = step(meaning())
    without = first.state_dict()
    assert isinstance(first.steering, Lagged)
    first.steering.memory = replace(first.steering.memory, state={"base": np.array([2.0, np.nan])})
    saved = first.state_dict()
    same = step(meaning())
    same.load_state_dict(saved)
    assert same.baseless == []
    with pytest.raises(ConfigError, match=r"evaluate\.samples 64 → 128"):
        step(meaning(128)).load_state_dict(saved)
    step(meaning(128), allow=True).load_state_dict(saved)
    assert "WARNING: the fixed validation set is not the checkpoint's" in "".join(
        capfd.readouterr()
    )
    # Without a base there is nothing to be of another text.
    other = step(meaning(128))
    other.load_state_dict(without)
    assert other.baseless == ["general"]
