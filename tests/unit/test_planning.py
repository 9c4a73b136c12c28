"""Plans of budgets: the page's examples worked out by hand, what they become, what is refused."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.pages import blocks
from support.prefixes import write_prefix

from domain_pretrain.commands import main as cli
from domain_pretrain.config import DomainConfig
from domain_pretrain.errors import ConfigError
from domain_pretrain.launch.flags import Flags
from domain_pretrain.launch.preflight import plan_of_flags
from domain_pretrain.planning import __main__ as flags_of_plan
from domain_pretrain.planning.make import make_plan
from domain_pretrain.planning.numbers import amount
from domain_pretrain.planning.output import config_of, flags, flags_of, plan_json, rate_flags
from domain_pretrain.planning.plan import Plan
from domain_pretrain.planning.section import PlanFile
from domain_pretrain.planning.shares import whole

LENGTH = 4096
# Of the page's data: samples of one epoch of the training documents, 99 of 100.
CORPORA = {
    "finance": 3000,
    "maths": 4000,
    "code": 2500,
    "logic": 1000,
    "dialogue": 1500,
    "maths_slow": 5000,
    "maths_fast": 2500,
    "code_slow": 4000,
    "code_fast": 6000,
    "news/a": 1000,
    "news/b": 2000,
    "web": 20000,
    "books": 5000,
    "questions": 600,
}


@pytest.fixture(autouse=True)
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 documents each, and one token more in the first: it is only predicted from."""
    monkeypatch.chdir(tmp_path)
    for name, samples in CORPORA.items():
        each, rest = divmod(samples * LENGTH, 99)
        write_prefix(f"data/{name}", [each + rest + 1] + [each] * 99)


def plan_of(content: str | dict[str, Any]) -> Plan:
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    Path("plan.yaml").write_text(text, "utf-8")
    return make_plan(PlanFile.load("plan.yaml"))


def small(**changes: Any) -> dict[str, Any]:
    """A plan of 10 steps, with changes; None takes a key out."""
    content: dict[str, Any] = {
        "seq_length": LENGTH,
        "global_batch_size": 64,
        "domains": {
            "finance": "data/finance",
            "general": {"web": "data/web", "books": ["data/books"]},
        },
        "stages": [{"samples": 640, "mix": {"finance": 1, "general": 5}}],
    }
    content.update(changes)
    return {key: value for key, value in content.items() if value is not None}


def samples(plan: Plan) -> dict[str, int]:
    return {one.source.prefix.removeprefix("data/"): one.samples for one in plan.prefixes}


PAGE = blocks("docs/planning.md", "yaml")


def test_the_pages_budget_in_tokens() -> None:
    """20M tokens are 4,882.8 samples: 76 steps of 64, in parts of 3 : 2 : 2 : 3."""
    plan = plan_of(PAGE[0])
    assert (plan.iterations, plan.samples) == (76, 4864)
    # 1459.2, 972.8, 972.8, and 1459.2 as 1000 : 1500 = 583.7, 875.5: by the largest remainders.
    assert samples(plan) == {
        "finance": 1459,
        "maths": 973,
        "code": 973,
        "logic": 584,
        "dialogue": 875,
    }
    assert not plan.warnings and not plan.left_out
    epochs = {one.source.domain: one.epochs for one in plan.prefixes}
    assert epochs["logic"] == pytest.approx(584 / 1000)


def test_the_pages_budget_in_samples() -> None:
    """20,000 samples are 312.5 steps; each half of 312 steps is slow : fast = 3 : 1."""
    plan = plan_of(PAGE[1])
    assert plan.samples == 312 * 64 == 19968
    assert samples(plan) == {
        "maths_slow": 7488,
        "maths_fast": 2496,
        "code_slow": 7488,
        "code_fast": 2496,
    }
    assert plan.left_out == ("maths/raw",)  # whose file is not even there
    assert plan.prefixes[0].epochs == pytest.approx(7488 / 5000)


