"""A run of version 0.1 goes on with this version as it would have gone on with that one.

What version 0.1 wrote lies in ``tests/data/v0_1``, with the script that made it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from support.board import points
from support.forks import fork_server
from support.launch import environment

from domain_pretrain.records.reader import METRICS_FILE, read_metrics

pytestmark = pytest.mark.megatron

OLD = Path(__file__).parents[1] / "data" / "v0_1"
# The processor that made the files gives every bit again; others round differently, by 1e-7 a loss,
# and training acts on that twice. An optimizer state that is lost moves the losses by 6e-3, a state
# of the reweighting that is lost the multipliers by 3e-2.
NEAR = 1e-4
# What version 0.1 said of a step was of the weights that the step had led to, in force in the next.
DIAGNOSTICS = ("effective_domains", "effective_tokens", "clip_rate")


@pytest.fixture
def host() -> None:
    """A checkpoint is read by the version of Megatron that wrote it, and by later ones."""
    core = pytest.importorskip("megatron.core")
    wrote = json.loads((OLD / "made_with.json").read_text())["megatron-core"]
    if Version(core.__version__).release[:2] < Version(wrote).release[:2]:
        pytest.skip(f"the checkpoint was written by Megatron {wrote}")


def near(new: Any, old: Any, where: str = "") -> None:
    """All keys of ``old`` are in ``new``; counts are the same, losses and multipliers near."""
    if isinstance(old, dict):
        missing = old.keys() - new.keys()
        assert not missing, f"{where}: {missing}"
        for key, value in old.items():
            near(new[key], value, f"{where}.{key}")
    else:
        assert new == (pytest.approx(old, rel=NEAR) if isinstance(old, float) else old), where


@pytest.mark.parametrize("form", ["torch_dist", "torch"])
@pytest.mark.usefixtures("host")
def test_a_run_goes_on(form: str, tmp_path: Path) -> None:
    """From its checkpoint of iteration 2, with its own flags and config file."""
    folder = tmp_path / "run"
    shutil.copytree(OLD, folder)
    unbroken = (OLD / "unbroken.jsonl").read_bytes().splitlines(keepends=True)
    log = folder / "log"
    log.mkdir()
    (log / METRICS_FILE).write_bytes(b"".join(unbroken))

    flags = (OLD / "flags.txt").read_text().split()
    flags += ["--domain-config", "config.yaml", "--domain-log-dir", "log"]
    flags += ["--load", form, "--ckpt-format", form, "--tensorboard-dir", "tensorboard"]
    env = environment()
    code, output = fork_server(env).run(["-m", "domain_pretrain", *flags], env=env, cwd=folder)
    assert code == 0, output[-8000:]
    assert "holds no domain_pretrain state" not in output

    assert (log / METRICS_FILE).read_bytes().startswith(b"".join(unbroken[:2]))
    expected, lines = [json.loads(line) for line in unbroken], read_metrics(log)
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 4, 4]
    of_old = [line.get("reweighting", {}) for line in expected]
    told = [{key: line.pop(key) for key in DIAGNOSTICS if key in line} for line in of_old]
    for number, (line, old) in enumerate(zip(lines, expected, strict=True), start=1):
        near(line, old, f"line {number}")
    for number in (3, 4):
        weights = {"effective_domains": told[number - 2]["effective_domains"]}
        near(lines[number - 1]["reweighting"], weights, f"line {number}")
    assert points(folder / "tensorboard").keys() >= set(json.loads((OLD / "tags.json").read_text()))
