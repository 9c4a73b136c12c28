"""All that a resume may change of a stream, in any order, against a walk from turn to turn."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from support.checkpoints import write_checkpoint

from domain_pretrain.checkpoints.tracker import iteration_of, read_tracker
from domain_pretrain.data.mix import carry
from domain_pretrain.data.mix.blocks import Block
from domain_pretrain.data.mix.locate import Locator, Place
from domain_pretrain.data.mix.omit import Numbers, Omission
from domain_pretrain.data.mix.permutation import permuted
from domain_pretrain.data.mix.plan import Plan, Stage, union
from domain_pretrain.data.mix.section import Dynamic
from domain_pretrain.data.order import Order
from domain_pretrain.data.resumption import ACCOUNT, account
from domain_pretrain.data.trace.source import Mixed
from domain_pretrain.errors import ConfigError
from domain_pretrain.flow.continuity import Meaning, check_continuity
from domain_pretrain.flow.mixing import Mixer, Mixing
from domain_pretrain.flow.moment import Moment
from domain_pretrain.hosts import stream
from domain_pretrain.hosts.built import _read_block
from domain_pretrain.hosts.rollback import Reaction
from domain_pretrain.hosts.session import Session
from domain_pretrain.hosts.streaming import Streaming
from domain_pretrain.records.exporter import Publisher
from domain_pretrain.records.journal import note_start, read_starts
from domain_pretrain.records.metrics_file import MetricsFile
from domain_pretrain.records.record import Finding, Record
from domain_pretrain.section import parse
from domain_pretrain.stats import SCALE, Column, DomainStats
from domain_pretrain.watch.decision import Decision, cuts_of, read_decisions
from domain_pretrain.watch.section import Watching

SIZES = {"a": 6, "b": 31, "c": 64, "d": 200}  # domain, of one prefix each → samples of an epoch
FOLDERS = ("/", "/new/")  # files may be moved
POOL = {f"{folder}{name}": size for folder in FOLDERS for name, size in SIZES.items()}
READING: Any = SimpleNamespace(
    indices={
        one: SimpleNamespace(sequences=10 * length, tokens=100 * length)
        for one, length in POOL.items()
    }
)
SEED, CPU = 1234, torch.device("cpu")


def name(prefix: str) -> str:
    """Of the domain."""
    return prefix.rpartition("/")[2]


def windows_of(length: int, documents: Sequence[int]) -> list[int]:
    """Those that hold a token of some documents: each is in two, of which it shares one."""
    return sorted({(document + more) % length for document in documents for more in (0, 1)})


def order_of(plan: Plan) -> Order:
    weights = plan.stages[0].weights
    shares = [None] * len(plan.prefixes) if weights is None else np.array(weights) / sum(weights)
    data = [
        [one, None if share is None else float(share), 10 * POOL[one], 100 * POOL[one]]
        for one, share in zip(plan.prefixes, shares, strict=True)
    ]
    parts, how = [[0.0, 0.9], None, None], {"name": "t", "sha256": None}
    settings = {"--seed": SEED, "--seq-length": 8}
    return Order([data, None, None], parts, settings, how, plan.samples, plan.dump())


@dataclass
class Walk:
    """What each prefix gives next, one turn after the other; knows nothing of plans."""

    turns: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIZES, 0))
    gone: dict[str, set[int]] = field(default_factory=lambda: {one: set() for one in SIZES})

    def leave_out(self, plan: Plan) -> None:
        """What a config asks for, and nothing else."""
        for number, one in enumerate(plan.prefixes):
            own = plan.omissions[-1].documents[number] if plan.omissions else ()
            self.gone[name(one)] = set(windows_of(POOL[one], own))

    def next(self, one: str) -> tuple[int, int]:
        """Epoch and window."""
        while True:
            epoch, place = divmod(self.turns[one], SIZES[one])
            self.turns[one] += 1
            window = permuted(place, SIZES[one], SEED, epoch) if epoch else place
            if window not in self.gone[one]:
                return epoch, window


@dataclass(frozen=True)
class Config:
    """What a start is given: a plan as the config makes it, and what decides in it."""

    plan: Plan
    section: Dynamic | None = None

    def mixing(self, plan: Plan) -> Mixing | None:
        if self.section is None:
            return None
        owners = {one: name(one) for one in plan.prefixes}
        names = tuple(owners.values())
        how: Any = {"pinned": (), "average": "token", "batch": None}
        return Mixing.check(self.section, plan, names, owners, **how)


class Data:
    """In the place of a host's data."""

    def __init__(self, locator: Locator) -> None:
        self.locator = locator

    def omit(self, omissions: Sequence[Omission]) -> None:
        self.locator = left_out(self.locator, omissions)


