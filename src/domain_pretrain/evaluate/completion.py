"""``completion``: how likely the right words are after a prompt."""

from __future__ import annotations

import math

from domain_pretrain.evaluate.items import Item, ItemOptions, score_items
from domain_pretrain.evaluate.model import Model
from domain_pretrain.evaluate.probe import register
from domain_pretrain.evaluate.rows import ask, text_row
from domain_pretrain.records.score import Score
from domain_pretrain.rules.options import NonEmpty


class Completion(Item):
    """One prompt and the words that belong after it."""

    prompt: NonEmpty
    completion: NonEmpty


class CompletionOptions(ItemOptions[Completion]):
    """Options of ``completion``."""

    item = Completion


@register("completion", CompletionOptions)
def completion(model: Model, options: CompletionOptions) -> list[Score]:
    """Two scores of every domain, with a part for each item; higher is better.

    ``completion``: ``Σ log p(completion | prompt)`` over the completions' tokens, nats.
    ``completion_prob``: ``p(completion | prompt)`` over the items.

    Raises:
        ConfigError: a completion has no tokens, or does not fit the model's context.
    """
    asked = ask(model, (text_row(model, item.completion, item.prompt) for item in options.every))

    def measure(item: Completion) -> dict[str, tuple[float, int]]:
        row, value = next(asked)
        return {
            "completion": (value, len(row.tokens) - row.first),
            "completion_prob": (math.exp(value), 1),
        }

    return score_items(options, measure)
