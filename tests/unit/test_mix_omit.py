"""Documents that the stream leaves out: which they are, and what comes in their place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.traces import write_documents

from domain_pretrain.data.documents import content_of, find_contents
from domain_pretrain.data.index import Index
from domain_pretrain.data.mix.blocks import Blocks, given_before
from domain_pretrain.data.mix.change import changes
from domain_pretrain.data.mix.describe import describe, tell_left_out
from domain_pretrain.data.mix.locate import Locator
from domain_pretrain.data.mix.omit import Omission, continued, saved_omissions
from domain_pretrain.data.mix.permutation import permuted
from domain_pretrain.data.mix.plan import Plan, Stage, make_plan
from domain_pretrain.data.mix.section import Mix
from domain_pretrain.data.mix.turns import Turns
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.data.reading import Reading
from domain_pretrain.errors import ConfigError
from domain_pretrain.section import parse

SEED = 7

# --- the turns of one prefix ---------------------------------------------------------------------


def walked(
    length: int, rules: Sequence[tuple[int, set[int]]], samples: int
) -> list[tuple[int, int]]:
    """Epoch and window of every sample, turn by turn."""
    found: list[tuple[int, int]] = []
    turn = 0
    while len(found) < samples:
        epoch, place = divmod(turn, length)
        window = permuted(place, length, SEED, epoch) if epoch else place
        gone = [windows for since, windows in rules if since <= len(found)]
        if not gone or window not in gone[-1]:
            found.append((epoch, window))
        turn += 1
    return found


@st.composite
def ruled(draw: st.DrawFn) -> tuple[int, list[tuple[int, set[int]]]]:
    length = draw(st.integers(1, 30))
    some = st.sets(st.integers(0, length - 1), max_size=length - 1)
    rules = draw(st.lists(st.tuples(st.integers(0, 4 * length), some), max_size=4))
    return length, sorted(rules, key=lambda rule: rule[0])


@given(ruled())
def test_samples_are_the_turns_that_are_not_left_out(
    case: tuple[int, list[tuple[int, set[int]]]],
) -> None:
    """Forwards, backwards and counted, whatever is left out from where on."""
    length, rules = case
    turns = Turns(length, SEED)
    for since, windows in rules:
        turns.leave_out(since, sorted(windows))
    expected = walked(length, rules, 6 * length)
    assert [turns.find(sample) for sample in range(6 * length)] == expected
    for window in range(length):
        own = [sample for sample, (_, found) in enumerate(expected) if found == window]
        assert list(turns.samples_of(window, 6 * length)) == own
    for epochs in range(5):
        assert turns.samples_in(epochs) >= sum(epoch < epochs for epoch, _ in expected)
        inside = [sample for sample, (epoch, _) in enumerate(expected) if epoch < epochs]
        if len(inside) < len(expected):
            assert turns.samples_in(epochs) == len(inside)
    for first, stop in ((0, 6 * length), (length // 2, 3 * length + 1), (5, 5)):
        times = np.zeros(length, np.int64)
        turns.count(times, first, stop)
        own = np.bincount([window for _, window in expected[first:stop]], minlength=length)
        assert times.tolist() == own.tolist()
    later = Turns(length, SEED)  # goes on by the prefix's own order alone
    after = turns.passed(2 * length)
    assert later.find(after - 1) == expected[2 * length - 1]


def test_without_omissions_it_is_the_order_of_before() -> None:
    turns = Turns(10, SEED)
    assert [turns.find(sample) for sample in range(30)] == walked(10, [], 30)
    assert (turns.left_out, turns.samples_in(3)) == (0, 30)


# --- the stream ----------------------------------------------------------------------------------

PLAN = Plan(("a", "b"), (Stage(20, (1.0, 1.0)), Stage(None, (3.0, 1.0))), 60, ((5, 9),))
# Document d of a prefix is in the windows 2d and 2d + 1.
LENGTHS = (12, 8)


def windows(prefix: int, documents: Sequence[int]) -> list[int]:
    return [2 * d + more for d in documents for more in (0, 1)]


def test_every_prefix_keeps_its_places() -> None:
    whole = Locator(PLAN, LENGTHS, SEED)
    cut = whole.omitting((Omission((0, 0), ((1, 4), ())),), windows)
    before, after = ([one.locate(i) for i in range(60)] for one in (whole, cut))
    assert [place[:2] for place in after] == [place[:2] for place in before]
    own = [place.window for place in after if place.prefix == 0]
    assert not {2, 3, 8, 9} & set(own)
    assert {0, 1, 4, 5, 6, 7, 10, 11} == set(own)
    assert [p for p in after if p.prefix == 1] == [p for p in before if p.prefix == 1]
    for prefix, length in enumerate(LENGTHS):
        for window in range(length):
            expected = [
                PLAN.position(i)
                for i, place in enumerate(after)
                if (place.prefix, place.window) == (prefix, window)
            ]
            assert list(cut.positions(prefix, window)) == expected
    assert cut.left_out() == [4, 0]
    assert cut.samples_in(3) == [24, 24]
    assert [*tell_left_out(cut)] == [
        "mix.skip: 4 of 12 samples of a hold a token of 2 documents, and are left out after 0 "
        "samples of it"
    ]


def test_a_resumed_run_reads_on_from_where_it_stood() -> None:
    """Neither what it has read comes again, nor is anything passed over but what is left out."""
    whole = Locator(PLAN, LENGTHS, SEED)
    consumed = 24
    since = whole.before(PLAN.passed(consumed)).tolist()
    later = continued((), ((5, 0), (2,)), since)
    cut = whole.omitting(later, windows)
    before, after = ([one.locate(i) for i in range(60)] for one in (whole, cut))
    assert after[:consumed] == before[:consumed]
    for prefix, gone in enumerate(({10, 11, 0, 1}, {4, 5})):
        turns = walked(LENGTHS[prefix], [], 300)
        rest = [turn for turn in turns[since[prefix] :] if turn[1] not in gone]
        own = [place[2:] for place in after[consumed:] if place.prefix == prefix]
        skipped = PLAN.passed(consumed)
        assert not any(start >= skipped for start, _ in PLAN.cuts)
        assert own == rest[: len(own)]
    # Taken out of the config again: what was left out till then stays so.
    end = continued(later, ((), ()), cut.before(PLAN.passed(40)).tolist())
    assert len(end) == 2
    again = [whole.omitting(end, windows).locate(i) for i in range(60)]
    assert again[:40] == after[:40]
    assert continued(end, ((), ()), [0, 0]) == end, "nothing has changed"


def test_what_leaves_nothing() -> None:
    whole = Locator(PLAN, LENGTHS, SEED)
    with pytest.raises(ConfigError, match=r"mix\.skip leaves nothing of 'b': each of its 8"):
        whole.omitting((Omission((0, 0), ((), (0, 1, 2, 3))),), windows)


def test_a_checkpoint_tells_what_is_left_out() -> None:
    """By prefix, in whichever order; by position, where files were moved."""
    omission = Omission((3, 4), ((1,), (2, 5)))
    paths = [normalise("a"), normalise("b")]
    order = {"mix": {"omissions": [omission.dump()]}, "data": [[[one] for one in paths]]}
    order = json.loads(json.dumps(order))
    assert saved_omissions(order, ("a", "b")) == (omission,)
    assert saved_omissions(order, ("b", "a")) == (Omission((4, 3), ((2, 5), (1,))),)
    assert saved_omissions(order, ("x/a", "x/b")) == (omission,)
    assert saved_omissions(order, ("a",)) == saved_omissions(None, ("a", "b")) == ()


def test_what_a_resumed_run_may_change_of_it() -> None:
    omission = Omission((0, 0), ((1,), ()))
    plans = [Plan(("a", "b"), PLAN.stages, 60, (), None, one) for one in ((), (omission,))]
    none, some = (json.loads(json.dumps(plan.dump())) for plan in plans)
    assert not [*changes(none, some, 20)]
    assert not [*changes(some, some, 20)]
    (said,) = changes(some, none, 20)
    assert said.startswith("mix.skip leaving documents out → none, and no other mix either")


def test_how_far_a_decided_stream_has_come() -> None:
    """By the blocks in a checkpoint, at any place of one."""
    plan = Plan(("a", "b"), (Stage(None, (3.0, 1.0)),), 60, (), 8)
    limits = np.array(LENGTHS)
    blocks = Blocks(plan, ("x", "y"), np.array([0, 1]), np.array([False] * 2), limits, None)
    decided: dict[int, Any] = {}
    for consumed in range(0, 60, 4):
        for block in blocks.advance(consumed, np.array([0.5, 0.5])):
            decided[block.number] = (block.start, block.counts)
        if consumed:
            locator = Locator(plan, LENGTHS, SEED, read_block=decided.__getitem__)
            read = [locator.locate(i).prefix for i in range(consumed)]
            found = given_before(json.loads(json.dumps(blocks.dump())), plan, consumed)
            assert found is not None
            assert found.tolist() == [read.count(0), read.count(1)]
    assert given_before(blocks.dump(), plan, 1) is None, "long forgotten"


# --- the config ----------------------------------------------------------------------------------


@pytest.fixture
def reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reading:
    """Documents 0 to 8 of 10 are for training; `books` holds `web`'s document 3 twice."""
    monkeypatch.chdir(tmp_path)
    text = [[number, number + 1, 3] * (5 + number % 2) for number in range(10)]
    write_documents(Path("web"), text)
    write_documents(Path("books"), [text[3], [9] * 18, text[3], *[[7] * 20] * 7])
    return Reading.check((["web", "books"], None), None, "90,10,0", 10, {}, files=True)


