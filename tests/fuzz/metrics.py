"""``domain_metrics.jsonl`` and what lies beside it, for all that reads a run's files."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from domain_pretrain.commands.main import main
from domain_pretrain.errors import ConfigError
from domain_pretrain.records.compact import compact
from domain_pretrain.records.journal import JOURNAL_FILE, note_start, read_starts
from domain_pretrain.records.reader import (
    METRICS_FILE,
    Lines,
    MetricsTail,
    domain_names,
    is_event,
    parse_line,
    read_events,
    read_metrics,
)
from domain_pretrain.records.writer import LinesFile
from domain_pretrain.strategies.reference import resolve
from fuzz.case import Case
from fuzz.damage import NASTY, damaged, nested, with_nasty

NAMES = ("web", "数学", "[bold]x", "a b", "", "x" * 200, "C++", "\u2028")
PICTURES = 0.03  # a share: one takes half a second


def case(rng: random.Random) -> Case:
    """A file that is whole, one with a broken line in it, or one that is damaged anywhere."""
    lines = _lines(rng)
    what, seed = rng.random(), rng.getrandbits(32)
    patience = 1
    if rng.random() < PICTURES:
        patience = 10
    if what < 0.25:
        torn = json.dumps(lines[0]).encode()[: rng.randrange(20)] if rng.random() < 0.3 else b""
        content = _spelled(lines) + torn
        return Case("valid", True, _Check(seed, content, patience > 1), patience)
    if what < 0.6:
        at, (name, line) = rng.randrange(len(lines)), rng.choice(BROKEN)
        raw = _spelled(lines[:at]) + line(rng, lines[at]) + b"\n" + _spelled(lines[at:])
        return Case(name, False, _Check(seed, raw, patience > 1), patience)
    if what < 0.65:
        raw = (
            rng.choice((b"{}", b"", b"[]\n" * 3, b"{}\n{\n", b"\xff", b"null", b"\0" * 99)) + b"\n"
        )
        return Case("no line of ours", False, _Check(seed, raw, False))
    if what < 0.8:
        lines = [with_nasty(rng, line) if rng.random() < 0.3 else line for line in lines]
        raw = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        return Case("nasty value", None, _Check(seed, raw, patience > 1), patience)
    raw = damaged(rng, _spelled(lines))
    return Case("damaged bytes", None, _Check(seed, raw, patience > 1), patience)


def _lines(rng: random.Random) -> list[dict[str, Any]]:
    names = rng.sample(NAMES, rng.randrange(1, 4))
    lines: list[dict[str, Any]] = []
    for iteration in range(1, rng.randrange(2, 12)):
        if rng.random() < 0.15:
            lines.append({"event": "resume", "iteration": iteration, "detail": "from [5] → 6"})
        split = rng.choice(("train", "train", "valid", "test"))
        lines.append(_line(rng, iteration, split, names))
    lines.append(_line(rng, 12, "train", names))
    if rng.random() < 0.3:  # as a run with many domains writes them
        header = {"event": "start", "iteration": 0, "detail": "", "domains": names}
        return [header, *(one if is_event(one) else compact(one, names) for one in lines)]
    return lines


def _line(rng: random.Random, iteration: int, split: str, names: list[str]) -> dict[str, Any]:
    domains = {}
    for name in names:
        tokens = rng.choice((1, 1_000, 0.5, 10**12))
        loss = rng.choice((0.0, 2.5, 800.0, None))
        domains[name] = {
            "loss": loss,
            "loss_sum": (loss or 0.0) * tokens,
            "tokens": tokens,
            "samples": 3,
            **({"nonfinite": 1} if loss is None else {}),
        }
    present = {name: domains[name] for name in names if rng.random() < 0.8 or name == names[0]}
    return {"iteration": iteration, "consumed_samples": 4, "split": split, "domains": present}


def _spelled(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


class _Check:
    """All that reads the file; each finds the same lines in it."""

    def __init__(self, seed: int, content: bytes, picture: bool) -> None:
        self._seed, self._content, self._picture = seed, content, picture

    def __call__(self, folder: Path) -> bool:
        rng = random.Random(self._seed)
        path = folder / METRICS_FILE
        path.write_bytes(self._content)
        words = ["report", str(folder)]
        if self._picture:
            words += ["--png", "picture.png", "--x", rng.choice(("tokens", "iterations"))]
        code = main(words)
        assert code in (0, 2)
        try:
            with contextlib.redirect_stdout(io.StringIO()) as said:
                entries = read_metrics(path)
        except ConfigError:
            assert code == 2
            raise
        events = read_events(folder)
        found = list(_read(self._content))
        told = "left out" in said.getvalue()
        assert told == (len(found) < self._content.count(b"\n"))
        assert entries == [line for line in found if not is_event(line)]
        assert len(events) == len(found) - len(entries)
        tail = MetricsTail(folder).read()
        assert tail == entries[: len(tail)] and len(entries) - len(tail) <= 1
        if entries:
            self._as_reference(path, domain_names(entries))
        if self._picture and code == 0:
            assert Path("picture.png").stat().st_size > 0
        whole = [parse_line(line) for line in io.BytesIO(self._content)]
        self._resume(rng, path, [line for line in whole if line is not None])
        _journal(rng, folder, self._content)
        return code != 0 or told

    def _as_reference(self, path: Path, names: list[str]) -> None:
        try:
            losses = resolve(path, tuple(names), "reweight.reference")
        except ConfigError:
            return  # a domain without a finite loss has none
        assert all(loss == loss for loss in losses.values())

    def _resume(self, rng: random.Random, path: Path, found: list[dict[str, Any]]) -> None:
        """A run that goes on keeps what is before its checkpoint, and can be read afterwards."""
        after = rng.choice((0, 3, 12, None))
        file = LinesFile.open(path, after)
        added = {"event": "resume", "iteration": after or 0, "detail": ""}
        file.append(added)
        file.close()
        kept = [parse_line(line) for line in io.BytesIO(path.read_bytes())]
        assert kept[-1] == added
        assert None not in kept
        if after is None:
            assert kept[:-1] == found


def _read(content: bytes) -> Iterator[dict[str, Any]]:
    lines = Lines()
    for line in io.BytesIO(content):  # not splitlines: a carriage return ends no line
        with contextlib.suppress(ValueError):
            yield lines.entry(line)


def _journal(rng: random.Random, folder: Path, content: bytes) -> None:
    (folder / JOURNAL_FILE).write_bytes(content)
    order = {"seed": 1, "blend": [["a", 0.5]]}
    note_start(folder, 4, 16, order, {})
    last = (folder / JOURNAL_FILE).read_bytes().splitlines()[-1]
    assert json.loads(last) == {
        "iteration": 4,
        "consumed_samples": 16,
        "order": order,
        "reads": {},
    }
    assert read_starts(folder)[-1].order == order


def _with(*keys: str, values: tuple[Any, ...] = ()) -> Any:
    """A change of a line: what its key, or that of a domain, holds."""

    def change(rng: random.Random, line: dict[str, Any]) -> bytes:
        line = json.loads(
            json.dumps(
                line if isinstance(line.get("domains"), dict) else _line(rng, 1, "train", ["web"])
            )
        )
        place: Any = line
        for key in keys[:-1]:
            place = next(iter(place["domains"].values())) if key == "*" else place[key]
        if values:
            place[keys[-1]] = rng.choice(values)
        else:
            del place[keys[-1]]
        return json.dumps(line).encode()

    return change


_NO_NUMBER = ("1", True, [], {}, float("nan"), float("inf"), 1e31, "NaN")
BROKEN: tuple[tuple[str, Any], ...] = (
    ("no JSON", lambda rng, line: json.dumps(line).encode()[: rng.randrange(1, 20)]),
    ("not UTF-8", lambda rng, line: b"\xff" + json.dumps(line).encode()),
    ("deep", lambda rng, line: b'{"domains": ' + nested(rng).encode()[:-1]),
    ("deep, whole", lambda rng, line: b'{"domains": ' + nested(rng, '{"a": ', "}").encode()[:-1]),
    ("two lines in one", lambda rng, line: json.dumps(line).encode() * 2),
    ("another value", lambda rng, line: json.dumps(rng.choice(NASTY[:40])).encode()),
    ("no iteration", _with("iteration")),
    ("no split", _with("split")),
    ("no domains", _with("domains")),
    ("wrong iteration", _with("iteration", values=(-1, 1.5, "1", None, True, 2**70))),
    ("wrong split", _with("split", values=("training", "", None, 1))),
    ("wrong domains", _with("domains", values=([], None, "web", {"web": 1}, {"web": None}))),
    ("no tokens", _with("*", "tokens")),
    ("no sum", _with("*", "loss_sum")),
    ("no loss", _with("*", "loss")),
    ("wrong tokens", _with("*", "tokens", values=(*_NO_NUMBER, None, -1))),
    ("wrong sum", _with("*", "loss_sum", values=(*_NO_NUMBER, None))),
    ("wrong loss", _with("*", "loss", values=_NO_NUMBER)),
    ("an event of nothing", lambda rng, line: b'{"event": null, "iteration": 1, "detail": ""}'),
    ("an event of never", lambda rng, line: b'{"event": "resume", "detail": ""}'),
)
