"""The arithmetic of a stream: how many samples of which prefix, in which order."""

from __future__ import annotations

import pickle
import random
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from domain_pretrain.data.mix import apportion
from domain_pretrain.data.mix.apportion import (
    CHUNK,
    changing,
    constant,
    greedy,
    ordered,
    shares_of,
    tally,
)
from domain_pretrain.data.mix.locate import Locator
from domain_pretrain.data.mix.permutation import permuted
from domain_pretrain.data.mix.plan import Plan, Stage, union

WEIGHT = st.floats(1e-6, 1e3) | st.sampled_from([0.0, 1.0, 2.0, 3.0])


def weights(prefixes: int) -> st.SearchStrategy[list[float]]:
    return st.lists(WEIGHT, min_size=prefixes, max_size=prefixes).filter(any)


@st.composite
def plans(draw: st.DrawFn, *, cuts: bool = True) -> Plan:
    """Of up to four stages over up to 12,000 samples."""
    prefixes = draw(st.integers(1, 8))
    lengths = draw(st.lists(st.integers(1, 3_000), min_size=1, max_size=4))
    stages = []
    for number, length in enumerate(lengths):
        shape = draw(st.sampled_from(["constant", "linear", "cosine"])) if number else "constant"
        last = number + 1 == len(lengths)
        is_open = last and shape == "constant" and draw(st.booleans())
        stages.append(Stage(None if is_open else length, tuple(draw(weights(prefixes))), shape))
    total = sum(lengths)
    place = st.tuples(st.integers(0, 2 * total), st.integers(1, total))
    found = draw(st.lists(place, max_size=3)) if cuts else []
    names = tuple(f"p{number}" for number in range(prefixes))
    return Plan(names, tuple(stages), total, union((first, first + n) for first, n in found))


def whole(plan: Plan, lengths: list[int], seed: int = 1) -> list[tuple[int, int, int, int]]:
    locator = Locator(plan, lengths, seed)
    return [tuple(locator.locate(i)) for i in range(plan.samples)]


@given(st.integers(1, 20_000), st.integers(1, 12), st.booleans(), st.data())
def test_every_chunk_is_within_a_sample_of_constant_weights(
    samples: int, prefixes: int, is_whole: bool, data: st.DataObject
) -> None:
    shares = shares_of(data.draw(weights(prefixes)))
    ends, counts = constant(shares, samples, whole=is_whole)
    check(ends, counts, ends[:, None] * shares)
    assert not counts[:, shares == 0].any()
    if is_whole:
        assert ends[-1] == samples
        longer = constant(shares, samples + 7, whole=False)[1]
        assert np.array_equal(counts[:-1], longer[: len(counts) - 1]), "it goes on as it began"
    else:
        assert ends[-1] >= samples


@given(st.integers(1, 20_000), st.integers(1, 12), st.sampled_from(["linear", "cosine"]), st.data())
def test_every_chunk_is_within_a_sample_of_changing_weights(
    samples: int, prefixes: int, shape: Any, data: st.DataObject
) -> None:
    before, after = (shares_of(data.draw(weights(prefixes))) for _ in range(2))
    ends, counts = changing(before, after, samples, shape)
    assert ends[-1] == samples
    x = ends / samples
    way = samples * (x**2 / 2 if shape == "linear" else x / 2 - np.sin(np.pi * x) / (2 * np.pi))
    check(ends, counts, ends[:, None] * before + way[:, None] * (after - before))


