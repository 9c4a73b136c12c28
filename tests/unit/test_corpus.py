"""Prepared files are read back with Megatron's own reader and held against plain Python."""

import argparse
import codecs
import collections
import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain_pretrain.commands import prepare as prepare_command
from domain_pretrain.commands.main import main
from domain_pretrain.errors import DomainPretrainError
from domain_pretrain.prepare import json_array, readers
from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.prepare.encode import Encoder, documents
from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.manifest import Manifest
from domain_pretrain.prepare.readers import Chunk, HashedFile, read_chunks
from domain_pretrain.prepare.record import select
from domain_pretrain.prepare.tokenize import ByteTokenizer, HuggingFaceTokenizer, load_tokenizer

indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")

TEXTS = ["hello", "süß 你好 🙂", "two\nlines\r\n", "tail\u2028end"]


def read_back(prefix: Path) -> list[list[int]]:
    dataset = indexed_dataset.IndexedDataset(str(prefix))
    assert list(dataset.document_indices) == list(range(len(dataset) + 1))
    return [dataset[i].tolist() for i in range(len(dataset))]


def as_bytes(texts: list[str]) -> list[list[int]]:
    return [[*text.encode(), 256] for text in texts]


def json_lines(texts: list[str], key: str = "text") -> str:
    return "".join(json.dumps({key: text}) + "\n" for text in texts)


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def final_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("out"))


# --- what goes in comes out -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
def test_json_lines(tmp_path, name):
    source = write(tmp_path / name, json_lines(TEXTS))
    manifest = prepare([source], tmp_path / "out", "bytes")
    assert read_back(tmp_path / "out") == as_bytes(TEXTS)
    assert manifest.documents == len(TEXTS)
    assert manifest.tokens == sum(map(len, as_bytes(TEXTS)))
    assert manifest.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert manifest.inputs[0].sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert manifest.inputs[0].bytes == source.stat().st_size
    assert Manifest.load(tmp_path / "out") == manifest


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_text_file_is_one_document_kept_as_it_is(tmp_path, name):
    text = "A title\r\n\r\nA paragraph.\n\n\nAnother: süß 你好 🙂"
    source = write(tmp_path / name, "\ufeff" + text)
    prepare([source], tmp_path / "out", "bytes")
    assert read_back(tmp_path / "out") == as_bytes([text])


def test_a_long_text_file_is_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "TEXT_BYTES", 100)
    text = "".join(f"line {i} 你好 {'x' * (i % 37)}\n" for i in range(200)) + "🙂" * 150
    prepare([write(tmp_path / "a.txt", text)], tmp_path / "out", "bytes")
    got = [bytes(document[:-1]).decode() for document in read_back(tmp_path / "out")]
    assert "".join(got) == text
    assert len(got) > 20 and max(map(len, got)) <= 200
    assert all(piece.endswith("\n") for piece in got[:-4])


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    invalid = pyarrow.array([b"ok", b"\xff"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    columns = {"other": range(len(TEXTS) + 4), "body": [*TEXTS, None, ""]}
    table = pyarrow.table(
        {
            "other": columns["other"],
            "body": pyarrow.chunked_array([pyarrow.array(columns["body"]), invalid]),
        }
    )
    source = tmp_path / "a.parquet"
    parquet.write_table(table, source, row_group_size=3)
    bad = []
    manifest = prepare(
        [source], tmp_path / "out", "bytes", text_key="body", max_bad=1, on_bad_line=bad.append
    )
    assert read_back(tmp_path / "out") == as_bytes([*TEXTS, "ok"])
    assert [line.line for line in bad] == [5, 8]
    assert manifest.empty_documents == 1
    assert manifest.inputs[0].sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    with pytest.raises(PrepareError, match=r"no column 'text'.*other, body"):
        prepare([source], tmp_path / "x", "bytes")
    with pytest.raises(PrepareError, match=r"column 'other' is int64"):
        prepare([source], tmp_path / "x", "bytes", text_key="other")
    write(tmp_path / "b.parquet", "no parquet")
    with pytest.raises(PrepareError, match=r"b\.parquet: cannot be read as Parquet"):
        prepare([tmp_path / "b.parquet"], tmp_path / "x", "bytes")


def test_parquet_columns_that_cannot_be_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    source = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["x"], "12345": ["y"]}), source, store_schema=False)
    source.write_bytes(source.read_bytes().replace(b"12345", b"\xb1\xea\xcc\xe2 "))
    with pytest.raises(PrepareError, match=r"a\.parquet: the name of a column is not UTF-8"):
        prepare([source], tmp_path / "out", "bytes")
    twice = pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 2, names=["text", "text"])
    parquet.write_table(twice, source)
    with pytest.raises(PrepareError, match=r"a\.parquet: more than one column 'text'"):
        prepare([source], tmp_path / "out", "bytes")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write(tmp_path / "a.parquet", "")
    with pytest.raises(PrepareError, match=r"pip install 'domain-pretrain\[prepare\]'"):
        prepare([tmp_path / "a.parquet"], tmp_path / "out", "bytes")


def test_inputs_keep_their_order_and_patterns_are_sorted(tmp_path):
    for name in ("z", "b", "a", "[1]"):
        write(tmp_path / f"{name}.jsonl", json_lines([name]))
    inputs = [tmp_path / "z.jsonl", tmp_path / "[1].jsonl", f"{tmp_path}/**/[ab].jsonl"]
    prepare(inputs, tmp_path / "out", "bytes")
    assert read_back(tmp_path / "out") == as_bytes(["z", "[1]", "a", "b"])


