"""Reweighting in real runs: exact gradients, the host's own bits at ones, and an exact resume."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from support import launch
from support.gradients import assert_gradients, error, load
from support.launch import MODEL, Run, start_many, train
from support.observe import assert_collectives, assert_same_training, observe
from support.ramps import RULE, assert_ramped, ramped

pytestmark = pytest.mark.megatron

WEIGHTS = {"finance": 3.0, "general": 0.7, "code": 1.9, "maths": 0.2, "rare": 5.0}
GLOBAL = f"""
reweight: {{strategy: static, weights: {json.dumps(WEIGHTS)}, warmup_steps: 0, uniform_part: 0,
           clip: [0, 1000]}}
"""
WITHIN = "reweight: {scope: microbatch, strategy: linupper, warmup_steps: 0}"
TP2 = ["--tensor-model-parallel-size", "2"]
PP2 = ["--pipeline-model-parallel-size", "2"]
CP2 = ["--context-parallel-size", "2"]


@pytest.mark.parametrize("nproc", [1, 2])
def test_batches_that_grow(nproc: int, blend: list[str], tmp_path: Path) -> None:
    """Under a schedule of batch sizes Megatron's args hold another size, which depends on DP."""
    version = Version(pytest.importorskip("megatron.core").__version__)
    (tmp_path / "config.yaml").write_text(json.dumps({"reweight": RULE}))
    plugin = ["--domain-config", tmp_path / "config.yaml", "--domain-log-dir", tmp_path]
    words = ramped([*MODEL, *blend, *plugin, "--calculate-per-token-loss"], version)
    code, output = launch.start(nproc, *words)
    assert code == 0, output[-8000:]
    assert_ramped(Run(code, output, tmp_path))


# --- the loss that is differentiated ---------------------------------------------------------


@pytest.fixture(scope="module")
def still(base_checkpoint: Path, blend: list[str]) -> list[str]:
    """The same weights at every step, and rows with different numbers of loss tokens."""
    load = ["--load", str(base_checkpoint), "--finetune", "--no-load-rng"]
    mask = ["--vocab-size", "257", "--eod-mask-loss"]
    rest = shlex.split("--lr 0 --min-lr 0 --clip-grad 0 --eval-iters 0 --split 100,0,0")
    return [*blend, *load, *mask, *rest]


def second_step(folder: Path, reweight: str, *flags: str | Path, nproc: int = 1) -> Run:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(reweight)
    env = {"RECORD_DIR": str(folder), "WEIGHTS": json.dumps(list(WEIGHTS.values()))}
    how: dict[str, Any] = {"nproc": nproc, "iterations": 2, "script": "gradient_gpt.py"}
    return train(folder, *flags, "--domain-config", folder / "config.yaml", **how, env=env)


@pytest.fixture(scope="module")
def formula(tmp_path_factory: pytest.TempPathFactory, still: list[str]) -> Path:
    """One process, eight microbatches: its own gradients, and those of the formulas."""
    folder = tmp_path_factory.mktemp("formula")
    run = second_step(folder, GLOBAL, *still, "--calculate-per-token-loss")
    assert "WARNING: the domains are reweighted without" not in run.output
    return folder


def ranks(folder: Path, nproc: int) -> list[Path]:
    return [folder / f"rank{rank}.npz" for rank in range(nproc)]


def test_accumulated_gradient(formula: Path) -> None:
    expected = load(formula / "global_batch.npz")
    for other in ("plain", "averaged", "microbatch"):  # else a wrong one would pass, too
        for name, gradient in load(formula / f"{other}.npz").items():
            assert error(gradient, expected[name]) > 1e-3, (other, name)
    assert_gradients(ranks(formula, 1), expected)


