"""The demo's corpora, each parted by documents into training text and held-out text."""

from __future__ import annotations

import json
from pathlib import Path

from domain_pretrain.demo import corpora as demo
from domain_pretrain.prepare.corpus import prepare

HELD_OUT_EVERY = 8  # documents; shuffled by the demo's builder
HELD_OUT_DOCUMENT = 4096  # characters at most, so that a few large modules are not all of "code"
HELD_OUT_BYTES = 64_000  # of each domain


def build(folder: Path, max_bytes: int = 2_000_000) -> tuple[str, ...]:
    """Write ``folder/train/NAME`` and ``folder/valid/NAME`` (.bin, .idx), unless they are there.

    Args:
        folder: of this experiment alone.
        max_bytes: text of the general domain; the others get the demo's shares of it.

    Returns:
        Megatron's flags for the tokenizer, bytes.
    """
    done = folder / "tokenizer.json"
    if not done.is_file():
        for name in demo.build(folder / "whole", max_bytes=max_bytes):
            flags = _part(folder, name)
        done.write_text(json.dumps(flags))
    return tuple(json.loads(done.read_text()))


def _part(folder: Path, name: str) -> list[str]:
    source = folder / "whole" / f"{name}.jsonl"
    texts = [json.loads(line)["text"] for line in source.read_text("utf-8").splitlines()]
    held_out, size = [], 0
    for text in texts[::HELD_OUT_EVERY]:
        held_out.append(text[:HELD_OUT_DOCUMENT])
        size += len(held_out[-1].encode())
        if size >= HELD_OUT_BYTES:
            break
    del texts[::HELD_OUT_EVERY]  # all of them, so that no rest of a held-out text is trained on
    for split, documents in (("train", texts), ("valid", held_out)):
        part = folder / split / f"{name}.jsonl"
        part.parent.mkdir(exist_ok=True)
        part.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        manifest = prepare([part], part.with_suffix(""), "bytes", force=True)
    return manifest.megatron_flags
