"""Every check in every layout, on the Megatron in the folder that MEGATRON_LM_PATH names.

A checkout runs its own unmodified pretrain_gpt.py; an unpacked wheel, which has none, the built-in
entry. ``make hosts`` runs this file on all versions and writes docs/hosts-matrix.md from the names
and outcomes of its tests: ``test_CHECK[LAYOUT]``.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host_runs import CUT, FIXED, LAYOUTS, SCHEDULE, Host
from support.corpora import DOMAINS
from support.flags import OF_SCRIPTS, assert_exist, parser_of
from support.gradients import assert_gradients, error, load
from support.losses import (
    assert_close,
    assert_evaluations_add_up,
    assert_host_numbers,
    assert_sums,
    sums_by_domain,
)
from support.metrics import counted
from support.observe import STEPS, assert_same_checkpoint, assert_same_training
from support.probes import ALL, PREDICTED, VALUES, parts
from support.ramps import assert_ramped

from domain_pretrain.backends import cpu
from domain_pretrain.commands.trace import open_trace
from domain_pretrain.data.mix.locate import Locator
from domain_pretrain.data.mix.plan import Plan, Stage
from domain_pretrain.data.trace.trace import Sample
from domain_pretrain.hosts.experts import EXPERT_SEAMS
from domain_pretrain.hosts.megatron import SEAMS
from domain_pretrain.hosts.versions import host_version
from domain_pretrain.records.journal import JOURNAL_FILE
from domain_pretrain.records.reader import read_evaluations
from domain_pretrain.seams.seam import check

HOST = Path(os.environ.get("MEGATRON_LM_PATH", ""))

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.checkout,
    pytest.mark.skipif(
        "MEGATRON_LM_PATH" not in os.environ, reason="no checkout: set MEGATRON_LM_PATH"
    ),
]

# The corpora are written here, by the host's own code.
cpu.skip_cuda_extensions()

each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_parallel_layout = pytest.mark.parametrize("layout", list(LAYOUTS)[1:])


@pytest.fixture(scope="session")
def host(
    tmp_path_factory: pytest.TempPathFactory,
    blend: list[str],
    corpora: Path,
    record_testsuite_property: Callable[[str, object], None],
) -> Host:
    record_testsuite_property("host", host_version(HOST / "megatron"))
    record_testsuite_property("python", platform.python_version())
    record_testsuite_property("torch", torch.__version__)
    return Host(HOST, tmp_path_factory.mktemp("hosts"), blend, corpora)


def test_seams(record_testsuite_property: Callable[[str, object], None]) -> None:
    """All seams fit, by the host's source alone."""
    start = time.perf_counter()
    seams = SEAMS + EXPERT_SEAMS
    problems = [check(seam, HOST / "megatron") for seam in seams]
    seconds = time.perf_counter() - start
    assert problems == [None] * len(seams)
    record_testsuite_property("seams", f"{len(seams)} in {seconds:.2f} s")


def test_flags(host: Host) -> None:
    """What the plugin's messages tell the user to give or to leave out can be typed."""
    assert_exist(*parser_of(host.env))
    for flag, file in OF_SCRIPTS.items():
        if (HOST / file).is_file():
            assert f"'{flag}'" in (HOST / file).read_text(encoding="utf-8")


# --- channel loss ------------------------------------------------------------------------------


@each_layout
def test_channel_loss(layout: str, host: Host) -> None:
    """Float64 sums of the losses that the ranks recorded, the host's own numbers, one process."""
    run = host.run("weighted", layout).run
    entries, expected = run.metrics(), oracle(run.log_dir, layout)
    assert len(entries) == STEPS
    for entry, domains in zip(entries, expected, strict=True):
        assert_sums(entry, domains)
    # At iteration 2 Megatron's printed mean still holds iteration 1.
    printed = [float(loss) for loss in run.host_losses()]
    assert printed[2:] == pytest.approx([e["lm_loss"] for e in entries[2:]], rel=1e-6)
    assert_host_numbers(run)
    assert_close(entries, host.run("weighted", "one").run.metrics())


