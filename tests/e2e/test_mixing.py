"""A blend that changes within a run, and cuts in it: the same samples in every layout."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.board import points
from support.corpora import DOMAINS, SHARES
from support.launch import Run
from support.streams import recorded_run

from domain_pretrain.commands.trace import open_trace
from domain_pretrain.data.mix.locate import Locator
from domain_pretrain.data.mix.plan import Plan, Stage
from domain_pretrain.data.trace.trace import Trace
from domain_pretrain.records.reader import read_events
from domain_pretrain.records.record import Event

pytestmark = pytest.mark.megatron

BATCH, STEPS = 8, 9
SAMPLES = BATCH * STEPS
# Three stages with a ramp, some of their ends within a step; epochs of the rare domains.
SCHEDULE = [
    {"samples": 20, "weights": {"general": 6, "code": 2, "maths": 2}},
    {"share": 0.5, "weights": {"finance": 5, "code": 1, "rare": 2}, "shape": "linear"},
    {"weights": {"finance": 3, "rare": 5}},
]
CUTS = [{"samples": [10, 15]}, {"samples": [40, 47]}]
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "DP1": (1, []),
    "DP2, two workers": (2, ["--num-workers", "2"]),
    "PP2 x VPP2": (
        2,
        [
            *("--pipeline-model-parallel-size", "2"),
            *("--num-layers-per-virtual-pipeline-stage", "1"),
        ],
    ),
    "CP2": (2, ["--context-parallel-size", "2"]),
    "TP2": (2, ["--tensor-model-parallel-size", "2"]),
}
Rows = list[tuple[int, str]]
start = partial(recorded_run, iterations=STEPS)


def steps(folder: Path) -> dict[int, list[Rows]]:
    """For every step, the rows that each rank which reads data has read, in its order."""
    found: dict[int, list[Rows]] = {}
    for file in sorted(folder.glob("rows*.jsonl")):
        own: dict[int, Rows] = {}
        for line in file.read_text(encoding="utf-8").splitlines():
            step, *rows = json.loads(line)
            own.setdefault(step, []).extend((number, text) for number, text in rows)
        for step, rows in own.items():
            found.setdefault(step, []).append(rows)
    return found


def read(folder: Path, layout: str, first: int | None = 1) -> list[Rows]:
    """The rows of every step: what data-parallel ranks read together, and all others alike."""
    whole = []
    for number, (step, ranks) in enumerate(sorted(steps(folder).items())):
        assert first is None or step == first + number
        if layout.startswith("DP"):
            whole.append(sorted(row for rows in ranks for row in rows))
        else:  # the first and the last stage, or both parts of the context; or the first of TP
            assert len(ranks) == (1 if layout == "TP2" else 2)
            assert ranks[0] == ranks[-1]
            whole.append(sorted(ranks[0]))
    return whole


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, blend: list[str]) -> Path:
    """One process, the schedule and the cuts; a checkpoint of every third step."""
    folder = tmp_path_factory.mktemp("mix")
    mix = {"schedule": SCHEDULE, "skip": CUTS}
    run = start(folder, blend, mix, *saving(folder))
    assert "mix: stage 2: samples 20 to 56, linear: finance 62.50%, code 12.50%, rare" in run.output
    assert "mix.skip: 0 samples are consumed; the next one is at position 0" in run.output
    return folder


def saving(folder: Path) -> list[str | Path]:
    return ["--save", folder / "checkpoints", "--save-interval", "3", "--ckpt-format", "torch"]


def test_the_stages_are_what_was_asked_for(unbroken: Path) -> None:
    """By the ids of the rows, by the plan, and by the domains of the metrics file."""
    ids = [sorted(number for number, _ in rows) for rows in read(unbroken, "DP1")]
    plan = plan_of({"schedule": SCHEDULE, "skip": CUTS})
    locator = Locator(plan, [10**6] * len(DOMAINS), 1234)
    expected = [locator.locate(i).prefix for i in range(SAMPLES)]
    assert ids == [sorted(expected[i : i + BATCH]) for i in range(0, SAMPLES, BATCH)]
    lines = [json.loads(text) for text in (unbroken / "domain_metrics.jsonl").open()]
    lines = [line for line in lines if line.get("split") == "train"]
    assert len(lines) == STEPS
    for line, own in zip(lines, ids, strict=True):
        counts = {name: entry["samples"] for name, entry in line["domains"].items()}
        assert counts == {DOMAINS[number]: count for number, count in Counter(own).items()}
    assert [(event.iteration, event.detail[:35]) for event in stages_of(unbroken)] == [
        (2, "stage 2 of mix.schedule: samples 20"),  # after 15 samples and a cut of 5
        (6, "stage 3 of mix.schedule: samples 56"),
    ]
    # Stage 1 has three domains; stage 3, from position 56 on, two: by the cuts, sample 44.
    assert {number for own in ids[:1] for number in own} == {1, 2, 3}
    assert {number for own in ids[6:] for number in own} == {0, 4}


def plan_of(mix: dict[str, Any]) -> Plan:
    """Of the shared corpora, worked out by hand."""
    names = list(DOMAINS)

    def weights(stage: dict[str, Any]) -> tuple[float, ...]:
        return tuple(float(stage["weights"].get(name, 0)) for name in names)

    first, second, third = mix["schedule"]
    stages = (
        Stage(20, weights(first)),
        Stage(36, weights(second), "linear"),
        Stage(None, weights(third)),
    )
    cuts = tuple(tuple(cut["samples"]) for cut in mix.get("skip", ()))
    return Plan(tuple(names), stages, SAMPLES, cuts)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("DP1", "TP2")])
def test_every_layout_reads_the_same(
    layout: str, unbroken: Path, blend: list[str], tmp_path: Path
) -> None:
    nproc, flags = LAYOUTS[layout]
    start(tmp_path, blend, {"schedule": SCHEDULE, "skip": CUTS}, *flags, nproc=nproc)
    assert read(tmp_path, layout) == read(unbroken, "DP1")


def test_killed_and_resumed(unbroken: Path, blend: list[str], tmp_path: Path) -> None:
    """Within the ramp, two steps after a checkpoint, with workers that have read ahead."""
    mix = {"schedule": SCHEDULE, "skip": CUTS}
    nproc, flags = LAYOUTS["DP2, two workers"]
    flags = [*flags, *map(str, saving(tmp_path))]
    how: dict[str, Any] = {"nproc": nproc, "expect": None, "env": {"KILL_IN_STEP": "6"}}
    killed = start(tmp_path, blend, mix, *flags, **how)
    assert killed.returncode != 0
    expected = read(unbroken, "DP1")
    assert read(tmp_path, "DP2") == expected[:5]

    resumed = tmp_path / "resumed"
    load = ["--load", tmp_path / "checkpoints"]
    start(resumed, blend, mix, *load)  # in another layout
    ranks = steps(resumed)
    assert sorted(ranks) == list(range(4, STEPS + 1))
    assert [sorted(rows) for _, (rows,) in sorted(ranks.items())] == expected[3:]
    assert stages_of(resumed) == stages_of(unbroken)[1:], "what begins after the checkpoint"


def stages_of(folder: Path) -> list[Event]:
    """What is told of the stages that begin."""
    return [event for event in read_events(folder) if event.name == "stage"]


def in_turn(folder: Path) -> Rows:
    """The rows of one process, in their order."""
    return [row for _, (rows,) in sorted(steps(folder).items()) for row in rows]


def resume(
    unbroken: Path, tmp_path: Path, blend: list[str], mix: dict[str, Any] | None, *flags: str, **how
) -> Run:
    """From step 6: 48 samples consumed, at position 60 of the stream."""
    load = ["--load", unbroken / "checkpoints", "--ckpt-step", "6"]
    return start(tmp_path, blend, mix, *load, *flags, **how)


def test_a_cut_may_be_added_before_it_is_reached(
    unbroken: Path, blend: list[str], tmp_path: Path
) -> None:
    mix = {"schedule": SCHEDULE, "skip": [*CUTS, {"samples": [62, 66]}]}
    run = resume(unbroken, tmp_path, blend, mix)
    assert "48 samples are consumed; the next one is at position 60 of the stream" in run.output
    assert "another config: mix.skip" in run.output
    found, before = in_turn(tmp_path), in_turn(unbroken)[48:]
    assert found[:2] == before[:2]
    assert found[2:20] == before[6:], "positions 66 to 83"
    assert len(found) == 24


def test_documents_are_left_out_from_here_on(
    unbroken: Path, blend: list[str], corpora: Path, tmp_path: Path
) -> None:
    """By what they hold, in every position of their prefix; the others' rows are as they were."""
    before = in_turn(unbroken)[48:]
    first = next(iter(open_trace(unbroken).positions(61, 62)))
    prefix = first.part.prefixes[first.prefix]
    content = [entry["content"] for entry in first.dump()["documents"]]
    mix = {"schedule": SCHEDULE, "skip": [*CUTS, {"content": content[:1]}]}
    run = resume(unbroken, tmp_path, blend, mix)
    assert "another config: mix.skip" in run.output
    assert f"of {prefix} hold a token of 1 document, and are left out after " in run.output
    found = in_turn(tmp_path)
    assert [number for number, _ in found] == [number for number, _ in before]
    number = list(DOMAINS).index(first.domain)
    own, old = ([text for n, text in rows if n == number] for rows in (found, before))
    others, kept = ([row for row in rows if row[0] != number] for rows in (found, before))
    assert others == kept
    assert before[1] == (number, old[(before[0][0] == number)])
    assert before[1] not in found
    gone = next(iter(first.documents)).index
    for sample in open_trace(tmp_path).iterations(7, STEPS + 1):
        spans = [span.index for span in sample.documents]
        assert sample.part.prefixes[sample.prefix] != prefix or gone not in spans
    rest = iter(old)
    assert all(text in rest for text in own[: len(set(own) & set(old))]), "in the order of before"
    assert len(set(old) - set(own)) >= 1


