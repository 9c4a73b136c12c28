"""What probes found, on its way out: the file and its reader, TensorBoard, W&B, the console."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.board import points
from torch.utils.tensorboard import SummaryWriter

from domain_pretrain.errors import ConfigError
from domain_pretrain.records.console import Console
from domain_pretrain.records.evaluated import EVALUATIONS_FILE, Evaluated
from domain_pretrain.records.evaluations_file import EvaluationsFile
from domain_pretrain.records.publisher import open_publisher
from domain_pretrain.records.reader import METRICS_FILE, read_evaluations, read_metrics
from domain_pretrain.records.scalars import WandB
from domain_pretrain.records.score import Part, Score
from domain_pretrain.records.tensorboard import RUNS_UP_TO


def score(name: str, domain: str, *values: float, higher: bool = True) -> Score:
    parts = [Part(f"{number}", value, 1) for number, value in enumerate(values)]
    found = Score.of(name, domain, parts, higher_is_better=higher)
    assert found is not None
    return found


def found(iteration: int, value: float = -2.0, **fields: Any) -> Evaluated:
    scores = (score("completion", "finance", value, value - 1), score("acc", "code", 1.0))
    return Evaluated(iteration, 8 * iteration, scores, **fields)


def write(folder: Path, *all_found: Evaluated, after: int | None = 0) -> None:
    file = EvaluationsFile(folder, after)
    for one in all_found:
        file.scores(one)
    file.close()


# --- the file ------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = [found(0), found(10), found(10, final=True)]
    write(tmp_path, *written)
    assert read_evaluations(tmp_path) == written
    assert read_evaluations(tmp_path / EVALUATIONS_FILE) == written


def test_what_two_measured_at_one_point_is_one(tmp_path: Path) -> None:
    """Not what was measured twice, nor at the end of the training."""
    above = Evaluated(10, 80, (score("above-base", "code", 0.5),))
    write(tmp_path, above, found(10), found(10), found(10, final=True))
    joined = Evaluated(10, 80, (*above.scores, *found(10).scores))
    assert read_evaluations(tmp_path) == [joined, found(10), found(10, final=True)]


def test_a_run_without_probes_makes_no_file(tmp_path: Path) -> None:
    write(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert read_evaluations(tmp_path) == []


@pytest.mark.parametrize("probes", [True, False])
def test_a_resumed_run_keeps_what_came_before_its_checkpoint(tmp_path: Path, probes: bool) -> None:
    """Also one that has no probes any more; what it will find again is set aside."""
    write(tmp_path, found(0), found(10), found(20, -1.0), found(20, final=True))
    after = [found(20, -3.0)] if probes else []
    write(tmp_path, *after, after=10)
    assert read_evaluations(tmp_path) == [found(0), found(10), *after]
    assert (tmp_path / "domain_metrics.discarded.jsonl").read_text().count('"iteration": 20') == 2


def test_the_end_of_training_is_not_that_of_a_longer_run(tmp_path: Path) -> None:
    write(tmp_path, found(20), found(20, final=True))
    write(tmp_path, after=20)
    assert read_evaluations(tmp_path) == [found(20)]


def test_evaluating_alone_cuts_nothing(tmp_path: Path) -> None:
    write(tmp_path, found(10), found(20))
    write(tmp_path, found(10, final=True), after=None)
    assert [one.iteration for one in read_evaluations(tmp_path)] == [10, 20, 10]


def test_torn_and_foreign_lines_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, found(10))
    whole = json.dumps(found(20).dump())
    spoilt = [
        whole[:40],
        whole.replace('"count": 2', '"count": 0'),
        whole.replace('"iteration": 20', '"iteration": -1'),
        '{"scores": 3}',
        '{"iteration": 3, "split": "train", "domains": {}}',
    ]
    with (tmp_path / EVALUATIONS_FILE).open("a", encoding="utf-8") as file:
        file.write("\n".join([*spoilt, whole, whole[:50]]))
    assert read_evaluations(tmp_path) == [found(10), found(20)]


def test_a_reader_of_losses_does_not_take_one_for_the_other(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text(json.dumps(found(10).dump()) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds no line"):
        read_metrics(tmp_path)


def test_a_broken_model_has_no_number_and_does_not_end_the_run(tmp_path: Path) -> None:
    write(tmp_path, found(10, math.nan), found(20, -math.inf))
    assert '"sum": null' in (tmp_path / EVALUATIONS_FILE).read_text()
    for one in read_evaluations(tmp_path):
        finance, code = one.scores
        assert math.isnan(finance.mean) and finance.count == 2
        assert code.mean == 1.0


def test_a_probe_may_count_with_booleans_and_numpy(tmp_path: Path) -> None:
    parts = [Part("a", True, np.int64(1)), Part("b", np.float32(0.5), np.int64(1))]  # type: ignore[arg-type]
    one = Score.of("wins", "code", parts, higher_is_better=True)
    assert one is not None
    write(tmp_path, Evaluated(10, 80, (one,)))
    (read,) = read_evaluations(tmp_path)
    assert read.scores[0].parts == (Part("a", 1.0, 1), Part("b", 0.5, 1))
    assert read.scores[0].mean == 0.75


# --- TensorBoard and W&B --------------------------------------------------------------------------


def board(folder: Path, *all_found: Evaluated, after: int | None = 0) -> None:
    host = SummaryWriter(str(folder))
    publisher = open_publisher(None, host, None, "token", lambda text: None, after_iteration=after)
    for one in all_found:
        publisher.scores(one)
    publisher.close()
    host.close()


def test_a_score_is_a_chart_with_a_curve_for_each_domain(tmp_path: Path) -> None:
    board(tmp_path, found(0), found(10, -1.0))
    assert (tmp_path / "domains" / "finance").is_dir()
    shown = points(tmp_path)
    assert shown["eval-completion/finance"] == [(0, -2.5), (10, -1.5)]
    assert shown["eval-acc/code"] == [(0, 1.0), (10, 1.0)]


def test_of_many_domains_the_host_has_the_points(tmp_path: Path) -> None:
    scores = tuple(score("acc", f"d{number}", 1.0) for number in range(RUNS_UP_TO + 1))
    board(tmp_path, Evaluated(3, 24, scores))
    assert not (tmp_path / "domains").exists()
    assert points(tmp_path)["eval-acc/d7"] == [(3, 1.0)]


def test_a_resumed_run_shows_no_point_twice(tmp_path: Path) -> None:
    board(tmp_path, found(10), found(20))
    board(tmp_path, found(20, -9.0), after=10)
    assert points(tmp_path)["eval-completion/finance"] == [(10, -2.5), (20, -9.5)]


def test_wandb_has_the_same_names() -> None:
    calls = []

    class Recording:
        def log(self, values: dict[str, float], step: int) -> None:
            calls.append((values, step))

    WandB(Recording(), "token").scores(found(10))
    assert calls == [({"eval-completion/finance": -2.5, "eval-acc/code": 1.0}, 10)]


# --- the console ----------------------------------------------------------------------------------


def test_the_console_has_a_table_with_errors_and_changes() -> None:
    out: list[str] = []
    console = Console("token", out.append)
    console.scores(found(0))
    console.scores(found(10, -1.0))
    assert out[1].splitlines() == [
        "evaluation of the model of iteration 10",
        "  score       domain        mean     ± error     count",
        "  completion  finance    -1.5000 ▲    0.5000         2",
        "  acc         code        1.0000                     1",
    ]
    assert "▲" not in out[0]


@pytest.mark.parametrize("higher", [True, False])
def test_of_many_domains_the_worst_are_shown(higher: bool) -> None:
    out: list[str] = []
    scores = [
        score("s", f"d{number:02}", float(number) if higher else -float(number), higher=higher)
        for number in range(30)
    ]
    scores.append(score("s", "broken", math.nan, higher=higher))
    Console("token", out.append).scores(Evaluated(10, 80, tuple(scores)))
    lines = out[0].splitlines()
    assert [line.split()[1] for line in lines[2:-1]] == [f"d0{n}" for n in range(7)] + ["broken"]
    assert lines[-1] == "  s      … 23 more"
    assert "NaN" in lines[-2]
