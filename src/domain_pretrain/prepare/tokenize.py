"""Text → token ids: by bytes, or by a tokenizer on the local disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from packaging.version import Version

from domain_pretrain.errors import shorten
from domain_pretrain.json_file import read_json
from domain_pretrain.prepare.errors import PrepareError


class Tokenizer(Protocol):
    """What :func:`~domain_pretrain.prepare.corpus.prepare` asks of a tokenizer; it must pickle.

    It may have ``special_tokens``, too: their spellings, to be looked for in the texts.
    """

    @property
    def name(self) -> str:
        """``bytes``, or the folder or file that Megatron loads."""

    @property
    def sha256(self) -> str | None:
        """Hash of its file; None where there is none."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    def eod(self) -> int | None:
        """Id that ends a document; None where none is known."""

    def encode(self, text: str) -> Sequence[int] | np.ndarray:
        """Token ids of ``text``."""

    def decode(self, ids: Sequence[int]) -> str:
        """Their text; what is none, such as half a character, becomes U+FFFD."""

    def megatron_flags(self, core_version: str) -> list[str]:
        """Training flags under which megatron-core ``core_version`` reads the same ids."""


class ByteTokenizer:
    """UTF-8 bytes: ids 0 … 255 are the byte values, 256 ends a document."""

    name = "bytes"
    sha256 = None
    eod = 256
    vocab_size = 257

    def encode(self, text: str) -> np.ndarray:
        """uint8 ``[bytes]``."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)

    def decode(self, ids: Sequence[int]) -> str:
        """Ends of documents are no text."""
        return bytes(number for number in ids if number < self.eod).decode("utf-8", "replace")

    def megatron_flags(self, core_version: str) -> list[str]:
        """``NullTokenizer`` with a size that makes its end-of-document id 256.

        Up to 0.17 ``--vocab-size N`` means N ids and one more, N, for the end of a document; from
        0.18 on it counts that one too. The wrong one gives an id out of range, or an end that
        is never seen.
        """
        counts_eod = Version(core_version).release >= (0, 18)
        size = self.vocab_size if counts_eod else self.eod
        return ["--tokenizer-type", "NullTokenizer", "--vocab-size", str(size)]


class HuggingFaceTokenizer:
    """A ``tokenizer.json``, used as Megatron's own preprocessing uses it: special tokens included.

    Args:
        file: path of the ``tokenizer.json``.
        eod_token: token that ends a document; default: the folder's ``eos_token``.
        literal: a special token that a text spells is text.

    Attributes:
        special_tokens: as they are spelled.

    Raises:
        PrepareError: ``tokenizers`` is missing, the file is broken, or ``eod_token`` is not in it.
    """

    def __init__(self, file: Path, eod_token: str | None = None, literal: bool = False) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise PrepareError(
                f"{file}: needs the tokenizers library; pip install 'domain-pretrain[prepare]'"
            ) from error
        content = file.read_bytes()
        token = eod_token or _eos_token(file.parent)
        self.name = str(file.parent)
        self._literal = literal
        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            with _panics_as_errors():
                self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
                # A file may carry the truncation of its model's training; documents are never cut.
                self._tokenizer.no_truncation()
                self._tokenizer.no_padding()
                added = self._tokenizer.get_added_tokens_decoder().values()
                self.special_tokens = tuple(token.content for token in added if token.special)
                ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
                self.eod: int | None = None
                if token is not None:
                    self.eod = self._tokenizer.token_to_id(token)
                self._tokenizer.encode("")  # some faults show in the first use
        except Exception as error:  # the library raises nothing narrower
            raise PrepareError(
                f"{file}: cannot be used as a tokenizer.json: {error}; fetch the file again, or "
                "save the tokenizer with the installed version of tokenizers"
            ) from error
        if not ids:
            raise PrepareError(f"{file}: its vocabulary is empty; fetch the file again")
        self.vocab_size = 1 + max(ids)
        if self.vocab_size > 1 << 31:
            raise PrepareError(f"{file}: token id {max(ids)} is above int32, which datasets hold")
        if token is not None and self.eod is None:
            raise PrepareError(
                f"{file}: the end-of-document token {token!r} is not in it; name another with "
                "--eod-token"
            )

    def encode(self, text: str) -> list[int]:
        """Token ids, with the tokenizer's own special tokens (such as a first ``<s>``)."""
        with _panics_as_errors():
            self._tokenizer.encode_special_tokens = self._literal  # which does not pickle
            # The one way that does not also find where in the text each token is: a fifth quicker.
            (found,) = self._tokenizer.encode_batch_fast([text])
        ids: list[int] = found.ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """With the special tokens, as they are spelled."""
        with _panics_as_errors():
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def megatron_flags(self, core_version: str) -> list[str]:
        """The same for every version; the model is the folder."""
        return ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", self.name]