def plan_of(reading: Reading, *cuts: dict[str, Any], look_up: bool = True) -> Plan:
    section = parse(Mix, {"skip": cuts}, "mix")
    owners = {normalise(one): one for one in ("web", "books")}
    how: dict[str, Any] = {"samples": 100, "seq_length": 10, "look_up": look_up}
    return make_plan(section, reading, owners, **how)


def test_documents_by_number_and_by_content(reading: Reading) -> None:
    content = content_of(Index.read("web").document(3))
    assert content.startswith("18-")
    numbers = {"documents": [5, 2], "prefix": "./web"}
    (found,) = plan_of(reading, numbers, {"content": [content]}).omissions
    assert found == Omission((0, 0), ((2, 3, 5), (0, 2)))
    (found,) = plan_of(reading, numbers, {"content": [content]}, look_up=False).omissions
    assert found.documents == ((2, 5), ())
    rows = dict(
        describe(plan_of(reading, numbers), {normalise("web"): "w", normalise("books"): "b"})
    )
    assert rows["left out"] == "samples with a token of document 2, 5 of web"
    assert not plan_of(reading, {"samples": [1, 2]}).omissions


def test_content_does_not_depend_on_the_dtype(tmp_path: Path) -> None:
    tokens = np.array([1, 2, 500])
    assert len({content_of(tokens.astype(kind)) for kind in ("uint16", "<i4", "<i8")}) == 1
    assert content_of(tokens) != content_of(tokens[::-1])
    write_documents(tmp_path / "p", [[1, 2], [1, 2, 500], [3], [1, 2, 500]])
    index = Index.read(str(tmp_path / "p"))
    name = content_of(tokens)
    assert [*find_contents(index, [name])] == [(name, 1), (name, 3)]


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        ({"documents": [1], "prefix": "wib"}, "'wib' is no prefix .*did you mean 'web'"),
        ({"documents": [10], "prefix": "web"}, "'web' has documents 0 to 9, and no 10"),
        ({"documents": [9], "prefix": "web"}, "document 9 of 'web' is not for training: .*0 to 8"),
        ({"content": ["18-0123456789abcdef"]}, "no document that is for training holds"),
    ],
)
def test_documents_that_the_run_does_not_have(
    cut: dict[str, Any], says: str, reading: Reading
) -> None:
    with pytest.raises(ConfigError, match=rf"^mix\.skip: .*{says}"):
        plan_of(reading, cut)


def test_a_content_that_is_not_for_training(reading: Reading) -> None:
    content = content_of(Index.read("web").document(9))
    with pytest.raises(ConfigError, match="; document 9 of 'web', which holds it, is not"):
        plan_of(reading, {"content": [content]})


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        ({}, "give one of samples, documents"),
        ({"samples": [0, 1], "documents": [1], "prefix": "web"}, "give one of samples, documents"),
        ({"documents": [1]}, "documents and prefix go together"),
        ({"samples": [0, 1], "prefix": "web"}, "documents and prefix go together"),
        ({"documents": [], "prefix": "web"}, "at least 1 item"),
        ({"documents": [-1], "prefix": "web"}, "greater than or equal to 0"),
        ({"documents": [True], "prefix": "web"}, "valid integer"),
        ({"content": ["abc"]}, r"mix\.skip\.0\.content\.0: String should match"),
    ],
)
def test_cuts_that_say_nothing(cut: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(Mix, {"skip": [cut]}, "mix")
