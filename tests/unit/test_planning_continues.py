"""A plan that goes on from another run: its batch, its flags, what changes, what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.checkpoints import write_checkpoint
from support.prefixes import write_prefix

from domain_pretrain.checkpoints.tracker import write_tracker
from domain_pretrain.commands import main as cli
from domain_pretrain.config import DomainConfig
from domain_pretrain.data import already_read
from domain_pretrain.data.index import Index
from domain_pretrain.errors import ConfigError
from domain_pretrain.planning.before import changes
from domain_pretrain.planning.make import make_plan
from domain_pretrain.planning.output import flags_of, rate_flags, write
from domain_pretrain.planning.plan import Plan
from domain_pretrain.planning.section import PlanFile

ROPE: dict[str, Any] = {
    "seq_length": 4096,
    "global_batch_size": 1024,
    "max_position_embeddings": 4096,
    "position_embedding_type": "rope",
    "rotary_base": 10000,
    "context_parallel_size": 1,
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 documents of 420,000 tokens each; 99 of them are for training."""
    monkeypatch.chdir(tmp_path)
    for name in ("books", "web"):
        write_prefix(f"data/{name}", [420_000] * 100)


def before(**changes: Any) -> None:
    write_checkpoint(Path("short/checkpoints"), "iter_0000500", **{**ROPE, **changes})


def content(**continues: Any) -> dict[str, Any]:
    given = {"checkpoint": "short/checkpoints", "run": None, "rotary_base": 1000000, **continues}
    return {
        "seq_length": 32768,
        "continues": {key: value for key, value in given.items() if value is not None},
        "domains": {"books": "data/books", "web": "data/web"},
        "stages": [{"tokens": "41M", "mix": {"books": 1, "web": 1}}],
    }


def plan_of(given: dict[str, Any], read: Any = None) -> Plan:
    Path("long.yaml").write_text(yaml.safe_dump(given), "utf-8")
    return make_plan(PlanFile.load("long.yaml"), read)


def refused(given: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        plan_of(given)
    return str(error.value)


def test_equal_tokens() -> None:
    """1,024 × 4,096 tokens are 128 samples of 32,768; 41M tokens are 9 such steps."""
    before()
    plan = plan_of(content(context_parallel_size=4))
    assert (plan.file.batch, plan.iterations) == (128, 9)
    write(plan, Path("long.yaml"), Path("out"))
    found = flags_of("out/plan.json")
    assert found[: found.index("--data-path")] == [
        *("--seq-length", "32768", "--global-batch-size", "128", "--train-iters", "9"),
        *("--split", "99,1,0", "--pretrained-checkpoint", "short/checkpoints"),
        *("--max-position-embeddings", "32768", "--rotary-base", "1000000"),
        *("--context-parallel-size", "4"),
    ]
    assert rate_flags(plan)[:4] == ["--lr-decay-style", "WSD", "--lr-wsd-decay-iters", "9"]
    told = json.loads(Path("out/plan.json").read_text("utf-8"))["continues"]
    assert told == {
        "checkpoint": "short/checkpoints",
        "iteration": 500,
        "seq_length": 4096,
        "global_batch_size": 1024,
        "max_position_embeddings": 4096,
        "rotary_base": 10000,
    }
    assert plan.before is not None
    assert list(changes(plan.before, plan.file)) == [
        ("tokens of a sample", "4,096", "32,768"),
        ("samples of a step", "1,024", "128"),
        ("tokens of a step", "4,194,304", "4,194,304"),
        ("positions", "4,096", "32,768"),
        ("context parallel", "1", "4"),
        ("rotary base", "10,000", "1,000,000"),
    ]


def test_a_plan_without_a_run_before_needs_a_batch() -> None:
    given = content()
    del given["continues"]
    assert "global_batch_size: a step needs a number of samples" in refused(given)


def test_what_does_not_fit() -> None:
    before()
    assert "32,768 tokens cannot be cut into 2 × 3 equal pieces" in refused(
        content(context_parallel_size=3)
    )
    assert "4,194,304 tokens (1,024 × 4,096), which is no whole number of samples of 30,000" in (
        refused({**content(), "seq_length": 30000})
    )
    write_tracker(Path("short/checkpoints"), 400)
    assert "says '400', which is not there" in refused(content())
    told = refused(content(checkpoint="short/checkpoints/iter_0000500"))
    assert "is not the checkpoint that short/checkpoints names (400)" in told


def test_learned_positions_end_somewhere() -> None:
    before(position_embedding_type="learned_absolute")
    assert "has learned 4,096 positions, and no others" in refused(content(rotary_base=None))
    assert "holds a model without rotary positions" in refused(content())


def test_an_imported_model_does_not_say_how_many_tokens_a_step_had() -> None:
    write_checkpoint(Path("base"), "release", **{**ROPE, "global_batch_size": None})
    given = content(checkpoint="base")
    assert "base does not say how many tokens a step had" in refused(given)
    plan = plan_of({**given, "global_batch_size": 64})
    assert plan.file.batch == 64
    assert not plan.warnings


def test_what_is_doubtful() -> None:
    before()
    told = plan_of({**content(rotary_base=None), "global_batch_size": 64}).warnings
    assert [text[:40] for text in told] == [
        "the positions grow from 4,096 to 32,768,",
        "a step has 2,097,152 tokens, and had 4,1",
        "what the run before has read may be read",
    ]


def test_positions_that_the_model_has_are_no_stretch() -> None:
    before(max_position_embeddings=131072, rotary_base=500000)
    plan = plan_of(content(rotary_base=None))
    assert not [text for text in plan.warnings if "positions" in text]
    assert plan.before is not None and ("positions", "131,072", "131,072") in list(
        changes(plan.before, plan.file)
    )


def test_what_was_read_is_no_budget() -> None:
    """Half of the books: with 12 samples of each of 99 documents, 49 are left."""
    before()
    index = Index.read("data/books")
    read = already_read.content_of("short", 500, {"data/books": (index, np.arange(100) < 50)})
    given = content()
    plan = plan_of(given, read)
    assert {one.source.prefix: one.source.corpus.tokens for one in plan.prefixes} == {
        "data/books": 49 * 420_000,
        "data/web": 99 * 420_000,
    }
    write(plan, Path("long.yaml"), Path("out"))
    config = DomainConfig.load("out/domains.yaml")
    assert config.mix.already_read == Path("out/already_read.json")
    assert json.loads(Path("out/already_read.json").read_text("utf-8")) == read
    given["stages"][0]["tokens"] = "42M"
    assert "'data/books' (books) is asked for 640 samples" in refused_with(given, read)


def refused_with(given: dict[str, Any], read: Any) -> str:
    with pytest.raises(ConfigError) as error:
        plan_of(given, read)
    return str(error.value)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    before()
    Path("long.yaml").write_text(yaml.safe_dump(content()), "utf-8")
    assert cli.main(["plan", "long.yaml"]) == 0
    told = capsys.readouterr().out
    assert "Goes on from iteration 500 of short/checkpoints" in told
    assert "written: long.plan/plan.json, long.plan/domains.yaml\n" in told
