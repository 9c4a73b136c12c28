"""From raw texts and a Hugging Face model to an evaluated one, by docs/journey.md."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from support.clone import make_clone, shell
from support.launch import start
from support.metrics import windows
from support.pages import commands

from domain_pretrain.demo.journey import write_model
from domain_pretrain.launch.base_model import main as import_first
from domain_pretrain.launch.host import ask
from domain_pretrain.launch.preflight import inspect

pytestmark = pytest.mark.megatron


def test_the_journey(tmp_path: Path) -> None:
    """In fewer steps than `make journey` takes."""
    for package in ("tokenizers", "safetensors", "transformers"):
        pytest.importorskip(package)
    clone = make_clone(tmp_path / "clone")
    few = "--train-iters 8 --save-interval 8"
    cache = tmp_path / "cache"  # where eval imports what is not imported
    done = shell(clone, f"scripts/journey.sh {few}", XDG_CACHE_HOME=str(cache))
    assert done.returncode == 0, done.stdout[-8000:]
    printed = re.findall(r"^\$ (.*)$", done.stdout, re.M)
    shown = [line for line in commands("docs/journey.md") if " journey/" in f" {line}"]
    assert len(shown) > 7
    assert set(shown) <= {line.removesuffix(f" {few}") for line in printed}

    run, exported = clone / "journey" / "run", clone / "journey" / "exported"
    assert windows(run)[-1]["domains"].keys() == {"general", "maths"}
    assert (clone / "journey" / "report.html").stat().st_size
    # The table before and after: two models, two domains; the trained one is better.
    lines = re.findall(r"^.*(?:general|maths).*better.*$", done.stdout, re.M)
    assert len(lines) >= 2, done.stdout[-8000:]
    config = json.loads((exported / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert {path.name for path in exported.iterdir()} >= {
        *("model.safetensors", "tokenizer.json", "README.md"),
    }
    card = (exported / "README.md").read_text("utf-8")
    assert "## Evaluation at step 8" in card and "| of the base |" in card
    assert all(f"| loss | {domain} | " in card for domain in ("general", "maths"))
    from safetensors.numpy import load_file

    before = load_file(clone / "journey" / "model" / "model.safetensors")
    after = load_file(exported / "model.safetensors")
    assert {name: one.shape for name, one in after.items()} == {
        name: one.shape for name, one in before.items()
    }
    assert all((after[name] != one).any() for name, one in before.items())

    again = shell(clone, "scripts/journey.sh")
    assert (again.returncode, "remove it to begin again" in again.stdout) == (2, True)


def test_a_run_begins_with_a_hugging_face_model(blend: list[str], tmp_path: Path) -> None:
    """The preflight holds Megatron's own arguments against it; then it is imported, and trained."""
    pytest.importorskip("tokenizers")
    model, base = tmp_path / "model", tmp_path / "run" / "base"
    write_model(model)
    save = str(tmp_path / "run" / "checkpoints")
    words = shlex.split(
        "--num-layers 2 --hidden-size 64 --ffn-hidden-size 192 --num-attention-heads 4 "
        "--kv-channels 16 --group-query-attention --num-query-groups 2 --seq-length 32 "
        "--max-position-embeddings 128 --position-embedding-type rope --no-rope-fusion --swiglu "
        "--normalization RMSNorm --norm-epsilon 1e-6 --disable-bias-linear "
        "--untie-embeddings-and-output-weights --make-vocab-size-divisible-by 288 "
        "--attention-dropout 0 --hidden-dropout 0 --micro-batch-size 2 --global-batch-size 4 "
        "--lr 1e-3 --train-iters 2 --eval-interval 10 --eval-iters 1 --log-interval 1 "
        "--channel-loss"
    )
    words += ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(model), *blend]
    words += ["--save", save, "--load", save, "--save-interval", "2", "--ckpt-format", "torch_dist"]
    words += ["--domain-log-dir", str(tmp_path / "run"), "--pretrained-checkpoint", str(model)]
    (problem,) = inspect(words, 1, 1, ask).problems
    assert f"does not fit the model that it starts from, {model}" in problem
    assert "--qk-layernorm: the base has True, the run False" in problem
    words.append("--qk-layernorm")
    report = inspect(words, 1, 1, ask)
    assert (report.problems, report.accepted) == ([], True)
    assert not base.exists()

    assert import_first(["--node-rank", "0", "--", *words]) == 0
    code, output = start(1, "-m", "domain_pretrain.launch", *words, plugin=False)
    assert code == 0, output[-6000:]
    assert f"loaded checkpoint from {base}" in output
    assert [line["iteration"] for line in windows(tmp_path / "run", "train")] == [1, 2]