def oracle(folder: Path, layout: str) -> list[dict[str, tuple[float, int]]]:
    """By step and domain, Σ mask·loss and Σ mask over all ranks, told by the text itself."""
    files = sorted(folder.glob("records*.npz"))
    steps: list[list[Any]] = [[] for _ in range(STEPS)]
    # TP ranks record the same losses; of a pipeline, only the last stage has any.
    for file in files[:1] if layout == "TP2" else files:
        record = np.load(file)
        rows = zip(*(record[key] for key in ("step", "losses", "mask", "labels")), strict=True)
        for step, *row in rows:
            steps[step - 1].append(row)
    return [sums_by_domain(rows) for rows in steps]


# --- gradients ---------------------------------------------------------------------------------


@each_layout
def test_gradients(layout: str, host: Host) -> None:
    """Every parameter of every rank has its part of autograd's gradient of the formula."""
    formula = host.run("weighted", "one").folder
    expected, plain = load(formula / "weighted.npz"), load(formula / "plain.npz")
    assert all(error(plain[name], want) > 1e-3 for name, want in expected.items())
    folder = host.run("weighted", layout).folder
    ranks = range(LAYOUTS[layout][0])
    assert_gradients([folder / f"gradients{rank}.npz" for rank in ranks], expected)


# --- off is off --------------------------------------------------------------------------------


@each_parallel_layout
def test_off_is_off(layout: str, host: Host) -> None:
    """With channel loss: the host's own losses, gradient norms and checkpoint, in all bits."""
    counted, alone = host.run("counted", layout), host.run("alone", layout)
    assert len(counted.run.metrics()) == STEPS
    assert not list(alone.folder.glob("domain_metrics*"))
    assert_same_training(counted, alone)


# --- batches that grow -------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["one", "DP2"])
def test_batch_schedule(layout: str, host: Host) -> None:
    """The multipliers of a run whose batches grow, whatever its data parallelism."""
    assert_ramped(host.run("ramped", layout).run)


@pytest.mark.parametrize("layout", ["one", "DP2"])
def test_batch_schedule_traced(layout: str, host: Host) -> None:
    """What a trace says of each step, by the host's own count of microbatches, was read there."""
    run = host.run("ramped", layout).run
    trace = open_trace(run.log_dir)
    entries = run.metrics()
    steps = [list(trace.iterations(n, n + 1)) for n in range(1, len(entries) + 1)]
    assert [len(step) for step in steps] == [4, 4, 8, 8, 8]
    for entry, step in zip(entries, steps, strict=True):
        found = Counter(sample.domain for sample in step)
        assert found == {name: domain["samples"] for name, domain in entry["domains"].items()}
    if layout == "DP2":
        assert [sorted(map(labels_of, step)) for step in steps] == recorded(run.log_dir)


def labels_of(sample: Sample) -> list[int]:
    """The tokens that a row has to predict."""
    data = sample.part.data
    spans = [data.tokens(sample.prefix, span) for span in sample.documents]
    return [int(token) for span in spans for token in span][1:]


def recorded(folder: Path) -> list[list[list[int]]]:
    """By step, the same as the ranks have seen it."""
    steps: dict[int, list[list[int]]] = {}
    for file in sorted(folder.glob("records*.npz")):
        record = np.load(file)
        for step, labels in zip(record["step"].tolist(), record["labels"], strict=True):
            steps.setdefault(step, []).extend(labels.tolist())
    return [sorted(rows) for _, rows in sorted(steps.items())]


# --- a blend that changes ----------------------------------------------------------------------


@each_layout
def test_mixing(layout: str, host: Host) -> None:
    """Every step's samples by domain are the plan's, and its losses those of one process."""
    entries = host.run("mixed", layout).run.metrics()
    samples = [{name: d["samples"] for name, d in e["domains"].items()} for e in entries]
    stages = [
        Stage(
            one.get("samples"),
            tuple(float(one["weights"].get(name, 0)) for name in DOMAINS),
            one.get("shape", "constant"),
        )
        for one in SCHEDULE
    ]
    plan = Plan(DOMAINS, tuple(stages), 8 * STEPS, (CUT,))
    locator = Locator(plan, [10**6] * len(DOMAINS), 1234)
    planned = [DOMAINS[locator.locate(place).prefix] for place in range(8 * STEPS)]
    assert samples == [Counter(planned[8 * step : 8 * step + 8]) for step in range(STEPS)]
    assert_close(entries, host.run("mixed", "one").run.metrics())


