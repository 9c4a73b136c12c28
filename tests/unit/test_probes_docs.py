"""docs/probes.md says what the code does: options, defaults, scores, and examples that run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.pages import blocks, text

from domain_pretrain.config import DomainConfig
from domain_pretrain.evaluate import LogitsModel, Score, run_probes
from domain_pretrain.evaluate.choice import CHINESE, ENGLISH, WAYS, Question
from domain_pretrain.evaluate.probe import PROBES

NAME = "docs/probes.md"
PAGE = text(NAME)
SECTIONS = {
    name: PAGE.split(f"\n## `{name}`\n")[1].split("\n## ")[0]
    for name in re.findall(r"^## `(\w+)`$", PAGE, re.MULTILINE)
}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogitsModel:
    """Of bytes, in a folder with the files that the page shows."""
    shown = re.findall(r"^`([\w/.]+)`[^`]*?:\n\n```\w+\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(shown) == 3
    monkeypatch.chdir(tmp_path)
    for name, content in shown:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content, encoding="utf-8")
    table = torch.randn(256, 256, generator=torch.Generator().manual_seed(1))
    return LogitsModel(
        lambda ids: table[ids],
        lambda given: list(given.encode()),
        lambda tokens: bytes(tokens).decode(errors="replace"),
        context=1024,
        end=0,
    )


CONFIGS = [block for block in blocks(NAME, "yaml") if block.startswith("evaluate:")]


def run(block: str, model: LogitsModel) -> list[Score]:
    Path("domains.yaml").write_text(block, encoding="utf-8")
    return run_probes(DomainConfig.load("domains.yaml").evaluate.probes, model)


@pytest.mark.parametrize("block", CONFIGS, ids=lambda block: block.split("\n")[2].strip())
def test_a_config_of_the_page_runs(block: str, model: LogitsModel) -> None:
    assert {score.domain for score in run(block, model)} >= {
        domain
        for options in yaml.safe_load(block)["evaluate"]["probes"].values()
        for domain in options.get("items", {})
    }


@pytest.mark.parametrize("page", [NAME, "docs/evaluation.md"])
def test_the_table_of_probes_has_them_all(page: str) -> None:
    table = text(page).split("| probe | asks |")[1].split("\n\n")[0]
    own = {
        name
        for name, (rule, _) in PROBES._rules.items()
        if rule.__module__.startswith("domain_pretrain.")  # others' are tests' own
    }
    assert set(re.findall(r"^\| \[`(\w+)`\]", table, re.MULTILINE)) == own


def test_the_page_names_every_score(model: LogitsModel) -> None:
    for name, section in SECTIONS.items():
        (block,) = [block for block in CONFIGS if block in section]
        scores = {score.name for score in run(block, model)}
        if name == "suite":
            assert {"basics.completion", "mine.contrast"} <= scores
            continue
        table = PAGE.split("| probe | asks | scores |")[1].split("\n\n")[0]
        (row,) = re.findall(rf"^\| \[`{name}`\].*", table, re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", row.split("|")[3])) == scores
        assert all(f"`{score}`" in section for score in scores)
        directions = re.findall(r"^\| `(\w+)` \| .* \| (higher|lower) \|$", section, re.MULTILINE)
        if name != "choice":
            assert {score: better == "higher" for score, better in directions} == {
                score.name: score.higher_is_better for score in run(block, model)
            }


def written(default: Any) -> str:
    return json.dumps(list(default) if isinstance(default, tuple) else default)


@pytest.mark.parametrize("name", ["contrast", "choice", "suite"])
def test_every_option_is_on_the_page_with_its_default(name: str) -> None:
    for key, field in PROBES._rules[name][1].model_fields.items():
        default = "required" if field.is_required() else written(field.default)
        assert f"| `{key}` | {default} |" in SECTIONS[name]


@pytest.mark.parametrize("name", ["completion", "sentence"])
def test_a_probe_without_a_table_has_only_items(name: str) -> None:
    assert list(PROBES._rules[name][1].model_fields) == ["items"]


def test_a_question_is_put_as_shown(model: LogitsModel) -> None:
    lines = Path("probes/exam.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines:
        (sheet,) = WAYS["plain"](Question(**json.loads(line)), 24)
        assert f"{sheet.prompt}\n" in blocks(NAME, "")
        assert f'with the answer "{sheet.answers[sheet.right]}":' in PAGE
    assert f'"{ENGLISH.none}" (“{CHINESE.none}”)' in PAGE


def test_what_the_page_says_of_rows(model: LogitsModel) -> None:
    rows = []

    class Counting(LogitsModel):
        def log_likelihoods(self, asked: Any) -> list[float]:
            rows.extend(asked)
            return super().log_likelihoods(asked)

    counting = Counting(
        model._logits, model.encode, model.decode, context=model.context, end=model.end
    )
    item = {"question": "x", "options": ["a", "b", "c", "d"], "answer": "A"}
    for options, shown in (
        ({}, "112 rows a question"),
        ({"variants": ["text", "shuffled"], "permutations": 4}, "makes it 20"),
    ):
        rows.clear()
        run_probes({"choice": {"items": {"a": [item]}, **options}}, counting)
        assert str(len(rows)) in shown and shown in PAGE
    rows.clear()
    run_probes({"suite": {"files": ["basics"]}}, counting)
    assert f"It takes {len(rows):,} rows." in PAGE


def test_the_example_prints_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(NAME, "python")
    exec(code, {"__name__": "example"})
    assert capsys.readouterr().out in blocks(NAME, "")


def test_the_planted_facts_are_those_of_the_result() -> None:
    result = json.loads(text("benchmarks/probes/results/cpu.json"))
    assert f"commit {result['commit']}," in PAGE
    for run in result["runs"]:
        row = [str(run["seed"])]
        for kind in ("planted", "control"):
            one = run["scores"][f"completion of {kind}"]
            row += [f"{one['before']:.3f}", f"{one['after']:.3f}"]
            row += [f"{one['change']:+.2f} ± {one['error']:.2f}"]
        assert f"| {' | '.join(row)} |".replace("-", "−") in PAGE
