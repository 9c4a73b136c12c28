"""``domain-pretrain replay``: the samples, the probe, the verdict, and the commands."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import write_checkpoint
from support.traces import BATCH, SEQUENCE, note, write_documents, write_metrics

from domain_pretrain.commands.main import main
from domain_pretrain.commands.replay import find_jump
from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate import LogitsModel, Score, run_probes
from domain_pretrain.records.reader import EVENTS_FILE
from domain_pretrain.records.record import Finding
from domain_pretrain.records.score import Part
from domain_pretrain.report.replay import TOO_FEW, WORDS, judge


def model(context: int = 4) -> LogitsModel:
    """That is sure of a 1 by half, and has the rest for the other three tokens alike."""
    shares = torch.tensor([1 / 6, 1 / 2, 1 / 6, 1 / 6], dtype=torch.float64)
    return LogitsModel(
        lambda ids: shares.log().expand(1, ids.shape[1], 4),
        lambda text: list(map(int, text)),
        str,
        context=context,
        end=0,
    )


def ask(path: Path, rows: Any, **how: int) -> list[Score]:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return run_probes({"replay": {"rows": str(path)}}, model(**how))


def test_the_probe_scores_each_group(tmp_path: Path) -> None:
    """The first token of a sample is not asked about."""
    rows = {"suspects": {"7": [1, 2, 3, 0], "8": [1]}, "control": {"1": [0, 1, 1], "2": [2, 3]}}
    one, other = ask(tmp_path / "rows.json", rows)
    assert (one.name, one.domain, other.domain) == ("replay", "suspects", "control")
    assert not one.higher_is_better
    assert one.mean == pytest.approx(math.log(6))
    assert [(part.name, part.count) for part in one.parts] == [("7", 3)]
    assert other.sum == pytest.approx(2 * math.log(2) + math.log(6)) and other.count == 3


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([1], "an object of groups"),
        ({"a": {"1": ["x"]}}, "an object of groups"),
        ({"a": {"1": [1]}}, "'a' has no sample of two tokens"),
        ({"a": {"1": [1] * 6}}, "does not fit the model's context"),
    ],
)
def test_the_probe_refuses(rows: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        ask(tmp_path / "rows.json", rows)


def score(group: str, *losses: float) -> Score:
    """Of samples of ten tokens each; those of two groups are others."""
    parts = [Part(f"{group} {at}", 10 * loss, 10) for at, loss in enumerate(losses)]
    found = Score.of("replay", "x", parts, higher_is_better=False)
    assert found is not None
    return found


# Three losses that are 0.1 apart have the standard error 0.058. Of three samples, chance alone
# makes a difference of 4.3 standard errors in one of twenty.
USUAL, SAME, HIGHER, HARD = (2.0, 2.1, 2.2), (2.01, 2.08, 2.21), (2.5, 2.6, 2.71), (6.0, 6.2, 6.1)


@pytest.mark.parametrize(
    ("suspects", "control", "verdict"),
    [
        ((HARD, HARD), (USUAL, SAME), WORDS[True, False]),
        ((USUAL, HIGHER), (SAME, HIGHER), WORDS[False, True]),
        ((HARD, HARD), (USUAL, HIGHER), WORDS[True, True]),
        ((USUAL, USUAL), (SAME, SAME), WORDS[False, False]),
        # 0.2 higher, at an error of 0.082: chance alone, of three samples.
        (((2.2, 2.3, 2.4), USUAL), (USUAL, SAME), WORDS[False, False]),
        # Easier is no suspicion, and what falls has not risen.
        ((USUAL, USUAL), (HARD, USUAL), WORDS[False, False]),
        ((USUAL, USUAL), (SAME, (math.nan,) * 3), WORDS[False, True]),
        (((6.0,), (6.0,)), (USUAL, SAME), TOO_FEW),
    ],
)
def test_the_verdict(suspects: Any, control: Any, verdict: str) -> None:
    before, after = (score("suspect", *losses) for losses in suspects)
    first, last = (score("control", *losses) for losses in control)
    assert judge((before, after), (first, last)) == verdict


def finding(rule: str, iteration: int, **evidence: Any) -> Finding:
    return Finding(rule, "general", iteration, "warning", "loss jumps", evidence=evidence)


FINDINGS = [
    finding("spike", 4, iterations=[4, 5]),
    finding("spike", 7, iterations=[7, 8], onset=5),
    finding("forgetting", 8),
    finding("too_low", 9, iterations=[9, 10]),
]


def test_which_finding() -> None:
    assert find_jump(FINDINGS, None).iteration == 7
    assert find_jump(FINDINGS, 4).iteration == 9
    for number, given in ((3, FINDINGS), (0, FINDINGS), (5, FINDINGS), (None, FINDINGS[2:])):
        with pytest.raises(ConfigError, match="too_low in general at iteration 9"):
            find_jump(given, number)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 12 iterations with checkpoints every 4; the current directory."""
    pytest.importorskip("megatron.core")
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for at, name in enumerate(("general", "finance")):  # tokens tell whose they are
        write_documents(tmp_path / name, [[100 * at + n] * (9 + n) for n in range(40)])
    domains = {str(tmp_path / name): name for name in ("general", "finance")}
    note(Path("run"), domains, 12, cache="cache")
    write_metrics(Path("run"), list(domains.values()), 12)
    for at in (4, 8, 12):
        write_checkpoint(Path("run/checkpoints"), f"iter_{at:07d}", seq_length=SEQUENCE)
    spike = {"finding": "spike", "domain": "general", "iteration": 7, "severity": "warning"}
    evidence = {"iterations": [7, 8], "onset": 5}
    told = {"message": "loss jumps", "cause": "data", "documents": [], "advice": ""}
    line = json.dumps({**spike, **told, "evidence": evidence})
    Path("run", EVENTS_FILE).write_text(line + "\n", encoding="utf-8")
    return tmp_path


