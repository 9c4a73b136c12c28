"""Steps that Megatron's rerun state machine repeats are counted once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.launch import train

pytestmark = pytest.mark.megatron

# A loss that looks like a spike is not fatal: the step is repeated, then training goes on.
SPIKES = ["--no-check-for-nan-in-loss-and-grad", "--check-for-spiky-loss", "--log-interval", "2"]
ERRORS = ["--error-injection-rate", "1", "--error-injection-type", "transient_error"]


def test_repeated_steps(blend: list[str], tmp_path: Path) -> None:
    env = {"RECORD_DIR": str(tmp_path)}
    once = train(tmp_path / "once", *blend, *SPIKES)
    flags = [*blend, *SPIKES, *ERRORS]
    twice = train(tmp_path / "twice", *flags, script="recording_gpt.py", env=env)
    # Megatron does not judge its first step; each of the others ran twice, 8 microbatches a time.
    microbatches = [name for name in np.load(tmp_path / "rank0.npz") if name.startswith("losses")]
    assert len(microbatches) == 8 + 3 * 16
    assert twice.metrics(None) == once.metrics(None)
    assert twice.host_losses() == once.host_losses()
