"""Data that are mixed in another way from a resume on: nothing twice in an epoch, nothing lost."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from domain_pretrain.data.mix import carry
from domain_pretrain.data.mix.blocks import Block, Blocks
from domain_pretrain.data.mix.carry import Consumed
from domain_pretrain.data.mix.locate import Locator, Place, ReadBlock
from domain_pretrain.data.mix.omit import Omission
from domain_pretrain.data.mix.plan import Plan, Stage, union
from domain_pretrain.data.order import Order
from domain_pretrain.data.resumption import ACCOUNT, Resumed, resumed
from domain_pretrain.errors import ConfigError
from domain_pretrain.flow.continuity import Meaning, check_continuity

POOL = {"/a": 7, "/b": 31, "/c": 64, "/d": 200, "/e": 1000}  # prefix → samples of an epoch
SEED = 1234
SETTINGS = {"--seed": SEED, "--seq-length": 8}
TOKENIZER = {"name": "t", "sha256": None}


@dataclass
class Run:
    """One start of a run: what it reads, and what its checkpoint says."""

    found: Resumed
    locator: Locator
    read_block: ReadBlock | None

    @property
    def plan(self) -> Plan:
        return self.found.plan

    def checkpoint(self, consumed: int) -> dict[str, Any]:
        """Through JSON, as it is saved."""
        read = sizes(self.plan.prefixes, self.locator.taken(consumed))
        account = carry.dump({**self.found.left_behind, **read})
        state = {"order": order_of(self.plan).dump(), ACCOUNT: account}
        return json.loads(json.dumps(state))  # type: ignore[no-any-return]

    def passes(self, first: int, stop: int) -> list[tuple[str, Place, bool]]:
        """From one position of the stream to another: the sample there, and whether it is read."""
        plan = replace(self.plan, samples=self.plan.passed(self.plan.samples), cuts=())
        uncut = Locator(plan, self.locator.lengths, SEED, read_block=self.read_block)
        cut = {position for one in self.plan.cuts for position in range(*one)}
        places = ((position, uncut.locate(position)) for position in range(first, stop))
        return [(plan.prefixes[one.prefix], one, at not in cut) for at, one in places]


def sizes(prefixes: tuple[str, ...], samples: list[int] | None = None) -> dict[str, Consumed]:
    counts = samples or [0] * len(prefixes)
    return {
        prefix: Consumed(count, POOL[prefix], 10 * POOL[prefix], 100 * POOL[prefix])
        for prefix, count in zip(prefixes, counts, strict=True)
    }


def order_of(plan: Plan, **changes: Any) -> Order:
    weights = plan.stages[0].weights
    shares = [None] * len(plan.prefixes) if weights is None else np.array(weights) / sum(weights)
    data = [
        [prefix, None if share is None else float(share), 10 * POOL[prefix], 100 * POOL[prefix]]
        for prefix, share in zip(plan.prefixes, shares, strict=True)
    ]
    how = {"settings": SETTINGS, "parts": [[0.0, 0.9], None, None], **changes}
    return Order(
        [data, None, None], tokenizer=TOKENIZER, samples=plan.samples, mix=plan.dump(), **how
    )


class Decided(Blocks):
    """Blocks, of which none is forgotten; shares that wander by what is consumed."""

    def of_run(self, consumed: int) -> ReadBlock:
        self.all: dict[int, Block] = {}
        for done in range(consumed, self.plan.samples):
            self.advance(done, np.random.default_rng(done).dirichlet(np.ones(len(self.names))))
            assert self.readable(done)[0].number == self.window(done)[0]
            assert sum(self.shares(done).values()) == pytest.approx(1)
        return lambda number: (self.all[number].start, self.all[number].counts)

    def _decide(self, shares: Any) -> Block:
        block = super()._decide(shares)
        self.all[block.number] = block
        return block


def start(plan: Plan, state: dict[str, Any] | None = None, consumed: int = 0) -> Run:
    """As the plugin does, in whatever way the plan mixes."""
    now = sizes(plan.prefixes)
    found = resumed(plan, order_of(plan), now, state, consumed, go_on=True)
    lengths = [POOL[prefix] for prefix in plan.prefixes]
    read_block = None
    if plan.block is not None:
        count = len(lengths)
        domains = plan.prefixes, np.arange(count), np.zeros(count, bool)
        read_block = Decided(found.plan, *domains, np.array(lengths), None).of_run(consumed)
    return Run(found, Locator(found.plan, lengths, SEED, read_block=read_block), read_block)


def plans(random: np.random.Generator, samples: int) -> Plan:
    """Of some of the prefixes, in any order: by size, one blend, stages or blocks; perhaps cut."""
    prefixes = [str(one) for one in random.permutation(list(POOL))[: random.integers(1, 6)]]

    def weights() -> tuple[float, ...]:
        found = random.choice([0, 0.2, 1, 5], len(prefixes))
        found[random.integers(len(found))] = 1
        return tuple(map(float, found))

    way = random.choice(["by size", "blend", "stages", "blocks"])
    stages: tuple[Stage, ...] = (Stage(None, None if way == "by size" else weights()),)
    if way == "stages":
        stages = (
            Stage(int(random.integers(1, samples)), weights()),
            Stage(int(random.integers(1, samples)), weights(), "linear"),
            *stages,
        )
    first = random.integers(0, samples, random.integers(0, 4))
    cuts = union((int(one), int(one + random.integers(1, 60))) for one in first)
    block = int(random.integers(5, 50)) if way == "blocks" else None
    if block is not None:
        stages = (Stage(None, (1.0,) * len(prefixes)),)
    return Plan(tuple(prefixes), stages, samples, cuts, block)


@pytest.mark.parametrize("seed", range(50))
def test_nothing_twice_and_nothing_lost(seed: int) -> None:
    """Changed twice, at any sample; every prefix may go and come back."""
    random = np.random.default_rng(seed)
    samples = int(random.integers(200, 2500))
    ends = sorted(int(one) for one in random.integers(1, samples, 2))
    run, done = start(plans(random, samples)), 0
    given: dict[str, list[Place]] = {prefix: [] for prefix in POOL}
    for end in (*ends, samples):
        behind = run.plan.begin if done else 0
        passes = run.passes(behind, run.plan.passed(end))
        locate = run.locator.locate
        assert [place for _, place, read in passes if read] == [*map(locate, range(done, end))]
        for prefix, place, _ in passes:
            given[prefix].append(place)
        state, done = run.checkpoint(end), end
        account = carry.load(state[ACCOUNT])
        assert {prefix: one.samples for prefix, one in account.items() if one.samples} == {
            prefix: len(places) for prefix, places in given.items() if places
        }
        if end < samples:
            run = start(plans(random, samples), state, end)
            assert run.plan.begin == run.plan.passed(end)
    for prefix, places in given.items():
        assert [place.sample for place in places] == list(range(len(places)))
        whole = POOL[prefix]
        for first in range(0, len(places), whole):
            epoch = places[first : first + whole]
            assert {place.epoch for place in epoch} == {first // whole}
            windows = sorted(place.window for place in epoch)
            assert windows == sorted(set(windows)), "none twice"
            assert len(epoch) < whole or windows == list(range(whole)), "none lost"


@pytest.mark.parametrize("seed", range(20))
def test_with_documents_left_out(seed: int) -> None:
    """Others before the change than after it: what had no turn counts like what was read."""
    random = np.random.default_rng(seed)
    prefixes, lengths = ("/b", "/c"), [POOL["/b"], POOL["/c"]]
    gone = [
        [sorted(random.choice(length, 5, replace=False).tolist()) for length in lengths]
        for _ in range(2)
    ]
    done, samples = int(random.integers(1, 200)), 400
    plan = Plan(prefixes, (Stage(None, (1.0, 2.0)),), samples)
    given: list[list[Place]] = [[], []]
    locator = Locator(plan, lengths, SEED)
    for time, (first, stop) in enumerate(((0, done), (done, samples))):
        taken = plan.taken if time else (0, 0)
        left_out = Omission(taken, ((0,), (0,)))
        locator = locator.omitting([left_out], lambda prefix, _: gone[time][prefix])  # noqa: B023
        for consumed in range(first, stop):
            place = locator.locate(consumed)
            given[place.prefix].append(place)
        read = sizes(prefixes, locator.taken(stop))
        plan = replace(plan, stages=(Stage(None, (3.0, 1.0)),))
        plan = carry.go_on(plan, read, sizes(prefixes), stop)
        locator = Locator(plan, lengths, SEED)
    for prefix, places in enumerate(given):
        turns = [(place.epoch, place.window) for place in places]
        assert len(set(turns)) == len(turns), "none twice"
        out = {window for windows in gone for window in windows[prefix]}
        for epoch in range(turns[-1][0]):  # those that are through
            windows = {window for own, window in turns if own == epoch}
            assert set(range(lengths[prefix])) - out <= windows, "none lost"


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_has_changed_is_resumed(seed: int) -> None:
    """With nothing changed any more, it goes on as if it had not stopped; backwards, too."""
    random = np.random.default_rng(seed)
    plan = plans(random, 500)
    while plan.block is not None:  # what is decided is in the checkpoint by itself
        plan = plans(random, 500)
    before = start(plans(random, 500)).checkpoint(120)
    run = start(plan, before, 120)
    again = start(plan, run.checkpoint(260), 260)
    assert again.plan == run.plan
    assert not again.found.continued
    places = [run.locator.locate(consumed) for consumed in range(120, 500)]
    assert [again.locator.locate(consumed) for consumed in range(260, 500)] == places[140:]
    expected: dict[tuple[int, int], list[int]] = {}
    for number, place in enumerate(places):
        position = run.plan.position(120 + number)
        expected.setdefault((place.prefix, place.window), []).append(position)
    for prefix, length in enumerate(run.locator.lengths):
        for window in range(length):
            found = list(run.locator.positions(prefix, window))
            assert found == expected.get((prefix, window), [])
    for first, stop in ((120, 500), (120, 121), (200, 333), (260, 260)):
        own = Counter((place.prefix, place.window) for place in places[first - 120 : stop - 120])
        times = run.locator.reads(first, stop)
        assert own == {
            (prefix, int(window)): int(one[window])
            for prefix, one in enumerate(times)
            for window in np.flatnonzero(one)
        }


def test_a_removed_prefix_comes_back_where_it_stood() -> None:
    both = Plan(("/d", "/e"), (Stage(None, (1.0, 1.0)),), 300)
    alone = replace(both, prefixes=("/e",), stages=(Stage(None, (1.0,)),))
    without = start(alone, start(both).checkpoint(40), 40)
    assert without.found.left_behind["/d"].samples == 20
    again = start(alone, without.checkpoint(60), 60)  # stopped once more
    back = start(both, again.checkpoint(100), 100)
    assert back.plan.taken == (20, 80)


@pytest.mark.parametrize("begin", [150, 160, 171])
def test_epochs_that_are_allowed_count_what_came_before(begin: int) -> None:
    """Blocks of 20, of which the first may be under way."""
    prefixes, lengths = ("/c", "/d"), np.array([64, 200])
    stages = (Stage(None, (1.0, 1.0)),)
    domains = prefixes, np.arange(2), np.zeros(2, bool)

    def blocks(samples: int) -> Decided:
        taken = (50, begin - 50)
        plan = Plan(prefixes, stages, samples, (), 20, begin=begin, taken=taken)
        found = Decided(plan, *domains, lengths, 1)
        found.check_room()
        return found

    run = blocks(240)
    read_block = run.of_run(begin)
    assert run.taken[0] <= 64
    locator = Locator(run.plan, lengths.tolist(), SEED, read_block=read_block)
    assert {locator.locate(consumed).epoch for consumed in range(begin, 240)} == {0}
    with pytest.raises(ConfigError, match=r"mix\.dynamic\.epochs: the training data have"):
        blocks(300)


# --- what cannot be continued --------------------------------------------------------------------

BEFORE = Plan(("/a", "/d"), (Stage(None, (1.0, 3.0)),), 300)
AFTER = replace(BEFORE, stages=(Stage(None, (1.0, 1.0)),))


def go_on(
    account: dict[str, Any] | None = None, now: dict[str, Consumed] | None = None, **order: Any
) -> Resumed:
    """From a checkpoint of which something is different."""
    state = start(BEFORE).checkpoint(100)
    if account is not None:
        state[ACCOUNT] |= account
    plan = replace(AFTER, prefixes=tuple(now)) if now else AFTER
    order_now = order_of(AFTER, **order)
    return resumed(plan, order_now, now or sizes(AFTER.prefixes), state, 100, go_on=True)


def test_only_where_it_is_asked_for() -> None:
    assert go_on().plan.taken == (25, 75)
    state = start(BEFORE).checkpoint(100)
    now = sizes(AFTER.prefixes)
    assert resumed(AFTER, order_of(AFTER), now, state, 100, go_on=False) == Resumed(AFTER)
    same = resumed(BEFORE, order_of(BEFORE), sizes(BEFORE.prefixes), state, 100, go_on=True)
    assert same == Resumed(BEFORE)


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ({"settings": {**SETTINGS, "--seed": 2}}, "--seed 1234 → 2 every prefix is another row"),
        ({"settings": {**SETTINGS, "--seq-length": 16}}, "--seq-length 8 → 16"),
        ({"parts": [[0.0, 0.8], None, None]}, "--split 0.0000%-90.0000% → 0.0000%-80.0000%"),
    ],
)
def test_another_order_of_every_prefix(order: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match="give what was given before") as error:
        go_on(**order)
    assert says in str(error.value)


def test_a_larger_file() -> None:
    larger = {**sizes(AFTER.prefixes), "/d": Consumed(0, 210, 2100, 21_000)}
    with pytest.raises(ConfigError, match="20,000 → 21,000 tokens in 2,000 → 2,100 documents") as e:
        go_on(now=larger)
    assert "give documents that have been added as a prefix of their own" in str(e.value)
    unseen = {**sizes(AFTER.prefixes), "/d": Consumed(0, 210)}  # in an object store
    with pytest.raises(ConfigError, match="has 210 samples in the training split, and had 200"):
        go_on(now=unseen)
    unread = {"/d": {"samples": 0, "epoch": 200, "documents": 2000, "tokens": 20_000}}
    assert go_on(unread, larger).plan.taken == (25, 0)


def test_several_epochs_shuffled_together() -> None:
    shuffled = {"/a": {"samples": 25, "epoch": None, "documents": 70, "tokens": 700}}
    with pytest.raises(ConfigError, match="has shuffled several epochs of it together") as error:
        go_on(shuffled)
    assert "take the prefix off the training data" in str(error.value)
    others = sizes(("/d", "/e"))
    assert go_on(shuffled, others).plan.taken == (75, 0)


def test_moved_files_are_the_same_files() -> None:
    moved = {"/new/a": sizes(("/a",))["/a"], "/d": sizes(("/d",))["/d"]}
    found = go_on(now=moved)
    assert found.plan.taken == (25, 75)
    assert not found.left_behind
    other = {"/new/x": sizes(("/a",))["/a"], "/d": sizes(("/d",))["/d"]}
    found = go_on(now=other)
    assert found.plan.taken == (0, 75)
    assert found.left_behind["/a"].samples == 25


def test_what_the_state_meant() -> None:
    """New domains come with another blend; a prefix may not change its own."""
    before = start(BEFORE).checkpoint(100)
    saved = {**before, "domains": ["x", "y"], "prefixes": {"/a": "x", "/d": "y"}}
    now = Meaning(("x", "z"), {"/a": "x", "/e": "z"}, {}, order_of(AFTER))
    with pytest.raises(ConfigError, match=r"mix\.on_change: continue in the config") as error:
        check_continuity(saved, now, allow=False, consumed=100)
    assert "gone ['y'], new ['z']" in str(error.value)
    told = check_continuity(saved, now, allow=False, continued=True, consumed=100)
    assert told[0] == "other domains: gone ['y'], new ['z']"
    assert told[1].startswith("other training data: other weights: /a 25.0000% → 50.0000%")
    moved = replace(now, prefixes={"/a": "z", "/e": "x"})
    with pytest.raises(ConfigError, match="prefixes in other domains: /a from x to z"):
        check_continuity(saved, moved, allow=False, continued=True, consumed=100)
    seed = replace(now, order=order_of(AFTER, settings={**SETTINGS, "--seed": 2}))
    without = {name: one for name, one in saved.items() if name != ACCOUNT}
    for old, new in ((saved, seed), (without, now)):
        with pytest.raises(ConfigError) as error:
            check_continuity(old, new, allow=False, consumed=100)
        assert "on_change" not in str(error.value), "it could not go on"


def test_a_checkpoint_that_does_not_say_enough() -> None:
    state = start(BEFORE).checkpoint(100)
    old = {"order": state["order"]}
    order, now = order_of(AFTER), sizes(AFTER.prefixes)
    with pytest.raises(ConfigError, match="does not say how many samples of each prefix"):
        resumed(AFTER, order, now, old, 100, go_on=True)
    with pytest.raises(ConfigError, match="written without channel loss"):
        resumed(AFTER, order, now, None, 100, go_on=True)
    assert resumed(AFTER, order, now, None, 0, go_on=True) == Resumed(AFTER)
