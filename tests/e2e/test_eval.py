"""``domain-pretrain eval`` on checkpoints of a run, by the commands that it prints."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.launch import train
from support.probes import ITEMS, config, write_data

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


def test_every_checkpoint_is_the_model_that_was_trained(
    run: Run, forked_evaluations: None, tmp_path: Path
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


def test_without_the_data_of_its_run(run: Run, forked_evaluations: None, tmp_path: Path) -> None:
    """Megatron's made-up tokens are enough; with a tokenizer that knows text, here each byte."""
    tokenizer = write_byte_tokenizer(tmp_path / "tokenizer")
    words = [
        "eval",
        run.folder,
        "--config",
        run.config,
        "--out",
        tmp_path / "out",
        "--",
        *tokenizer,
    ]
    assert main([*map(str, words), "--mock-data", "--split", "0,1,0"]) == 0
    (found,) = read_evaluations(tmp_path / "out" / "01-iter_0000004")
    assert found.iteration == 4
    asked = {score.domain: score.mean for score in found.scores}
    last = {score.domain: score.mean for score in run.found[-1].scores}
    assert asked == pytest.approx(last, rel=1e-4)


def write_byte_tokenizer(folder: Path) -> list[str]:
    """One of Hugging Face whose tokens are those of ``--tokenizer bytes``; the flags for it."""
    tokenizers = pytest.importorskip("tokenizers")
    pytest.importorskip("transformers")
    # GPT-2's letters for bytes: printable ones stand for themselves, the others for 256 and on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    letters |= {chr(256 + at): byte for at, byte in enumerate(others)}
    vocabulary = {**letters, "<|end|>": 256}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")
    return ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(folder)]
