"""Multiple choice: what a model knows, and what it only seems to know, in every way of asking."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate import LogitsModel, Row, Score, run_probes
from domain_pretrain.evaluate.choice import LABELS, VARIANTS, WAYS, Question, orders
from domain_pretrain.evaluate.probe import build_probes

ENGLISH = Question(question="What is 1 + 1?", options=["1", "2", "3", "4"], answer="B")
CHINESE = Question(question="中国的首都是哪里？", options=["上海", "北京", "广州"], answer=1)


def encode(text: str) -> list[int]:
    return list(text.encode())


def decode(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode("utf-8", "replace")


def made_up(count: int, options: int, seed: int = 0) -> list[Question]:
    """Questions whose right option is the one that says so."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        answer = draw.randrange(options)
        texts = [f"wrong {one}" if one != answer else "right" for one in range(options)]
        found.append(Question(question=f"Question {number}?", options=texts, answer=answer))
    return found


def ask(model: Any, questions: list[Question], **options: Any) -> dict[str, Score]:
    items = [question.model_dump() for question in questions]
    scores = run_probes({"choice": {"items": {"a": items}, **options}}, model)
    return {score.name: score for score in scores}


def always_a() -> LogitsModel:
    """Of all bytes, ``A`` is the likeliest, whatever stands before it."""
    logits = torch.zeros(256)
    logits[ord("A")] = 5.0
    return LogitsModel(
        lambda ids: logits.expand(*ids.shape, 256), encode, decode, context=400, end=0
    )


class Judge:
    """A model of (what was asked, what is answered) → log-probability."""

    context, end = 10_000, 0

    def __init__(self, judge: Callable[[str, str], float]) -> None:
        self._judge = judge

    def encode(self, text: str) -> list[int]:
        return encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return decode(tokens)

    def log_likelihoods(self, rows: Sequence[Row]) -> list[float]:
        return [
            self._judge(decode(row.tokens[: row.first]), decode(row.tokens[row.first :]))
            for row in rows
        ]

    def predict(self, rows: Sequence[Row]) -> list[list[int]]:
        raise NotImplementedError


def knows(prompt: str, answer: str) -> float:
    """Which option of :func:`made_up` is right, or that none is."""
    labels = dict(re.findall(r"^(\S)\. (.*)$", prompt, re.MULTILINE))
    text = labels.get(answer.strip(), answer.strip())
    is_right = text == "right" or text == "All other options are wrong"
    return -0.1 * len(answer) if is_right else -9.0 * len(answer)


# --- the two ends --------------------------------------------------------------------------------


def test_a_model_that_always_answers_a_is_at_chance() -> None:
    questions = made_up(41, 4)
    found = ask(always_a(), questions)
    shuffled = found["choice_shuffled"]
    assert shuffled.error is not None
    assert abs(shuffled.mean - 0.25) <= 2 * shuffled.error + 1e-12
    assert shuffled.count == 41 * 24
    # Each is right in one order and wrong in another: nothing of it is known.
    assert found["choice_spread"].mean == 1
    # One order says how often A is right, no more.
    as_a = sum(question.answer == 0 for question in questions) / 41
    assert found["choice_plain"].mean == found["choice_replaced"].mean == as_a != 0.25


@pytest.mark.parametrize(("options", "most"), [(3, 24), (5, 24), (5, 7), (10, 24), (4, 10)])
def test_it_is_where_not_all_orders_are_asked_either(options: int, most: int) -> None:
    shuffled = ask(always_a(), made_up(60, options), variants=["shuffled"], permutations=most)[
        "choice_shuffled"
    ]
    assert shuffled.error is not None
    assert abs(shuffled.mean - 1 / options) <= 2 * shuffled.error + 1e-12
    # However few they are, to one order of each question.
    assert shuffled.mean == pytest.approx(1 / options, abs=1 / min(most, 24))


