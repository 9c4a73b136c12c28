"""``PREFIX.manifest.json``: what a prepared corpus holds and what it was made from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from domain_pretrain.prepare.encodings import UTF_8


@dataclass(kw_only=True)
class Counts:
    """What an input gave, or all of them.

    Attributes:
        lines: lines, Parquet rows or array elements that were read; not the empty ones of JSON.
        documents: documents in the corpus.
        tokens: their ids in ``PREFIX.bin``, end-of-document tokens included.
        text_bytes: their UTF-8 bytes, decompressed.
        empty_documents: documents left out because they hold no token.
        bad_lines: lines left out because they could not be read.
    """

    lines: int = 0
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    empty_documents: int = 0
    bad_lines: int = 0

    def add(self, other: Counts) -> None:
        """Add ``other``'s counts to these."""
        self.lines += other.lines
        self.documents += other.documents
        self.tokens += other.tokens
        self.text_bytes += other.text_bytes
        self.empty_documents += other.empty_documents
        self.bad_lines += other.bad_lines


@dataclass(kw_only=True)
class InputFile(Counts):
    """One input; ``bytes`` and ``sha256`` are of the file as it is on disk."""

    path: str
    bytes: int
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What the documents are like.

    Attributes:
        shortest: tokens of the shortest document, end-of-document token included.
        percentiles: tokens that so many percent of the documents do not exceed.
        longest: tokens of the longest.
        exact_duplicates: documents whose text an earlier one has.
        replacement_characters: U+FFFD in the texts, the trace of a wrong decoding before.
        ids_used: different token ids.
        unigram_entropy_nats: of the token ids: the loss of a model that knows their frequencies and
            nothing else.
    """

    shortest: int
    percentiles: dict[str, int]
    longest: int
    exact_duplicates: int
    replacement_characters: int
    ids_used: int
    unigram_entropy_nats: float


@dataclass(kw_only=True)
class Manifest(Counts):
    """Totals over all inputs. The same inputs and options give the same manifest, byte for byte.

    Attributes:
        tool: name and version of this package.
        megatron_core: version of megatron-core that wrote the files.
        encoding: of the inputs other than Parquet.
        tokenizer: ``bytes`` or the tokenizer's folder.
        megatron_flags: the tokenizer flags to train with under that megatron-core.
        eod: id that ends a document; None where the tokenizer names none.
        dtype: of the ids in ``PREFIX.bin``.
        quality: None in manifests of earlier versions.
        first_bad_lines: the first of them, as ``FILE:LINE: reason``.
        inputs: in the order of the corpus.
    """

    tool: str
    megatron_core: str
    encoding: str = UTF_8
    tokenizer: str
    tokenizer_sha256: str | None
    megatron_flags: list[str]
    vocab_size: int
    eod: int | None
    append_eod: bool
    dtype: str
    quality: Quality | None = None
    first_bad_lines: list[str] = field(default_factory=list)
    inputs: list[InputFile] = field(default_factory=list)

    def to_json(self) -> str:
        """The manifest file's content."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, prefix: str | Path) -> Manifest:
        """Read the manifest of the corpus at ``prefix``."""
        content: dict[str, Any] = json.loads(manifest_path(prefix).read_text("utf-8"))
        inputs = [InputFile(**source) for source in content.pop("inputs")]
        quality = content.pop("quality", None)
        return cls(**content, quality=quality and Quality(**quality), inputs=inputs)


def manifest_path(prefix: str | Path) -> Path:
    """``PREFIX.manifest.json``."""
    return Path(f"{prefix}.manifest.json")
