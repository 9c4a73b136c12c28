"""Documents that are kept from training: which, and where they go."""

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from support.prepared import as_bytes, final_files, json_lines, read_back, write

from domain_pretrain.commands.main import main
from domain_pretrain.config import DomainConfig
from domain_pretrain.data.blend import check_agreement
from domain_pretrain.prepare import readers
from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.holdout import Holdout, parse_holdout
from domain_pretrain.prepare.manifest import Manifest
from domain_pretrain.prepare.quality import digest

get_blend_from_list = pytest.importorskip("megatron.core.datasets.utils").get_blend_from_list


def texts_at(prefix: Path) -> list[str]:
    return [bytes(ids[:-1]).decode() for ids in read_back(prefix)]


@pytest.mark.parametrize("holdout", ["20%", "37", "0.5%"])
def test_every_text_is_on_one_side(tmp_path, holdout):
    texts = [f"text {n * n % 151} {'é' * (n % 7)}" for n in range(400)]
    source = write(tmp_path / "a.jsonl", json_lines(texts) + "broken\n")
    manifest = prepare([source], tmp_path / "out", "bytes", holdout=holdout)
    training, held_out = (texts_at(tmp_path / name) for name in ("out", "out.holdout"))
    assert Counter(training) + Counter(held_out) == Counter(texts)
    assert not set(training) & set(held_out)
    assert training == [text for text in texts if text in set(training)]  # in their order
    assert held_out == [text for text in texts if text in set(held_out)]
    # The lowest digests are held out, whatever the order.
    digests = {text: digest(text.encode()) for text in texts}
    assert max(digests[text] for text in held_out) < min(digests[text] for text in training)

    theirs = Manifest.load(tmp_path / "out.holdout")
    assert (theirs.held_out, theirs.holdout) == (True, holdout)
    assert theirs.documents == len(held_out)
    assert theirs.text_bytes == sum(len(text.encode()) for text in held_out)
    assert theirs.tokens == theirs.text_bytes + theirs.documents
    assert theirs.quality.exact_duplicates == len(held_out) - len(set(held_out))
    assert (theirs.tokenizer, theirs.megatron_flags) == ("bytes", manifest.megatron_flags)
    assert Manifest.load(tmp_path / "out") == manifest
    assert (manifest.documents, manifest.bad_lines) == (len(training), 1)
    assert manifest.text_bytes + theirs.text_bytes == manifest.inputs[0].text_bytes
    assert manifest.inputs[0].documents == 400
    assert [(d.held_out, d.documents) for d in manifest.datasets] == [
        (False, len(training)),
        (True, len(held_out)),
    ]


def test_a_number_is_reached_and_passed_by_duplicates_only(tmp_path):
    texts = [f"{n}" for n in range(100)]
    source = write(tmp_path / "a.jsonl", json_lines(texts))
    prepare([source], tmp_path / "single", "bytes", holdout="30")
    assert len(read_back(tmp_path / "single.holdout")) == 30
    write(source, json_lines(texts * 4))
    prepare([source], tmp_path / "fourfold", "bytes", holdout="30")
    assert len(read_back(tmp_path / "fourfold.holdout")) == 32


def test_a_text_keeps_its_side(tmp_path, monkeypatch):
    """In other files, in another order, with more beside it, by several workers."""
    monkeypatch.setattr(readers, "CHUNK_BYTES", 300)
    texts = [f"text {n}" for n in range(300)]
    first = write(tmp_path / "a.jsonl", json_lines(texts))
    second = write(tmp_path / "b.json", json.dumps([*reversed(texts), *map(str, range(200))]))
    prepare([first], tmp_path / "one", "bytes", holdout="10%")
    prepare([second, first], tmp_path / "two", "bytes", holdout="10%", workers=2)
    held_out = set(texts_at(tmp_path / "one.holdout"))
    assert 10 < len(held_out) < 60
    assert held_out == set(texts_at(tmp_path / "two.holdout")) & set(texts)