def test_a_model_that_mostly_answers_a_is_at_chance() -> None:
    """Chance also decides which answer it takes, in every order anew; the error says how much."""
    off = []
    for seed in range(20):

        def judge(prompt: str, answer: str, seed: int = seed) -> float:
            draw = random.Random(f"{seed}{prompt}{answer}")
            return draw.gauss(-1.0 if answer == " A" else -2.0, 0.5)

        found = ask(Judge(judge), made_up(30, 4, seed), variants=["shuffled"])
        shuffled = found["choice_shuffled"]
        assert shuffled.error is not None
        off.append((shuffled.mean - 0.25) / shuffled.error)
    # 20 draws of a standard normal: one is expected beyond 2; their mean is 0 to 0.22.
    assert sum(abs(one) > 2 for one in off) <= 4
    assert abs(sum(off) / 20) < 0.7


def test_a_model_that_knows_is_right_in_every_way() -> None:
    found = ask(Judge(knows), made_up(6, 4) + made_up(6, 5, seed=1))
    assert {name: score.mean for name, score in found.items()} == {
        **{f"choice_{variant}": 1.0 for variant in VARIANTS},
        "choice_spread": 0.0,
    }
    higher = {name: score.higher_is_better for name, score in found.items()}
    assert [name for name, better in higher.items() if not better] == ["choice_spread"]


# --- between them --------------------------------------------------------------------------------


def test_the_spread_is_of_questions_that_an_order_decides() -> None:
    """Half of the questions it knows; of the others, it takes the last option."""
    questions = made_up(10, 4)

    def half(prompt: str, answer: str) -> float:
        if int(re.findall(r"Question (\d+)\?", prompt)[0]) % 2:
            return knows(prompt, answer)
        return -0.1 if answer.strip() == "D" else -9.0

    found = ask(Judge(half), questions)
    assert found["choice_shuffled"].mean == pytest.approx((1 + 0.25) / 2)
    assert found["choice_spread"].mean == 0.5
    # The error is that of ten questions, not of 240 answers.
    values = [1.0, 0.25] * 5
    spread = math.sqrt(sum((value - 0.625) ** 2 for value in values) / 9 / 10)
    assert found["choice_shuffled"].error == pytest.approx(spread)


def test_a_model_that_tells_no_answers_apart_is_at_chance_in_every_order() -> None:
    found = ask(Judge(lambda prompt, answer: -1.0), made_up(5, 4), variants=["plain", "shuffled"])
    assert [found[f"choice_{one}"].mean for one in ("plain", "shuffled")] == [0.25, 0.25]
    assert found["choice_spread"].mean == 0


def test_a_model_that_went_wrong_is_not_right() -> None:
    found = ask(Judge(lambda prompt, answer: math.nan), made_up(3, 4))
    assert all(score.mean == 0 for score in found.values())


def test_only_what_is_asked_for_is_asked() -> None:
    found = ask(always_a(), made_up(2, 3), variants=["text", "plain"])
    assert list(found) == ["choice_text", "choice_plain"]


# --- how a question is put -----------------------------------------------------------------------


def sheets(question: Question) -> dict[str, Any]:
    return {variant: WAYS[variant](question, 24)[0] for variant in VARIANTS}


def test_a_question_in_english() -> None:
    put = sheets(ENGLISH)
    assert put["plain"].prompt == "Question: What is 1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    assert (put["plain"].answers, put["plain"].right) == ([" A", " B", " C", " D"], 1)
    assert "\n1. 1\n2. 2\n3. 3\n4. 4\nAnswer:" in put["renamed"].prompt
    assert put["renamed"].answers == [" 1", " 2", " 3", " 4"]
    assert "\nB. All other options are wrong\n" in put["replaced"].prompt
    assert "\nB. 2\n" not in put["replaced"].prompt and put["replaced"].right == 1
    assert put["text"].prompt == "Question: What is 1 + 1?\nAnswer:"
    assert (put["text"].answers, put["text"].right) == ([" 1", " 2", " 3", " 4"], 1)