def left_out(locator: Locator, omissions: Sequence[Omission]) -> Locator:
    return locator.omitting(omissions, lambda prefix, own: windows_of(locator.lengths[prefix], own))


class Run:
    """One start, as the plugin makes it, and its steps."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        cuts: Sequence[tuple[int, int]],
        iteration: int,
        consumed: int,
        state: dict[str, Any] | None,
        decisions: Sequence[Decision] = (),
    ) -> None:
        plan = config.plan.without([*cuts, *cuts_of(decisions)])
        how: Any = {"go_on": True, "regardless": False, "decisions": decisions}
        self.own = Streaming(plan, config.mixing(plan), READING, order_of, **how)
        lengths = [POOL[one] for one in plan.prefixes]
        plan = self.own.resume(lengths, state, consumed)
        wait = None if self.own.board is None else self.own.board.wait
        self.data = Data(Locator(plan, lengths, SEED, read_block=wait))
        decide = partial(self.own.omissions, consumed, state or {})
        settled = stream.settle(self.data, decide, self.own.epochs)  # type: ignore[arg-type]
        assert settled is not None
        self.own.settle(*settled)
        self.iteration, self.consumed, self.folder = iteration, consumed, folder
        session: Any = SimpleNamespace(facts=SimpleNamespace(log_dir=folder), plan=self.plan)
        session._told_block = partial(Session._told_block, session)
        mixer = self.own.start(CPU, partial(Session._tell_block, session))
        self.mixer: Mixer | None = mixer
        self.order = order_of(self.plan)
        if state is not None:
            now = Meaning(self.names, {}, {}, self.order)
            kept = {"continued": self.own.continues, "consumed": consumed}
            check_continuity(state, now, allow=False, **kept)  # type: ignore[arg-type]
            if mixer is not None and "mix" in state:
                mixer.load_state_dict(state["mix"], continued=self.own.continues)
        self.decided: dict[int, Block] = {}
        self.own_blocks: set[int] = set()  # not of its checkpoint
        self.most = None if config.section is None else config.section.epochs
        if mixer is not None:
            self.decided |= mixer.blocks.live
            decide_one = mixer.blocks._decide

            def decided(shares: Any) -> Block:
                block = decide_one(shares)
                self.decided[block.number] = block
                self.own_blocks.add(block.number)
                return block

            mixer.blocks._decide = decided  # type: ignore[method-assign]
            mixer.blocks.check_room()
        held = [] if mixer is None else map(session._told_block, mixer.blocks.live.values())
        told = self.order.dump(), {"plan": asdict(self.plan)}, [*held]
        note_start(folder, iteration, consumed, *told)
        if mixer is not None:
            mixer.begin(iteration, consumed)

        whole = replace(self.plan, begin=0, taken=(), cuts=(), omissions=())
        self.whole = Locator(  # every position, as if the plan had always held
            replace(whole, samples=self.plan.passed(self.plan.samples)),
            lengths,
            SEED,
            read_block=lambda number: (self.decided[number].start, self.decided[number].counts),
        )

    @property
    def plan(self) -> Plan:
        return self.own.plan

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(map(name, self.plan.prefixes))

    def step(self, batch: int, random: np.random.Generator) -> list[Place]:
        places = [self.data.locator.locate(self.consumed + one) for one in range(batch)]
        self.consumed += batch
        self.iteration += 1
        if self.mixer is not None:
            moment = Moment(self.iteration, self.consumed, False, False, 1, batch_tokens=800)
            names = self.names
            sums = np.zeros((len(names) + 1, len(Column)), np.int64)
            sums[:-1, Column.TOKENS] = 100 * SCALE[Column.TOKENS]
            losses = random.choice([0.5, 1, 4], len(names)) * 100 * SCALE[Column.LOSS]
            sums[:-1, Column.LOSS] = np.rint(losses)
            self.mixer.commit(DomainStats(names, sums), moment)
        return places

    def state(self) -> dict[str, Any]:
        """Through JSON, as a checkpoint has it."""
        locator, resumed = self.data.locator, self.own.resumed
        assert resumed is not None
        taken = locator.taken(self.consumed)
        own = account(self.plan.prefixes, taken, locator.lengths, READING)
        read = carry.dump({**resumed.left_behind, **own})
        meaning = Meaning(self.names, {}, {}, self.order).dump()
        state = {**meaning, ACCOUNT: read}
        if self.mixer is not None:
            state["mix"] = self.mixer.state_dict()
        return json.loads(json.dumps(state))  # type: ignore[no-any-return]


def configs(random: np.random.Generator, samples: int) -> Config:
    own = random.permutation(list(SIZES))[: random.integers(1, 5)]
    prefixes = [f"{random.choice(FOLDERS)}{one}" for one in own]

    def weights() -> tuple[float, ...]:
        found = random.choice([0, 0.2, 1, 5], len(prefixes))
        found[random.integers(len(found))] = 1
        return tuple(map(float, found))

    way = random.choice(["by size", "blend", "stages", "dynamic", "dynamic"])
    stages: tuple[Stage, ...] = (Stage(None, None if way == "by size" else weights()),)
    section = None
    if way == "stages":
        stages = (
            Stage(int(random.integers(1, samples)), weights()),
            Stage(int(random.integers(1, samples)), weights(), "linear"),
            *stages,
        )
    if way == "dynamic" and len(prefixes) > 1:
        block = int(random.integers(8, 40))
        given = {"strategy": "linupper", "warmup_steps": 0, "block": block}
        if random.integers(2):
            given["epochs"] = int(random.integers(1, 30))
        section = parse(Dynamic, given, "mix.dynamic")
        stages = (Stage(None, tuple(map(float, random.choice([0.2, 1, 5], len(prefixes))))),)
    block = None if section is None else section.block
    plan = Plan(tuple(prefixes), stages, samples, (), block)
    return documents(random, cuts(random, Config(plan, section), 0))


def cuts(random: np.random.Generator, config: Config, since: int) -> Config:
    """Others from a position on."""
    plan = config.plan
    first = since + random.choice([0, 1, 40, 100, 250], random.integers(0, 3))
    kept = [(one, min(stop, since)) for one, stop in plan.cuts if one < since]
    new = [(int(one), int(one + random.integers(1, 60))) for one in first]
    return replace(config, plan=replace(plan, cuts=union([*kept, *new])))


def documents(random: np.random.Generator, config: Config) -> Config:
    plan = config.plan
    own: Numbers = tuple(
        tuple(sorted({int(n) for n in random.integers(0, POOL[one], random.integers(0, 3))}))
        for one in plan.prefixes
    )
    some = (Omission((0,) * len(own), own),) if any(own) and random.integers(3) else ()
    return replace(config, plan=replace(plan, omissions=some))


def check(run: Run, walk: Walk, places: Sequence[Place], first: int) -> list[tuple[str, int]]:
    """What a step has read, against the walk; also over what is cut."""
    plan, read = run.plan, []
    wanted = {plan.position(first + one): place for one, place in enumerate(places)}
    low = plan.passed(first)
    for position in range(low, plan.passed(first + len(places))):
        number = run.whole.locate(position).prefix
        epoch, window = walk.next(run.names[number])
        if run.most and plan.block and position // plan.block in run.own_blocks:
            assert epoch < run.most
        place = wanted.pop(position, None)
        if place is not None:
            assert (place.prefix, place.epoch, place.window) == (number, epoch, window)
            read.append((run.names[number], window))
    assert not wanted
    return read


def retold(run: Run) -> Mixed:
    """The stream, from the journal alone."""
    start = read_starts(run.folder)[-1]
    assert start.reads is not None
    plan = TypeAdapter(Plan).validate_python(start.reads["plan"])
    read_block = partial(_read_block, plan, start.blocks)
    lengths = [POOL[one] for one in plan.prefixes]
    return Mixed(left_out(Locator(plan, lengths, SEED, read_block=read_block), plan.omissions))


def traced(run: Run, first: int, read: Sequence[tuple[str, int]]) -> None:
    """What this start has read, as a trace tells it."""
    source, plan = retold(run), run.plan
    lengths = [POOL[one] for one in plan.prefixes]
    if plan.block is not None and plan.position(plan.samples - 1) // plan.block not in run.decided:
        with pytest.raises(ConfigError, match="the journal does not tell of block"):
            source.locate(plan.samples - 1)
    own = [source.locate(first + one) for one in range(len(read))]
    assert [(run.names[prefix], window) for prefix, window in own] == list(read)
    for low, stop in ((0, len(read)), (len(read) // 3, len(read) // 2)):
        times = source.reads(first + low, first + stop, lengths)
        expected = Counter(read[low:stop])
        for prefix, counts in zip(run.names, times, strict=True):
            found = {
                (prefix, int(window)): int(counts[window]) for window in np.flatnonzero(counts)
            }
            assert found == {key: n for key, n in expected.items() if key[0] == prefix}
    if plan.block is None:
        for number, prefix in enumerate(run.names):
            for window in range(lengths[number]):
                places = [at for at in source.find(number, window) if at >= first]
                mine = [first + n for n, one in enumerate(read) if one == (prefix, window)]
                assert [at for at in places if at < first + len(read)] == mine


def dynamic(block: int, prefixes: Sequence[str], *cuts: tuple[int, int], **how: Any) -> Config:
    given = {"strategy": "linupper", "warmup_steps": 0, "block": block, **how}
    shares = Stage(None, (1.0,) * len(prefixes))
    plan = Plan(tuple(prefixes), (shares,), 600, cuts, block)
    return Config(plan, parse(Dynamic, given, "mix.dynamic"))


def steps(run: Run, count: int, walk: Walk) -> list[tuple[str, int]]:
    """Of 4 samples each; what they have read."""
    random, read = np.random.default_rng(0), []
    for _ in range(count):
        first = run.consumed
        read += check(run, walk, run.step(4, random), first)
    return read


def test_a_decided_stream_that_begins_with_a_cut_is_traced(tmp_path: Path) -> None:
    """The cut ends where a block does: how many samples it holds is told all the same."""
    run = Run(tmp_path, dynamic(8, ("/c", "/d"), (0, 16)), (), 0, 0, None)
    traced(run, 0, steps(run, 10, Walk()))


def test_blocks_of_a_plan_before_are_not_those_of_this(tmp_path: Path) -> None:
    """Shorter ones, with the numbers of those that are not decided yet."""
    run = Run(tmp_path, dynamic(8, ("/c", "/d")), (), 0, 0, None)
    walk = Walk()
    steps(run, 50, walk)
    run = Run(tmp_path, dynamic(40, ("/d", "/c")), (), run.iteration, run.consumed, run.state())
    traced(run, 200, steps(run, 1, walk))


def test_two_changes_at_the_same_position(tmp_path: Path) -> None:
    """Blocks of the first, which has read nothing, are not those of the second."""
    run, walk = Run(tmp_path, dynamic(40, ("/c", "/d")), (), 0, 0, None), Walk()
    steps(run, 12, walk)
    for other in ("/b", "/c"):
        last = run.iteration, run.consumed, run.state()
        run = Run(tmp_path, dynamic(40, ("/d", other)), (), *last)
    steps(run, 5, walk)


def test_documents_at_the_very_beginning(tmp_path: Path) -> None:
    """A checkpoint from before the first step: they may be taken out again, and others be in."""
    config = dynamic(40, ("/c", "/d"))
    out = [Omission((0, 0), one) for one in (((5,), (1, 7)), ((), (2,)))]
    for plan in (replace(config.plan, omissions=(one,)) for one in out):
        run = Run(tmp_path, replace(config, plan=plan), (), 0, 0, None)
        for now in (config, replace(config, plan=replace(config.plan, omissions=(out[1],)))):
            walk = Walk()
            walk.leave_out(now.plan)
            steps(Run(tmp_path, now, (), 0, 0, run.state()), 30, walk)


def test_a_decided_stream_of_moved_files_is_traced(tmp_path: Path) -> None:
    """The blocks that the checkpoint held were told by the names of before."""
    run = Run(tmp_path, dynamic(40, ("/c", "/d")), (), 0, 0, None)
    walk = Walk()
    steps(run, 10, walk)
    moved = dynamic(40, ("/new/c", "/new/d"))
    run = Run(tmp_path, moved, (), run.iteration, run.consumed, run.state())
    assert not run.own.continues
    traced(run, 40, steps(run, 1, walk))


KINDS = ("nothing", "length", "documents", "cuts", "both", "moved", "change", "return", "rollback")


@dataclass(frozen=True)
class Checkpoint:
    """And what had been read by then, by prefix and window."""

    iteration: int
    consumed: int
    state: dict[str, Any] | None
    config: Config
    walk: Walk


def go(seed: int, folder: Path) -> None:
    """A row of starts, each with something changed."""
    random = np.random.default_rng(seed)
    samples, batch = int(random.integers(300, 900)), int(random.integers(1, 8))
    decisions: list[tuple[int, int]] = []
    saved = [hosts(random, samples)]
    for _ in range(6):
        kind, last = random.choice(KINDS), saved[-1]
        config, run_before = last.config, last
        if kind == "rollback":
            last = saved[random.integers(len(saved))]
            if last.consumed < run_before.consumed:
                plan = config.plan.without(decisions)
                mark = int(random.integers(last.consumed, run_before.consumed))
                decisions.append((plan.position(mark), plan.passed(run_before.consumed)))
            saved = saved[: saved.index(last) + 1]
        elif kind == "change":
            config = configs(random, samples)
        elif kind == "return":
            config = saved[random.integers(len(saved))].config
        elif kind == "length":
            longer = max(last.consumed, samples + int(random.integers(-300, 300)))
            config = replace(config, plan=replace(config.plan, samples=longer))
        elif kind == "moved":
            config = replace(config, plan=moved(random, config.plan))
        if config.plan.samples < last.consumed:  # the host itself refuses that
            config = replace(config, plan=replace(config.plan, samples=last.consumed))
        if kind in ("cuts", "both"):
            since = config.plan.without(decisions).passed(last.consumed)
            config = cuts(random, config, since)
        if kind in ("documents", "both"):
            config = documents(random, config)
        run, config = begun(folder, config, decisions, last)
        walk = copy.deepcopy(last.walk)
        walk.leave_out(config.plan)
        first, read = run.consumed, []
        for _ in range(random.choice([0, 1, 10, 30, 60])):
            if (at := run.consumed) + batch <= run.plan.samples:
                read += check(run, walk, run.step(batch, random), at)
        state = run.state()
        told = {name(one): n["samples"] for one, n in state[ACCOUNT].items() if n["samples"]}
        assert told == {one: n for one, n in walk.turns.items() if n}
        traced(run, first, read)
        saved.append(Checkpoint(run.iteration, run.consumed, state, config, walk))


def hosts(random: np.random.Generator, samples: int) -> Checkpoint:
    """Nothing read so far, or some of Megatron's own blend, in one pass of every prefix."""
    config = configs(random, samples)
    plan = config.plan
    weights = plan.stages[0].weights
    if random.integers(2) or not plan.is_hosts_blend or weights is None:
        return Checkpoint(0, 0, None, config, Walk())
    own = Plan(plan.prefixes, plan.stages, samples)
    order, locator = order_of(own), Locator(own, [POOL[one] for one in own.prefixes], SEED)
    walk, done = Walk(), 0
    while done < samples:
        one = plan.prefixes[locator.locate(done).prefix]
        if walk.turns[name(one)] == POOL[one]:
            break
        walk.next(name(one))
        done += 1
    walk = Walk()
    done = int(random.integers(1, done))
    for consumed in range(done):
        walk.next(name(plan.prefixes[locator.locate(consumed).prefix]))
    read = [walk.turns[name(one)] for one in plan.prefixes]
    told = account(plan.prefixes, read, locator.lengths, READING)
    order = replace(order, mix=None)
    meaning = Meaning(tuple(map(name, plan.prefixes)), {}, {}, order).dump()
    state = json.loads(json.dumps({**meaning, ACCOUNT: carry.dump(told)}))
    return Checkpoint(1, done, state, config, walk)


