"""How many ids a run's tokenizer has, from its files, without loading it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from domain_pretrain.errors import ConfigError
from domain_pretrain.json_file import read_json
from domain_pretrain.paths import is_remote
from domain_pretrain.prepare.manifest import Manifest, manifest_path

TIKTOKEN_DEFAULT = 2**17  # Megatron's, where --vocab-size does not say
# Whose texts are lists of numbers.
WITHOUT_TEXT = ("NullTokenizer", "NullMultimodalTokenizer")
# The host adds tokens of its own to their files', and others in other versions.
_AMENDED = ("SentencePieceTokenizer", "BertWordPieceLowerCase", "BertWordPieceCase")
# Of the data flags that Megatron has, those whose words are prefixes and weights.
_DATA = ("data_path", "train_data_path", "valid_data_path", "test_data_path")


def vocabulary(flags: Any, prefixes: Iterable[str] = ()) -> int | None:
    """The number of token ids before the host pads it.

    As the host determines it: from the tokenizer's own files; ``--vocab-size`` counts for the
    tokenizers that have none. Where those files are not here (a name on the Hugging Face hub), the
    manifest of a corpus that ``domain-pretrain prepare`` made says what it was made with.

    Args:
        flags: an object with Megatron's names (``tokenizer_type``, ``tokenizer_model``,
            ``vocab_size``, …); names that it lacks count as not given.
        prefixes: of the corpora, besides those of its data flags.

    Returns:
        None where nothing here tells, or the host adds tokens of its own. For ``NullTokenizer``
        the flag's value: Megatron up to 0.17 adds one id, the end of a document.
    """
    kind, said = _of(flags, "tokenizer_type"), _of(flags, "vocab_size")
    if kind in WITHOUT_TEXT:
        return said
    if kind == "TikTokenizer":
        return said or TIKTOKEN_DEFAULT
    if kind in _AMENDED or _of(flags, "special_tokens"):
        return None
    model = _of(flags, "tokenizer_name_or_path") or _of(flags, "tokenizer_model")
    found = None
    for path in filter(None, (model, _of(flags, "vocab_file"))):
        if found is None and not is_remote(path):
            found = size_of_tokenizer(Path(path))
    return found or said or _of_manifests([*prefixes, *_prefixes(flags)])


def padded(size: int, flags: Any) -> int:
    """Rows of the embedding: the host pads for equal, GPU-friendly parts over TP.

    Args:
        size: what :func:`vocabulary` says.
        flags: as there; ``--padded-vocab-size`` goes before.
    """
    if fixed := _of(flags, "padded_vocab_size"):
        return int(fixed)
    divisor = _of(flags, "make_vocab_size_divisible_by") or 128
    unit = int(divisor) * int(_of(flags, "tensor_model_parallel_size") or 1)
    return -(-size // unit) * unit


def size_of_tokenizer(path: Path) -> int | None:
    """Ids of the tokenizer in a folder or file; None where it is of no known kind, or broken.

    Known are ``tokenizer.json``, ``vocab.json`` and SentencePiece's ``tokenizer.model``; and the
    files beside them in which Hugging Face keeps tokens that were added later.
    """
    if path.is_file():
        return _size_of_file(path)
    for name in ("tokenizer.json", "vocab.json", "tokenizer.model"):
        if (path / name).is_file():
            return _size_of_file(path / name)
    return None


def _size_of_file(path: Path) -> int | None:
    try:
        if path.suffix == ".json":
            tokens = _tokens_of_json(read_json(path))
            return len(tokens | _added_beside(path)) or None
        if path.suffix == ".model":
            pieces = set(_pieces(path.read_bytes()))
            # Beside a Megatron file of that kind there are none of Hugging Face's.
            return len(pieces | {token.encode() for token in _added_beside(path)}) or None
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None  # the run says what is wrong with it
    return None


def _tokens_of_json(content: Any) -> set[str]:
    """Of a ``tokenizer.json``, whose model holds a dict or (unigram) pairs, or a ``vocab.json``."""
    if "model" not in content or not isinstance(content["model"], dict):
        return set(content)
    known = content["model"]["vocab"]
    tokens = set(known) if isinstance(known, dict) else {token for token, _ in known}
    return tokens | {token["content"] for token in content.get("added_tokens") or ()}


def _added_beside(path: Path) -> set[str]:
    """``added_tokens.json``, and what ``tokenizer_config.json`` adds when it is loaded."""
    tokens: set[str] = set()
    for name in ("added_tokens.json", "tokenizer_config.json"):
        beside = path.with_name(name)
        if beside.is_file():
            content = read_json(beside)
            if name == "added_tokens.json":
                tokens.update(content)
            else:
                added = content.get("added_tokens_decoder") or {}
                tokens.update(token["content"] for token in added.values())
    return tokens


def _pieces(model: bytes) -> Iterator[bytes]:
    """Texts of a SentencePiece model's pieces: field 1 of the protocol buffer, and 1 in each.

    Raises:
        ValueError, IndexError: it is none; Llama 3 calls a list of another kind tokenizer.model.
    """
    for number, value in _fields(model):
        if number > 5 and number < 200:  # ModelProto has 1 to 5; extensions begin at 200
            raise ValueError("not a SentencePiece model")
        if number == 1:
            yield next((text for field, text in _fields(value) if field == 1), b"")


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each field of a protocol buffer's message; a number has no content."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            byte = message[at]
            value, at = value | (byte & 127) << shift, at + 1
            if byte < 128:
                return value
        raise ValueError("a protocol buffer has no number of more than 64 bits")

    while at < len(message):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            varint()
            yield number, b""
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"a protocol buffer has no wire type {wire}")
        length = {1: 8, 5: 4}.get(wire) or varint()
        if at + length > len(message):
            raise ValueError("the file is cut off")
        yield number, message[at : at + length]
        at += length


def _of_manifests(prefixes: Sequence[str]) -> int | None:
    """Of the first corpus that has one."""
    for prefix in prefixes:
        if not is_remote(prefix) and manifest_path(prefix).is_file():
            try:
                return Manifest.load(prefix).vocab_size
            except ConfigError:
                continue
    return None


def _prefixes(flags: Any) -> list[str]:
    return [str(word) for name in _DATA for word in _of(flags, name) or ()]


def _of(flags: Any, name: str) -> Any:
    return getattr(flags, name, None)
