"""A stream whose shares follow the losses: what is decided, when, and how a worker gets to know."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from domain_pretrain.config import DomainConfig
from domain_pretrain.data.mix.blocks import Block, Blocks
from domain_pretrain.data.mix.decide import UNIT, due, handed_out
from domain_pretrain.data.mix.locate import Locator
from domain_pretrain.data.mix.plan import Plan, Stage, union
from domain_pretrain.data.mix.section import Dynamic
from domain_pretrain.errors import ConfigError, IntegrityError
from domain_pretrain.flow.board import Board
from domain_pretrain.flow.mixing import Mixer, Mixing
from domain_pretrain.flow.moment import Moment
from domain_pretrain.section import parse
from domain_pretrain.stats import SCALE, Column, DomainStats
from domain_pretrain.strategies import Course
from domain_pretrain.strategies.capped import capped

NAMES = ("general", "finance", "code")
OWNERS = {"/g0": "general", "/g1": "general", "/f": "finance", "/c": "code"}
PREFIXES = tuple(OWNERS)
WEIGHTS = (3.0, 1.0, 2.0, 2.0)
CPU = torch.device("cpu")


# --- how many of which prefix --------------------------------------------------------------------

PARTS = st.lists(st.integers(0, 1000), min_size=1, max_size=12).filter(any)


@given(st.lists(PARTS, min_size=1, max_size=8), st.integers(1, 100))
def test_whoever_is_owed_most_is_next(blocks: list[list[int]], each: int) -> None:
    """Block after block: the sum is exact, and nobody is a whole sample behind or ahead.

    As long as every prefix is due a sample in every block; see below for the others.
    """
    count = min(map(len, blocks))
    samples = each * count
    owed, room = np.zeros(count, np.int64), np.full(count, 1 << 62)
    for parts in blocks:
        more = np.array(parts[:count], float)
        shares = (1 + (samples - count) * more / max(more.sum(), 1)) / samples
        owed = owed + due(shares / shares.sum(), samples)
        assert owed.sum() == samples * UNIT
        counts = handed_out(owed, samples, room)
        assert counts.sum() == samples
        assert counts.min() >= 0
        owed -= counts * UNIT
        assert np.abs(owed).max() < UNIT


@given(st.lists(PARTS, min_size=1, max_size=12), st.integers(1, 40))
def test_what_was_given_cannot_be_taken_back(blocks: list[list[int]], samples: int) -> None:
    """Shares that fall to nothing: nobody gets less than none, and the sum is exact."""
    count = min(map(len, blocks))
    owed, room = np.zeros(count, np.int64), np.full(count, 1 << 62)
    for parts in blocks:
        shares = np.array(parts[:count], float)
        if shares.any():
            owed = owed + due(shares / shares.sum(), samples)
            counts = handed_out(owed, samples, room)
            assert counts.sum() == samples
            assert counts.min() >= 0
            owed -= counts * UNIT


@given(PARTS, st.data())
def test_what_is_cut_off_goes_to_the_others_in_proportion(
    parts: list[int], data: st.DataObject
) -> None:
    shares = np.array(parts, float) / sum(parts)
    extra = st.lists(st.floats(0, 1), min_size=len(parts), max_size=len(parts))
    most = np.array(data.draw(extra)) + 0.0
    if most.sum() < 1:
        most += (1.001 - most.sum()) / len(parts)
    found = capped(shares, most)
    assert found.sum() == pytest.approx(1)
    assert (found <= most + 1e-12).all()
    free = (found < most - 1e-9) & (shares > 0)
    if free.any():
        ratio = found[free] / shares[free]
        assert ratio == pytest.approx(ratio[0])


def test_a_share_that_is_not_above_its_most_stays_to_the_bit() -> None:
    shares = np.array([0.1, 0.2, 0.7])
    assert capped(shares, np.array([0.1, 0.3, 0.8])) is shares


# --- block after block ---------------------------------------------------------------------------


@st.composite
def runs(draw: st.DrawFn) -> tuple[Blocks, list[tuple[int, np.ndarray]]]:
    """Blocks, and the steps of a run: samples consumed, and the shares of the domains then."""
    size = draw(st.integers(1, 40))
    steps = draw(st.lists(st.integers(1, size), min_size=1, max_size=25))
    cut = st.tuples(st.integers(0, 300), st.integers(1, 150))
    cuts = union((first, first + n) for first, n in draw(st.lists(cut, max_size=4)))
    plan = Plan(PREFIXES, (Stage(None, WEIGHTS),), sum(steps), cuts, size)
    epochs = draw(st.none() | st.integers(1, 3))
    needed = -(-plan.passed(plan.samples) // size) * size
    lengths = np.array(draw(st.lists(st.integers(1, 200), min_size=4, max_size=4)))
    if epochs is not None:  # enough for the pinned one, and for the others
        lengths[:2] += needed
        lengths[2] += needed
    share = st.floats(0.0, 1.0)
    shares = []
    for _ in steps:
        free = draw(share) / 2
        shares.append(np.array([0.5, free, 0.5 - free]))
    consumed = np.cumsum(steps).tolist()
    return make_blocks(plan, lengths, epochs), list(zip(consumed, shares, strict=True))


def make_blocks(plan: Plan, lengths: Any, epochs: int | None) -> Blocks:
    pinned = np.array([True, False, False])
    owners = np.array([NAMES.index(OWNERS[prefix]) for prefix in PREFIXES])
    return Blocks(plan, NAMES, owners, pinned, np.array(lengths) * (epochs or 1), epochs)


BASE = np.array([0.5, 0.25, 0.25])


@given(runs())
def test_a_step_finds_all_its_blocks_and_decisions_never_change(
    run: tuple[Blocks, list[tuple[int, np.ndarray]]],
) -> None:
    blocks, steps = run
    blocks.check_room()
    board = Board(len(PREFIXES), Blocks.most_readable(blocks.plan))
    plan, size = blocks.plan, blocks.size
    decided: dict[int, Block] = {}
    before = 0
    for consumed, shares in [(0, BASE), *steps]:
        # What the step that ends here has read was on the board when it began.
        for index in range(before, consumed):
            block = plan.position(index) // size
            found = board.read(block)
            assert found is not None
            assert np.array_equal(found[1], decided[block].counts)
        for block in blocks.advance(consumed, shares):
            assert block.number not in decided
            assert block.counts.sum() == size
            assert block.start.sum() == block.number * size
            decided[block.number] = block
        readable = blocks.readable(consumed)
        assert len(readable) <= Blocks.most_readable(plan)
        for block in readable:
            board.publish(block.number, block.start, block.counts)
        assert sum(blocks.shares(consumed).values()) == pytest.approx(1)
        before = consumed


@given(runs(), st.data())
def test_a_resumed_run_decides_as_the_unbroken(
    run: tuple[Blocks, list[tuple[int, np.ndarray]]], data: st.DataObject
) -> None:
    blocks, steps = run
    stop = data.draw(st.integers(0, len(steps)))
    again = make_blocks(blocks.plan, [1] * 4, None)
    again._limits, again._epochs = blocks._limits, blocks._epochs
    for number, (consumed, shares) in enumerate([(0, BASE), *steps]):
        new = blocks.advance(consumed, shares)
        if number == stop:
            again.load(json.loads(json.dumps(blocks.dump())))
            assert again.dump() == blocks.dump()
            assert not again.advance(consumed, shares), "all that is needed had been decided"
        elif number > stop:
            assert [b.counts.tolist() for b in again.advance(consumed, shares)] == [
                b.counts.tolist() for b in new
            ]
            assert again.dump() == blocks.dump()


@given(runs())
def test_a_pinned_domain_keeps_its_share_and_no_prefix_is_read_too_often(
    run: tuple[Blocks, list[tuple[int, np.ndarray]]],
) -> None:
    blocks, steps = run
    for consumed, shares in [(0, BASE), *steps]:
        blocks.advance(consumed, shares)
        assert (blocks.taken <= blocks._limits).all()
        # Two prefixes, each within a sample: unless others, whose shares fell, are ahead.
        if blocks.size >= 16:
            own = blocks.taken[:2].sum()
            assert abs(own - 0.5 * blocks.next * blocks.size) < 4


def test_a_prefix_is_paced_to_its_epochs() -> None:
    """Code has 40 samples and would get half of 800: it is spread over the run, not used up."""
    plan = Plan(PREFIXES, (Stage(None, WEIGHTS),), 800, (), 40)
    blocks = make_blocks(plan, [1000, 1000, 1000, 20], 2)
    blocks.check_room()
    blocks.advance(0, np.array([0.5, 0.1, 0.4]))
    for consumed in range(40, 801, 40):
        blocks.advance(consumed, np.array([0.5, 0.1, 0.4]))
    assert blocks.taken.tolist() == [300, 100, 360, 40]
    half = make_blocks(plan, [1000, 1000, 1000, 20], 2)
    for consumed in range(0, 321, 40):
        half.advance(consumed, np.array([0.5, 0.1, 0.4]))
    assert half.taken[3] == 20, "halfway through the run, half of them"


def test_epochs_that_are_not_enough() -> None:
    plan = Plan(PREFIXES, (Stage(None, WEIGHTS),), 790, (), 40)
    with pytest.raises(
        ConfigError, match=r"data have 799 samples left in 1 epoch, .* takes 800 of"
    ):
        make_blocks(plan, [400, 199, 100, 100], 1).check_room()
    with pytest.raises(ConfigError, match=r"the pinned domain 'general' has 200 samples left in 1"):
        make_blocks(plan, [100, 100, 800, 800], 1).check_room()
    with pytest.raises(ConfigError, match=r"are not pinned have 300 samples left in 2 epochs, .*"):
        make_blocks(plan, [800, 800, 100, 50], 2).check_room()


def test_just_enough_epochs() -> None:
    """To the last sample of everything, block by block."""
    plan = Plan(PREFIXES, (Stage(None, WEIGHTS),), 790, (), 40)
    blocks = make_blocks(plan, [300, 100, 390, 10], 1)
    for consumed in range(0, 791, 10):
        blocks.check_room()
        blocks.advance(consumed, BASE)
    assert blocks.taken.tolist() == [300, 100, 390, 10]


def test_cuts_may_change_where_the_run_has_not_been() -> None:
    """Blocks that lay in a cut were decided, and are there when the cut is taken out."""
    cut = Plan(PREFIXES, (Stage(None, WEIGHTS),), 200, ((20, 90),), 10)
    blocks = make_blocks(cut, [99] * 4, None)
    blocks.advance(0, BASE)
    blocks.advance(10, BASE)
    assert blocks.next == 10
    assert [block.number for block in blocks.readable(10)] == [0, 1, 9]
    whole = make_blocks(Plan(PREFIXES, cut.stages, 200, (), 10), [99] * 4, None)
    whole.load(blocks.dump())
    assert [block.number for block in whole.readable(10)] == [0, 1, 2]
    assert not whole.advance(20, BASE)
    assert np.array_equal(whole.live[3].counts, blocks.live[3].counts)


def test_other_prefixes_lay_all_blocks_out_anew() -> None:
    """Where that was allowed; files that were moved are the same ones."""
    blocks = make_blocks(Plan(PREFIXES, (Stage(None, WEIGHTS),), 200, (), 10), [99] * 4, None)
    blocks.advance(50, np.array([0.5, 0.0, 0.5]))
    saved = blocks.dump()
    moved = make_blocks(blocks.plan, [99] * 4, None)
    moved.load({**saved, "prefixes": [f"/there{one}" for one in PREFIXES]})
    assert moved.account() == blocks.account()
    for change in ({"size": 20}, {"prefixes": ["/a"]}):
        other = make_blocks(blocks.plan, [99] * 4, None)
        other.load({**saved, **change})
        assert other.next == 0
        assert [b.number for b in other.advance(50, BASE)] == [4, 5, 6]
        assert other.live[4].start.sum() == 40


def test_cuts_that_bring_a_run_back_lay_all_blocks_out_anew() -> None:
    """Where that was allowed: the sample after 100 is at position 100 instead of 140."""
    cut = Plan(PREFIXES, (Stage(None, WEIGHTS),), 200, ((20, 60),), 10)
    blocks = make_blocks(cut, [99] * 4, None)
    blocks.advance(100, BASE)
    whole = make_blocks(Plan(PREFIXES, cut.stages, 200, (), 10), [99] * 4, None)
    whole.load(blocks.dump())
    assert [block.number for block in whole.advance(100, BASE)] == [9, 10, 11]
    assert [block.number for block in whole.readable(100)] == [9, 10, 11]


def test_a_resumed_run_may_allow_fewer_epochs() -> None:
    """What has had more than those gets nothing from here on."""
    plan = Plan(PREFIXES, (Stage(None, WEIGHTS),), 400, (), 40)
    blocks = make_blocks(plan, [90, 90, 200, 20], 9)
    blocks.advance(200, np.array([0.5, 0.0, 0.5]))
    assert blocks.taken[3] > 40
    fewer = make_blocks(plan, [200, 200, 200, 20], 2)
    fewer.load(blocks.dump())
    fewer.check_room()
    fewer.advance(390, np.array([0.5, 0.0, 0.5]))
    later = fewer.taken - blocks.taken  # of the last three of ten blocks
    assert [int(later[:2].sum()), *later[2:].tolist()] == [60, 60, 0]


# --- from the process that decides to those that read --------------------------------------------


class Samples(torch.utils.data.Dataset[int]):
    """Of each index, the prefix that a stream of blocks takes it from."""

    def __init__(self, board: Board, plan: Plan) -> None:
        self.locator = Locator(plan, [50] * 4, 1, read_block=board.wait)

    def __len__(self) -> int:
        return self.locator.plan.samples

    def __getitem__(self, index: int) -> int:
        return self.locator.locate(index).prefix


def loaded(board: Board, plan: Plan, start_method: str) -> Any:
    """Batches of 4; the two workers are there, and read ahead."""
    return iter(
        torch.utils.data.DataLoader(
            Samples(board, plan), batch_size=4, num_workers=2, multiprocessing_context=start_method
        )
    )


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_wait_for_what_is_decided_after_they_started(start_method: str) -> None:
    """A spawned one has the same memory, not a copy."""
    plan = Plan(PREFIXES, (Stage(None, WEIGHTS),), 48, (), 8)
    board = Board(4, Blocks.most_readable(plan))
    blocks = make_blocks(plan, [50] * 4, None)
    read: list[int] = []

    def decide(consumed: int) -> None:
        blocks.advance(consumed, np.array([0.5, 0.5, 0.0] if consumed > 16 else [0.5, 0.0, 0.5]))
        for block in blocks.readable(consumed):
            board.publish(block.number, block.start, block.counts)

    batches = loaded(board, plan, start_method)
    decide(0)
    for batch in batches:
        read += batch.tolist()
        decide(len(read))
    halves = [sorted({*read[:32]}), sorted({*read[32:]})]
    assert len(read) == 48
    assert halves == [[0, 1, 3], [0, 1, 2]], "decided at 16 for the blocks at 32 and after"


def test_a_block_that_never_comes() -> None:
    plan = Plan(PREFIXES, (Stage(None, WEIGHTS),), 48, (), 8)
    board = Board(4, 3, patience=0.2)
    board.publish(7, np.zeros(4, np.int64), np.full(4, 2))
    says = r"block 0 of the stream is not decided after 0 s \(decided and not yet read are \[7\]\)"
    with pytest.raises(IntegrityError, match=says):
        board.wait(0)  # the process that decides does not wait for itself
    with pytest.raises(Exception, match=r"block \d of the stream is not decided"):
        next(loaded(board, plan, "spawn"))


class Told(Samples):
    """Tells that a worker is about to read: before, PyTorch itself may not notice what happens."""

    def __init__(self, board: Board, plan: Plan, reading: Any) -> None:
        super().__init__(board, plan)
        self.reading = reading

    def __getitem__(self, index: int) -> int:
        self.reading.release()
        return super().__getitem__(index)


def leave_two_workers_waiting() -> None:
    """Kill this process, without a chance to end them."""
    plan = Plan(PREFIXES, (Stage(None, WEIGHTS),), 48, (), 8)
    reading = multiprocessing.get_context("fork").Semaphore(0)
    told = Told(Board(4, 3), plan, reading)
    batches = iter(
        torch.utils.data.DataLoader(told, 4, num_workers=2, multiprocessing_context="fork")
    )
    reading.acquire()
    reading.acquire()  # each waits within its first
    print("waiting", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    del batches


def test_no_worker_outlives_the_process_that_decides() -> None:
    """The output ends when the last of them has."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; from unit import test_mix_dynamic as here; "
    command = [sys.executable, "-c", f"{code}here.leave_two_workers_waiting()"]
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(command, cwd=tests, stdout=subprocess.PIPE, timeout=300)
    assert done.stdout == b"waiting\n"


