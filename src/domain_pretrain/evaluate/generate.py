"""Greedy continuations, by a model that says which token comes next."""

from __future__ import annotations

from collections.abc import Sequence

from domain_pretrain.evaluate.model import Model, Row

UNDECODED = "\N{REPLACEMENT CHARACTER}"
"""What tokens decode to that are no text, such as half of a character."""


def generate(
    model: Model, prompts: Sequence[Sequence[int]], count: int, stops: Sequence[str] = ()
) -> list[list[int]]:
    """The likeliest next token, again and again, behind each prompt; all prompts at once.

    Args:
        model: is asked about whole rows each time, as it keeps nothing between its calls.
        prompts: tokens, at least one each; with ``count − 1`` more they fit the model's context.
        count: tokens of a continuation at most.
        stops: texts that end one, once its own text has them.

    Returns:
        Tokens of each continuation; :attr:`Model.end`, which ends one, is not among them.

    Raises:
        ConfigError: a prompt does not fit.
    """
    found: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    for _ in range(count):
        rows = [Row([*prompts[n], *found[n]], len(prompts[n]) + len(found[n])) for n in going]
        still = []
        for n, (token,) in zip(going, model.predict(rows), strict=True):
            if token == model.end:
                continue
            found[n].append(token)
            if not (stops and _has_one(model.decode(found[n]), stops)):
                still.append(n)
        going = still
        if not going:
            break
    return found


def _has_one(text: str, stops: Sequence[str]) -> bool:
    return any(stop in text for stop in stops)


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of ``stops`` in it."""
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text


def text_behind(model: Model, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text of tokens as it goes on behind a prompt.

    Both are decoded together, since some tokenizers drop the space that a text begins with. What
    the last token leaves unfinished of a character is cut off.
    """
    before, whole = model.decode(prompt), model.decode([*prompt, *tokens])
    return whole[len(before) :].rstrip(UNDECODED)


def whole_characters(model: Model, tokens: Sequence[int], count: int) -> int:
    """How many of the first ``count`` tokens do not end within a character."""
    while count and model.decode(tokens[:count]).endswith(UNDECODED):
        count -= 1
    return count