def test_without_eod(tmp_path):
    source = write(tmp_path / "a.jsonl", json_lines(TEXTS))
    prepare([source], tmp_path / "out", "bytes", append_eod=False)
    assert read_back(tmp_path / "out") == [list(text.encode()) for text in TEXTS]


@given(texts=st.lists(st.text(st.characters(codec="utf-8"))), ascii_only=st.booleans())
def test_any_text_survives_json_lines(tmp_path_factory, texts, ascii_only):
    """Whatever JSON spells a text with, its bytes come out; only empty documents are left out."""
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=ascii_only) for text in texts]
    path.write_bytes("\n".join(lines).encode())
    encoder = Encoder(ByteTokenizer(), select(), True, "uint16")
    with HashedFile(path) as raw:
        encoded = [encoder(chunk) for chunk in read_chunks(0, path, raw, select())]
    got = [int(t) for part in encoded for found in part.documents.values() for t in found.ids]
    assert got == [token for document in as_bytes([t for t in texts if t]) for token in document]
    assert sum(part.counts.empty_documents for part in encoded) == texts.count("")
    assert not [bad for part in encoded for bad in part.bad]


@given(content=st.binary(), kind=st.sampled_from(["a.jsonl", "a.txt"]))
def test_any_bytes_are_read_or_reported(tmp_path_factory, content, kind):
    path = write(tmp_path_factory.mktemp("any") / kind, content)
    with HashedFile(path) as raw:
        try:
            for chunk in read_chunks(0, path, raw, select()):
                for item in documents(chunk, select()):
                    assert 1 <= item.line <= content.count(b"\n") + 1
        except PrepareError as error:  # as a whole
            assert "array" in str(error) or "byte order mark" in str(error)
            return
        assert raw.sha256() == hashlib.sha256(content).hexdigest()


# --- workers --------------------------------------------------------------------------------


def test_workers_do_not_change_a_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CHUNK_BYTES", 2000)
    random = np.random.default_rng(0)
    lines = [json.dumps({"text": "ab" * int(n)}) for n in random.integers(0, 200, 500)]
    lines[100] = "broken"
    sources = [
        write(tmp_path / "a.jsonl", "\n".join(lines)),
        write(tmp_path / "b.jsonl.gz", json_lines(TEXTS)),
    ]
    for workers in (1, 3):
        prepare(sources, tmp_path / f"out{workers}", "bytes", workers=workers)
    for suffix in ("bin", "idx", "manifest.json"):
        one, three = (tmp_path / f"out{n}.{suffix}" for n in (1, 3))
        assert one.read_bytes() == three.read_bytes()
    assert Manifest.load(tmp_path / "out3").first_bad_lines[0].startswith(f"{sources[0]}:101: ")


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv.gz", ","), ("a.tsv", "\t")])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "gb18030"])
def test_tables(tmp_path, name, delimiter, encoding):
    texts = [*TEXTS, "x" * 200_000, 'say "hi",\tfriend', ""]
    content = io.StringIO()
    rows = csv.writer(content, delimiter=delimiter)
    rows.writerows([["id", "body"], *enumerate(texts), ["short"], [], ["1", "2", "3"]])
    source = write(tmp_path / name, content.getvalue().encode(encoding))
    options = {"text_key": "body", "encoding": encoding.removesuffix("-sig")}
    bad = []
    options |= {"max_bad": 0.5, "on_bad_line": bad.append}
    manifest = prepare([source], tmp_path / "out", "bytes", **options)
    assert read_back(tmp_path / "out") == as_bytes(texts[:-1])
    # The third text has two line ends of its own, and an empty line is before the last row.
    assert [(line.line, line.reason) for line in bad] == [
        (line, "not as many cells as the first line") for line in (11, 13)
    ]
    assert manifest.empty_documents == 1


def test_a_cell_that_is_not_text_is_a_bad_line(tmp_path):
    source = write(tmp_path / "a.csv", b"text,n\ngood,1\n\xff,2\na\0b,3\ngood,4\n")
    bad = []
    prepare([source], tmp_path / "out", "bytes", max_bad=0.5, on_bad_line=bad.append)
    assert read_back(tmp_path / "out") == as_bytes(["good", "good"])
    assert [(line.line, line.reason[:8]) for line in bad] == [(3, "not UTF-"), (4, "a NUL by")]


