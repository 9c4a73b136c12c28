"""The journal of starts: every line can be read, whatever a crash has left in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from domain_pretrain.errors import ConfigError
from domain_pretrain.records.journal import (
    JOURNAL_FILE,
    note_start,
    read_starts,
    tell_block,
)

ORDER = {"--seed": 1}
READS = {"domains": ["web"]}


def lines(folder: Path) -> list[bytes]:
    return (folder / JOURNAL_FILE).read_bytes().splitlines()


def note(folder: Path, iteration: int, order: dict[str, Any] = ORDER, **more: Any) -> None:
    note_start(folder, iteration, 4 * iteration, order, READS, **more)


def told(number: int, start: int, count: int) -> dict[str, Any]:
    """A block of 16 samples."""
    before = {"f": start, "g": 16 * number - start}
    return {"block": number, "starts": before, "counts": {"f": count, "g": 16 - count}}


def test_each_start_has_a_line(tmp_path: Path) -> None:
    note(tmp_path, 0)
    note(tmp_path, 4)
    note(tmp_path, 8, {"--seed": 2})
    found = [json.loads(line) for line in lines(tmp_path)]
    assert [(entry["iteration"], entry["order"]["--seed"]) for entry in found] == [
        (0, 1),
        (4, 1),
        (8, 2),
    ]
    starts = read_starts(tmp_path)
    assert [(start.iteration, start.consumed_samples) for start in starts] == [
        (0, 0),
        (4, 16),
        (8, 32),
    ]
    assert starts[2].order == {"--seed": 2}
    assert starts[2].reads == READS


def test_a_later_start_overrides_what_comes_after_it(tmp_path: Path) -> None:
    for iteration in (0, 4, 8, 4, 6):
        note(tmp_path, iteration)
    assert [start.iteration for start in read_starts(tmp_path)] == [0, 4, 6]
    note(tmp_path, 0)
    assert [start.iteration for start in read_starts(tmp_path)] == [0]


def test_blocks_stand_between_starts(tmp_path: Path) -> None:
    note(tmp_path, 0)
    tell_block(tmp_path, 0, 0, {"finance": 0.25}, **told(0, 0, 4))
    note(tmp_path, 4, blocks=[told(0, 0, 4)])
    tell_block(tmp_path, 4, 16, {"finance": 0.5}, **told(1, 4, 8))
    found = [json.loads(line) for line in lines(tmp_path)]
    assert [entry.get("block", "order") for entry in found] == ["order", 0, "order", 1]
    assert found[3]["counts"] == {"f": 8, "g": 8}
    assert (found[3]["iteration"], found[3]["consumed_samples"]) == (4, 16)
    assert [start.iteration for start in read_starts(tmp_path)] == [0, 4]
    tell_block(tmp_path, 2, 8, {"finance": 0.0}, **told(1, 4, 0))
    (tmp_path / JOURNAL_FILE).open("ab").write(b'{"block": 2, "sta')
    first, second = (start.blocks for start in read_starts(tmp_path))
    assert first.keys() == {0}
    assert second.keys() == {0, 1}, "one that its checkpoint held, too"
    assert second[1].starts == {"f": 4, "g": 12} and second[1].counts == {"f": 0, "g": 16}


def test_a_block_is_of_its_start_alone(tmp_path: Path) -> None:
    """Another plan begins within a block, and has not come yet to what was decided before it."""

    def counts() -> list[dict[int, int]]:
        return [
            {number: block.counts["f"] for number, block in start.blocks.items()}
            for start in read_starts(tmp_path)
        ]

    note(tmp_path, 0)
    for number in range(4):
        tell_block(tmp_path, number, 4 * number, {}, **told(number, 0, 10 + number))
    note(tmp_path, 2)
    tell_block(tmp_path, 2, 8, {}, **told(2, -1, 15))
    assert counts() == [{0: 10, 1: 11, 2: 12, 3: 13}, {2: 15}]
    note(tmp_path, 2, blocks=[told(1, 0, 11), told(2, 0, 12)])
    tell_block(tmp_path, 4, 16, {}, **told(3, 0, 9))
    assert counts() == [{0: 10, 1: 11, 2: 12, 3: 13}, {1: 11, 2: 12, 3: 9}]


@pytest.mark.parametrize("torn", [b'{"iterat', b"\xff", b'{"order": ' + b"[" * 100_000], ids=len)
def test_a_torn_line_takes_no_start_with_it(
    torn: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / JOURNAL_FILE).write_bytes(torn)
    note(tmp_path, 4)
    assert lines(tmp_path)[:-1] == [torn]
    assert json.loads(lines(tmp_path)[-1])["order"] == ORDER
    assert [start.iteration for start in read_starts(tmp_path)] == [4]
    assert "1 of 2 lines cannot be read" in capsys.readouterr().out


def test_a_line_of_another_kind_is_no_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / JOURNAL_FILE).write_text('{"block": 3, "counts": [1, 2]}\n')
    with pytest.raises(ConfigError, match="tells of no start"):
        read_starts(tmp_path)
    note(tmp_path, 0)
    assert len(read_starts(tmp_path)) == 1
    assert not capsys.readouterr().out


def test_no_journal(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"domain_journal\.jsonl: No such file"):
        read_starts(tmp_path)


def test_a_line_of_an_older_version(tmp_path: Path) -> None:
    old = {"iteration": 0, "consumed_samples": 0, "order": ORDER}
    (tmp_path / JOURNAL_FILE).write_text(json.dumps(old) + "\n")
    (start,) = read_starts(tmp_path)
    assert start.reads is None
