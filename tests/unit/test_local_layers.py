"""Without Transformer Engine: the flags that the plugin gives let Megatron build its own layers."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from domain_pretrain.backends import cpu, local_layers
from domain_pretrain.demo.layout import Layout
from domain_pretrain.demo.recipe import MODEL

ROOT = Path(__file__).parents[2]

# Megatron's own parser, checks and config; the CPU backend only lets them be imported.
BUILD = """
import sys
from argparse import ArgumentParser
from domain_pretrain.backends import cpu
cpu.install()
from megatron.training import arguments
args = arguments.add_megatron_arguments(ArgumentParser()).parse_args(sys.argv[1:])
args.rank, args.world_size = 0, 1
arguments.validate_args(args)
arguments.core_transformer_config_from_args(args)
"""


def test_megatron_builds_a_model_from_the_demos_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("megatron") is None or find_spec("megatron.training") is None:
        pytest.skip("no Megatron with a training loop")
    if local_layers.has_transformer_engine():
        pytest.skip("Transformer Engine is installed")
    monkeypatch.setattr(Layout, "_check_gpus", lambda self: None)  # this machine may have none
    flags = Layout("cuda", 1).flags()
    backend = flags.index("--domain-backend")
    del flags[backend : backend + 2]  # the plugin's own
    words = [*MODEL, *flags, "--train-iters", "1", "--lr", "1e-3"]
    words += ["--tokenizer-type", "NullTokenizer", "--vocab-size", "256"]
    command = [sys.executable, "-c", BUILD, *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]


def test_a_gpu_with_transformer_engine_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_layers, "find_spec", lambda name: object())
    assert local_layers.gpu_flags() == []
    monkeypatch.setattr(local_layers, "find_spec", lambda name: None)
    assert local_layers.gpu_flags() == local_layers.WORDS
    assert set(local_layers.WORDS[2:]) <= {word for flag in cpu.FLAGS for word in flag}


def test_the_page_names_the_same_flags() -> None:
    page = (ROOT / "docs" / "getting-started.md").read_text("utf-8")
    (quoted,) = [part for part in page.split("`") if part.startswith("--transformer-impl")]
    assert shlex.split(quoted) == local_layers.WORDS
