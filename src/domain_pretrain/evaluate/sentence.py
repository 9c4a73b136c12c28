"""``sentence``: how well a model predicts single sentences."""

from __future__ import annotations

import math
from typing import Any

from pydantic import model_validator

from domain_pretrain.evaluate.items import Item, ItemOptions, score_items
from domain_pretrain.evaluate.model import Model
from domain_pretrain.evaluate.probe import register
from domain_pretrain.evaluate.rows import ask, text_row
from domain_pretrain.records.score import Score
from domain_pretrain.rules.options import NonEmpty


class Sentence(Item):
    """A text, alone or as ``{"text": …}``, as corpora have it."""

    text: NonEmpty

    @model_validator(mode="before")
    @classmethod
    def _take_text(cls, given: Any) -> Any:
        return {"text": given} if isinstance(given, str) else given


class SentenceOptions(ItemOptions[Sentence]):
    """Options of ``sentence``."""

    item = Sentence


@register("sentence", SentenceOptions)
def sentence(model: Model, options: SentenceOptions) -> list[Score]:
    """Two scores of every domain, with a part for each sentence; lower is better.

    ``sentence_loss``: ``−Σ log p`` over tokens, nats; e to its mean is the perplexity.
    ``sentence_bits_per_byte``: ``−Σ log₂ p`` over UTF-8 bytes, whatever a tokenizer makes of them.

    Raises:
        ConfigError: a sentence has no tokens, or does not fit the model's context.
    """
    asked = ask(model, (text_row(model, item.text) for item in options.every))

    def measure(item: Sentence) -> dict[str, tuple[float, int]]:
        row, value = next(asked)
        return {
            "sentence_loss": (-value, len(row.tokens) - row.first),
            "sentence_bits_per_byte": (-value / math.log(2), len(item.text.encode())),
        }

    return score_items(options, measure, ("sentence_loss", "sentence_bits_per_byte"))