def test_zstandard(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    packed = pyarrow.compress(json_lines(TEXTS).encode(), codec="zstd", asbytes=True)
    source = write(tmp_path / "a.jsonl.zst", packed + packed)
    manifest = prepare([source], tmp_path / "out", "bytes")
    assert read_back(tmp_path / "out") == as_bytes([*TEXTS, *TEXTS])
    assert manifest.inputs[0].sha256 == hashlib.sha256(packed + packed).hexdigest()
    for broken in (packed[:-1], packed + b"more", b"none"):
        write(source, broken)
        with pytest.raises(PrepareError, match=r"a\.jsonl\.zst: the compressed stream is broken"):
            prepare([source], tmp_path / "new", "bytes")


def test_a_folder_is_all_that_can_be_read_in_it(tmp_path):
    folder = tmp_path / "raw[1]"
    (folder / "b.jsonl").mkdir(parents=True)
    for name, content in {
        "c.jsonl": json_lines(["c"]),
        "b.jsonl/x.txt": "x",
        "a.csv.gz": "text\na\n",
        "README.md": "no",
        ".hidden.txt": "no",
    }.items():
        write(folder / name, content)
    prepare([folder], tmp_path / "out", "bytes")
    assert read_back(tmp_path / "out") == as_bytes(["a", "x", "c"])


def test_the_kind_of_a_file_without_a_suffix_is_given(tmp_path):
    part = write(tmp_path / "part-0001", json_lines(["a"]))
    packed = tmp_path / "part-0002.gz"
    packed.write_bytes(gzip.compress(json_lines(["b"]).encode()))
    known = write(tmp_path / "c.txt", "c")
    prepare([part, packed, known], tmp_path / "out", "bytes", kind="jsonl")
    assert read_back(tmp_path / "out") == as_bytes(["a", "b", "c"])


# --- JSON arrays ----------------------------------------------------------------------------

ARRAYS = {
    "a line each": ('[\n{"text": "a"},\n{"text": "b"},\n{"text": "c"}\n]\n', [2, 3, 4]),
    "one line": ('[{"text": "a"}, {"text": "b"},{"text":"c"}]', [1, 1, 1]),
    "indented": (json.dumps([{"text": t, "m": [{}]} for t in "abc"], indent=2), [2, 8, 14]),
    "strings": ('\ufeff \n ["a", "b",\n"c"]', [2, 2, 3]),
    "a comma at the end": ('["a",\n"b",\n"c",\n]', [1, 2, 3]),
}


@pytest.mark.parametrize("piece", [1, 3, 1 << 20])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl.gz"])
@pytest.mark.parametrize(("content", "lines"), ARRAYS.values(), ids=ARRAYS)
def test_a_json_array(tmp_path, monkeypatch, name, content, lines, piece):
    monkeypatch.setattr(json_array, "PIECE_BYTES", piece)
    source = write(tmp_path / name, content)
    with HashedFile(source) as raw:
        chunks = list(read_chunks(0, source, raw, select()))
        assert raw.sha256() == hashlib.sha256(source.read_bytes()).hexdigest()
    found = [item for chunk in chunks for item in documents(chunk, select())]
    assert [(item.line, item.text) for item in found] == list(zip(lines, "abc", strict=True))


def test_a_bad_element_of_an_array_is_one_bad_line(tmp_path):
    content = json.dumps([{"text": "good"}, {"txt": "x"}, 3, {"text": "good"}], indent=0)
    source = write(tmp_path / "a.json", content)
    bad = []
    prepare([source], tmp_path / "out", "bytes", max_bad=0.5, on_bad_line=bad.append)
    assert read_back(tmp_path / "out") == as_bytes(["good", "good"])
    assert [line.line for line in bad] == [5, 8]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["a", "b"', "the array does not end"),
        ('["a", "b]', "the array does not end"),
        ('["a"]\n["b"]\n', r"a\.json:2: more after the end of the JSON array"),
    ],
)
def test_an_array_that_is_not_the_whole_file(tmp_path, content, message):
    source = write(tmp_path / "a.json", content)
    with pytest.raises(PrepareError, match=message):
        prepare([source], tmp_path / "out", "bytes", max_bad=1)
    assert final_files(tmp_path) == []


@given(texts=st.lists(st.text(st.characters(codec="utf-8"))), indent=st.sampled_from([None, 1]))
def test_any_text_survives_an_array(tmp_path_factory, texts, indent):
    path = tmp_path_factory.mktemp("any") / "a.json"
    elements = [{"text": text, text: [text, {text: None}]} for text in texts if text != "text"]
    path.write_text(json.dumps(elements, indent=indent), "utf-8")
    with HashedFile(path) as raw:
        chunks = list(read_chunks(0, path, raw, select()))
    found = [item.text for chunk in chunks for item in documents(chunk, select())]
    assert found == [element["text"] for element in elements]


# --- encodings ------------------------------------------------------------------------------

CHINESE = ["第一篇文章：你好", "hello", "第二篇\n文章"]


@pytest.mark.parametrize("encoding", ["gb18030", "GBK", "utf-16", "utf-16-be", "utf-32", "UTF8"])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json", "a.txt"])
def test_text_in_an_encoding(tmp_path, encoding, name):
    if name == "a.txt":
        content, expected = "\n".join(CHINESE), ["\n".join(CHINESE)]
    elif name == "a.json":
        content, expected = json.dumps(CHINESE, ensure_ascii=False), CHINESE
    else:
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in CHINESE]
        content, expected = "\n".join(lines), CHINESE
    source = write(tmp_path / name, content.encode(encoding))
    manifest = prepare([source], tmp_path / "out", "bytes", encoding=encoding)
    assert read_back(tmp_path / "out") == as_bytes(expected)
    assert manifest.encoding == codecs.lookup(encoding).name
    assert manifest.bad_lines == 0
    assert manifest.inputs[0].sha256 == hashlib.sha256(source.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "encoding", "bad_lines"),
    [
        ("你好\n好\n".encode("gbk") + b"\xff\n" + "你".encode("gbk"), "gbk", [3]),
        ("你\n".encode("utf-16-le") + b"\x00\xd8\n\0a", "utf-16-le", [2, 3]),
        (b"a\nb\0\nc", "utf-8", [2]),
    ],
)
def test_what_an_encoding_does_not_know_is_a_bad_line(tmp_path, content, encoding, bad_lines):
    source = write(tmp_path / "a.txt", content)
    bad = []
    options = {"encoding": encoding, "on_bad_line": bad.append}
    prepare([source], tmp_path / "out", "bytes", max_bad=0.7, **options)
    assert [line.line for line in bad] == bad_lines
    assert all(encoding in line.reason for line in bad)


