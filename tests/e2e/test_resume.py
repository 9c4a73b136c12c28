"""A run that was killed and resumed leaves the numbers of an unbroken one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import board
from support.corpora import DOMAINS
from support.launch import Run, train
from support.metrics import METRICS, counted

from domain_pretrain.records.reader import read_events
from domain_pretrain.records.record import Event

pytestmark = pytest.mark.megatron

# Checkpoints fall into open windows of the console, of TensorBoard and between evaluations.
INTERVALS = "--log-interval 3 --tensorboard-log-interval 5 --eval-interval 5 --save-interval 4"
FLAGS = [*INTERVALS.split(), "--eval-iters", "1", "--global-batch-size", "4"]
TP2 = ["--tensor-model-parallel-size", "2"]
# Dropout draws random numbers, which must be those of the unbroken run.
SINGLE = ["--ckpt-format", "torch", "--hidden-dropout", "0.1", "--attention-dropout", "0.1"]
PP2 = ["--pipeline-model-parallel-size", "2"]


def run(folder: Path, *flags: str | Path, checkpoints: Path, **how: Any) -> Run:
    """Train into ``checkpoints``, from the last one there is."""
    load = ["--load", checkpoints] if checkpoints.exists() else []
    tensorboard = ["--tensorboard-dir", folder / "tensorboard"]
    return train(folder, *FLAGS, *flags, "--save", checkpoints, *load, *tensorboard, **how)


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Our TensorBoard points: tag → step → value."""
    found = board.points(folder / "tensorboard")
    return {tag: dict(curve) for tag, curve in found.items() if tag.startswith("channel-")}


