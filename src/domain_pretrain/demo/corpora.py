"""The demo's corpora: small, real, offline, and the same for every run on one Python version."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from domain_pretrain.demo.maths import maths_documents
from domain_pretrain.demo.python_code import documentation_topics, split_source, standard_library
from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.prepare.manifest import Manifest

# Share of ``max_bytes``; general is also what the others are mixed with, five parts to one.
SHARES = {"general": 1.0, "code": 0.75, "maths": 0.5, "dirty": 0.25}


@dataclass(frozen=True)
class Corpus:
    """One domain, ready for ``--data-path``."""

    name: str
    prefix: Path
    manifest: Manifest


def build(root: Path, *, seed: int = 1234, max_bytes: int = 2_000_000) -> dict[str, Corpus]:
    """Write ``root/DOMAIN.jsonl`` and prepare it by bytes, for four domains.

    ``general``: documentation topics and docstrings of the standard library; ``code``: its source
    without the docstrings; ``maths``: arithmetic with worked steps; ``dirty``: text scrambled
    beyond recovery, which a model cannot learn.

    Documents are shuffled, because Megatron's ``--split`` cuts them in file order.

    Args:
        root: folder to write to; what an earlier call wrote there is replaced.
        seed: of the shuffling and of what is generated.
        max_bytes: text of the general domain; the others get a fixed share of it.

    Returns:
        the corpora by domain name, general first.
    """
    corpora = {}
    for name, source in write_texts(root, seed=seed, max_bytes=max_bytes).items():
        prefix = root / name
        corpora[name] = Corpus(name, prefix, prepare([source], prefix, "bytes", force=True))
    return corpora


def write_texts(root: Path, *, seed: int = 1234, max_bytes: int = 2_000_000) -> dict[str, Path]:
    """``root/DOMAIN.jsonl``, by domain name: the texts of :func:`build`, with its arguments."""
    root.mkdir(parents=True, exist_ok=True)
    sources = {}
    for name, documents in _domains(seed).items():
        sources[name] = root / f"{name}.jsonl"
        with sources[name].open("w", encoding="utf-8") as file:
            for text in _up_to(int(max_bytes * SHARES[name]), documents):
                file.write(json.dumps({"text": text}) + "\n")
    return sources


def _domains(seed: int) -> dict[str, Iterable[str]]:
    code, general = [], list(documentation_topics())
    for module, path in standard_library().items():
        source, docstrings = split_source(module, path.read_text("utf-8", errors="replace"))
        code.append(source)
        general += docstrings
    Random(f"{seed} general").shuffle(general)
    Random(f"{seed} code").shuffle(code)
    return {
        "general": general,
        "code": code,
        "maths": maths_documents(Random(f"{seed} maths")),
        "dirty": _scrambled(code, Random(f"{seed} dirty")),
    }


def _scrambled(texts: Iterable[str], random: Random) -> Iterator[str]:
    """Yield ``texts`` as an encrypted dump looks that was decoded as 7-bit text.

    Every byte is uniform on 0 … 127: no model can go below ln 128 = 4.85 nats a byte.
    """
    for text in texts:
        clear = text.encode("utf-8")[:4096]
        key = random.randbytes(len(clear))
        yield bytes((a ^ b) & 0x7F for a, b in zip(clear, key, strict=True)).decode("ascii")


def _up_to(max_bytes: int, documents: Iterable[str]) -> Iterator[str]:
    """Yield documents until there are ``max_bytes`` of UTF-8; the last one is cut."""
    for text in documents:
        encoded = text.encode("utf-8")[:max_bytes]
        yield encoded.decode("utf-8", errors="ignore")
        max_bytes -= len(encoded)
        if max_bytes <= 0:
            return
