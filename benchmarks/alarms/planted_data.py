"""The corpora: four clean domains, and what is wrong with the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from random import Random

import numpy as np

from domain_pretrain.data.trace.windows import Span
from domain_pretrain.demo.corpora import build
from domain_pretrain.prepare.corpus import prepare

CLEAN = ("general", "code", "maths", "logs")
END = 256  # of a document; bytes are their own tokens
FLAGS = ("--tokenizer-type", "NullTokenizer", "--vocab-size", "257")
MARK = "\x1f"  # in every line of the logs, and in no other text


def write(folder: Path, seed: int) -> None:
    """All corpora of a seed, below ``folder``; what is whole there is kept."""
    if (folder / "whole").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    random = Random(f"{seed} alarms")
    build(folder, seed=seed, max_bytes=600_000)  # general, code, maths and dirty
    code = [json.loads(line)["text"] for line in (folder / "code.jsonl").open(encoding="utf-8")]
    shard = [text[:2000] for text in code[:12]]
    texts: dict[str, Iterable[str]] = {
        "logs": (_log(random) for _ in range(900)),
        "newlines": ("\n" * random.randint(500, 1500) for _ in range(100)),
        "copied": random.sample(shard * 12, 12 * len(shard)),
        # Little enough to be learnt by heart in the base run.
        "familiar": [code[20][start : start + 100] for start in range(0, 1200, 100)],
    }
    for name, documents in texts.items():
        source = folder / f"{name}.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        prepare([source], folder / name, "bytes", force=True)
    _write_empty(folder / "empty")
    (folder / "whole").touch()


def _log(random: Random) -> str:
    levels, parts = ("info", "warn", "debug"), ("disk", "net", "auth", "cron", "http")
    lines = []
    for number in range(random.randint(4, 10)):
        fields = [f"{random.randrange(10**6):06}", random.choice(levels), random.choice(parts)]
        lines.append(MARK.join([str(number), *fields, f"took {random.randrange(900)} ms"]))
    return "\n".join(lines)


def _write_empty(prefix: Path) -> None:
    """Documents without any text: with ``--eod-mask-loss`` there is nothing to learn from."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for _ in range(2000):
        builder.add_document(torch.full((20,), END), [20])
    builder.finalize(f"{prefix}.idx")


def spoil(source: Path, target: Path, name: str, spans: Iterable[Span], seed: int) -> None:
    """A copy of a seed's corpora, in which some tokens of a domain are random bytes.

    The documents are as long as before, so the same samples come in the same order.
    """
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("cache", "*.jsonl"))
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    index = IndexedDataset(str(source / name))  # which owns the memory that it shows
    starts = index.index.sequence_pointers // 2
    tokens = np.fromfile(target / f"{name}.bin", np.uint16)
    random = np.random.default_rng(seed)
    for span in spans:
        first = int(starts[span.index]) + span.first
        last = first + span.tokens - 1  # what comes after the document's text stays
        tokens[first:last] = random.integers(128, 256, last - first)
    tokens.tofile(target / f"{name}.bin")