def test_a_row_that_is_being_written_is_not_read() -> None:
    board = Board(2, 3)
    board.publish(0, np.array([1, 2]), np.array([3, 4]))
    board._rows[0, 2] = 9
    assert board.read(0) is None
    board._rows[0, 2] = 2
    found = board.read(0)
    assert found is not None
    assert [values.tolist() for values in found] == [[1, 2], [3, 4]]


def test_a_board_under_threads() -> None:
    """One writes, others read: what they read is always whole."""
    board = Board(3, 4)
    wrong: list[Any] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for number in range(200):
                found = board.read(number)
                if found is not None and found[0].tolist() + found[1].tolist() != [number] * 6:
                    wrong.append((number, found))

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(200):
        board.publish(number, np.full(3, number), np.full(3, number))
        assert board.read(number) is not None
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong


# --- from the losses -----------------------------------------------------------------------------


def mixing(batch: int | None = 8, pinned: tuple[str, ...] = ("general",), **given: Any) -> Mixing:
    given = {"strategy": "linupper", "warmup_steps": 0, "block": 16, **given}
    section = parse(Dynamic, given, "mix.dynamic")
    plan = Plan(PREFIXES, (Stage(None, WEIGHTS),), 1000, (), section.block)
    return Mixing.check(section, plan, NAMES, OWNERS, pinned=pinned, average="token", batch=batch)


