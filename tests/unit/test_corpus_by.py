"""One dataset for each value of a field, and the config that makes domains of them."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.prepared import as_bytes, final_files, json_lines, read_back, write

from domain_pretrain.commands.main import main
from domain_pretrain.config import DomainConfig
from domain_pretrain.data.blend import domain_prefixes
from domain_pretrain.data.domain import NAME
from domain_pretrain.prepare import datasets, readers, values
from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.manifest import Manifest
from domain_pretrain.prepare.values import check_value, domain_name

pytest.importorskip("megatron.core")


def records(*pairs: tuple[str, object]) -> str:
    """A line for every text and the value of its field ``meta.source``."""
    return "".join(
        json.dumps({"text": text, "meta": {"source": value}}) + "\n" for text, value in pairs
    )


def by_prefix(folder: Path) -> dict[str, list[list[int]]]:
    return {
        str(path.relative_to(folder).with_suffix("")): read_back(path.with_suffix(""))
        for path in sorted(folder.rglob("*.idx"))
    }


def test_every_value_has_its_dataset(tmp_path):
    source = write(
        tmp_path / "a.jsonl",
        records(("a", "web"), ("b", "finance/news"), ("c", "web"), ("d", 2024), ("e", True)),
    )
    manifest = prepare([source], tmp_path / "out", "bytes", by="meta.source")
    assert by_prefix(tmp_path / "out") == {
        "web": as_bytes(["a", "c"]),
        "finance/news": as_bytes(["b"]),
        "2024": as_bytes(["d"]),
        "true": as_bytes(["e"]),
    }
    assert manifest.documents == manifest.inputs[0].documents == 5
    assert [(d.value, d.domain, d.documents, d.tokens) for d in manifest.datasets] == [
        ("2024", "2024", 1, 2),
        ("finance/news", "finance.news", 1, 2),
        ("true", "true", 1, 2),
        ("web", "web", 2, 4),
    ]
    assert Manifest.read(tmp_path / "out" / "manifest.json") == manifest
    web = Manifest.load(tmp_path / "out" / "web")
    assert (web.by, web.value, web.documents, web.text_bytes) == ("meta.source", "web", 2, 2)
    assert web.quality.ids_used == 3
    assert manifest.quality.ids_used == 6


def test_the_config_names_the_domains(tmp_path, monkeypatch):
    """Whatever the values are; ``--domain-config`` finds what was written, and nothing else."""
    monkeypatch.chdir(tmp_path)
    names = ["no", "2024", "C", "C++", "C#", "a[1] *?", "数学/代数", "x.y", ".net", "ü/~/$HOME"]
    source = write(tmp_path / "a.jsonl", records(*((name, name) for name in [*names, "a1 zz"])))
    prepare([source], "data/x", "bytes", by="meta.source")
    config = DomainConfig.load("data/x/domains.yaml")
    prefixes = domain_prefixes(config.domains)
    assert prefixes == {
        "2024": ["data/x/2024"],
        ".net".replace(".", "_.", 1): ["data/x/.net"],
        "C": ["data/x/C"],
        "Csharp": ["data/x/C#"],
        "Cplusplus": ["data/x/C++"],
        "a1_zz": ["data/x/a1 zz"],
        "a_1_": ["data/x/a[1] *?"],
        "no": ["data/x/no"],
        "x.y": ["data/x/x.y"],
        "ü._._HOME": ["data/x/ü/~/$HOME"],
        "数学.代数": ["data/x/数学/代数"],
    }
    for (prefix,) in prefixes.values():
        assert read_back(Path(prefix)) == as_bytes([prefix.removeprefix("data/x/")])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_chooses(tmp_path, kind):
    source = tmp_path / f"a.{kind}"
    if kind == "csv":
        write(source, "text,meta.source,n\na,web,1\nb,books,2\nc,web,3\n")
        field = "meta.source"
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        meta = [{"source": "web"}, {"source": "books"}, {"source": "web"}]
        parquet.write_table(pyarrow.table({"meta": meta, "text": ["a", "b", "c"]}), source)
        field = "meta.source"
    prepare([source], tmp_path / "out", "bytes", by=field)
    assert by_prefix(tmp_path / "out") == {
        "web": as_bytes(["a", "c"]),
        "books": as_bytes(["b"]),
    }
    with pytest.raises(PrepareError, match=r"no column 'none'.*--by"):
        prepare([source], tmp_path / "x", "bytes", by="none")


BAD_VALUES = {
    "": "empty",
    "a//b": "empty",
    "/etc": "empty",
    "a/": "empty",
    "../up": "'..'",
    "a/./b": "'.'",
    "a\nb": "control",
    "a\0b": "control",
    "\ud800": "control",
    " a": "white space",
    "a/b /c": "white space",
    "x.idx": "ends as a file",
    "x.bin/y": "ends as a file",
    "a.channels.npy/x": "ends as a file",
    "a.holdout": "ends as a file",
    "manifest.json": "ends as a file",
    "é" * 120: "longer than 233 bytes",
}


@pytest.mark.parametrize(("value", "why"), BAD_VALUES.items(), ids=map(ascii, BAD_VALUES))
def test_a_value_that_cannot_be_a_path_is_a_bad_line(tmp_path, value, why):
    source = write(tmp_path / "a.jsonl", records(("a", "web"), ("b", value)))
    bad = []
    options = {"by": "meta.source", "max_bad": 0.5, "on_bad_line": bad.append}
    prepare([source], tmp_path / "out", "bytes", **options)
    assert [line.line for line in bad] == [2]
    assert "names no dataset" in bad[0].reason and why in bad[0].reason
    assert list(by_prefix(tmp_path / "out")) == ["web"]


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"text": "x"}, "no key 'meta.source' among 'text'"),
        ({"text": "x", "meta": "web"}, "no key 'meta.source'"),
        ({"text": "x", "meta": {"source": None}}, "'meta.source' is null"),
        ({"text": "x", "meta": {"source": ["web"]}}, "'meta.source' is list"),
        ({"text": "x", "meta": {"source": 0.5}}, "'meta.source' is float"),
        ("x", "a string, which has no fields"),
    ],
)
def test_a_record_without_a_value_is_a_bad_line(tmp_path, record, why):
    source = write(tmp_path / "a.jsonl", records(("a", "web")) * 99 + json.dumps(record))
    bad = []
    prepare([source], tmp_path / "out", "bytes", by="meta.source", on_bad_line=bad.append)
    assert [line.line for line in bad] == [100]
    assert why in bad[0].reason
    write(source, records(("a", "web")) * 98 + json.dumps(record))
    with pytest.raises(PrepareError, match=r"1 of 99 lines are bad \(1.01%"):
        prepare([source], tmp_path / "x", "bytes", by="meta.source")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("one", "other"), [("a b", "a_b"), ("a/b", "a.b"), ("C#", "Csharp"), ("a", "a")]
)
def test_two_values_of_one_name_are_refused(tmp_path, one, other):
    source = write(tmp_path / "a.jsonl", records(("x", one), ("y", other)))
    if one == other:
        prepare([source], tmp_path / "out", "bytes", by="meta.source")
        return
    with pytest.raises(PrepareError, match="would both be the domain"):
        prepare([source], tmp_path / "out", "bytes", by="meta.source")
    assert final_files(tmp_path) == []


def test_too_many_values_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_VALUES", 3)
    lines = [("x", f"v{n}") for n in range(3)] * 2
    source = write(tmp_path / "a.jsonl", records(*lines))
    prepare([source], tmp_path / "out", "bytes", by="meta.source")
    write(source, records(*lines, ("x", "one more")))
    with pytest.raises(PrepareError, match=r"more than 3 values.*'one more'.*fewer values"):
        prepare([source], tmp_path / "new", "bytes", by="meta.source")
    assert not list(tmp_path.glob("new*"))


def test_as_many_datasets_as_are_allowed_can_be_open(tmp_path):
    """Two files each, which is half of what a process may open where nobody has changed it."""
    pairs = [(f"{n} {k}", f"v{n}") for n in range(values.MAX_VALUES) for k in range(2)]
    source = write(tmp_path / "a.jsonl", records(*pairs))
    manifest = prepare([source], tmp_path / "out", "bytes", by="meta.source", holdout="1")
    assert len(manifest.datasets) == 2 * values.MAX_VALUES


def test_workers_do_not_change_a_byte_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CHUNK_BYTES", 500)
    pairs = [(f"text {n % 37}", f"v{n % 5}") for n in range(300)]
    source = write(tmp_path / "a.jsonl", records(*pairs))
    found = []
    for workers in (1, 3):
        folder = tmp_path / str(workers) / "out"
        options = {"by": "meta.source", "holdout": "3", "workers": workers}
        monkeypatch.chdir(folder.parent.parent)
        prepare([source], folder, "bytes", **options)
        found.append({p.relative_to(folder): p.read_bytes() for p in files(folder)})
    for content in found:
        for name in ("domains.yaml", "splits.json"):  # these hold the folder's own name
            del content[Path(name)]
    assert found[0] == found[1]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    old = write(tmp_path / "old.jsonl", records(("a", "one"), ("b", "two"), ("c", "two")))
    new = write(tmp_path / "new.jsonl", records(("c", "two"), ("d", "three/x")))
    folder = tmp_path / "out"
    folder.mkdir()  # an empty one is as good as none
    prepare([old], folder, "bytes", by="meta.source")
    for name in ("GPTDataset_indices", "GPTDatasetWithout0f_indices"):  # with what was read before
        cache = folder / "one" / "cache" / name / "hash-description.txt"
        cache.parent.mkdir(parents=True)
        cache.write_text("Megatron's", "utf-8")
    with pytest.raises(PrepareError, match=r"exists already.*--force"):
        prepare([new], folder, "bytes", by="meta.source")
    with pytest.raises(PrepareError, match="no document"):
        empty = write(tmp_path / "empty.jsonl", "")
        prepare([empty], folder, "bytes", by="meta.source", force=True)
    assert list(by_prefix(folder)) == ["one", "two"] and cache.exists()
    prepare([new], folder, "bytes", by="meta.source", force=True)
    assert list(by_prefix(folder)) == ["three/x", "two"]
    assert not (folder / "one").exists()
    assert final_files(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["notes.txt", "two/notes.txt", "two.idx"])
def test_a_folder_with_something_else_in_it_is_not_replaced(tmp_path, name):
    source = write(tmp_path / "a.jsonl", records(("a", "one")))
    folder = tmp_path / "out"
    prepare([source], folder, "bytes", by="meta.source")
    theirs = folder / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("mine", "utf-8")
    with pytest.raises(PrepareError, match=f"no earlier --by has written .*{name}"):
        prepare([source], folder, "bytes", by="meta.source", force=True)
    assert theirs.read_text("utf-8") == "mine"
    assert list(tmp_path.glob("out*")) == [folder]


def test_places_where_a_folder_cannot_be_put(tmp_path, monkeypatch):
    source = write(tmp_path / "a.jsonl", records(("a", "one")))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "real")
    for folder in (tmp_path / "link", ".", "..", "/"):
        with pytest.raises(PrepareError, match="give the name of a new folder"):
            prepare([source], folder, "bytes", by="meta.source")
    write(tmp_path / "file", "mine")
    with pytest.raises(PrepareError, match="is not replaced"):
        prepare([source], tmp_path / "file", "bytes", by="meta.source", force=True)
    assert (tmp_path / "file").read_text("utf-8") == "mine"


@given(value=st.text())
def test_any_value_has_a_domain_name_or_is_refused(value):
    try:
        check_value(value)
    except ValueError as error:
        str(error).encode("utf-8")  # it can be printed
    else:
        assert NAME.fullmatch(domain_name(value))
        assert len(Path("x", value).parts) == 2 + value.count("/")


def test_the_command_says_how_to_train(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", records(("a", "b c/d"), ("b", "web"), ("c", "web")))
    words = ["a.jsonl", "--by", "meta.source", "--output", "my data/x/", "--tokenizer", "bytes"]
    assert main(["prepare", *words]) == 0
    out = capsys.readouterr().out
    assert "train with: --domain-config 'my data/x/domains.yaml' --tokenizer-type" in out
    assert "manifest: my data/x/manifest.json" in out
    rows = [line.split() for line in out.splitlines()]
    header = "domain documents bytes of text tokens nats a token duplicates"
    assert header.split() in rows
    assert ["b_c.d", "1", "1", "2", "0.693", "0"] in rows
    assert ["web", "2", "2", "4", "1.040", "0"] in rows
    config = yaml.safe_load(Path("my data/x/domains.yaml").read_text("utf-8"))
    assert config["domains"]["b_c.d"] == {"data": ["my data/x/b c/d"]}


def test_an_output_without_by_is_as_before(tmp_path):
    source = write(tmp_path / "a.jsonl", json_lines(["a"]))
    manifest = prepare([source], tmp_path / "out", "bytes")
    assert final_files(tmp_path) == ["out.bin", "out.idx", "out.manifest.json"]
    assert [(d.value, d.domain, d.documents) for d in manifest.datasets] == [(None, None, 1)]