@pytest.mark.parametrize(
    ("written", "read", "message"),
    [
        (
            "utf-16",
            "utf-8",
            r"a\.txt: begins with the byte order mark of utf-16.*--encoding utf-16",
        ),
        ("utf-32", "utf-16", r"byte order mark of utf-32.*--encoding utf-32"),
        ("utf-8-sig", "gbk", "byte order mark of utf-8.*--encoding utf-8"),
        ("utf-16-le", "utf-8", r"2 of 2 lines.*--encoding(?s:.*)a\.txt:1: a NUL byte.*not utf-8"),
        ("gbk", "utf-8", r"1 of 2 lines are bad \(50%.*--encoding(?s:.*)a\.txt:2: not UTF-8"),
    ],
)
def test_another_encoding_is_refused(tmp_path, written, read, message):
    source = write(tmp_path / "a.txt", "Title\n你好".encode(written))
    with pytest.raises(PrepareError, match=message):
        prepare([source], tmp_path / "out", "bytes", encoding=read)
    assert final_files(tmp_path) == []


@pytest.mark.parametrize("name", ["utf-9", "base64", "undefined", "\0"])
def test_encodings_that_are_none(tmp_path, name):
    source = write(tmp_path / "a.txt", "x")
    with pytest.raises(PrepareError, match=r"--encoding .*: unknown; give"):
        prepare([source], tmp_path / "out", "bytes", encoding=name)


# --- quality --------------------------------------------------------------------------------


def test_quality_is_what_plain_python_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CHUNK_BYTES", 500)
    texts = ["a" * (n % 101 + 1) for n in range(150)] + ["\ufffd b \ufffd", "b"]
    source = write(tmp_path / "a.jsonl", json_lines(texts))
    quality = prepare([source], tmp_path / "out", "bytes").quality
    lengths = sorted(len(text.encode()) + 1 for text in texts)
    assert (quality.shortest, quality.longest) == (lengths[0], lengths[-1])
    for percent, value in quality.percentiles.items():
        within = sum(length <= value for length in lengths)
        below = sum(length < value for length in lengths)
        assert below < int(percent) / 100 * len(lengths) <= within
    assert quality.exact_duplicates == len(texts) - len(set(texts))
    assert quality.replacement_characters == 2
    ids = collections.Counter(token for document in as_bytes(texts) for token in document)
    shares = [count / ids.total() for count in ids.values()]
    assert quality.ids_used == len(ids)
    entropy = -sum(share * math.log(share) for share in shares)
    assert quality.unigram_entropy_nats == pytest.approx(entropy, abs=6e-5)  # four digits
    assert Manifest.load(tmp_path / "out").quality == quality


def test_manifests_of_before_quality_can_be_read(tmp_path):
    prepare([write(tmp_path / "a.txt", "x")], tmp_path / "out", "bytes")
    path = tmp_path / "out.manifest.json"
    content = json.loads(path.read_text("utf-8"))
    for key in ("quality", "encoding", "lines"):
        del content[key]
    path.write_text(json.dumps(content), "utf-8")
    assert Manifest.load(tmp_path / "out").quality is None


# --- bad lines ------------------------------------------------------------------------------

BAD_LINES = {
    b"{broken": "not JSON",
    b'["a", "list"]': "not a JSON object or string but list",
    b'{"text": "comma"},': "not JSON",
    b'{"text": "a\0b"}': "a NUL byte",
    b'{"txt": "x"}': "no key 'text' among 'txt'",
    b'{"text": 3}': "'text' is int, not a string",
    b'{"text": "\xff"}': "not UTF-8",
    b'{"text": "\\ud800"}': "not Unicode",
    b"[" * 100_000: "not JSON",
}


def test_bad_lines_are_named_counted_and_left_out(tmp_path):
    good = json.dumps({"text": "good"}).encode()
    # An empty line is no document and not bad either; a byte order mark is dropped.
    content = b"\xef\xbb\xbf" + b"\n".join([good, b"", *BAD_LINES, good])
    source = write(tmp_path / "a.jsonl", content)
    bad = []
    manifest = prepare([source], tmp_path / "out", "bytes", max_bad=1, on_bad_line=bad.append)
    assert read_back(tmp_path / "out") == as_bytes(["good", "good"])
    assert [line.line for line in bad] == list(range(3, 3 + len(BAD_LINES)))
    for line, reason in zip(bad, BAD_LINES.values(), strict=True):
        assert line.path == str(source) and reason in line.reason
    assert manifest.bad_lines == manifest.inputs[0].bad_lines == len(BAD_LINES)
    assert manifest.first_bad_lines == [str(line) for line in bad]


def test_a_bad_line_is_left_out_of_a_text_file(tmp_path):
    source = write(tmp_path / "a.txt", b"one\r\n\x0btwo \xe9\nthree\n")
    bad = []
    prepare([source], tmp_path / "out", "bytes", max_bad=1, on_bad_line=bad.append)
    assert read_back(tmp_path / "out") == as_bytes(["one\r\nthree\n"])
    assert [(line.line, line.path) for line in bad] == [(2, str(source))]


def test_every_input_has_the_limit_on_bad_lines(tmp_path):
    """A file that is lost does not hide behind the others."""
    at_limit = write(tmp_path / "a.jsonl", json_lines(["x"] * 990) + "broken\n" * 10)
    above = write(tmp_path / "b.jsonl", json_lines(["x"] * 989) + "broken\n" * 10)
    lost = write(tmp_path / "c.jsonl", '{"text": "y"}\nbroken\n')
    for inputs, message in [
        ([above, at_limit], r"b\.jsonl: 10 of 999 .*\n  .*b\.jsonl:990: not JSON"),
        ([at_limit, lost], r"c\.jsonl: 1 of 2 lines"),
    ]:
        with pytest.raises(PrepareError, match=message):
            prepare(inputs, tmp_path / "out", "bytes")
        assert final_files(tmp_path) == []
    manifest = prepare([at_limit], tmp_path / "out", "bytes")
    assert (manifest.lines, manifest.documents, manifest.bad_lines) == (1000, 990, 10)


