"""Documents that a run before has read: told by document, kept in a file, not trained on again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.prefixes import write_prefix

from domain_pretrain.data import already_read
from domain_pretrain.data.already_read import AlreadyRead
from domain_pretrain.data.index import Index
from domain_pretrain.data.plan import training_corpora
from domain_pretrain.data.reading import Reading
from domain_pretrain.data.splits import parse_split
from domain_pretrain.data.trace.consumption import Reads
from domain_pretrain.data.trace.windows import Windows
from domain_pretrain.errors import ConfigError

LENGTHS = [5, 7, 1, 9, 3, 8, 2, 6, 4, 5]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_prefix("data/a", LENGTHS)
    write_prefix("data/b", [4] * 10)


def write(path: str, **read: list[int]) -> Path:
    """A file that says so of prefixes in ``data``."""
    found = {}
    for name, numbers in read.items():
        index = Index.read(f"data/{name}")
        documents = np.zeros(index.sequences, bool)
        documents[numbers] = True
        found[index.prefix] = (index, documents)
    content = already_read.content_of("runs/short", 8, found)
    Path(path).write_text(json.dumps(content), "utf-8")
    return Path(path)


def load(path: Path, *prefixes: str) -> AlreadyRead:
    return already_read.load(path, {one: Index.read(one) for one in prefixes})


@given(st.sets(st.integers(0, 9)))
def test_it_comes_back_as_it_was(numbers: set[int]) -> None:
    found = load(write("read.json", a=sorted(numbers), b=[]), "data/a", "./data/b")
    assert found.of("data/a").tolist() == sorted(numbers)
    assert found.of("data/b").tolist() == []
    assert found.within("data/../data/a", range(2, 5)).tolist() == sorted(numbers & {2, 3, 4})


def test_data_that_were_moved(tmp_path: Path) -> None:
    path = write("read.json", a=[1, 3])
    before = load(path, "data/a")
    shutil.move("data", "elsewhere")
    after = load(path, "elsewhere/a")
    assert after.of("elsewhere/a").tolist() == [1, 3]
    assert after.digest == before.digest


def test_other_documents_have_another_digest() -> None:
    one, other = (load(write("read.json", a=numbers), "data/a") for numbers in ([1], [2]))
    assert one.digest != other.digest


def test_whose_the_documents_are_is_a_part_of_the_digest() -> None:
    """Prefixes of one size, as shards are, that have each other's documents."""
    for name in ("c", "deep/c"):
        write_prefix(f"data/{name}", [4] * 10)
    for one, other in (("b", "c"), ("c", "deep/c")):
        written = [{one: [1], other: []}, {one: [], other: [1]}]
        first, second = (load(write("read.json", **read)).digest for read in written)
        assert first != second
        assert not already_read.same_digest(first, second)


def test_what_an_older_version_has_told_of_a_file() -> None:
    """Its digest is the first half: without the names of the prefixes."""
    digest = load(write("read.json", a=[1, 3], b=[])).digest
    assert digest.partition("-")[0] == "5dced2e817d291c7"
    assert already_read.same_digest("5dced2e817d291c7", digest)
    assert not already_read.same_digest("5dced2e817d291c7", load(write("read.json", a=[1])).digest)
    assert not already_read.same_digest(None, digest) and already_read.same_digest(None, None)


def test_a_shard_of_the_same_size_was_not_read() -> None:
    for folder in ("x", "y"):
        write_prefix(f"data/{folder}/part-0", [4] * 10)
    path = write("read.json", **{"x/part-0": [1, 3]})
    found = load(path, "data/x/part-0", "data/y/part-0")
    assert found.of("data/x/part-0").tolist() == [1, 3]
    assert found.of("data/y/part-0").tolist() == []


def test_what_is_said_of_prefixes_that_a_run_does_not_have() -> None:
    """They are told on; one that was moved is not told twice."""
    found = load(write("read.json", a=[1, 3], b=[2]), "data/a")
    shutil.move("data", "elsewhere")
    index = Index.read("elsewhere/a")
    beyond = found.beyond({"elsewhere/a": index})
    assert [prefix.rpartition("/")[2] for prefix in beyond] == ["b"]
    now = {"elsewhere/a": (index, np.arange(10) < 5)}
    content = already_read.content_of("runs/long", 9, now, beyond)
    Path("both.json").write_text(json.dumps(content), "utf-8")
    both = load(Path("both.json"), "elsewhere/a", "elsewhere/b")
    assert both.of("elsewhere/a").tolist() == [0, 1, 2, 3, 4]
    assert both.of("elsewhere/b").tolist() == [2]