def test_the_part_behind_a_run_may_not_change(
    unbroken: Path, blend: list[str], tmp_path: Path
) -> None:
    cut = {"schedule": SCHEDULE, "skip": [*CUTS, {"samples": [50, 55]}]}
    run = resume(unbroken, tmp_path, blend, cut, expect=2)
    assert "other training data: mix.skip [10, 15) [40, 47) → [10, 15) [40, 47) [50, 55)" in (
        run.output
    )
    assert "positions below 60; cuts from there on may be added" in run.output
    later = [*SCHEDULE[:2], {"weights": {"finance": 4, "rare": 4}}]
    changed = {"schedule": later, "skip": CUTS}
    run = resume(unbroken, tmp_path, blend, changed, expect=2)
    assert "other training data: mix.schedule [20 samples at 0:60:20:20:0, " in run.output
    assert "--allow-domain-change" in run.output
    assert "Traceback" not in run.output
    run = resume(unbroken, tmp_path, blend, None, expect=2)
    assert "the rest at 12.99:64.94:6.494:12.99:2.597" in run.output

    resume(unbroken, tmp_path, blend, changed, "--allow-domain-change")
    assert {number for number, _ in in_turn(tmp_path)} == {0, 4}


@pytest.mark.parametrize("data", ["blend", "one prefix"])
def test_cuts_in_the_hosts_own_order(
    data: str, blend: list[str], corpora: Path, tmp_path: Path
) -> None:
    """A run that began without mix, and goes on with a cut: all else comes as it would have."""
    if data == "one prefix":
        blend = ["--split", "80,10,10", "--data-path", str(corpora / "general")]
    own, cut = tmp_path / "own", tmp_path / "cut"
    save = ["--save", own / "checkpoints", "--save-interval", "2", "--ckpt-format", "torch"]
    start(own, blend, None, *save, iterations=5)
    load = ["--load", own / "checkpoints", "--ckpt-step", "2"]
    load += ["--data-cache-path", tmp_path / "cache"]
    run = start(cut, blend, {"skip": [{"samples": [19, 23]}]}, *load, iterations=5)
    kept = list((tmp_path / "cache").glob("*-Stream-train-*.npy"))
    assert len(kept) == (2 if data == "blend" else 0), "one prefix needs no index"
    before, found = [[text for _, text in in_turn(folder)] for folder in (own, cut)]
    assert len(before) == 40
    assert found[:20] == before[16:19] + before[23:]
    assert len(found) == 24
    assert sum(e["samples"] for e in run.metrics()[-1]["domains"].values()) == BATCH


