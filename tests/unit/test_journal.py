"""The journal of decisions: every line can be read, whatever a crash has left in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from domain_pretrain.records.journal import JOURNAL_FILE, decide, tell_block

ORDER = {"--seed": 1}


def lines(folder: Path) -> list[bytes]:
    return (folder / JOURNAL_FILE).read_bytes().splitlines()


def test_a_decision_is_written_once(tmp_path: Path) -> None:
    decide(tmp_path, 0, 0, ORDER)
    decide(tmp_path, 4, 16, ORDER)
    decide(tmp_path, 8, 32, {"--seed": 2})
    found = [json.loads(line) for line in lines(tmp_path)]
    assert [(entry["iteration"], entry["order"]["--seed"]) for entry in found] == [(0, 1), (8, 2)]


def test_blocks_stand_between_orders(tmp_path: Path) -> None:
    """A resumed run with the same order adds its blocks, and no second line of the order."""
    decide(tmp_path, 0, 0, ORDER)
    tell_block(tmp_path, 0, 0, 0, {"finance": 0.25, "general": 0.75}, {"f": 4, "g": 12})
    decide(tmp_path, 4, 16, ORDER)
    tell_block(tmp_path, 4, 16, 1, {"finance": 0.5, "general": 0.5}, {"f": 8, "g": 8})
    found = [json.loads(line) for line in lines(tmp_path)]
    assert [entry.get("block", "order") for entry in found] == ["order", 0, 1]
    assert found[2]["counts"] == {"f": 8, "g": 8}
    assert (found[2]["iteration"], found[2]["consumed_samples"]) == (4, 16)


@pytest.mark.parametrize("torn", [b'{"iterat', b"\xff", b'{"order": ' + b"[" * 100_000], ids=len)
def test_a_torn_line_takes_no_decision_with_it(torn: bytes, tmp_path: Path) -> None:
    (tmp_path / JOURNAL_FILE).write_bytes(torn)
    decide(tmp_path, 4, 16, ORDER)
    assert lines(tmp_path)[:-1] == [torn]
    assert json.loads(lines(tmp_path)[-1])["order"] == ORDER
    decide(tmp_path, 8, 32, ORDER)
    assert len(lines(tmp_path)) == 2
