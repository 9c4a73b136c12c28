"""Every check in every layout, on the Megatron in the folder that MEGATRON_LM_PATH names.

A checkout runs its own unmodified pretrain_gpt.py; an unpacked wheel, which has none, the built-in
entry. ``make hosts`` runs this file on all versions and writes docs/hosts-matrix.md from the names
and outcomes of its tests: ``test_CHECK[LAYOUT]``.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import MODEL, Run, environment
from test_off_is_off import Observed, assert_same_checkpoint, assert_same_training

from domain_pretrain.hosts.megatron import SEAMS
from domain_pretrain.hosts.seams import check
from domain_pretrain.hosts.versions import host_version

HOST = os.environ.get("MEGATRON_LM_PATH", "")
HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.checkout,
    pytest.mark.skipif(not HOST, reason="no checkout: set MEGATRON_LM_PATH"),
]

PP2 = "--pipeline-model-parallel-size 2"
LAYOUTS = {
    "one": (1, ""),
    "DP2": (2, ""),
    "TP2": (2, "--tensor-model-parallel-size 2 --make-vocab-size-divisible-by 304"),
    "PP2": (2, PP2),
    "PP2xVPP2": (2, f"{PP2} --num-layers-per-virtual-pipeline-stage 1"),
    "CP2": (2, "--context-parallel-size 2"),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_parallel_layout = pytest.mark.parametrize("layout", list(LAYOUTS)[1:])

DOMAINS = ("finance", "general", "code", "maths", "rare")
WEIGHTS = {"finance": 3.0, "general": 0.7, "code": 1.9, "maths": 0.2, "rare": 5.0}
CONFIG = {
    "strategy": "static",
    "weights": WEIGHTS,
    "warmup_steps": 0,
    "blend": 0,
    "clip": [0, 1000],
}
STEPS = 4
METRICS = "domain_metrics.jsonl"
# The padded vocabulary takes part in the softmax: it must not depend on the TP size or tokenizer.
COMMON = shlex.split(
    f"--train-iters {STEPS} --eval-interval 2 --eval-iters 1 --ckpt-format torch "
    "--make-vocab-size-divisible-by 608"
)
# The first step has learning rate 0, so that the second starts from the same weights everywhere.
WEIGHTED = shlex.split(
    "--calculate-per-token-loss --eod-mask-loss --lr-warmup-iters 2 --clip-grad 0 --save-interval 2"
)
# Dropout, so that a random number too many would show.
PLAIN = shlex.split("--attention-dropout 0.1 --hidden-dropout 0.1 --save-interval 100")


class Host:
    """Runs of one Megatron, each made once and shared by the checks."""

    def __init__(self, folder: Path, blend: list[str], corpora: Path, server: Any) -> None:
        self.folder, self.blend, self.corpora, self.server = folder, blend, corpora, server
        self.runs: dict[tuple[str, str], Observed] = {}
        script = Path(HOST, "pretrain_gpt.py")
        self.script = [script] if script.is_file() else []
        version = host_version(Path(HOST, "megatron"))
        # Token 256 ends a document; until 0.17 the tokenizer adds that token to the vocabulary.
        vocabulary = 256 if version.release < (0, 18) else 257
        self.common = [*MODEL, *COMMON, "--vocab-size", str(vocabulary)]

    def run(self, name: str, layout: str) -> Observed:
        """The run ``name`` of :data:`RUNS` in a layout, made at first use; it must end well."""
        if (name, layout) not in self.runs:
            self.runs[name, layout] = RUNS[name](self, layout)
        observed = self.runs[name, layout]
        assert observed.run.returncode == 0, observed.run.output[-6000:]
        return observed

    def _start(self, name: str, layout: str, *words: Any, plugin: bool, **env: str) -> Observed:
        folder = self.folder / f"{name}-{layout}"
        folder.mkdir(exist_ok=True)
        nproc, flags = LAYOUTS[layout]
        words = (*words, *flags.split())
        job = {
            "module": "domain_pretrain" if plugin else None,
            "words": [str(word) for word in words],
            "env": env,
            "nproc": nproc,
            "log": str(folder / "output.txt"),
            "timeout": 240,
        }
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        codes = json.loads(self.server.stdout.readline())
        output = (folder / "output.txt").read_text(errors="replace")
        return Observed(Run(max(map(abs, codes)), output, folder), folder)

    def _weighted(self, name: str, layout: str) -> list[str | Path]:
        config = self.folder / "weighted.yaml"
        config.write_text(json.dumps({"reweight": CONFIG}))
        log = self.folder / f"{name}-{layout}"
        plugin = ["--domain-config", config, "--domain-log-dir", log]
        return [*self.common, *WEIGHTED, *self.blend, *plugin, "--save", log / "checkpoint"]

    def weighted(self, layout: str) -> Observed:
        """Reweighted training, with losses and gradients recorded."""
        log = self.folder / f"weighted-{layout}"
        env = {"RECORD_DIR": str(log), "WEIGHTS": json.dumps(list(WEIGHTS.values()))}
        words = [HERE / "host_gpt.py", *self._weighted("weighted", layout)]
        return self._start("weighted", layout, *words, plugin=True, **env)

    def resumed(self, layout: str) -> Observed:
        """The same from step 2 on, in the folder that a crash in step 4 leaves."""
        unbroken = self.run("weighted", layout).folder
        log = self.folder / f"resumed-{layout}"
        shutil.copytree(unbroken / "checkpoint", log / "checkpoint")
        shutil.rmtree(log / "checkpoint" / "iter_0000004")
        (log / "checkpoint" / "latest_checkpointed_iteration.txt").write_text("2")
        lines = (unbroken / METRICS).read_text().splitlines(keepends=True)
        (log / METRICS).write_text("".join(lines[:4]) + lines[4][:20])
        words = [*self.script, *self._weighted("resumed", layout), "--load", log / "checkpoint"]
        return self._start("resumed", layout, *words, plugin=True)

    def _plain(self, name: str, layout: str) -> list[str | Path]:
        # Upstream cannot run a blend under CP since 0.18: the host alone gets a single corpus.
        data = ["--split", "80,10,10", "--data-path", self.corpora / "general"]
        data = data if layout == "CP2" else self.blend
        save = ["--save", self.folder / f"{name}-{layout}" / "checkpoint"]
        return [*self.common, *PLAIN, *data, *save]

    def alone(self, layout: str) -> Observed:
        """The host without the plugin; only the CPU backend, which it needs to run here."""
        words = [HERE / "host_gpt.py", *self._plain("alone", layout)]
        return self._start("alone", layout, *words, plugin=False)

    def counted(self, layout: str) -> Observed:
        """The same training with channel loss."""
        log = self.folder / f"counted-{layout}"
        words = [*self.script, *self._plain("counted", layout)]
        words += ["--channel-loss", "--domain-log-dir", log]
        return self._start("counted", layout, *words, plugin=True)


RUNS = {
    "weighted": Host.weighted,
    "resumed": Host.resumed,
    "alone": Host.alone,
    "counted": Host.counted,
}


@pytest.fixture(scope="session")
def host(
    tmp_path_factory: pytest.TempPathFactory,
    blend: list[str],
    corpora: Path,
    record_testsuite_property: Callable[[str, object], None],
) -> Iterator[Host]:
    record_testsuite_property("host", host_version(Path(HOST, "megatron")))
    record_testsuite_property("python", platform.python_version())
    record_testsuite_property("torch", torch.__version__)
    folder = tmp_path_factory.mktemp("hosts")
    python_path = os.pathsep.join([HOST, os.environ.get("PYTHONPATH", "")])
    path = os.pathsep.join([str(tools(folder / "bin")), os.environ["PATH"]])
    # Megatron's bytecode is kept, but not in the user's checkout.
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    compiler = {"TORCHDYNAMO_DISABLE": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    env = environment(PYTHONPATH=python_path, PATH=path, **compiler, **bytecode)
    server = subprocess.Popen(
        [sys.executable, HERE / "fork_server.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    with server:
        yield Host(folder, blend, corpora, server)


def tools(folder: Path) -> Path:
    """The ``python3`` and ``python3-config`` that a checkout compiles its dataset helper with."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    scripts = {"python3": f'exec "{sys.executable}" "$@"', "python3-config": f"echo {suffix}"}
    folder.mkdir()
    for name, line in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return folder


def test_seams(record_testsuite_property: Callable[[str, object], None]) -> None:
    """All seams fit, by the host's source alone, in less than a second."""
    start = time.perf_counter()
    problems = [check(seam, Path(HOST, "megatron")) for seam in SEAMS]
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
