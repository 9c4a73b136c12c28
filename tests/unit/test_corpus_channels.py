"""``--channel-key``: the channel of every document of a dataset, numbered for good."""

import collections
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.prepared import as_bytes, final_files, killed, read_back, write

from domain_pretrain.commands.main import main
from domain_pretrain.prepare import datasets, readers
from domain_pretrain.prepare.channels import Channels
from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.manifest import Channel, Manifest
from domain_pretrain.prepare.values import check_channel

pytest.importorskip("megatron.core")

PAIRS = [("a", "web"), ("bb", "finance/news"), ("c", "web"), ("dd", 2024), ("e", "finance/news")]


def records(*pairs: tuple[str, object]) -> str:
    """A line for every text and the value of its field ``meta.c``."""
    return "".join(json.dumps({"text": text, "meta": {"c": value}}) + "\n" for text, value in pairs)


def of_documents(prefix: Path) -> list[str]:
    """The name of each document's channel, as training will find it."""
    numbers = np.load(f"{prefix}.channels.npy", mmap_mode="r")
    assert numbers.dtype == np.int16 and numbers.shape == (len(read_back(prefix)),)
    names = [channel.name for channel in Manifest.load(prefix).channels]
    return [names[number] for number in numbers]


def test_every_document_has_its_channel(tmp_path):
    source = write(tmp_path / "a.jsonl", records(*PAIRS, ("", "of no document")))
    manifest = prepare([source], tmp_path / "out", "bytes", channel_key="meta.c")
    assert final_files(tmp_path) == ["out.bin", "out.channels.npy", "out.idx", "out.manifest.json"]
    assert read_back(tmp_path / "out") == as_bytes([text for text, _ in PAIRS])
    assert of_documents(tmp_path / "out") == [str(value) for _, value in PAIRS]
    assert manifest.channel_key == "meta.c"
    assert manifest.channels == [
        Channel(name="web", documents=2, tokens=4, text_bytes=2),
        Channel(name="finance/news", documents=2, tokens=5, text_bytes=3),
        Channel(name="2024", documents=1, tokens=3, text_bytes=2),
    ]
    assert Manifest.load(tmp_path / "out") == manifest


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_a_column_names_the_channel(tmp_path, kind):
    source = tmp_path / f"a.{kind}"
    pairs = [(text, str(value)) for text, value in PAIRS]
    if kind == "csv":
        write(source, "meta.c,text\n" + "".join(f"{value},{text}\n" for text, value in pairs))
    elif kind == "json":
        write(source, json.dumps([{"text": text, "meta": {"c": value}} for text, value in pairs]))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        columns = {
            "meta": [{"c": value} for _, value in pairs],
            "text": [text for text, _ in pairs],
        }
        parquet.write_table(pyarrow.table(columns), source)
    prepare([source], tmp_path / "out", "bytes", channel_key="meta.c")
    assert of_documents(tmp_path / "out") == [value for _, value in pairs]
    if kind != "json":
        with pytest.raises(PrepareError, match=r"no column 'none'.*--channel-key"):
            prepare([source], tmp_path / "x", "bytes", channel_key="none")


@settings(max_examples=20)  # each writes two corpora to the disk
@given(
    pairs=st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("uvwxyz")), min_size=2),
    first=st.integers(min_value=1),
    by=st.booleans(),
)
def test_further_inputs_renumber_nothing(tmp_path_factory, pairs, first, by):
    """What has been trained on keeps the numbers of its documents and channels, with --by too."""
    folder = tmp_path_factory.mktemp("more")
    first = 1 + first % (len(pairs) - 1)
    lines = [{"text": text, "c": channel, "s": text} for text, channel in pairs]
    inputs = []
    for number, part in enumerate((lines[:first], lines[first:])):
        content = "".join(json.dumps(line) + "\n" for line in part)
        inputs.append(write(folder / f"{number}.jsonl", content))
    options = {"channel_key": "c", "workers": 1, **({"by": "s"} if by else {})}
    prepare(inputs[:1], folder / "before", "bytes", **options)
    prepare(inputs, folder / "after", "bytes", **options)
    prefixes = [path.with_suffix("") for path in folder.glob("before/*.idx")]
    assert bool(prefixes) == by
    for prefix in prefixes or [folder / "before"]:
        other = folder / "after" / prefix.name if by else folder / "after"
        documents, numbers = read_back(prefix), np.load(f"{prefix}.channels.npy")
        assert read_back(other)[: len(documents)] == documents
        assert np.array_equal(np.load(f"{other}.channels.npy")[: len(numbers)], numbers)
        names = [channel.name for channel in Manifest.load(prefix).channels]
        later = [channel.name for channel in Manifest.load(other).channels]
        assert later[: len(names)] == names


