"""``hold`` in real runs: every layout decides alike, by sampling and by weights, and a resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.launch import Run, train

pytestmark = pytest.mark.megatron

HOLD = {"strategy": "hold", "domains": "general", "epsilon": 0.02, "scale": 0.2, "high": 0.8}
CONFIGS = {
    "sampling": {"mix": {"dynamic": {**HOLD, "block": 16}}},
    "weights": {"reweight": HOLD},
}
LAYOUTS = {
    "DP2": (2, ""),
    "TP2": (2, "--tensor-model-parallel-size 2"),
    "PP2": (2, "--pipeline-model-parallel-size 2"),
    "CP2": (2, "--context-parallel-size 2"),
}
SAVE = ["--save-interval", "5", "--ckpt-format", "torch"]


def run(
    folder: Path, way: str, blend: list[str], *flags: str | Path, samples: int = 4, **how: Any
) -> Run:
    folder.mkdir(exist_ok=True)
    config = {"evaluate": {"samples": samples}, **CONFIGS[way]}
    (folder / "config.yaml").write_text(json.dumps(config))
    plugin = ["--domain-config", folder / "config.yaml", "--calculate-per-token-loss"]
    fixed = ["--eval-interval", "2", "--eval-iters", "1", "--lr-warmup-iters", "2"]
    return train(folder, *blend, *plugin, *fixed, *flags, iterations=10, **how)


def decided(of: Run, way: str) -> list[Any]:
    """What followed from the decisions, in the order of the run."""
    if way == "weights":
        return [{n: d["weight"] for n, d in e["domains"].items()} for e in of.metrics()]
    lines = (of.log_dir / "domain_journal.jsonl").read_text().splitlines()
    blocks = [json.loads(line) for line in lines]
    return [one["counts"] for one in blocks if "counts" in one]


@pytest.fixture(scope="module", params=CONFIGS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def single(way: str, blend: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp(way)
    return run(folder, way, blend, "--save", folder / "checkpoints", *SAVE)


def test_the_share_follows_the_validation_loss(single: Run, way: str) -> None:
    """At this learning rate general falls below its base by far more than ε: it is let go."""
    base, *later = [e["domains"]["general"]["loss"] for e in single.metrics("valid")]
    assert later[-1] < base - 0.1
    first, *_, last = decided(single, way)
    key = next(name for name in first if name.endswith("general"))
    assert last[key] < 0.7 * first[key]
    assert "hold: general had 0." in single.output


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_decide_alike(
    layout: str, single: Run, way: str, blend: list[str], tmp_path: Path
) -> None:
    nproc, flags = LAYOUTS[layout]
    other = run(tmp_path, way, blend, *flags.split(), nproc=nproc)
    expected, found = decided(single, way), decided(other, way)
    if way == "sampling":
        assert found == expected
    else:  # layouts round losses differently, and the multipliers follow them
        for row, one in zip(found, expected, strict=True):
            assert row == pytest.approx(one, rel=1e-4)


def test_a_resumed_run_goes_on_bit_for_bit(
    single: Run, way: str, blend: list[str], tmp_path: Path
) -> None:
    """From step 5, between two evaluations."""
    shutil.copytree(single.log_dir / "checkpoints", tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "iter_0000010")
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("5")
    resumed = run(
        tmp_path, way, blend, "--load", tmp_path / "checkpoints", "--ckpt-format", "torch"
    )
    for key in ("lm_loss", "domains"):
        expected = [entry[key] for entry in single.metrics()[5:]]
        assert [entry[key] for entry in resumed.metrics()] == expected
    assert resumed.metrics("valid") == single.metrics("valid")[3:]


@pytest.mark.parametrize("way", ["weights"], indirect=True)
def test_a_resume_without_a_base_says_so_and_takes_what_it_finds(
    single: Run, way: str, blend: list[str], tmp_path: Path
) -> None:
    """As after a run without the rule: --no-load-optim leaves its state behind."""
    folder = single.log_dir / "checkpoints"
    resumed = run(
        tmp_path,
        way,
        blend,
        "--load",
        folder,
        "--ckpt-format",
        "torch",
        "--no-load-optim",
        "--ckpt-step",
        "5",
    )
    said = " ".join(resumed.output.split())
    assert (
        "no base of general: the base is what the validation set says now, after iteration 5"
        in said
    )
    first, second, *_ = resumed.metrics("valid")
    assert (first["iteration"], second["iteration"]) == (5, 6)


@pytest.mark.parametrize("way", ["weights"], indirect=True)
def test_a_resumed_run_with_a_base_of_another_text_is_refused(
    single: Run, way: str, blend: list[str], tmp_path: Path
) -> None:
    load = ["--load", single.log_dir / "checkpoints", "--ckpt-format", "torch"]
    refused = run(tmp_path, way, blend, *load, "--ckpt-step", "5", samples=3, expect=2)
    said = " ".join(refused.output.split())
    assert "evaluate.samples 4 → 3. The base that losses are compared with was measured" in said
    assert "--finetune to measure a base afresh" in said