def test_the_pages_ratios() -> None:
    """50M tokens are 12,207 samples, 190 steps; finance 3 of 18, over three files by their size."""
    plan = plan_of(PAGE[2])
    assert plan.samples == 190 * 64 == 12160
    total = Fraction(12160, 18)
    expected = {
        "finance": total * 3 * 3000 / 6000,
        "news/a": total * 3 * 1000 / 6000,
        "news/b": total * 3 * 2000 / 6000,
        "web": total * 10,
        "books": total * 5,
    }
    found = samples(plan)
    assert found.keys() == expected.keys()
    assert all(abs(found[name] - expected[name]) < 1 for name in found)
    assert sum(found.values()) == 12160


def test_the_pages_stages() -> None:
    """40M tokens are nine tenths of the run."""
    plan = plan_of(PAGE[3])
    assert [stage.name for stage in plan.stages] == ["main", "anneal"]
    assert [stage.iterations for stage in plan.stages] == [152, 16]  # of 152.6 and 16.95
    assert plan.prefixes[0].stages == (1622, 512)
    assert rate_flags(plan)[:4] == ["--lr-decay-style", "WSD", "--lr-wsd-decay-iters", "16"]
    content = yaml.safe_load(yaml.safe_dump(config_of(plan)))
    assert content == {
        "domains": {
            "finance": {"data": ["data/finance"]},
            "questions": {"data": ["data/questions"]},
            "general": {"data": ["data/web", "data/books"]},
        },
        "mix": {
            "schedule": [
                {
                    "samples": 9728,
                    "weights": {"finance": 1622, "general": {"data/web": 6485, "data/books": 1621}},
                    "shape": "constant",
                },
                {
                    "samples": 1024,
                    "weights": {
                        "finance": 512,
                        "questions": 256,
                        "general": {"data/web": 205, "data/books": 51},
                    },
                    "shape": "constant",
                },
            ]
        },
    }
    words = flags(plan, Path("domains.yaml"))
    assert "--data-path" not in words
    assert words[words.index("--train-iters") + 1] == "168"