def test_shards_that_were_moved_and_cannot_be_told_apart_are_refused() -> None:
    """Their documents would be read again in silence."""
    for folder in ("data/x", "data/y", "elsewhere/1", "elsewhere/2"):
        write_prefix(f"{folder}/part-0", LENGTHS)
    file = write("read.json", **{"x/part-0": [1], "y/part-0": [2]})
    with pytest.raises(ConfigError, match=r"'elsewhere/1/part-0' has the name.*may be any of"):
        load(file, "elsewhere/1/part-0", "elsewhere/2/part-0")
    found = load(file, "data/x/part-0", "elsewhere/2/part-0")
    assert found.of("elsewhere/2/part-0").tolist() == [2]


def test_data_that_have_grown_are_refused() -> None:
    path = write("read.json", a=[1, 3])
    write_prefix("data/a", [*LENGTHS, 5])
    with pytest.raises(ConfigError, match=r"'data/a' is not what runs/short has read: 50 → 55"):
        load(path, "data/a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"read": "AA=="}, r"a cannot be used: it is cut off"),
        ({"read": "?"}, r"a cannot be used"),
        ({"tokens": "many"}, r"tokens: Input should be a valid integer"),
        ({"more": 1}, r"more: Extra inputs are not permitted"),
    ],
)
def test_a_file_that_is_none(change: dict[str, object], message: str) -> None:
    path = write("read.json", a=[1])
    content = json.loads(path.read_text("utf-8"))
    next(iter(content["prefixes"].values())).update(change)
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ConfigError, match=f"mix.already_read: read.json.*{message}"):
        load(path, "data/a")


def test_another_file_altogether() -> None:
    Path("read.json").write_text("[1, 2]", "utf-8")
    with pytest.raises(ConfigError, match=r"read\.json cannot be used: Input should be"):
        load(Path("read.json"), "data/a")


def test_what_is_left_to_train_on() -> None:
    """Of the training split: documents 0 to 7; 9 would not be trained on anyway."""
    indices = {one: Index.read(one) for one in ("data/a", "data/b")}
    blend = (list(indices), [1.0, 1.0])
    whole = Reading((blend,) * 3, parse_split("80,20,0"), indices)
    rest = whole.after(write("read.json", a=[0, 3, 9]))
    assert whole.after(None) is whole
    assert whole.training_tokens("data/a") == sum(LENGTHS[:8])
    assert rest.training_tokens("data/a") == sum(LENGTHS[:8]) - LENGTHS[0] - LENGTHS[3]
    assert rest.training_tokens("data/b") == whole.training_tokens("data/b") == 32
    left = sum(LENGTHS[:8]) - LENGTHS[0] - LENGTHS[3]
    assert rest.trains_on("data/a", left) and not rest.trains_on("data/a", left + 1)
    corpora = training_corpora(rest, 4)
    assert (corpora["data/a"].tokens, corpora["data/a"].samples) == (left, (left - 1) // 4)


def windows(size: int, order: list[int], lengths: list[int]) -> Windows:
    """Of documents in some order: as many windows as there are, which come in their order."""
    tokens = [(place, at) for place, number in enumerate(order) for at in range(lengths[number])]
    count = (len(tokens) - 1) // size
    cuts = np.array([tokens[size * number] for number in range(count + 1)])
    return Windows(np.array(order), cuts, np.arange(count), np.array(lengths, np.int32))


def read(times: list[int], **changes: object) -> Reads:
    """Documents 0, 2, 1 of 4, 3 and 6 tokens and one more, in windows of 4: 04 | 2222 | 2211 (1)"""
    reads = Reads("a", "a")
    reads.add(windows(4, [0, 2, 1], [4, 3, 6, 9]), np.array(times))
    for name, value in changes.items():
        setattr(reads, name, value)
    return reads


def test_what_the_present_epoch_has_read() -> None:
    """A window reads the first token of the next, too. Document 3 is not for training."""
    assert read([0, 0, 0]).documents().tolist() == [False] * 4
    assert read([1, 0, 0]).documents().tolist() == [True, False, True, False]
    assert read([0, 0, 1]).documents().tolist() == [False, True, True, False]
    # Of document 2, one token of six was read, then five of six.
    assert read([1, 0, 0]).documents(0.5).tolist() == [True, False, False, False]
    assert read([0, 1, 0]).documents(0.5).tolist() == [False, False, True, False]


def test_an_epoch_that_is_through_begins_anew() -> None:
    assert read([1, 1, 1]).documents().tolist() == [False] * 4
    assert read([2, 1, 1]).documents().tolist() == [True, False, True, False]
    assert read([2, 2, 2]).documents().tolist() == [False] * 4


def test_what_was_read_earlier_counts_until_the_rest_is_through() -> None:
    earlier = np.array([3])
    assert read([1, 0, 0], earlier=earlier).documents().tolist() == [True, False, True, True]
    assert read([1, 1, 1], earlier=earlier).documents().tolist() == [False] * 4
