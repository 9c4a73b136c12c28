"""How alike texts are: BLEU and ROUGE-L, of Chinese by characters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# Letters and digits of English by the word, anything else that is a letter by itself.
_WORDS = re.compile(r"[a-z0-9]+|[^\W_a-z0-9]")
# CJK ideographs with their extensions, and those for compatibility.
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LETTER = re.compile(r"[^\W\d_]")

CHINESE = 0.2
"""Part of a text's letters from which on it is Chinese: one character says as much as a word."""


def is_chinese(text: str) -> bool:
    """Whether a text is to be split by characters, by the part of them among its letters."""
    letters = len(_LETTER.findall(text))
    return letters > 0 and len(_HAN.findall(text)) >= CHINESE * letters


def bleu(written: Sequence[str], expected: Sequence[str]) -> float:
    """BLEU of a corpus, 0 … 100: sacrebleu's, by the tokenizer ``zh`` or ``13a`` of each text.

    Of a written text, the tokenizer is that of the expected one.

    Args:
        written: at least one.
        expected: of each, what it should be.
    """
    from sacrebleu.metrics import BLEU
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

    english, chinese = Tokenizer13a(), TokenizerZh()
    split = [chinese if is_chinese(text) else english for text in expected]
    metric = BLEU(tokenize="none", force=True)  # they are split already
    found = metric.corpus_score(
        [tokenize(text) for tokenize, text in zip(split, written, strict=True)],
        [[tokenize(text) for tokenize, text in zip(split, expected, strict=True)]],
    )
    return float(found.score)


def rouge_l(written: Sequence[str], expected: Sequence[str]) -> list[float]:
    """The F-measure of ROUGE-L of each text, 0 … 1, by rouge-score."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    return [
        float(scorer.score(target, text)["rougeL"].fmeasure)
        for text, target in zip(written, expected, strict=True)
    ]


class _Words:
    """What rouge-score takes for a tokenizer; its own finds nothing in Chinese."""

    def tokenize(self, text: str) -> list[Any]:
        return _WORDS.findall(text.lower())