def test_the_page_shows_what_the_command_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows of the data, whatever the width of the terminal."""
    sizes = {"finance": 3000, "maths": 4000, "code": 2500, "logic": 1000, "dialogue": 1500}
    for name, documents in sizes.items():
        write_prefix(f"data/{name}", [4000] * documents)
    Path("finance.yaml").write_text(PAGE[0], "utf-8")
    assert cli.main(["plan", "finance.yaml"]) == 0
    printed = capsys.readouterr().out
    (shown,) = [block for block in blocks("docs/planning.md", "") if block.startswith("Stages")]
    rows = [line for line in shown.splitlines() if "data/" in line and line.startswith("│")]
    assert len(rows) == 5
    assert all(row in printed for row in rows)
    written, train = shown.splitlines()[-3:-1]
    assert written in printed and train.removesuffix(" …") in printed


def test_parts_share_by_their_numbers_or_by_size() -> None:
    stages = [{"samples": 3200, "mix": {"finance": 1, "general": 4}}]

    def shared(**changes: Any) -> dict[str, int]:
        return samples(plan_of(small(stages=stages, **changes)))

    assert shared() == {"finance": 640, "web": 2048, "books": 512}
    ratios = {"web": 1, "books": 3}
    assert shared(parts={"general": ratios}) == {"finance": 640, "web": 640, "books": 1920}
    assert shared(parts={"general": {"books": 3}}) == {"finance": 640, "books": 2560}
    # In a group, a domain counts with what of it is sampled: 3,000 and 5,000.
    stages = [{"samples": 3200, "mix": {"finance+general": 1}}]
    assert shared(parts={"general": {"books": 3}}) == {"finance": 1200, "books": 2000}
    # One prefix in two entries is there once, as in a config; with numbers for them it is nobody's.
    domains = {"finance": "data/finance", "general": ["data/web", "./data/we*"]}
    stages = [{"samples": 3200, "mix": {"finance": 1, "general": 4}}]
    assert shared(domains=domains) == {"finance": 640, "web": 2560}
    numbers = {"general": {"data/web": 1, "./data/we*": 1}}
    told = refused(small(domains=domains, stages=stages, parts=numbers))
    assert "'./data/web' is in two parts of 'general': data/web, ./data/we*" in told


def test_the_config_of_the_run_may_name_the_domains() -> None:
    config = {
        "domains": {
            "money": {"data": ["data/finance", "data/news/*"], "weight": 1},
            "general": {"data": ["data/web"], "weight": 5, "pinned": True},
            "maths": {"data": ["data/maths"], "weight": 2},
        },
        "channel_loss": {"average": "sample"},
        "mix": {"schedule": [{"weights": {"money": 1}}], "skip": [{"samples": [8, 16]}]},
    }
    Path("given.yaml").write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    content = small(domains=None, domain_config="given.yaml", parts={"money": {"data/news/*": 1}})
    content["stages"] = [{"samples": 640, "mix": {"money": 1, "general": 1}}]
    plan = plan_of(content)
    assert samples(plan) == {"news/a": 107, "news/b": 213, "web": 320}
    assert plan.left_out == ("money/data/finance", "maths")
    assert config_of(plan) == {
        "domains": {
            "money": {"data": ["data/news/a", "data/news/b"]},
            "general": {"data": ["data/web"], "pinned": True},
        },
        "channel_loss": {"average": "sample"},
        "mix": {"skip": [{"samples": [8, 16]}]},
    }


STAGES = [{"samples": 640, "mix": {"money": 1}}, {"samples": 64, "mix": {"money": 1}}]


@pytest.mark.parametrize("stages", [STAGES[:1], STAGES], ids=["one blend", "stages"])
@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"dynamic": {"strategy": "linupper"}}, "mix.dynamic lets the losses decide"),
        (
            {"skip": [{"documents": [1], "prefix": "data/web"}]},
            "the run would refuse the config that comes of given.yaml:\n"
            "  mix.skip: 'data/web' is no prefix of the training data",
        ),
    ],
    ids=["dynamic", "not sampled"],
)
def test_what_no_run_would_take_is_refused(
    stages: list[Any], mix: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    domains = {"money": {"data": ["data/finance"]}, "general": {"data": ["data/web"]}}
    Path("given.yaml").write_text(yaml.safe_dump({"domains": domains, "mix": mix}), "utf-8")
    content = small(domains=None, domain_config="given.yaml", stages=stages)
    Path("plan.yaml").write_text(yaml.safe_dump(content), "utf-8")
    assert cli.main(["plan", "plan.yaml"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("plan.plan").exists()


@pytest.mark.parametrize("example", [2, 3], ids=["one blend", "stages"])
def test_preflight_counts_what_was_planned(example: int) -> None:
    """By the flags and the config alone: the same samples, tokens and epochs of each domain."""
    Path("finance.yaml").write_text(PAGE[example], "utf-8")
    assert cli.main(["plan", "finance.yaml"]) == 0
    content = json.loads(Path("finance.plan/plan.json").read_text("utf-8"))
    words = flags_of("finance.plan/plan.json")
    assert words == content["flags"]
    found = plan_of_flags(Flags.parse([*words, "--micro-batch-size", "1"]))
    assert found is not None
    assert (found.iterations, found.tokens) == (content["iterations"], content["tokens"])
    planned: dict[str, list[dict[str, Any]]] = {}
    for one in content["prefixes"]:
        planned.setdefault(one["domain"], []).append(one)
    assert [domain.name for domain in found.domains] == list(planned)
    for domain in found.domains:
        own = planned[domain.name]
        assert domain.samples == pytest.approx(sum(one["samples"] for one in own))
        assert domain.tokens == pytest.approx(sum(one["tokens"] for one in own))
        assert domain.corpus.tokens == sum(one["corpus_tokens"] for one in own)
        per_epoch = sum(one["samples_per_epoch"] for one in own)
        assert domain.epochs == pytest.approx(sum(one["samples"] for one in own) / per_epoch)


def test_the_runs_config_is_one() -> None:
    """A file name may look like a glob; the run takes the plan's config and weights together."""
    write_prefix("data/wiki[zh]", [100 * LENGTH] * 100)
    content = small(domains={"wiki": ["data/wiki[zh]", "data/web"], "finance": "data/finance"})
    content["stages"][0]["mix"] = {"wiki": 2, "finance": 1}
    Path("finance.yaml").write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    assert cli.main(["plan", "finance.yaml", "--output", "out/of"]) == 0
    config = DomainConfig.load("out/of/domains.yaml")
    assert config.domains["wiki"].data == ["data/wiki[[]zh]", "data/web"]
    words = flags_of("out/of/plan.json")
    assert words[-2:] == ["--domain-config", "out/of/domains.yaml"]
    found = plan_of_flags(Flags.parse([*words, "--micro-batch-size", "1"]))
    assert found is not None and [domain.name for domain in found.domains] == ["wiki", "finance"]


