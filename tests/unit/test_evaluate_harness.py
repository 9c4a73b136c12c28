"""lm-eval's tasks: the numbers of its own ``hf`` model, offline, and the same every time."""

from __future__ import annotations

import json
import math
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from support.bpe import train_bpe
from support.harness import (
    CHOICES,
    TEXTS,
    assert_same,
    hf_answers,
    hf_model,
    write_task,
    write_tasks,
)
from support.pages import blocks
from support.pages import text as text_of

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate import LogitsModel, Score, run_probes
from domain_pretrain.evaluate.continuation import ContinuationOptions
from domain_pretrain.evaluate.generate import generate
from domain_pretrain.evaluate.harness import HarnessOptions, harness
from domain_pretrain.evaluate.harness.apart import VARIABLES

CONTEXT = 48
ALL = ["choices", "greedy", "texts", "written"]
DOMAINS = {"general": ["choices", "texts"], "finance": ["greedy", "written"]}


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Nothing but this machine, whatever the variables say, and a cache of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a small model waits for its threads where others want them too

    def refuse(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"asks the network: {address}")

    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", lambda *given, **_: refuse(None, given))  # type: ignore[arg-type]
        import datasets.config

        cache = tmp_path_factory.mktemp("cache")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Byte-level BPE that knows some words, of which some are Chinese."""
    from transformers import PreTrainedTokenizerFast

    known = [*TEXTS, *(text for question, choices, _ in CHOICES for text in (question, *choices))]
    bpe = train_bpe(known, 400, ["<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>")


@pytest.fixture(scope="module")
def network(tokenizer: Any) -> Any:
    """In float64: which token is the likeliest does not depend on how batches are computed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4 * CONTEXT,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    network = LlamaForCausalLM(config).double().eval()
    for token in range(len(tokenizer)):  # halves of characters are never the likeliest
        if "\ufffd" in tokenizer.decode([token]):
            network.lm_head.weight.data[token] = 0
    return network


@pytest.fixture(scope="module")
def model(network: Any, tokenizer: Any) -> LogitsModel:
    return LogitsModel(
        lambda ids: network(ids).logits,
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        context=CONTEXT,
        end=tokenizer.eos_token_id,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: LogitsModel) -> Path:
    """Tasks; some of what is asked about is the likeliest, and some is not."""
    folder = tmp_path_factory.mktemp("tasks")
    continued = []
    for text in ["The bond", "中国的", "Rain in", "for i in " * 12, "今天天气很好，", "a"]:
        tokens = model.encode(text)[-CONTEXT + 8 :]
        (likeliest,) = generate(model, [tokens], 1)
        target = model.decode(likeliest)
        if model.encode(text + target) == model.encode(text) + likeliest:
            continued.append((text, target))
        continued.append((text, " 不是"))
    write_tasks(folder, continued)
    return folder


def section(folder: Path, **more: Any) -> dict[str, Any]:
    return {"harness": {"tasks": DOMAINS, "include_path": str(folder), **more}}


@pytest.fixture(scope="module")
def scores(model: LogitsModel, folder: Path) -> list[Score]:
    return run_probes(section(folder), model)


def by_name(scores: list[Score]) -> dict[str, Score]:
    return {score.name: score for score in scores}


def test_the_numbers_of_lm_evals_own_model(
    scores: list[Score], model: LogitsModel, folder: Path, network: Any, tokenizer: Any
) -> None:
    """Chinese, contexts longer than the model's, none at all, and texts of several windows."""
    found = hf_answers(folder, ALL, network, tokenizer, context=CONTEXT, end=model.end)
    assert_same(scores, found, within=1e-9)  # both in float64
    # Not all of one kind, or the comparison says nothing.
    greedy = by_name(scores)["harness_greedy_acc"]
    assert 0 < greedy.mean < 1
    assert {score.domain for score in scores} == {"general", "finance"}


def test_what_it_writes_is_what_lm_evals_own_model_writes(
    model: LogitsModel, network: Any, tokenizer: Any
) -> None:
    from lm_eval.api.instance import Instance

    from domain_pretrain.evaluate.harness.model import HarnessModel

    prompts = ["The bond market", "中国的首都", "for i in range(10): print(i)  # 循环\n" * 8]
    kinds: list[dict[str, Any]] = [
        {"until": ["\n"], "max_gen_toks": 12},
        {"until": [], "max_gen_toks": 5, "do_sample": False},
        {"until": "e", "max_gen_toks": 20, "temperature": 0.0},
    ]
    asked = [
        Instance("generate_until", {}, (prompt, kind), 0, ("t", 0, 1))
        for kind in kinds
        for prompt in prompts
    ]
    theirs = hf_model(network, tokenizer, context=CONTEXT).generate_until(asked)
    ours = HarnessModel(model).generate_until(asked)
    assert ours == theirs
    assert len(set(ours)) > 4


