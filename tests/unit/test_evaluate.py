"""Probes: log-probabilities against float64; what is wrong is named before one runs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate import LogitsModel, Score, run_probes
from domain_pretrain.evaluate.fixed import choose, microbatches, steps

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


def model(dtype: torch.dtype = torch.float32) -> LogitsModel:
    """A bigram model over bytes: the logits of what follows depend on the token alone."""
    table = bigrams().to(dtype)
    return LogitsModel(lambda ids: table[ids], lambda text: list(text.encode()))


def expected(text: str, count: int) -> float:
    """By hand, in float64: the last ``count`` bytes of ``text``."""
    table = bigrams().double()
    tokens = list(text.encode())
    pairs = list(itertools.pairwise(tokens))[-count:]
    return math.fsum(
        float(table[a, b]) - math.log(math.fsum(map(math.exp, table[a].tolist()))) for a, b in pairs
    )


def test_completions_by_domain() -> None:
    finance, maths = run_probes({"completion": {"items": ITEMS}}, model())
    assert (finance.name, finance.domain, finance.count) == ("completion", "finance", 8)
    assert (maths.domain, maths.count, maths.higher_is_better) == ("maths", 2, True)
    # fp32 against float64: log-probabilities of up to 20 nats, to 2^-20 of each.
    assert finance.sum == pytest.approx(
        expected("the bond yields", 7) + expected("ab", 1), rel=1e-5
    )
    assert maths.mean == pytest.approx(expected("1 + 1 = 2", 2) / 2, rel=1e-5)


def test_a_models_logits_may_be_of_any_width() -> None:
    """The softmax of bf16 logits is that of the same logits in fp32, not one rounded to bf16."""
    table = bigrams().bfloat16()
    narrow = LogitsModel(lambda ids: table[ids], lambda text: list(text.encode()))
    wide = LogitsModel(lambda ids: table.float()[ids], lambda text: list(text.encode()))
    assert narrow.log_probabilities([1, 2, 3]) == wide.log_probabilities([1, 2, 3])
    assert len(narrow.log_probabilities([1, 2, 3])) == 2


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

    with pytest.raises(ConfigError, match=message):
        run_probes({"completion": {"items": ITEMS}, **section}, LogitsModel(logits, str.encode))  # type: ignore[arg-type]


def test_a_text_without_tokens_is_refused() -> None:
    nothing = LogitsModel(lambda ids: ids, lambda text: [])
    with pytest.raises(ConfigError, match="has no tokens"):
        run_probes({"completion": {"items": ITEMS}}, nothing)


def test_a_score_is_a_sum_and_a_count() -> None:
    assert Score("completion", "a", -6.0, 4, higher_is_better=True).mean == -1.5


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
    every = [(0, row) for row in range(rows)]
    batch = micro * replicas * accumulated
    ranks = [list(microbatches(every, batch, micro, rank, replicas)) for rank in range(replicas)]
    assert {len(rank) for rank in ranks} == {steps(rows, batch) * accumulated}
    read = [row for rank in ranks for one in rank for row in one if row is not None]
    assert sorted(read) == every