LAYOUTS = {
    "dp2": [],
    "tp2": TP2,
    "pp2": PP2,
    "cp2": [*CP2, "--micro-batch-size", "2"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient(layout: str, formula: Path, still: list[str], tmp_path: Path) -> None:
    flags = [*still, *LAYOUTS[layout], "--calculate-per-token-loss"]
    second_step(tmp_path, GLOBAL, *flags, nproc=2)
    assert_gradients(ranks(tmp_path, 2), load(formula / "global_batch.npz"))


def test_gradient_within_microbatches(formula: Path, still: list[str], tmp_path: Path) -> None:
    """The original recipe, with four rows a microbatch that CP cuts in two."""
    flags = [*still, *CP2, "--micro-batch-size", "4", "--calculate-per-token-loss"]
    second_step(tmp_path, WITHIN, *flags, nproc=2)
    assert_gradients(ranks(tmp_path, 2), load(formula / "microbatch.npz"))


def test_gradient_averaged_by_the_host(formula: Path, still: list[str], tmp_path: Path) -> None:
    """Without --calculate-per-token-loss the host divides by each microbatch's own tokens."""
    run = second_step(tmp_path, GLOBAL, *still)
    assert_gradients(ranks(tmp_path, 1), load(formula / "averaged.npz"))
    assert run.output.count("WARNING: the domains are reweighted without") == 1


# --- mistakes ----------------------------------------------------------------------------------

MISTAKES = {
    "reweight: {temperature: 0.4}": None,
    "reweight: {temperature: 0}": "reweight.temperature: ",
    "reweight: {scope: microbatch, temperature: 0}": "reweight.temperature: ",
    "reweight: {strategy: linuper}": "reweight.strategy: unknown strategy 'linuper'; did you mean",
    "reweight: {strategy: excess, reference: {finance: 2.0}}": "reweight.reference: no value for ",
    "reweight: {unit: sample}": "reweight.unit: sample needs scope: microbatch",
    "reweight: {scope: microbatch, strategy: bandit}": "reweight.strategy: needs the losses of",
    "{domains: {finance: {data: [DATA/finance], floor: 0.5}, general: {data: [DATA/general]}},"
    " reweight: {scope: microbatch}}": "domains.finance.floor has no effect with scope: microbatch",
}


def test_mistakes_stop_the_run_at_its_start(corpora: Path, tmp_path: Path) -> None:
    blend = ["--data-path", "1", str(corpora / "finance"), "5", str(corpora / "general")]
    data = ["--split", "80,10,10", *blend]
    cases = []
    for number, text in enumerate(MISTAKES):
        config = tmp_path / f"{number}.yaml"
        config.write_text(text.replace("DATA", str(corpora)))
        words = [*MODEL, "--train-iters", "4", *data, "--domain-config", str(config)]
        cases.append({"words": words})
    cases.append({"words": [*MODEL, "--train-iters", "4", *data, "--domain-reweight", "linuper"]})
    expected = [*MISTAKES.values(), "unknown strategy"]
    for result, says in zip(start_many(cases), expected, strict=True):
        if says is None:
            assert result == {"code": None, "message": ""}
        else:
            assert result["code"] == 2
            assert says in result["message"]


# --- one means one -----------------------------------------------------------------------------

DP2 = ["--bf16", "--global-batch-size", "4", "--eval-iters", "0", "--split", "100,0,0"]


def test_multipliers_of_one(blend: list[str], tmp_path: Path) -> None:
    """The host's own losses, gradient norms and checkpoint, and still one all-reduce a step."""
    alone = {"nproc": 2, "plugin": False, "installed": False}
    host = observe(tmp_path / "alone", *blend, *DP2, **alone)
    flags = [*blend, *DP2, "--domain-reweight", "uniform"]
    ones = observe(tmp_path / "uniform", *flags, nproc=2)
    assert_same_training(ones, host)
    assert_collectives(ones, host, [{"all_reduce": 1}] * 2)
    for entry in ones.run.metrics():
        assert {domain["weight"] for domain in entry["domains"].values()} == {1.0}
        assert entry["reweighting"]["weighted_loss"] == entry["lm_loss"]


# --- resume ------------------------------------------------------------------------------------

LINUPPER = "reweight: {warmup_steps: 2, temperature: {start: 2.0, end: 0.5, steps: 4}}"
SMALL = shlex.split("--global-batch-size 4 --calculate-per-token-loss --eval-iters 0")
STEPS = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "linupper.yaml"
    path.write_text(LINUPPER)
    return path


@pytest.fixture(scope="module")
def start(blend: list[str], config: Path) -> list[str | Path]:
    return [*blend, *SMALL, "--split", "100,0,0", "--domain-config", config]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, start: list[str | Path]) -> Run:
    """Six steps in TP2, the last four of them reweighted; checkpoints of steps 3 and 6."""
    folder = tmp_path_factory.mktemp("unbroken")
    save = ["--save", folder / "checkpoints", "--save-interval", "3"]
    return train(folder, *start, *TP2, *save, nproc=2, iterations=STEPS)


def resume(unbroken: Run, folder: Path, *flags: str | Path, **how: Any) -> list[dict[str, Any]]:
    """Steps 4 to 6, from the checkpoint of step 3; what the metrics file says of them."""
    load = ["--load", unbroken.log_dir / "checkpoints", "--ckpt-step", "3"]
    run = train(folder, *flags, *load, nproc=2, iterations=STEPS, **how)
    return run.metrics()


def weights(entries: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{name: d["weight"] for name, d in e["domains"].items()} for e in entries]


def test_unbroken(unbroken: Run) -> None:
    per_step = weights(unbroken.metrics())
    assert len(per_step) == STEPS
    assert all(set(step.values()) == {1.0} for step in per_step[:2])
    assert all(len(set(step.values())) > 1 for step in per_step[2:])
    assert per_step[3] != per_step[5]
    console = [line for line in unbroken.output.splitlines() if "channel loss | " in line]
    assert "×1.00" in console[0]
    assert "×1.00" not in console[-1]
    summary = unbroken.metrics()[-1]["reweighting"]
    assert summary.keys() >= {"weighted_loss", "effective_domains", "effective_tokens", "clip_rate"}


@pytest.mark.parametrize("layout", [(), TP2], ids=["dp2", "tp2"])
def test_a_rank_that_rounds_differently_stops_the_run(
    start: list[str | Path], tmp_path: Path, layout: tuple[str, ...]
) -> None:
    """In the first step that trains with other multipliers, before its checkpoint is written."""
    save = ["--save", tmp_path / "checkpoints", "--save-interval", "1"]
    run = train(tmp_path, *start, *layout, *save, nproc=2, script="rounding_gpt.py", expect=1)
    assert (
        "the ranks do not agree on what is in force (multipliers, mix, config): rank 1 differs"
        in (run.output)
    )
    assert [entry["iteration"] for entry in run.metrics()] == [1, 2]  # the warm-up
    assert not (tmp_path / "checkpoints" / "iter_0000003").exists()


def test_resumed(unbroken: Run, start: list[str | Path], tmp_path: Path) -> None:
    assert resume(unbroken, tmp_path, *start, *TP2) == unbroken.metrics()[3:]


def test_resumed_in_another_layout(unbroken: Run, start: list[str | Path], tmp_path: Path) -> None:
    """From TP2 to PP2: the multipliers of the next step are exact, later ones follow the losses."""
    moved, expected = resume(unbroken, tmp_path, *start, *PP2), unbroken.metrics()[3:]
    assert weights(moved)[0] == weights(expected)[0]
    for have, want in zip(weights(moved), weights(expected), strict=True):
        assert have == pytest.approx(want, rel=1e-4)


def test_finetune_starts_afresh(unbroken: Run, start: list[str | Path], tmp_path: Path) -> None:
    load = ["--load", unbroken.log_dir / "checkpoints", "--finetune"]
    fresh = train(tmp_path, *start, *load, iterations=1)
    assert fresh.output.count("--finetune leaves the checkpoint's domain_pretrain state") == 1
    (entry,) = fresh.metrics()
    assert entry["iteration"] == 1
    assert set(weights([entry])[0].values()) == {1.0}