def test_a_part_for_each_document(scores: list[Score]) -> None:
    found = by_name(scores)
    acc, bits = found["harness_choices_acc"], found["harness_texts_bits_per_byte"]
    assert [part.name for part in acc.parts] == [f"choices:{n}" for n in range(len(CHOICES))]
    assert acc.count == len(CHOICES) and acc.higher_is_better and acc.error is not None
    assert [part.count for part in bits.parts] == [len(text.encode()) for text in TEXTS]
    assert not bits.higher_is_better
    # No sum over documents: the number alone.
    whole = found["harness_texts_byte_perplexity"]
    assert (whole.count, whole.parts, whole.higher_is_better) == (1, (), False)
    assert whole.mean == pytest.approx(2**bits.mean)


def test_the_same_every_time_and_nothing_is_drawn(
    scores: list[Score], model: LogitsModel, folder: Path
) -> None:
    """Examples in the prompts too; and the last local rank drives, as in any other."""
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "3")
        assert run_probes(section(folder), model) == scores
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after
    assert not set(VARIABLES) & os.environ.keys()


def test_examples_in_the_prompt_are_the_same_at_every_evaluation(
    model: LogitsModel, folder: Path
) -> None:
    options = HarnessOptions(
        tasks={"general": ["choices"]},
        include_path=[str(folder)],
        num_fewshot=1,
        limit=3,
    )
    prompts = []

    def encode(text: str) -> list[int]:
        prompts.append(text)
        return model.encode(text)

    spied = LogitsModel(
        lambda ids: torch.zeros(1, ids.shape[1], 512), encode, model.decode, context=400, end=0
    )
    first = harness(spied, options)
    half = len(prompts)
    assert harness(spied, options) == first
    assert prompts[:half] == prompts[half:]
    assert max(len(text) for text in prompts) > max(len(question) for question, _, _ in CHOICES[:3])
    assert all(len(score.parts) == 3 for score in first)


def test_a_group_is_over_all_documents_of_its_tasks(
    scores: list[Score], model: LogitsModel, tmp_path: Path
) -> None:
    for name, rows in {"one": TEXTS[:1], "two": TEXTS[1:]}.items():
        write_task(
            tmp_path,
            name,
            "loglikelihood_rolling",
            [{"text": text} for text in rows],
            doc_to_text="",
            doc_to_target="text",
        )
    (tmp_path / "both.yaml").write_text("group: both\ntask: [one, two]\n", encoding="utf-8")
    asked = {"tasks": {"general": "both"}, "include_path": str(tmp_path)}
    (bits,) = run_probes({"harness": asked}, model)
    whole = by_name(scores)["harness_texts_bits_per_byte"]
    assert bits.name == "harness_both_bits_per_byte"
    assert [part.name for part in bits.parts] == ["one:0", "two:0", "two:1"]
    assert bits.mean == pytest.approx(whole.mean)


def test_only_where_it_is_asked_is_the_model_asked_for_the_likeliest(
    model: LogitsModel, folder: Path, tmp_path: Path
) -> None:
    """One forward step for each answer, where a task has lm-eval's own accuracies alone."""

    class Silent(LogitsModel):
        def predict(self, rows: Any) -> Any:
            raise AssertionError("asked for predictions")

    silent = Silent(model._logits, model.encode, model.decode, context=model.context, end=model.end)
    for metrics, name in ((["acc", "acc_norm"], "plain"), (["acc", "exact_match"], "exact")):
        write_task(
            tmp_path,
            name,
            "multiple_choice",
            [{"question": q, "choices": c, "gold": gold} for q, c, gold in CHOICES],
            doc_to_text="question",
            doc_to_choice="choices",
            doc_to_target="gold",
            metric_list=[{"metric": metric} for metric in metrics],
        )
    given = {"include_path": str(tmp_path)}
    assert len(run_probes({"harness": {"tasks": {"a": "plain"}, **given}}, silent)) == 2
    with pytest.raises(AssertionError, match="asked for predictions"):
        run_probes({"harness": {"tasks": {"a": "exact"}, **given}}, silent)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"do_sample": True, "temperature": 0.8}, "task 't' draws its answers"),
        ({"temperature": 0.2}, "task 't' draws its answers"),
        ({"num_beams": 4}, "generation_kwargs has 'num_beams', which is not known here"),
        ({"max_gen_toks": CONTEXT}, "48 new tokens leave no room for a prompt"),
        ({}, "256 new tokens leave no room for a prompt"),
    ],
)
def test_what_cannot_be_written_is_refused(
    model: LogitsModel, kwargs: dict[str, Any], message: str
) -> None:
    from lm_eval.api.instance import Instance

    from domain_pretrain.evaluate.harness.model import HarnessModel

    with pytest.raises(ConfigError, match=message):
        HarnessModel(model).generate_until(
            [Instance("generate_until", {}, ("a", kwargs), 0, ("t", 0, 1))]
        )