def test_a_run_that_has_ended_is_resumed_to_its_end(
    unbroken: Path, blend: list[str], tmp_path: Path
) -> None:
    """As the host's own: a restarted job must not fail because it was done."""
    load = ["--load", unbroken / "checkpoints"]
    start(tmp_path, blend, {"schedule": SCHEDULE, "skip": CUTS}, *load)
    assert not steps(tmp_path)


def test_data_of_a_splits_own(corpora: Path, tmp_path: Path) -> None:
    """The train split's prefixes are mixed, and by size divided; the others are as they were."""
    flags: list[str | Path] = ["--train-data-path", *(corpora / name for name in ("code", "rare"))]
    flags += ["--valid-data-path", corpora / "general", "--eval-interval", "2", "--eval-iters", "1"]
    schedule = [{"samples": 10, "weights": {"rare": 1}}, {"weights": {"rare": 1, "code": 1}}]
    run = start(tmp_path, [], {"schedule": schedule}, *flags, iterations=2)  # type: ignore[arg-type]
    ids = [number for number, _ in in_turn(tmp_path)]
    assert ids[:10] == [1] * 10
    assert sorted(ids[10:]) == [0, 0, 0, 1, 1, 1]
    assert all(entry["domains"].keys() == {"general"} for entry in run.metrics("valid"))


