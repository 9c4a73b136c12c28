"""With the plugin, the host computes what it computes alone, and pays one all-reduce a step."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from support.launch import CPU_FLAGS
from support.observe import (
    STEPS,
    Observed,
    assert_collectives,
    assert_same_training,
    observe,
)

from domain_pretrain.records.reader import read_findings, read_metrics

pytestmark = pytest.mark.megatron

# Dropout, so that a random number too many would show; evaluation, which must leave no trace.
SINGLE = shlex.split("--attention-dropout 0.1 --hidden-dropout 0.1 --eval-interval 2")
PARALLEL = shlex.split("--bf16 --eval-iters 0 --split 100,0,0")
TP2 = [*PARALLEL, *shlex.split("--tensor-model-parallel-size 2 --global-batch-size 4")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, blend: list[str]) -> Observed:
    """The host without the plugin, one process: Python's own, forked from nothing."""
    folder = tmp_path_factory.mktemp("alone")
    return observe(folder, *blend, *SINGLE, nproc=1, plugin=False, installed=False, real=True)


def test_channel_loss(alone: Observed, blend: list[str], tmp_path: Path) -> None:
    """Alarms that find something, trace it and tell a program of it are part of that."""
    watch = {
        "alarms": {"starved": {"samples": 10, "share": 1.0}},
        "command": [sys.executable, "-V"],
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"watch": watch}), encoding="utf-8")
    with_plugin = observe(tmp_path, *blend, *SINGLE, "--domain-config", config, nproc=1)
    assert len(with_plugin.run.metrics()) == STEPS
    assert any(one.documents for one in read_findings(tmp_path))
    assert_same_training(with_plugin, alone)
    # No forward pass more; and in a process of its own there is nobody to talk to.
    assert alone.steps()[0][1]["forward"] == 8
    assert alone.steps()[0][2]["eval_forward"] == 16, "evaluation after step 2, counted by step 3"
    assert with_plugin.steps() == alone.steps()


def test_installed_but_not_asked_for(alone: Observed, blend: list[str], tmp_path: Path) -> None:
    idle = observe(tmp_path, *blend, *SINGLE, nproc=1, plugin=False)
    assert_same_training(idle, alone)
    assert not list(tmp_path.glob("domain_*"))


def test_disabled(alone: Observed, blend: list[str], tmp_path: Path) -> None:
    """With the seams taken out again, nobody supplies the flags that the CPU needs."""
    flags = [*blend, *SINGLE, *CPU_FLAGS]
    disabled = observe(tmp_path, *flags, nproc=1, plugin=False, env={"DISABLE": "1"})
    assert "CPU backend" not in disabled.run.output
    assert_same_training(disabled, alone)


def test_layout(blend: list[str], tmp_path: Path) -> None:
    """TP2 × DP2 in bf16: TP rank 0 of each data-parallel rank counts, and tells the others."""
    how = {"nproc": 4, "plugin": False, "installed": False}
    host = observe(tmp_path / "alone", *blend, *TP2, **how)
    with_plugin = observe(tmp_path / "plugin", *blend, *TP2, nproc=4)
    assert_same_training(with_plugin, host)
    assert host.steps()[0][1]["forward"] == 2
    more = [{"all_reduce": 1, "broadcast": 1}, {"broadcast": 1}]
    assert_collectives(with_plugin, host, more * 2)


def test_a_thousand_domains(blend: list[str], corpora: Path, tmp_path: Path) -> None:
    """Neither the number of domains nor that of microbatches costs a further collective."""
    how = {"nproc": 2, "plugin": False, "installed": False}
    batch = ["--global-batch-size", "16"]
    host = observe(tmp_path / "alone", *blend, *PARALLEL, *batch, **how)
    for number in range(1000):
        for suffix in (".bin", ".idx"):
            shutil.copy(corpora / f"code{suffix}", tmp_path / f"d{number:03}{suffix}")
    data = ["--data-path", *(tmp_path / f"d{number:03}" for number in range(1000))]
    many = observe(tmp_path / "plugin", *data, *PARALLEL, *batch, nproc=2)
    assert many.steps()[0][1]["forward"] == 8
    assert_collectives(many, host, [{"all_reduce": 1}] * 2)
    entry = read_metrics(many.run.log_dir)[-1]  # with so many domains, by columns
    assert len(entry["domains"]) == 16  # equal weights: a sample from each domain in turn
    assert {domain["tokens"] for domain in entry["domains"].values()} == {32}
