"""Plans: YAML for ``domain-pretrain plan``, with the data that it names."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from support.prefixes import write_prefix

from domain_pretrain.planning.make import make_plan
from domain_pretrain.planning.output import flags, write
from domain_pretrain.planning.section import PlanFile
from fuzz.case import Case
from fuzz.damage import damaged, with_nasty

Content = dict[str, Any]
NAMES = ("web", "code", "数学", "a-b", "2024", "no", "C.plus", "tokens")


def case(rng: random.Random) -> Case:
    """A plan that is valid, broken in a known way, or damaged anywhere."""
    content = _valid(rng)
    what = rng.random()
    if what < 0.3:
        return Case("valid", True, _Check(_yaml(content)))
    if what < 0.75:
        change = rng.choice(BROKEN)
        change(rng, content)
        return Case(change.__name__, False, _Check(_yaml(content)))
    if what < 0.9:
        return Case("nasty value", None, _Check(_yaml(with_nasty(rng, content))))
    return Case("damaged bytes", None, _Check(damaged(rng, _yaml(content))))


class _Check:
    """Make the plan, and hold its numbers against each other."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __call__(self, folder: Path) -> bool:
        for number in range(6):
            write_prefix(f"data/a{number}", [200 + number] * 200)
        Path("plan.yaml").write_bytes(self._content)
        plan = make_plan(PlanFile.load("plan.yaml"))
        assert plan.samples == plan.iterations * plan.file.global_batch_size
        for n, stage in enumerate(plan.stages):
            assert sum(one.stages[n] for one in plan.prefixes) == stage.samples
        for one in plan.prefixes:
            assert 0 < one.samples <= plan.file.epochs * one.source.corpus.samples
        assert write(plan, Path("plan.yaml"), Path("out")) == flags(plan, Path("out/domains.yaml"))
        return False


def _valid(rng: random.Random) -> Content:
    names = rng.sample(NAMES, 3)
    content: Content = {
        "seq_length": rng.choice((8, 16)),
        "global_batch_size": rng.choice((1, 4, 8)),
        "split": rng.choice(("98,2,0", "100", 100, "90,5,5")),
        "epochs": 50,
        "domains": {
            names[0]: "data/a0",
            names[1]: {"x": ["data/a1", "data/a2.idx"], "y": "data/a[3]"},
            names[2]: ["data/a4", "data/a[45]"],
        },
        "stages": [],
    }
    for number in range(rng.randrange(1, 4)):
        content["stages"].append(_stage(rng, names, may_share=number > 0))
    if rng.random() < 0.3:
        content["parts"] = {names[1]: rng.choice(({"x": 1}, {"x": 2, "y": 0.5}))}
    return content


def _stage(rng: random.Random, names: list[str], *, may_share: bool) -> Content:
    some = rng.sample(names, rng.randrange(1, 4))
    mix: Content = {name: rng.choice((1, 2.5, 1e-3, 10**6)) for name in some}
    if names[1] in some and rng.random() < 0.3:
        mix[names[1]] = rng.choice(({"x": 1}, {"y": 3, "x": 0.5}))
    elif len(some) > 1 and rng.random() < 0.3:
        mix = {"+".join(some): 3}
    if may_share and rng.random() < 0.4:
        return {"share": rng.choice((0.1, 0.25, 1e-6)), "mix": mix}
    size = rng.choice(("tokens", "samples"))
    if rng.random() < 0.3:
        return {size: {name: rng.choice(("0.5k", 64, 320)) for name in some}}
    return {size: rng.choice(("1k", 640, "1e3", 8)), "mix": mix}


def _yaml(content: Any) -> bytes:
    text: str = yaml.dump(content, allow_unicode=True, sort_keys=False)
    return text.encode("utf-8", "surrogatepass")


# --- what is broken, by construction: a function each -------------------------------------------


def unknown_key(rng: random.Random, content: Content) -> None:
    place = rng.choice((content, content["stages"][0]))
    place[rng.choice(("stage", "wieght", "", "数", "a" * 4_000))] = 1


def wrong_number(rng: random.Random, content: Content) -> None:
    key = rng.choice(("seq_length", "global_batch_size", "epochs"))
    content[key] = rng.choice((0, -1, True, None, "x", [], {}, float("nan"), float("inf")))


def wrong_size(rng: random.Random, content: Content) -> None:
    wrong = (0, -1, "20Q", "", "1.5", None, [], {}, {"web": 0}, {"web": {}}, "1e99k", True)
    content["stages"][0] = {"tokens": rng.choice(wrong), "mix": {"web": 1}}


def wrong_mix(rng: random.Random, content: Content) -> None:
    name = next(iter(content["domains"]))
    wrong = ({}, [], 1, None, {name: 0}, {name: "3"}, {name: -1}, {name: {}}, {name: {name: 1}})
    also = ({"nobody": 1}, {f"{name}+nobody": 1}, {f"{name}+{name}": 1}, {f"{name}+": 1})
    content["stages"][0] = {"samples": 640, "mix": copy.deepcopy(rng.choice((*wrong, *also)))}


def wrong_share(rng: random.Random, content: Content) -> None:
    name = next(iter(content["domains"]))
    share = rng.choice((0, 1, 1.5, -0.1, "a tenth", None, True))
    content["stages"].append({"share": share, "mix": {name: 1}})


def shares_alone(rng: random.Random, content: Content) -> None:
    name = next(iter(content["domains"]))
    content["stages"] = [{"share": 0.1, "mix": {name: 1}}] * rng.randrange(3)


def wrong_data(rng: random.Random, content: Content) -> None:
    wrong = ("data/none", "none/*", "", [], {}, None, 3, [3], ["data/a1"], {"x": []}, "s3://a/b")
    name = next(iter(content["domains"]))
    content["domains"][name] = rng.choice(wrong)
    content["stages"][0] = {"samples": 64, "mix": dict.fromkeys(content["domains"], 1)}


def beyond_the_data(rng: random.Random, content: Content) -> None:
    name = next(iter(content["domains"]))
    content["stages"][0] = {"samples": rng.choice(("1M", "1B", "1e30")), "mix": {name: 1}}


BROKEN: tuple[Callable[[random.Random, Content], None], ...] = (
    *(unknown_key, wrong_number, wrong_size, wrong_mix, wrong_share, shares_alone, wrong_data),
    beyond_the_data,
)