@given(parts=st.lists(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 9)))))
def test_the_numbers_of_chunks_become_those_of_the_dataset(parts):
    whole, expected = Channels(), []
    for part in parts:
        chunk = Channels()
        for name, tokens in part:
            chunk.note(name, tokens, 2 * tokens)
            expected.append((name, tokens))
        whole.add(chunk)
    names = [channel.name for channel in whole.found]
    assert [names[number] for number in whole.of_documents()] == [name for name, _ in expected]
    assert names == list(dict.fromkeys(name for name, _ in expected))
    tokens = collections.Counter()
    for name, count in expected:
        tokens[name] += count
    assert {c.name: (c.tokens, c.text_bytes) for c in whole.found} == {
        name: (tokens[name], 2 * tokens[name]) for name in names
    }
    assert sum(channel.documents for channel in whole.found) == len(expected)


def test_with_by_and_holdout_and_several_workers(tmp_path, monkeypatch):
    """Each dataset has its own numbers; the run's manifest counts what there is to train on."""
    monkeypatch.setattr(readers, "CHUNK_BYTES", 500)
    lines = [
        {"text": f"text {n % 97}", "s": f"s{n % 3}", "c": f"c{n % 97 % 7}"} for n in range(400)
    ]
    source = write(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    found = []
    for workers in (1, 3):
        folder = tmp_path / str(workers) / "out"
        options = {"by": "s", "channel_key": "c", "holdout": "20%", "workers": workers}
        manifest = prepare([source], folder, "bytes", **options)
        channel_of = {line["text"]: line["c"] for line in lines}
        for path in folder.rglob("*.idx"):
            prefix = path.with_suffix("")
            texts = [bytes(ids[:-1]).decode() for ids in read_back(prefix)]
            assert of_documents(prefix) == [channel_of[text] for text in texts]
        assert sum(channel.documents for channel in manifest.channels) == manifest.documents
        assert sum(channel.tokens for channel in manifest.channels) == manifest.tokens
        files = [path for path in folder.rglob("*.*") if path.suffix not in (".yaml", ".json")]
        files += folder.rglob("*.manifest.json")
        found.append({path.relative_to(folder): path.read_bytes() for path in files})
    assert found[0] == found[1] and len(found[0]) == 4 * 6


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"text": "x"}, "no key 'meta.c' among 'text'"),
        ({"text": "x", "meta": {"c": None}}, "'meta.c' is null"),
        ({"text": "x", "meta": {"c": 0.5}}, "'meta.c' is float"),
        ({"text": "x", "meta": {"c": ""}}, "'' names no channel: empty"),
        ({"text": "x", "meta": {"c": "a//b"}}, "a part of it is empty"),
        ({"text": "x", "meta": {"c": "a\nb"}}, "control characters"),
        ({"text": "x", "meta": {"c": " a"}}, "white space at an end"),
        ({"text": "x", "meta": {"c": "é" * 120}}, "longer than 233 bytes"),
        ("x", "a string, which has no fields"),
    ],
)
def test_a_record_without_a_channel_is_a_bad_line(tmp_path, record, why):
    source = write(tmp_path / "a.jsonl", records(("a", "web")) * 2 + json.dumps(record))
    bad = []
    options = {"channel_key": "meta.c", "max_bad": 0.5, "on_bad_line": bad.append}
    prepare([source], tmp_path / "out", "bytes", **options)
    assert [line.line for line in bad] == [3] and why in bad[0].reason
    assert of_documents(tmp_path / "out") == ["web", "web"]
    with pytest.raises(PrepareError, match=r"a\.jsonl:3: "):
        prepare([source], tmp_path / "x", "bytes", channel_key="meta.c")