def test_an_answer_that_does_not_fit_is_refused(model: LogitsModel) -> None:
    from lm_eval.api.instance import Instance

    from domain_pretrain.evaluate.harness.model import HarnessModel

    long = Instance("loglikelihood", {}, ("a", " x" * 200), 0, ("t", 0, 1))
    with pytest.raises(ConfigError, match="the model takes 1 to 48 behind at least 1"):
        HarnessModel(model).loglikelihood([long])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": {"a": "choices"}}, "no task is known: give include_path"),
        ({"tasks": {}, "include_path": "x"}, r"harness\.tasks: Dictionary should have at least 1"),
        ({"tasks": {"a": "x", "b": "x"}, "include_path": "x"}, "task 'x' is named twice"),
        ({"tasks": {"a": "x"}, "include_path": "x", "apply_chat_template": True}, "unknown key"),
        ({"tasks": {"a": "x"}, "include_path": "no/where"}, "there is no folder no/where"),
    ],
)
def test_wrong_options_are_named(model: LogitsModel, given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_probes({"harness": given}, model)


def test_tasks_that_cannot_be_loaded_are_named(
    model: LogitsModel, folder: Path, tmp_path: Path
) -> None:
    def ask(name: str, where: Path = tmp_path) -> None:
        run_probes({"harness": {"tasks": {"a": name}, "include_path": str(where)}}, model)

    with pytest.raises(ConfigError, match="no task 'choice'; did you mean 'choices'"):
        ask("choice", folder)
    write_task(tmp_path, "far", "generate_until", [{"text": "a"}], doc_to_text="text")
    far = tmp_path / "far.yaml"
    text = far.read_text(encoding="utf-8")
    far.write_text(text.replace("dataset_path: json", "dataset_path: some/one"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"task 'far': .*; only files on this machine are read"):
        ask("far")
    far.write_text(text.replace("far.jsonl", "gone.jsonl"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"task 'far': .*gone\.jsonl"):
        ask("far")


def test_a_package_that_is_missing_is_named(
    model: LogitsModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domain_pretrain.evaluate.harness.probe.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs lm-eval: pip install 'domain-pretrain\[evalua"):
        run_probes(section(folder), model)


def test_importing_the_probes_imports_none_of_it() -> None:
    code = (
        "import sys, domain_pretrain.evaluate\n"
        "print(*{'lm_eval', 'datasets', 'transformers', 'sacrebleu', 'rouge_score', 'nltk'}"
        " & sys.modules.keys())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_bits_per_byte_by_hand(scores: list[Score], model: LogitsModel) -> None:
    """The first text fits one window, behind the token that ends a document."""
    from domain_pretrain.evaluate import text_row

    (value,) = model.log_likelihoods([text_row(model, TEXTS[0])])
    part = by_name(scores)["harness_texts_bits_per_byte"].parts[0]
    assert part.sum == pytest.approx(-value / math.log(2))


def test_the_page_runs_as_it_stands(
    model: LogitsModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config, task = blocks("docs/harness.md", "yaml")
    (rows,) = blocks("docs/harness.md", "json")
    Path("tasks").mkdir()
    Path(task.splitlines()[0].removeprefix("# ")).write_text(task, encoding="utf-8")
    Path("tasks/bond_questions.jsonl").write_text(rows, encoding="utf-8")
    Path("heldout").mkdir()
    line = json.dumps({"text": TEXTS[0] + TEXTS[1]}) + "\n"
    for name in ("finance", "chinese"):
        Path(f"heldout/{name}.jsonl").write_text(line, encoding="utf-8")
    probes = yaml.safe_load(config)["evaluate"]["probes"]
    probes["continuation"].update(prompt_tokens=8, new_tokens=8)  # of a small model
    assert {(score.domain, score.name) for score in run_probes(probes, model)} == {
        ("finance", "harness_bond_questions_acc"),
        ("finance", "harness_bond_questions_acc_norm"),
        *((domain, name) for domain in ("finance", "chinese") for name in ("bleu", "rouge_l")),
    }


def test_the_page_lists_the_options() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (\S+)", text_of("docs/harness.md"), re.MULTILINE)
    told = {name: default for names, default in rows for name in re.findall(r"\w+", names)}
    fields = {**HarnessOptions.model_fields, **ContinuationOptions.model_fields}
    assert told.keys() - {"bleu", "rouge_l"} == fields.keys()
    for name in ("documents", "prompt_tokens", "new_tokens"):
        assert told[name] == str(fields[name].default)
