"""Probes of sentences and pairs, the items that they ask about, and suites of them."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate import LogitsModel, Row, Score, run_probes
from domain_pretrain.evaluate.choice import Question
from domain_pretrain.evaluate.items import Item
from domain_pretrain.evaluate.probe import build_probes, check_probes
from domain_pretrain.evaluate.rows import ROWS, ask, text_rows
from domain_pretrain.evaluate.suite import BUILT_IN, SuiteOptions


def bigrams() -> torch.Tensor:
    return torch.randn(256, 256, generator=torch.Generator().manual_seed(3)) * 2


def model(encode: Any = lambda text: list(text.encode()), context: int = 400) -> LogitsModel:
    """Over bytes; what follows depends on the last one alone."""
    table = bigrams()
    return LogitsModel(
        lambda ids: table[ids],
        encode,
        lambda ids: bytes(ids).decode("utf-8", "replace"),
        context=context,
        end=0,
    )


def expected(text: str, behind: str = "\0") -> float:
    """log p of a text, in float64, by hand."""
    table = bigrams().double()
    tokens = list((behind + text).encode())
    pairs = list(itertools.pairwise(tokens))[len(behind.encode()) - 1 :]
    return math.fsum(
        float(table[a, b]) - math.log(math.fsum(map(math.exp, table[a].tolist()))) for a, b in pairs
    )


def by_name(section: Any) -> dict[tuple[str, str], Score]:
    return {(score.name, score.domain): score for score in run_probes(section, model())}


# --- sentences and pairs -------------------------------------------------------------------------


def test_sentences() -> None:
    texts = ["prices rise", "物价上涨"]
    found = by_name({"sentence": {"items": {"finance": texts, "other": [{"text": "a"}]}}})
    nats = -math.fsum(map(expected, texts))
    loss = found["sentence_loss", "finance"]
    bits = found["sentence_bits_per_byte", "finance"]
    # fp32 against float64.
    assert loss.mean == pytest.approx(nats / (11 + 12), rel=1e-5)
    assert bits.mean == pytest.approx(nats / math.log(2) / (11 + 12), rel=1e-5)
    assert [part.count for part in loss.parts] == [11, 12]
    assert not loss.higher_is_better and not bits.higher_is_better
    assert found["sentence_loss", "other"].count == 1


def test_bits_are_of_bytes_whatever_a_tokenizer_makes_of_them() -> None:
    def halved(text: str) -> list[int]:
        return list(text.encode())[::2]

    scores = run_probes({"sentence": {"items": {"a": ["物价上涨"]}}}, model(halved))
    assert [score.count for score in scores] == [6, 12]


def test_pairs_are_compared_per_byte_and_by_a_margin() -> None:
    pairs = [
        {"prompt": "bonds", "right": " fall", "wrong": " rise or so"},
        {"right": "it is", "wrong": "it are"},
        {"right": "it are", "wrong": "it is"},
    ]
    margins = [
        expected(" fall", "bonds") / 5 - expected(" rise or so", "bonds") / 11,
        expected("it is") / 5 - expected("it are") / 6,
        expected("it are") / 6 - expected("it is") / 5,
    ]
    assert min(map(abs, margins)) > 0.01, "or fp32 decides"
    for margin in (0.0, max(margins) - 0.001, max(margins) + 0.001):
        found = by_name({"contrast": {"items": {"a": pairs}, "margin": margin}})
        assert found["contrast", "a"].sum == sum(one > margin for one in margins)
        # fp32 against float64: texts of up to 60 nats, to 2^-20 of each.
        values = [part.sum for part in found["contrast_margin", "a"].parts]
        assert values == pytest.approx(margins, abs=1e-4)
        assert found["contrast", "a"].higher_is_better


def test_what_is_as_likely_is_not_likelier() -> None:
    flat = LogitsModel(
        lambda ids: torch.zeros(*ids.shape, 128),
        lambda text: list(text.encode()),
        lambda ids: "",
        context=32,
        end=0,
    )
    won, margin = run_probes({"contrast": {"items": {"a": [{"right": "b", "wrong": "c"}]}}}, flat)
    assert (won.mean, margin.mean) == (0, 0)


def test_texts_after_one_prompt_are_asked_about_from_one_position_on() -> None:
    """``: a`` is a token of its own where a tokenizer joins it, and ``: b`` is not."""

    def joins(text: str) -> list[int]:
        return list(text.replace(": a", "\x7f").encode())

    assert text_rows(model(joins), [" a", " b"], "x:") == [
        Row(list(b"x\x7f"), first=1),
        Row(list(b"x: b"), first=1),  # with ":", which the other's token holds
    ]
    # Without anything before that they share, all stand behind the end of a document.
    assert text_rows(model(joins), [" a", " b"], ":") == [
        Row([0, 0x7F], first=1),
        Row([0, *b": b"], first=1),
    ]


def test_a_model_is_asked_about_many_rows_at_once() -> None:
    calls = []

    class Counting(LogitsModel):
        def log_likelihoods(self, rows: Any) -> list[float]:
            calls.append(len(rows))
            return [float(row.tokens[1]) for row in rows]

    counting = Counting(lambda ids: ids, lambda text: [], lambda ids: "", context=8, end=0)
    rows = [Row([0, number]) for number in range(ROWS + 3)]
    assert list(ask(counting, iter(rows))) == [(row, float(row.tokens[1])) for row in rows]
    assert calls == [ROWS, 3]


def test_what_is_too_long_is_told_by_its_words() -> None:
    texts = ["a" * 16, "too long, this one"]
    with pytest.raises(ConfigError, match=r"of 19 tokens .* takes 17: '\\x00too long, this one' …"):
        run_probes({"sentence": {"items": {"a": texts}}}, model(context=16))


# --- items ---------------------------------------------------------------------------------------


def test_items_of_files_are_those_of_the_config(tmp_path: Path) -> None:
    items = [{"prompt": "债券", "completion": "下跌"}, {"prompt": "bonds", "completion": " fall"}]
    lines = [json.dumps(items[0], ensure_ascii=False), "", json.dumps(items[1])]
    path = tmp_path / "finance.jsonl"
    path.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    inline = run_probes({"completion": {"items": {"finance": items}}}, model())
    assert run_probes({"completion": {"items": {"finance": str(path)}}}, model()) == inline
    # A line may be a bare text, where that is an item.
    path.write_text('"bonds fall"\n{"text": "and rise"}\n', encoding="utf-8")
    loss, _ = run_probes({"sentence": {"items": {"finance": str(path)}}}, model())
    assert loss.count == 18


def test_files_are_read_once_and_before_a_model_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "bonds", "completion": " fall"}\n', encoding="utf-8")
    probes = build_probes({"completion": {"items": {"a": str(path)}}})
    check_probes(probes)
    path.unlink()
    assert len(probes[0].rule(model(), probes[0].options)) == 2
    with pytest.raises(ConfigError, match="cannot be read"):
        check_probes(build_probes({"completion": {"items": {"a": str(path)}}}))


GOOD = '{"prompt": "x", "completion": "y"}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", r" holds no items: write one a line, as JSON"),
        (f"{GOOD}\n\n{{", r"line 3, line 1, column 2, is not JSON"),
        (f"{GOOD}\n[]", r"line 2: top level: "),
        (
            f'{GOOD}\n{{"prompt": "x", "completoin": "y"}}',
            r"line 2: .*completoin: unknown key; did you mean 'completion'",
        ),
        (f'{GOOD}\n{{"prompt": "x", "completion": ""}}', r"line 2: completion: String should have"),
        (f'{{"prompt": "x", "completion": 1}}\n{GOOD}', r"line 1: completion: .*\(given: 1\)"),
        (f"{GOOD}\n{{}}\n", r"line 2: prompt: Field required"),
        (f"{GOOD}\n{GOOD}", r"line 2: the same as probes\.completion\.items\.maths: .*, line 1 "),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "maths.jsonl"
    path.write_text(lines, encoding="utf-8")
    where = r"(?s)^probes\.completion\.items\.maths: '.*maths\.jsonl'.*"
    with pytest.raises(ConfigError, match=where + message):
        check_probes(build_probes({"completion": {"items": {"maths": str(path)}}}))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"completion": {"items": {}}}, r"probes\.completion\.items: Dictionary should have at le"),
        ({"completion": {"items": {"a": "no.jsonl"}}}, r"items\.a: 'no\.jsonl' cannot be read: No"),
        ({"sentence": {"items": {"a": ["x", 3]}}}, r"probes\.sentence\.items\.a\.1: "),
        (
            {"sentence": {"items": {"a": ["x", "y", {"text": "x"}]}}},
            r"probes\.sentence\.items\.a\.2: the same as probes\.sentence\.items\.a\.0 \('x #",
        ),
        (
            {"contrast": {"items": {"a": [{"right": "x", "wrong": "x"}]}}},
            r"probes\.contrast\.items\.a\.0: right and wrong are the same",
        ),
        (
            {"contrast": {"items": {"a": [{"right": "x", "wrong": "y"}]}, "margin": -1}},
            r"probes\.contrast\.margin: Input should be greater than or equal to 0",
        ),
    ],
)
def test_a_bad_item_is_named(section: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_probes(build_probes(section))


def test_the_name_of_an_item_is_its_own() -> None:
    """Whatever stands before it, and however long it is: parts are paired by their names."""

    class Long(Item):
        text: str
        more: str = ""

    one, other = Long(text="a" * 100), Long(text="a" * 100, more="x")
    assert one.name != other.name
    assert one.name == Long(text="a" * 100).name
    assert len(one.name) < 70
    first, again = (
        run_probes({"sentence": {"items": {"d": texts}}}, model())[0]
        for texts in (["b", "c"], ["a", "b", "c"])
    )
    assert first.parts == again.parts[1:]


# --- suites --------------------------------------------------------------------------------------


def test_the_built_in_suite_runs() -> None:
    found = by_name({"suite": {"files": ["basics"]}})
    topics = {"general", "maths", "finance", "code"}
    domains = {f"{topic}-{language}" for topic in topics for language in ("en", "zh")}
    assert {domain for _, domain in found} == domains
    names = {name for name, _ in found}
    assert {"basics.completion", "basics.contrast", "basics.choice_shuffled"} <= names
    assert len(found) == len(names) * len(domains)


def test_no_letter_is_right_more_often_than_another_in_the_built_in_suite() -> None:
    (choice,) = [
        probe for probe in SuiteOptions(files=["basics"]).suites["basics"] if probe.name == "choice"
    ]
    for domain, questions in choice.options.by_domain.items():  # type: ignore[attr-defined]
        assert all(isinstance(question, Question) for question in questions)
        assert sorted(question.answer for question in questions) == [0, 1, 2, 3], domain


def test_a_suite_of_ones_own_keeps_its_names_apart(tmp_path: Path) -> None:
    items = "{sentence: {items: {finance: [bonds fall]}}}"
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(items, encoding="utf-8")
    files = [str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")]
    scores = run_probes(
        {"sentence": {"items": {"finance": ["bonds fall"]}}, "suite": {"files": files}}, model()
    )
    assert [score.name for score in scores] == [
        f"{suite}sentence_{score}"
        for suite in ("", "one.", "two.")
        for score in ("loss", "bits_per_byte")
    ]
    assert len({score.mean for score in scores[::2]}) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"there is no suite '.*mine\.yaml'.*\(built in: basics\), and no such file"),
        ("", r"suite '.*mine\.yaml' must be a mapping from names of probes"),
        ("completion: [a]", r"suite '.*mine\.yaml' must be a mapping from names of probes"),
        ("suite: {files: [basics]}", r"names suites itself"),
        ("sentences: {}", r"suite '.*mine\.yaml': probes: unknown probe 'sentences'; did you"),
        (
            "sentence: {items: {a: no.jsonl}}",
            r"suite '.*mine\.yaml': probes\.sentence\.items\.a: 'no\.jsonl' cannot be read",
        ),
    ],
)
def test_a_bad_suite_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    probes = build_probes({"suite": {"files": str(path)}})
    with pytest.raises(ConfigError, match=message):
        check_probes(probes)


def test_suites_have_names_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "basics.yaml"
    path.write_bytes(BUILT_IN["basics"].read_bytes())
    with pytest.raises(ConfigError, match="two suites have the same name"):
        check_probes(build_probes({"suite": {"files": ["basics", str(path)]}}))
    with pytest.raises(ConfigError, match=r"no suite 'basic'; did you mean 'basics'"):
        check_probes(build_probes({"suite": {"files": ["basic"]}}))
