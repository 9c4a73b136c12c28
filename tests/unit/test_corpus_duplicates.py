"""Documents that are there twice: counted, the first of them named, told where they are many."""

import itertools
import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.prepared import json_lines, write

from domain_pretrain.commands.main import main
from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.prepare.manifest import Manifest
from domain_pretrain.prepare.quality import DUPLICATES_NAMED, find_duplicates

pytest.importorskip("megatron.core")


@given(pieces=st.lists(st.lists(st.integers(0, 12)), min_size=1))
def test_duplicates_are_counted_and_the_first_of_them_named(pieces):
    arrays = [np.array(piece, np.uint64) for piece in pieces]
    seen, pairs = {}, []
    for place, digest in enumerate(itertools.chain(*pieces)):
        if seen.setdefault(digest, place) != place:
            pairs.append((place, seen[digest]))
    assert find_duplicates(arrays) == (len(pairs), pairs[:DUPLICATES_NAMED])


def test_many_duplicates_are_worth_a_warning(tmp_path, capsys):
    """By dataset, and all together where they are in two of them."""

    def warning(*groups: list[str]) -> str:
        records = [{"text": text, "s": f"s{n}"} for n, group in enumerate(groups) for text in group]
        source = write(tmp_path / "a.jsonl", "".join(json.dumps(r) + "\n" for r in records))
        words = [str(source), "--output", str(tmp_path / "out"), "--tokenizer", "bytes", "--force"]
        assert main(["prepare", *words, *(["--by", "s"] if len(groups) > 1 else [])]) == 0
        found = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
        for path in tmp_path.glob("out*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return "".join(found)

    few, many = [f"t{n}" for n in range(97)], [f"t{n}" for n in range(96)]
    assert warning([*few, "t1", "t1", "t2"]) == ""
    assert "the dataset 4.0% (4 of 100)" in warning([*many, "t1", "t1", "t2", "t3"])
    one = warning(many, ["a", "b", "a"])
    assert "s1 33.3% (1 of 3)" in one and "s0" not in one and "together" not in one
    assert "text of an earlier one: all together 48.5% (50 of 103)" in warning(many[:53], many[:50])


def test_duplicates_are_of_a_dataset(tmp_path):
    """Numbers are those of its documents; the run's manifest has none for several datasets."""
    records = [{"text": text, "s": s} for text, s in ("aw", "ax", "bw", "aw", "bx", "ax", "bw")]
    source = write(tmp_path / "a.jsonl", "".join(json.dumps(r) + "\n" for r in records))
    manifest = prepare([source], tmp_path / "out", "bytes", by="s")
    assert manifest.quality.exact_duplicates == 5
    assert manifest.quality.first_duplicates == []
    assert [d.exact_duplicates for d in manifest.datasets] == [2, 1]
    for dataset, pairs in zip(manifest.datasets, ([(2, 0), (3, 1)], [(2, 0)]), strict=True):
        own = Manifest.load(tmp_path / "out" / dataset.value)
        assert own.quality.first_duplicates == pairs
        assert own.quality.unigram_entropy_nats == dataset.unigram_entropy_nats > 0
    for name, workers in (("one", 1), ("two", 2)):
        manifest = prepare([source], tmp_path / name, "bytes", workers=workers)
        assert manifest.quality.first_duplicates == [(1, 0), (3, 0), (4, 2), (5, 0), (6, 2)]


def test_manifests_of_before_duplicates_were_named_can_be_read(tmp_path):
    prepare([write(tmp_path / "a.jsonl", json_lines(["x", "x"]))], tmp_path / "out", "bytes")
    path = tmp_path / "out.manifest.json"
    content = json.loads(path.read_text("utf-8"))
    for key in ("channel_key", "channels"):
        del content[key]
    del content["quality"]["first_duplicates"]
    for key in ("exact_duplicates", "unigram_entropy_nats"):
        del content["datasets"][0][key]
    path.write_text(json.dumps(content), "utf-8")
    found = Manifest.load(tmp_path / "out")
    assert (found.channels, found.channel_key, found.quality.first_duplicates) == ([], None, [])
    assert found.datasets[0].exact_duplicates is None
