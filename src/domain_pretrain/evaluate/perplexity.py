"""``perplexity``: how well a model predicts held-out text, per token and per byte."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt, model_validator
from typing_extensions import Self

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate.model import Model, Row
from domain_pretrain.evaluate.probe import ProbeOptions, register
from domain_pretrain.evaluate.texts import Text, held_out_of, read_texts
from domain_pretrain.evaluate.windows import rolling_windows
from domain_pretrain.records.score import Part, Score

ROWS = 1024
"""Asked about at once: enough for every data-parallel rank, and little memory."""


def _as_list(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


Name = Annotated[str, Field(min_length=1)]


class PerplexityOptions(ProbeOptions):
    """Options of ``perplexity``.

    Attributes:
        texts: by domain, files, folders, patterns or data prefixes.
        holdout: a folder of ``prepare --by --holdout``: what it has cut off of every domain.
        documents: of every domain; all that it has, where it has fewer.
        text_key: the field of the text in JSON and in tables.
        tokenizer: that has made the prefixes; None: their manifests say it.
        window: tokens that a prediction looks back on at most; None: the model's context.
        stride: tokens that each window after the first adds; None: half of ``window``.
        rolling: whether a document longer than the window is read in several; else it is an error.
    """

    texts: dict[str, Annotated[list[Name], Field(min_length=1), BeforeValidator(_as_list)]] = Field(
        default_factory=dict
    )
    holdout: Name | None = None
    documents: PositiveInt = 200
    text_key: Name = "text"
    tokenizer: Name | None = None
    window: PositiveInt | None = None
    stride: PositiveInt | None = None
    rolling: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.texts and self.holdout is None:
            raise ValueError("no texts: give texts by domain, or the folder of a holdout")
        if self.stride is not None and not self.rolling:
            raise ValueError("stride has no effect with rolling: false; take one of them out")
        if self.stride and self.window and self.stride > self.window:
            raise ValueError(
                f"stride {self.stride} is more than window {self.window}: tokens between two "
                "windows would be left out"
            )
        return self

    @cached_property
    def held_out(self) -> Mapping[str, Sequence[Text]]:
        """The texts of every domain, read once: every evaluation of a run asks about the same."""
        found = {}
        for domain, places in self._places().items():
            try:
                texts = read_texts(places, self.documents, self.text_key, self.tokenizer)
            except (ConfigError, OSError) as error:
                raise ConfigError(f"perplexity: texts of {domain!r}: {error}") from error
            if not texts:
                raise _nothing(domain, f"no text in {', '.join(places)}")
            found[domain] = texts
        return found

    def _places(self) -> Mapping[str, list[str]]:
        if self.holdout is None:
            return self.texts
        try:
            places = held_out_of(self.holdout)
        except ConfigError as error:
            raise ConfigError(f"perplexity: holdout: {error}") from error
        if both := sorted(places.keys() & self.texts.keys()):
            raise ConfigError(
                f"perplexity: the domain {both[0]!r} is among texts and in {self.holdout}: call it "
                "something else in texts, or leave it out there"
            )
        return {**places, **self.texts}

    def check(self) -> None:
        """Read all texts.

        Raises:
            ConfigError: they cannot be, or a domain has none.
        """
        _ = self.held_out


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
    for batch in _batches(rows):
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
                raise _nothing(domain, "the model's tokenizer makes no token of any of its texts")
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


def _nothing(domain: str, why: str) -> ConfigError:
    return ConfigError(f"perplexity: texts of {domain!r}: {why}; give it some, or leave it out")


def _batches(rows: Iterator[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    while batch := list(islice(rows, ROWS)):
        yield batch
