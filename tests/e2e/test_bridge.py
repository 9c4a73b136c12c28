"""The real Megatron-Bridge on the CPU, with the plugin as one of its callbacks.

What this proves is in docs/bridge.md.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.launch import SCRIPTS, Run
from support.launch import start as start_process
from support.losses import assert_evaluations_add_up, assert_sums, mean, sums_by_domain


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


pytestmark = [
    pytest.mark.megatron,
    pytest.mark.skipif(
        not _installed("megatron.bridge"), reason="no megatron-bridge: docs/bridge.md says how"
    ),
]
STEPS = 4


@pytest.fixture(scope="module")
def start(blend: list[str]) -> Any:
    """Start bridge_gpt.py; the words of ``blend`` after ``--data-path`` are its data."""
    data = blend[blend.index("--data-path") + 1 :]

    def start(folder: Path, nproc: int = 1, **how: Any) -> Run:
        folder.mkdir(exist_ok=True)
        (folder / "how.json").write_text(json.dumps({"folder": str(folder), "data": data, **how}))
        words = (SCRIPTS / "bridge_gpt.py", folder / "how.json")
        # The script's stand-ins must come before all that looks for what they stand in for.
        code, output = start_process(nproc, *words, plugin=False, real=True)
        assert code == 0, output[-8000:]
        return Run(code, output, folder)

    return start


@pytest.fixture(scope="module")
def alone(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One process with the plugin."""
    run: Run = start(tmp_path_factory.mktemp("alone"))
    return run


def printed(run: Run) -> list[str]:
    """Every loss and gradient norm that the host printed, of training and evaluation."""
    return re.findall(r"(?:lm loss|lm loss value|grad norm): (\S+) ", run.output)


def test_oracle(alone: Run) -> None:
    """Domains told by the text itself: a corpus has an alphabet of 50 tokens."""
    record = np.load(alone.log_dir / "rank0.npz")
    assert len(alone.metrics()) == STEPS
    for step, entry in enumerate(alone.metrics()):
        rows = [
            (record[f"losses{i}"], record[f"mask{i}"][0], record[f"labels{i}"][0])
            for i in range(8 * step, 8 * step + 8)
        ]
        assert_sums(entry, sums_by_domain(rows))


def test_domains_add_up_to_the_hosts_loss(alone: Run) -> None:
    assert_adds_up(alone)
    evaluations = [e for e in alone.metrics(None) if e["split"] != "train"]
    found = [(e["split"], e["iteration"], e.get("final", False)) for e in evaluations]
    assert found == [
        ("valid", 2, False),
        ("valid", 4, False),
        ("valid", 4, True),
        ("test", 4, True),
    ]


def test_off_is_off(alone: Run, start: Any, tmp_path: Path) -> None:
    host = start(tmp_path, plugin=False)
    assert len(printed(host)) >= 2 * STEPS
    assert printed(alone) == printed(host)


def test_one_means_one(alone: Run, start: Any, tmp_path: Path) -> None:
    config = tmp_path / "ones.yaml"
    config.write_text("reweight: {strategy: linupper, warmup_steps: 100}\n")
    ones = start(tmp_path, config=str(config))
    assert printed(ones) == printed(alone)
    assert {d["weight"] for e in ones.metrics() for d in e["domains"].values()} == {1.0}


def test_steps_that_run_twice_count_once(alone: Run, start: Any, tmp_path: Path) -> None:
    """The rerun machine repeats a step whose loss looks like a spike; no callback tells."""
    rerun = {"rerun_mode": "validate_results", "check_for_nan_in_loss": False}
    spikes = {"check_for_spiky_loss": True, "error_injection_rate": 1}
    again = start(tmp_path, rerun={**rerun, **spikes, "error_injection_type": "transient_error"})
    # Megatron does not judge its first step; each of the others ran twice, 8 microbatches a time.
    microbatches = [name for name in np.load(tmp_path / "rank0.npz") if name.startswith("losses")]
    assert len(microbatches) == 8 + 3 * 16
    assert again.metrics(None) == alone.metrics(None)


def test_resume(alone: Run, start: Any, tmp_path: Path) -> None:
    start(tmp_path, exit=2)
    resumed = start(tmp_path, load=True)
    assert resumed.metrics(None) == alone.metrics(None)


def assert_adds_up(run: Run) -> None:
    """Iterations 3 and 4: at 2, Megatron's printed mean still holds iteration 1."""
    losses = [mean(entry) for entry in run.metrics()]
    assert [float(v) for v in run.host_losses()][2:] == pytest.approx(losses[2:], rel=1e-6)
    assert_evaluations_add_up(run)


@pytest.mark.parametrize(
    "parallel", [{}, {"tensor_model_parallel_size": 2}, {"pipeline_model_parallel_size": 2}]
)
def test_layouts(parallel: dict[str, int], alone: Run, start: Any, tmp_path: Path) -> None:
    """The host validates on other samples with another number of data-parallel ranks, and draws
    other weights with another number of tensor-parallel ones."""
    got = start(tmp_path, nproc=2, parallel=parallel)
    assert_adds_up(got)
    for split in ("train", "test"):
        for want, have in zip(alone.metrics(split), got.metrics(split), strict=True):
            assert have["domains"].keys() == want["domains"].keys()
            for name, domain in want["domains"].items():
                assert have["domains"][name]["tokens"] == domain["tokens"]
                if "tensor_model_parallel_size" not in parallel:
                    assert have["domains"][name]["loss"] == pytest.approx(domain["loss"], rel=1e-5)
