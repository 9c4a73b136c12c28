"""The demo's corpora, each parted by documents: to train on, for the sensor, and to test on."""

from __future__ import annotations

import json
from pathlib import Path

from domain_pretrain.demo import corpora as demo
from domain_pretrain.prepare.corpus import prepare

MAX_BYTES = 4_000_000  # of general, which has 2.2 MB; the others get the demo's shares of it
HELD_OUT = ("sensor", "test")
HELD_OUT_BYTES = 64_000  # of each domain, for each of the two
HELD_OUT_DOCUMENT = 2048  # characters at most, so that a few large modules are not all of "code"
RARE_BYTES = 40_000  # of the rare domain's training text: a run reads it several times


def build(folder: Path) -> tuple[str, ...]:
    """Write ``folder/PART/NAME`` (.bin, .idx) for train, sensor and test, unless they are there.

    Returns:
        Megatron's flags for the tokenizer, bytes.
    """
    done = folder / "tokenizer.json"
    if not done.is_file():
        for name in demo.build(folder / "whole", max_bytes=MAX_BYTES):
            flags = _part(folder, name)
        done.write_text(json.dumps(flags))
    return tuple(json.loads(done.read_text()))


def _part(folder: Path, name: str) -> list[str]:
    """The demo's builder has shuffled the documents: the first ones are held out."""
    source = folder / "whole" / f"{name}.jsonl"
    texts = [json.loads(line)["text"] for line in source.read_text("utf-8").splitlines()]
    for part in HELD_OUT:
        held_out, texts = _first(texts, HELD_OUT_BYTES)
        _write(folder / part, name, [text[:HELD_OUT_DOCUMENT] for text in held_out])
    if name == "maths":
        _write(folder / "train", "rare", _first(texts, RARE_BYTES)[0])
    return _write(folder / "train", name, texts)


def _first(texts: list[str], most: int) -> tuple[list[str], list[str]]:
    """As many as make up so many bytes of what a held-out document may have, and the rest."""
    size, count = 0, 0
    while count < len(texts) and size < most:
        size += len(texts[count][:HELD_OUT_DOCUMENT].encode())
        count += 1
    return texts[:count], texts[count:]


def _write(folder: Path, name: str, documents: list[str]) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"{name}.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return prepare([source], source.with_suffix(""), "bytes", force=True).megatron_flags
