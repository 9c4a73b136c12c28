"""What is prepared: JSON lines of the demo's texts, and a tokenizer trained on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from random import Random

from domain_pretrain.demo.corpora import build

END = "<|endoftext|>"
DOMAINS = ("general", "code", "maths")


def write_input(folder: Path, megabytes: int) -> Path:
    """``folder/input.jsonl``: the demo's documents, shuffled, again and again under new headings.

    No two documents are the same, as in a corpus that is worth tokenizing.
    """
    build(folder / "demo", max_bytes=4_000_000)
    texts = [text for name in DOMAINS for text in _texts(folder / "demo" / f"{name}.jsonl")]
    Random(1234).shuffle(texts)
    path, size = folder / "input.jsonl", 0
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(cycle(texts)):
            size += file.write(json.dumps({"text": f"{number}\n{text}"}) + "\n")
            if size >= megabytes << 20:
                break
    return path


def _texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def train_tokenizer(folder: Path, source: Path) -> Path:
    """A byte-level BPE of 32,000 tokens, of the first texts, as a folder of a model holds it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for text, _ in zip(_texts(source), range(5_000), strict=False))
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
