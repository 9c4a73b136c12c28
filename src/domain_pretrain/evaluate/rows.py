"""A text behind another one, as a row of tokens."""

from __future__ import annotations

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate.model import Model, Row


def text_row(model: Model, text: str, prompt: str = "") -> Row:
    """``text`` after ``prompt``; without one, after the end of another document.

    Both are encoded together, since a tokenizer may join them over the seam: what is asked about
    begins at the first token that the prompt alone does not have.

    Raises:
        ConfigError: ``text`` adds no token.
    """
    alone, whole = model.encode(prompt), model.encode(prompt + text)
    same = next(
        (at for at, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b),
        min(len(alone), len(whole)),
    )
    if same == len(whole):
        raise ConfigError(f"{text[:60]!r} has no tokens of its own behind {prompt[-60:]!r}")
    return Row(whole, same) if same else Row([model.end, *whole])