def mixer(told: list[Any] | None = None, **given: Any) -> Mixer:
    found = mixing(**given)
    tell = None if told is None else lambda *one: told.append(one)
    board = Board(4, Blocks.most_readable(found.plan))
    return found.start([500] * 4, board, CPU, tell)


def stats(*losses: float) -> DomainStats:
    """100 tokens of each domain."""
    sums = np.zeros((len(NAMES) + 1, len(Column)), np.int64)
    sums[:-1, Column.TOKENS] = 100 * SCALE[Column.TOKENS]
    sums[:-1, Column.LOSS] = np.rint(np.array(losses) * 100 * SCALE[Column.LOSS])
    return DomainStats(NAMES, sums)


def step(number: int) -> Moment:
    return Moment(number, 8 * number, False, False, 1, batch_tokens=800)


def test_shares_follow_the_losses_and_a_pinned_domain_does_not() -> None:
    told: list[Any] = []
    run = mixer(told)
    run.begin(0, 0)
    for number in range(1, 9):
        run.commit(stats(2.0, 1.0, 4.0), step(number))
    shares = [one[3] for one in told]
    assert [(i, c, b.number) for i, c, b, _ in told] == [
        (0, 0, 0), (0, 0, 1), (2, 16, 2), (4, 32, 3), (6, 48, 4), (8, 64, 5),
    ]  # fmt: skip
    assert shares[0] == {"general": 0.5, "finance": 0.25, "code": 0.25}
    for later in shares[2:]:
        assert later["general"] == 0.5
        assert later["code"] > 0.25 > later["finance"]
        assert sum(later.values()) == pytest.approx(1)
    assert run.shares == {
        name: pytest.approx(share, abs=1 / 16) for name, share in shares[3].items()
    }, "of the block of sample 63"


