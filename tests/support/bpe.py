"""Small byte-level BPE tokenizers, trained by the library tokenizers; tests skip without it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

FOX = "the quick brown fox jumps over the lazy dog"


def train_bpe(texts: Iterable[str], size: int, special: Iterable[str]) -> Any:
    """A tokenizer of the library's that knows all bytes.

    Args:
        texts: it knows words of.
        size: of the vocabulary, at most.
        special: tokens, with the first ids.
    """
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_bpe(folder: Path, size: int, truncation: int | None = None, **config: Any) -> Any:
    """A tokenizer as a folder of a hub has it, that puts ``<s>`` before a text, as Llama's does.

    Args:
        folder: that is there.
        size: of the vocabulary, at most.
        truncation: that its file asks for, in tokens.
        config: further keys of ``tokenizer_config.json``, or others in place of its own.
    """
    tokenizer = train_bpe([FOX] * 20, size, ["<s>", "</s>"])
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    if truncation is not None:
        tokenizer.enable_truncation(truncation)
    tokenizer.save(str(folder / "tokenizer.json"))
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    return tokenizer
