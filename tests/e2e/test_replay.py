"""``domain-pretrain replay`` tells garbage from a learning rate that has broken the model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.launch import train

from domain_pretrain.commands.main import main
from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.report.replay import WORDS

pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("forked_evaluations")]

GOOD, END = 24, 26  # iterations: of the pattern alone, and of the whole run
WHAT = ["--iterations", f"{GOOD + 1}:{END + 1}"]


def begin(folder: Path, last: str) -> list[str | Path]:
    """A stream of a pattern, its last iterations from another domain; the run until there."""
    draw = random.Random(0)
    texts = {
        "pattern": ["abcd" * 20] * 100,
        "garbage": ["".join(chr(draw.randrange(33, 127)) for _ in range(80)) for _ in range(100)],
    }
    words = []
    for name, own in texts.items():
        source = folder / f"{name}.jsonl"
        source.write_text("\n".join(json.dumps({"text": text}) for text in own), "utf-8")
        prepare([source], folder / name, "bytes", workers=1)
        words += ["1", str(folder / name)]
    stages = [{"samples": 8 * GOOD, "weights": {"pattern": 1}}, {"weights": {last: 1}}]
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({"mix": {"schedule": stages}}), "utf-8")
    saves = folder / "checkpoints"
    flags: list[str | Path] = [
        "--domain-config",
        config,
        "--split",
        "80,20,0",
        "--data-path",
        *words,
        "--save",
        saves,
    ]
    return [*flags, "--load", saves, "--save-interval", "2", "--train-iters", str(END)]


def test_garbage_is_data(tmp_path: Path, capsys: Any) -> None:
    train(tmp_path, *begin(tmp_path, "garbage"), iterations=END)
    assert main(["replay", str(tmp_path), *WHAT]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("data")


def test_a_broken_model_is_state(tmp_path: Path, capsys: Any) -> None:
    """The same pattern, at a learning rate that unlearns it."""
    flags = begin(tmp_path, "pattern")
    train(tmp_path, *flags, "--exit-interval", str(GOOD), iterations=END)
    rate = ["--lr", "1", "--min-lr", "1", "--override-opt_param-scheduler", "--no-load-optim"]
    train(tmp_path, *flags, *rate, iterations=END)
    assert main(["replay", str(tmp_path), *WHAT]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == WORDS[False, True]