def refused(content: str | dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        plan_of(content)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            {"seq_length": True, "global_batch_size": None, "split": "0,1", "epochs": 0},
            ["seq_length: ", "global_batch_size: ", "split: leaves nothing", "epochs: should be"],
        ),
        ({"split": "a"}, ["split: --split 'a' must be up to three numbers"]),
        ({"domians": {}}, ["domians: unknown key; did you mean 'domains'?"]),
        ({"domains": {"a+b": "data/web"}}, ["domains.a+b: no name of a domain"]),
        (
            {"domains": {"a": [], "b": {"c": 3}, "d": [""], "e": None}},
            ["domains.a: ", "domains.b: c should be", "domains.d: ", "domains.e: "],
        ),
        (
            {"domains": {"a": "\ud800", "b": {"\udfff": "data/web"}}, "seq_length": 10**400},
            ["domains.a: should be texts", "domains.b: should be texts", "seq_length: "],
        ),
        ({"domain_config": "given.yaml"}, ["top level: needs one of domains and domain_config"]),
        ({"domains": None}, ["top level: needs one of domains and domain_config"]),
        ({"stages": []}, ["stages: "]),
        ({"parts": {"general": {"web": {"x": 1}}}}, ["parts.general: web should be a number"]),
        (
            {
                "stages": [
                    {"tokens": "20Q", "mix": {"finance": False, "general": {"web": 0}}},
                    {"share": 1, "mix": {"finance": 1}},
                    {"samples": {"finance": 1.5}},
                    {"samples": 10, "mix": {}},
                    {"samples": 10, "mix": [1]},
                ]
            },
            [
                "stages.0.tokens: should be a number above 0, as in 10000, 10k, 20M or 1.5B",
                "stages.0.mix: finance should be a number above 0: leave out what is not sampled",
                "general.web should be a number above 0",
                "stages.1.share: should be below 1",
                "stages.2.samples: finance should be a whole number",
                "stages.3.mix: should give a number to each domain",
                "stages.4.mix: should give a number to each domain",
            ],
        ),
        (
            {
                "stages": [
                    {"mix": {"finance": 1}},
                    {"tokens": 5, "samples": 5, "mix": {"finance": 1}},
                    {"tokens": 5},
                    {"tokens": {"finance": 5}, "mix": {"finance": 1}},
                ]
            },
            [
                "stages.0: needs one of tokens, samples and share, and has none of them",
                "stages.1: needs one of tokens, samples and share, and has tokens and samples",
                "stages.2: needs a mix",
                "stages.3: tokens says what each domain gets, and so does mix",
            ],
        ),
        (
            {
                "stages": [
                    {"name": "a", "samples": 640, "mix": {"finance": 1}},
                    {"name": "a", "share": 0.5, "mix": {"finance": 1}},
                    {"share": 0.5, "mix": {"finance": 1}},
                ]
            },
            ["two are called a", "they overlap: their shares add up to 1"],
        ),
        (
            {"stages": [{"share": 0.5, "mix": {"finance": 1}}]},
            ["all of them are shares, and none says of how much"],
        ),
    ],
)
def test_what_is_no_plan(changes: dict[str, Any], messages: list[str]) -> None:
    """All of it at once."""
    told = refused(small(**changes))
    assert told.startswith("plan 'plan.yaml' is wrong:")
    for message in messages:
        assert message in told, told


