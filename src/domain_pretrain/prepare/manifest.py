"""``PREFIX.manifest.json``: what a prepared corpus holds and what it was made from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from domain_pretrain.errors import ConfigError, shorten
from domain_pretrain.json_file import read_json
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
    """One input; ``bytes`` and ``sha256`` are of the file as it is on disk.

    Its counts are of all that was read from it, for training or held out.
    """

    path: str
    bytes: int
    sha256: str = ""


@dataclass(kw_only=True)
class Found:
    """How often something is in the texts, and in how many of them."""

    documents: int = 0
    occurrences: int = 0

    def note(self, occurrences: int) -> None:
        """Count one text."""
        self.documents += occurrences > 0
        self.occurrences += occurrences

    def add(self, other: Found) -> None:
        """Add ``other``'s counts to these."""
        self.documents += other.documents
        self.occurrences += other.occurrences


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What the documents are like.

    Attributes:
        shortest: tokens of the shortest document, end-of-document token included.
        percentiles: tokens that so many percent of the documents do not exceed.
        longest: tokens of the longest.
        exact_duplicates: documents whose text an earlier one has.
        first_duplicates: the first of them and the first with the same text, as numbers of
            documents from 0; none where several datasets are counted, and before 0.2.
        replacement_characters: U+FFFD in the texts, the trace of a wrong decoding before.
        html_entities: ``&nbsp;`` and the like.
        mojibake: 锟斤拷, ``Ã©`` and other traces of a wrong decoding.
        special_tokens: spellings of the tokenizer's special tokens.
        special_token_counts: of each, the most frequent first.
        ids_used: different token ids.
        unigram_entropy_nats: of the token ids: the loss of a model that knows their frequencies and
            nothing else.
    """

    shortest: int
    percentiles: dict[str, int]
    longest: int
    exact_duplicates: int
    first_duplicates: list[tuple[int, int]] = field(default_factory=list)
    replacement_characters: int
    html_entities: Found = field(default_factory=Found)
    mojibake: Found = field(default_factory=Found)
    special_tokens: Found = field(default_factory=Found)
    special_token_counts: dict[str, int] = field(default_factory=dict)
    ids_used: int
    unigram_entropy_nats: float


@dataclass(kw_only=True)
class Dataset:
    """One dataset of a run: which it is, and what is in it.

    Where it lies follows from that: ``PREFIX``, or ``PREFIX/VALUE`` with ``--by``; with
    ``.holdout`` behind it where it is held out. So a folder of datasets may be moved.

    Attributes:
        value: of the field ``--by``; None without.
        domain: its name in the config; None without ``--by``.
        held_out: whether it is kept from training.
        exact_duplicates: documents whose text an earlier one of this dataset has; None before 0.2.
        unigram_entropy_nats: of its token ids; None before 0.2.
    """

    value: str | None = None
    domain: str | None = None
    held_out: bool = False
    documents: int
    tokens: int
    text_bytes: int
    exact_duplicates: int | None = None
    unigram_entropy_nats: float | None = None


@dataclass(kw_only=True)
class Channel:
    """What one channel holds; its number is its place in the manifest of its dataset."""

    name: str
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0

    def add(self, documents: int, tokens: int, text_bytes: int) -> None:
        """Add to these counts."""
        self.documents += documents
        self.tokens += tokens
        self.text_bytes += text_bytes


@dataclass(kw_only=True)
class Manifest(Counts):
    """Of one dataset, or of all that one run has written.

    The same inputs and options give the same manifest, byte for byte. The counts of documents are
    of the dataset beside it; the manifest of a run, which lists its inputs, counts what is there
    to train on, and all lines that were read.

    Attributes:
        tool: name and version of this package.
        megatron_core: version of megatron-core that wrote the files.
        encoding: of the inputs other than Parquet.
        text_key: field of the text; None where ``template`` made it, or before 0.2.
        by: the field that chose the dataset; None: there is one.
        channel_key: the field that names a document's channel; None: none does.
        value: of that field, in the manifest of one dataset.
        holdout: what was asked to be held out; None: nothing.
        held_out: whether this dataset is what was held out.
        tokenizer: ``bytes``, or the folder or file that Megatron loads.
        literal_special_tokens: whether special tokens in the texts were taken as text.
        megatron_flags: the tokenizer flags to train with under that megatron-core.
        eod: id that ends a document; None where the tokenizer names none.
        dtype: of the ids in ``PREFIX.bin``.
        quality: of the documents counted here; None in manifests of 0.1.
        first_bad_lines: the first of them, as ``FILE:LINE: reason``.
        inputs: in the order of the corpus.
        datasets: all that the run has written.
        channels: of the documents counted here. In the manifest of a dataset they are in the order
            of their numbers in ``PREFIX.channels.npy``.
    """

    tool: str
    megatron_core: str
    encoding: str = UTF_8
    text_key: str | None = None
    template: str | None = None
    by: str | None = None
    channel_key: str | None = None
    value: str | None = None
    holdout: str | None = None
    held_out: bool = False
    tokenizer: str
    tokenizer_sha256: str | None
    literal_special_tokens: bool = False
    megatron_flags: list[str]
    vocab_size: int
    eod: int | None
    append_eod: bool
    dtype: str
    quality: Quality | None = None
    first_bad_lines: list[str] = field(default_factory=list)
    inputs: list[InputFile] = field(default_factory=list)
    datasets: list[Dataset] = field(default_factory=list)
    channels: list[Channel] = field(default_factory=list)

    def to_json(self) -> str:
        """The manifest file's content."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, prefix: str | Path) -> Manifest:
        """Read the manifest of the corpus at ``prefix``.

        Raises:
            ConfigError: there is none, or the file is no manifest.
        """
        return cls.read(manifest_path(prefix))

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read the manifest ``path``; keys of later versions are passed over.

        Raises:
            ConfigError: it cannot be read or is no manifest.
        """
        content = read_json(path)
        import pydantic  # not before there is something to check: the command starts at once

        try:
            return pydantic.TypeAdapter(cls).validate_python(content)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise ConfigError(
                f"{str(path)!r} is no manifest of a prepared corpus: {shorten(where, 80)}: "
                f"{first['msg']}"
            ) from None


def manifest_path(prefix: str | Path) -> Path:
    """``PREFIX.manifest.json``."""
    return Path(f"{prefix}.manifest.json")