def begun(
    folder: Path, config: Config, decisions: Sequence[tuple[int, int]], last: Checkpoint
) -> tuple[Run, Config]:
    """With more epochs where those that were given are not enough."""
    how = decisions, last.iteration, last.consumed, last.state
    try:
        return Run(folder, config, *how), config
    except ConfigError as error:
        if config.section is None or "mix.dynamic.epochs" not in str(error):
            raise
    section = config.section.model_copy(update={"epochs": None})
    config = replace(config, section=section)
    return Run(folder, config, *how), config


def moved(random: np.random.Generator, plan: Plan) -> Plan:
    prefixes = [f"{random.choice(FOLDERS)}{name(one)}" for one in plan.prefixes]
    return replace(plan, prefixes=tuple(prefixes))


@pytest.mark.parametrize("seed", range(15))
def test_any_row_of_starts(seed: int, tmp_path: Path) -> None:
    go(seed, tmp_path)


# --- rollbacks: what was read from the onset to the spike is never read again -----------------

LEFT_OUT = "says that samples .* of the stream are left out; the run has not come to them"
AT_ONCE = {"strategy": "linupper", "ema_tokens": 1, "clip": [0.1, 3], "warmup_steps": 0}
Row = tuple[str, int, int]  # domain, epoch, window


class Trained:
    """A run with checkpoints and a log that goes back where it is told to."""

    def __init__(self, folder: Path, random: np.random.Generator, config: Config) -> None:
        self.folder, self.save, self.random = folder, folder / "checkpoints", random
        self.save.mkdir()
        self.batch, self.every, self.interval = map(int, random.integers(1, (8, 4, 6)))
        self.saved = {0: Checkpoint(0, 0, None, config, Walk())}
        self.reads: dict[int, list[Row]] = {}  # of each iteration, what it read last
        self.gone: set[Row] = set()
        self.refused = 0

    def train(self, steps: int, config: Config | None = None, back: int | None = None) -> None:
        """From where the tracker says: some steps, then an end that saves; or a spike.

        Args:
            steps: that are made.
            config: another one; None, or where it is refused: that of before.
            back: of a spike in the last step, iterations to its onset.
        """
        last = self.saved[iteration_of(read_tracker(self.save)) or 0]
        run, config = self.start(last, config)
        walk = copy.deepcopy(last.walk)
        walk.leave_out(config.plan)
        how: Any = {"after_iteration": last.iteration, "corpus_tokens": {}}
        log = MetricsFile(self.folder, "token", **how)
        for number in range(1, steps + 1):
            first = run.consumed
            places = run.step(self.batch, self.random)
            check(run, walk, places, first)
            read = [(run.names[one.prefix], one.epoch, one.window) for one in places]
            assert not self.gone & set(read)
            self.reads[run.iteration] = read
            if run.iteration % self.every == 0:
                stats = DomainStats(("a",), np.ones((2, len(Column)), np.int64))
                log.line(Record("train", run.iteration, run.consumed, stats))
            if (run.iteration % self.interval == 0 and number < steps) or back is None:
                shutil.rmtree(self.save / f"iter_{run.iteration:07d}", ignore_errors=True)
                write_checkpoint(self.save, f"iter_{run.iteration:07d}")
                kept = run.state(), config, copy.deepcopy(walk)
                self.saved[run.iteration] = Checkpoint(run.iteration, run.consumed, *kept)
        log.close()
        if back is not None:
            self.go_back(run, back)

    def start(self, last: Checkpoint, config: Config | None) -> tuple[Run, Config]:
        where = last.iteration, last.consumed, last.state, read_decisions(self.save)
        if config is not None:
            try:
                return Run(self.folder, config, (), *where), config
            except ConfigError as error:
                assert re.search(LEFT_OUT, str(error)), error
                self.refused += 1
        return Run(self.folder, last.config, (), *where), last.config

    def go_back(self, run: Run, back: int) -> None:
        spike = Finding("spike", "a", run.iteration, "warning", "a jump")
        spike.evidence["onset"] = max(0, run.iteration - back)
        where = str(self.save), self.folder, Publisher([])
        moment = Moment(run.iteration, run.consumed, True, False, 1)
        with pytest.raises(SystemExit):
            Reaction(Watching(on_spike="rollback", rollbacks=99), run.plan, *where)([spike], moment)
        decision = read_decisions(self.save)[-1]
        if decision.action == "rollback":
            for iteration in range(decision.onset + 1, run.iteration + 1):
                self.gone |= set(self.reads[iteration])