def test_no_share_is_below_its_floor() -> None:
    steep = {"temperature": 0.05, "clip": [0.0, 100.0], "uniform_part": 0.0}
    for floor in (0.1, {"finance": 0.1}):
        told: list[Any] = []
        run = mixer(told, floor=floor, **steep)
        run.begin(0, 0)
        for number in range(1, 5):
            run.commit(stats(2.0, 0.5, 9.0), step(number))
        assert told[-1][3]["finance"] == pytest.approx(0.1, abs=1e-5)
    assert mixing(floor=0.9).rule.bounds.low.tolist() == [1, 1, 1], "held at the blend's, at most"
    with pytest.raises(ConfigError, match=r"floor: 'finance' has 0.25 of the blend, and cannot be"):
        mixing(floor={"finance": 0.3})
    with pytest.raises(ConfigError, match=r"mix\.dynamic\.floor: there is no domain 'finanz'"):
        mixing(floor={"finanz": 0.3})


def test_domain_mean_is_about_the_shares_themselves() -> None:
    """Equal weights then are equal shares, however often a domain has come so far."""
    told: list[Any] = []
    run = mixer(told, pinned=(), strategy="uniform", objective="domain_mean")
    run.begin(0, 0)
    for number in range(1, 41):
        run.commit(stats(2.0, 1.0, 3.0), step(number))
    for one in told[2:]:
        assert one[3] == pytest.approx(dict.fromkeys(NAMES, 1 / 3), abs=1e-5)


