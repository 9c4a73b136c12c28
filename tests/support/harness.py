"""Small tasks for lm-eval, and what its own model of Hugging Face's answers to them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from domain_pretrain.records.score import Score

CHOICES = [
    ("中国的首都是", ["北京", "上海的一条小河", "南方"], 0),
    ("The bond market fell on", [" Monday", " the moon and the stars", " rain"], 0),
    ("债券收益率上升，价格就会", ["下降。", "变成 gold"], 0),
    ("", ["Rain in the north.", "天气"], 1),
    (
        "very long: " + "a long context that says nothing at all. 很长的上下文。" * 6,
        [" yes", " 不"],
        1,
    ),
    ("one two three ", ["four", "vier", "四"], 2),
]
TEXTS = [
    "The bond market fell on Monday.",
    "中国的首都是北京。今天天气很好。",
    "for i in range(10): print(i)  # 循环\n" * 8,
]
METRICS = {
    "multiple_choice": ("acc", "acc_norm", "exact_match"),
    "loglikelihood": ("acc",),
    "loglikelihood_rolling": ("bits_per_byte", "byte_perplexity"),
    "generate_until": ("exact_match",),
}


def write_task(
    folder: Path, name: str, kind: str, rows: Sequence[Mapping[str, Any]], **more: Any
) -> None:
    """A task with its data, both in the folder."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": kind,
        "metric_list": [{"metric": metric} for metric in METRICS[kind]],
        "metadata": {"version": 1.0},
        **more,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def write_tasks(folder: Path, continued: Sequence[tuple[str, str]], new_tokens: int = 8) -> None:
    """``choices``, ``greedy``, ``texts`` and ``written``.

    Args:
        folder: where.
        continued: of ``greedy`` and ``written``: a text, and what is asked whether it follows.
        new_tokens: of ``written``.
    """
    write_task(
        folder,
        "choices",
        "multiple_choice",
        [{"question": q, "choices": c, "gold": gold} for q, c, gold in CHOICES],
        doc_to_text="question",
        doc_to_choice="choices",
        doc_to_target="gold",
        target_delimiter="",
    )
    pairs = [{"text": text, "target": target} for text, target in continued]
    asked = {"doc_to_text": "text", "doc_to_target": "target", "target_delimiter": ""}
    write_task(folder, "greedy", "loglikelihood", pairs, **asked)
    write_task(
        folder,
        "texts",
        "loglikelihood_rolling",
        [{"text": text} for text in TEXTS],
        doc_to_text="",
        doc_to_target="text",
    )
    write_task(
        folder,
        "written",
        "generate_until",
        pairs,
        generation_kwargs={"until": ["\n", "。"], "max_gen_toks": new_tokens},
        **asked,
    )


def hf_model(model: Any, tokenizer: Any, *, context: int, end: int | None = None) -> Any:
    """lm-eval's own ``hf``, on the CPU.

    Args:
        model: of transformers, or the folder of one.
        tokenizer: of transformers, or the folder of one.
        context: tokens that the model is given at most.
        end: the token that ends a document; None: the tokenizer's.
    """
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        device="cpu",
        batch_size=1,
        max_length=context,
        add_bos_token=False,
        prefix_token_id=end,
    )


def hf_answers(
    folder: Path, tasks: Sequence[str], model: Any, tokenizer: Any, *, context: int, end: int
) -> dict[str, Any]:
    """What ``lm_eval --model hf`` finds.

    Args:
        folder: of the tasks.
        tasks: their names.
        model, tokenizer, context, end: as :func:`hf_model` takes them.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=hf_model(model, tokenizer, context=context, end=end),
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    assert found is not None
    return found


def assert_same(scores: Sequence[Score], found: Mapping[str, Any], within: float = 1e-4) -> None:
    """Every number of lm-eval's is among the scores, and no other.

    Perplexities are compared in parts of themselves.

    Raises:
        AssertionError: names those that are not.
    """
    ours = {score.name: score.mean for score in scores}
    theirs = {
        f"harness_{task}_{key.removesuffix(',none')}": value
        for task, results in found["results"].items()
        for key, value in results.items()
        if key.endswith(",none") and "_stderr" not in key
    }
    assert ours.keys() == theirs.keys()
    apart = {
        name: (ours[name], theirs[name])
        for name in ours
        if abs(ours[name] - theirs[name])
        > within * (theirs[name] if name.endswith("perplexity") else 1)
    }
    assert not apart
