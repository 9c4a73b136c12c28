"""Real Megatron starts from what was imported; what it trained, exported, computes the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.clone import make_clone, shell
from support.huggingface import logits_of, model_flags, write_model
from support.launch import Run, train
from support.pages import commands

from domain_pretrain.commands.main import main
from domain_pretrain.huggingface.importing import import_model

pytestmark = pytest.mark.megatron
pytest.importorskip("transformers")
pytest.importorskip("safetensors")

BATCH = 8  # rows of an evaluation: one global batch, in microbatches of one
TRAINING = ["--seq-length", "32", "--eval-interval", "2", "--eval-iters", "1"]
TRAINING += ["--save-interval", "2", "--split", "90,10,0"]
# By name of the model: processes and layout.
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "llama": (1, []),
    "qwen2": (2, ["--tensor-model-parallel-size", "2"]),
    "qwen3_moe": (2, ["--pipeline-model-parallel-size", "2"]),
    # One layer without experts, so that each has keys of its own.
    "qwen3_mixed": (1, []),
}


@dataclass(frozen=True)
class Trained:
    """A model, its import, a run of two steps from there, and what its ranks recorded."""

    model: Path
    base: Path
    run: Run
    ranks: list[Any]

    def rows(self, name: str, rank: int) -> np.ndarray:
        """Of the last evaluation, as one rank had them: ``[rows, s]``."""
        found = self.ranks[rank]
        steps = [int(key[6:]) for key in found if key.startswith("valid_") and found[key]]
        return np.concatenate([found[f"{name}_{step}"] for step in sorted(steps)[-BATCH:]])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, blend: list[str]) -> Callable[[str], Trained]:
    """By the model's name; each runs once."""
    runs: dict[str, Trained] = {}

    def of(name: str) -> Trained:
        if name not in runs:
            folder = tmp_path_factory.mktemp(name)
            write_model(folder / "model", name)
            import_model(folder / "model", folder / "base")
            nproc, layout = LAYOUTS[name]
            save = ["--save", folder / "run" / "checkpoints", "--ckpt-format", "torch_dist"]
            flags = model_flags(folder / "base", nproc if "--tensor" in " ".join(layout) else 1)
            run = train(
                folder / "run",
                *blend,
                *flags,
                *TRAINING,
                *layout,
                *save,
                *("--pretrained-checkpoint", folder / "base"),
                nproc=nproc,
                iterations=2,
                script="logits_gpt.py",
                env={"RECORD_DIR": str(folder)},
            )
            ranks = [np.load(folder / f"rank{rank}.npz") for rank in range(nproc)]
            runs[name] = Trained(folder / "model", folder / "base", run, ranks)
        return runs[name]

    return of


@pytest.mark.parametrize("name", LAYOUTS)
def test_logits(name: str, trained: Callable[[str], Trained]) -> None:
    """Of the first microbatch, before a step: what transformers computes of the same weights.

    Both in float32, of logits up to 3; 3e-7 was seen.
    """
    it = trained(name)
    first, last = it.ranks[0], it.ranks[-1]
    tokens = first[f"tokens_{first['first']}"]
    parts = [it.ranks[0], it.ranks[-1]] if name == "qwen2" else [last]
    logits = np.concatenate([rank["logits"] for rank in parts], axis=-1)
    expected = logits_of(it.model, tokens).numpy()
    assert logits.shape == expected.shape  # no padding, also under TP
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_exported_models_loss(
    name: str, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    """On the rows of the run's last validation, in transformers: the loss that the run printed."""
    it = trained(name)
    assert main(["export", str(it.run.log_dir), str(tmp_path / "out")]) == 0
    tokens = it.rows("tokens", 0)
    labels, mask = it.rows("labels", -1), it.rows("loss_mask", -1)
    loss = torch.log_softmax(logits_of(tmp_path / "out", tokens).double(), dim=-1)
    of_labels = loss.gather(-1, torch.as_tensor(labels)[..., None])[..., 0].numpy()
    expected = it.run.metrics("valid")[-1]["lm_loss"]
    assert -(of_labels * mask).sum() / mask.sum() == pytest.approx(expected, rel=1e-6)
    # It has learnt something, which an export of the base would not have.
    before = torch.log_softmax(logits_of(it.model, tokens).double(), dim=-1)
    assert -(before.gather(-1, torch.as_tensor(labels)[..., None])).mean() > expected + 0.1
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "after 2 steps" in card and "| **all** | 512 |" in card
    assert f"{expected:.4f}" in card
    assert all(f"| {domain} |" in card for domain in ("general", "finance"))


def test_the_format_torch(
    trained: Callable[[str], Trained], blend: list[str], tmp_path: Path
) -> None:
    """The same weights, saved a file for each rank of TP; Megatron itself converts them."""
    it = trained("qwen2")
    _, layout = LAYOUTS["qwen2"]
    convert = ["--ckpt-convert-format", "torch", "--ckpt-convert-save", tmp_path / "ranks"]
    train(
        tmp_path / "log",
        *blend,
        *model_flags(it.base, 2),
        *TRAINING,
        *layout,
        *convert,
        *("--load", it.run.log_dir / "checkpoints", "--ckpt-format", "torch_dist"),
        nproc=2,
        iterations=2,
    )
    (folder,) = (tmp_path / "ranks").rglob("iter_0000002")
    assert len(list(folder.glob("mp_rank_*"))) == 2
    assert main(["export", str(folder), str(tmp_path / "out"), "--base", str(it.base)]) == 0
    assert main(["export", str(it.run.log_dir), str(tmp_path / "dist")]) == 0
    tokens = it.rows("tokens", 0)
    assert torch.equal(logits_of(tmp_path / "out", tokens), logits_of(tmp_path / "dist", tokens))


def test_flags_that_do_not_fit(
    trained: Callable[[str], Trained], blend: list[str], tmp_path: Path
) -> None:
    """Said before a weight is loaded, all at once."""
    it = trained("llama")
    flags = model_flags(it.base)
    flags[flags.index("--rotary-base") + 1] = "10000"
    flags[flags.index("--norm-epsilon") + 1] = "1e-5"
    base = ["--pretrained-checkpoint", it.base, "--ckpt-format", "torch_dist"]
    run = train(tmp_path, *blend, *flags, *TRAINING, *base, expect=2)
    assert "--norm-epsilon: the base has 1e-06, the run 1e-05" in run.output
    assert "--rotary-base: the base has 500000, the run 10000" in run.output


def test_the_pages_commands(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    """As shown; a Qwen2 and its run are where the page has them."""
    it = trained("qwen2")
    folder = make_clone(tmp_path / "clone")
    shutil.copytree(it.model, folder / "models" / "Qwen2.5-1.5B")
    shutil.copytree(it.run.log_dir, folder / "runs" / "finance")
    shown = [line for line in commands("docs/huggingface.md") if "domain-pretrain" in line]
    assert [line.split()[1] for line in shown] == ["import", "export", "export"]
    for line in shown:
        done = shell(folder, line)
        assert done.returncode == 0, done.stdout
    for out in ("models/qwen2.5-1.5b-finance", "out/finance"):
        assert (folder / out / "README.md").is_file()
        assert logits_of(folder / out, [[1, 2]]).shape == (1, 2, 300)
