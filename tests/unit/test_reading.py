"""What is told of data before a host reads it: whole files, splits with samples, one owner each."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.prefixes import write_prefix

from domain_pretrain.data.blend import Blend
from domain_pretrain.data.index import Index
from domain_pretrain.data.plan import training_corpora, training_tokens
from domain_pretrain.data.reading import Reading, check_links
from domain_pretrain.data.splits import documents, parse_split
from domain_pretrain.errors import ConfigError
from domain_pretrain.hosts.evaluations import check_evaluations

LENGTHS = [4, 0, 3, 5]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def patch(path: str, at: int, content: bytes) -> Callable[[], None]:
    def apply() -> None:
        data = bytearray(Path(path).read_bytes())
        data[at : at + len(content)] = content
        Path(path).write_bytes(data)

    return apply


def cut(path: str, count: int) -> Callable[[], None]:
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[:-count])


def extend(path: str) -> Callable[[], None]:
    return lambda: Path(path).write_bytes(Path(path).read_bytes() + b"\0\0")


def test_an_index() -> None:
    write_prefix("x", LENGTHS, dtype="int32")
    index = Index.read("x")
    assert index == Index("x", "int32", sequences=4, tokens=12)
    index.check_lengths()
    assert [index.holds(1, 4, n) for n in (0, 8, 9)] == [True, True, False]
    assert [index.holds(1, 2, n) for n in (0, 1)] == [True, False]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (patch("x.idx", 0, b"TNTIDX"), "'x.idx' is not a Megatron index"),
        (lambda: Path("x.idx").write_bytes(b"MMIDIDX"), "'x.idx' is not a Megatron index"),
        (lambda: Path("x.idx").write_bytes(b""), "'x.idx' is not a Megatron index"),
        (patch("x.idx", 9, b"\2"), "'x.idx' has version 2"),
        (patch("x.idx", 17, b"\7"), "dtype code 7, which is none of token ids"),
        (patch("x.idx", 17, b"\4"), "'x.idx' contradicts itself"),
        (patch("x.idx", 18, bytes(8)), "'x' holds no tokens"),
        (patch("x.idx", 18, b"\xff" * 8), "'x.idx' is cut off"),
        (cut("x.idx", 1), "'x.idx' is cut off"),
        (cut("x.idx", 60), "'x.idx' is cut off"),
        (cut("x.bin", 2), "'x.bin' does not fit its index: it has 22 bytes, .* 24"),
        (extend("x.bin"), "'x.bin' does not fit its index: it has 26 bytes, .* 24"),
        (lambda: Path("x.bin").write_bytes(b""), "'x' holds no tokens"),
        (patch("x.idx", 34 + 12, np.int32(-5).tobytes()), "'x.idx' contradicts itself"),
        (patch("x.idx", -8, np.int64(3).tobytes()), "'x.idx' contradicts itself"),
        (lambda: Path("x.bin").unlink(), "'x' cannot be read"),
    ],
)
def test_damage_shows_in_the_header(damage: Callable[[], None], says: str) -> None:
    write_prefix("x", LENGTHS)
    damage()
    with pytest.raises(ConfigError, match=says):
        Index.read("x")


@pytest.mark.parametrize(
    ("at", "values", "says"),
    [
        (34, np.array([4, -1, 4, 5], np.int32), "sequence 1 has -1 tokens and begins at byte 8 "),
        (34, np.array([4, 1, 3, 5], np.int32), "sequence 2 has 3 tokens and begins at byte 8 "),
        # As many tokens as before, so that only where they begin tells.
        (34, np.array([3, 1, 3, 5], np.int32), "sequence 1 has 1 tokens and begins at byte 8 "),
        (50, np.array([0, 6], np.int64), "sequence 1 has 0 tokens and begins at byte 6 "),
        (50, np.array([2, 8], np.int64), "sequence 0 has 4 tokens and begins at byte 2 "),
    ],
)
def test_damage_in_the_middle_shows_in_the_lengths(at: int, values: np.ndarray, says: str) -> None:
    write_prefix("x", LENGTHS)
    patch("x.idx", at, values.tobytes())()
    with pytest.raises(ConfigError, match=f"'x.idx' contradicts itself: its {says}"):
        Index.read("x").check_lengths()


@pytest.mark.parametrize("prefix", ["nowhere", "a\0b", "x" * 5_000])
def test_a_prefix_that_is_not_there(prefix: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Index.read(prefix)


def test_all_lengths_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domain_pretrain.data.index._CHUNK", 2)
    write_prefix("x", [*LENGTHS, 7])
    Index.read("x").check_lengths()
    patch("x.idx", 34 + 4 * 5 + 8 * 3, np.int64(10).tobytes())()
    with pytest.raises(ConfigError, match="its sequence 3 has 5 tokens and begins at byte 10 "):
        Index.read("x").check_lengths()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("98,2,0", [(0, 0.98), (0.98, 1), None]),
        ("95 5 0", [(0, 0.95), (0.95, 1), None]),
        ("1", [(0, 1), None, None]),
        (".5, .5", [(0, 0.5), (0.5, 1), None]),
        ("0,0,100", [None, None, (0, 1)]),
        ("'99,1,0'", [(0, 0.99), (0.99, 1), None]),
        ("8/1/1", [(0, 0.8), (0.8, 0.9), (0.9, 1)]),
    ],
)
def test_a_split(text: str, parts: list[Any]) -> None:
    for found, expected in zip(parse_split(text), parts, strict=True):
        assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("text", ["", "0,0,0", "a,b", "1,2,3,4", "1e-3,1", "-1,2", "1.2.3", "."])
def test_a_split_that_would_be_misread(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"--split {text!r} must be")):
        parse_split(text)


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=3).filter(any),
    st.integers(1, 10**6),
)
def test_splits_share_out_all_documents(shares: list[int], count: int) -> None:
    parts = parse_split(",".join(map(str, shares)))
    taken = [documents(part, count) for part in parts]
    ends = [rows for rows in taken if rows]
    assert sum(map(len, taken)) == count
    assert all(one.stop == other.start for one, other in pairwise(ends))


def read(blend: Blend, split: str = "98,1,1", *, seq_length: int = 16, **own: Blend) -> Reading:
    per_split = [own.get(name) for name in ("train", "valid", "test")] if own else None
    owners = {os.path.abspath(p): p for one in (blend, *own.values()) if one for p in one[0]}
    return Reading.check(blend, per_split, None if own else split, seq_length, owners, files=True)


def test_a_split_without_documents_is_refused() -> None:
    write_prefix("few", [20] * 20)
    write_prefix("many", [20] * 200)
    assert read((["few", "many"], [1, 1]), "98,0,0").parts[1:] == (None, None)
    assert read((["few", "many"], [1, 1]), "90,5,5").parts[1] == pytest.approx((0.9, 0.95))
    with pytest.raises(ConfigError, match=r"'few' has 20 documents, of which the valid .* none"):
        read((["few", "many"], [1, 1]), "98,1,1")
    with pytest.raises(ConfigError, match=r"'few' has 20 documents, of which the test .* none"):
        read((["few"], None), "96,4,0.1")


def test_a_prefix_without_a_sample_is_refused_where_sizes_decide() -> None:
    write_prefix("short", [5, 4])
    write_prefix("hollow", [0, 0, 9])
    write_prefix("long", [20] * 9)
    for weights in ([1.0, 1.0], None):
        assert read((["short", "long"], weights), "1,0,0", seq_length=8)
    with pytest.raises(ConfigError, match=r"'short': the train .* fewer than 17 tokens"):
        read((["short", "long"], None), "1,0,0")
    assert read((["short", "long"], [1, 1]), "1,0,0")
    with pytest.raises(ConfigError, match=r"'hollow': the train .* fewer than 1 tokens"):
        read((["hollow"], None), "2,1,0")


def test_data_of_a_splits_own_is_not_split() -> None:
    write_prefix("a", [20])
    found = read(None, train=(["a"], None), valid=(["a"], None))
    assert found.parts == ((0, 1), (0, 1), None)
    with pytest.raises(ConfigError, match="--split 98,1,1 with data of a split's own"):
        Reading.check(None, [(["a"], None), None, None], "98,1,1", 8, {}, files=True)
    with pytest.raises(ConfigError, match="needs --split"):
        Reading.check((["a"], None), None, None, 8, {}, files=True)


def test_one_file_in_two_domains_is_refused() -> None:
    write_prefix("a", [20])
    for suffix in (".idx", ".bin"):
        Path(f"b{suffix}").symlink_to(f"a{suffix}")
    check_links({"a": "x", "b": "x", "s3://c": "y"})
    with pytest.raises(ConfigError, match=r"'a' and 'b' are one file .* two domains \(x and y\)"):
        check_links({"a": "x", "b": "y"})


def flags(**given: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"eval_iters": 2, "full_validation": False, **given})


def test_evaluations_that_would_stop_the_run() -> None:
    write_prefix("a", [20] * 60)
    write_prefix("b", [20] * 60)
    weighted: Blend = (["a", "b"], [1, 1])
    check_evaluations(flags(), read(weighted, "80,10,10"))
    check_evaluations(flags(eval_iters=0), read((["a"], None), "80,10,10"))
    check_evaluations(flags(eval_iters=0), read(weighted, "100"))
    with pytest.raises(ConfigError, match=r"--eval-iters 0 with data .* \(valid, test\)"):
        check_evaluations(flags(eval_iters=0), read(weighted, "80,10,10"))
    with pytest.raises(ConfigError, match="--eval-iters 2, and no validation data"):
        check_evaluations(flags(), read(weighted, "100"))
    # A host without the flag does not evaluate then.
    check_evaluations(flags(full_validation=None), read(weighted, "100"))
    with pytest.raises(ConfigError, match="nothing to train on"):
        check_evaluations(flags(), read(weighted, "0,0,100"))
    check_evaluations(flags(skip_train=True), read(weighted, "0,0,100"))
    with pytest.raises(ConfigError, match=r"--full-validation .* weights"):
        check_evaluations(flags(full_validation=True), read(weighted, "80,10,10"))
    check_evaluations(flags(full_validation=True), read((["a", "b"], None), "80,10,10"))


def test_the_tokens_between_two_sequences() -> None:
    lengths = [7, 0, 11, 13, 17, 19, 23]
    write_prefix("a", lengths)
    index = Index.read("a")
    for first in range(len(lengths) + 1):
        for stop in range(first, len(lengths) + 1):
            assert index.count(first, stop) == sum(lengths[first:stop])


def test_the_training_tokens_of_a_domain() -> None:
    """Each prefix once; a domain of which a part is in an object store has no number."""
    write_prefix("a", [10] * 10)
    write_prefix("b", [10] * 10)
    write_prefix("c", [10] * 100)
    domains = {"a": "ab", "b": "ab", "c": "c"}
    names = {os.path.abspath(prefix): domain for prefix, domain in domains.items()}
    names |= {"s3://x": "ab"}

    def tokens(reading: Reading) -> dict[str, int]:
        return training_tokens(reading, training_corpora(reading, seq_length=8), names)

    whole = (["a", "./b", "c", "b"], [1.0, 1, 1, 1])
    assert tokens(read(whole, "8,2")) == {"ab": 160, "c": 800}
    own: Blend = (["a"], None)
    assert tokens(read(None, train=own, valid=(["c"], None))) == {"ab": 100}
    remote = (["a", "s3://x", "c"], [1.0, 1, 1])
    assert tokens(read(remote, "1")) == {"c": 1000}
