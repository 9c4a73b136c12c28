"""Models beside each other: what a difference says among many; which documents are the noise."""

from __future__ import annotations

import json
import math
import random

import pytest
from rich.console import Console

from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.records.score import Part, Score
from domain_pretrain.report.compare import Comparison, Mark, compare, verdict
from domain_pretrain.report.evaluations import MOST, as_json, models_of, print_evaluations
from domain_pretrain.report.significance import chance, holm
from domain_pretrain.report.worst import worst_documents


def score(
    domain: str, means: list[float], *, name: str = "loss", count: int = 10, higher: bool = False
) -> Score:
    """Of documents with these means, of ``count`` tokens each."""
    parts = [Part(f"{domain}:{n}", mean * count, count) for n, mean in enumerate(means)]
    made = Score.of(name, domain, parts, higher_is_better=higher)
    assert made is not None
    return made


def model(iteration: int, *scores: Score) -> Evaluated:
    return Evaluated(iteration, 8 * iteration, scores)


def marks(comparison: Comparison) -> dict[str, Mark | None]:
    return {line.domain: line.change and line.change.mark for line in comparison.lines}


_RNG = random.Random(1)
HARD = [_RNG.uniform(1, 9) for _ in range(40)]  # documents differ by far more than models do


def shifted(by: float, seed: int, spread: float = 0.1) -> list[float]:
    rng = random.Random(seed)
    return [mean + by + rng.gauss(0, spread) for mean in HARD]


@pytest.mark.parametrize(
    ("draws", "errors", "expected"),
    [  # quantiles of Student's t, from printed tables
        *[(2, 12.706, 0.05), (3, 4.303, 0.05), (4, 3.182, 0.05), (5, 2.776, 0.05)],
        *[(6, 4.032, 0.01), (30, 2.045, 0.05), (31, 2.750, 0.01), (5000, 1.960, 0.05)],
    ],
)
def test_students_t(draws: int, errors: float, expected: float) -> None:
    for sign in (1, -1):
        assert chance(sign * errors * 0.2, 0.2, draws) == pytest.approx(expected, rel=2e-3)


def test_a_difference_without_noise() -> None:
    assert chance(0.0, 0.0, 5) == 1.0
    assert chance(-1e-9, 0.0, 5) == 0.0


def test_holm_by_hand() -> None:
    # 0.012 <= 0.05/4; 0.016 <= 0.05/3; 0.03 > 0.05/2, which stops it, though 0.04 <= 0.05/1.
    assert holm([0.03, 0.012, 0.04, 0.016]) == [False, True, False, True]
    assert holm([0.03]) == [True]
    assert holm([]) == []


def test_better_forgotten_and_the_same() -> None:
    """The differences are small beside those between documents: they are paired."""
    before = model(0, *(score(name, HARD) for name in ("finance", "general", "code")))
    after = model(
        9,
        score("finance", shifted(-0.2, 2)),
        score("general", shifted(0.2, 3)),
        score("code", shifted(0.0, 4)),
    )
    comparison = compare([("base", before), ("final", after)])
    assert marks(comparison) == {
        "finance": Mark.BETTER,
        "general": Mark.WORSE,
        "code": Mark.SAME,
    }
    assert comparison.compared == 3
    error = before.scores[0].error
    assert error is not None and error > 0.2  # unpaired, none of it could be told
    text = "\n".join(verdict(comparison))
    assert "better in final than in base: finance (loss)" in text
    assert "forgotten (worse by more than chance): general (loss)" in text
    assert "cannot be told apart: code (loss)" in text
    assert "3 lines compared" in text
    assert "nothing was forgotten" not in text


def test_which_way_is_better() -> None:
    """Of a score that is to be high, more is better; of a loss, less."""
    for higher, mark in ((True, Mark.BETTER), (False, Mark.WORSE)):
        first = model(0, score("a", HARD, name="right", higher=higher))
        last = model(1, score("a", shifted(0.3, 5), name="right", higher=higher))
        assert marks(compare([("x", first), ("y", last)])) == {"a": mark}


def test_among_many_lines_a_chance_difference_is_only_pointed_out() -> None:
    """Fifty domains that did not change, one that looks as if by 2.4 standard errors."""
    rng = random.Random(6)
    deltas = [rng.gauss(0, 1) for _ in range(40)]
    middle = sum(deltas) / 40
    error = math.sqrt(sum((d - middle) ** 2 for d in deltas) / 39 / 40)
    lucky = [hard + d - middle + 2.4 * error for hard, d in zip(HARD, deltas, strict=True)]
    names = [f"domain{n}" for n in range(50)]
    first = model(0, score("lucky", HARD), *(score(name, HARD) for name in names))
    last = model(1, score("lucky", lucky), *(score(name, HARD) for name in names))
    alone = compare([("a", model(0, first.scores[0])), ("b", model(1, last.scores[0]))])
    assert marks(alone) == {"lucky": Mark.WORSE}
    among = compare([("a", first), ("b", last)])
    assert marks(among)["lucky"] is Mark.PERHAPS_WORSE
    text = "\n".join(verdict(among))
    assert "perhaps forgotten (beyond 2 standard errors): lucky (loss)" in text
    assert "nothing was forgotten, as far as" in text


