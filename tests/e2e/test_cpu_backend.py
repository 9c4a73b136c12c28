"""Megatron on CPUs: a run repeats itself bit by bit, and starts from the same weights anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.launch import Run, train

pytestmark = pytest.mark.megatron

# Cover by the way what only some layouts do: recomputing layers during the backward pass, and
# sending heads instead of keys and values.
LAYOUTS = {
    "tp2-pp2-vpp2": (
        4,
        "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 "
        "--num-virtual-stages-per-pipeline-rank 2",
    ),
    "cp2 by heads, recomputed": (
        2,
        "--context-parallel-size 2 --cp-comm-type a2a "
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
    ),
}


@pytest.fixture(scope="module")
def start(blend: list[str]) -> list[str]:
    """No checkpoint: the weights come from the seed."""
    return [*blend, "--calculate-per-token-loss", "--group-query-attention", "--num-query-groups=2"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, start: list[str]) -> Run:
    return train(tmp_path_factory.mktemp("reference"), *start)


def test_a_run_repeats_itself(reference: Run, start: list[str], tmp_path: Path) -> None:
    """Every loss is the same to the last bit."""
    again = train(tmp_path, *start)
    assert again.metrics(None) == reference.metrics(None)
    assert again.host_grad_norms() == reference.host_grad_norms()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_do_not_depend_on_the_layout(
    layout: str, reference: Run, start: list[str], tmp_path: Path
) -> None:
    nproc, flags = LAYOUTS[layout]
    run = train(tmp_path, *start, *flags.split(), nproc=nproc)
    losses = [entry["lm_loss"] for entry in run.metrics()]
    assert losses == pytest.approx([e["lm_loss"] for e in reference.metrics()], rel=1e-5)
    assert "CPU backend, for demos and tests: supplied --distributed-backend gloo" in run.output
