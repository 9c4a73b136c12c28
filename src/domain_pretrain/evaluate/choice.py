"""``choice``: multiple choice, asked in several ways, since one way says little.

A small model may pick a letter rather than an answer. So each question is also put with other
labels, in every order of its options, with "all others are wrong" for the right answer, and without
labels. What a model knows, it knows in all of them.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from domain_pretrain.evaluate.items import Item, ItemOptions, score_items
from domain_pretrain.evaluate.model import Model, Row
from domain_pretrain.evaluate.probe import register
from domain_pretrain.evaluate.rows import ask, text_rows
from domain_pretrain.records.score import Score
from domain_pretrain.rules.options import NonEmpty

LABELS = "ABCDEFGHIJ"

Variant = Literal["plain", "renamed", "shuffled", "replaced", "text"]
VARIANTS: tuple[Variant, ...] = ("plain", "renamed", "shuffled", "replaced", "text")


@dataclass(frozen=True)
class Frame:
    """How a question is written down in a language."""

    question: str
    answer: str
    gap: str
    renamed: str
    none: str


ENGLISH = Frame("Question: ", "Answer:", " ", "1234567890", "All other options are wrong")
CHINESE = Frame("问题：", "答案：", "", "甲乙丙丁戊己庚辛壬癸", "其他选项都不对")


def _as_index(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    if len(given) != 1 or given not in LABELS:
        raise ValueError("neither a number from 0 on nor a letter from A on")
    return LABELS.index(given)


class Question(Item):
    """A question, what one may choose from, and which of it is right: a letter, or from 0 on."""

    question: NonEmpty
    options: Annotated[list[NonEmpty], Field(min_length=2, max_length=len(LABELS))]
    answer: Annotated[int, Field(ge=0), BeforeValidator(_as_index)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.answer >= len(self.options):
            raise ValueError(
                f"answer {self.answer} (that is {LABELS[self.answer : self.answer + 1] or 'none'}) "
                f"of {len(self.options)} options: numbers begin with 0, letters with A"
            )
        if len(set(self.options)) < len(self.options):
            raise ValueError("two options are the same")
        return self

    @property
    def frame(self) -> Frame:
        """In the question's language: Chinese where it has more Han characters than Latin words."""
        han = len(re.findall(r"[\u3400-\u9fff]", self.question))
        return CHINESE if han > len(re.findall(r"[A-Za-z]+", self.question)) else ENGLISH


class ChoiceOptions(ItemOptions[Question]):
    """Options of ``choice``.

    Attributes:
        variants: the ways in which a question is put.
        permutations: orders of the options, ``shuffled``: all, where they are no more; else drawn.
    """

    item = Question
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)] = VARIANTS
    permutations: Annotated[int, Field(ge=2, le=120)] = 24


@dataclass(frozen=True)
class Sheet:
    """A question as it is put once.

    Attributes:
        prompt: comes first.
        answers: what may follow.
        right: which of them is right.
        sizes: what the log-probability of each is divided by.
    """

    prompt: str
    answers: Sequence[str]
    right: int
    sizes: Sequence[int]


@register("choice", ChoiceOptions)
def choice(model: Model, options: ChoiceOptions) -> list[Score]:
    """``choice_<variant>`` of every domain: how often the right answer is the likeliest.

    A part is a question; under ``shuffled`` it counts every order, so that the error is that of
    draws of questions. Where several answers are the likeliest, each is picked that part of a time.
    ``choice_spread``, of ``shuffled``: the questions answered right in one order of the options and
    wrong in another; lower is better.

    Raises:
        ConfigError: a question does not fit the model's context.
    """
    asked = ask(model, _rows(model, options))

    def measure(item: Question) -> dict[str, tuple[float, int]]:
        found = {}
        for variant in options.variants:
            sheets = WAYS[variant](item, options.permutations)
            picked = [_picked(sheet, [next(asked)[1] for _ in sheet.answers]) for sheet in sheets]
            found[f"choice_{variant}"] = (math.fsum(picked), len(picked))
            if variant == "shuffled":
                found["choice_spread"] = (max(picked) - min(picked), 1)
        return found

    return score_items(options, measure, ("choice_spread",))


def _rows(model: Model, options: ChoiceOptions) -> Iterator[Row]:
    for item in options.every:
        for variant in options.variants:
            for sheet in WAYS[variant](item, options.permutations):
                yield from text_rows(model, sheet.answers, sheet.prompt)


def _picked(sheet: Sheet, values: Sequence[float]) -> float:
    """Part of a time that the right answer is picked."""
    each = [value / size for value, size in zip(values, sheet.sizes, strict=True)]
    best = max(each)
    return 1 / each.count(best) if each[sheet.right] == best else 0.0


def orders(question: Question, most: int) -> list[tuple[int, ...]]:
    """Orders of the options: all, where they are no more than ``most``; else so many of them.

    Which, the question decides: the same at every evaluation, others for every question. The right
    answer stands at every position equally often, to one.
    """
    count = len(question.options)
    if math.factorial(count) <= most:
        return list(permutations(range(count)))
    draw = random.Random(question.name)
    positions = _shuffle(draw, range(count))
    others = [number for number in range(count) if number != question.answer]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < most:
        order = _shuffle(draw, others)
        order.insert(positions[len(found) % count], question.answer)
        found[tuple(order)] = None
    return list(found)


def _shuffle(draw: random.Random, numbers: Sequence[int]) -> list[int]:
    """As every version of Python does; ``shuffle`` itself may change."""
    return sorted(numbers, key=lambda _: draw.random())


def _labelled(question: Question, options: Sequence[str], labels: str, right: int) -> Sheet:
    frame = question.frame
    lines = [f"{label}. {option}" for label, option in zip(labels, options, strict=False)]
    prompt = "\n".join([frame.question + question.question, *lines, frame.answer])
    answers = [frame.gap + label for label in labels[: len(options)]]
    return Sheet(prompt, answers, right, [1] * len(options))


def _plain(question: Question, most: int) -> list[Sheet]:
    return [_labelled(question, question.options, LABELS, question.answer)]


def _renamed(question: Question, most: int) -> list[Sheet]:
    return [_labelled(question, question.options, question.frame.renamed, question.answer)]


def _shuffled(question: Question, most: int) -> list[Sheet]:
    return [
        _labelled(
            question,
            [question.options[number] for number in order],
            LABELS,
            order.index(question.answer),
        )
        for order in orders(question, most)
    ]


def _replaced(question: Question, most: int) -> list[Sheet]:
    options = list(question.options)
    options[question.answer] = question.frame.none
    return [_labelled(question, options, LABELS, question.answer)]


def _text(question: Question, most: int) -> list[Sheet]:
    frame = question.frame
    answers = [frame.gap + option for option in question.options]
    sizes = [len(option.encode()) for option in question.options]
    prompt = f"{frame.question}{question.question}\n{frame.answer}"
    return [Sheet(prompt, answers, question.answer, sizes)]


# variant → (question, orders at most) → the sheets
WAYS: dict[Variant, Callable[[Question, int], list[Sheet]]] = {
    "plain": _plain,
    "renamed": _renamed,
    "shuffled": _shuffled,
    "replaced": _replaced,
    "text": _text,
}