def consumed(entry: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {
        name: (domain["consumed_tokens"], domain["consumed_samples"])
        for name, domain in entry["domains"].items()
    }


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory, blend: list[str]) -> Run:
    """Twelve unbroken steps in TP2; torch_dist checkpoints of steps 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("parallel")
    checkpoints = folder / "checkpoints"
    return run(folder, *blend, *TP2, nproc=2, iterations=12, checkpoints=checkpoints)


def test_killed_and_resumed(parallel: Run, blend: list[str], tmp_path: Path) -> None:
    flags = [*blend, *TP2]
    how: dict[str, Any] = {"nproc": 2, "iterations": 12, "checkpoints": tmp_path / "checkpoints"}
    # Both ranks die in the third microbatch of step 11: after the line of step 9 and the
    # evaluation of step 10, and after the checkpoint of step 8.
    env = {"KILL_AT_FORWARD": str(4 * 10 + 3)}
    killed = run(tmp_path, *flags, **how, script="killed_gpt.py", env=env, expect=None)
    assert killed.returncode != 0
    assert [e["iteration"] for e in killed.metrics(None)] == [3, 5, 6, 9, 10]
    with open(tmp_path / METRICS, "ab") as file:  # as a crash of the machine would leave it
        file.write(b'{"iteration": 12, "consumed_sam')

    run(tmp_path, *flags, **how)
    assert counted(tmp_path) == counted(parallel.log_dir)
    assert read_events(tmp_path) == [Event("start", 0), Event("resume", 8)]
    assert [e["iteration"] for e in parallel.metrics()] == [3, 6, 9, 12]
    # TensorBoard's window was open too: it holds steps 6 to 10, of which 9 and 10 came after.
    points, expected = scalars(tmp_path), scalars(parallel.log_dir)
    assert expected["channel-loss/general"].keys() == {5, 10}
    assert points == expected


def test_another_layout(parallel: Run, blend: list[str], tmp_path: Path) -> None:
    """From TP2 to PP2 at step 8: counts stay exact."""
    shutil.copy(parallel.log_dir / METRICS, tmp_path)
    load = ["--load", parallel.log_dir / "checkpoints", "--ckpt-step", "8"]
    moved = train(tmp_path, *FLAGS, *blend, *PP2, *load, nproc=2, iterations=12)
    for split in ("train", "valid"):
        entries, expected = moved.metrics(split), parallel.metrics(split)
        assert [e["iteration"] for e in entries] == [e["iteration"] for e in expected]
        for have, want in zip(entries, expected, strict=True):
            assert have["domains"].keys() == want["domains"].keys()
            for name, domain in want["domains"].items():
                for key, value in domain.items():
                    near = pytest.approx(value, rel=1e-5)
                    assert have["domains"][name][key] == (near if "loss" in key else value)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, blend: list[str]) -> Run:
    """Six unbroken steps in one process; ``torch`` checkpoints of steps 4 and 6."""
    folder = tmp_path_factory.mktemp("single")
    how: dict[str, Any] = {"iterations": 6, "checkpoints": folder / "checkpoints"}
    return run(folder, *blend, *SINGLE, **how)


@pytest.fixture
def stopped(single: Run, tmp_path: Path) -> Path:
    """The folder of a run that stopped some time after its checkpoint of step 4."""
    shutil.copy(single.log_dir / METRICS, tmp_path)
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(single.log_dir / "checkpoints" / "iter_0000004", checkpoints / "iter_0000004")
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("4")
    return tmp_path


def resume(stopped: Path, *flags: str | Path, **how: Any) -> Run:
    how = {"iterations": 6, "checkpoints": stopped / "checkpoints", **how}
    return run(stopped, *SINGLE, *flags, **how)


def test_torch_format(single: Run, stopped: Path, blend: list[str]) -> None:
    resume(stopped, *blend)
    assert counted(stopped) == counted(single.log_dir)


def test_enabled_after_megatron_was_imported(single: Run, stopped: Path, blend: list[str]) -> None:
    """The run starts at the load: what was loaded is not forgotten."""
    resume(stopped, *blend, script="late_gpt.py", installed=False)
    assert counted(stopped) == counted(single.log_dir)


FSDP = [
    *("--use-megatron-fsdp", "--data-parallel-sharding-strategy", "optim_grads_params"),
    *("--use-distributed-optimizer", "--calculate-per-token-loss", "--ckpt-format", "fsdp_dtensor"),
]


def test_a_format_that_loads_into_a_template(blend: list[str], tmp_path: Path) -> None:
    """Megatron-FSDP brings only what the new process already has."""
    pytest.importorskip("einops", reason="Megatron-FSDP needs einops")
    how: dict[str, Any] = {"iterations": 6, "env": {"CUDA_DEVICE_MAX_CONNECTIONS": "8"}}
    for folder, stops in (("unbroken", [[]]), ("resumed", [["--exit-interval", "4"], []])):
        place = tmp_path / folder
        for stop in stops:
            run(place, *blend, *FSDP, *stop, checkpoints=place / "checkpoints", **how)
    unbroken, resumed = (counted(tmp_path / folder) for folder in ("unbroken", "resumed"))
    assert resumed == unbroken
    assert scalars(tmp_path / "resumed") == scalars(tmp_path / "unbroken")


def test_without_the_plugin_and_back(single: Run, stopped: Path, blend: list[str]) -> None:
    """The host alone reads our checkpoint; of its own, we say that our part is missing."""
    alone = {"script": "watched_gpt.py", "env": {"RECORD_DIR": str(stopped)}, "plugin": False}
    resume(stopped, *blend, "--exit-interval", "5", installed=False, **alone)
    assert (stopped / "checkpoints" / "iter_0000005").exists()

    back = resume(stopped, *blend)
    assert "holds no domain_pretrain state" in back.output
    last = back.metrics()[-1]
    assert last["iteration"] == 6
    assert sum(samples for _, samples in consumed(last).values()) == 4


def write_config(folder: Path, corpora: Path, rename: dict[str, str]) -> Path:
    lines = ["domains:"]
    for name in DOMAINS:
        lines.append(f"  {rename.get(name, name)}: {{data: [{corpora / name}]}}")
    (folder / "domains.yaml").write_text("\n".join(lines))
    return folder / "domains.yaml"


def test_changed_domains(single: Run, stopped: Path, blend: list[str], corpora: Path) -> None:
    config = write_config(stopped, corpora, rename={"general": "everything"})
    flags = [*blend, "--domain-config", config]
    refused = resume(stopped, *flags, expect=None)
    assert refused.returncode != 0
    assert "gone ['general'], new ['everything']" in refused.output
    assert "--allow-domain-change" in refused.output
    assert "iteration        6/" not in refused.output

    allowed = resume(stopped, *flags, "--allow-domain-change")
    after, unbroken = consumed(allowed.metrics()[-1]), consumed(single.metrics()[-1])
    shared = after.keys() & unbroken.keys()
    assert shared == after.keys() - {"everything"}
    assert {n: after[n] for n in shared} == {n: unbroken[n] for n in shared}
    assert 0 < after["everything"][0] < unbroken["general"][0]


def test_changed_data(stopped: Path, blend: list[str]) -> None:
    """Refused; where it is allowed, the metrics file and the journal say what has changed."""
    changed = [*blend, "--seed", "4321"]
    refused = resume(stopped, *changed, expect=2)
    assert "other training data: --seed 1234 → 4321" in refused.output
    assert "Traceback" not in refused.output

    allowed = resume(stopped, *changed, "--allow-domain-change")
    assert allowed.metrics()[-1]["iteration"] == 6
    (event,) = [event for event in read_events(stopped) if event.name == "change"]
    assert event.iteration == 4
    assert event.detail == "other training data: --seed 1234 → 4321"
    journal = (stopped / "domain_journal.jsonl").read_text(encoding="utf-8").splitlines()
    (decision,) = map(json.loads, journal)
    assert (decision["iteration"], decision["consumed_samples"]) == (4, 16)
    assert decision["order"]["settings"]["--seed"] == 4321


def test_another_padding_of_the_vocabulary(stopped: Path, blend: list[str]) -> None:
    refused = resume(stopped, *blend, "--make-vocab-size-divisible-by", "512", expect=2)
    assert "a vocabulary padded to" in refused.output
    assert "Traceback" not in refused.output


def test_finetune_starts_afresh(stopped: Path, blend: list[str]) -> None:
    fresh = resume(stopped, *blend, "--finetune", iterations=3)
    (entry,) = fresh.metrics()
    assert (entry["iteration"], entry["consumed_samples"]) == (3, 12)
    assert sum(samples for _, samples in consumed(entry).values()) == 12
    lines = (stopped / "domain_metrics.discarded.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [0, 3, 5, 6, 6, 6]
