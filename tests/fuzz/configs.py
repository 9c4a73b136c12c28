"""Configs: YAML for ``--domain-config``, and whether it agrees with the data flags."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from support.prefixes import write_prefix

from domain_pretrain.config import DomainConfig
from domain_pretrain.data.blend import blend_of_words, data_path_arguments
from domain_pretrain.flags import PluginArgs
from domain_pretrain.hosts.session import RunFacts, Session
from domain_pretrain.launch.data import data_of_flags
from domain_pretrain.launch.flags import Flags
from fuzz.case import Case
from fuzz.damage import NASTY, damaged, nested, with_nasty

Config = dict[str, Any]

NAMES = ("web", "code", "数学", "C.plus", "_x", "2024", "no", "Übung", "a-b", "data", "weight")
# No name at all, or none of a tag's.
WRONG_NAMES = ("a/b", "", ".a", "-a", "a b", "a:b", "a\n", " a", "a\t", "é!", "数 学")
SAMPLES = 90  # of the run
LOSS = {"step_size": 0.1, "smoothing": 0.01}
STRATEGIES: dict[str, Config] = {
    "uniform": {},
    "linupper": {"temperature": 2},
    "quadratic": {"temperature": {"start": 2.0, "end": 0.5, "steps": 100, "shape": "cosine"}},
    "extremes": {},
    "bandit": {"smoothing": 0.5},
    "group_dro": {"step_size": 0.02, "adjustment": 1.0, **LOSS},
    "learnability": {"ignore_steps": 0, "fit_steps": 20},
    "excess": {"clip_at_zero": False, **LOSS},
    "velocity": LOSS,
    "static": {},
}


def case(rng: random.Random) -> Case:
    """A config that is valid, broken in a known way, or damaged anywhere."""
    config = _valid(rng)
    what = rng.random()
    if what < 0.2:
        return Case("valid", True, _Check(rng, _yaml(rng, config)))
    if what < 0.65:
        change = rng.choice(BROKEN)
        change(rng, config)
        return Case(change.__name__, False, _Check(rng, _yaml(rng, config)))
    if what < 0.75:
        text = rng.choice(BROKEN_TEXTS)(rng, yaml.safe_dump(config, allow_unicode=True))
        return Case("broken YAML", False, _Check(rng, text))
    if what < 0.83:
        change = rng.choice(DISAGREE)
        for domain in config["domains"].values():
            domain["weight"] = rng.choice((1, 2))
        return Case(change.__name__, False, _Check(rng, _yaml(rng, config), change))
    if what < 0.92:
        return Case("nasty value", None, _Check(rng, _yaml(rng, with_nasty(rng, config))))
    return Case("damaged bytes", None, _Check(rng, damaged(rng, _yaml(rng, config))))


class _Check:
    """Write the config and its data, and take both as a run and as a preflight takes them."""

    def __init__(
        self,
        rng: random.Random,
        content: bytes,
        disagree: Callable[[random.Random, list[str]], None] | None = None,
    ) -> None:
        self._seed, self._content, self._disagree = rng.getrandbits(32), content, disagree

    def __call__(self, folder: Path) -> bool:
        rng = random.Random(self._seed)
        for number in range(8):
            write_prefix(f"data/a{number}", [rng.randrange(1, 9) for _ in range(3)])
        Path("config.yaml").write_bytes(self._content)
        config = DomainConfig.load("config.yaml")
        words = None
        if config.domains and (self._disagree or rng.random() < 0.5):
            words = data_path_arguments(config.domains)[1:]
            if self._disagree:
                self._disagree(rng, words)
        flags = {"domain_config": "config.yaml", "split": "100,0,0", "seq_length": 2}
        if words is None and not config.domains:
            words = ["data/a0", "data/a1"]
        data_of_flags(Flags(**flags, data_path=None if words is None else tuple(words)))
        if words is None:
            words = data_path_arguments(config.domains)[1:]
        flags["train_samples"] = SAMPLES
        facts = RunFacts(
            core_version="0.19.0",
            flags=SimpleNamespace(**flags, calculate_per_token_loss=True),
            refusals=(),
            blends=lambda: (blend_of_words(words), None),
            validation_set_names=None,
            micro_batch_size=1,
            log_dir=None,
        )
        session = Session(facts, PluginArgs(channel_loss=True), config)
        config.settings()
        assert not config.domains or session.catalog.names == tuple(config.domains)
        return False


def _valid(rng: random.Random) -> Config:
    names = rng.sample(NAMES, rng.randrange(2, 5))
    weighted = rng.random() < 0.5
    config: Config = {"domains": {}}
    for number, name in enumerate(names):
        data = [f"data/a{2 * number}"]
        if rng.random() < 0.3:
            data = [f"data/a{2 * number}", f"data/a{2 * number + 1}.idx"]
        elif rng.random() < 0.2:
            data = [f"data/a[{2 * number}{2 * number + 1}]"]
        config["domains"][name] = {"data": data}
        if weighted:
            config["domains"][name]["weight"] = rng.choice((1, 0.5, 3e-5, 1e6))
    if rng.random() < 0.3:
        config["channel_loss"] = {"average": rng.choice(("token", "sample")), "kernels": "auto"}
    if rng.random() < 0.3:
        config["watch"] = {"alarms": {"nonfinite": {}}}
    if rng.random() < 0.4:
        config["mix"] = _mix(rng, names)
    if "dynamic" not in config.get("mix", ()) and rng.random() < 0.6:
        config["reweight"] = _reweight(rng, names)
        if "scope" not in config["reweight"]:
            first = config["domains"][names[0]]
            first.update(rng.choice(({}, {"pinned": True}, {"floor": 0.5})))
    return config


def _mix(rng: random.Random, names: list[str]) -> Config:
    lengths = rng.choice(({"samples": 30}, {"tokens": 60}, {"share": 1 / 3}))
    stages = [
        {**lengths, "weights": {name: rng.choice((1, 0.25, 7))}, "shape": shape}
        for name, shape in zip(
            rng.choices(names, k=3), ("constant", "linear", "cosine"), strict=True
        )
    ]
    if rng.random() < 0.5:
        del stages[-1][next(iter(lengths))]
    cuts = [{"samples": [start, start + 7]} for start in rng.sample(range(200), 2)]
    both = {"schedule": stages, "skip": cuts}
    dynamic = {"dynamic": _dynamic(rng, names)}
    return rng.choice(
        ({"schedule": stages}, {"skip": cuts}, both, dynamic, {**dynamic, "skip": cuts})
    )


def _dynamic(rng: random.Random, names: list[str]) -> Config:
    options = {
        "block": rng.choice((1, 16, 2**20)),
        "floor": rng.choice((0, 0.01, 1, {names[0]: 0}, {})),
        "epochs": rng.choice((1, 100)),
    }
    return {**_step_rule(rng, names), **{k: v for k, v in options.items() if rng.random() < 0.5}}


def _reweight(rng: random.Random, names: list[str]) -> Config:
    if rng.random() < 0.2:
        unit = rng.choice(("domain", "sample"))
        return {"scope": "microbatch", "unit": unit, "strategy": "linupper", "temperature": 0.7}
    return _step_rule(rng, names)


def _step_rule(rng: random.Random, names: list[str]) -> Config:
    strategy = rng.choice(list(STRATEGIES))
    section: Config = {"strategy": strategy, **copy.deepcopy(STRATEGIES[strategy])}
    losses = {name: round(rng.uniform(0.1, 9), 3) for name in names}
    if strategy == "static":
        section["weights"] = losses
    elif strategy in ("excess", "velocity"):
        section["reference" if strategy == "excess" else "target"] = losses
    common = {
        "objective": rng.choice(("token_share", "domain_mean")),
        "warmup_steps": rng.choice((0, 200)),
        "uniform_part": rng.choice((0, 0.5, 1)),
        "clip": rng.choice(([0, 2], [0.5, 1e30])),
        "ema_tokens": rng.choice((1, 1e9)),
    }
    return {**section, **{k: v for k, v in common.items() if rng.random() < 0.3}}


def _yaml(rng: random.Random, config: Any) -> bytes:
    style = {"default_flow_style": rng.choice((None, True, False)), "width": rng.choice((40, 400))}
    text: str = yaml.dump(config, allow_unicode=rng.random() < 0.5, sort_keys=False, **style)
    return text.encode("utf-8", "surrogatepass")


def _domain(rng: random.Random, config: Config) -> Config:
    domain: Config = rng.choice(list(config["domains"].values()))
    return domain


# --- what is broken, by construction: a function each -------------------------------------------


def unknown_key(rng: random.Random, config: Config) -> None:
    sections = [config, _domain(rng, config), config.setdefault("channel_loss", {})]
    sections += [config.setdefault("reweight", {}), config.setdefault("watch", {})]
    rng.choice(sections)[rng.choice(("wieght", "domian", "x", "", "数", "a" * 4_000))] = 1


def wrong_mix(rng: random.Random, config: Config) -> None:
    name = next(iter(config["domains"]))
    stage = {"weights": {name: 1}}
    wrong_weights = (0, -1, float("nan"), True, "heavy", [1], None, 10**400, {"data/none": 1}, {})
    wrong: tuple[Config, ...] = (
        {"schedule": [stage, stage]},
        {"schedule": [{**stage, "samples": rng.choice((90, 91, 0, -3, 2.5, "x", 10**400))}, stage]},
        {"schedule": [{**stage, "samples": 7}]},
        {"schedule": [{**stage, "samples": 30, "share": 0.5}, stage]},
        {"schedule": [{**stage, "shape": rng.choice(("linear", "cosine", "step", 1))}]},
        {"schedule": [{"weights": {name: rng.choice(wrong_weights)}}]},
        {"schedule": [{"weights": {"nobody": 1}}]},
        {"schedule": [{"samples": 90}]},
        {"skip": [{"samples": rng.choice(([3, 3], [3, 1], [-1, 4], [1], [1, 2, 3], 7, "1-3"))}]},
        {"skip": [{"samples": [5, 10**12]}]},
        {"skip": [{}]},
        {"dynamic": rng.choice(({}, {"strategy": "liniupper"}, 1, [], {"block": 16}))},
        {"dynamic": {"strategy": "uniform"}, "schedule": [stage]},
        *(
            {"dynamic": {"strategy": "uniform", **one}}
            for one in (
                {"block": rng.choice((0, -1, 2.5, True, "x", 2**20 + 1))},
                {"floor": rng.choice((-0.1, 1.1, True, "x", [0.1], float("nan"), {name: 2}))},
                {"floor": rng.choice(({name: 1}, {"nobody": 0.1}))},
                {"epochs": rng.choice((0, 1.5, True, "x"))},
                {"scope": "global_batch"},
                {"temperature": 1},
            )
        ),
    )
    config["mix"] = rng.choice(wrong)


def mixed_and_reweighted(rng: random.Random, config: Config) -> None:
    config["mix"], config["reweight"] = {"dynamic": {"strategy": "uniform"}}, {}


def nothing_to_mix(rng: random.Random, config: Config) -> None:
    config["mix"] = {"dynamic": {"strategy": "uniform"}}
    config.pop("reweight", None)
    for domain in list(config["domains"].values())[1:]:
        domain["pinned"] = True


def wrong_data(rng: random.Random, config: Config) -> None:
    wrong = ([], "data/a0", [""], None, 3, [3], [None], {"a": "b"}, [["data/a0"]], True)
    _domain(rng, config)["data"] = rng.choice(wrong)


def no_such_data(rng: random.Random, config: Config) -> None:
    absent = ("data/none", "nowhere/*", "data/a0/**", "data/[xyz]", "data", "data/a0.idx.idx", " ")
    _domain(rng, config)["data"].append(rng.choice(absent))


def data_of_two_domains(rng: random.Random, config: Config) -> None:
    first, second = list(config["domains"].values())[:2]
    spelling = ("data/a0", "./data/a0", "data/../data/a0.idx", os.path.join("data", "a0.bin"))
    first["data"], second["data"] = ["data/a0"], [rng.choice((*spelling, "data/a*"))]


def wrong_weight(rng: random.Random, config: Config) -> None:
    for domain in config["domains"].values():
        domain["weight"] = 1
    wrong = (0, -1, float("nan"), float("inf"), True, "heavy", [1], {}, "", 10**400, -0.0)
    _domain(rng, config)["weight"] = rng.choice(wrong)


def a_weight_is_missing(rng: random.Random, config: Config) -> None:
    for domain in config["domains"].values():
        domain["weight"] = 1
    del _domain(rng, config)["weight"]


def wrong_pin_or_floor(rng: random.Random, config: Config) -> None:
    wrong = (("pinned", "maybe"), ("pinned", 2), ("pinned", [])), (("floor", -0.1), ("floor", 1.1))
    key, value = rng.choice((*wrong[0], *wrong[1], ("floor", float("nan")), ("floor", True)))
    _domain(rng, config)[key] = value


def wrong_name(rng: random.Random, config: Config) -> None:
    config.pop("reweight", None)
    name = rng.choice(WRONG_NAMES)
    config["domains"][name] = config["domains"].pop(rng.choice(list(config["domains"])))


def unquoted_name(rng: random.Random, config: Config) -> None:
    name = rng.choice((None, True, False, 7, 1.5))
    config["domains"][name] = config["domains"].pop(rng.choice(list(config["domains"])))


def wrong_section(rng: random.Random, config: Config) -> None:
    key = rng.choice(("domains", "channel_loss", "reweight", "watch", "exporters"))
    wrong = (1, "yes", [], [1], True) + ((None,) if key != "reweight" else ())
    config[key] = rng.choice(wrong)


def wrong_choice(rng: random.Random, config: Config) -> None:
    section, key = rng.choice((("channel_loss", "average"), ("channel_loss", "kernels")))
    config.setdefault(section, {})[key] = rng.choice(("tokens", "CUDA", 1, None, ["token"], True))


def unknown_rule(rng: random.Random, config: Config) -> None:
    name = rng.choice(("liniupper", "nonfinte", "", "x" * 9_000, "uniform "))
    place = rng.choice(("reweight", "alarms", "exporters"))
    if place == "reweight":
        config["reweight"] = {"strategy": name}
    elif place == "alarms":
        config["watch"] = {"alarms": {name: {}}}
    else:
        config["exporters"] = {name: {}}


def wrong_option(rng: random.Random, config: Config) -> None:
    wrong: tuple[Config, ...] = (
        {"clip": [2, 3]},
        {"clip": [1, 1]},
        {"clip": [0.5, 1]},
        {"clip": [0.5]},
        {"clip": [0.5, float("inf")]},
        {"clip": ["0.5", 2]},
        {"warmup_steps": -1},
        {"warmup_steps": 1.5},
        {"warmup_steps": True},
        {"uniform_part": 1.5},
        {"uniform_part": float("nan")},
        {"ema_tokens": 0},
        {"objective": "tokens"},
        {"scope": "batch"},
        {"unit": "sample"},
        {"temperature": 0},
        {"temperature": float("nan")},
        {"temperature": {"start": 1.0}},
        {"temperature": "warm"},
        {"strategy": "uniform", "temperature": 1},
        {"strategy": "excess"},
        {"strategy": "excess", "reference": "no/such/file.jsonl"},
        {"strategy": "excess", "reference": "data"},
        *({"strategy": "excess", "reference": name} for name in NASTY if isinstance(name, str)),
        {"strategy": "excess", "reference": {"nobody": 1.0}},
        {"strategy": "excess", "reference": {}},
        {"strategy": "velocity", "target": 3},
        {"strategy": "static", "weights": {}},
        {"strategy": "static", "weights": [1, 2]},
        {"strategy": "group_dro", "adjustment": -1},
        {"strategy": "learnability", "fit_steps": -1},
        {"scope": "microbatch", "clip": [0, 2]},
        {"scope": "microbatch", "strategy": "excess"},
        {"blend": 0.5, "uniform_part": 0.5},
    )
    config["reweight"] = {"strategy": "linupper", **rng.choice(wrong)}


def idle_domain_key(rng: random.Random, config: Config) -> None:
    config["reweight"] = {"scope": "microbatch", "unit": "sample"}
    _domain(rng, config).update(rng.choice(({"pinned": True}, {"floor": 0.5})))


BROKEN: tuple[Callable[[random.Random, Config], None], ...] = (
    *(unknown_key, wrong_data, no_such_data, data_of_two_domains, wrong_weight),
    *(a_weight_is_missing, wrong_pin_or_floor, wrong_name, unquoted_name, wrong_section),
    *(wrong_choice, unknown_rule, wrong_option, idle_domain_key, wrong_mix),
    *(mixed_and_reweighted, nothing_to_mix),
)


def _bomb(depth: int) -> str:
    rows = [f"x{i}: &b{i} [{','.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, depth)]
    return "x0: &b0 [1]\n" + "".join(rows)


BROKEN_TEXTS: tuple[Callable[[random.Random, str], bytes], ...] = (
    lambda rng, text: rng.choice((b"", b"[]", b"- domains", b"domains", b"7", b"yes", b"''", b"~")),
    lambda rng, text: f"{text}domains: {{}}\n".encode(),
    lambda rng, text: text.encode() + b"\xff\n",
    lambda rng, text: text.encode("utf-16"),
    lambda rng, text: f"{text}more: \0\n".encode(),
    lambda rng, text: f"{text}more: *nothing\n".encode(),
    lambda rng, text: f"{text}more: !!python/object/apply:os.system [touch pwned]\n".encode(),
    lambda rng, text: f"{text}exporters: {nested(rng)}\n".encode(),
    lambda rng, text: f"{text}more: {nested(rng, '{a: ', '}')}\n".encode(),
    lambda rng, text: f"{text}---\n{text}".encode(),
    lambda rng, text: f"{text}\tmore: 1\n".encode(),
    lambda rng, text: f"{text}more: [\n".encode(),
    lambda rng, text: f"{text}{_bomb(30)}".encode(),
    lambda rng, text: f"{_bomb(30)}exporters: {{x: {{y: *b29}}}}\n{text}".encode(),
    lambda rng, text: f"{_bomb(30)}watch: {{alarms: {{nonfinite: {{y: *b29}}}}}}\n".encode(),
    lambda rng, text: f"reweight: &a {{strategy: *a}}\n{text}".encode(),
    lambda rng, text: b"exporters: &a {x: {y: *a}}\n",
    lambda rng, text: b"domains: &a {x: *a}\n",
    lambda rng, text: b"domains: {? [a] : {data: [x]}}\n",
    lambda rng, text: b"domains: {!!binary YQ== : {data: [x]}}\n",
)


# --- flags that say something else than the config ----------------------------------------------


def a_prefix_less(rng: random.Random, words: list[str]) -> None:
    at = 2 * rng.randrange(len(words) // 2)
    del words[at : at + 2]


def a_prefix_more(rng: random.Random, words: list[str]) -> None:
    write_prefix("other/one", [3])
    words += ["1", rng.choice(("other/one", "other/none"))]


def another_weight(rng: random.Random, words: list[str]) -> None:
    at = 2 * rng.randrange(len(words) // 2)
    words[at] = repr(float(words[at]) * rng.choice((0.5, 1.001, 10)))


DISAGREE = (a_prefix_less, a_prefix_more, another_weight)
