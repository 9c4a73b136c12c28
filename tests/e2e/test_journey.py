"""From raw texts and a Hugging Face model to an evaluated one, by docs/journey.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.clone import make_clone, shell
from support.metrics import windows
from support.pages import commands

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
    from safetensors.numpy import load_file

    before = load_file(clone / "journey" / "model" / "model.safetensors")
    after = load_file(exported / "model.safetensors")
    assert {name: one.shape for name, one in after.items()} == {
        name: one.shape for name, one in before.items()
    }
    assert all((after[name] != one).any() for name, one in before.items())

    again = shell(clone, "scripts/journey.sh")
    assert (again.returncode, "remove it to begin again" in again.stdout) == (2, True)