@pytest.mark.parametrize("text", ["1", "x%", "-1%", "101%", "nan%", "%"])
def test_a_limit_that_is_no_percentage(tmp_path, capsys, text):
    options = ["a.txt", "--output", "out", "--tokenizer", "bytes", f"--max-bad={text}"]
    with pytest.raises(SystemExit, match="2"):
        command(*options)
    assert "give a percentage, such as 1%" in capsys.readouterr().err


def test_strict(tmp_path):
    source = write(tmp_path / "a.jsonl", json_lines(["x"]) + "broken\n")
    with pytest.raises(PrepareError, match=r"a\.jsonl:2: not JSON"):
        prepare([source], tmp_path / "out", "bytes", strict=True)
    assert final_files(tmp_path) == []


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "x\ny\n", r"no document in 1 input files: 2 bad lines.*a\.jsonl:1: not JSON"),
        ("a.jsonl", '{"text": ""}\n', "0 bad lines, 1 empty documents"),
        ("a.jsonl", "", "no document"),
        ("a.txt", "", "no document"),
        ("a.doc", "x", r"unknown kind of file; give one of \.txt, \.jsonl.*--kind"),
        ("a.parquet.gz", "x", "Parquet compresses by itself"),
        ("a.csv", "", "no column 'text'"),
        ("a.csv", "id,txt\n", r"no column 'text' in its first line.*--text-key: id, txt"),
        ("a.csv", "text,text\nx,y\n", "more than one column 'text'"),
        ("a.csv", 'text\n"a\nb\n', "a.csv:3: cannot be read as a table"),
        ("a.tsv", 'text\nok\n"a"b\n', "a.tsv:3: cannot be read as a table"),
        ("a", "x", "unknown kind of file"),
    ],
)
def test_nothing_to_prepare(tmp_path, name, content, message):
    source = write(tmp_path / name, content)
    with pytest.raises(PrepareError, match=message):
        prepare([source], tmp_path / "out", "bytes", max_bad=1)
    assert final_files(tmp_path) == []


def test_inputs_that_are_no_files(tmp_path):
    source = write(tmp_path / "a.jsonl", json_lines(["x"]))
    (tmp_path / "sub").mkdir()
    for inputs, message in [
        ([], "no input"),
        ([tmp_path / "none.jsonl"], r"none\.jsonl: no such file"),
        ([f"{tmp_path}/*.txt"], "no file matches"),
        ([tmp_path / "sub"], r"sub: a folder with none of \.txt, \.jsonl"),
        ([tmp_path, source], "given twice"),
        ([source, f"{tmp_path}/*.jsonl"], "given twice"),
    ]:
        with pytest.raises(PrepareError, match=message):
            prepare(inputs, tmp_path / "out", "bytes")
    with pytest.raises(PrepareError, match="--workers 0"):
        prepare([source], tmp_path / "out", "bytes", workers=0)


def test_names_that_are_not_utf_8(tmp_path, capsys):
    """A file system takes any bytes for a name; a manifest is text."""
    odd = os.fsdecode(b"\xb1\xea.jsonl")
    good = write(tmp_path / "a.jsonl", json_lines(["x"]))
    try:
        source = write(tmp_path / odd, json_lines(["x"]))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    out = str(tmp_path / "out")
    for inputs, prefix, tokenizer in [
        (source, out, "bytes"),
        (tmp_path / "*.jsonl", out, "bytes"),
        (good, out + odd, "bytes"),
        (good, out, odd),
    ]:
        assert command(str(inputs), "--output", prefix, "--tokenizer", tokenizer) == 2
        error = capsys.readouterr().err
        assert "\\udcb1\\udcea.jsonl: the name is not UTF-8; rename" in error
    assert final_files(tmp_path) == []


@pytest.mark.parametrize("cut", [5, 40, -1])
def test_a_truncated_gzip_stops_the_run(tmp_path, cut):
    source = tmp_path / "a.jsonl.gz"
    source.write_bytes(gzip.compress(json_lines([os.urandom(999).hex()]).encode())[:cut])
    with pytest.raises(PrepareError, match=r"a\.jsonl\.gz: the compressed stream is broken"):
        prepare([source], tmp_path / "out", "bytes")
    assert final_files(tmp_path) == []


# --- output ---------------------------------------------------------------------------------


def test_an_existing_corpus_is_kept_unless_forced(tmp_path):
    old = write(tmp_path / "old.jsonl", json_lines(["old"]))
    new = write(tmp_path / "new.jsonl", json_lines(["new"]))
    prepare([old], tmp_path / "out", "bytes")
    with pytest.raises(PrepareError, match=r"out\.bin.*exists already.*--force"):
        prepare([new], tmp_path / "out", "bytes")
    assert read_back(tmp_path / "out") == as_bytes(["old"])
    # Megatron's index cache is keyed by the prefix, so the old one would be taken for the new.
    cache = tmp_path / "out" / "cache" / "GPTDataset_indices"
    cache.mkdir(parents=True)
    prepare([new], tmp_path / "out", "bytes", force=True)
    assert read_back(tmp_path / "out") == as_bytes(["new"])
    assert not cache.exists()
    # A failure leaves what was there.
    with pytest.raises(PrepareError, match="no document"):
        prepare([write(tmp_path / "e.jsonl", "")], tmp_path / "out", "bytes", force=True)
    assert read_back(tmp_path / "out") == as_bytes(["new"])


