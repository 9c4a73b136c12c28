"""The real Megatron-Bridge on the CPU, with the plugin as one of its callbacks.

What this proves is in docs/bridge.md.
"""

from __future__ import annotations

import json
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DOMAINS
from launch import Run, command, environment


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
        words = (Path(__file__).parent / "bridge_gpt.py", folder / "how.json")
        done = subprocess.run(
            command(nproc, *words, plugin=False),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            env=environment(),
        )
        assert done.returncode == 0, done.stdout[-8000:]
        return Run(done.returncode, done.stdout, folder)

    return start


@pytest.fixture(scope="module")
def alone(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One process with the plugin."""
    run: Run = start(tmp_path_factory.mktemp("alone"))
    return run


def printed(run: Run) -> list[str]:
    """Every loss and gradient norm that the host printed, of training and evaluation."""
    return re.findall(r"(?:lm loss|lm loss value|grad norm): (\S+) ", run.output)


def ratio(entry: dict[str, Any]) -> float:
    domains = entry["domains"].values()
    return sum(d["loss_sum"] for d in domains) / sum(d["tokens"] for d in domains)


def test_oracle(alone: Run) -> None:
    """Domains told by the text itself: a corpus has an alphabet of 50 tokens."""
    record = np.load(alone.log_dir / "rank0.npz")
    assert len(alone.metrics()) == STEPS
    for step, entry in enumerate(alone.metrics()):
        sums = {name: np.zeros(2) for name in DOMAINS}
        for i in range(8 * step, 8 * step + 8):
            labels, mask = record[f"labels{i}"][0], record[f"mask{i}"][0].astype(np.float64)
            losses = record[f"losses{i}"].reshape(mask.shape).astype(np.float64)
            sums[DOMAINS[int(labels[labels < 250][0]) // 50]] += (losses @ mask, mask.sum())
        present = {name: values for name, values in sums.items() if values[1]}
        assert entry["domains"].keys() == present.keys()
        for name, (loss_sum, tokens) in present.items():
            assert entry["domains"][name]["tokens"] == tokens
            assert abs(entry["domains"][name]["loss_sum"] - loss_sum) <= tokens * 2**-25


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
    losses = [ratio(entry) for entry in run.metrics()]
    assert [float(v) for v in run.host_losses()][2:] == pytest.approx(losses[2:], rel=1e-6)
    evaluations = [ratio(entry) for entry in run.metrics(None) if entry["split"] != "train"]
    assert [float(v) for v in run.host_evaluations()] == pytest.approx(evaluations, rel=1e-6)


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
