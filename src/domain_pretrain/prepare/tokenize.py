"""Text → token ids: by bytes, or by a Hugging Face ``tokenizer.json`` on the local disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from packaging.version import Version

from domain_pretrain.prepare.errors import PrepareError


class Tokenizer(Protocol):
    """What :func:`~domain_pretrain.prepare.corpus.prepare` asks of a tokenizer; it must pickle."""

    @property
    def name(self) -> str:
        """``bytes``, or the folder that Megatron loads."""

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

    Raises:
        PrepareError: ``tokenizers`` is missing, the file is broken, or ``eod_token`` is not in it.
    """

    def __init__(self, file: Path, eod_token: str | None = None) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise PrepareError(
                f"{file}: needs the tokenizers library; pip install 'domain-pretrain[prepare]'"
            ) from error
        content = file.read_bytes()
        token = eod_token or _eos_token(file.parent)
        self.name = str(file.parent)
        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            with _panics_as_errors():
                self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
                # A file may carry the truncation of its model's training; documents are never cut.
                self._tokenizer.no_truncation()
                self._tokenizer.no_padding()
                ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
                self.eod: int | None = None
                if token is not None:
                    self.eod = self._tokenizer.token_to_id(token)
            self.encode("")  # some faults show in the first use
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
            ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def megatron_flags(self, core_version: str) -> list[str]:
        """The same for every version; the model is the folder."""
        return ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", self.name]


def load_tokenizer(name: str, eod_token: str | None = None) -> Tokenizer:
    """Load a tokenizer by name.

    Args:
        name: ``bytes``, a ``tokenizer.json``, or a folder that contains one. Nothing is downloaded.
        eod_token: Hugging Face only: the token that ends a document.

    Raises:
        PrepareError: there is no such tokenizer.
    """
    if name == "bytes":
        if eod_token is not None:
            raise PrepareError("--eod-token: the bytes tokenizer's is always 256; leave it out")
        return ByteTokenizer()
    path = Path(name)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise PrepareError(
            f"tokenizer {name!r}: {file} does not exist; give 'bytes', a tokenizer.json, or a "
            "folder that holds one (only local files are read)"
        )
    if file.name != "tokenizer.json":
        # Megatron will load the folder, so another name could be read here but not in training.
        raise PrepareError(f"tokenizer {name!r}: the file must be called tokenizer.json")
    return HuggingFaceTokenizer(file, eod_token)


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
        try:
            config: Any = json.loads((folder / name).read_bytes())
        except FileNotFoundError:
            continue
        except (ValueError, RecursionError) as error:
            raise PrepareError(f"{folder / name}: not JSON: {error}; fetch it again") from error
        if not isinstance(config, dict):
            raise PrepareError(f"{folder / name}: not a JSON object; fetch it again")
        token = config.get("eos_token")
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            return token
    return None