def traced(capsys: Any, iterations: str) -> dict[str, list[int]]:
    """What ``trace`` says of general's samples: their tokens, which are their documents'."""
    assert main(["trace", "run", "--iteration", iterations, "--domain", "general", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {
        str(one["sample"]): [d["index"] for d in one["documents"] for _ in range(d["tokens"])]
        for one in lines
    }


def test_the_samples_of_a_finding(work: Path, capsys: Any) -> None:
    assert main(["replay", "run", "--dry-run", "--out", "out"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("spike in general at iteration 7: loss jumps\n")
    commands = [shlex.split(line[2:]) for line in output.splitlines() if line.startswith("$ ")]
    asked = [one[one.index("--ckpt-step") + 1] for one in commands]
    assert asked == ["4", "8"]  # up to 5, and with 7
    rows = json.loads(Path("out/rows.json").read_text("utf-8"))
    suspects = traced(capsys, "7")
    assert rows["suspects"] == suspects
    assert {len(one) for one in suspects.values()} == {SEQUENCE + 1} and len(suspects) <= BATCH
    assert len(rows["control"]) == len(suspects)
    before = traced(capsys, "1:6")  # the onset is the last of them
    assert rows["control"].items() <= before.items()
    newest = traced(capsys, "5")
    assert set(list(newest)[: len(suspects)]) <= set(rows["control"])


def test_other_iterations_and_checkpoints(work: Path, capsys: Any) -> None:
    places = ["run/checkpoints/iter_0000008", "run/checkpoints/iter_0000012"]
    words = ["--iterations", "3:5", "--domain", "finance", "--dry-run", "--out", "out"]
    assert main(["replay", "run", *places, *words]) == 0
    assert "--ckpt-step 12" in capsys.readouterr().out
    rows = json.loads(Path("out/rows.json").read_text("utf-8"))
    for found in rows.values():
        assert min(token for row in found.values() for token in row) >= 100


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("run/checkpoints", "two checkpoints"),
        ("--finding 2", "1: spike in general at iteration 7"),
        ("--iterations 1:2", "no checkpoint of iteration up to 0, only of 4, 8, 12"),
        ("--domain finances", "'finance'"),
    ],
)
def test_what_is_refused(words: str, told: str, work: Path, capsys: Any) -> None:
    assert main(["replay", "run", *words.split(), "--dry-run"]) == 2
    assert told in capsys.readouterr().err


def test_nothing_before_to_compare_with(work: Path, capsys: Any) -> None:
    places = ["run/checkpoints/iter_0000004", "run/checkpoints/iter_0000008"]
    assert main(["replay", "run", *places, "--iterations", "1:2", "--dry-run"]) == 2
    assert "nothing to compare" in capsys.readouterr().err