def test_a_skipped_step_teaches_nothing_and_reads_on() -> None:
    told: list[Any] = []
    run = mixer(told)
    run.begin(0, 0)
    for number in range(1, 5):
        run.commit(None, step(number))
    assert [one[2].number for one in told] == [0, 1, 2, 3]
    assert told[-1][3] == {"general": 0.5, "finance": 0.25, "code": 0.25}


def test_last_bits_of_a_loss_decide_nothing() -> None:
    """Layouts add the tokens of a loss in another order."""
    runs = [mixer(), mixer()]
    for run, noise in zip(runs, (0.0, 1e-9), strict=True):
        run.begin(0, 0)
        for number in range(1, 30):
            run.commit(stats(2.0, 1.0 + number / 50 + noise, 3.0), step(number))
    assert runs[0].blocks.account() == runs[1].blocks.account()
    assert torch.equal(runs[0].in_force, runs[1].in_force)


def test_ranks_that_decide_otherwise_have_another_digest() -> None:
    runs = [mixer(), mixer()]
    for run, loss in zip(runs, (1.0, 5.0), strict=True):
        run.begin(0, 0)
        run.commit(stats(2.0, loss, 3.0), step(1))
    assert torch.equal(runs[0].in_force, runs[1].in_force), "nothing is decided yet"
    for run in runs:
        run.commit(None, step(2))
    assert not torch.equal(runs[0].in_force, runs[1].in_force)
    assert mixing().agreed() == mixing().agreed() != mixing(epochs=9).agreed()