# --- shares that follow the losses ---------------------------------------------------------------

DYNAMIC = {
    "strategy": "linupper",
    "temperature": 0.5,
    "warmup_steps": 1,
    "clip": [0.1, 8.0],
    "block": 16,  # two steps
}


def following(blend: list[str], **changes: Any) -> dict[str, Any]:
    """And documents that are left out."""
    (prefix,) = (word for word in blend if word.endswith("/general"))
    without = {"documents": [1, 5, 30], "prefix": prefix}
    return {"dynamic": {**DYNAMIC, **changes}, "skip": [*CUTS, without]}


def blocks(folder: Path) -> dict[int, dict[str, Any]]:
    """By number, what the journal says last of every block."""
    lines = [json.loads(line) for line in (folder / "domain_journal.jsonl").open()]
    return {line["block"]: line for line in lines if "block" in line}


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory, blend: list[str]) -> Path:
    """One process whose own thread reads the data: it never waits for what it decides itself."""
    folder = tmp_path_factory.mktemp("dynamic")
    board = ["--tensorboard-dir", folder / "board"]
    run = start(folder, blend, following(blend), *saving(folder), *board, "--num-workers", "0")
    assert "mix: dynamic: decided for 16 samples at a time, at first: finance 12.99%" in run.output
    samples = list(open_trace(folder).iterations(1, STEPS + 1))
    held = {one.index for s in samples if s.domain == "general" for one in s.documents}
    assert len(held) > 10
    assert not held & {1, 5, 30}
    return folder


