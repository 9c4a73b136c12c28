"""``domain-pretrain eval`` on checkpoints of a run, by the commands that it prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.launch import start, train
from support.probes import ITEMS, config, write_data

from domain_pretrain.commands import eval as command
from domain_pretrain.commands.main import main
from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.records.reader import read_evaluations

pytestmark = pytest.mark.megatron

# Of these, --use-checkpoint-args takes neither the norm's epsilon nor the norms of queries and
# keys, and a checkpoint loads without a word into a model that lacks them.
MODEL = shlex.split(
    "--num-layers 2 --seq-length 64 --max-position-embeddings 64 --normalization RMSNorm "
    "--norm-epsilon 0.1 --qk-layernorm --swiglu --position-embedding-type rope"
)


@dataclass(frozen=True)
class Run:
    """A run of four steps that saved at two and four, and was asked at its end."""

    folder: Path
    config: Path
    found: list[Evaluated]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    data = write_data(folder)
    asked = config(folder / "probes.yaml", {"completion": {"items": ITEMS}})
    saves = ["--save", folder / "checkpoints", "--save-interval", "2"]
    train(folder, *MODEL, *data, *asked, *saves, "--eval-iters", "1")
    return Run(folder, folder / "probes.yaml", read_evaluations(folder))


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command is forked, instead of started anew."""

    def run_logged(words: list[str], environment: Any, log: Path, what: str) -> Iterator[str]:
        code, output = start(1, *words[words.index("domain_pretrain") + 1 :])
        assert code == 0, output[-6000:]
        yield from output.splitlines()

    monkeypatch.setattr(command, "run_logged", run_logged)


def test_every_checkpoint_is_the_model_that_was_trained(
    run: Run, forked: None, tmp_path: Path
) -> None:
    """The last one answers as it did at the end of its training."""
    words = ["eval", run.folder, "--every-checkpoint", "--config", run.config]
    table = tmp_path / "table.json"
    assert main([*map(str, words), "--json", str(table), "--out", str(tmp_path / "out")]) == 0
    told = json.loads(table.read_text())
    assert [one["iteration"] for one in told["models"]] == [2, 4]
    assert [one["consumed_samples"] for one in told["models"]] == [16, 32]
    last = {score.domain: score.mean for score in run.found[-1].scores}
    assert run.found[-1].iteration == 4 and len(last) == 3
    assert {one["domain"]: one["means"][1] for one in told["lines"]} == pytest.approx(
        last, rel=1e-4
    )
    before = [one["means"][0] for one in told["lines"]]
    assert before != pytest.approx([*last.values()], rel=1e-4)  # another model's are others