def test_models_that_do_not_differ_are_called_so() -> None:
    """The false verdicts of 200 tables of 20 lines each are about one in twenty tables."""
    wrong = 0
    for table in range(200):
        first = model(0, *(score(f"{n}", HARD[:8]) for n in range(20)))
        last = model(1, *(score(f"{n}", shifted(0, 1000 * table + n)[:8]) for n in range(20)))
        found = marks(compare([("a", first), ("b", last)])).values()
        wrong += any(mark in (Mark.BETTER, Mark.WORSE) for mark in found)
    assert wrong <= 20  # expected 10 at most, with a standard deviation of 3


def test_what_cannot_be_judged() -> None:
    one_part = Score("loss", "single", 10.0, 5, False, (Part("a", 10.0, 5),))
    other = Score("loss", "single", 12.0, 5, False, (Part("a", 12.0, 5),))
    first = model(0, one_part, score("tokens", [1, 2], count=10), score("nan", [1, 2]))
    last = model(
        1, other, score("tokens", [1, 2], count=12), score("nan", [math.nan, 2]), score("new", [1])
    )
    comparison = compare([("a", first), ("b", last)])
    assert marks(comparison) == {
        "single": Mark.NO_ERROR,
        "tokens": Mark.OTHER_UNITS,
        "nan": Mark.BROKEN,
        "new": None,
    }
    assert comparison.compared == 0
    text = "\n".join(verdict(comparison))
    assert "other tokens: tokens (loss)" in text
    assert "not finite: nan (loss)" in text
    assert "forgotten" not in text
    json.dumps(as_json([("a", first), ("b", last)]), allow_nan=False)


def test_questions_that_are_asked_twice_count_twice() -> None:
    """Two parts of one name are two draws: of four, two would make an error a third too small."""
    twice = [Part("the capital is", value, 1) for value in (0.0, 1.0, 1.0, 0.0)]
    apart = [Part(f"question {n}", part.sum, 1) for n, part in enumerate(twice)]
    scores = [Score.of("right", "a", parts, higher_is_better=True) for parts in (twice, apart)]
    assert scores[0] is not None and scores[1] is not None
    assert scores[0].error == pytest.approx(scores[1].error)
    assert scores[0].error == pytest.approx(math.sqrt(4 / 3 * 4 * 0.25) / 4)
    (line,) = compare([("a", model(0, scores[0])), ("b", model(1, scores[0]))]).lines
    assert line.change is not None and (line.change.delta, line.change.error) == (0, 0)


def shown(models: list[tuple[str, Evaluated]]) -> str:
    console = Console(width=140, record=True, highlight=False, markup=False, quiet=False)
    with console.capture() as captured:
        print_evaluations(console, models)
    return captured.get()


def test_the_table() -> None:
    first = model(0, score("finance", HARD), score("finance", HARD, name="right", higher=True))
    last = model(
        9, score("finance", shifted(-0.2, 2)), score("finance", HARD, name="right", higher=True)
    )
    text = shown([("base", first), ("middle", first), ("final", last)])
    mean, end = first.scores[0].mean, last.scores[0].mean
    (row,) = [line for line in text.splitlines() if " loss " in line and " better " in line]
    for cell in (f"{mean:.3f} ± ", f"{end - mean:+.3f} ± ", f"{math.exp(mean):,.2f} → "):
        assert cell in row
    assert row.count(f"{mean:.3f} ±") == 2
    (row,) = [line for line in text.splitlines() if "right" in line and "same" in line]
    assert "+0.000 ± 0.000" in row
    # One model: no difference, no verdict.
    text = shown([("base", first)])
    assert "last − first" not in text and "compared" not in text and "base" in text


def test_junk_is_the_worst_and_carries_the_noise() -> None:
    clean = [2.0 + 0.01 * n for n in range(20)]
    noisy = score("web", [*clean, 9.0, 8.0])
    even = score("books", clean)
    found = worst_documents([even, noisy, score("web", clean, name="other")], 2)
    assert [one.domain for one in found] == ["web", "books"]  # by what they carry
    web = found[0]
    assert [(one.name, one.loss, one.tokens) for one in web.documents] == [
        ("web:20", 9.0, 10),
        ("web:21", 8.0, 10),
    ]
    residuals = [(part.sum - noisy.mean * part.count) ** 2 for part in noisy.parts]
    assert web.noise == pytest.approx(sum(residuals[-2:]) / sum(residuals))
    assert web.noise > 0.8 and web.of == 22
    text = shown([("final", model(1, even, noisy))])
    assert f"web: 2 of 22 documents carry {web.noise:.0%} of the noise" in text
    assert "books: " not in text  # its three carry what three of twenty do
    assert text.index("web:20") < text.index("web:21")


def test_documents_that_are_all_alike() -> None:
    """No document is above the mean, and nothing is divided by the variance, which is none."""
    (found,) = worst_documents([score("a", [2.0, 2.0, 2.0])], 3)
    assert not found.documents and found.noise == 0


def test_of_a_long_run_the_first_and_the_last_are_shown() -> None:
    every = [model(n, score("a", HARD)) for n in range(9)]
    assert [one.iteration for _, one in models_of(every)] == [0, 6, 7, 8]
    assert len(models_of(every)) == MOST
    assert [one.iteration for _, one in models_of(every[:2])] == [0, 1]