class SentencePieceTokenizer:
    """A sentencepiece model, used as Megatron's ``GPTSentencePieceTokenizer`` uses it.

    Nothing is put before or behind a text, and a control symbol that a text spells is text.

    Args:
        file: path of the model.
        eod_token: piece that ends a document; default: the model's own end.

    Attributes:
        special_tokens: the model's control symbols.

    Raises:
        PrepareError: ``sentencepiece`` is missing, the file is none of its models, or
            ``eod_token`` is not in it.
    """

    def __init__(self, file: Path, eod_token: str | None = None) -> None:
        try:
            import sentencepiece
        except ImportError as error:
            raise PrepareError(
                f"{file}: needs the sentencepiece library; pip install 'domain-pretrain[prepare]'"
            ) from error
        content = file.read_bytes()
        self.name = str(file)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise PrepareError(
                f"{file}: cannot be used as a sentencepiece model: {shorten(str(error))}; fetch it "
                "again, or give the folder of the model's tokenizer.json (some models call another "
                "kind of file tokenizer.model)"
            ) from error
        self.vocab_size = int(self._model.vocab_size())
        pieces = range(self.vocab_size)
        self.special_tokens = tuple(
            self._model.id_to_piece(piece) for piece in pieces if self._model.is_control(piece)
        )
        eos = int(self._model.eos_id())
        self.eod: int | None = eos if eos >= 0 else None
        if eod_token is not None:
            self.eod = int(self._model.piece_to_id(eod_token))
            if self._model.id_to_piece(self.eod) != eod_token:  # the unknown piece's, then
                raise PrepareError(
                    f"{file}: the end-of-document token {eod_token!r} is not in it; name another "
                    "with --eod-token"
                )

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        ids: list[int] = self._model.encode_as_ids(text)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Without control symbols, which are no text."""
        text: str = self._model.decode(list(ids))
        return text

    def megatron_flags(self, core_version: str) -> list[str]:
        """The same for every version; the model is the file."""
        return ["--tokenizer-type", "GPTSentencePieceTokenizer", "--tokenizer-model", self.name]


def load_tokenizer(name: str, eod_token: str | None = None, literal: bool = False) -> Tokenizer:
    """Load a tokenizer by name.

    Args:
        name: ``bytes``; a ``tokenizer.json``, or a sentencepiece ``.model``; or a folder that
            contains the one, or else a ``tokenizer.model``. Nothing is downloaded.
        eod_token: the token that ends a document; default: the tokenizer's own.
        literal: a special token that a text spells is text, as it always is by bytes and by
            sentencepiece.

    Raises:
        PrepareError: there is no such tokenizer.
    """
    if name == "bytes":
        if eod_token is not None:
            raise PrepareError("--eod-token: the bytes tokenizer's is always 256; leave it out")
        return ByteTokenizer()
    path = Path(name)
    file = path / "tokenizer.json" if path.is_dir() else path
    if path.is_dir() and not file.is_file() and (path / "tokenizer.model").is_file():
        file = path / "tokenizer.model"
    if not file.is_file():
        raise PrepareError(
            f"tokenizer {name!r}: {file} does not exist; give 'bytes', a tokenizer.json, a "
            "sentencepiece tokenizer.model, or a folder that holds one (only local files are read)"
        )
    if file.suffix == ".model":
        return SentencePieceTokenizer(file, eod_token)
    if file.name != "tokenizer.json":
        # Megatron will load the folder, so another name could be read here but not in training.
        raise PrepareError(
            f"tokenizer {name!r}: the file must be called tokenizer.json, or end with .model if it "
            "is sentencepiece's"
        )
    return HuggingFaceTokenizer(file, eod_token, literal)


@contextmanager
def _panics_as_errors() -> Iterator[None]:
    """A panic of the library's Rust code arrives as an exception that ``Exception`` does not catch.

    Raises:
        RuntimeError: in its place.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # the type is not exported
            raise
        raise RuntimeError(f"the tokenizers library panicked: {error}") from error


def _eos_token(folder: Path) -> str | None:
    """``eos_token`` as transformers, and so Megatron, finds it beside the ``tokenizer.json``."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / name
        if not file.exists():
            continue
        config = read_json(file)
        if not isinstance(config, dict):
            raise PrepareError(f"{file}: not a JSON object; fetch it again")
        token = config.get("eos_token")
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            return token
    return None
