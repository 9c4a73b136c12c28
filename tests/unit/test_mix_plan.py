"""From the config's ``mix`` to a plan; and what a resumed run may change of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.prefixes import write_prefix

from domain_pretrain.data.blend import Blend
from domain_pretrain.data.mix.change import changes
from domain_pretrain.data.mix.describe import describe, samples_of, tell_begun
from domain_pretrain.data.mix.locate import Locator
from domain_pretrain.data.mix.plan import Plan, make_plan
from domain_pretrain.data.mix.section import Mix
from domain_pretrain.data.order import Order, breaks
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.data.reading import Reading
from domain_pretrain.data.tokenizer import Tokenizer
from domain_pretrain.errors import ConfigError
from domain_pretrain.section import parse

SEQ = 10
BLEND: Blend = (["web", "books", "code"], [3.0, 1.0, 4.0])
OWNERS = {"web": "general", "books": "general", "code": "code"}


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, documents in (("web", 300), ("books", 100), ("code", 50)):
        write_prefix(name, [20] * documents)
    write_prefix("short", [5] * 2)


def read(blend: Blend = BLEND, split: str = "100,0,0") -> Reading:
    return Reading.check(blend, None, split, SEQ, {}, files=True)


def plan(
    mix: Mapping[str, Any], samples: int | None = 1000, blend: Blend = BLEND, **owners: str
) -> Plan:
    domain_of = {normalise(prefix): name for prefix, name in {**OWNERS, **owners}.items()}
    section = parse(Mix, mix, "mix")
    return make_plan(section, read(blend), domain_of, samples=samples, seq_length=SEQ)


def stage(**given: Any) -> dict[str, Any]:
    return {"weights": {"general": 1, "code": 1}, **given}


def test_lengths_in_samples_tokens_and_shares() -> None:
    found = plan({"schedule": [stage(samples=100), stage(tokens=2000), stage(share=0.5), stage()]})
    assert [one.samples for one in found.stages] == [100, 200, 500, None]
    assert found.starts() == [0, 100, 300, 800]
    shares = plan({"schedule": [stage(share=0.1) for _ in range(10)]}, 1003)
    lengths = [one.samples or 0 for one in shares.stages]
    assert sum(lengths) == 1003, "each ends at the nearest sample"
    assert set(lengths) == {100, 101}


def test_a_ramp_to_the_end_has_a_length() -> None:
    """Its weights depend on where it ends; those of a constant one do not."""
    ramp = plan({"schedule": [stage(samples=100), stage(shape="linear")]})
    assert [one.samples for one in ramp.stages] == [100, 900]
    assert plan({"schedule": [stage()]}) == plan({"schedule": [stage(samples=1000)]})


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        (
            [stage(samples=100), stage(samples=800)],
            r"100 \+ 800 = 900 samples, and .* 1,000",
        ),
        (
            [stage(samples=1000), stage()],
            r"take 1,000 of the run's 1,000 training samples, so",
        ),
        ([stage(tokens=4), stage()], r"stage 1 is less than one sample of 10 tokens"),
        ([stage(weights={"genral": 1})], r"stage 1 weighs 'genral', .*did you mean 'general'\?"),
        ([stage(weights={"code": {"cod": 1}})], r"'cod', which is no prefix of the domain 'code';"),
        ([stage(weights={"code": {"web": 1}})], r"'web', which is no prefix .* \(prefixes: code\)"),
    ],
)
def test_stages_that_do_not_fit_the_run(stages: list[Any], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"^mix\.schedule: .*{says}"):
        plan({"schedule": stages})


def test_what_a_run_must_have() -> None:
    with pytest.raises(ConfigError, match=r"do not say how many samples .*--train-samples"):
        plan({"schedule": [stage()]}, None)
    with pytest.raises(ConfigError, match="no training data"):
        parse_only = parse(Mix, {"skip": [{"samples": [0, 1]}]})
        make_plan(parse_only, read(None), {}, samples=10, seq_length=SEQ)
    short: Blend = (["web", "short"], [1.0, 1.0])
    with pytest.raises(ConfigError, match="'short' has fewer than 11 tokens in the training split"):
        plan({"skip": [{"samples": [0, 1]}]}, blend=short, short="s")
    twice: Blend = (["web", "./web"], [1.0, 1.0])
    with pytest.raises(ConfigError, match=r"name '.*/web' 2 times"):
        plan({"schedule": [stage(weights={"general": 1})]}, blend=twice)


def test_a_domains_weight_is_divided_as_the_data_flag_has_it() -> None:
    weights = {"general": 8, "code": {"code": 2}}
    (found,) = plan({"schedule": [stage(weights=weights)]}).stages
    assert found.weights == (6, 2, 2)
    (found,) = plan({"schedule": [stage(weights=weights)]}, blend=(BLEND[0], None)).stages
    assert found.weights == (6, 2, 2), "by size: 6,000 and 2,000 tokens"
    (found,) = plan({"schedule": [stage(weights={"general": {"./books": 3}})]}).stages
    assert found.weights == (0, 3, 0), "what is not named is not sampled"
    store: Blend = (["s3://x/web", "s3://x/books"], None)
    owners = {"s3://x/web": "general", "s3://x/books": "general"}
    with pytest.raises(ConfigError, match=r"not all on this disk.*give the data flag weights"):
        plan({"schedule": [stage(weights={"general": 1})]}, blend=store, **owners)


def test_cuts_alone_leave_the_blend() -> None:
    found = plan({"skip": [{"samples": [5, 9]}, {"samples": [2, 6]}]})
    assert (found.stages[0].weights, found.cuts) == ((3.0, 1.0, 4.0), ((2, 9),))
    assert plan({"skip": [{"samples": [5, 9]}]}, blend=(BLEND[0], None)).stages[0].weights is None


def test_a_cut_in_tokens_is_told() -> None:
    with pytest.raises(ConfigError, match="cuts 2,000,000 samples out of a run of 1,000: pos"):
        plan({"skip": [{"samples": [500, 2_000_500]}]})
    assert plan({"skip": [{"samples": [2_000, 10**30]}]}).idle_cuts, "it is never come to"


def test_a_plan_in_words() -> None:
    stages = [stage(samples=100), stage(weights={"code": 1}, shape="cosine")]
    found = plan({"schedule": stages, "skip": [{"samples": [20, 25]}]})
    domain_of = {normalise(prefix): name for prefix, name in OWNERS.items()}
    assert list(describe(found, domain_of)) == [
        ("stage 1", "samples 0 to 100: general 50.00%, code 50.00%"),
        ("stage 2", "samples 100 to 1,000, cosine: code 100.00%"),
        ("skipped", "positions 20 to 25 of the stream"),
    ]
    lengths = [300, 100, 50]
    locator = Locator(found, lengths, 7)
    read_of = [locator.locate(i).prefix for i in range(1000)]
    assert samples_of(found, lengths) == [read_of.count(i) for i in range(3)]
    blend = plan({"skip": [{"samples": [5, 9]}]}, 800)
    assert samples_of(blend, lengths) == [300, 100, 400]


# --- a resumed run -------------------------------------------------------------------------------


def order(
    mix: Mapping[str, Any] | None, samples: int = 1000, blend: Blend = BLEND, seq_length: int = SEQ
) -> Order:
    made = None if mix is None else plan(mix, samples, blend)
    settings = {"--seed": 1, "--seq-length": seq_length}
    return Order.of(read(blend), settings, Tokenizer("t", None), samples, plan=made)


def broken(before: Order, now: Order, consumed: int) -> list[str]:
    """As a resumed run finds it: what was before comes out of a checkpoint."""
    return list(breaks(Order.load(json.loads(json.dumps(before.dump()))), now, consumed))


THREE = [stage(samples=300), stage(weights={"code": 1}, shape="linear", samples=300), stage()]


def cut(*cuts: tuple[int, int], schedule: Any = THREE) -> dict[str, Any]:
    return {"schedule": schedule, "skip": [{"samples": list(one)} for one in cuts]}


def test_the_same_stream() -> None:
    before = order(cut((5, 9)))
    assert not broken(before, order(cut((5, 9))), 50)
    scaled = [stage(samples=300, weights={"general": 4, "code": 4}), *THREE[1:]]
    assert not broken(before, order(cut((5, 7), (7, 9), schedule=scaled)), 50)
    assert not broken(before, order(cut((5, 9)), 2000), 50), "the last stage goes on"


@pytest.mark.parametrize(
    "now",
    [
        [stage(samples=301), *THREE[1:]],
        [stage(samples=300, weights={"code": 1}), *THREE[1:]],
        [THREE[0], {**THREE[1], "shape": "cosine"}, THREE[2]],
        [*THREE[:2], stage(weights={"code": 1})],
        [*THREE[:2], stage(samples=400)],
        [stage()],
    ],
)
def test_another_schedule_is_refused(now: list[Any]) -> None:
    (said,) = broken(order(cut()), order(cut(schedule=now)), 50)
    assert said.startswith("mix.schedule [300 samples at 37.5:12.5:50, 300 samples at 0:0:100 (li")


def test_the_way_to_a_dynamic_mix() -> None:
    """Its options may change, since they hold for what is not decided yet; its blocks may not."""
    dynamic = {"dynamic": {"strategy": "linupper", "block": 64}}
    found = plan(dynamic)
    assert found.block == 64
    assert found.stages[0].weights == (3.0, 1.0, 4.0)
    assert not found.is_hosts_blend, "though its weights are those of the blend, and stay"
    by_size = plan(dynamic, blend=(BLEND[0], None))
    assert by_size.stages[0].weights == (6000, 2000, 1000)
    domain_of = {normalise(prefix): name for prefix, name in OWNERS.items()}
    assert list(describe(found, domain_of)) == [
        ("dynamic", "decided for 64 samples at a time, at first: general 50.00%, code 50.00%")
    ]
    assert samples_of(found, [300, 100, 50]) == [375, 125, 500]
    before = order(dynamic)
    other = {"dynamic": {"strategy": "bandit", "block": 64, "epochs": 3}}
    assert not broken(before, order(other), 50)
    assert not broken(before, order({**other, "skip": [{"samples": [60, 64]}]}, 2000), 50)
    for now, says in (
        (order({"dynamic": {"strategy": "linupper"}}), "in blocks of 64 → 4096"),
        (order(None), "in blocks of 64 → none"),
        (order({"skip": [{"samples": [60, 64]}]}), "in blocks of 64 → none"),
        (order(cut()), "mix.schedule [the rest at 37.5:12.5:50] → [300 samples"),
    ):
        (said,) = broken(before, now, 50)
        assert says in said
    (said,) = broken(order(None), before, 0)
    assert said == "mix.dynamic in blocks of none → 64"
    store: Blend = (["s3://x/web", "s3://x/code"], None)
    owners = {"s3://x/web": "general", "s3://x/code": "code"}
    with pytest.raises(ConfigError, match=r"^mix\.dynamic: .*not all on this disk.*give the data"):
        plan(dynamic, blend=store, **owners)


def test_cuts_may_change_from_where_the_run_is() -> None:
    before = order(cut((5, 9), (100, 200)))
    assert not broken(before, order(cut((5, 9), (54, 60))), 50), "the next sample is at 54"
    assert not broken(before, order(cut((5, 9))), 50)
    (said,) = broken(before, order(cut((5, 9), (53, 60))), 50)
    assert said.startswith("mix.skip [5, 9) → [5, 9) [53, 54) in the part of the stream that")
    assert "positions below 54; cuts from there on may be added" in said
    assert broken(before, order(cut()), 50)
    assert not broken(before, order(cut()), 5), "the cut is the next to come"
    assert broken(before, order(cut()), 6)


def test_between_the_hosts_own_blend_and_cuts_in_it() -> None:
    """One order, as long as the host reads no prefix twice."""
    own, mixed = order(None, 90), order(cut((60, 70), schedule=[]), 90)
    assert not broken(own, mixed, 50)
    assert not broken(mixed, own, 50)
    (said,) = broken(own, mixed, 61)
    assert said.startswith("mix.skip none → [60, 61)")
    own, mixed = order(None, 900), order(cut((60, 70), schedule=[]), 900)
    (said,) = broken(own, mixed, 50)
    assert said.startswith("Megatron's own blend → the plugin's stream, which has another order")
    (said,) = broken(mixed, own, 50)
    assert said.startswith("the plugin's stream → Megatron's own blend")
    (said,) = broken(order(None, 90), order(cut(), 1000), 50)
    assert said.startswith("mix.schedule [the rest at 37.5:12.5:50] → [300 samples")


def test_whether_one_pass_is_enough_is_told_by_the_documents() -> None:
    """2,000 tokens of books are 199 samples of 10; the host builds one more than is asked."""
    one: Blend = (["books"], None)
    cuts = cut((60, 70), schedule=[])
    assert not broken(order(None, 198, one), order(cuts, 198, one), 50)
    assert broken(order(None, 199, one), order(cuts, 199, one), 50)
    assert broken(order(None, 199, one), order(cuts, 198, one), 50)
    by_size: Blend = (["web", "books"], None)
    assert not broken(order(None, 5000, by_size), order(cuts, 5000, by_size), 50), "one pass"


def test_stages_by_size_are_the_same() -> None:
    dumped = plan({"skip": [{"samples": [5, 9]}]}, blend=(BLEND[0], None)).dump()
    assert not list(changes(dumped, json.loads(json.dumps(dumped)), 10))


def test_each_stage_is_told_once_when_it_begins() -> None:
    """Whatever the steps are, and wherever a run resumes; what is cut out does not begin."""
    stages = [stage(samples=n) for n in (100, 50, 200)] + [stage()]
    cut = plan({"schedule": stages, "skip": [{"samples": [90, 155]}]}, 500)
    owners = {normalise(prefix): name for prefix, name in OWNERS.items()}
    for size in (1, 7, 60, 500):
        told = {}
        for before in range(0, 500, size):
            after = min(before + size, 500)
            for text in tell_begun(cut, owners, before, after):
                told[text] = after
                assert [*tell_begun(cut, owners, after, after)] == []
        first, second = told
        assert first.startswith("stage 3 of mix.schedule: samples 150 to 350: general 50.00%, code")
        assert second.startswith("stage 4 of mix.schedule: samples 350 to 500: ")
        for text, start in ((first, 90), (second, 285)):
            assert start <= told[text] < start + size
