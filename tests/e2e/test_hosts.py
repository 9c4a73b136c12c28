"""Every check in every layout, on the Megatron in the folder that MEGATRON_LM_PATH names.

A checkout runs its own unmodified pretrain_gpt.py; an unpacked wheel, which has none, the built-in
entry. ``make hosts`` runs this file on all versions and writes docs/hosts-matrix.md from the names
and outcomes of its tests: ``test_CHECK[LAYOUT]``.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host_runs import DOMAINS, LAYOUTS, METRICS, STEPS, Host, fork_server
from test_off_is_off import assert_same_checkpoint, assert_same_training

from domain_pretrain.backends import cpu
from domain_pretrain.hosts.megatron import SEAMS
from domain_pretrain.hosts.versions import host_version
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
) -> Iterator[Host]:
    record_testsuite_property("host", host_version(HOST / "megatron"))
    record_testsuite_property("python", platform.python_version())
    record_testsuite_property("torch", torch.__version__)
    folder = tmp_path_factory.mktemp("hosts")
    with fork_server(HOST, folder) as server:
        yield Host(HOST, folder, blend, corpora, server)


def test_seams(record_testsuite_property: Callable[[str, object], None]) -> None:
    """All seams fit, by the host's source alone, in less than a second."""
    start = time.perf_counter()
    problems = [check(seam, HOST / "megatron") for seam in SEAMS]
    seconds = time.perf_counter() - start
    assert problems == [None] * len(SEAMS)
    assert seconds < 1
    record_testsuite_property("seams", f"{len(SEAMS)} in {seconds:.2f} s")


# --- channel loss ------------------------------------------------------------------------------


@each_layout
def test_channel_loss(layout: str, host: Host) -> None:
    """Float64 sums of the losses that the ranks recorded, the host's own loss, one process."""
    run = host.run("weighted", layout).run
    entries, expected = run.metrics(), oracle(run.log_dir, layout)
    assert len(entries) == STEPS
    for entry, domains in zip(entries, expected, strict=True):
        assert entry["domains"].keys() == domains.keys()
        for name, (loss_sum, tokens) in domains.items():
            assert entry["domains"][name]["tokens"] == tokens
            assert abs(entry["domains"][name]["loss_sum"] - loss_sum) <= tokens * 2**-25
    # At iteration 2 Megatron's printed mean still holds iteration 1.
    printed = [float(loss) for loss in run.host_losses()]
    assert printed[2:] == pytest.approx([e["lm_loss"] for e in entries[2:]], rel=1e-6)
    assert_same_losses(entries, host.run("weighted", "one").run.metrics())


def oracle(folder: Path, layout: str) -> list[dict[str, tuple[float, int]]]:
    """By step and domain, Σ mask·loss and Σ mask over all ranks, told by the text itself."""
    steps: list[dict[str, Any]] = [{} for _ in range(STEPS)]
    files = sorted(folder.glob("records*.npz"))
    # TP ranks record the same losses; of a pipeline, only the last stage has any.
    for file in files[:1] if layout == "TP2" else files:
        record = np.load(file)
        for step, losses, mask, labels in zip(
            *(record[key] for key in ("step", "losses", "mask", "labels")), strict=True
        ):
            name = DOMAINS[int(labels[labels < 250][0]) // 50]
            loss_sum, tokens = steps[step - 1].get(name, (0.0, 0))
            loss_sum += float(np.sum(losses.astype(np.float64) * mask))
            steps[step - 1][name] = (loss_sum, tokens + int(mask.sum()))
    return steps


def assert_same_losses(got: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for want, have in zip(expected, got, strict=True):
        assert have["domains"].keys() == want["domains"].keys()
        for name, domain in want["domains"].items():
            assert have["domains"][name]["tokens"] == domain["tokens"]
            assert have["domains"][name]["loss"] == pytest.approx(domain["loss"], rel=1e-5)


# --- gradients ---------------------------------------------------------------------------------


@each_layout
def test_gradients(layout: str, host: Host) -> None:
    """Every parameter of every rank has its part of autograd's gradient of the formula."""
    formula = host.run("weighted", "one").folder
    expected, plain = load(formula / "weighted.npz"), load(formula / "plain.npz")
    assert all(error(plain[name], want) > 1e-3 for name, want in expected.items())
    folder, found = host.run("weighted", layout).folder, set()
    for rank in range(LAYOUTS[layout][0]):
        for key, got in load(folder / f"gradients{rank}.npz").items():
            name, dim, part = key.split("@")
            want = expected[name]
            if int(dim) >= 0:
                want = np.split(want, want.shape[int(dim)] // got.shape[int(dim)], int(dim))[
                    int(part)
                ]
            assert error(got, want) <= 1e-5, (rank, name)
            found.add(name)
    assert found == expected.keys()


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


# --- off is off --------------------------------------------------------------------------------


@each_parallel_layout
def test_off_is_off(layout: str, host: Host) -> None:
    """With channel loss: the host's own losses, gradient norms and checkpoint, in all bits."""
    counted, alone = host.run("counted", layout), host.run("alone", layout)
    assert len(counted.run.metrics()) == STEPS
    assert not list(alone.folder.glob("domain_metrics*"))
    assert_same_training(counted, alone)


# --- resume ------------------------------------------------------------------------------------


@each_parallel_layout
def test_resume(layout: str, host: Host) -> None:
    """The metrics file, the gradient norms and the final checkpoint of the unbroken run."""
    resumed, unbroken = host.run("resumed", layout), host.run("weighted", layout)
    files = [observed.folder / METRICS for observed in (resumed, unbroken)]
    assert files[0].read_bytes() == files[1].read_bytes()
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
    entries = [entry for entry in run.metrics(None) if entry["split"] != "train"]
    assert [(e["split"], e["iteration"]) for e in entries] == [
        *(("valid", 2), ("valid", 4), ("valid", 4), ("test", 4))
    ]
    printed = [float(loss) for loss in run.host_evaluations()]
    assert [mean(entry) for entry in entries] == pytest.approx(printed, rel=2e-6)
    for entry in entries:
        assert sum(d["samples"] for d in entry["domains"].values()) == 8
    for split in ("valid", "test"):
        assert_same_losses(run.metrics(split), alone.metrics(split))


def mean(entry: dict[str, Any]) -> float:
    domains = entry["domains"].values()
    return sum(d["loss_sum"] for d in domains) / sum(d["tokens"] for d in domains)
