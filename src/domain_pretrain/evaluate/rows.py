"""Texts as rows of tokens, and asking a model about many of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate.model import Model, Row

ROWS = 1024
"""Asked about at once: enough for every data-parallel rank, and little memory."""

T = TypeVar("T")


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """``ROWS`` items at a time; the last may be fewer, and is never empty."""
    items = iter(items)
    while batch := list(islice(items, ROWS)):
        yield batch


def text_row(model: Model, text: str, prompt: str = "") -> Row:
    """``text`` after ``prompt``; without one, after the end of another document.

    Both are encoded together, since a tokenizer may join them over the seam: what is asked about
    begins at the first token that the prompt alone does not have.

    Raises:
        ConfigError: ``text`` adds no token.
    """
    return text_rows(model, [text], prompt)[0]


def text_rows(model: Model, texts: Sequence[str], prompt: str = "") -> list[Row]:
    """Each of several texts after one prompt, to be compared; see :func:`text_row`.

    All are asked about from the same position on: a tokenizer that joins one of them with the
    prompt's end, and another not, would leave a factor out of one probability.

    Raises:
        ConfigError: a text adds no token.
    """
    alone = model.encode(prompt)
    encoded = [model.encode(prompt + text) for text in texts]
    first = [_same(alone, tokens) for tokens in encoded]
    for text, tokens, same in zip(texts, encoded, first, strict=True):
        if same == len(tokens):
            raise ConfigError(f"{text[:60]!r} has no tokens of its own behind {prompt[-60:]!r}")
    start = min(first)
    return [Row(tokens, start) if start else Row([model.end, *tokens]) for tokens in encoded]


def _same(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that two texts begin with alike."""
    differ = (at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))


def ask(model: Model, rows: Iterable[Row]) -> Iterator[tuple[Row, float]]:
    """Each row with its log-likelihood (:meth:`.Model.log_likelihoods`), nats; many at once.

    Raises:
        ConfigError: a row does not fit the model's context; tells what it says.
    """
    for batch in batches(rows):
        for row in batch:
            if len(row.tokens) > model.context + 1:
                raise ConfigError(
                    f"a text of {len(row.tokens):,} tokens does not fit the model's context, which "
                    f"takes {model.context + 1:,}: {model.decode(row.tokens[:40])!r} …; shorten "
                    "it, or leave it out"
                )
        yield from zip(batch, model.log_likelihoods(batch), strict=True)