def test_every_domain_has_its_number(tmp_path):
    records = [
        {"text": f"{name} {n}", "d": name}
        for name, count in [("big", 200), ("small/er", 12)]
        for n in range(count)
    ]
    records += [{"text": "another", "d": "small/er"}]
    source = write(tmp_path / "a.jsonl", "".join(json.dumps(r) + "\n" for r in records))
    manifest = prepare([source], tmp_path / "out", "bytes", by="d", holdout="5")
    assert [(d.value, d.held_out, d.documents) for d in manifest.datasets] == [
        ("big", False, 195),
        ("big", True, 5),
        ("small/er", False, 8),
        ("small/er", True, 5),
    ]
    theirs = Manifest.load(tmp_path / "out" / "small" / "er.holdout")
    texts = texts_at(tmp_path / "out" / "small" / "er.holdout")
    assert (theirs.value, theirs.text_bytes) == ("small/er", sum(map(len, texts)))
    splits = json.loads((tmp_path / "out" / "splits.json").read_text("utf-8"))
    tokens = {(d.value, d.held_out): str(d.tokens) for d in manifest.datasets}
    assert splits == {
        split: [
            word
            for value in ("big", "small/er")
            for word in (tokens[value, held_out], f"{tmp_path}/out/{value}{suffix}")
        ]
        for split, held_out, suffix in [("train", False, ""), ("valid", True, ".holdout")]
    } | {"test": None}
    # Megatron and the config make the same of it.
    blends = [get_blend_from_list(splits[split]) for split in ("train", "valid", "test")]
    config = DomainConfig.load(tmp_path / "out" / "domains.yaml")
    assert check_agreement(config.domains, blends) == {
        f"{tmp_path}/out/{value}{suffix}": value.replace("/", ".")
        for value in ("big", "small/er")
        for suffix in ("", ".holdout")
    }


@pytest.mark.parametrize("holdout", ["3", "10%"])
def test_no_domain_trains_on_what_another_holds_out(tmp_path, holdout):
    """A text may be in two domains, of which the larger one has the lower limit."""
    pairs = [(f"{n}", "small" if n < 40 else "big") for n in range(400)]
    pairs += [(f"{n}", "big") for n in range(40)]
    lines = [json.dumps({"text": text, "d": value}) for text, value in pairs]
    lines.append('{"text": "\\ud800", "d": "big"}')  # no text, and no reason to stop
    source = write(tmp_path / "a.jsonl", "\n".join(lines))
    prepare([source], tmp_path / "out", "bytes", by="d", holdout=holdout)
    texts = {
        name: set(texts_at(tmp_path / "out" / name))
        for name in ("big", "small", "big.holdout", "small.holdout")
    }
    assert len(texts["small.holdout"]) >= 3
    assert texts["big.holdout"] >= texts["small.holdout"]
    held_out = texts["big.holdout"] | texts["small.holdout"]
    assert not held_out & (texts["big"] | texts["small"])


@pytest.mark.parametrize(
    ("holdout", "texts", "message"),
    [
        ("3", ["a", "b", "c"], "3 documents with 3 different texts.*none would be left"),
        ("1", ["a", "a"], "2 documents with 1 different texts.*none would be left"),
        ("99.99999%", ["a", "b"], "all documents were held out"),
        ("0.0000001%", ["a", "b"], "no document was held out of 2"),
        ("1", [], "no document in 1 input files"),
        ("10%", [""], "0 bad lines, 1 empty documents"),
    ],
)
def test_both_sides_have_documents(tmp_path, holdout, texts, message):
    source = write(tmp_path / "a.jsonl", json_lines(texts))
    with pytest.raises(PrepareError, match=message):
        prepare([source], tmp_path / "out", "bytes", holdout=holdout)
    assert final_files(tmp_path) == []


