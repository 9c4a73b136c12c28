"""The real Megatron-Bridge on the CPU, with the plugin as one of its callbacks.

What this proves is in docs/bridge.md.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.launch import SCRIPTS, Run
from support.launch import start as start_process
from support.losses import (
    assert_evaluations_add_up,
    assert_host_numbers,
    assert_sums,
    mean,
    points,
    sums_by_domain,
)

from domain_pretrain.hosts import bridge


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


pytestmark = [
    pytest.mark.megatron,
    pytest.mark.skipif(
        # LoRA's tests install it without what it imports.
        not all(map(_installed, ("megatron.bridge", "omegaconf", "hydra", "mistral_common"))),
        reason="no megatron-bridge, or not what it imports: docs/bridge.md says how",
    ),
]
STEPS = 4
BATCH = 8
KILLED, NOT_A_NUMBER = 9, 16  # exit codes: of bridge_gpt.py, of the rerun machine


@pytest.fixture(scope="module")
def start(blend: list[str]) -> Any:
    """Start bridge_gpt.py; the words of ``blend`` after ``--data-path`` are its data."""
    data = blend[blend.index("--data-path") + 1 :]

    def start(folder: Path, nproc: int = 1, expect: int = 0, **how: Any) -> Run:
        folder.mkdir(exist_ok=True)
        (folder / "how.json").write_text(json.dumps({"folder": str(folder), "data": data, **how}))
        words = (SCRIPTS / "bridge_gpt.py", folder / "how.json")
        # The script's stand-ins must come before all that looks for what they stand in for.
        code, output = start_process(nproc, *words, plugin=False, real=True)
        assert code == expect, output[-8000:]
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


def test_learning_rate_and_gradient_norm(alone: Run) -> None:
    assert_host_numbers(alone)


def test_domains_add_up_to_the_hosts_loss(alone: Run) -> None:
    assert_adds_up(alone)
    evaluations = [e for e in alone.metrics(None) if e["split"] != "train"]
    assert points(evaluations) == [
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


def test_the_host_alone_resumes_from_our_checkpoint(alone: Run, start: Any, tmp_path: Path) -> None:
    start(tmp_path, exit=2)
    resumed = start(tmp_path, load=True, plugin=False)
    assert resumed.host_losses()[-1] == alone.host_losses()[-1]


def checkpoints(folder: Path, within: str = ".") -> list[str]:
    """The folders that look like a checkpoint's."""
    return sorted(path.name for path in (folder / "checkpoint" / within).glob("iter_*"))


def samples(folder: Path, step: int) -> int:
    """Consumed by all domains, as a checkpoint has it."""
    where = SimpleNamespace(load=str(folder / "checkpoint"))
    return sum(domain["samples"] for domain in bridge._load(where, step)["consumed"].values())


# Stand-ins replace the host's default of writing asynchronously; this is its other one.
ASYNCHRONOUS = {"async_save": True, "async_strategy": "mcore"}


def test_resume_from_a_checkpoint_that_was_complete_later(
    alone: Run, start: Any, tmp_path: Path
) -> None:
    """Saved after step 2, complete after step 3, and killed in step 4."""
    start(tmp_path, expect=KILLED, checkpoint=ASYNCHRONOUS, complete_at=4, kill_after=3)
    assert checkpoints(tmp_path) == ["iter_0000002"]
    resumed = start(tmp_path, load=True, checkpoint=ASYNCHRONOUS)
    assert resumed.metrics(None) == alone.metrics(None)
    assert checkpoints(tmp_path) == ["iter_0000002", "iter_0000004"]


def test_several_saves_at_a_time(alone: Run, start: Any, tmp_path: Path) -> None:
    """Those of steps 1, 2 and 3 are complete after step 3; each has the state of its own step."""
    run = start(tmp_path, checkpoint={**ASYNCHRONOUS, "save_interval": 1}, complete_at=4)
    assert run.metrics(None) == alone.metrics(None)
    steps = range(1, STEPS + 1)
    assert checkpoints(tmp_path) == [f"iter_{step:07d}" for step in steps]
    assert [samples(tmp_path, step) for step in steps] == [BATCH * step for step in steps]


def test_resume_from_a_non_persistent_checkpoint(alone: Run, start: Any, tmp_path: Path) -> None:
    fleeting = {"non_persistent_save_interval": 1, "non_persistent_ckpt_type": "global"}
    start(tmp_path, exit=3, checkpoint=fleeting)
    assert checkpoints(tmp_path) == ["iter_0000002"]
    assert "iter_0000003" in checkpoints(tmp_path, "non_persistent")
    resumed = start(tmp_path, load=True, checkpoint=fleeting)
    assert resumed.metrics(None) == alone.metrics(None)


def test_a_step_that_the_rerun_machine_gives_up(start: Any, tmp_path: Path) -> None:
    """It repeats step 2, saves a checkpoint of before it, and stops, without an update. Of this, a
    rank without losses, as of the first stage, learns less than one with them."""
    run = start(
        tmp_path,
        nproc=2,
        expect=1,  # torchrun's
        parallel={"pipeline_model_parallel_size": 2},
        rerun={"rerun_mode": "validate_results", "check_for_nan_in_loss": True},
        checkpoint={"save_interval": 100},
        poison_after=1,
    )
    assert re.search(rf"exitcode *: {NOT_A_NUMBER}\b", run.output)
    assert [entry["iteration"] for entry in run.metrics(None)] == [1]
    assert samples(tmp_path, 1) == BATCH
    assert run.output.count("loss is not finite in domain general") == 1


def test_an_evaluation_without_training_adds_to_the_metrics(start: Any, tmp_path: Path) -> None:
    """Also where it reads an earlier checkpoint than the last."""
    before = start(tmp_path, checkpoint={"save_interval": 1}).metrics(None)
    earlier = {"ckpt_step": 3}
    after = start(tmp_path, load=True, skip_train=True, checkpoint=earlier).metrics(None)
    assert after[: len(before)] == before
    added = [(entry["split"], entry["iteration"], entry["final"]) for entry in after[len(before) :]]
    assert added == [("valid", 3, True), ("test", 3, True)]


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
