"""``completion``: how likely the right words are after a prompt."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated

from pydantic import Field

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate.model import Model
from domain_pretrain.evaluate.probe import register
from domain_pretrain.records.score import Score
from domain_pretrain.rules.options import Options
from domain_pretrain.section import Section


class Item(Section):
    """One prompt and the words that belong after it."""

    prompt: Annotated[str, Field(min_length=1)]
    completion: Annotated[str, Field(min_length=1)]


class CompletionOptions(Options):
    """Options of ``completion``.

    Attributes:
        items: by domain.
    """

    items: dict[str, Annotated[list[Item], Field(min_length=1)]]


@register("completion", CompletionOptions)
def completion(model: Model, options: CompletionOptions) -> list[Score]:
    """``Σ log p(completion | prompt)`` by domain, nats, over the completions' tokens.

    Prompt and completion are encoded apart: where a tokenizer would join them over the seam, these
    are not the tokens of the whole text; begin the completion where a token begins.

    Raises:
        ConfigError: a prompt or a completion has no tokens.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, int] = defaultdict(int)
    for domain, items in options.items.items():
        for item in items:
            prompt, answer = model.encode(item.prompt), model.encode(item.completion)
            if not prompt or not answer:
                raise ConfigError(f"probes.completion.items.{domain}: {item!r} has no tokens")
            sums[domain] += sum(model.log_probabilities(prompt + answer)[-len(answer) :])
            counts[domain] += len(answer)
    return [
        Score("completion", domain, sums[domain], counts[domain], higher_is_better=True)
        for domain in options.items
    ]