def test_a_question_in_chinese() -> None:
    put = sheets(CHINESE)
    assert put["plain"].prompt == "问题：中国的首都是哪里？\nA. 上海\nB. 北京\nC. 广州\n答案："
    assert put["plain"].answers == ["A", "B", "C"]
    assert put["renamed"].answers == ["甲", "乙", "丙"]
    assert "\nB. 其他选项都不对\n" in put["replaced"].prompt
    assert (put["text"].answers, put["text"].sizes) == (["上海", "北京", "广州"], [6, 6, 6])


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("What does the word 银行 mean?", "Question: "),
        ("在Python中，len([1, 2])的值是多少？", "问题："),
        ("1 + 1 = ?", "Question: "),
        ("Quel est le capital de 三菱 ?", "Question: "),
    ],
)
def test_a_question_is_put_in_its_language(question: str, language: str) -> None:
    one = Question(question=question, options=["a", "b"], answer=0)
    assert one.frame.question == language


def test_the_text_of_an_option_is_scored_per_byte() -> None:
    """By the sum, a long option would lose to a short one that is worse."""
    question = Question(question="Q?", options=["a long right answer", "no"], answer=0)

    def judge(prompt: str, answer: str) -> float:
        return -(0.5 if "right" in answer else 1.0) * len(answer)

    assert ask(Judge(judge), [question], variants=["text"])["choice_text"].mean == 1


# --- orders --------------------------------------------------------------------------------------


def test_up_to_four_options_are_put_in_all_orders() -> None:
    for count, expected in ((2, 2), (3, 6), (4, 24)):
        (question,) = made_up(1, count)
        assert len(set(orders(question, 24))) == len(orders(question, 24)) == expected


@pytest.mark.parametrize(("count", "most"), [(5, 24), (4, 23), (10, 120), (5, 119), (3, 2)])
def test_orders_that_are_drawn(count: int, most: int) -> None:
    one, other = made_up(2, count)
    found = orders(one, most)
    assert found == orders(one, most), "the same at every evaluation"
    assert len(set(found)) == most
    assert all(sorted(order) == list(range(count)) for order in found)
    at = Counter(order.index(one.answer) for order in found)
    assert max(at.values()) - min(at[place] for place in range(count)) <= 1
    if count > 4:
        assert found != orders(other, most)


def test_the_right_answer_moves_with_the_order() -> None:
    (question,) = made_up(1, 4)
    for sheet in WAYS["shuffled"](question, 24):
        label = LABELS[sheet.right]
        assert f"\n{label}. right\n" in sheet.prompt


# --- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["C", 2])
def test_an_answer_is_a_letter_or_a_number(answer: Any) -> None:
    assert Question(question="x", options=["1", "2", "3"], answer=answer).answer == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"answer": "D"}, r"items\.a\.0: answer 3 \(that is D\) of 3 options: numbers begin with"),
        ({"answer": 3}, r"answer 3 \(that is D\) of 3 options"),
        ({"answer": "1"}, r"items\.a\.0\.answer: neither a number from 0 on nor a letter from A o"),
        ({"answer": "AB"}, r"items\.a\.0\.answer: neither a number"),
        ({"answer": True}, r"items\.a\.0\.answer: Input should be a valid integer"),
        ({"answer": -1}, r"items\.a\.0\.answer: Input should be greater than or equal to 0"),
        ({"options": ["x"]}, r"items\.a\.0\.options: List should have at least 2"),
        ({"options": ["x", "y", "x"]}, r"items\.a\.0: two options are the same"),
        ({"choices": ["x", "y"]}, r"items\.a\.0\.choices: unknown key"),
    ],
)
def test_a_bad_question_is_named(changed: Any, message: str) -> None:
    item = {"question": "q", "options": ["x", "y", "z"], "answer": "A", **changed}
    with pytest.raises(
        ConfigError, match=rf"probes\.choice\.{message}" if "items" in message else message
    ):
        build_probes({"choice": {"items": {"a": [item]}}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ["plane"]}, r"probes\.choice\.variants\.0: .*'plain'"),
        ({"variants": []}, r"probes\.choice\.variants: Tuple should have at least 1"),
        ({"permutations": 1}, r"probes\.choice\.permutations: .*greater than or equal to 2"),
        ({"permutations": 121}, r"probes\.choice\.permutations: .*less than or equal to 120"),
    ],
)
def test_a_bad_option_is_named(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_probes({"choice": {"items": {"a": [ENGLISH.model_dump()]}, **options}})
