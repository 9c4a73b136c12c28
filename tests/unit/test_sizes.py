"""How much training data a run knows it has, for the epochs of its report."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from domain_pretrain.data.prefixes import normalise
from domain_pretrain.hosts.sizes import training_tokens


@pytest.fixture
def prefixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """``a`` and ``b`` of 100 tokens are one domain, ``c`` of 1000 another; ``no`` has no files."""
    monkeypatch.chdir(tmp_path)
    for name, tokens in (("a", 100), ("b", 100), ("c", 1000)):
        index = b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, 8)  # uint16
        Path(f"{name}.idx").write_bytes(index)
        Path(f"{name}.bin").write_bytes(bytes(2 * tokens))
    domains = {"a": "ab", "b": "ab", "c": "c", "no": "no"}
    return {normalise(prefix): domain for prefix, domain in domains.items()}


def test_a_split_takes_its_part(prefixes: dict[str, str]) -> None:
    blend = (["a", "./b", "c"], None)
    assert training_tokens(prefixes, blend, None, "969, 30, 1") == {"ab": 194, "c": 969}
    assert training_tokens(prefixes, blend, [None, None, None], "1") == {"ab": 200, "c": 1000}
    assert training_tokens(prefixes, blend, None, None) == {"ab": 200, "c": 1000}


def test_data_of_a_splits_own_is_taken_whole(prefixes: dict[str, str]) -> None:
    train, valid = (["a"], None), (["b", "c"], None)
    assert training_tokens(prefixes, None, [train, valid, None], "90,10,0") == {"ab": 100}
    assert training_tokens(prefixes, None, [None, valid, None], None) == {}


def test_what_cannot_be_told_is_left_out(prefixes: dict[str, str]) -> None:
    """A file is missing, or lies in an object store: its whole domain is unknown."""
    remote = {**prefixes, "s3://bucket/c": "c"}
    blend = (["c", "s3://bucket/c", "a", "no"], None)
    assert training_tokens(remote, blend, None, None) == {"ab": 100}
    assert training_tokens({}, None, None, "90,10,0") == {}