KILLED = """
import sys
from domain_pretrain.prepare.corpus import prepare
if __name__ == "__main__":
    def progress(read, manifest):
        if read > 100_000:
            print("reached", flush=True)
            sys.stdin.read()
    prepare([sys.argv[1]], sys.argv[2], "bytes", workers=2, on_progress=progress)
"""


@pytest.mark.megatron
def test_a_killed_run_leaves_no_final_file_and_no_process(tmp_path):
    source = write(tmp_path / "a.jsonl", json_lines(["x" * 1000] * 5000))
    script = write(tmp_path / "killed.py", KILLED)
    command = [sys.executable, str(script), str(source), str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"reached\n"
        workers = children(process.pid)
        assert len(workers) >= 2
        # Meanwhile the prefix is taken.
        with pytest.raises(PrepareError, match="another run is writing"):
            prepare([source], tmp_path / "out", "bytes")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert final_files(tmp_path) == ["out.tmp"]
    deadline = time.monotonic() + 600
    while [pid for pid in workers if alive(pid)]:
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)
    # The next run clears the remains.
    prepare([source], tmp_path / "out", "bytes", workers=1)
    assert len(read_back(tmp_path / "out")) == 5000
    assert final_files(tmp_path) == ["out.bin", "out.idx", "out.manifest.json"]


def children(pid: int) -> list[int]:
    return [
        int(child)
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    ]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False


CHANGES = ("mkdir", "replace", "rmdir", "unlink")


class Interrupted:
    """``Path`` whose methods that change a folder call ``stop`` before the one numbered ``at``."""

    def __init__(self, at: int, stop) -> None:
        self.calls, self._at, self._stop = 0, at, stop

    def patch(self, monkeypatch) -> None:
        for name in CHANGES:
            monkeypatch.setattr(Path, name, self._counting(getattr(Path, name)))

    def _counting(self, method):
        def counted(path, *args, **kwargs):
            self.calls += 1
            if self.calls == self._at:
                self._stop()
            return method(path, *args, **kwargs)

        return counted


def killed(at: int, *args, **kwargs) -> bool:
    """``prepare`` in a process that SIGKILL ends before its change ``at``; False: it has fewer."""
    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as patch:
            Interrupted(at, lambda: os.kill(os.getpid(), signal.SIGKILL)).patch(patch)
            try:
                prepare(*args, workers=1, **kwargs)
            except PrepareError:
                os._exit(3)
            except BaseException:
                os._exit(4)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) in (0, 3)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("had_old", [False, True])
def test_killed_before_any_change_to_a_folder(tmp_path, had_old):
    """The old corpus, the new one or none is there; the next run puts right what is left.

    Where the kill came amid the commit, the next run's repair is interrupted anywhere, too.
    """
    old, new, last = (
        write(tmp_path / f"{name}.jsonl", json_lines([name])) for name in ("old", "new", "last")
    )

    def state(folder: Path) -> str:
        """What Megatron reads."""
        if not (folder / "out.idx").exists():
            return "none"
        assert Manifest.load(folder / "out").documents == 1
        ((*text, _),) = read_back(folder / "out")
        return bytes(text).decode()

    def next_run(folder: Path) -> None:
        with contextlib.suppress(PrepareError):  # exists already
            prepare([last], folder / "out", "bytes")

    first = "old" if had_old else "none"
    states, commits = [first], 0
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        folder.mkdir()
        if had_old:
            prepare([old], folder / "out", "bytes")
        if not killed(at, [new], folder / "out", "bytes", force=had_old):
            break
        left = state(folder)
        states.append(left)
        within = (folder / "out.tmp" / "old").exists() and left != "new"
        commits += within
        for again in itertools.count(1) if within else [1000]:
            copy = tmp_path / f"{at}-{again}"
            shutil.copytree(folder, copy)
            interruption = Interrupted(again, interrupt)
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
                interruption.patch(patch)
                next_run(copy)
            assert state(copy) in ("none", first, "new", "last")
            next_run(copy)
            assert state(copy) == ("new" if left == "new" else "old" if had_old else "last")
            assert final_files(copy) == ["out.bin", "out.idx", "out.manifest.json"]
            if interruption.calls < again:
                break
    # In this order, and in each of them at least once.
    assert [name for name, _ in itertools.groupby(states)] == list(
        dict.fromkeys([first, "none", "new"])
    )
    assert commits >= 3


def interrupt():
    raise KeyboardInterrupt


def test_a_failure_between_renames_leaves_the_old_corpus(tmp_path):
    old = write(tmp_path / "old.jsonl", json_lines(["old one"]))
    new = write(tmp_path / "new.jsonl", json_lines(["new", "new"]))

    prepare([old], tmp_path / "out", "bytes")
    interrupted = 0
    for at in range(1, 100):
        interruption = Interrupted(at, interrupt)
        try:
            with pytest.MonkeyPatch.context() as patch:
                interruption.patch(patch)
                prepare([new], tmp_path / "out", "bytes", force=True)
        except KeyboardInterrupt:
            interrupted += 1
        if interruption.calls < at:
            break
        # The error itself puts things right, or, where it came amid that, the next run does.
        with contextlib.suppress(PrepareError):
            prepare([new], tmp_path / "out", "bytes")
        found = read_back(tmp_path / "out")
        assert found in (as_bytes(["old one"]), as_bytes(["new", "new"]))
        assert final_files(tmp_path) == ["out.bin", "out.idx", "out.manifest.json"]
        prepare([old], tmp_path / "out", "bytes", force=True)
    assert interrupted > 8


