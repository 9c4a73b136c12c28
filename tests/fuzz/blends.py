"""Data flags, the files of words that some of them name, and the data files behind."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.prefixes import write_prefix

from domain_pretrain.launch.flags import Flags
from domain_pretrain.launch.preflight import plan_of_flags
from fuzz.case import Case
from fuzz.damage import NASTY, damaged, flipped, nested, with_nasty

NAMES = (
    "a",
    "b_text_document",
    "数学",
    "wiki[zh]",
    "with space",
    "x*y",
    "a.b",
    "-c",
    "0.5x",
    "[b]",
)
DOCUMENTS, TOKENS = 24, range(6, 12)
HEADER = 34  # bytes before the lengths of PREFIX.idx
BASE = ["--seq-length", "4", "--micro-batch-size", "1", "--train-iters", "10"]
OWN = ("--train-data-path", "--valid-data-path", "--test-data-path")


def case(rng: random.Random) -> Case:
    """Flags and files that are valid, broken in a known way, or damaged anywhere."""
    names = rng.sample(NAMES, rng.randrange(1, 4))
    prefixes = [f"data/{name}" for name in names]
    what, seed = rng.random(), rng.getrandbits(32)
    if what < 0.25:
        return Case("valid", True, _Check(seed, prefixes))
    if what < 0.5:
        change = rng.choice(WORDS)
        return Case(change.__name__, False, _Check(seed, prefixes, words=change))
    if what < 0.75:
        damage = rng.choice(FILES)
        return Case(damage.__name__, False, _Check(seed, prefixes, files=damage))
    if what < 0.85:
        broken = rng.choice(SPLITS)
        return Case("data file of the splits", False, _Check(seed, prefixes, splits=broken))
    if what < 0.9:
        split = rng.choice(WRONG_SPLITS)
        return Case(f"--split {split}", False, _Check(seed, prefixes, split=split))
    loose = rng.choice(("words", "files", "splits"))
    return Case(f"damaged {loose}", None, _Check(seed, prefixes, loose=loose))


class _Check:
    """Write the files, and take them as a preflight takes them: with every length looked at."""

    def __init__(
        self,
        seed: int,
        prefixes: list[str],
        *,
        words: Callable[[random.Random, list[str]], None] | None = None,
        files: Callable[[random.Random, str], None] | None = None,
        splits: Callable[[random.Random, dict[str, Any]], str | bytes] | None = None,
        split: str | None = None,
        loose: str = "",
    ) -> None:
        self._seed, self._prefixes, self._loose = seed, prefixes, loose
        self._words, self._files, self._splits, self._split = words, files, splits, split

    def __call__(self, folder: Path) -> bool:
        rng = random.Random(self._seed)
        for prefix in self._prefixes:
            lengths = [rng.choice(TOKENS) for _ in range(DOCUMENTS)]
            write_prefix(prefix, lengths, dtype=rng.choice(("uint16", "int32", "uint8")))
        words = self._prefixes.copy()
        if rng.random() < 0.5:
            words = [word for p in words for word in (rng.choice(("1", "0.5", "3e-4")), p)]
        if self._files is not None:
            self._files(rng, rng.choice(self._prefixes))
        if self._loose == "files":
            path = Path(f"{rng.choice(self._prefixes)}.{rng.choice(('idx', 'bin'))}")
            path.write_bytes(damaged(rng, path.read_bytes()))
        flags = Flags.parse([*BASE, *self._flags(rng, words)])
        plan = plan_of_flags(flags)
        assert plan is not None
        assert self._loose or abs(sum(domain.share for domain in plan.domains) - 1) < 1e-9
        return False

    def _flags(self, rng: random.Random, words: list[str]) -> list[str]:
        good = rng.choice(("100,0,0", "50,25,25", "2:1:1", "1"))
        split = ["--split", good if self._split is None else self._split]
        if self._words is not None:
            self._words(rng, words)
        if self._loose == "words":
            for _ in range(rng.choice((1, 2))):
                words.insert(rng.randrange(len(words) + 1), str(rng.choice(NASTY)))
        by_splits = rng.random() < 0.3 and self._split is None
        if self._splits is not None or by_splits or self._loose == "splits":
            blends = {"train": list(words), "valid": " ".join(words), "test": None}
            if any(" " in word for word in words):
                blends["valid"] = list(words)
            text: str | bytes = json.dumps(blends, ensure_ascii=False)
            if self._splits is not None:
                text = self._splits(rng, blends)
            elif self._loose == "splits":
                text = json.dumps(with_nasty(rng, blends))
                if rng.random() < 0.5:
                    text = damaged(rng, text.encode())
            raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
            Path("splits.json").write_bytes(raw)
            return ["--per-split-data-args-path", "splits.json"]
        usable = [word for word in words if not word.startswith("-")] == words != []
        if usable and rng.random() < 0.3:
            return ["--train-data-path", *words] if self._split is None else [*_path(words), *split]
        if not any(word.split() != [word] for word in words) and rng.random() < 0.4:
            Path("words").write_text(rng.choice((" ", "\n", "\t ")).join(words), "utf-8")
            return ["--data-args-path", "words", *split]
        # argparse takes a word with a dash in front for a flag; so does Megatron's.
        return [*_path([f"./{word}" if word[:1] == "-" else word for word in words]), *split]


def _path(words: list[str]) -> list[str]:
    return ["--data-path", *words]


# --- broken words ---------------------------------------------------------------------------------


def a_weight_that_is_none(rng: random.Random, words: list[str]) -> None:
    prefixes = [word for word in words if word.startswith("data/")]
    wrong = ("0", "-1", "nan", "inf", "-inf", "1e999", "0.0", "-0", "0e5", "infinity")
    words[:] = [word for prefix in prefixes for word in ("1", prefix)]
    words[2 * rng.randrange(len(prefixes))] = rng.choice(wrong)


def a_weight_less(rng: random.Random, words: list[str]) -> None:
    prefixes = [word for word in words if word.startswith("data/")]
    words[:] = [word for prefix in prefixes for word in ("0.5", prefix)]
    del words[rng.randrange(0, len(words), 2)]
    if len(words) == 1:
        words += ["0.5"]


def turned_around(rng: random.Random, words: list[str]) -> None:
    prefixes = [word for word in words if word.startswith("data/")]
    words[:] = [word for prefix in prefixes for word in (prefix, "0.5")]


def absent(rng: random.Random, words: list[str]) -> None:
    prefixes = [at for at, word in enumerate(words) if word.startswith("data/")]
    name = (
        "data/none",
        "data",
        "data/a/",
        "data/*",
        "x" * 300,
        "data/" + "y" * 5_000,
        "/",
        "0.5.1",
    )
    words[rng.choice(prefixes)] = rng.choice(name)


def a_number_more(rng: random.Random, words: list[str]) -> None:
    prefixes = [word for word in words if word.startswith("data/")]
    words[:] = [word for prefix in prefixes for word in ("1", prefix)]
    words.insert(rng.randrange(len(words) + 1), rng.choice(("0.5", "7", "-1", "nan")))


WORDS = (a_weight_that_is_none, a_weight_less, turned_around, absent, a_number_more)


# --- broken files of data -------------------------------------------------------------------------


def _change(prefix: str, suffix: str, change: Callable[[bytes], bytes]) -> None:
    path = Path(f"{prefix}.{suffix}")
    path.write_bytes(change(path.read_bytes()))


def index_cut(rng: random.Random, prefix: str) -> None:
    _change(prefix, "idx", lambda data: data[: rng.randrange(len(data))])


def tokens_cut(rng: random.Random, prefix: str) -> None:
    _change(prefix, "bin", lambda data: data[: rng.randrange(len(data))])


def tokens_longer(rng: random.Random, prefix: str) -> None:
    _change(prefix, "bin", lambda data: data + bytes(rng.randrange(1, 9)))


def index_of_other_tokens(rng: random.Random, prefix: str) -> None:
    lengths = [rng.choice(TOKENS) for _ in range(DOCUMENTS)]
    before = Path(f"{prefix}.bin").read_bytes()
    write_prefix(prefix, [*lengths, 13], dtype="int64")
    Path(f"{prefix}.bin").write_bytes(before)


def another_byte_of_the_header(rng: random.Random, prefix: str) -> None:
    def change(data: bytes) -> bytes:
        while True:
            found = flipped(rng, data, 0, HEADER)
            # int16 and uint16 have one size, int8 and uint8 too: nothing tells them apart.
            if {found[17], data[17]} not in ({3, 8}, {1, 2}):
                return found

    _change(prefix, "idx", change)


def another_length(rng: random.Random, prefix: str) -> None:
    _change(prefix, "idx", lambda data: flipped(rng, data, HEADER, HEADER + 4 * DOCUMENTS))


def two_lengths_that_add_up(rng: random.Random, prefix: str) -> None:
    def change(data: bytes) -> bytes:
        lengths = list(struct.unpack_from(f"<{DOCUMENTS}i", data, HEADER))
        first, second = rng.sample(range(DOCUMENTS - 1), 2)
        lengths[first] += 1
        lengths[second] -= 1
        return (
            data[:HEADER] + struct.pack(f"<{DOCUMENTS}i", *lengths) + data[HEADER + 4 * DOCUMENTS :]
        )

    _change(prefix, "idx", change)


def another_offset(rng: random.Random, prefix: str) -> None:
    first = HEADER + 4 * DOCUMENTS
    _change(prefix, "idx", lambda data: flipped(rng, data, first, first + 8 * DOCUMENTS))


def another_last_end(rng: random.Random, prefix: str) -> None:
    _change(prefix, "idx", lambda data: flipped(rng, data, len(data) - 8))


def no_documents(rng: random.Random, prefix: str) -> None:
    write_prefix(prefix, rng.choice(([], [0], [0, 0, 0], [5])[:3]))


def documents_too_short(rng: random.Random, prefix: str) -> None:
    """A split of a quarter finds no token."""
    write_prefix(prefix, [0] * DOCUMENTS)


def a_folder_in_its_place(rng: random.Random, prefix: str) -> None:
    path = Path(f"{prefix}.{rng.choice(('idx', 'bin'))}")
    path.unlink()
    path.mkdir()


def gone(rng: random.Random, prefix: str) -> None:
    Path(f"{prefix}.{rng.choice(('idx', 'bin'))}").unlink()


def a_link_to_nothing(rng: random.Random, prefix: str) -> None:
    path = Path(f"{prefix}.{rng.choice(('idx', 'bin'))}")
    path.unlink()
    path.symlink_to(rng.choice(("nowhere", path.name)))


def one_file_twice(rng: random.Random, prefix: str) -> None:
    others = [path for path in Path("data").glob("*.idx") if path != Path(f"{prefix}.idx")]
    if not others:
        gone(rng, prefix)
        return
    link = rng.choice((os.link, os.symlink))
    for suffix in ("idx", "bin"):
        path = others[0].with_suffix(f".{suffix}")
        path.unlink()
        link(Path(f"{prefix}.{suffix}").absolute(), path)


FILES = (
    *(index_cut, tokens_cut, tokens_longer, index_of_other_tokens, another_byte_of_the_header),
    *(another_length, two_lengths_that_add_up, another_offset, another_last_end, no_documents),
    *(documents_too_short, a_folder_in_its_place, gone, a_link_to_nothing, one_file_twice),
)


# --- broken files of words ------------------------------------------------------------------------


def _without(key: str) -> Callable[[random.Random, dict[str, Any]], str]:
    return lambda rng, blends: json.dumps({k: v for k, v in blends.items() if k != key})


def _with(value: Any) -> Callable[[random.Random, dict[str, Any]], str]:
    return lambda rng, blends: json.dumps({**blends, rng.choice(("train", "valid")): value})


SPLITS: tuple[Callable[[random.Random, dict[str, Any]], str | bytes], ...] = (
    *map(_without, ("train", "valid", "test")),
    *map(_with, ({}, 3, True, [None], [[]], [True], "", [], [1], [1, 2], ["1", ""], {"a": 1})),
    *map(_with, (["data/none"], "0 data/none", [float("nan"), "data/none"], ["\ud800"], ["\0"])),
    lambda rng, blends: json.dumps(blends)[: -rng.randrange(1, 9)],
    lambda rng, blends: json.dumps(blends)[:-1] + ', "train": null}',
    lambda rng, blends: json.dumps(blends)[:-1] + f', "more": {nested(rng)[:-1]}}}',
    lambda rng, blends: json.dumps(blends)[:-1] + ', "more": ' + "9" * 5_000 + "}",
    lambda rng, blends: json.dumps(list(blends.items())),
    lambda rng, blends: json.dumps(blends).encode("utf-16"),
    lambda rng, blends: json.dumps(blends).encode() + b"\xff",
    lambda rng, blends: "",
    lambda rng, blends: "{}",
    lambda rng, blends: "\0",
)

WRONG_SPLITS = (
    *("0,0,0", "1,2,3,4", "a,b", "", "1e2,1,1", "-1,1,1", "1..2,1", ".", "99.9,0.05,0.05"),
    *("1000000,1,1", "nan", "inf,1,1", "0,100,0", "9" * 400, "1 2 3 4", "½,½", "٣,1"),
)
