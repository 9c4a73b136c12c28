"""Muon and MuonClip in real runs: the host's own bits at ones, exact gradients, clip and resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gradients import assert_gradients, load
from support.launch import Run, train
from support.metrics import counted
from support.observe import assert_same_training, observe
from support.presets import preset

from domain_pretrain.records.reader import read_metrics

pytest.importorskip("emerging_optimizers")
pytestmark = pytest.mark.megatron

MUON, MUONCLIP = preset("muon"), preset("muonclip")
TP2 = ["--tensor-model-parallel-size", "2"]
NO_EVALUATION = ["--eval-iters", "0", "--split", "100,0,0"]


def test_multipliers_of_one(blend: list[str], tmp_path: Path) -> None:
    """Muon's own losses, gradient norms and checkpoint, its momentum included."""
    flags = [*blend, *MUON, *NO_EVALUATION, "--bf16"]
    host = observe(tmp_path / "alone", *flags, nproc=1, plugin=False, installed=False)
    ones = observe(tmp_path / "ones", *flags, "--domain-reweight", "uniform", nproc=1)
    assert_same_training(ones, host)
    assert any("momentum_buffer" in path for path in host.checkpoint())
    for entry in ones.run.metrics():
        assert {domain["weight"] for domain in entry["domains"].values()} == {1.0}


# --- gradients ---------------------------------------------------------------------------------

WEIGHTS = {"finance": 3.0, "general": 0.7, "code": 1.9, "maths": 0.2, "rare": 5.0}
STATIC = {"strategy": "static", "weights": WEIGHTS, "uniform_part": 0, "clip": [0, 1000]}
LINUPPER = {"scope": "microbatch", "strategy": "linupper"}


def second_step(folder: Path, rule: dict[str, Any], *flags: str | Path, nproc: int = 1) -> Run:
    folder.mkdir(exist_ok=True)
    config = {"reweight": {**rule, "warmup_steps": 0}}
    (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    flags = (*flags, "--domain-config", folder / "config.yaml", "--calculate-per-token-loss")
    env = {"RECORD_DIR": str(folder), "WEIGHTS": json.dumps([*WEIGHTS.values()])}
    return train(folder, *flags, nproc=nproc, iterations=2, script="gradient_gpt.py", env=env)


def test_gradients(base_checkpoint: Path, blend: list[str], tmp_path: Path) -> None:
    """Of the domains' weights, and of linupper in TP2: what autograd finds in float64."""
    still = ["--lr", "0", "--min-lr", "0", "--clip-grad", "0", "--vocab-size", "257"]
    base = ["--load", base_checkpoint, "--finetune", "--no-load-rng", "--eod-mask-loss"]
    flags = [*blend, *MUON, *NO_EVALUATION, *still, *base]
    run = second_step(tmp_path / "one", STATIC, *flags)
    assert_gradients([tmp_path / "one" / "rank0.npz"], load(tmp_path / "one" / "global_batch.npz"))
    # The base was made by Adam.
    assert (
        run.output.count("the model that this run starts from was trained with --optimizer ad") == 1
    )

    second_step(tmp_path / "two", LINUPPER, *flags, *TP2, "--micro-batch-size", "4", nproc=2)
    ranks = [tmp_path / "two" / f"rank{rank}.npz" for rank in range(2)]
    assert_gradients(ranks, load(tmp_path / "one" / "microbatch.npz"))


# --- resume ------------------------------------------------------------------------------------


def test_killed_and_resumed(blend: list[str], tmp_path: Path) -> None:
    """In TP2, reweighted by linupper: every later number is that of the unbroken run."""
    (tmp_path / "config.yaml").write_text("reweight: {warmup_steps: 1}", encoding="utf-8")
    flags = [*blend, *MUON, *TP2, *NO_EVALUATION, "--global-batch-size", "4", "--bf16"]
    flags += ["--domain-config", tmp_path / "config.yaml", "--save-interval", "2"]

    def run(folder: str, **how: Any) -> Run:
        checkpoints = tmp_path / folder / "checkpoints"
        load = ["--load", checkpoints] if checkpoints.exists() else []
        save = ["--save", checkpoints]
        return train(tmp_path / folder, *flags, *save, *load, nproc=2, iterations=5, **how)

    unbroken = run("unbroken")
    env = {"KILL_AT_FORWARD": str(4 * 3 + 3)}  # in the fourth step
    killed = run("killed", script="killed_gpt.py", env=env, expect=None)
    assert killed.returncode != 0
    resumed = run("killed")
    assert "another optimizer" not in resumed.output
    assert counted(tmp_path / "killed") == counted(tmp_path / "unbroken")
    assert resumed.host_grad_norms() == unbroken.host_grad_norms()[2:]
    multipliers = [d["weight"] for d in unbroken.metrics()[-1]["domains"].values()]
    assert len(set(multipliers)) > 1


# --- MuonClip ----------------------------------------------------------------------------------

HEADS, SIZE, LAYERS, ALPHA, THRESHOLD = 4, 8, 4, 0.3, 4.6
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "one": (1, ["--group-query-attention", "--num-query-groups", "2"]),
    "dp2": (2, []),
    "pp2": (2, ["--pipeline-model-parallel-size", "2"]),
    "cp2": (2, ["--context-parallel-size", "2"]),
    "ulysses": (2, ["--context-parallel-size", "2", "--cp-comm-type", "a2a"]),
}


def whole(parts: list[np.ndarray]) -> np.ndarray:
    """``[n, s, …]`` from each context parallel rank's: the first holds chunks 0 and 3 of four."""
    if len(parts) == 1:
        return parts[0]
    (first, last), (second, third) = (np.split(part, 2, axis=1) for part in parts)
    return np.concatenate([first, second, third, last], axis=1)


