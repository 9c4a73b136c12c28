"""Continuations of held-out texts: BLEU and ROUGE-L, of Chinese too."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate import LogitsModel, run_probes
from domain_pretrain.evaluate.likeness import bleu, is_chinese, rouge_l

END = 0
ENGLISH = [
    "The bond market fell on Monday, and yields rose to where they had been in spring.",
    "Rain in the north, sun later in the day; the wind comes from the sea.",
]
CHINESE = [
    "央行今天宣布下调存款准备金率，债券市场随之上涨，收益率下降。",
    "今天的天气非常好，我们去公园散步，晚上再一起吃饭。",
]
TEXTS = {"finance": ENGLISH, "chinese": CHINESE}


def knowing(texts: Sequence[str], context: int = 256) -> LogitsModel:
    """A model over bytes that knows texts by heart, and ends all others."""
    following = {}
    for text in texts:
        ids = [END, *text.encode(), END]
        following.update({tuple(ids[:n]): ids[n] for n in range(1, len(ids))})

    def logits(ids: torch.Tensor) -> torch.Tensor:
        given = ids[0].tolist()
        next_ids = [following.get(tuple(given[: n + 1]), END) for n in range(len(given))]
        return torch.nn.functional.one_hot(torch.tensor([next_ids]), 256).float()

    return LogitsModel(
        logits,
        lambda text: list(text.encode()),
        lambda ids: bytes(ids).decode(errors="replace"),
        context=context,
        end=END,
    )


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options with the texts as files; the network is not there."""

    def refuse(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"asks the network: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    files = {}
    for domain, texts in TEXTS.items():
        path = tmp_path / f"{domain}.jsonl"
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        path.write_text("".join(lines), encoding="utf-8")
        files[domain] = str(path)
    return {"texts": files, "prompt_tokens": 20, "new_tokens": 40}


def run(given: dict[str, Any], model: LogitsModel) -> dict[tuple[str, str], Any]:
    found = run_probes({"continuation": given}, model)
    return {(score.domain, score.name): score for score in found}


def test_a_model_that_knows_the_texts(given: dict[str, Any]) -> None:
    """20 bytes end within a Chinese character: the prompt has six of them."""
    found = run(given, knowing(ENGLISH + CHINESE))
    assert {key: score.mean for key, score in found.items()} == {
        ("finance", "bleu"): pytest.approx(100),
        ("finance", "rouge_l"): 1,
        ("chinese", "bleu"): pytest.approx(100),
        ("chinese", "rouge_l"): 1,
    }
    rouge, whole = found["chinese", "rouge_l"], found["chinese", "bleu"]
    assert [Path(part.name).name for part in rouge.parts] == ["chinese.jsonl:1", "chinese.jsonl:2"]
    assert (whole.count, whole.parts, whole.error) == (1, (), None)


def test_a_model_that_knows_some_of_them(given: dict[str, Any]) -> None:
    found = run(given, knowing([ENGLISH[0], CHINESE[1]]))
    assert [part.sum for part in found["finance", "rouge_l"].parts] == [1, 0]
    assert [part.sum for part in found["chinese", "rouge_l"].parts] == [0, 1]
    assert 0 < found["finance", "bleu"].mean < 100
    assert 0 < found["chinese", "bleu"].mean < 100
    assert all(score.higher_is_better for score in found.values())


def test_documents_no_longer_than_the_prompt_are_left_out(
    given: dict[str, Any], tmp_path: Path
) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": "too short"}\n', encoding="utf-8")
    both = {**given, "texts": {"finance": [given["texts"]["finance"], str(short)]}}
    assert run(both, knowing(ENGLISH))["finance", "rouge_l"].count == 2
    with pytest.raises(ConfigError, match="'finance': none is longer than prompt_tokens, 20 tok"):
        run({**given, "texts": {"finance": str(short)}}, knowing([]))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"texts": {}}, "no texts: give texts by domain"),
        ({"texts": {"a": "nowhere.jsonl"}}, "continuation: texts of 'a': "),
        ({"new_tokens": 240}, "20 and new_tokens 240 do not fit the model's context of 256 tokens"),
        ({"new_token": 1}, "unknown key; did you mean 'new_tokens'"),
    ],
)
def test_wrong_options_are_named(given: dict[str, Any], more: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run({**given, **more}, knowing([]))


def test_a_package_that_is_missing_is_named(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "domain_pretrain.evaluate.continuation.find_spec"
    monkeypatch.setattr(place, lambda name: None)
    with pytest.raises(ConfigError, match=r"sacrebleu and rouge-score: pip install 'domain-pret"):
        run(given, knowing([]))


# --- likeness ------------------------------------------------------------------------------------

EXPECTED = "央行今天宣布下调存款准备金率"  # 14 characters, of which one is another
WRITTEN = "央行今天宣布上调存款准备金率"


def test_a_chinese_text_with_one_other_character() -> None:
    """By hand, and against what both libraries say by default: nothing in common."""
    n = len(EXPECTED)
    precisions = [(n - k + 1 - k) / (n - k + 1) for k in range(1, 5)]  # k n-grams have it
    assert bleu([WRITTEN], [EXPECTED]) == pytest.approx(100 * math.prod(precisions) ** 0.25)
    assert rouge_l([WRITTEN], [EXPECTED]) == [pytest.approx(13 / 14)]
    assert sacrebleu.corpus_bleu([WRITTEN], [[EXPECTED]]).score == pytest.approx(0)
    assert RougeScorer(["rougeL"]).score(EXPECTED, WRITTEN)["rougeL"].fmeasure == 0


def test_bleu_is_sacrebleus_of_either_language() -> None:
    english = (["The bond market fell on Friday, as they said.", "Sun, later."], ENGLISH)
    chinese = (["央行今天说要下调利率，债券上涨。", "今天天气非常好，我们回家。"], CHINESE)
    plain = sacrebleu.corpus_bleu(english[0], [english[1]])
    by_character = sacrebleu.corpus_bleu(chinese[0], [chinese[1]], tokenize="zh")
    assert bleu(*english) == pytest.approx(plain.score)
    assert bleu(*chinese) == pytest.approx(by_character.score)
    # Of both, the counts add up.
    both = bleu([*english[0], *chinese[0]], [*english[1], *chinese[1]])
    precisions = [
        (a + b) / (c + d)
        for a, b, c, d in zip(
            plain.counts, by_character.counts, plain.totals, by_character.totals, strict=True
        )
    ]
    written, expected = (
        plain.sys_len + by_character.sys_len,
        plain.ref_len + by_character.ref_len,
    )
    brevity = math.exp(min(0, 1 - expected / written))
    assert both == pytest.approx(100 * brevity * math.prod(precisions) ** 0.25)


def test_nothing_written_is_like_nothing() -> None:
    assert bleu([""], [EXPECTED]) == 0
    assert rouge_l(["", "。！"], [EXPECTED, EXPECTED]) == [0, 0]


@pytest.mark.parametrize(
    ("text", "chinese"),
    [
        (EXPECTED, True),
        ("GDP 增长了 5%，高于 2023 年", True),
        ("The bond market", False),
        ("The word 债券 means bond, as everybody knows", False),
        ("12 + 30 = 42", False),
        ("", False),
        ("𠀀𠀁", True),
    ],
)
def test_what_is_chinese(text: str, chinese: bool) -> None:
    assert is_chinese(text) is chinese