def test_the_losses_decide_what_is_read(followed: Path) -> None:
    """The rows are what the journal says; shares are in the metrics and on the board."""
    found = blocks(followed)
    assert [found[number]["consumed_samples"] for number in sorted(found)] == [0, 0, 16, 24, 40, 56]
    assert list(found) == list(range(6))
    first, last = found[0]["shares"], found[5]["shares"]
    assert first == pytest.approx(dict(zip(DOMAINS, np.array(SHARES) / sum(SHARES), strict=True)))
    assert sum(last.values()) == pytest.approx(1)
    assert max(abs(last[name] - first[name]) for name in DOMAINS) > 0.05, "losses differ"
    ids = Counter(number for rows in read(followed, "DP1") for number, _ in rows)
    # All of block 3 was read, position 48 to 63; cuts took 5 of block 0 and 7 of 2.
    plan = Plan(tuple(DOMAINS), (Stage(None, SHARES),), SAMPLES, ((10, 15), (40, 47)), 16)
    taken = {number: list(line["counts"].values()) for number, line in found.items()}

    def read_block(number: int) -> tuple[Any, Any]:
        before = [taken[earlier] for earlier in range(number)]
        return np.sum([[0] * 5, *before], axis=0), np.array(taken[number])

    locator = Locator(plan, [10**6] * 5, 1234, read_block=read_block)
    assert ids == Counter(locator.locate(i).prefix for i in range(SAMPLES))
    lines = [json.loads(text) for text in (followed / "domain_metrics.jsonl").open()]
    (line,) = [one for one in lines if one.get("iteration") == 5 and "split" in one]
    assert plan.position(39) // 16 == 3
    for name, entry in line["domains"].items():
        assert entry["mix"] == taken[3][DOMAINS.index(name)] / 16
    assert {f"channel-mix/{name}" for name in line["domains"]} <= points(followed / "board").keys()


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "DP1"])
def test_every_layout_decides_the_same(
    layout: str, followed: Path, blend: list[str], tmp_path: Path
) -> None:
    nproc, flags = LAYOUTS[layout]
    start(tmp_path, blend, following(blend), *flags, nproc=nproc)
    assert read(tmp_path, layout) == read(followed, "DP1")
    found, expected = blocks(tmp_path), blocks(followed)
    assert list(found) == list(expected)
    for number, line in found.items():
        assert line["counts"] == expected[number]["counts"]
        # Gradients are added in another order, and the shares rounded.
        assert line["shares"] == pytest.approx(expected[number]["shares"], abs=1e-5)


def test_killed_within_a_block_and_resumed(
    followed: Path, blend: list[str], tmp_path: Path
) -> None:
    """After a checkpoint within block 1, in another layout, with other workers."""
    nproc, flags = LAYOUTS["DP2, two workers"]
    flags = [*flags, *map(str, saving(tmp_path))]
    how: dict[str, Any] = {"nproc": nproc, "expect": None, "env": {"KILL_IN_STEP": "6"}}
    killed = start(tmp_path, blend, following(blend), *flags, **how)
    assert killed.returncode != 0
    resumed = tmp_path / "resumed"
    load = ["--load", tmp_path / "checkpoints", "--num-workers", "1"]
    start(resumed, blend, following(blend), *load)
    ranks = steps(resumed)
    assert sorted(ranks) == list(range(4, STEPS + 1))
    assert [sorted(rows) for _, (rows,) in sorted(ranks.items())] == read(followed, "DP1")[3:]
    expected = blocks(followed)
    assert {number: line["counts"] for number, line in blocks(resumed).items()} == {
        number: line["counts"] for number, line in expected.items() if line["iteration"] > 3
    }, "what the checkpoint held is not decided again"


def test_a_run_goes_on_with_what_decides(followed: Path, blend: list[str], tmp_path: Path) -> None:
    """Another strategy from here on is told; another way to the stream is refused."""
    load = ["--load", followed / "checkpoints", "--ckpt-step", "6"]
    run = start(tmp_path, blend, following(blend, temperature=5.0), *load)
    assert "another config: mix.dynamic.temperature 0.5 → 5.0" in run.output
    assert in_turn(tmp_path)[:8] == in_turn(followed)[48:56]
    for mix, says in (
        ({"skip": CUTS}, "mix.dynamic in blocks of 16 → none"),
        (following(blend, block=32), "in blocks of 16 → 32"),
    ):
        run = start(tmp_path, blend, mix, *load, expect=2)
        assert says in run.output
        assert "Traceback" not in run.output


# --- data that are mixed in another way from a resume on ------------------------------------------

GO_ON = {"on_change": "continue"}
FIRST = {"finance": 2, "code": 1, "general": 5}
SECOND = {"maths": 2, "general": 3, "code": 1}
# By way: the mix before, that after (besides), and the training part; a fifth of it has epochs.
WAYS: dict[str, tuple[dict[str, Any] | None, dict[str, Any], int]] = {
    "host's blend": (None, {}, 80),
    "schedule": (
        {
            "schedule": [
                {"samples": 11, "weights": {"code": 1, "finance": 1}},
                {"weights": {"general": 5, "finance": 2, "code": 1}},
            ]
        },
        {},
        16,
    ),
    "dynamic": ({"dynamic": DYNAMIC}, {"dynamic": DYNAMIC}, 16),
}