def test_what_cannot_have_channels_is_refused(tmp_path, monkeypatch):
    text = write(tmp_path / "a.txt", "hello")
    with pytest.raises(PrepareError, match="no fields for --channel-key"):
        prepare([text], tmp_path / "out", "bytes", channel_key="c")
    source = write(tmp_path / "a.jsonl", records(*PAIRS))
    with pytest.raises(PrepareError, match="--channel-key: names no field"):
        prepare([source], tmp_path / "out", "bytes", channel_key="")
    monkeypatch.setattr(datasets, "MAX_CHANNELS", 2)
    with pytest.raises(PrepareError, match=r"--channel-key meta\.c: more than 2 values.*'2024'"):
        prepare([source], tmp_path / "out", "bytes", channel_key="meta.c")
    write(source, records(("a", "x/y"), ("b", "x.y")))
    with pytest.raises(PrepareError, match=r"'x/y' and 'x\.y' would both be the domain 'x\.y'"):
        prepare([source], tmp_path / "out", "bytes", channel_key="meta.c")
    assert final_files(tmp_path) == []


def test_channels_of_before_do_not_stay_beside_new_data(tmp_path):
    source = write(tmp_path / "a.jsonl", records(*PAIRS))
    options = {"force": True, "holdout": "1"}
    prepare([source], tmp_path / "out", "bytes", channel_key="meta.c", **options)
    assert len(list(tmp_path.glob("out*.channels.npy"))) == 2
    prepare([source], tmp_path / "out", "bytes", **options)
    assert not list(tmp_path.glob("out*.npy"))
    assert Manifest.load(tmp_path / "out").channels == []
    lone = write(tmp_path / "new.channels.npy", "somebody's")
    with pytest.raises(PrepareError, match=r"new\.channels\.npy: exists already"):
        prepare([source], tmp_path / "new", "bytes")
    assert lone.read_text() == "somebody's"


@pytest.mark.parametrize("had", [True, False])
def test_killed_at_any_moment_channels_and_data_belong_together(tmp_path, had):
    """The old corpus and the new: one has channels, the other has none."""
    old = write(tmp_path / "old.jsonl", records(("old", "o")))
    new = write(tmp_path / "new.jsonl", records(("new", "n"), ("er", "m")))
    before, after = ("meta.c", None) if had else (None, "meta.c")
    at = 1
    while True:
        folder = tmp_path / str(at)
        folder.mkdir()
        prefix = folder / "out"
        prepare([old], prefix, "bytes", channel_key=before, workers=1)
        was_killed = killed(at, [new], prefix, "bytes", channel_key=after, force=True)
        if Path(f"{prefix}.idx").exists():
            is_new = read_back(prefix) == as_bytes(["new", "er"])
            assert Path(f"{prefix}.channels.npy").exists() == (had != is_new)
        if not was_killed:
            break
        at += 1
    assert at > 8 and is_new


def test_the_command_shows_channels(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", records(*PAIRS))
    words = ["a.jsonl", "--channel-key", "meta.c", "--output", "out", "--tokenizer", "bytes"]
    assert main(["prepare", *words]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["finance/news", "2", "3", "5"] in rows
    write(tmp_path / "a.jsonl", records(*((f"{n}", f"[b]{n:02}") for n in range(30))))
    assert main(["prepare", *words, "--force"]) == 0
    out = capsys.readouterr().out
    assert "[b]19" in out and "[b]20" not in out and "and 10 others" in out


@given(value=st.text())
def test_any_value_names_a_channel_or_is_refused(value):
    try:
        check_channel(value)
    except ValueError as error:
        str(error).encode("utf-8")  # it can be printed
    else:
        assert value and all(value.split("/"))
