"""``perplexity``: how well a model predicts held-out text, per token and per byte."""

from __future__ import annotations

import math
from itertools import islice
from typing import ClassVar

from pydantic import PositiveInt, model_validator
from typing_extensions import Self

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate.held_out import HeldOutOptions
from domain_pretrain.evaluate.model import Model
from domain_pretrain.evaluate.probe import register
from domain_pretrain.evaluate.rows import batches
from domain_pretrain.evaluate.texts import Text
from domain_pretrain.evaluate.windows import rolling_windows
from domain_pretrain.records.score import Part, Score


class PerplexityOptions(HeldOutOptions):
    """Options of ``perplexity``; ``texts`` and so on are those of :class:`HeldOutOptions`.

    Attributes:
        window: tokens that a prediction looks back on at most; None: the model's context.
        stride: tokens that each window after the first adds; None: half of ``window``.
        rolling: whether a document longer than the window is read in several; else it is an error.
    """

    probe: ClassVar[str] = "perplexity"

    window: PositiveInt | None = None
    stride: PositiveInt | None = None
    rolling: bool = True

    @model_validator(mode="after")
    def _check_windows(self) -> Self:
        if self.stride is not None and not self.rolling:
            raise ValueError("stride has no effect with rolling: false; take one of them out")
        if self.stride and self.window and self.stride > self.window:
            raise ValueError(
                f"stride {self.stride} is more than window {self.window}: tokens between two "
                "windows would be left out"
            )
        return self


@register("perplexity", PerplexityOptions)
def perplexity(model: Model, options: PerplexityOptions) -> list[Score]:
    """Two scores of every domain, with a part for each document; lower is better.

    ``loss``: ``−Σ log p`` over tokens, nats; e to its mean is the perplexity. ``bits_per_byte``:
    ``−Σ log₂ p`` over the UTF-8 bytes of the texts, whatever a tokenizer makes of them.

    Raises:
        ConfigError: a window or stride that the model cannot serve; without rolling windows, a
            document longer than one, before the model is asked anything; a domain without tokens.
    """
    window, stride = _window(model, options)
    texts = [text for found in options.held_out.values() for text in found]
    if not options.rolling:
        for text in texts:
            _refuse_longer(text, len(model.encode(text.content)), window)
    rows = (
        (number, row)
        for number, text in enumerate(texts)
        for row in rolling_windows(
            model.encode(text.content), model.end, window=window, stride=stride
        )
    )
    nats, tokens = [0.0] * len(texts), [0] * len(texts)
    for batch in batches(rows):
        asked = [row for _, row in batch]
        for (number, row), value in zip(batch, model.log_likelihoods(asked), strict=True):
            nats[number] -= value
            tokens[number] += len(row.tokens) - row.first
    scores = []
    measured = zip(texts, nats, tokens, strict=True)
    for domain, found in options.held_out.items():
        # A text of no tokens has no probability.
        own = [one for one in islice(measured, len(found)) if one[2]]
        for name, parts in (
            ("loss", [Part(text.name, total, count) for text, total, count in own]),
            ("bits_per_byte", [Part(text.name, n / math.log(2), text.size) for text, n, _ in own]),
        ):
            score = Score.of(name, domain, parts, higher_is_better=False)
            if score is None:
                raise options.nothing(
                    domain, "the model's tokenizer makes no token of any of its texts"
                )
            scores.append(score)
    return scores


def _window(model: Model, options: PerplexityOptions) -> tuple[int, int]:
    window = options.window or model.context
    stride = options.stride or (window + 1) // 2
    if window > model.context:
        raise ConfigError(
            f"perplexity: window {window:,}: the model's context is {model.context:,} tokens"
        )
    if stride > window:
        raise ConfigError(
            f"perplexity: stride {stride:,} is more than the model's context of {window:,} tokens"
        )
    return window, stride


def _refuse_longer(text: Text, tokens: int, window: int) -> None:
    if tokens > window:
        raise ConfigError(
            f"perplexity: {text.name} has {tokens:,} tokens, more than the window of {window:,}: "
            "take out rolling: false, and it is read in several; or leave the document out"
        )
