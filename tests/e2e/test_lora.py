"""Adapters in real runs: what is trained, what is not, what is loaded, and what comes of it."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import read_tensors
from support.clone import make_clone, shell
from support.gradients import assert_gradients, load
from support.huggingface import logits_of, model_flags, write_model
from support.launch import Run, train
from support.losses import mean
from support.metrics import counted
from support.pages import commands

from domain_pretrain.checkpoints.tracker import folder_of, read_tracker
from domain_pretrain.commands.main import main
from domain_pretrain.errors import ConfigError
from domain_pretrain.hosts.peft import INSTALL, find_peft
from domain_pretrain.huggingface.importing import import_model
from domain_pretrain.records.reader import read_evaluations

pytestmark = pytest.mark.megatron
try:
    find_peft()
except ConfigError as error:
    pytest.skip(str(error), allow_module_level=True)

LORA = {"rank": 8, "alpha": 16}
CONFIG = {"adapt": {"lora": LORA}, "evaluate": {"samples": 4}}
OFTEN = ["--eval-interval", "10", "--eval-iters", "1"]


def run(folder: Path, *flags: str | Path, config: dict[str, Any] = CONFIG, **how: Any) -> Run:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps(config))
    return train(folder, *flags, "--domain-config", folder / "config.yaml", **how)


def newest(folder: Path) -> Path:
    found = folder_of(folder, read_tracker(folder) or "")
    assert found is not None
    return found


def above(run: Run) -> dict[int, dict[str, float]]:
    """By iteration, then domain: Σ loss of the model − that of its base, on the fixed set."""
    found = read_evaluations(run.log_dir)
    return {
        one.iteration: {s.domain: s.sum for s in one.scores if s.name == "above-base"}
        for one in found
        if not one.final
    }


@pytest.fixture(scope="module")
def trained(
    base_checkpoint: Path, blend: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    folder = tmp_path_factory.mktemp("trained")
    save = ["--save", folder / "checkpoints", "--save-interval", "10"]
    base = ["--pretrained-checkpoint", base_checkpoint]
    return run(folder, *blend, *OFTEN, *save, *base, iterations=20)


def test_the_first_step_is_the_bases(
    trained: Run, base_checkpoint: Path, blend: list[str], tmp_path: Path
) -> None:
    """Bit for bit: B is zero, and what is added is that."""
    flags = [*blend, *OFTEN, "--pretrained-checkpoint", base_checkpoint, "--exit-interval", "1"]
    base = train(tmp_path, *flags, iterations=20)
    assert trained.metrics()[0] == base.metrics()[0]


def test_what_is_frozen_keeps_its_bits(trained: Run, base_checkpoint: Path) -> None:
    before = read_tensors(newest(base_checkpoint))
    after = read_tensors(newest(trained.log_dir / "checkpoints"))
    assert before and all(torch.equal(after[name], before[name]) for name in before)
    adapters = [name for name in after if ".adapter." in name and not name.startswith("optim")]
    assert len(adapters) == 8  # A and B of four kinds of layers, each of all layers
    assert all(after[name].abs().sum() > 0 for name in adapters)
    # Of the optimizer, nothing but what the adapters have: two moments and a copy.
    moments = sum(one.numel() for name, one in after.items() if name.startswith("optim"))
    assert moments <= 3 * sum(after[name].numel() for name in adapters)


def test_above_the_base(trained: Run) -> None:
    first, *later = trained.metrics("valid")
    found = above(trained)
    assert list(found) == [0, 10, 20] and set(found[0].values()) == {0.0}
    for entry in later:
        for name, domain in entry["domains"].items():
            expected = domain["loss_sum"] - first["domains"][name]["loss_sum"]
            assert found[entry["iteration"]][name] == expected
    assert sum(found[20].values()) < 0  # it has learnt something


def test_adapters_off_is_the_base(trained: Run, blend: list[str], tmp_path: Path) -> None:
    """Of a run that starts from trained adapters, and knows nothing of their base: bit for bit."""
    load = ["--load", trained.log_dir / "checkpoints", "--finetune"]
    later = run(tmp_path, *blend, *OFTEN, *load, iterations=1)
    assert later.metrics("valid")[0]["domains"] == trained.metrics("valid")[2]["domains"]
    assert above(later)[0] == above(trained)[20]


def test_killed_and_resumed(
    trained: Run, base_checkpoint: Path, blend: list[str], tmp_path: Path
) -> None:
    """In the middle of step 13; from the checkpoint of step 10."""
    folder = tmp_path / "checkpoints"
    flags = [*blend, *OFTEN, "--save", folder, "--load", folder, "--save-interval", "10"]
    flags += ["--pretrained-checkpoint", base_checkpoint]
    env = {"KILL_AT_FORWARD": str(8 * 12 + 3)}
    killed = run(tmp_path, *flags, iterations=20, script="killed_gpt.py", env=env, expect=None)
    assert killed.returncode != 0
    run(tmp_path, *flags, iterations=20)
    assert counted(tmp_path) == counted(trained.log_dir)
    assert above(killed) == above(trained)
    expected = read_tensors(newest(trained.log_dir / "checkpoints"))
    found = read_tensors(newest(folder))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


LAYOUTS = {
    "TP2, SP": (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    "PP2": (2, "--pipeline-model-parallel-size 2"),
    "DP2": (2, ""),
    "recompute": (
        1,
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
    ),
}


@pytest.fixture(scope="module")
def gradients(
    trained: Run, blend: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("single")
    return {
        key.split("@")[0]: value
        for key, value in load(first_step(folder, trained, blend, 1)[0]).items()
    }


def first_step(
    folder: Path, trained: Run, blend: list[str], nproc: int, *flags: str | Path
) -> list[Path]:
    """The files of the ranks' gradients, of adapters that are not zero."""
    start = ["--load", trained.log_dir / "checkpoints", "--finetune", *flags]
    config = {"adapt": {"lora": LORA}}
    how: dict[str, Any] = {"script": "adapter_gpt.py", "env": {"RECORD_DIR": str(folder)}}
    run(folder, *blend, *start, config=config, nproc=nproc, iterations=1, **how)
    return sorted(folder.glob("rank*.npz"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients(
    layout: str,
    gradients: dict[str, np.ndarray],
    trained: Run,
    blend: list[str],
    tmp_path: Path,
) -> None:
    """Of A and B: those of a single process."""
    nproc, flags = LAYOUTS[layout]
    files = first_step(tmp_path, trained, blend, nproc, *flags.split())
    assert len(gradients) == 4 * 4 * 2 and all(one.any() for one in gradients.values())
    assert_gradients(files, gradients)


def test_reweighting(trained: Run, blend: list[str], tmp_path: Path) -> None:
    """``linupper`` with adapters, over TP2: every step's sums add up, which the run checks, and
    to the loss that Megatron prints, which is not reweighted."""
    config = {"adapt": {"lora": LORA}, "reweight": {"strategy": "linupper", "warmup_steps": 0}}
    words = ["--load", trained.log_dir / "checkpoints", "--finetune", "--calculate-per-token-loss"]
    words += ["--tensor-model-parallel-size", "2"]
    found = run(tmp_path, *blend, *words, config=config, nproc=2, iterations=3)
    first, second, third = (mean(entry) for entry in found.metrics())
    # Megatron prints iteration 1 without restarting its average, so the second line has both.
    printed = [float(loss) for loss in found.host_losses()]
    assert printed == pytest.approx([first, (first + second) / 2, third], rel=1e-6)
    assert len({d["weight"] for d in found.metrics()[-1]["domains"].values()}) > 1


# What is loaded.


def broken(base: Path, folder: Path, name: str) -> Path:
    """A copy of a base without one tensor."""
    shutil.copytree(base, folder)
    checkpoint = newest(folder)
    if (checkpoint / ".metadata").exists():
        index = pickle.loads((checkpoint / ".metadata").read_bytes())
        del index.state_dict_metadata[f"decoder.layers.{name}"]
        (checkpoint / ".metadata").write_bytes(pickle.dumps(index))
    else:
        (path,) = checkpoint.rglob("*.pt")
        state = torch.load(path, weights_only=False)
        del state["model"][f"decoder.layers.2.{name}"]
        torch.save(state, path)
    return folder


@pytest.fixture(scope="module")
def torch_base(
    base_checkpoint: Path, blend: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same base in the format ``torch``: a file of names, and no index."""
    folder = tmp_path_factory.mktemp("torch")
    convert = ["--ckpt-convert-format", "torch", "--ckpt-convert-save", folder]
    train(folder / "log", *blend, "--load", base_checkpoint, "--no-load-optim", *convert)
    (converted,) = folder.rglob("latest_checkpointed_iteration.txt")
    return converted.parent


TORCH = ["--ckpt-format", "torch"]


def test_the_format_torch(trained: Run, torch_base: Path, blend: list[str], tmp_path: Path) -> None:
    """The same numbers, and adapters that go on where they stood."""
    flags = [*blend, *OFTEN, *TORCH, "--save", tmp_path / "checkpoints", "--save-interval", "2"]
    base = ["--pretrained-checkpoint", torch_base]
    run(tmp_path, *flags, *base, "--exit-interval", "2", iterations=20)
    run(tmp_path, *flags, "--load", tmp_path / "checkpoints", "--exit-interval", "3", iterations=20)
    assert train_lines(tmp_path) == train_lines(trained.log_dir)[:3]


def train_lines(folder: Path) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in counted(folder).splitlines())
    return [line for line in lines if line["split"] == "train"]


@pytest.mark.parametrize("format", ["torch_dist", "torch"])
def test_a_base_that_lacks_a_tensor_is_refused_by_its_name(
    format: str, base_checkpoint: Path, torch_base: Path, blend: list[str], tmp_path: Path
) -> None:
    """Megatron would train on from random numbers in a file of the format torch."""
    name = "self_attention.linear_proj.weight"
    base = base_checkpoint if format == "torch_dist" else torch_base
    flags = [*blend, "--ckpt-format", format]
    flags += ["--pretrained-checkpoint", broken(base, tmp_path / "base", name)]
    stopped = run(tmp_path, *flags, iterations=1, expect=2)
    number = "" if format == "torch_dist" else "2."
    assert f"lacks decoder.layers.{number}{name}, which adapt.lora keeps" in stopped.output


def test_other_adapters_and_none_are_refused(
    trained: Run, base_checkpoint: Path, blend: list[str], tmp_path: Path
) -> None:
    own, base = ["--load", trained.log_dir / "checkpoints"], ["--load", base_checkpoint]
    other = {"adapt": {"lora": {"rank": 8, "alpha": 32}}}
    stopped = run(tmp_path, *blend, *own, config=other, iterations=30, expect=2)
    assert "other adapters than adapt.lora asks for: alpha 16.0, here 32.0" in stopped.output
    stopped = run(tmp_path, *blend, *own, config={}, iterations=30, expect=2)
    assert "its adapters would be left out" in stopped.output
    stopped = run(tmp_path, *blend, *base, iterations=30, expect=2)
    assert "no checkpoint of this run to go on from" in stopped.output
    stopped = run(tmp_path, *blend, iterations=30, expect=2)
    assert "it starts from none" in stopped.output


# What comes of it.


# By model: its layout, its data-parallel ranks, and whether its experts have adapters.
MERGED = {
    "llama": ("--tensor-model-parallel-size 2", 1, False),
    "qwen3_moe": ("--expert-model-parallel-size 2", 2, True),
}


@pytest.mark.parametrize("name", MERGED)
def test_merged_is_the_model_with_adapters(
    name: str, blend: list[str], tmp_path: Path, forked_evaluations: None
) -> None:
    """From a Hugging Face model, over two ranks, and back: on the rows of the last validation,
    what transformers computes of the merged weights, and Megatron of W and A and B, in the run and
    in ``eval``."""
    layout, replicas, experts = MERGED[name]
    write_model(tmp_path / "model", name)
    import_model(tmp_path / "model", tmp_path / "base")
    flags = model_flags(tmp_path / "base", 3 - replicas)
    flags += ["--seq-length", "32", "--split", "90,10,0", "--lr", "3e-2", *layout.split()]
    flags += ["--eval-interval", "4", "--eval-iters", "1", "--save-interval", "4"]
    folder = tmp_path / "run"
    trained = run(
        folder,
        *(*blend, *flags, "--pretrained-checkpoint", tmp_path / "base"),
        *("--save", folder / "checkpoints"),
        config={"adapt": {"lora": {**LORA, "experts": experts}}},
        iterations=4,
        nproc=2,
        script="logits_gpt.py",
        env={"RECORD_DIR": str(tmp_path)},
    )
    assert main(["export", str(folder), str(tmp_path / "merged")]) == 0
    tokens, labels, mask = (
        np.concatenate([rows_of(tmp_path / f"rank{r}.npz", what, 8 // replicas) for r in (0, 1)])
        for what in ("tokens", "labels", "loss_mask")
    )

    def loss(model: Path, mask: np.ndarray = mask) -> float:
        each = torch.log_softmax(logits_of(model, tokens).double(), dim=-1)
        of_labels = each.gather(-1, torch.as_tensor(labels)[..., None])[..., 0].numpy()
        return float(-(of_labels * mask).sum() / mask.sum())

    expected = trained.metrics("valid")[-1]["lm_loss"]
    assert loss(tmp_path / "merged") == pytest.approx(expected, rel=1e-5)
    assert abs(loss(tmp_path / "model") - expected) > 0.01  # the base does not say the same
    scores = asked(tmp_path, ["base", "run"], np.concatenate([tokens, labels[:, -1:]], 1))
    weights = np.ones_like(mask)
    assert scores == pytest.approx(
        [loss(tmp_path / model, weights) for model in ("model", "merged")], rel=1e-5
    )


def asked(folder: Path, places: list[str], rows: np.ndarray) -> list[float]:
    """The mean loss of each model by ``eval``, in nats a token, of rows ``[n, s + 1]``."""
    named = {f"row {at}": row.tolist() for at, row in enumerate(rows)}
    (folder / "rows.json").write_text(json.dumps({"validation": named}))
    probes = {"evaluate": {"probes": {"replay": {"rows": str(folder / "rows.json")}}}}
    (folder / "probes.yaml").write_text(json.dumps(probes))
    words = ["eval", *(str(folder / place) for place in places), "--json", str(folder / "told")]
    assert main([*words, "--config", str(folder / "probes.yaml")]) == 0
    (line,) = json.loads((folder / "told").read_text())["lines"]
    means: list[float] = line["means"]
    return means


def rows_of(file: Path, what: str, count: int) -> np.ndarray:
    """Of a rank's last evaluation."""
    found = np.load(file)
    steps = sorted(int(key[6:]) for key in found if key.startswith("valid_") and found[key])
    return np.concatenate([found[f"{what}_{step}"] for step in steps[-count:]])


def test_the_pages_run(corpora: Path, tmp_path: Path) -> None:
    """Its example and its preset as shown, with a small model, less of it, and no new install."""
    folder = make_clone(tmp_path / "clone")
    write_model(folder / "models" / "Qwen2.5-1.5B", "qwen2")
    (folder / "data").mkdir()
    for name in ("finance", "general"):
        for suffix in ("bin", "idx"):
            copy = folder / "data" / f"{name}_text_document.{suffix}"
            shutil.copy(corpora / f"{name}.{suffix}", copy)
    install, *shown = commands("docs/lora.md")
    assert install == INSTALL
    less = " --seq-length 32 --global-batch-size 4 --train-iters 2 --eval-interval 1 --split 8,2,0"
    lines = [line + less * line.startswith("python3") for line in shown]
    own = find_peft().parents[1]  # wherever the tests have it
    done = shell(folder, "\n".join(["set -e", f'PYTHONPATH="$PYTHONPATH:{own}"', *lines]))
    assert done.returncode == 0, done.stdout[-6000:]
    assert "its adapters, of rank 256, are merged into the weights" in done.stdout
    assert logits_of(folder / "models" / "merged", [[1, 2]]).shape == (1, 2, 300)
    (first, *_, last) = read_evaluations(folder / "runs" / "lora")
    assert {score.domain for score in last.scores} == {"finance", "general"}
    assert not any(score.sum for score in first.scores) and any(score.sum for score in last.scores)
