"""What a resumed run has changed of the order of its samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.prefixes import write_prefix

from domain_pretrain.data.blend import Blend
from domain_pretrain.data.order import Order, breaks, remarks
from domain_pretrain.data.reading import Reading
from domain_pretrain.data.tokenizer import Tokenizer

SETTINGS = {"--seed": 1, "--seq-length": 8}
AB: Blend = (["a", "b"], [1, 3])
TOKENIZER = Tokenizer("t", "1" * 64)


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, documents in (("a", 60), ("b", 80), ("c", 100)):
        write_prefix(name, [10] * documents)


def order(
    blend: Blend = AB,
    split: str | None = "80,10,10",
    *,
    per_split: list[Blend] | None = None,
    settings: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer = TOKENIZER,
    samples: int | None = 20,
) -> Order:
    if per_split is not None:
        blend, split = None, None
    reading = Reading.check(blend, per_split, split, 8, {}, files=True)
    return Order.of(reading, settings or SETTINGS, tokenizer, samples)


def changes(now: Order, before: Order | None = None) -> tuple[list[str], list[str]]:
    """As a resumed run finds them: what was before comes out of a checkpoint."""
    old = Order.load(json.loads(json.dumps((before or order()).dump())))
    return list(breaks(old, now)), list(remarks(old, now))


def test_the_same() -> None:
    assert changes(order()) == ([], [])
    assert changes(order((["./a", "b"], [0.25, 0.75]))) == ([], [])
    assert changes(order(split="8/1/1")) == ([], [])
    assert changes(order(samples=40)) == ([], [])
    by_size = order((["a", "b"], None))
    assert changes(by_size, by_size) == ([], [])


def test_moved_files_are_the_same_files() -> None:
    before = order()
    Path("moved").mkdir()
    for name in ("a", "b"):
        for suffix in (".idx", ".bin"):
            Path(f"{name}{suffix}").rename(f"moved/{name}{suffix}")
    assert changes(order((["moved/a", "moved/b"], [1, 3])), before) == ([], [])


def test_shards_of_one_size_are_not_each_other() -> None:
    """Nor are they those of another folder, though every folder has its part-0."""
    for folder in ("", "old/x/", "old/y/", "new/x/", "new/y/"):
        for part in range(3):
            write_prefix(f"{folder}part-{part}", [10] * 60)
    before = order((["part-0", "part-1"], [1, 1]))
    (gone, new) = changes(order((["part-2", "part-1"], [1, 1])), before)[0]
    assert gone.endswith("/part-0") and new.endswith("/part-2")
    (found,) = changes(order((["part-1", "part-0"], [1, 1])), before)[0]
    assert found == "the prefixes in another order, or as often"
    folders = order((["old/x/part-0", "old/y/part-0"], [1, 1]))
    assert changes(order((["new/x/part-0", "new/y/part-0"], [1, 1])), folders) == ([], [])
    assert changes(order((["new/y/part-0", "new/x/part-0"], [1, 1])), folders)[0]


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ({"blend": (["a", "b"], [1, 1])}, ["a 25.0000% → 50.0000%", "b 75.0000% → 50.0000%"]),
        ({"blend": (["a", "b"], None)}, ["other weights", "a 25.0000% → by size"]),
        ({"blend": (["b", "a"], [3, 1])}, ["the prefixes in another order"]),
        ({"blend": (["a", "a", "b"], [1, 1, 6])}, ["other weights"]),
        ({"blend": (["a", "c"], [1, 3])}, ["gone", "/b", "new", "/c"]),
        ({"split": "90,5,5"}, ["0.0000%-80.0000% → 0.0000%-90.0000%"]),
        ({"settings": {**SETTINGS, "--seed": 2}}, ["--seed 1 → 2"]),
        ({"settings": {**SETTINGS, "--seq-length": 16}}, ["--seq-length 8 → 16"]),
        ({"tokenizer": Tokenizer("t", "2" * 64)}, ["tokenizer t (111111111111) → t (2222"]),
        ({"tokenizer": Tokenizer("u", None)}, ["tokenizer t (111111111111) → u"]),
    ],
)
def test_what_makes_the_skip_miss(now: dict[str, Any], says: list[str]) -> None:
    found = "; ".join(changes(order(**now))[0])
    for part in says:
        assert part in found


def test_another_content_at_the_same_place() -> None:
    before = order()
    write_prefix("a", [10] * 61)
    (found,) = changes(order(), before)[0]
    assert "/a 600 → 610 tokens in 60 → 61 documents" in found


def test_a_checkpoint_of_before_what_was_read_was_told_by_prefix() -> None:
    old, now, other = (
        order(settings={**SETTINGS, "mix.already_read": digest})
        for digest in ("a0", "a0-b1", "a0-b2")
    )
    assert changes(now, old) == ([], [])
    assert changes(other, now)[0] == ["mix.already_read a0-b1 → a0-b2"]
    assert changes(order(), now)[0] == ["mix.already_read a0-b1 → None"]


def test_a_tokenizer_that_moved_is_the_same() -> None:
    assert changes(order(tokenizer=Tokenizer("elsewhere", "1" * 64))) == ([], [])


def test_what_is_only_told() -> None:
    broken, told = changes(order(split="80,20"))
    assert not broken
    assert "another valid split (80.0000%-90.0000% → 80.0000%-100.0000%)" in told[0]
    own = [(["a"], None), (["b"], None), None]
    broken, told = changes(order(per_split=[own[0], (["c"], None), None]), order(per_split=own))
    assert not broken
    assert "another valid split (gone" in told[0]


def test_longer_runs_are_told_where_a_prefix_is_read_again() -> None:
    """60 documents of 10 tokens, 80 % of them: 480 tokens of a; 10 samples of 8 tokens are 80."""
    assert changes(order(samples=80)) == ([], [])  # 20 of a, 60 of b
    broken, told = changes(order(samples=1000))
    assert not broken
    assert told[0].startswith("another number of samples (20 → 1000): ")
    assert "/a" in told[0]
    assert "/b" in told[0]


def test_object_stores_are_told_by_their_names() -> None:
    before = order((["s3://x/a", "b"], [1, 3]))
    assert changes(order((["s3://x/a", "b"], [1, 3])), before) == ([], [])
    (found, *_) = changes(order((["s3://x/c", "b"], [1, 3])), before)[0]
    assert "gone s3://x/a" in found


def test_a_tokenizer_by_its_file() -> None:
    Path("t").mkdir()
    Path("t/tokenizer.json").write_text("{}", "utf-8")
    Path("copy.json").write_text("{}", "utf-8")
    folder = Tokenizer.of(
        SimpleNamespace(tokenizer_type="HuggingFaceTokenizer", tokenizer_model="t")
    )
    file = Tokenizer.of(SimpleNamespace(tokenizer_model="copy.json", vocab_file=None))
    assert folder.name == "t"
    assert folder.sha256 == file.sha256 is not None
    assert Tokenizer.of(SimpleNamespace(tokenizer_model="org/name")) == Tokenizer("org/name", None)
    assert Tokenizer.of(SimpleNamespace(tokenizer_type="NullTokenizer")).name == "NullTokenizer"
