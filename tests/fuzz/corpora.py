"""Text files for ``prepare``: whatever is in them, the books balance, no text is in two sets."""

from __future__ import annotations

import codecs
import collections
import contextlib
import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from support.prepared import read_back

from domain_pretrain.commands.main import main
from domain_pretrain.config import DomainConfig
from domain_pretrain.data.blend import blend_of_words, data_path_arguments
from domain_pretrain.errors import DomainPretrainError
from domain_pretrain.hosts.command_line import read_data_flags
from domain_pretrain.launch.flags import Flags
from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.prepare.errors import BadLine
from domain_pretrain.prepare.manifest import Manifest
from fuzz.case import Case
from fuzz.damage import damaged, nested

VALUES: tuple[Any, ...] = (
    *("web", "a/b", "a", "C++", "", None, 3, True, 1.5, [], {}, "x.bin", "..", "\ud800", "数学"),
    *("a b", " a", "a\nb", "b.holdout", "x" * 300, "manifest.json", "domains", "[a]"),
)
TEXTS: tuple[Any, ...] = (
    *(
        "hello",
        "<s>",
        "锟斤拷&nbsp;",
        "\ud800",
        "",
        None,
        5,
        "é" * 10,
        "\0",
        "\ufffd",
        "dup",
        "dup",
    ),
    *(" ", "\n", "\r\n", "\u2028", "a,b", '"', "\ufeffmark", "&" * 50, "x" * 3_000, [], {"a": 1}),
)
KINDS = ("jsonl", "json", "csv", "tsv", "txt", "parquet")
ENCODINGS = (
    "gb18030",
    "utf-16",
    "utf-32-be",
    "shift_jis",
    "cp1252",
    "utf-7",
    "hz",
    "idna",
    "utf-8-sig",
)
WORKERS = 0.01  # a share: it takes seconds to start two
EOD = 256


def case(rng: random.Random) -> Case:
    """Records of many kinds in one of many forms; or a file or an option that is broken."""
    what = rng.random()
    if what < 0.75:
        workers = 2 if rng.random() < WORKERS else 1
        return Case("records", None, _Check(rng.getrandbits(32), workers), 1 + 29 * (workers - 1))
    if what < 0.85:
        return Case("good records", True, _Check(rng.getrandbits(32), 1, good=True))
    name, broken = rng.choice(BROKEN)
    return Case(name, False, _Broken(rng.getrandbits(32), broken))


class _Check:
    """Prepare, hold what was written against the manifest, and prepare again."""

    def __init__(self, seed: int, workers: int, *, good: bool = False) -> None:
        self._seed, self._workers, self._good = seed, workers, good

    def __call__(self, folder: Path) -> bool:
        rng = random.Random(self._seed)
        kind, options = rng.choice(KINDS), _options(rng, self._good)
        if kind == "txt":
            for name in ("by", "template", "channel_key"):
                options.pop(name, None)
            if self._good:  # there are but one or two documents
                options.pop("holdout", None)
        count = 1 if rng.random() < 0.7 else 2
        kinds = [kind, rng.choice([k for k in KINDS if (k == "txt") == (kind == "txt")])][:count]
        inputs = [_write(rng, Path(f"in{i}"), k, options, self._good) for i, k in enumerate(kinds)]
        before = _files(folder)
        try:
            manifest = prepare(inputs, "out", "bytes", workers=self._workers, **options)
        except DomainPretrainError:
            assert _files(folder) == before, "an error left something behind"
            raise
        written = _files(folder)
        _balance(manifest, options)
        if "by" in options:
            _config_reads(manifest, options)
        assert main(["prepare", *map(str, inputs), *_words(options)]) == 0
        assert _files(folder) == written, "a second run wrote something else"
        return manifest.bad_lines > 0