def test_other_files_in_a_folder_of_the_stages_name_stay(tmp_path):
    source = write(tmp_path / "a.jsonl", json_lines(["x"]))
    (tmp_path / "out.tmp").mkdir()
    theirs = write(tmp_path / "out.tmp" / "notes.txt", "mine")
    prepare([source], tmp_path / "out", "bytes")
    assert theirs.read_text("utf-8") == "mine"
    assert [path.name for path in (tmp_path / "out.tmp").iterdir()] == ["notes.txt"]


# --- tokenizers -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """A small byte-level BPE as a model hub folder holds it, with <s> put in front of a text."""
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.enable_truncation(4)  # as some models' files do
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "eos_token": {"content": "</s>", "__type": "AddedToken"}})
    )
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_hugging_face_as_transformers_reads_it(tmp_path, tokenizer_folder, workers):
    transformers = pytest.importorskip("transformers")
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    source = write(tmp_path / "a.jsonl", json_lines([*TEXTS, "", "the end </s>"]))
    manifest = prepare([source], tmp_path / "out", str(tokenizer_folder), workers=workers)
    expected = [[*reference(text).input_ids, reference.eos_token_id] for text in TEXTS]
    # A text that ends with the end token is not ended twice.
    assert read_back(tmp_path / "out") == [*expected, reference("the end </s>").input_ids]
    assert min(map(len, expected)) > 5
    assert manifest.vocab_size == len(reference)
    assert manifest.empty_documents == 1
    content = (tokenizer_folder / "tokenizer.json").read_bytes()
    assert manifest.tokenizer_sha256 == hashlib.sha256(content).hexdigest()
    flags = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tokenizer_folder)]
    assert manifest.megatron_flags == flags


def test_a_lone_tokenizer_file_needs_its_end_named(tmp_path, tokenizer_folder):
    file = write(tmp_path / "tokenizer.json", (tokenizer_folder / "tokenizer.json").read_bytes())
    source = write(tmp_path / "a.jsonl", json_lines(["fox"]))
    with pytest.raises(PrepareError, match="name it with --eod-token"):
        prepare([source], tmp_path / "out", str(file))
    with pytest.raises(PrepareError, match="'<end>' is not in it"):
        prepare([source], tmp_path / "out", str(file), eod_token="<end>")
    prepare([source], tmp_path / "out", str(file), eod_token="</s>")
    assert read_back(tmp_path / "out")[0][-1] == load_tokenizer(str(file), "</s>").eod
    prepare([source], tmp_path / "open", str(file), append_eod=False)
    assert read_back(tmp_path / "open")[0] == read_back(tmp_path / "out")[0][:-1]


def test_tokenizers_that_are_none(tmp_path):
    write(tmp_path / "tokenizer.json", "{}")
    write(tmp_path / "other.json", "{}")
    (tmp_path / "empty").mkdir()
    for name, message in [
        (str(tmp_path), "cannot be used as a tokenizer.json"),
        (str(tmp_path / "other.json"), "must be called tokenizer.json"),
        (str(tmp_path / "empty"), r"empty/tokenizer\.json does not exist"),
        ("gpt2", "only local files"),
    ]:
        with pytest.raises(PrepareError, match=message):
            load_tokenizer(name)
    with pytest.raises(PrepareError, match="--eod-token"):
        load_tokenizer("bytes", "</s>")


WORDS = {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1}, "unk_token": "a"}
NO_S = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
BROKEN_TOKENIZERS = {  # changes to tokenizer.json, tokenizer_config.json, the error
    "empty": ({"model": {**WORDS, "vocab": {}}}, "{}", "vocabulary is empty"),
    "no-model": ({"model": None}, "{}", "cannot be used"),
    "panics-when-loaded": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
        "{}",
        "panicked",
    ),
    "panics-when-used": (
        {"post_processor": {**NO_S, "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}]}},
        "{}",
        "panicked",
    ),
    "high": ({"model": {**WORDS, "vocab": {"a": (1 << 32) - 1}}}, "{}", "above int32"),
    "config-list": ({}, "[]", r"tokenizer_config\.json: not a JSON object"),
    "config-deep": ({}, "[" * 200_000, r"tokenizer_config\.json' is nested too deeply"),
    "config-surrogate": ({}, '{"eos_token": "\\ud800"}', "cannot be used"),
    "config-other": ({}, '{"eos_token": "<end>"}', "'<end>' is not in it"),
}


@pytest.mark.parametrize(
    ("changes", "config", "message"), BROKEN_TOKENIZERS.values(), ids=BROKEN_TOKENIZERS
)
def test_broken_tokenizers(tmp_path, changes, config, message):
    pytest.importorskip("tokenizers")
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")
    content = {**dict.fromkeys(parts), "version": "1.0", "added_tokens": [], "model": WORDS}
    write(tmp_path / "tokenizer.json", json.dumps({**content, **changes}))
    write(tmp_path / "tokenizer_config.json", config)
    with pytest.raises(DomainPretrainError, match=message) as raised:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(raised.value)


def test_a_tokenizer_that_panics_at_a_text_makes_it_a_bad_line(tmp_path):
    class PanicException(BaseException):
        """Named as pyo3 names its own, which cannot be imported."""

    class Panics:
        def encode(self, text):
            raise PanicException("index out of bounds")

    tokenizer = HuggingFaceTokenizer.__new__(HuggingFaceTokenizer)
    tokenizer._tokenizer, tokenizer.eod, tokenizer._literal = Panics(), None, False
    chunk = Chunk(0, "a.jsonl", "json", [7], [b'{"text": "x"}'], 0)
    (bad,) = Encoder(tokenizer, select(), False, "uint16")(chunk).bad
    assert str(bad) == (
        "a.jsonl:7: tokenizer failed: the tokenizers library panicked: index out of bounds"
    )


@pytest.mark.parametrize("outside", [-1, 70_000])
def test_an_id_outside_the_vocabulary_is_not_written(tmp_path, outside):
    class Outside(ByteTokenizer):
        vocab_size = 70_000

        def encode(self, text):
            return [outside if text == "bad" else 1]

    source = write(tmp_path / "a.jsonl", json_lines(["good", "bad"]))
    bad = []
    prepare([source], tmp_path / "out", Outside(), max_bad=0.5, on_bad_line=bad.append)
    assert read_back(tmp_path / "out") == [[1, 256]]
    assert [(line.line, line.reason) for line in bad] == [
        (2, "tokenizer failed: an id outside 0 ... 69999")
    ]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, np.uint16), (70_000, np.int32)])