def test_a_file_that_is_no_mapping() -> None:
    assert "must be a mapping with the keys seq_length," in refused("- 1")
    assert "plan 'plan.yaml', line 1" in refused("a: [")
    with pytest.raises(ConfigError, match=r"plan 'none.yaml' does not exist"):
        PlanFile.load("none.yaml")
    Path("empty.yaml").write_text("channel_loss: {}", "utf-8")
    assert "names no domains" in refused(small(domains=None, domain_config="empty.yaml"))
    told = refused(small(domains=None, domain_config="none.yaml"))
    assert "domain config 'none.yaml' does not exist" in told


def test_all_names_and_files_that_are_wrong_are_told_at_once() -> None:
    write_prefix("data/short", [LENGTH + 1])
    content = small(
        domains={
            "finance": ["data/finanse", "none/*"],
            "general": {"web": "data/web", "books": "data/books"},
            "far": ["s3://bucket/a", "s3://bucket/b*"],
        },
        parts={"genral": {"web": 1}, "general": {"wbe": 1}},
        stages=[
            {"samples": 640, "mix": {"fnance": 1, "finance": 1, "finance+general": 2}},
            {"samples": 640, "mix": {"general": {"bookz": 1}, "far": 1}},
            {"samples": 640, "mix": {"general+far": {"web": 1}}},
            {"samples": 640, "mix": {"general+general": 1}},
        ],
    )
    told = refused(content)
    for message in (
        "parts: unknown domain 'genral'; did you mean 'general'?",
        "parts: 'general' has no part 'wbe'; did you mean 'web'? (parts: web, books)",
        "stage 1: unknown domain 'fnance'; did you mean 'finance'? (domains: finance,",
        "stage 1: 'finance' is there twice",
        "stage 2: 'general' has no part 'bookz'; did you mean 'books'?",
        "stage 3: the group 'general+far' needs one number",
        "stage 4: 'general' is there twice",
        "domain 'finance' has no data: 'none/*' matches no .idx file",
        "'data/finanse.idx' does not exist; did you mean 'data/finance'?",
        "'s3://bucket/a' lies in an object store",
        "'s3://bucket/b*' is a glob in an object store",
    ):
        assert message in told, told


def test_files_that_cannot_be_sampled() -> None:
    write_prefix("data/short", [40] * 100)  # 3,960 tokens to train on
    write_prefix("data/few", [10 * LENGTH])  # one document, which the split gives to training
    told = refused(
        small(
            domains={"short": "data/short", "few": "data/few"},
            stages=[{"samples": 640, "mix": {"short": 1, "few": 1}}],
        )
    )
    assert "'data/short' (short) is shorter than one sequence: 3,960 tokens to train on" in told
    assert "'data/few' has 1 documents, of which the valid split gets none" in told


def test_one_file_in_two_domains() -> None:
    told = refused(
        small(
            domains={"a": "data/web", "b": "./data/*b*"},
            stages=[{"samples": 640, "mix": {"a": 1, "b": 1}}],
        )
    )
    assert "belongs to two domains: 'a' (by 'data/web') and 'b' (by './data/*b*')" in told


