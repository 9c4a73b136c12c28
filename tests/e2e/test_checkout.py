"""The unmodified pretrain_gpt.py of the checkout that MEGATRON_LM_PATH names, on the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from launch import Run, train

CHECKOUT = os.environ.get("MEGATRON_LM_PATH", "")

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.checkout,
    pytest.mark.skipif(not CHECKOUT, reason="no checkout: set MEGATRON_LM_PATH"),
]

# Initial weights on the CPU do not depend on TP, CP and DP, so these must agree without a
# checkpoint; PP may draw them in another order, and is compared with the host's own loss only.
# The padded vocabulary must be the same, too, whether or not NullTokenizer adds a token to it.
LAYOUTS = {
    "dp2": "",
    "tp2": "--tensor-model-parallel-size 2 --make-vocab-size-divisible-by 304",
    "cp2": "--context-parallel-size 2",
}


def run(folder: Path, blend: list[str], nproc: int = 1, flags: str = "") -> Run:
    script = Path(CHECKOUT, "pretrain_gpt.py")
    exact = ["--calculate-per-token-loss", "--make-vocab-size-divisible-by", "608"]
    done = train(folder, *blend, *exact, *flags.split(), nproc=nproc, script=script)
    assert_host_agrees(done)
    return done


def assert_host_agrees(run: Run) -> None:
    """Iterations 3 and 4: at 2, Megatron's printed mean still holds iteration 1."""
    losses = [entry["lm_loss"] for entry in run.metrics()]
    assert [float(loss) for loss in run.host_losses()][2:] == pytest.approx(losses[2:], rel=1e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, blend: list[str]) -> Run:
    return run(tmp_path_factory.mktemp("alone"), blend)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_equals_one_process(
    layout: str, alone: Run, blend: list[str], tmp_path: Path
) -> None:
    got = run(tmp_path, blend, 2, LAYOUTS[layout])
    for split in ("train", "valid", "test"):
        for want, have in zip(alone.metrics(split), got.metrics(split), strict=True):
            assert have["domains"].keys() == want["domains"].keys()
            for name, domain in want["domains"].items():
                assert have["domains"][name]["tokens"] == domain["tokens"]
                assert have["domains"][name]["loss"] == pytest.approx(domain["loss"], rel=1e-5)


def test_pipeline(alone: Run, blend: list[str], tmp_path: Path) -> None:
    got = run(tmp_path, blend, 2, "--pipeline-model-parallel-size 2")
    for want, have in zip(alone.metrics(), got.metrics(), strict=True):
        tokens = {name: domain["tokens"] for name, domain in want["domains"].items()}
        assert {name: d["tokens"] for name, d in have["domains"].items()} == tokens