def _files(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def _options(rng: random.Random, good: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"max_bad": rng.choice((0.01, 1, 1))}
    if rng.random() < 0.6:
        options["by"] = "meta.s"
    if rng.random() < 0.5:
        options["holdout"] = "1" if good else rng.choice(("1", "3", "20%", "1%", "50%"))
    if rng.random() < 0.3:
        options["template"] = rng.choice(("T {text}", "{text}{meta.s}", "{{{text}}}\\n"))
    if rng.random() < 0.4:
        options["channel_key"] = rng.choice(("meta.s", "meta.s", "text"))
    if rng.random() < 0.1:
        options["append_eod"] = False
    return options


def _words(options: dict[str, Any]) -> list[str]:
    """The same on the command line."""
    words = ["--output", "out", "--tokenizer", "bytes", "--workers", "1", "--force"]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "append_eod":
            words.append("--no-append-eod")
        else:
            words += [flag, f"{100 * value:g}%" if name == "max_bad" else value]
    return words


def _records(rng: random.Random, good: bool) -> list[dict[str, Any]]:
    found = []
    for _ in range(rng.randrange(20, 40) if good else rng.randrange(40)):
        record: dict[str, Any] = {}
        strange = rng.random() < 0.5 and not good
        if rng.random() < 0.95 or good:
            record["text"] = rng.choice(TEXTS) if strange else f"t{rng.randrange(30)}"
        if rng.random() < 0.9 or good:
            source = rng.choice(VALUES) if rng.random() < 0.5 and not good else None
            record["meta"] = {"s": rng.choice(("web", "x")) if source is None else source}
        if rng.random() < 0.1 and not good:
            record["meta.s"] = "flat"
        found.append(record)
    if good:  # each value has texts enough for one to be held out
        found += [{"text": f"{s} {i}", "meta": {"s": s}} for s in ("web", "x") for i in range(3)]
    return found


def _write(rng: random.Random, stem: Path, kind: str, options: dict[str, Any], good: bool) -> Path:
    """One input; it may set the encoding that it is in."""
    records = _records(rng, good)
    path = stem.with_suffix(f".{kind}")
    if kind == "parquet":
        _write_parquet(rng, path, records)
        return path
    raw = _spelled(rng, kind, records, 0 if good else 0.02)
    encoding = options.get("encoding")
    if encoding is None and rng.random() < 0.15 and not good and stem.name == "in0":
        encoding = options["encoding"] = rng.choice(ENCODINGS)
    if encoding is not None:
        with contextlib.suppress(UnicodeError):
            raw = raw.decode("utf-8", "replace").encode(encoding, "replace")
    if rng.random() < 0.2 and not good:
        raw = damaged(rng, raw)
    if rng.random() < 0.2:
        compression = rng.choice((".gz", ".zst"))
        path = path.with_name(path.name + compression)
        raw = _compressed(raw, compression)
        if rng.random() < 0.3 and not good:
            raw = damaged(rng, raw)
    path.write_bytes(raw)
    return path


def _spelled(
    rng: random.Random, kind: str, records: list[dict[str, Any]], short_rows: float
) -> bytes:
    if kind == "json":
        return json.dumps(records, indent=rng.choice((None, 1))).encode()
    if kind == "jsonl":
        end = rng.choice(("\n", "\r\n", "\n\n"))
        return end.join(json.dumps(record) for record in records).encode()
    if kind == "txt":
        lines = [str(record.get("text")) for record in records]
        return "\n".join(lines).encode("utf-8", "replace").replace(b"\0", b"")
    table = io.StringIO()
    writer = csv.writer(table, delimiter="," if kind == "csv" else "\t")
    writer.writerow(["text", "meta.s"])
    for record in records:
        meta = record.get("meta", {}).get("s")
        writer.writerow([record.get("text"), meta][: 1 if rng.random() < short_rows else 2])
    return table.getvalue().encode("utf-8", "replace")


def _write_parquet(rng: random.Random, path: Path, records: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    def text(value: Any) -> str | None:
        return value if isinstance(value, str) and "\ud800" not in value else None

    texts = [text(record.get("text")) for record in records]
    sources = [text(record.get("meta", {}).get("s")) for record in records]
    struct = pyarrow.struct([("s", pyarrow.string())])
    within = [
        None if rng.random() < 0.05 and None in sources else {"s": source} for source in sources
    ]
    kind = rng.choice((pyarrow.string(), pyarrow.large_string()))
    columns = {"text": pyarrow.array(texts, kind), "meta": pyarrow.array(within, struct)}
    if rng.random() < 0.3:
        columns["text"] = columns["text"].dictionary_encode()
    table = pyarrow.table(columns)
    parquet.write_table(table, path, row_group_size=rng.choice((1, 7, 1_000)))


def _compressed(raw: bytes, compression: str) -> bytes:
    if compression == ".gz":
        return gzip.compress(raw, mtime=0)
    import pyarrow

    return bytes(pyarrow.compress(raw, "zstd", asbytes=True))


# --- what holds of every corpus -------------------------------------------------------------------


def _balance(manifest: Manifest, options: dict[str, Any]) -> None:
    """All that was read was written once, left out as bad, or left out as empty."""
    prefixes = [path.with_suffix("") for path in Path().rglob("*.idx")]
    assert len(prefixes) == len(manifest.datasets)
    training: list[bytes] = []
    held_out: list[bytes] = []
    for prefix in prefixes:
        ids = read_back(prefix)
        if options.get("append_eod", True):
            assert all(document[-1] == EOD for document in ids)
            ids = [document[:-1] for document in ids]
        texts = [bytes(document) for document in ids]
        own = Manifest.load(prefix)
        assert own.documents == len(texts)
        assert own.text_bytes == sum(map(len, texts))
        assert own.held_out == prefix.name.endswith(".holdout")
        _channels(prefix, own, texts, options)
        (held_out if own.held_out else training).extend(texts)
    assert not set(training) & set(held_out), "a text on both sides of the holdout"
    assert bool(held_out) == ("holdout" in options)
    assert manifest.documents == len(training)
    read = sum(source.documents for source in manifest.inputs)
    assert read == len(training) + len(held_out)
    if not any(".txt" in source.path for source in manifest.inputs):
        assert manifest.lines == manifest.bad_lines + manifest.empty_documents + read
    counted = collections.Counter(training)
    assert manifest.quality is not None
    assert manifest.quality.exact_duplicates == len(training) - len(counted)


def _channels(prefix: Path, own: Manifest, texts: list[bytes], options: dict[str, Any]) -> None:
    """Every document has one, and the manifest's counts are those of the documents."""
    path = Path(f"{prefix}.channels.npy")
    assert path.exists() == ("channel_key" in options) == bool(own.channels)
    if not path.exists():
        return
    numbers = np.load(path).tolist()
    assert list(dict.fromkeys(numbers)) == list(range(len(own.channels))), "not as they appear"
    assert len(numbers) == len(texts)
    counts = [[0, 0] for _ in own.channels]
    for number, content in zip(numbers, texts, strict=True):
        counts[number][0] += 1
        counts[number][1] += len(content)
        if options["channel_key"] == "text" and "template" not in options:
            assert own.channels[number].name.encode() == content
    assert counts == [[channel.documents, channel.text_bytes] for channel in own.channels]
    assert sum(channel.tokens for channel in own.channels) == own.tokens


def _config_reads(manifest: Manifest, options: dict[str, Any]) -> None:
    """What was written to train with is taken by what reads it."""
    domains = DomainConfig.load("out/domains.yaml").domains
    found = {dataset.domain for dataset in manifest.datasets if not dataset.held_out}
    assert found <= set(domains)
    prefixes = blend_of_words(data_path_arguments(domains)[1:])[0]
    assert len(prefixes) == len(manifest.datasets)
    if "holdout" in options:
        _, per_split = read_data_flags(Flags(per_split_data_args_path="out/splits.json"))
        assert per_split is not None and per_split[2] is None


# --- what is broken, by construction --------------------------------------------------------------

Break = Callable[[random.Random], dict[str, Any]]
"""Writes ``in.*`` and gives the arguments of ``prepare``."""


class _Broken:
    def __init__(self, seed: int, make: Break) -> None:
        self._seed, self._make = seed, make

    def __call__(self, folder: Path) -> bool:
        arguments = {"inputs": ["in.jsonl"], "workers": 1}
        good = "".join(json.dumps({"text": f"t{i}", "meta": {"s": "a"}}) + "\n" for i in range(9))
        Path("in.jsonl").write_text(good, "utf-8")
        arguments |= self._make(random.Random(self._seed))
        before = _files(folder)
        told: list[BadLine] = []
        try:
            prepare(prefix="out", tokenizer="bytes", on_bad_line=told.append, **arguments)
        except DomainPretrainError:
            assert _files(folder) == before, "an error left something behind"
            raise
        return bool(told)


def _file(name: str, content: bytes) -> dict[str, Any]:
    Path(name).write_bytes(content)
    return {"inputs": [name], "max_bad": 1}


def _cut_compressed(rng: random.Random) -> dict[str, Any]:
    suffix = rng.choice((".gz", ".zst"))
    raw = Path("in.jsonl").read_bytes() * rng.choice((1, 500))
    whole = _compressed(raw, suffix)
    return _file(f"x.jsonl{suffix}", whole[: rng.randrange(1, len(whole))])


def _cut_parquet(rng: random.Random) -> dict[str, Any]:
    _write_parquet(rng, Path("x.parquet"), [{"text": "a"}] * 30)
    whole = Path("x.parquet").read_bytes()
    return _file("x.parquet", whole[: rng.randrange(len(whole))])


def _foreign_parquet(rng: random.Random) -> dict[str, Any]:
    import pyarrow
    from pyarrow import parquet

    column: Any = rng.choice(([1, 2], [1.5, None], [["a"]], [{"a": 1}], [b"a"], [None]))
    parquet.write_table(pyarrow.table({rng.choice(("text", "txt")): column}), "x.parquet")
    return {"inputs": ["x.parquet"]}


def _a_bad_line(rng: random.Random) -> dict[str, Any]:
    good = Path("in.jsonl").read_bytes()
    bad: tuple[bytes, ...] = (
        *(
            b"{",
            b"[]x",
            b"nul",
            b'{"text": "a"',
            b"\xff",
            b'{"text": "\xff"}',
            b"\0",
            b"1",
            b"null",
        ),
        *(b'{"text": null}', b'{"text": 1}', b'{"tekst": "a"}', b'"\\ud800"', b'{"text": "a\x00"}'),
        *(b'{"text": ' + b"9" * 5_000 + b"}", b'{"text": ' + nested(rng).encode() + b"}"),
    )
    return _file("x.jsonl", good + rng.choice(bad) + b"\n")


def _an_array_that_does_not_end(rng: random.Random) -> dict[str, Any]:
    whole = json.dumps([{"text": "a"}] * 5).encode()
    tail = rng.choice((b"]", b" {}", b"\nx", b",", whole))
    return _file("x.json", rng.choice((whole[: rng.randrange(2, len(whole))], whole + tail)))


def _a_mark_of_another(rng: random.Random) -> dict[str, Any]:
    mark = rng.choice((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE))
    return _file("x.jsonl", mark + Path("in.jsonl").read_bytes())


def _a_table_without_end(rng: random.Random) -> dict[str, Any]:
    rows = (b'text\n"a', b'text\n"a"b\n', b"other\na\n", b"text,text\na,b\n", b"", b"text\na,b\n")
    return _file("x.csv", rng.choice(rows))


def _an_option(rng: random.Random) -> dict[str, Any]:
    wrong: tuple[tuple[str, Any], ...] = (
        *[("holdout", text) for text in ("0", "100%", "0%", "1.5", "-1", "x", "", "9" * 30, "9")],
        *[("template", text) for text in ("", "{", "}", "{}", "{a!r}", "{text[0]}", "{text}\\x")],
        *[("encoding", text) for text in ("utf-99", "", "base64", "rot13", "\0", "é", "../x")],
        *[("by", text) for text in ("", "nothing", "meta", "text.s", "\ud800")],
        *[("channel_key", text) for text in ("", "nothing", "meta", "text.s", "\ud800")],
        *[("text_key", text) for text in ("", "nothing", "meta", "meta.x", "\ud800")],
        *[("max_bad", number) for number in (-1, 1.5, float("nan"))],
        *[("workers", number) for number in (0, -1)],
        *[("kind", text) for text in ("exe", "")],
        *[("inputs", paths) for paths in ([], ["none"], ["*.x"], ["in.jsonl"] * 2, ["", "\0"])],
        *[
            ("inputs", [path])
            for path in ("x" * 300, "in.jsonl/", "[", "**/none", "~", "/dev/null")
        ],
    )
    name, value = rng.choice(wrong)
    if name == "kind":
        Path("x").write_text("a", "utf-8")
        return {"inputs": ["x"], name: value}
    return {name: value}


BROKEN: tuple[tuple[str, Break], ...] = (
    ("cut compressed", _cut_compressed),
    ("cut Parquet", _cut_parquet),
    ("foreign Parquet", _foreign_parquet),
    ("a bad line", _a_bad_line),
    ("an array that does not end", _an_array_that_does_not_end),
    ("a mark of another encoding", _a_mark_of_another),
    ("a table that is none", _a_table_without_end),
    ("a wrong option", _an_option),
)
