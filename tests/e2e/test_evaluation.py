"""Validation and test losses of every domain, at Megatron's own points, from its own passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.launch import train
from support.losses import assert_evaluations_add_up, points

pytestmark = pytest.mark.megatron


def test_points_and_sums(blend: list[str], tmp_path: Path) -> None:
    """Over data-parallel ranks, with the blend in a file."""
    (tmp_path / "blend.txt").write_text(" ".join(blend[3:]))
    data = [*blend[:2], "--data-args-path", tmp_path / "blend.txt"]
    run = train(tmp_path, *data, "--eval-interval", "2", nproc=2)
    entries = assert_evaluations_add_up(run)
    assert points(entries) == [
        ("valid", 2, False),
        ("valid", 4, False),
        ("valid", 4, True),
        ("test", 4, True),
    ]
    for entry in entries:
        assert sum(d["samples"] for d in entry["domains"].values()) == 16  # 2 batches of 8
        assert len(entry["domains"]) > 1
    # Training windows are not disturbed by the evaluations between them.
    for entry in run.metrics():
        assert sum(d["samples"] for d in entry["domains"].values()) == 8


EVERY_STEP = ["--eval-interval", "1", "--eval-iters", "5"]


def test_time_runs_out(blend: list[str], tmp_path: Path) -> None:
    """The host leaves after 8 of 40 samples: of that evaluation there is no number."""
    save = ["--save", tmp_path / "checkpoints", "--save-interval", "100", "--ckpt-format", "torch"]
    flags = [*blend, *save, *EVERY_STEP]
    cut = train(tmp_path, *flags, "--exit-duration-in-mins=-1")
    assert "Exiting during evaluation, timelimit reached" in cut.output
    assert [e["split"] for e in cut.metrics(None)] == ["train"]
    assert not cut.host_evaluations()

    resumed = train(tmp_path, *flags, "--load", tmp_path / "checkpoints")
    entries = assert_evaluations_add_up(resumed)
    assert points(entries) == [
        ("valid", 2, False),
        ("valid", 3, False),
        ("valid", 4, False),
        ("valid", 4, True),
        ("test", 4, True),
    ]
    for entry in entries:
        assert sum(d["samples"] for d in entry["domains"].values()) == 40


def test_schedules_that_the_host_repeats(blend: list[str], tmp_path: Path) -> None:
    """In training and in evaluations: what is repeated counts once."""
    flags = [*blend, *EVERY_STEP, "--eval-iters", "2"]
    once = train(tmp_path / "once", *flags, iterations=2)
    twice = train(tmp_path / "twice", *flags, iterations=2, script="retrying_gpt.py")
    assert twice.metrics(None) == once.metrics(None)
    assert twice.host_losses() == once.host_losses()


def test_multiple_validation_sets(corpora: Path, tmp_path: Path) -> None:
    """Each split has a blend of its own; each validation set is read to its end, apart."""
    sets = ["rare", "maths", "code"]
    blends = {
        "train": f"1 {corpora / 'finance'} 3 {corpora / 'general'}",
        "valid": [str(corpora / name) for name in sets],
        "test": None,  # Megatron cannot test where it validates on several sets
    }
    (tmp_path / "blends.json").write_text(json.dumps(blends))
    data = ["--per-split-data-args-path", tmp_path / "blends.json", "--global-batch-size", "1"]
    flags = ["--multiple-validation-sets", "--full-validation", "--eval-interval", "2"]
    run = train(tmp_path, *data, *flags, iterations=2)
    valid, final = run.metrics("valid")
    printed = [float(loss) for loss in run.host_evaluations()]
    assert len(printed) == 6
    assert [valid["domains"][name]["loss"] for name in sets] == pytest.approx(printed[:3], rel=2e-6)
    assert {**final, "final": None} == {**valid, "final": None}
    for name in sets:
        tokens = (corpora / f"{name}.bin").stat().st_size // 2
        # Samples of 32 tokens, to the last whole one.
        assert tokens - 33 <= valid["domains"][name]["tokens"] <= tokens
    for entry in run.metrics():
        assert entry["domains"].keys() <= {"finance", "general"}


def test_a_blend_for_each_split(corpora: Path, tmp_path: Path) -> None:
    """Their ids count from zero each; code has no place in training."""
    train_on = ["--train-data-path", "1", corpora / "finance", "5", corpora / "general"]
    validate = ["--valid-data-path", "1", corpora / "code", "1", corpora / "finance"]
    test_on = ["--test-data-path", corpora / "general"]
    run = train(tmp_path, *train_on, *validate, *test_on, "--eval-interval", "2")
    assert_evaluations_add_up(run)
    domains = {
        split: [set(e["domains"]) for e in run.metrics(split)] for split in ("valid", "test")
    }
    assert domains == {"valid": [{"code", "finance"}] * 3, "test": [{"general"}]}
    assert {name for entry in run.metrics() for name in entry["domains"]} == {"finance", "general"}


def test_one_prefix(corpora: Path, tmp_path: Path) -> None:
    """A plain dataset gives no ids: all of its samples are of one domain."""
    data = ["--data-path", corpora / "maths", "--split", "80,10,10"]
    run = train(tmp_path, *data, iterations=1)
    assert_evaluations_add_up(run)
    assert {name for e in run.metrics(None) for name in e["domains"]} == {"maths"}


def test_mock_data(tmp_path: Path) -> None:
    run = train(tmp_path, "--mock-data", iterations=1)
    assert_evaluations_add_up(run)
    assert {name for e in run.metrics(None) for name in e["domains"]} == {"mock"}


def test_a_model_that_is_not_trained(
    base_checkpoint: Path, blend: list[str], tmp_path: Path
) -> None:
    """``--skip-train``: nothing starts afresh, so nothing is said of it, and no line is cut off."""
    trained = base_checkpoint.parent / "log" / "domain_metrics.jsonl"
    before = trained.read_text().splitlines()
    (tmp_path / "domain_metrics.jsonl").write_text(trained.read_text())
    run = train(tmp_path, *blend, "--load", base_checkpoint, "--skip-train")
    assert "domain_pretrain state" not in run.output
    lines = (tmp_path / "domain_metrics.jsonl").read_text().splitlines()
    assert lines[: len(before)] == before
    start, *entries = [json.loads(line) for line in lines[len(before) :]]
    assert start["event"] == "start"
    assert [(e["split"], e["final"]) for e in entries] == [("valid", True), ("test", True)]
    printed = [float(loss) for loss in run.host_evaluations()]
    assert [e["lm_loss"] for e in entries] == pytest.approx(printed, rel=2e-6)
