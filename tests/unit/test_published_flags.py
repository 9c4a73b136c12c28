"""What trains elsewhere is not refused here: the flags of published scripts pass the preflight."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.prefixes import write_prefix

from domain_pretrain.launch.flags import Flags
from domain_pretrain.launch.preflight import inspect

FILE = Path(__file__).parents[1] / "data" / "published_flags.yaml"
LAUNCHES: list[dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
# In which rules about layouts and batches are easily wrong.
TELLING = {
    "--account-for-embedding-in-pipeline-split",
    "--account-for-loss-in-pipeline-split",
    "--context-parallel-algo",
    "--cp-comm-type",
    "--decoder-first-pipeline-num-layers",
    "--expert-tensor-parallel-size",
    "--hierarchical-context-parallel-sizes",
    "--noop-layers",
    "--num-layer-list",
    "--num-layers-per-virtual-pipeline-stage",
    "--num-virtual-stages-per-pipeline-rank",
    "--pipeline-model-parallel-layout",
    "--rampup-batch-size",
    "--step-batch-size-schedule",
}


@pytest.fixture(autouse=True)
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the flags name, on a disk with room for any checkpoint."""
    monkeypatch.chdir(tmp_path)
    write_prefix("DATA", [5_000] * 200_000)
    for name in ("TOKENIZER", "VOCAB", "MERGES"):
        Path(name).touch()
    usage = shutil.disk_usage(".")._replace(free=2**60)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda launch: str(launch["from"]))
def test_no_published_launch_is_refused(launch: dict[str, Any]) -> None:
    words = shlex.split(launch["flags"])
    assert Flags.parse(words).num_layers
    assert inspect(words, launch["nodes"], launch["devices"]).problems == []


def test_the_launches_are_many_and_telling() -> None:
    assert len({launch["from"] for launch in LAUNCHES}) == len(LAUNCHES) >= 50
    given = {word for launch in LAUNCHES for word in launch["flags"].split()}
    assert given >= TELLING