def test_a_budget_beyond_the_data() -> None:
    """Counted over all stages; with the epochs that it would need, it is a plan."""
    stages = [
        {"samples": 3200, "mix": {"finance": 1, "general": 1}},
        {"samples": 3200, "mix": {"finance": 1}},
    ]
    told = refused(small(stages=stages))
    assert told.splitlines()[1:] == [
        "  'data/finance' (finance) is asked for 4,800 samples (19,660,800 tokens), and has 3,000 "
        "(12,288,001 tokens) to train on: lower its part, or allow epochs: 1.60 (now 1)"
    ]
    plan = plan_of(small(stages=stages, epochs=1.6))
    assert plan.prefixes[0].epochs == pytest.approx(1.6)
    exact = [{"samples": {"finance": 3000, "general": 25000 - 56}}]
    assert plan_of(small(stages=exact, global_batch_size=8)).prefixes[0].epochs == 1


def test_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    """And with --strict they leave nothing written."""
    write_prefix("data/tiny", [3 * LENGTH - 97] + [1] * 99)
    content = small(
        epochs=100,
        domains={"finance": "data/finance", "tiny": "data/tiny", "web": "data/web"},
        stages=[
            {"name": "main", "samples": 19200, "mix": {"finance": 1, "tiny": 0.001}},
            {"name": "last", "tokens": "10k", "mix": {"web": 1, "finance": 0.001}},
        ],
    )
    Path("finance.yaml").write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    warned = [
        "stage last is shorter than one batch: 2.4 of 64 samples; it gets one step",
        "'data/finance' gets no sample in stage last: its part is 0.0999% of 64 samples",
        "'data/tiny' (tiny) is small: 3 samples in all, less than one batch of 64",
        "'data/finance' is read 6.4 times: beyond 4 epochs",
        "'data/tiny' is read 6.3 times: beyond 4 epochs",
    ]
    assert cli.main(["plan", "finance.yaml", "--strict"]) == 1
    told = capsys.readouterr().err
    for warning in warned:
        assert f"plan: {warning}" in told, told
    assert not Path("finance.plan").exists()
    assert cli.main(["plan", "finance.yaml"]) == 0
    content = json.loads(Path("finance.plan/plan.json").read_text("utf-8"))
    assert len(content["warnings"]) == len(warned)
    Path("plan.yaml").write_text(yaml.safe_dump(small(), sort_keys=False), "utf-8")
    assert cli.main(["plan", "plan.yaml", "--strict"]) == 0
    assert Path("plan.plan/plan.json").exists()


def test_what_gets_no_sample_at_all_is_left_out() -> None:
    """A weight of 0 is none that Megatron takes."""
    plan = plan_of(small(stages=[{"samples": 64, "mix": {"finance": 0.001, "general": 5}}]))
    assert "gets no sample in stage 1" in plan.warnings[0]
    assert "data/finance" not in flags(plan, Path("x"))
    assert list(config_of(plan)["domains"]) == ["general"]


def test_many_problems_are_counted() -> None:
    for n in range(30):
        write_prefix(f"many/{n:02}", [LENGTH + 1] * 100)
    domains = {"many": "many/*"}
    told = refused(small(domains=domains, stages=[{"samples": 64000, "mix": {"many": 1}}]))
    assert told.count("'many/") == 20
    assert told.endswith("and 10 more such")


