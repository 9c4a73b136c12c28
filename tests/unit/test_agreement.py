"""Ranks that have different things in force are found, named, and stopped."""

from __future__ import annotations

import itertools
from pathlib import Path

import agreement_worker
import numpy as np
import pytest
import torch
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st

from domain_pretrain.errors import IntegrityError
from domain_pretrain.flow.agreement import check_agreement
from domain_pretrain.flow.groups import Groups
from domain_pretrain.kernels.digest import PRIME, WORDS, Digest, moments

CPU = torch.device("cpu")


def sums(ranks: list[torch.Tensor]) -> list[int]:
    total: list[int] = torch.stack([moments(words) for words in ranks]).sum(0).tolist()
    return total


def digest(values: list[float], constants: str = "config") -> torch.Tensor:
    return Digest(constants, CPU).of(torch.tensor(values))


VALUES = st.lists(st.floats(0, 3, width=32), min_size=1, max_size=40)


@given(VALUES, st.data())
def test_one_bit_in_one_multiplier_changes_the_digest(values: list[float], data: st.DataObject):
    place, up = data.draw(st.integers(0, len(values) - 1)), data.draw(st.booleans())
    other = list(values)
    toward = np.float32(np.inf if up else -np.inf)
    other[place] = float(np.nextafter(np.float32(values[place]), toward))
    one, two = digest(values), digest(other)
    assert ((one >= 0) & (one < PRIME)).all()
    assert (one != two).any()


@pytest.mark.parametrize("domains", [4, 6, 12, 16, 64])
def test_last_bits_that_cancel_in_a_sum_do_not_in_a_digest(domains: int) -> None:
    """Σ share·m = 1 makes changes of opposite signs the typical ones."""
    generator = torch.Generator().manual_seed(domains)
    values = 0.5 + torch.rand(domains, generator=generator)
    reference = Digest("config", CPU)
    one = reference.of(values)
    patterns = [
        dict(zip(places, changes, strict=True))
        for size, signs in ((2, (1, -1)), (3, (1, -2, 1)), (4, (1, -1, -1, 1)))
        for places in itertools.islice(itertools.combinations(range(domains), size), 500)
        for changes in {*itertools.permutations(signs)}
    ]
    for pattern in patterns:
        bits = values.clone().view(torch.int32)
        for place, change in pattern.items():
            bits[place] += change
        assert (reference.of(bits.view(torch.float32)) != one).any(), pattern


def test_values_that_changed_places_are_other_values() -> None:
    assert (digest([0.5, 2.0]) != digest([2.0, 0.5])).any()


def test_the_constants_count_where_nothing_is_in_force() -> None:
    one, two = (Digest(text, CPU).of(None) for text in ("config", "another"))
    assert (one != two).any()
    assert torch.equal(one, Digest("config", CPU).of(None))


@given(st.integers(1, 5000), st.integers(0, 2**63 - 1))
def test_any_number_of_equal_ranks_agree(ranks: int, seed: int) -> None:
    words = torch.randint(0, PRIME, (WORDS,), generator=torch.Generator().manual_seed(seed))
    check_agreement(words.tolist(), (moments(words) * ranks).tolist(), Groups(dp_cp_size=ranks))


def test_a_million_ranks_fit_the_sums() -> None:
    """The largest words over 2^20 ranks stay in int64."""
    largest = moments(torch.full((WORDS,), PRIME - 1))
    assert int(largest.max()) * 2**20 < 2**63


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6).filter(lambda kinds: len({*kinds}) > 1))
def test_every_rank_sees_a_difference_in_the_sums_alone(kinds: list[int]) -> None:
    """Also one whose own words happen to be the mean of all."""
    words = [torch.full((WORDS,), 1000 + kind) for kind in kinds]
    for own in words:
        groups = Groups(is_counting=False, dp_cp_size=len(words))
        with pytest.raises(IntegrityError, match="do not agree on what is in force"):
            check_agreement(own.tolist(), sums(words), groups)


def test_a_rank_beside_those_that_count_finds_itself_different(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "5")
    others, own = digest([1.0, 1.5]), digest([1.0, 1.25])
    groups = Groups(is_counting=False, dp_cp_size=2)
    with pytest.raises(IntegrityError, match="rank 5 differs"):
        check_agreement(own.tolist(), sums([others, others]), groups)
    # Where it took no part in what is in force, it has nothing to compare.
    check_agreement(None, sums([others, others]), groups)


def test_a_rank_that_rounds_differently_is_named(tmp_path: Path) -> None:
    """Three processes: see agreement_worker.py, whose assertions end up here."""
    torch.multiprocessing.spawn(agreement_worker.run, (str(tmp_path),), nprocs=3)
