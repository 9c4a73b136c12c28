"""Greedy continuations: where they end, and what text they are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate import LogitsModel, Row
from domain_pretrain.evaluate.generate import cut_at, generate, text_behind, whole_characters

END = 0


def counting(context: int = 64) -> LogitsModel:
    """Of bytes: behind ``a`` comes ``b``, and behind ``z`` the end of the document."""

    def logits(ids: torch.Tensor) -> torch.Tensor:
        following = torch.where(ids == ord("z"), END, ids + 1)
        return torch.nn.functional.one_hot(following, 256).float()

    return LogitsModel(
        logits,
        lambda text: list(text.encode()),
        lambda ids: bytes(ids).decode(errors="replace"),
        context=context,
        end=END,
    )


def written(model: LogitsModel, prompts: Sequence[str], count: int, *stops: str) -> list[str]:
    found = generate(model, [model.encode(prompt) for prompt in prompts], count, stops)
    return [model.decode(tokens) for tokens in found]


def test_a_continuation_ends_with_the_document_or_when_there_is_enough() -> None:
    assert written(counting(), ["a", "ax", "z"], 4) == ["bcde", "yz", ""]


def test_a_stop_ends_a_continuation_once_it_is_in_its_own_text() -> None:
    model = counting()
    # The prompt's own "b" is none; the stop stays, and is cut off by who asked for it.
    assert written(model, ["b", "f"], 9, "ef", "i") == ["cdef", "ghi"]
    assert cut_at("cdef", ["ef", "i"]) == "cd"
    assert cut_at("abcabc", ["c", "b"]) == "a"


def test_what_has_ended_is_not_asked_about_again() -> None:
    asked = []

    class Spied(LogitsModel):
        def predict(self, rows: Sequence[Row]) -> list[list[int]]:
            asked.append(len(rows))
            return super().predict(rows)

    model = Spied(counting()._logits, counting().encode, counting().decode, context=64, end=END)
    written(model, ["a", "y", "x"], 50)
    assert asked == [3] * 2 + [2] + [1] * 23
    asked.clear()
    assert generate(model, [], 5) == []
    assert not sum(asked)


def test_a_continuation_fills_the_context_to_the_last_token() -> None:
    assert written(counting(context=6), ["abc"], 4) == ["defg"]  # the last is not looked at
    with pytest.raises(ConfigError, match="a text of 7 tokens does not fit"):
        written(counting(context=6), ["abc"], 5)


def test_half_a_character_is_no_text() -> None:
    model = counting()
    tokens = model.encode("价格")
    assert text_behind(model, tokens[:3], tokens[3:]) == "格"
    assert text_behind(model, tokens[:3], tokens[3:5]) == ""
    assert text_behind(model, model.encode("a"), model.encode("b�")[:-1]) == "b"
    assert [whole_characters(model, tokens, count) for count in (0, 2, 3, 5, 6)] == [0, 0, 3, 3, 6]


def test_a_space_that_a_tokenizer_drops_at_the_beginning_is_kept() -> None:
    words = ["a", " b", " c"]
    model = LogitsModel(
        lambda ids: torch.zeros(1, ids.shape[1], 3),
        lambda text: [0],
        lambda ids: "".join(words[token] for token in ids).lstrip(),
        context=8,
        end=END,
    )
    assert model.decode([1, 2]) == "b c"
    assert text_behind(model, [0], [1, 2]) == " b c"