@each_layout
def test_dynamic_mixing(layout: str, host: Host) -> None:
    """All layouts decide the same blocks from their losses, and read the same samples."""
    run, alone = (host.run("followed", one).run for one in (layout, "one"))
    found, expected = blocks(run.log_dir), blocks(alone.log_dir)
    assert len(expected) == STEPS
    assert list(found) == list(expected)
    for number, block in expected.items():
        assert found[number]["counts"] == block["counts"]
        # Gradients are added in another order, and the shares rounded.
        assert found[number]["shares"] == pytest.approx(block["shares"], abs=1e-5)
    first, last = expected[0]["shares"], expected[STEPS - 1]["shares"]
    assert max(abs(last[name] - first[name]) for name in DOMAINS) > 0.01, "losses decide"
    for entry, block in zip(run.metrics(), expected.values(), strict=True):
        counts = dict(zip(DOMAINS, block["counts"].values(), strict=True))
        read = {name: domain["samples"] for name, domain in entry["domains"].items()}
        assert read == {name: count for name, count in counts.items() if count}
    assert_close(run.metrics(), alone.metrics())


def blocks(folder: Path) -> dict[int, Any]:
    """Of the journal, by number."""
    lines = [json.loads(line) for line in (folder / JOURNAL_FILE).open(encoding="utf-8")]
    return {line["block"]: line for line in lines if "block" in line}


# --- resume ------------------------------------------------------------------------------------


@each_parallel_layout
def test_resume(layout: str, host: Host) -> None:
    """The metrics file, the gradient norms and the final checkpoint of the unbroken run."""
    resumed, unbroken = host.run("resumed", layout), host.run("weighted", layout)
    assert counted(resumed.folder) == counted(unbroken.folder)
    # A run's second printed loss is a mean of two.
    assert resumed.run.host_losses()[0] == unbroken.run.host_losses()[2]
    assert resumed.run.host_grad_norms() == unbroken.run.host_grad_norms()[2:]
    # On the CPU a data loader's own seed comes from the generator of everything else, so that one
    # more start leaves it in another state; nothing here draws from it.
    assert_same_checkpoint(resumed, unbroken, leave_out="rng_state")


# --- evaluation --------------------------------------------------------------------------------


@each_layout
def test_evaluation(layout: str, host: Host) -> None:
    """At Megatron's own points; adds up to what it printed, and equals one process."""
    run, alone = host.run("weighted", layout).run, host.run("weighted", "one").run
    entries = assert_evaluations_add_up(run)
    assert [(e["split"], e["iteration"]) for e in entries] == [
        *(("valid", 2), ("valid", 4), ("valid", 4), ("test", 4))
    ]
    for entry in entries:
        assert sum(d["samples"] for d in entry["domains"].values()) == 8
    for split in ("valid", "test"):
        assert_close(run.metrics(split), alone.metrics(split))


@each_layout
def test_fixed_set(layout: str, host: Host) -> None:
    """The same samples each time; the untrained model's losses on them equal one process."""
    entries = host.run("counted", layout).run.metrics("valid")
    assert [e["iteration"] for e in entries] == [0, 2, 4, 4]
    for entry in entries:
        assert {d["samples"] for d in entry["domains"].values()} == {FIXED}
    if layout != "CP2":  # it has other data
        assert_close(entries[:1], host.run("counted", "one").run.metrics("valid")[:1])


@each_layout
def test_probes(layout: str, host: Host) -> None:
    """Log-probabilities and predictions of the untrained model are those of one process."""
    first, *more = read_evaluations(host.run("asked", layout).folder)
    assert [one.iteration for one in more] == [2, 4]
    alone = read_evaluations(host.run("asked", "one").folder)[0]
    assert parts(alone, VALUES).keys() == set(ALL)
    assert parts(first, VALUES) == pytest.approx(parts(alone, VALUES), abs=1e-4)
    if layout != "CP2":  # which would cut the rows
        assert parts(first, PREDICTED) == parts(alone, PREDICTED)