def test_the_command_leaves_other_files_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("plan.yaml").write_text(yaml.safe_dump(small(), sort_keys=False), "utf-8")
    Path("mine").mkdir()
    Path("mine/domains.yaml").write_text("domains: {}\n", "utf-8")
    assert cli.main(["plan", "plan.yaml", "--output", "mine"]) == 2
    assert "no plan has made it" in capsys.readouterr().err
    assert Path("mine/domains.yaml").read_text("utf-8") == "domains: {}\n"
    assert cli.main(["plan", "plan.yaml", "--output", "theirs"]) == 0
    assert cli.main(["plan", "plan.yaml", "--output", "theirs"]) == 0  # its own it replaces
    assert cli.main(["plan", "plan.yaml", "--output", "plan.yaml"]) == 2
    Path("theirs/domains.yaml").write_text("domains: {finance: {data: [data/finance]}}", "utf-8")
    content = small(domains=None, domain_config="theirs/domains.yaml")
    content["stages"][0]["mix"] = {"finance": 1}
    Path("plan.yaml").write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    assert cli.main(["plan", "plan.yaml", "--output", "theirs"]) == 2
    assert "is the domain_config of the plan" in capsys.readouterr().err
    Path("plan.yaml").write_text(yaml.safe_dump(small(), sort_keys=False), "utf-8")
    assert "Traceback" not in capsys.readouterr().err
    shutil.rmtree("data")
    assert cli.main(["plan", "plan.yaml"]) == 2
    assert "'data/finance.idx' does not exist" in capsys.readouterr().err


def test_the_flags_for_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    Path("plan.yaml").write_text(yaml.safe_dump(small(), sort_keys=False), "utf-8")
    assert cli.main(["plan", "plan.yaml"]) == 0
    capsys.readouterr()
    assert flags_of_plan.main(["plan.plan/plan.json"]) == 0
    plan = plan_of(small())
    assert capsys.readouterr().out.splitlines() == flags(plan, Path("plan.plan/domains.yaml"))
    for content in ("[]", '{"flags": []}', '{"flags": "x"}', '{"flags": ["a\\nb"]}', "no"):
        Path("bad.json").write_text(content, "utf-8")
        assert flags_of_plan.main(["bad.json"]) == 2
        assert "bad.json" in capsys.readouterr().err


def test_plan_json_is_json() -> None:
    content = plan_json(plan_of(PAGE[3]), Path("domains.yaml"))
    assert json.loads(json.dumps(content)) == content
    assert sum(stage["samples"] for stage in content["stages"]) == content["samples"]
    assert sum(one["samples"] for one in content["prefixes"]) == content["samples"]
    for stage in content["stages"]:
        own = stage["samples_by_domain"].values()
        assert sum(sum(prefixes.values()) for prefixes in own) == stage["samples"]


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (7, 7),
        (1e9, 10**9),
        (1e17, 10**17),
        ("10k", 10_000),
        ("20M", 20_000_000),
        ("20m", 20_000_000),
        ("1.5B", 1_500_000_000),
        ("0.1T", 100_000_000_000),
        ("1e9", 10**9),
        ("1,000,000", 10**6),
        ("1_000_000", 10**6),
        ("1,500.5k", 1_500_500),
        (" 3 k ", 3000),
        (2.0, 2),
    ],
)
def test_amounts(given: Any, value: int) -> None:
    assert amount(given) == value


@pytest.mark.parametrize(
    "given", [0, -1, "", "M", "20Q", "1.5", "0.0001k", "1e18", True, None, [], 1e400]
)
def test_what_is_no_amount(given: Any) -> None:
    with pytest.raises(ValueError, match="should be a"):
        amount(given)


@pytest.mark.parametrize("given", ["1,5k", "1,50", "1000,000", ",5", "1,,000", "1,000,", "1_0,000"])
def test_a_comma_parts_thousands(given: str) -> None:
    """And is no decimal point, which 1,5 has in many countries: 15,000 would be ten times it."""
    with pytest.raises(ValueError, match="a comma parts thousands, as in 10,000"):
        amount(given)


@given(
    st.lists(st.fractions(min_value=Fraction(1, 1000), max_value=1000), min_size=1, max_size=30),
    st.integers(0, 10_000),
)
def test_whole_numbers_of_parts(parts: list[Fraction], total: int) -> None:
    counts = whole(parts, total)
    assert sum(counts) == total
    for part, count in zip(parts, counts, strict=True):
        assert abs(count - part * total / sum(parts)) < 1