@pytest.mark.parametrize("stop", [3, 4])
def test_resumed_from_its_state(stop: int) -> None:
    """In mid-block and at its end; the state is what JSON holds."""
    told: list[list[Any]] = [[], []]
    options: dict[str, Any] = {"strategy": "group_dro"}
    unbroken, resumed = mixer(told[0], **options), mixer(told[1], **options)
    unbroken.begin(0, 0)
    for number in range(1, 20):
        seen = stats(2.0, 1.0 + number / 10, 3.0 - number / 9)
        unbroken.commit(seen, step(number))
        if number == stop:
            done = len(told[0])
            resumed.load_state_dict(json.loads(json.dumps(unbroken.state_dict())))
            resumed.begin(number, 8 * number)
        elif number > stop:
            resumed.commit(seen, step(number))
        if number >= stop:
            assert resumed.state_dict() == unbroken.state_dict()
            assert resumed.shares == unbroken.shares
            assert torch.equal(resumed.in_force, unbroken.in_force)
    assert [(i, c, b.number, s) for i, c, b, s in told[1]] == [
        (i, c, b.number, s) for i, c, b, s in told[0][done:]
    ]


def test_hold_asks_for_no_more_than_the_epochs_leave() -> None:
    """General has 180 of 1008 samples, and its loss always asks for more: it gets them, evenly."""
    section = parse(
        Dynamic,
        {"strategy": "hold", "domains": "general", "epsilon": 0.05, "block": 16, "epochs": 1},
        "mix.dynamic",
    )
    plan = Plan(PREFIXES, (Stage(None, WEIGHTS),), 1000, (), 16)
    offers = frozenset({"valid", "lr"})
    found = Mixing.check(
        section, plan, NAMES, OWNERS, pinned=(), average="token", batch=8, offers=offers
    )
    told: list[Any] = []
    board = Board(4, Blocks.most_readable(plan))
    run = found.start([100, 80, 700, 700], board, CPU, lambda *one: told.append(one))
    run.begin(0, 0)
    findings = []
    for number in range(1, 126):
        course = Course(valid={} if number % 5 else {"general": 2.0 if number == 5 else 3.0})
        most = run.blocks.most
        run.commit(stats(2.0, 1.0, 4.0), replace(step(number), course=course))
        terms, state = run.terms
        if number % 5 == 0 and number > 5:
            assert state["share"] == pytest.approx(max(most["general"], 0.02))
            findings += terms.findings(state, number)
    counts = [block.counts[:2].sum() for _, _, block, _ in told]
    assert sum(counts) == 180
    assert {*counts[8:-1]} <= {2, 3, 4}  # 180 / 63 = 2.9
    assert "which is all that mix.dynamic.epochs allows" in findings[0].message
    assert len(findings) == 1


def test_the_page_shows_configs_that_load() -> None:
    page = (Path(__file__).parents[2] / "docs" / "mixing.md").read_text("utf-8")
    shown = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    whole = [parse(DomainConfig, one) for one in shown if isinstance(one, dict)]
    assert any(one.mix.dynamic for one in whole)
    assert any(one.mix.schedule for one in whole)
    assert any(one.mix.skip for one in whole)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"block: 16 samples are less than .* is 17: the losses"):
        mixing(batch=17)
    mixing(batch=16)
    with pytest.raises(ConfigError, match=r"data, 1 domain may change its share: it takes two"):
        mixing(pinned=("general", "code"))
    with pytest.raises(
        ConfigError, match=r"^mix\.dynamic\.strategy: unknown strategy 'linuper'; di"
    ):
        mixing(strategy="linuper")
    with pytest.raises(ConfigError, match=r"^mix\.dynamic\.temprature: unknown key; did you mean"):
        mixing(temprature=2)
