"""The real MindSpeed-LLM and MindSpeed on the CPU, with a stand-in for torch_npu.

What this proves, and what only a device could, is in docs/mindspeed.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.corpora import DOMAINS
from support.launch import Run, train
from support.losses import (
    assert_evaluations_add_up,
    assert_host_numbers,
    assert_sums,
    mean,
    sums_by_domain,
)
from support.tools import tools

PATHS = {
    name: os.environ.get(name, "")
    for name in ("MINDSPEED_LLM_PATH", "MINDSPEED_PATH", "MEGATRON_LM_PATH")
}
MISSING = ", ".join(name for name, path in PATHS.items() if not path)

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.checkout,
    pytest.mark.skipif(bool(MISSING), reason=f"no MindSpeed checkout: set {MISSING}"),
]

STAND_INS = Path(__file__).parent / "stand_ins"
# MindSpeed reads this flag itself, before Megatron's parser has what the CPU backend supplies.
LOCAL = ["--transformer-impl", "local", "--calculate-per-token-loss"]
# The same padded vocabulary for every TP size; evaluations between the steps.
BASE = ["--make-vocab-size-divisible-by", "608", "--eval-interval", "2"]
# 256 ends a document: --vocab-size 256 makes it the tokenizer's own end.
RESET = [
    *("--reset-position-ids", "--reset-attention-mask", "--use-flash-attn"),
    *("--vocab-size", "256", "--micro-batch-size", "2"),
]
STEPS = 4


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where the hosts are; their index helper is compiled for this Python."""
    helpers = Path(PATHS["MEGATRON_LM_PATH"], "megatron", "core", "datasets")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    compiler = tools(tmp_path_factory.mktemp("tools") / "bin")
    path = os.pathsep.join([str(compiler), os.environ["PATH"]])
    make = ["make", "-C", str(helpers), f"LIBEXT={suffix}"]
    subprocess.run(make, check=True, capture_output=True, env={**os.environ, "PATH": path})
    sources = [STAND_INS, *PATHS.values()]
    sources += [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    return {
        **PATHS,
        "PATH": path,
        "PYTHONPATH": os.pathsep.join(map(str, sources)),
        # MindSpeed empties this folder of torch's where it finds a lock in it.
        "TORCH_EXTENSIONS_DIR": str(tmp_path_factory.mktemp("extensions")),
    }


@pytest.fixture(scope="module")
def start(environment: dict[str, str], blend: list[str]) -> Any:
    """Start MindSpeed-LLM's pretrain_gpt.py."""

    def start(
        folder: Path, *flags: str | Path, env: dict[str, str] | None = None, **how: Any
    ) -> Run:
        folder.mkdir(exist_ok=True)
        how = {"script": Path(PATHS["MINDSPEED_LLM_PATH"], "pretrain_gpt.py"), **how}
        # With torch_npu in sight the plugin would take the NPU.
        backend = ["--domain-backend", "cpu"] if how.get("installed", True) else []
        flags = (*blend, *LOCAL, *backend, *flags)
        # MindSpeed patches PyTorch while it is being imported: nothing is to be imported before.
        how = {"iterations": STEPS, "real": True, **how}
        return train(folder, *flags, env={**environment, **(env or {})}, **how)

    return start


@pytest.fixture(scope="module")
def alone(start: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """One process with the plugin, its losses recorded."""
    folder = tmp_path_factory.mktemp("alone")
    record = {"RECORD_DIR": str(folder)}
    return start(folder, *BASE, script="mindspeed_gpt.py", env=record), folder


def oracle(record: Any, step: int, microbatches: int) -> dict[str, tuple[float, float]]:
    """Loss sum and tokens by domain, told by the text itself."""
    rows: list[Any] = []
    for i in range(step * microbatches, (step + 1) * microbatches):
        labels = record[f"labels{i}"]
        named = [record[f"{key}{i}"].reshape(labels.shape) for key in ("losses", "mask")]
        rows += zip(*named, labels, strict=True)
    return sums_by_domain(rows)


def assert_equals_oracle(run: Run, folder: Path, microbatches: int) -> None:
    record = np.load(folder / "rank0.npz")
    entries = run.metrics()
    assert len(entries) == STEPS
    for step, entry in enumerate(entries):
        assert_sums(entry, oracle(record, step, microbatches))


def assert_adds_up(run: Run) -> None:
    """Σ sums / Σ tokens is the printed lm loss, of every step and every evaluation."""
    training = [mean(entry) for entry in run.metrics()]
    assert [float(loss) for loss in run.host_losses()] == pytest.approx(training, rel=1e-6)
    assert len(assert_evaluations_add_up(run)) >= 2


def test_oracle(alone: tuple[Run, Path]) -> None:
    assert_equals_oracle(*alone, microbatches=8)
    assert_adds_up(alone[0])


def assert_same(got: Run, expected: Run) -> None:
    """All that the host prints, bit for bit as far as it prints."""
    assert len(expected.host_losses()) == STEPS
    assert got.host_losses() == expected.host_losses()
    assert got.host_grad_norms() == expected.host_grad_norms()
    assert got.host_evaluations() == expected.host_evaluations()


def test_learning_rate_and_gradient_norm(alone: tuple[Run, Path]) -> None:
    assert_host_numbers(alone[0])


def test_off_is_off(alone: tuple[Run, Path], start: Any, tmp_path: Path) -> None:
    how = {"script": "mindspeed_gpt.py", "plugin": False, "installed": False}
    host = start(tmp_path, *BASE, env={"ALONE": "1"}, **how)
    assert_same(alone[0], host)


def test_one_means_one(alone: tuple[Run, Path], start: Any, tmp_path: Path) -> None:
    """Multipliers of exactly one, weighed into the loss that is differentiated."""
    config = tmp_path / "ones.yaml"
    config.write_text("reweight: {strategy: linupper, warmup_steps: 100}\n")
    ones = start(tmp_path, *BASE, "--domain-config", config)
    assert_same(ones, alone[0])
    assert {d["weight"] for e in ones.metrics() for d in e["domains"].values()} == {1.0}


def test_reweighting_is_megatrons(start: Any, tmp_path: Path) -> None:
    """Under weights that change the training: as in Megatron's own script, without MindSpeed."""
    config = tmp_path / "weights.yaml"
    weights = dict(zip(DOMAINS, (3.0, 0.7, 1.9, 0.2, 5.0), strict=True))
    rule = {"strategy": "static", "weights": weights, "warmup_steps": 0, "uniform_part": 0}
    config.write_text(json.dumps({"reweight": rule}))
    flags = (*BASE, "--domain-config", config)
    mindspeed = start(tmp_path / "mindspeed", *flags)
    script = Path(PATHS["MEGATRON_LM_PATH"], "pretrain_gpt.py")
    megatron = start(tmp_path / "megatron", *flags, script=script)
    assert_same(mindspeed, megatron)
    found = [
        [(name, d["weight"]) for e in run.metrics() for name, d in e["domains"].items()]
        for run in (mindspeed, megatron)
    ]
    assert found[0] == found[1]
    assert len({weight for _, weight in found[0]}) > 4, "every domain has its own weight"


def test_resume(alone: tuple[Run, Path], start: Any, tmp_path: Path) -> None:
    """Stopped after two steps and resumed, the metrics are those of the unbroken run."""
    save = ("--save", tmp_path / "checkpoint", "--save-interval", "2", "--ckpt-format", "torch")
    start(tmp_path, *BASE, *save, "--exit-interval", "2")
    resumed = start(tmp_path, *BASE, *save, "--load", tmp_path / "checkpoint")
    assert resumed.metrics(None) == alone[0].metrics(None)
    assert resumed.host_losses() == alone[0].host_losses()[2:]


@pytest.mark.parametrize("layout", ["one", "cp2"])
def test_a_blend_that_changes(layout: str, start: Any, tmp_path: Path) -> None:
    """Two stages of 16 samples, and cuts: each step reads what it is to read."""
    config = tmp_path / "stages.yaml"
    stages = [{"samples": 16, "weights": {"code": 1, "maths": 3}}, {"weights": {"general": 1}}]
    skip = [{"samples": [8, 12]}]
    config.write_text(json.dumps({"mix": {"schedule": stages, "skip": skip}}))
    record, how = {"RECORD_DIR": str(tmp_path)}, {"script": "mindspeed_gpt.py"}
    flags = (*BASE, "--domain-config", config, *LAYOUTS.get(layout, "").split())
    run = start(tmp_path, *flags, env=record, nproc=1 if layout == "one" else 2, **how)
    assert_adds_up(run)
    if layout == "one":
        assert_equals_oracle(run, tmp_path, microbatches=8)
    read = [{name: d["samples"] for name, d in entry["domains"].items()} for entry in run.metrics()]
    assert read[0] == {"code": 2, "maths": 6}
    assert read[1].pop("general") == 4, "the cut has brought the second stage forward"
    assert sum(read[1].values()) == 4
    assert read[2] == read[3] == {"general": 8}


def test_repatch(alone: tuple[Run, Path], start: Any, tmp_path: Path) -> None:
    """MindSpeed starts over from its saved originals: the seams are on top of it again."""
    env = {"REPATCH": "1", "RECORD_DIR": str(tmp_path)}
    repatched = start(tmp_path, *BASE, script="mindspeed_gpt.py", env=env)
    assert repatched.metrics(None) == alone[0].metrics(None)
    assert_same(repatched, alone[0])
    stacks = json.loads((tmp_path / "rank0.json").read_text())
    for name in ("train_step", "evaluate_and_print_results"):
        for module in ("mindspeed_llm.training.training", "megatron.training.training"):
            assert outermost(stacks[f"{module}:{name}"]) == "megatron.py"
    schedule = stacks["megatron.training.training:get_forward_backward_func"]
    assert outermost(schedule) == "megatron.py"
    assert any("fb_overlap" in file for file in schedule), "MindSpeed's new patch is not hidden"


def outermost(files: list[str]) -> str:
    path = Path(files[0])
    assert path.parent.name == "hosts"
    return path.name


LAYOUTS = {
    "dp2": "",
    "tp2": "--tensor-model-parallel-size 2 --make-vocab-size-divisible-by 304",
    "pp2": "--pipeline-model-parallel-size 2",
    "pp2-vpp2": "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1",
    # Ulysses: MindSpeed cuts sequences without zigzag, and attends through the fused operator.
    "cp2": "--context-parallel-size 2 --context-parallel-algo ulysses_cp_algo --use-flash-attn",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_equals_one_process(
    layout: str, alone: tuple[Run, Path], start: Any, tmp_path: Path
) -> None:
    got = start(tmp_path, *BASE, *LAYOUTS[layout].split(), nproc=2)
    assert_adds_up(got)
    for want, have in zip(alone[0].metrics(None), got.metrics(None), strict=True):
        assert have["split"] == want["split"]
        assert have["domains"].keys() == want["domains"].keys()
        for name, domain in want["domains"].items():
            assert have["domains"][name]["tokens"] == domain["tokens"]
            assert have["domains"][name]["loss"] == pytest.approx(domain["loss"], rel=1e-5)


def test_reset_position_ids(start: Any, tmp_path: Path) -> None:
    """Documents apart (TND): another dataset item, collate function and batch."""
    record = {"RECORD_DIR": str(tmp_path)}
    run = start(tmp_path, *RESET, script="mindspeed_gpt.py", env=record)
    assert_equals_oracle(run, tmp_path, microbatches=4)
    assert_adds_up(run)
    records = np.load(tmp_path / "rank0.npz")
    positions = np.concatenate([records[f"positions{i}"] for i in range(4 * STEPS)])
    assert (positions[:, 1:] == 0).any(), "no document ends within a row"


def test_middle_stage(start: Any, tmp_path: Path) -> None:
    """With ``--reset-attention-mask`` pipeline stages that compute no loss read batches, too."""
    pipeline = ("--num-layers", "3", "--pipeline-model-parallel-size", "3")
    record = {"RECORD_DIR": str(tmp_path)}
    run = start(tmp_path, *RESET, *pipeline, script="mindspeed_gpt.py", env=record, nproc=3)
    assert_adds_up(run)
    (tmp_path / "rank2.npz").rename(tmp_path / "rank0.npz")  # the last stage has the losses
    assert_equals_oracle(run, tmp_path, microbatches=4)


def test_refused(start: Any, tmp_path: Path) -> None:
    run = start(tmp_path, "--is-instruction-dataset", expect=2)
    assert "--is-instruction-dataset is not supported with channel loss" in run.output
