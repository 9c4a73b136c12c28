"""Steps that Megatron's rerun state machine repeats are counted once."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import Run, train

pytestmark = pytest.mark.megatron

# A loss that looks like a spike is not fatal: the step is repeated, then training goes on.
SPIKES = ["--no-check-for-nan-in-loss-and-grad", "--check-for-spiky-loss", "--log-interval", "2"]
REPEATED = {
    "injected-errors": "--error-injection-rate 1 --error-injection-type transient_error",
    "every-step-twice": "--rerun-mode report_stats",
}


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, blend: list[str]) -> Run:
    return train(tmp_path_factory.mktemp("once"), *blend, *SPIKES)


@pytest.mark.parametrize("repeated", REPEATED)
def test_repeated_steps(repeated: str, once: Run, blend: list[str], tmp_path: Path) -> None:
    env = {"RECORD_DIR": str(tmp_path)}
    flags = [*blend, *SPIKES, *REPEATED[repeated].split()]
    run = train(tmp_path, *flags, script="recording_gpt.py", env=env)
    # From step 2 at the latest, every step of 8 microbatches ran twice.
    assert recorded_microbatches(tmp_path) >= 8 + 3 * 16
    assert run.metrics(None) == once.metrics(None)
    assert run.host_losses() == once.host_losses()


def recorded_microbatches(folder: Path) -> int:
    numpy = pytest.importorskip("numpy")
    return len([name for name in numpy.load(folder / "rank0.npz") if name.startswith("losses")])