def test_dtype_is_megatrons_choice(tmp_path, vocab_size, dtype):
    class Highest:
        """Every text is the highest id."""

        name, sha256, eod = "highest", None, vocab_size - 1

        def __init__(self):
            self.vocab_size = vocab_size

        def encode(self, text):
            return [0, vocab_size - 1, 0]

        def megatron_flags(self, core_version):
            return []

    source = write(tmp_path / "a.jsonl", json_lines(["x"]))
    manifest = prepare([source], tmp_path / "out", Highest())
    assert read_back(tmp_path / "out") == [[0, vocab_size - 1, 0, vocab_size - 1]]
    code = struct.unpack_from("<B", (tmp_path / "out.idx").read_bytes(), 17)[0]
    assert indexed_dataset.DType.dtype_from_code(code) is dtype
    assert manifest.dtype == dtype.__name__


def test_megatron_gives_the_bytes_tokenizer_its_ids():
    """The flags of the manifest, through the installed Megatron's own tokenizer builder."""
    build = pytest.importorskip("megatron.core.tokenizers.utils.build_tokenizer")
    from megatron.core.package_info import __version__

    ours = ByteTokenizer()
    flags = ours.megatron_flags(__version__)
    args = argparse.Namespace(
        tokenizer_type=flags[1],
        vocab_size=int(flags[3]),
        padded_vocab_size=None,
        pad_vocab_size=True,
        make_vocab_size_divisible_by=128,
        tensor_model_parallel_size=1,
        rank=0,
    )
    theirs = build.build_tokenizer(args)
    assert (theirs.eod, theirs.vocab_size) == (ours.eod, ours.vocab_size)


def test_the_manifest_holds_the_version_of_megatron(tmp_path, monkeypatch):
    """Megatron puts the commit of whatever repository it is installed within behind its own."""
    from megatron.core import package_info

    monkeypatch.setattr(package_info, "__version__", "0.18.0rc1+abc1234")
    monkeypatch.setattr(package_info, "VERSION", (0, 18, 0, "rc1"))
    source = write(tmp_path / "a.jsonl", json_lines(["x"]))
    assert prepare([source], tmp_path / "out", "bytes").megatron_core == "0.18.0rc1"


def test_flags_by_version():
    sizes = {v: ByteTokenizer().megatron_flags(v)[-1] for v in ("0.12.3", "0.17.1", "0.18.0rc0")}
    assert sizes == {"0.12.3": "256", "0.17.1": "256", "0.18.0rc0": "257"}


# --- command line ---------------------------------------------------------------------------


def command(*arguments: str) -> int:
    return main(["prepare", *arguments])


def test_command(tmp_path, capsys):
    source = write(tmp_path / "a.jsonl", json_lines(["[b]x[/b]"], key="t") + "[/broken]\n" * 30)
    prefix = str(tmp_path / "out")
    options = ["--output", prefix, "--tokenizer", "bytes", "--text-key", "t"]
    assert command(str(source), *options) == 2
    assert "30 of 31 lines are bad (96.8%, and --max-bad is 1%)" in capsys.readouterr().err
    assert final_files(tmp_path) == []
    options += ["--max-bad", "97%"]
    assert command(str(source), *options) == 0
    captured = capsys.readouterr()
    assert "1 documents, 9 tokens (uint16)" in captured.out
    assert "left out: 30 bad lines" in captured.out
    assert "unigram entropy" in captured.out
    assert f"--data-path {prefix} --tokenizer-type NullTokenizer" in captured.out
    assert f"bad line: {source}:2: not JSON" in captured.err
    assert captured.err.count("not JSON") == prepare_command.BAD_LINES_SHOWN

    assert command(str(source), *options) == 2
    assert "error: " in (error := capsys.readouterr().err) and "--force" in error
    assert command(str(source), *options, "--force", "--no-append-eod", "--workers", "1") == 0
    assert "8 tokens" in capsys.readouterr().out
    assert command(str(source), *options, "--force", "--strict") == 2
    assert f"{source}:2: not JSON" in capsys.readouterr().err
    assert command(str(source), "--output", str(source / "out"), "--tokenizer", "bytes") == 2
    assert "Not a directory" in capsys.readouterr().err
