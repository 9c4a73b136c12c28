"""lm-eval's tasks, asked while Megatron trains: as its own model finds the exported weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from support.harness import TEXTS, assert_same, hf_answers, write_tasks
from support.huggingface import model_flags, write_model
from support.launch import train

from domain_pretrain.commands.main import main
from domain_pretrain.huggingface.importing import import_model
from domain_pretrain.records.reader import read_evaluations

pytestmark = pytest.mark.megatron
pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

TASKS = {"general": ["choices", "texts"], "finance": ["greedy", "written"]}
CONTEXT = 64
END = 256


def write_bytes(folder: Path) -> None:
    """In place of the model's tokenizer, one that knows text: a token for each byte of it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))


def test_the_numbers_of_lm_evals_own_model_on_the_export(tmp_path: Path, blend: list[str]) -> None:
    """Two steps under TP2, where the last rank asks; then the checkpoint as transformers has it."""
    base, tasks, run = (tmp_path / name for name in ("base", "tasks", "run"))
    write_model(tmp_path / "model", "qwen2", initializer_range=0.3)
    write_bytes(tmp_path / "model")
    import_model(tmp_path / "model", base)
    tasks.mkdir()
    write_tasks(tasks, [("The bond", " market"), ("中国的", "首都"), ("a", "b")], new_tokens=4)
    (tmp_path / "held.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8"
    )
    probes = {
        "harness": {"tasks": TASKS, "include_path": str(tasks)},
        "continuation": {
            "texts": {"general": str(tmp_path / "held.jsonl")},
            "prompt_tokens": 10,
            "new_tokens": 4,
        },
    }
    config = tmp_path / "domains.yaml"
    config.write_text(yaml.safe_dump({"evaluate": {"probes": probes}}), encoding="utf-8")
    train(
        run,
        *blend,
        *model_flags(base, 2),
        *("--seq-length", str(CONTEXT), "--eval-interval", "2", "--eval-iters", "1"),
        *("--tensor-model-parallel-size", "2", "--save-interval", "2"),
        *("--save", run / "checkpoints", "--ckpt-format", "torch_dist"),
        *("--pretrained-checkpoint", base, "--domain-config", config),
        nproc=2,
        iterations=2,
    )
    last = [one for one in read_evaluations(run) if one.iteration == 2][-1]
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    folder = str(tmp_path / "out")
    names = [name for own in TASKS.values() for name in own]
    found = hf_answers(tasks, names, folder, folder, context=CONTEXT, end=END)
    asked = [score for score in last.scores if score.name.startswith("harness_")]
    # Sums of up to a hundred log-probabilities in float32, of logits computed in another order.
    assert_same(asked, found, within=1e-4)
    before = next(one for one in read_evaluations(run) if one.iteration == 0)
    assert {s.name: s.mean for s in before.scores} != {s.name: s.mean for s in last.scores}
    assert {score.name for score in last.scores} - {score.name for score in asked} == {
        "bleu",
        "rouge_l",
    }
