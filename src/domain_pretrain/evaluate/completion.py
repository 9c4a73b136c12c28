"""``completion``: how likely the right words are after a prompt."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from domain_pretrain.evaluate.model import Model
from domain_pretrain.evaluate.probe import ProbeOptions, register
from domain_pretrain.evaluate.rows import text_row
from domain_pretrain.records.score import Part, Score
from domain_pretrain.section import Section


class Item(Section):
    """One prompt and the words that belong after it."""

    prompt: Annotated[str, Field(min_length=1)]
    completion: Annotated[str, Field(min_length=1)]


class CompletionOptions(ProbeOptions):
    """Options of ``completion``.

    Attributes:
        items: by domain.
    """

    items: dict[str, Annotated[list[Item], Field(min_length=1)]]


@register("completion", CompletionOptions)
def completion(model: Model, options: CompletionOptions) -> list[Score]:
    """``Σ log p(completion | prompt)`` by domain, nats, over the completions' tokens.

    Raises:
        ConfigError: a completion has no tokens.
    """
    scores = []
    for domain, items in options.items.items():
        rows = [text_row(model, item.completion, item.prompt) for item in items]
        parts = [
            Part(item.prompt, value, len(row.tokens) - row.first)
            for item, row, value in zip(items, rows, model.log_likelihoods(rows), strict=True)
        ]
        scores.append(Score.of("completion", domain, parts, higher_is_better=True))
    return [score for score in scores if score is not None]
