"""``domain-pretrain report`` on a run whose model was asked things."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.traces import write_metrics

from domain_pretrain.commands.main import main
from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.records.evaluations_file import EvaluationsFile
from domain_pretrain.records.score import Part, Score

EVIL = "<script>alert(1)</script>"


def write_run(folder: Path, losses: dict[str, list[float]]) -> Path:
    """A run whose domains have these mean losses at its evaluations, on 40 documents each."""
    folder.mkdir()
    write_metrics(folder, list(losses), 10)
    file = EvaluationsFile(folder, None)
    for at in range(len(next(iter(losses.values())))):
        scores = []
        for domain, means in losses.items():
            parts = [
                Part(f"{domain}.jsonl:{n}", 10 * (means[at] + n / 10) + 0.1 * (n % 3) * at, 10)
                for n in range(40)
            ]
            score = Score.of("loss", domain, parts, higher_is_better=False)
            assert score is not None
            scores.append(score)
        file.scores(Evaluated(100 * at, 800 * at, tuple(scores)))
    file.close()
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(
        tmp_path / "run", {"finance": [3.0, 2.0, 2.5, 2.4], EVIL: [2.0, 2.5, 2.3, 2.2]}
    )


def test_at_the_console(run: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["report", str(run)]) == 0
    text = capsys.readouterr().out
    assert "iteration 0" in text and "iteration 300" in text
    assert "better in iteration 300 than in iteration 0: finance (loss)" in text
    assert f"forgotten (worse by more than chance): {EVIL} (loss)" in text
    assert "finance.jsonl:39" in text


def test_no_name_of_a_score_is_cut(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a narrow terminal, ``choice_plain`` and ``choice_text`` would be the same."""
    monkeypatch.setenv("COLUMNS", "60")
    folder = write_run(tmp_path / "run", {"finance": [3.0]})
    file = EvaluationsFile(folder, None)
    for at in (100, 200, 300):
        score = Score.of(
            "choice_plain_and_long", "finance", [Part("q", 1, 2)], higher_is_better=True
        )
        assert score is not None
        file.scores(Evaluated(at, 8 * at, (score,)))
    file.close()
    assert main(["report", str(folder)]) == 0
    cells = [
        line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if "│" in line
    ]
    assert "choice_plain_and_long" in "".join(cells)


def test_on_the_page(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(run), "--html", str(page)]) == 0
    text = page.read_text("utf-8")
    assert EVIL not in text
    (section,) = re.findall(r'<section id="evaluations".*?</section>', text, re.S)
    assert "forgotten (worse by more than chance)" in section
    assert "finance.jsonl:39" in section
    curves = re.findall(r'<polyline points="([^"]*)"', section)
    assert len(curves) == 2
    points = [tuple(map(float, one.split(","))) for one in curves[0].split()]
    # Of 3.0, 2.0, 2.5, 2.4, higher up where the loss is higher (small numbers are up), evenly
    # apart as the iterations are.
    across, down = zip(*points, strict=True)
    assert [round(b - a, 1) for a, b in pairwise(across)] == [38.0] * 3
    assert down[0] < down[2] < down[3] < down[1]


def test_runs_beside_each_other(
    run: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    other = write_run(tmp_path / "other", {"finance": [3.0, 1.0], EVIL: [2.0, 2.0]})
    assert main(["report", str(run), str(other), "--compare"]) == 0
    text = capsys.readouterr().out
    assert "The last evaluations" in text
    assert "better in other than in run: finance (loss)" in text
    assert main(["report", str(run), str(other)]) == 0  # one after the other
    assert "The last evaluations" not in capsys.readouterr().out


def test_a_run_without_probes_says_nothing(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "run").mkdir()
    write_metrics(tmp_path / "run", ["finance"], 10)
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "run"), "--html", str(page)]) == 0
    assert "Evaluations" not in page.read_text("utf-8")
    assert "last − first" not in capsys.readouterr().out
