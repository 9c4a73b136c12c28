"""``contrast``: whether a model finds the right one of two texts likelier."""

from __future__ import annotations

from pydantic import model_validator
from typing_extensions import Self

from domain_pretrain.evaluate.items import Item, ItemOptions, score_items
from domain_pretrain.evaluate.model import Model
from domain_pretrain.evaluate.probe import register
from domain_pretrain.evaluate.rows import ask, text_rows
from domain_pretrain.records.score import Score
from domain_pretrain.rules.options import NonEmpty, NonNegative


class Pair(Item):
    """A right text and a wrong one, behind the same prompt or none."""

    right: NonEmpty
    wrong: NonEmpty
    prompt: str = ""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.right == self.wrong:
            raise ValueError("right and wrong are the same")
        return self


class ContrastOptions(ItemOptions[Pair]):
    """Options of ``contrast``.

    Attributes:
        margin: nats per byte by which the right text has to be likelier.
    """

    item = Pair
    margin: NonNegative = 0.0


@register("contrast", ContrastOptions)
def contrast(model: Model, options: ContrastOptions) -> list[Score]:
    """Two scores of every domain, with a part for each pair; higher is better.

    ``contrast``: the pairs whose right text is likelier by more than the margin, ``log p`` per
    UTF-8 byte. ``contrast_margin``: by how much it is, nats per byte.

    Raises:
        ConfigError: a text has no tokens, or does not fit the model's context.
    """
    asked = ask(
        model,
        (
            row
            for item in options.every
            for row in text_rows(model, [item.right, item.wrong], item.prompt)
        ),
    )

    def measure(item: Pair) -> dict[str, tuple[float, int]]:
        right, wrong = (next(asked)[1] / len(text.encode()) for text in (item.right, item.wrong))
        won = right - wrong > options.margin
        return {"contrast": (float(won), 1), "contrast_margin": (right - wrong, 1)}

    return score_items(options, measure)
