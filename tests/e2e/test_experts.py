"""Experts by domain: what the host counts, in every layout, at no cost; the routers' own loss."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gradients import TOLERANCE, error, load
from support.launch import Run, train
from support.observe import STEPS, assert_same_checkpoint, observe

from domain_pretrain.records.experts_file import ExpertsTable, read_experts

pytestmark = pytest.mark.megatron

MIXTURE = (
    "--num-experts 4 --moe-router-topk 2 --moe-token-dispatcher-type alltoall "
    # Large weights: choices that rounding does not bridge.
    "--disable-bias-linear --init-method-std 0.2"
)
BALANCED = (
    f"{MIXTURE} --moe-router-load-balancing-type none --moe-router-score-function sigmoid "
    "--moe-router-enable-expert-bias --micro-batch-size 2 --log-interval 2"
)
LAYOUTS: dict[str, tuple[int, str]] = {
    "TP2, sequence parallel": (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    "CP2": (2, "--context-parallel-size 2"),
    "EP2": (2, "--expert-model-parallel-size 2"),
    "PP2": (2, "--pipeline-model-parallel-size 2"),
    "PP2, VPP2": (
        2,
        "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1",
    ),
    "recomputed": (
        1,
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
    ),
}


def config(folder: Path, **experts: Any) -> list[str | Path]:
    folder.mkdir(exist_ok=True)
    path = folder / "experts.yaml"
    path.write_text(json.dumps({"adapt": {"experts": experts}}), encoding="utf-8")
    return ["--domain-config", path]


def run(folder: Path, *flags: str | Path, nproc: int = 1, iterations: int = 2, **env: str) -> Run:
    env = {"RECORD_DIR": str(folder), **env}
    script = "experts_gpt.py"
    return train(folder, *flags, nproc=nproc, iterations=iterations, script=script, env=env)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, blend: list[str]) -> list[str | Path]:
    """Flags of a start that is the same in every layout."""
    folder = tmp_path_factory.mktemp("mixture")
    save = ["--save", folder / "checkpoint", "--save-interval", "2", "--no-save-optim"]
    run(folder, *blend, *BALANCED.split(), *save, "--finetune")
    return [*blend, *BALANCED.split(), "--load", folder / "checkpoint", "--finetune"]


def counted(folder: Path) -> ExpertsTable:
    found = read_experts(folder)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, base: list[str | Path]) -> ExpertsTable:
    """Of one process, at the second step, which alone is logged."""
    folder = tmp_path_factory.mktemp("one")
    lines = run(folder, *base, *config(folder, load=True)).metrics()
    (line,) = lines
    table = counted(folder)
    assert (line["iteration"], table.iteration) == (2, 2)
    assert line["experts"]["count"] == 4
    assert all("expert_used" in line["domains"][name] for name in table.domains)
    assert_is_what_the_host_counts(folder, table)
    return table


def assert_is_what_the_host_counts(folder: Path, table: ExpertsTable) -> None:
    """The sum over domains is the host's ``tokens_per_expert``, layer by layer."""
    own = dict(zip(table.layers, np.array(table.load).sum(axis=1), strict=True))
    seen = set()
    for file in folder.glob("rank*.npz"):
        with np.load(file) as record:
            assert record["gap"].min() > 1e-5, "too close a choice for this test"
            for layer, tokens in zip(record["layers"], record["tokens"][1], strict=True):
                assert own[layer].tolist() == tokens.tolist()
                assert tokens.sum() == 2 * 8 * 32
                seen.add(int(layer))
    assert seen == {1, 2, 3, 4} == set(table.layers)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_load(layout: str, one: ExpertsTable, base: list[str | Path], tmp_path: Path) -> None:
    nproc, flags = LAYOUTS[layout]
    run(tmp_path, *base, *flags.split(), *config(tmp_path, load=True), nproc=nproc)
    table = counted(tmp_path)
    assert_is_what_the_host_counts(tmp_path, table)
    assert table == one
    assert len(table.domains) > 2


def test_counting_changes_nothing(blend: list[str], tmp_path: Path) -> None:
    """And costs one all-reduce, in a step that is logged."""
    own = [*blend, *MIXTURE.split(), "--expert-model-parallel-size", "2", "--log-interval", "2"]
    own += ["--eval-iters", "0", "--split", "100,0,0"]
    without, counting = (
        observe(tmp_path / name, *own, *config(tmp_path / name, load=load), nproc=2)
        for name, load in (("without", False), ("with", True))
    )
    assert not read_experts(without.folder)
    assert counted(counting.folder).iteration == 4
    assert len(without.run.host_losses()) >= 2
    assert counting.printed() == without.printed()
    assert_same_checkpoint(counting, without)
    for have, want in zip(counting.steps(), without.steps(), strict=True):
        for step in range(1, STEPS):  # in the first one, every rank learns of the others
            logged = (step + 1) % 2 == 0
            assert have[step] == want[step] + Counter({"all_reduce": 1} if logged else {})


# The routers' own loss.


@pytest.mark.parametrize(
    ("score", "per_token"), [("softmax", []), ("sigmoid", ["--calculate-per-token-loss"])]
)
def test_gradient(score: str, per_token: list[str], blend: list[str], tmp_path: Path) -> None:
    """Of every parameter, as autograd has it in float64."""
    flags = [*blend, *MIXTURE.split(), *per_token, *config(tmp_path, entropy_loss=0.5)]
    flags += ["--moe-router-score-function", score, "--micro-batch-size", "2", "--clip-grad", "0"]
    flags += ["--moe-router-load-balancing-type", "none", "--moe-router-dtype", "fp64"]
    env = {"RECORD_DIR": str(tmp_path), "COEFFICIENT": "0.5"}
    train(tmp_path, *flags, iterations=1, script="router_loss_gpt.py", env=env)
    got, expected, plain = (
        load(tmp_path / f"{name}.npz") for name in ("gradients", "expected", "plain")
    )
    routers = [name for name in expected if "router" in name]
    assert len(routers) == 4
    assert all(error(plain[name], expected[name]) > 1e-2 for name in routers)
    for name, want in expected.items():
        assert error(got[name], want) <= TOLERANCE, name
