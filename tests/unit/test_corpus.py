"""Prepared files are read back with Megatron's own reader and held against plain Python."""

import codecs
import collections
import csv
import gzip
import hashlib
import io
import json
import math
import os
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.prepared import TEXTS, as_bytes, final_files, json_lines, read_back, write

from domain_pretrain.commands import prepare as prepare_command
from domain_pretrain.commands.main import main
from domain_pretrain.errors import ConfigError
from domain_pretrain.prepare import json_array, readers
from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.prepare.encode import Encoder, documents
from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.manifest import Found, Manifest
from domain_pretrain.prepare.readers import HashedFile, read_chunks
from domain_pretrain.prepare.record import select
from domain_pretrain.prepare.tokenize import ByteTokenizer

pytest.importorskip("megatron.core")

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


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_compressed_file_of_no_bytes_is_a_download_that_failed(tmp_path, name):
    """A compressed stream of nothing has a head and an end."""
    source = write(tmp_path / "one.jsonl", json_lines(["x"]))
    (tmp_path / name).touch()
    with pytest.raises(PrepareError, match=rf"{name}: the compressed stream is broken \(the"):
        prepare([source, tmp_path / name], tmp_path / "out", "bytes")
    assert not final_files(tmp_path)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b""))
    empty = [tmp_path / "a.jsonl.gz", write(tmp_path / "c.jsonl", "")]
    assert prepare([source, *empty], tmp_path / "out", "bytes").documents == 1


def test_a_suffix_in_capitals_is_the_same(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.JSONL", json_lines(["x"]))
    (folder / "b.Txt.GZ").write_bytes(gzip.compress(b"y"))
    prepare([folder], tmp_path / "out", "bytes")
    assert read_back(tmp_path / "out") == as_bytes(["x", "y"])


def test_a_link_that_leads_nowhere_is_told(tmp_path):
    """As in the cache of a download that lacks one of its files."""
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.jsonl", json_lines(["x"]))
    (folder / "part1.jsonl").symlink_to("../blobs/1")
    for source in (folder, folder / "*.jsonl", folder / "part1.jsonl"):
        with pytest.raises(PrepareError, match=r"part1\.jsonl: a link to what is not there"):
            prepare([source], tmp_path / "out", "bytes")
    (folder / "part1.jsonl").unlink()
    (folder / "other").symlink_to("../blobs/1")  # none of the inputs
    assert prepare([folder], tmp_path / "out", "bytes").documents == 1


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


def test_junk_is_counted_and_stays(tmp_path):
    texts = [
        "&nbsp;a &amp; b &#160;&#xA0; &nosuch; R&D; a&b",
        "锟斤拷锟斤拷 烫烫烫",
        "cafÃ© donâ€™t ï¿½ &lt;",
        "Ã, Âge, â, ÉÃO, café don’t €; x &= y; plain",
        "\ufffd",
    ]
    source = write(tmp_path / "a.jsonl", json_lines([*texts, "锟斤拷"] * 2))
    quality = prepare([source], tmp_path / "out", "bytes").quality
    assert read_back(tmp_path / "out") == as_bytes([*texts, "锟斤拷"] * 2)
    assert quality.html_entities == Found(documents=4, occurrences=10)
    assert quality.mojibake == Found(documents=6, occurrences=14)
    assert quality.replacement_characters == 2
    assert quality.exact_duplicates == 6
    assert Manifest.load(tmp_path / "out").quality == quality


def test_the_table_shows_what_was_found(tmp_path, capsys):
    options = ["--output", str(tmp_path / "out"), "--tokenizer", "bytes", "--force"]
    rows = ["exact duplicates", "U+FFFD", "wrongly decoded", "HTML entities", "special tokens"]
    for texts, shown in [
        (["plain", "café"], []),
        (["a", "a", "\ufffd", "锟斤拷", "&nbsp;"], rows[:-1]),
    ]:
        source = write(tmp_path / "a.jsonl", json_lines(texts))
        assert command(str(source), *options) == 0
        out = capsys.readouterr().out
        assert [row for row in rows if row in out] == shown
    assert "1 in 1 documents" in out


BROKEN_MANIFESTS = {
    "": "is not JSON",
    "{": "line 1, column 2, is not JSON",
    "null": "no manifest of a prepared corpus",
    "[]": "no manifest of a prepared corpus",
    "{}": "no manifest of a prepared corpus: tool: Field required",
    "[" * 100_000: "nested too deeply",
    "\ud800": "is not JSON",
}


@pytest.mark.parametrize("content", BROKEN_MANIFESTS, ids=range(len(BROKEN_MANIFESTS)))
def test_a_broken_manifest_is_one_clear_error(tmp_path, content):
    path = tmp_path / "out.manifest.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=BROKEN_MANIFESTS[content]) as raised:
        Manifest.load(tmp_path / "out")
    assert str(path) in str(raised.value)
    # It is replaced like any other.
    source = write(tmp_path / "a.jsonl", json_lines(["a"]))
    prepare([source], tmp_path / "out", "bytes", force=True)
    assert Manifest.load(tmp_path / "out").documents == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("documents", "many"), ("inputs", None), ("inputs", [{"path": 3}]), ("quality", [])],
)
def test_a_manifest_with_other_values_names_the_key(tmp_path, key, value):
    prepare([write(tmp_path / "a.txt", "x")], tmp_path / "out", "bytes")
    path = tmp_path / "out.manifest.json"
    content = json.loads(path.read_text("utf-8")) | {"of a later version": 1}
    path.write_text(json.dumps(content), "utf-8")
    assert Manifest.load(tmp_path / "out").documents == 1
    path.write_text(json.dumps(content | {key: value}), "utf-8")
    with pytest.raises(ConfigError, match=f"no manifest of a prepared corpus: {key}"):
        Manifest.load(tmp_path / "out")


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
    for option in ("--text-key", "--by"):
        assert command(str(good), "--output", out, "--tokenizer", "bytes", option, odd) == 2
        assert "\\udcb1\\udcea.jsonl: the name is not UTF-8; JSON" in capsys.readouterr().err
    assert final_files(tmp_path) == []


@pytest.mark.parametrize("cut", [5, 40, -1])
def test_a_truncated_gzip_stops_the_run(tmp_path, cut):
    source = tmp_path / "a.jsonl.gz"
    source.write_bytes(gzip.compress(json_lines([os.urandom(999).hex()]).encode())[:cut])
    with pytest.raises(PrepareError, match=r"a\.jsonl\.gz: the compressed stream is broken"):
        prepare([source], tmp_path / "out", "bytes")
    assert final_files(tmp_path) == []


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
