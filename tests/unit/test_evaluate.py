"""Probes: log-probabilities against float64; what is wrong is named before one runs."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate import (
    LogitsModel,
    Part,
    ProbeOptions,
    Row,
    Score,
    register,
    run_probes,
    text_row,
)
from domain_pretrain.evaluate.fixed import choose, microbatches, steps
from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.records.score import difference

VOCABULARY = 128
ITEMS = {
    "finance": [
        {"prompt": "the bond", "completion": " yields"},
        {"prompt": "a", "completion": "b"},
    ],
    "maths": [{"prompt": "1 + 1 =", "completion": " 2"}],
}


def bigrams() -> torch.Tensor:
    return torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3


def of_table(table: torch.Tensor, encode: Any = lambda text: list(text.encode())) -> LogitsModel:
    """A bigram model over bytes: the logits of what follows depend on the token alone."""
    return LogitsModel(
        lambda ids: table[ids], encode, lambda ids: bytes(ids).decode(), context=32, end=0
    )


def model() -> LogitsModel:
    return of_table(bigrams())


def expected(text: str, count: int) -> float:
    """By hand, in float64: the last ``count`` bytes of ``text``."""
    table = bigrams().double()
    tokens = list(text.encode())
    pairs = list(itertools.pairwise(tokens))[-count:]
    return math.fsum(
        float(table[a, b]) - math.log(math.fsum(map(math.exp, table[a].tolist()))) for a, b in pairs
    )


def test_completions_by_domain() -> None:
    finance, whole, maths, _ = run_probes({"completion": {"items": ITEMS}}, model())
    assert (whole.name, whole.domain, whole.count) == ("completion_prob", "finance", 2)
    assert (finance.name, finance.domain, finance.count) == ("completion", "finance", 8)
    assert (maths.domain, maths.count, maths.higher_is_better) == ("maths", 2, True)
    # fp32 against float64: log-probabilities of up to 20 nats, to 2^-20 of each.
    assert finance.sum == pytest.approx(
        expected("the bond yields", 7) + expected("ab", 1), rel=1e-5
    )
    assert maths.mean == pytest.approx(expected("1 + 1 = 2", 2) / 2, rel=1e-5)
    values = math.exp(expected("the bond yields", 7)), math.exp(expected("ab", 1))
    assert whole.mean == pytest.approx(sum(values) / 2, rel=1e-4)


def test_a_models_logits_may_be_of_any_width() -> None:
    """The softmax of bf16 logits is that of the same logits in fp32, not one rounded to bf16."""
    table = bigrams().bfloat16()
    rows = [Row([1, 2, 3]), Row([1, 2, 3], first=2)]
    narrow, wide = (of_table(one).log_likelihoods(rows) for one in (table, table.float()))
    assert narrow == wide
    assert narrow[0] < narrow[1] < 0


def test_predictions_and_likelihoods_are_of_the_same_positions() -> None:
    table = bigrams()
    best = table.argmax(-1).tolist()
    asked = [Row([5, 6, 7], first=2), Row([5, 6, 7], first=3)]
    assert model().predict(asked) == [[best[6], best[7]], [best[7]]]


def test_a_row_fits_the_context() -> None:
    fits = Row(list(range(1, 34)))  # the last token is not looked at
    assert len(model().log_likelihoods([fits])) == 1
    with pytest.raises(ConfigError, match=r"a text of 33 tokens does not fit .* takes 32"):
        model().predict([fits])
    with pytest.raises(ConfigError, match=r"a text of 34 tokens does not fit .* takes 33"):
        model().log_likelihoods([Row(list(range(34)))])
    with pytest.raises(ConfigError, match="nothing comes before token 0"):
        model().log_likelihoods([Row([1, 2], first=0)])


def test_a_text_begins_where_its_prompt_alone_differs() -> None:
    """``b`` and a space are one token of their own where a tokenizer joins them."""

    def joins(text: str) -> list[int]:
        return list(text.replace("b ", "\x7f").encode())

    joined = of_table(bigrams(), joins)
    assert text_row(joined, " c", "a b") == Row(list(b"a \x7fc"), first=2)
    assert text_row(joined, "c", "a ") == Row(list(b"a c"), first=2)
    assert text_row(joined, "c") == Row([0, ord("c")], first=1)
    assert text_row(joined, " c", "b") == Row([0, 0x7F, ord("c")], first=1)
    with pytest.raises(ConfigError, match="has no tokens of its own"):
        text_row(joined, "", "a")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"completions": {}}, "unknown probe 'completions'; did you mean 'completion'"),
        ({"completion": {"item": {}}}, r"probes\.completion\.item: unknown key; did you mean"),
        ({"completion": {"items": {"a": []}}}, r"probes\.completion\.items\.a: List should have"),
        (
            {"completion": {"items": {"a": [{"prompt": "x", "completoin": "y"}]}}},
            r"probes\.completion\.items\.a\.0\.completoin: unknown key",
        ),
    ],
)
def test_what_is_wrong_is_named_before_a_probe_runs(section: Any, message: str) -> None:
    def logits(ids: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a probe has run")

    silent = LogitsModel(logits, lambda text: [1], lambda ids: "", context=8, end=0)

    with pytest.raises(ConfigError, match=message):
        run_probes({"completion": {"items": ITEMS}, **section}, silent)


def test_what_a_probe_needs_is_there_before_one_runs() -> None:
    class Needy(ProbeOptions):
        def check(self) -> None:
            raise ConfigError("there is no file 'x'")

    register("needy", Needy)(lambda model, options: [])
    with pytest.raises(ConfigError, match="there is no file 'x'"):
        run_probes({"completion": {"items": ITEMS}, "needy": {}}, model())


# --- scores --------------------------------------------------------------------------------------


def test_a_score_is_a_sum_and_a_count() -> None:
    score = Score("completion", "a", -6.0, 4, higher_is_better=True)
    assert (score.mean, score.error) == (-1.5, None)
    assert Score.of("completion", "a", [Part("x", 0.0, 0)], higher_is_better=True) is None


def scored(values: list[tuple[float, int]], name: str = "loss") -> Score:
    parts = [Part(f"{number}", value, count) for number, (value, count) in enumerate(values)]
    score = Score.of(name, "a", parts, higher_is_better=False)
    assert score is not None
    return score


def test_the_error_of_equal_counts_is_that_of_a_mean() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    score = scored([(10 * value, 10) for value in values])
    assert score.mean == 4.0
    assert score.error == pytest.approx(statistics.stdev(values) / 2)  # √4


def test_the_error_of_a_ratio_is_what_draws_spread_by() -> None:
    """Against many draws of 200 documents out of a population of long and short ones."""
    draw = np.random.default_rng(5)
    lengths = draw.integers(1, 400, 20_000)
    losses = lengths * draw.normal(2.0, 0.3, lengths.size) + 0.1 * draw.normal(size=lengths.size)
    means, errors = [], []
    for _ in range(300):
        rows = draw.integers(0, lengths.size, 200)
        score = scored([(float(losses[row]), int(lengths[row])) for row in rows])
        means.append(score.mean)
        errors.append(score.error)
    # 300 draws know their standard deviation to 4 %.
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)  # type: ignore[arg-type]


def test_a_paired_difference_leaves_out_what_both_find_hard() -> None:
    draw = np.random.default_rng(7)
    hard = draw.normal(3.0, 1.0, 100)
    gain = draw.normal(0.1, 0.01, 100)
    before = scored([(float(value), 1) for value in hard])
    after = scored([(float(value), 1) for value in hard - gain])
    delta, error = difference(before, after)
    assert delta == pytest.approx(-float(np.mean(gain)))
    assert error == pytest.approx(float(np.std(gain, ddof=1)) / 10)
    assert before.error is not None and error < before.error / 50
    # Of other texts, it is that of two draws.
    others = Score.of(
        "loss",
        "a",
        [Part(f"x{p.name}", p.sum, p.count) for p in after.parts],
        higher_is_better=False,
    )
    assert others is not None
    apart = difference(before, others)
    assert apart == (delta, pytest.approx(math.hypot(before.error, others.error)))  # type: ignore[arg-type]
    assert difference(before, Score("loss", "a", 3.0, 1, False)) == (3.0 - before.mean, None)


def test_what_was_found_travels_as_json() -> None:
    found = Evaluated(
        20, 160, (scored([(2.5, 3), (0.5, 1)]), scored([(1.0, 1)], "acc")), final=True
    )
    assert Evaluated.load(json.loads(json.dumps(found.dump()))) == found
    assert "final" not in Evaluated(0, 0, ()).dump()


# --- which samples a fixed validation set has ----------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), min_size=1, max_size=8),
    st.integers(1, 40),
)
def test_a_fixed_set_has_what_is_asked_for(sets: list[tuple[int, int]], samples: int) -> None:
    lengths, domains = [length for length, _ in sets], [domain for _, domain in sets]
    rows = choose(lengths, domains, samples)
    assert len(set(rows)) == len(rows)
    assert all(sample < lengths[number] for number, sample in rows)
    for domain in set(domains):
        own = [row for row in rows if domains[row[0]] == domain]
        has = sum(length for length, one in sets if one == domain)
        assert len(own) == min(samples, has)
        for number, (length, one) in enumerate(sets):
            if one == domain:  # its part, to the sample
                taken = sum(row[0] == number for row in own)
                assert abs(taken - len(own) * length / has) < 1


@given(st.integers(1, 50), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_ranks_share_a_fixed_set(rows: int, micro: int, replicas: int, accumulated: int) -> None:
    """Each sample once over all ranks, and as many microbatches on each."""
    batch = micro * replicas * accumulated
    ranks = [list(microbatches(rows, batch, micro, rank, replicas)) for rank in range(replicas)]
    assert {len(rank) for rank in ranks} == {steps(rows, batch) * accumulated}
    read = [row for rank in ranks for one in rank for row in one if row is not None]
    assert sorted(read) == list(range(rows))