def test_a_domain_too_small_is_named(tmp_path):
    records = [{"text": f"{n}", "d": "a" if n else "b"} for n in range(50)]
    source = write(tmp_path / "a.jsonl", "".join(json.dumps(r) + "\n" for r in records))
    with pytest.raises(PrepareError, match="1 documents of 'b'"):
        prepare([source], tmp_path / "out", "bytes", by="d", holdout="1")
    assert final_files(tmp_path) == []


def test_a_share_may_leave_a_small_domain_whole(tmp_path, capsys):
    """Then it has no held-out dataset, and the table says so."""
    kept = next(t for t in map(str, range(99)) if digest(t.encode()) > 1 << 63)
    records = [{"text": f"{n}", "d": "a"} for n in range(50)] + [{"text": kept, "d": "b"}]
    source = write(tmp_path / "a.jsonl", "".join(json.dumps(r) + "\n" for r in records))
    words = [str(source), "--output", str(tmp_path / "out"), "--tokenizer", "bytes"]
    assert main(["prepare", *words, "--by", "d", "--holdout", "50%"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    row = next(row for row in rows if row[:2] == ["b", "1"])
    assert row[2:4] == [str(len(kept)), str(len(kept) + 1)] and row[-1] == "0"
    assert not list((tmp_path / "out").glob("b.holdout*"))


@pytest.mark.parametrize("text", ["0", "0%", "100%", "-1", "1.5", "x", "1e3", "", "%", "1 %", "٣"])
def test_what_is_no_share_and_no_number(tmp_path, text):
    with pytest.raises(PrepareError, match="give a share between 0% and 100%, such as 1%"):
        prepare([tmp_path / "none.jsonl"], tmp_path / "out", "bytes", holdout=text)


def test_a_share_is_exact():
    assert parse_holdout("0.1%") == Holdout(Fraction(1, 1000), 0)
    assert parse_holdout("500") == Holdout(None, 500)
    cut = parse_holdout("50%").share_cut()
    assert cut.holds("", (1 << 63) - 1) and not cut.holds("", 1 << 63)
    cut = Holdout(None, 2).count_cut({"": np.array([9, (1 << 64) - 1, 5, 5], np.uint64)})
    assert [cut.holds("", n) for n in (5, 6, 9)] == [True, False, False]


def test_an_input_that_changes_between_the_readings_is_an_error(tmp_path):
    source = write(tmp_path / "a.jsonl", json_lines(["a", "b"]))

    def change(read, manifest):
        write(source, json_lines(["a", "c", "d"]))

    with pytest.raises(PrepareError, match=r"a\.jsonl: has changed between two readings"):
        prepare([source], tmp_path / "out", "bytes", holdout="1", on_progress=change)
    assert final_files(tmp_path) == []


def test_the_command_says_how_to_train(tmp_path, capsys):
    source = write(tmp_path / "a.jsonl", json_lines(["a", "b", "cc"]))
    prefix = str(tmp_path / "out")
    words = [str(source), "--output", prefix, "--tokenizer", "bytes", "--holdout", "1"]
    assert main(["prepare", *words]) == 0
    out = capsys.readouterr().out
    (size,) = map(len, texts_at(tmp_path / "out.holdout"))
    assert f"held out: 1 documents, {size} bytes of text" in out
    assert f"train with: --train-data-path {prefix} --valid-data-path {prefix}.holdout --to" in out


def test_a_template_is_what_is_hashed(tmp_path):
    records = [{"q": f"{n}", "id": n, "a": "x"} for n in range(60)]
    source = write(tmp_path / "a.jsonl", "".join(json.dumps(r) + "\n" for r in records))
    plain = write(tmp_path / "b.jsonl", json_lines([f"{n}: x" for n in range(60)]))
    prepare([source], tmp_path / "out", "bytes", template="{q}: {a}", holdout="20%")
    prepare([plain], tmp_path / "plain", "bytes", holdout="20%")
    assert read_back(tmp_path / "out.holdout") == read_back(tmp_path / "plain.holdout")
    assert read_back(tmp_path / "out.holdout") == as_bytes(texts_at(tmp_path / "out.holdout"))
