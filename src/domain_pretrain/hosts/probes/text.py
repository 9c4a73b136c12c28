"""Text ↔ tokens, as the tokenizer of the run has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from domain_pretrain.data.content import read_manifests
from domain_pretrain.data.vocabulary import WITHOUT_TEXT
from domain_pretrain.errors import ConfigError, UnsupportedError
from domain_pretrain.prepare.tokenize import ByteTokenizer


@dataclass(frozen=True)
class Text:
    """A tokenizer.

    Attributes:
        encode: text → tokens, none of which begins or ends it.
        decode: tokens → text.
        end: the token that ends a document.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    end: int


def is_bytes(flags: Any, prefixes: Iterable[str]) -> bool:
    """Whether the run's tokens are bytes, as ``domain-pretrain prepare`` may make them.

    Megatron has no tokenizer for these; the manifests beside the data tell.

    Args:
        flags: an object with the host's settings, under the names of Megatron-LM's flags.
        prefixes: of the data.

    Raises:
        ConfigError: there is no text in this run.
    """
    kind = getattr(flags, "tokenizer_type", None)
    if kind not in WITHOUT_TEXT:
        return False
    prefixes = list(prefixes)
    manifests = read_manifests(prefixes)
    if prefixes and all(
        prefix in manifests and manifests[prefix].tokenizer == ByteTokenizer.name
        for prefix in prefixes
    ):
        return True
    raise ConfigError(
        f"evaluate.probes ask about text, and {kind} knows none: give the tokenizer that the data "
        "was made with (--tokenizer-type HuggingFaceTokenizer --tokenizer-model FOLDER), or data "
        "that `domain-pretrain prepare` has made of bytes, with its manifests"
    )


def of_bytes() -> Text:
    """UTF-8."""
    tokenizer = ByteTokenizer()
    return Text(lambda text: tokenizer.encode(text).tolist(), tokenizer.decode, tokenizer.eod)


def of_host(tokenizer: Any) -> Text:
    """The host's own: Megatron's classes differ by version, and have these two methods.

    Some put a token before or behind every text: those that an empty text has. They are taken off.

    Args:
        tokenizer: with ``tokenize``, ``detokenize`` and ``eod``.
    """
    around, one = (_tokens(tokenizer, text) for text in ("", "a"))
    before = 0
    while before < len(around) and around[before] == one[before]:
        before += 1
    after = len(around) - before

    def encode(text: str) -> list[int]:
        found = _tokens(tokenizer, text)
        return found[before : len(found) - after]

    return Text(encode, lambda tokens: str(tokenizer.detokenize(list(tokens))), end_of(tokenizer))


def end_of(tokenizer: Any) -> int:
    """The token that ends a document; every rank asks.

    Raises:
        UnsupportedError: nothing does.
    """
    end = getattr(tokenizer, "eod", None)
    if end is None or end < 0:
        raise UnsupportedError(
            f"evaluate.probes: the tokenizer, a {type(tokenizer).__name__}, has no token that ends "
            "a document, behind which a text would begin: give one that has (eos_token)"
        )
    return int(end)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return [int(token) for token in tokenizer.tokenize(text)]