def data_of(corpora: Path, part: int, weights: dict[str, int]) -> list[str]:
    words = [word for name in weights for word in (str(weights[name]), str(corpora / name))]
    return ["--split", f"{part},{90 - part},10", "--data-path", *words]


def texts_of(
    folder: Path, names: dict[str, int], layout: str = "DP"
) -> list[list[tuple[str, str]]]:
    """For every step, the domain of each row, and its text."""
    return [
        sorted((list(names)[number], text) for number, text in rows)
        for rows in read(folder, layout, first=None)
    ]


def text_of(tokens: Any) -> str:
    return hashlib.sha256(np.asarray(tokens).astype(np.int64).tobytes()).hexdigest()[:12]


def one_epoch(prefix: Path, part: int, cache: Path) -> list[str]:
    """By Megatron alone."""
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=32,
        blend=([str(prefix)], None),
        split=f"{part},{90 - part},10",
        path_to_cache=str(cache),
        tokenizer=SimpleNamespace(unique_identifiers={}, eod=None, pad=None, vocab_size=300),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    sizes = [1, None, None]
    data = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()[0]
    return [text_of(data[index]["tokens"]) for index in range(len(data))]


def traced(trace: Trace) -> list[list[tuple[str, str]]]:
    """As :func:`texts_of`, by the trace."""
    found: dict[int, list[tuple[str, str]]] = {}
    for sample in trace.iterations(1, STEPS + 1):
        spans = [sample.part.data.tokens(sample.prefix, span) for span in sample.documents]
        row = (sample.domain, text_of(np.concatenate(spans)[:-1]))
        found.setdefault(sample.iteration, []).append(row)
    return [sorted(rows) for _, rows in sorted(found.items())]


@pytest.mark.parametrize("way", WAYS)
def test_another_blend_and_a_new_domain(way: str, corpora: Path, tmp_path: Path) -> None:
    """At any step; back to what it was two steps later. In all layouts, by the rows that were fed;
    where tensors are split, the second rank reads nothing."""
    at = random.Random(way).randint(2, STEPS - 4)
    before, after, part = WAYS[way]
    first, second = (data_of(corpora, part, names) for names in (FIRST, SECOND))
    log = tmp_path / "log"
    common = [*saving(tmp_path), "--save-interval", "1", "--domain-log-dir", log]
    common += ["--ckpt-format", "torch_dist"]
    load = [*common, "--load", tmp_path / "checkpoints"]
    folders = [tmp_path / name for name in ("one", "two", "three", "refused")]
    start(folders[0], first, before, *common, "--exit-interval", str(at))

    refused = start(folders[3], second, after or None, *load, expect=2)
    assert "other training data: " in refused.output
    assert "mix.on_change: continue in the config to go on" in refused.output
    assert "Traceback" not in refused.output

    stop = ["--exit-interval", str(at + 2)]
    layout = "DP2" if way == "dynamic" else "CP2"
    stop += ["--context-parallel-size", "2"] if layout == "CP2" else []
    run = start(folders[1], second, {**GO_ON, **after}, *load, *stop, nproc=2)
    assert f"mix.on_change: after {at * BATCH} samples, the data are mixed in" in run.output
    assert "/maths begins" in run.output
    tp = ["--tensor-model-parallel-size", "2", "--make-vocab-size-divisible-by", "75"]
    start(folders[2], first, {**GO_ON, **(before or {})}, *load, *tp, nproc=2)

    found = texts_of(folders[0], FIRST) + texts_of(folders[1], SECOND, layout)
    found += texts_of(folders[2], FIRST)
    assert len(found) == STEPS
    trace = open_trace(log)
    assert traced(trace) == found
    read = {}
    for name in {**FIRST, **SECOND}:
        texts = Counter(text for rows in found for domain, text in rows if domain == name)
        read[name] = texts.total()
        whole = one_epoch(corpora / name, part, tmp_path / "cache")
        epochs, rest = divmod(read[name], len(whole))
        assert set(texts) == set(whole if epochs else whole[:rest])
        assert set(texts.values()) <= {epochs, epochs + 1}, "none twice, none lost"
    assert {one.domain: one.samples for one in trace.consumed()[1]} == read
    assert max(read.values()) > 24 or part == 80, "more than an epoch of the largest"