@pytest.mark.parametrize("seed", [322, 396])
def test_rare_prefixes_that_fade(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By largest remainders, those that were rounded up leave others 1.2 samples behind."""
    dice = random.Random(seed)
    before = shares_of([dice.random() ** -3 for _ in range(30)])
    after = shares_of([dice.random() ** -3 * (dice.random() < 0.3) + 1e-9 for _ in range(30)])
    monkeypatch.setattr(apportion, "CHUNK", 4)
    ends, counts = changing(before, after, 4000, "linear")
    assert len(ends) == 1001
    way = ends**2 / 4000 / 2
    check(ends, counts, ends[:, None] * before + way[:, None] * (after - before))


def check(ends: np.ndarray, counts: np.ndarray, due: np.ndarray) -> None:
    assert np.array_equal(counts.sum(axis=1), ends)
    assert (np.diff(counts, axis=0) >= 0).all()
    assert np.abs(counts - due).max() < 1 + 1e-6  # T is counted in parts of 2^-24


def test_a_change_of_weights_has_many_steps() -> None:
    """Also one that is shorter than a chunk."""
    ends, counts = changing(shares_of([1, 0]), shares_of([0, 1]), 640, "linear")
    assert len(ends) == 65
    halves = np.diff(counts[[0, 32, 64]], axis=0)
    assert halves.tolist() == [[240, 80], [80, 240]]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=9).filter(any))
def test_a_chunk_spreads_each_prefix_evenly(counts: list[int]) -> None:
    prefixes, samples = ordered(np.array(counts, np.int64))
    total = sum(counts)
    assert len(prefixes) == len(samples) == total <= 9 * CHUNK
    for prefix, count in enumerate(counts):
        places = np.flatnonzero(prefixes == prefix)
        assert samples[places].tolist() == list(range(count))
        ideal = np.arange(count) * total / max(count, 1)
        assert (np.abs(places - ideal) <= total / max(count, 1) + len(counts)).all()


@given(st.integers(1, 600), st.integers(0, 2**64 - 1), st.integers(0, 40))
def test_the_permutation_is_one(size: int, seed: int, epoch: int) -> None:
    found = [permuted(index, size, seed, epoch) for index in range(size)]
    assert sorted(found) == list(range(size))


def test_the_permutation_shuffles() -> None:
    """By every part of its key; and the same numbers everywhere: a checkpoint rests on them."""
    one, other, third = ([permuted(i, 1000, *key) for i in range(1000)] for key in KEYS)
    for left, right in ((one, other), (one, third), (one, list(range(1000)))):
        assert sum(a == b for a, b in zip(left, right, strict=True)) < 10
    ups = sum(a < b for a, b in pairwise(one))
    assert 450 < ups < 550
    assert one[:5] == [759, 310, 186, 555, 744]


KEYS = ((1234, 1), (1234, 2), (1235, 1))


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12), st.integers(1, 3_000))
def test_one_blend_is_the_hosts_own(given_weights: list[float], samples: int) -> None:
    """Byte for byte its two index files, by the very code that makes them."""
    pytest.importorskip("megatron.core.datasets.helpers_cpp")
    from megatron.core.datasets.utils import normalize

    from domain_pretrain.hosts.stream import build_blending_indices

    # As the builder normalises the weights, and then the blend.
    once = normalize(normalize(given_weights))
    expected = build_blending_indices(once, samples)
    asked: list[Any] = []

    def build(shares: Any, size: int) -> Any:
        asked.append(shares)
        return build_blending_indices(shares, size)

    plan = Plan(tuple(map(str, range(len(once)))), (Stage(None, tuple(given_weights)),), samples)
    locator = Locator(plan, [samples] * len(once), 1, build)
    assert asked in ([once], [])
    found = [locator.locate(i)[:2] for i in range(samples)]
    assert found == list(zip(*(one.tolist() for one in expected), strict=True))


def test_the_hosts_order_without_the_host() -> None:
    """Weights whose products are exact, so that no compiler can round them otherwise."""
    pytest.importorskip("megatron.core.datasets.helpers_cpp")
    from domain_pretrain.hosts.stream import build_blending_indices

    for shares in ([0.5, 0.25, 0.25], [0.125] * 8, [0.75, 0.1875, 0.0625]):
        for mine, theirs in zip(
            greedy(shares, 500), build_blending_indices(shares, 500), strict=True
        ):
            assert np.array_equal(mine, theirs)
            assert mine.dtype == theirs.dtype


def test_the_hosts_index_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("megatron.core.datasets.helpers_cpp")
    from domain_pretrain.hosts import stream

    shares = [0.5, 0.25, 0.25]
    keep = stream._Cached(str(tmp_path / "cache"))
    built = keep(shares, 100)
    one, other = sorted((tmp_path / "cache").iterdir())
    assert (one.stat().st_mode & 0o777) == 0o644
    other.unlink()  # a crash between the two
    assert [a.tolist() for a in keep(shares, 100)] == [a.tolist() for a in built]
    keep([0.25, 0.5, 0.25], 100)
    keep(shares, 101)
    assert len(list((tmp_path / "cache").iterdir())) == 6, "of other weights, and for more samples"

    def never(*_: object) -> Any:
        raise AssertionError("it is there")

    monkeypatch.setattr(stream, "build_blending_indices", never)
    kept = keep(shares, 100)
    assert [a.tolist() for a in kept] == [a.tolist() for a in built]
    assert [a.dtype for a in kept] == [np.dtype("int16"), np.dtype("int64")]


@given(plans(), st.data())
def test_each_prefix_gives_its_samples_in_turn(plan: Plan, data: st.DataObject) -> None:
    """0, 1, 2, … through epoch after epoch; what is cut out is missing, and nothing else."""
    one = st.integers(1, 5_000)
    lengths = data.draw(
        st.lists(one, min_size=len(plan.prefixes), max_size=len(plan.prefixes)), label="lengths"
    )
    uncut = Plan(plan.prefixes, plan.stages, 4 * plan.samples)
    extended = Locator(uncut, lengths, 1)
    stop = plan.passed(plan.samples)
    assume(stop <= uncut.samples)
    stream = [extended.locate(i) for i in range(stop)]
    for prefix, length in enumerate(lengths):
        own = [place for place in stream if place.prefix == prefix]
        assert [place.sample for place in own] == list(range(len(own)))
        assert [place.epoch for place in own] == [i // length for i in range(len(own))]
        for first in range(0, len(own) - length + 1, length):
            windows = sorted(place.window for place in own[first : first + length])
            assert windows == list(range(length))
        assert [place.window for place in own[:length]] == list(range(len(own[:length])))
    skipped = {i for first, end in plan.cuts for i in range(first, end)}
    kept = [tuple(place) for i, place in enumerate(stream) if i not in skipped]
    assert kept == whole(plan, lengths)
    read = [place[0] for place in kept]
    assert Locator(plan, lengths, 1).counts() == [read.count(p) for p in range(len(lengths))]


@given(plans(cuts=False))
def test_each_stage_is_within_a_sample_of_its_shares(plan: Plan) -> None:
    prefixes = len(plan.prefixes)
    places = whole(plan, [10**6] * prefixes)
    lengths = [stage.samples for stage in plan.stages[:-1]]
    ends = list(accumulate([0, *lengths, plan.samples - sum(lengths)]))  # type: ignore[list-item]
    before = None
    for stage, (first, stop) in zip(plan.stages, pairwise(ends), strict=True):
        after = shares_of(stage.weights or ())
        mean = after if stage.shape == "constant" else (before + after) / 2  # type: ignore[operator]
        before = after
        own = np.bincount([place[0] for place in places[first:stop]], minlength=prefixes)
        if stage.samples is not None and len(plan.stages) > 1:
            assert np.abs(own - mean * (stop - first)).max() < 1 + 1e-6
        assert not own[(mean == 0)].any(), "what has no weight is not sampled"


@given(plans(), st.integers(0, 20_000))
def test_a_longer_run_begins_as_a_shorter_one(plan: Plan, more: int) -> None:
    if plan.stages[-1].samples is not None and len(plan.stages) > 1:
        return  # its stages say how long it is
    lengths = [100] * len(plan.prefixes)
    longer = Plan(plan.prefixes, plan.stages, plan.samples + more, plan.cuts)
    locator = Locator(longer, lengths, 1)
    some = range(0, plan.samples, max(1, plan.samples // 50))
    expected = Locator(plan, lengths, 1)
    assert [locator.locate(i) for i in some] == [expected.locate(i) for i in some]


@given(plans(), st.randoms())
def test_places_do_not_depend_on_what_was_asked_before(plan: Plan, random: Any) -> None:
    """As many workers read it, each its own part; and as a resumed run does."""
    lengths = [50] * len(plan.prefixes)
    locator = Locator(plan, lengths, 1)
    some = [random.randrange(plan.samples) for _ in range(8)]
    asked = [locator.locate(i) for i in some]
    assert asked == [Locator(plan, lengths, 1).locate(i) for i in some]
    sent = pickle.loads(pickle.dumps(locator))  # to a worker that was not forked
    assert asked == [sent.locate(i) for i in some]


def test_cuts() -> None:
    plan = Plan(("a",), (Stage(None, None),), 10, union([(8, 10), (2, 4), (3, 6), (90, 99)]))
    assert plan.cuts == ((2, 6), (8, 10), (90, 99))
    assert [plan.position(i) for i in range(10)] == [0, 1, 6, 7, 10, 11, 12, 13, 14, 15]
    assert [plan.passed(i) for i in (0, 1, 2, 3, 4, 10)] == [0, 1, 2, 7, 8, 16]
    assert [place[3] for place in whole(plan, [100])] == [0, 1, 6, 7, 10, 11, 12, 13, 14, 15]


def test_an_index_is_counted_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0).integers(0, 5, 1000).astype(np.int16)
    monkeypatch.setattr(apportion, "_PIECE", 64)
    assert tally(numbers, 7).tolist() == np.bincount(numbers, minlength=7).tolist()
    assert tally(numbers[:0], 2).tolist() == [0, 0]