def endless(config: Config) -> Config:
    """Without cuts of its own, nor a limit of epochs; what decides does so at once."""
    plan, section = replace(config.plan, cuts=()), None
    if config.section is not None:
        section = parse(Dynamic, {**AT_ONCE, "block": plan.block}, "mix.dynamic")
    return Config(plan, section)


@pytest.mark.parametrize("seed", range(12))
def test_what_a_rollback_leaves_out_is_never_read_again(seed: int, tmp_path: Path) -> None:
    """Decided on the way or not; with losses that are others each time, data mixed in another way
    in between, and ends that save between the intervals."""
    random = np.random.default_rng(seed)
    config = endless(configs(random, 2000))
    run = Trained(tmp_path, random, config)
    for number in range(12):
        config = None
        if number and random.integers(3) == 0:
            config = endless(configs(random, 2000))
        if number and random.integers(4) == 0:
            last = run.saved[iteration_of(read_tracker(run.save)) or 0]
            config = documents(random, last.config)
        back = int(random.integers(1, 8)) if random.integers(3) else None
        run.train(int(random.integers(1, 14)), config, back)


def test_a_dynamic_stream_goes_back(tmp_path: Path) -> None:
    """The cut holds blocks that the checkpoint has not decided; another mix is refused until the
    run is past it."""
    random = np.random.default_rng(0)
    config = dynamic(16, ("/c", "/d"), **AT_ONCE)
    run = Trained(tmp_path, random, config)
    run.batch, run.every, run.interval = 4, 1, 6
    run.train(14, back=5)
    (decision,) = read_decisions(run.save)
    assert (decision.resume, decision.samples) == (6, (36, 56))
    assert sorted(decision.blocks) == [1, 2, 3]
    assert len(run.gone) == 20
    before = {at: rows for at, rows in run.reads.items() if 6 < at <= 9}
    run.train(3, dynamic(16, ("/c", "/d", "/b")), back=None)
    assert run.refused == 1
    assert before == {at: run.reads[at] for at in before}
    run.train(1, documents_of_all(config))
    assert run.refused == 2
    run.train(30, documents_of_all(config))
    assert run.refused == 2


def documents_of_all(config: Config) -> Config:
    own = (Omission((0, 0), ((5,), (7,))),)
    return replace(config, plan=replace(config.plan, omissions=own))