def largest(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """``[h]``, in float64, from ``[n, s, b, h, d]`` and ``[n, s, b, g, d]``."""
    query, key = query.astype(np.float64), key.astype(np.float64)
    key = np.repeat(key, query.shape[3] // key.shape[3], axis=3)
    logits = np.einsum("nqbhd,nkbhd->hnbqk", query, key) / SIZE**0.5
    seen = np.tri(logits.shape[-1], dtype=bool)
    return np.where(seen, logits, -np.inf).max((1, 2, 3, 4))


def projected(hidden: np.ndarray, weight: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys of these weights, whose rows are by group: its queries, its key, value."""
    hidden, weight = hidden.astype(np.float64), weight.astype(np.float64)
    out = hidden @ weight.T
    out = out.reshape(*out.shape[:-1], groups, -1, SIZE)
    query = out[..., :-2, :].reshape(*out.shape[:-3], -1, SIZE)
    return query, out[..., -2, :]


def assert_logits(ranks: list[Any], layer: int, cp: bool) -> np.ndarray:
    """``[h]``, of one layer: every rank that has it took those that float64 finds.

    Args:
        ranks: that have these heads, over data or context parallelism.
    """
    queries, keys = ([rank[f"{name}{layer}"] for rank in ranks] for name in ("query", "key"))
    if cp:
        logits = largest(whole(queries), whole(keys))
    else:
        logits = np.stack([*map(largest, queries, keys)]).max(0)
    for rank in ranks:
        (taken,) = rank[f"logits{layer}"]
        # Megatron's own scores are bfloat16; ours, of divided sequences, float32.
        np.testing.assert_allclose(taken, logits, rtol=1e-5 if cp else 2**-8)
    return logits


def assert_clipped(ranks: list[Any], layer: int, cp: bool) -> None:
    """The weights of one layer are scaled as the formula says, with all of its heads."""
    groups = ranks[0][f"key{layer}"].shape[3]
    for rank in ranks:
        (taken,) = rank[f"logits{layer}"]
        gamma = np.minimum(1, THRESHOLD / taken.reshape(groups, -1).max(1).astype(np.float64))
        before, after = (
            rank[f"{name}{layer}"][0].astype(np.float64).reshape(groups, -1, SIZE, HEADS * SIZE)
            for name in ("before", "after")
        )
        factors = np.ones((groups, before.shape[1], 1, 1))
        factors[:, :-2] = gamma[:, None, None, None] ** ALPHA
        factors[:, -2] = gamma[:, None, None] ** (1 - ALPHA)
        np.testing.assert_allclose(after, before * factors, rtol=1e-6)
        # The weights of the forward pass are bfloat16, scaled by themselves.
        (model,) = rank[f"model{layer}"]
        np.testing.assert_allclose(model, after.reshape(model.shape), rtol=2**-7)
    if not cp:
        # On the same batch, the logits are now at the threshold where they were above it.
        batches = [
            projected(rank[f"hidden{layer}"], rank[f"after{layer}"][0], groups) for rank in ranks
        ]
        clipped = np.stack([largest(*batch) for batch in batches]).max(0)
        assert (clipped <= THRESHOLD * (1 + 2**-6)).all()
        by_group = clipped.reshape(groups, -1).max(1)
        np.testing.assert_allclose(by_group[gamma < 1], THRESHOLD, rtol=2**-6)


def one_step(folder: Path, *flags: str | Path, nproc: int) -> tuple[list[Any], float]:
    """What every rank wrote down, and the number of the metrics file."""
    still = ["--lr", "0", "--min-lr", "0", "--init-method-std", "0.2", "--micro-batch-size", "2"]
    flags = (*flags, *NO_EVALUATION, *still, "--bf16", "--disable-bias-linear")
    env = {"RECORD_DIR": str(folder)}
    train(folder, *flags, nproc=nproc, iterations=1, script="clipping_gpt.py", env=env)
    (entry,) = [one for one in read_metrics(folder) if one["split"] == "train"]
    ranks = [np.load(folder / f"rank{rank}.npz") for rank in range(nproc)]
    return ranks, entry["host"]["max_attention_logit"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_clipped(layout: str, blend: list[str], tmp_path: Path) -> None:
    """Heads above the threshold, and no others, are scaled as the formula says."""
    nproc, flags = LAYOUTS[layout]
    clip = ["--qk-clip-threshold", str(THRESHOLD), "--qk-clip-alpha", str(ALPHA)]
    ranks, told = one_step(tmp_path, *blend, *MUONCLIP, *clip, *flags, nproc=nproc)
    cp, found = layout in ("cp2", "ulysses"), []
    for layer in range(1, LAYERS + 1):
        here = [rank for rank in ranks if f"logits{layer}" in rank]
        found.append(assert_logits(here, layer, cp))
        assert_clipped(here, layer, cp)
    assert (np.stack(found) > THRESHOLD).any() and (np.stack(found) < THRESHOLD).any()
    assert told == pytest.approx(np.max(found), rel=2**-8)


def test_logged(blend: list[str], tmp_path: Path) -> None:
    """In TP2, where the host cannot clip: the largest logit of all ranks' heads."""
    flags = [*blend, *MUON, *TP2, "--log-max-attention-logit"]
    ranks, told = one_step(tmp_path, *flags, nproc=2)
    layers = range(1, LAYERS + 1)
    found = [[assert_logits([rank], layer, cp=False).max() for layer in layers] for rank in ranks]
    assert told == pytest.approx(np.max(found), rel=2**-8)
    assert abs(np.max(found[0]) - np.max(found[1])) > 2**-7 * told
