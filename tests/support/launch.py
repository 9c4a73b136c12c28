"""Start real Megatron training on CPU with the plugin, and read what it left behind.

Runs are forked from a process that has PyTorch imported, which halves their time. Where the start
itself is in question, ``real=True`` starts Python, or torchrun, as a user does.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.forks import fork_server
from support.metrics import windows

from domain_pretrain.backends.cpu import FLAGS
from domain_pretrain.process import SINGLE_PROCESS

# Scripts that stand for a user's.
SCRIPTS = Path(__file__).parents[1] / "e2e"

# Four tiny layers: enough for PP2 x VPP2, small enough for a tenth of a second per step.
MODEL = shlex.split(
    "--num-layers 4 --hidden-size 32 --num-attention-heads 4 --ffn-hidden-size 64 "
    "--seq-length 32 --max-position-embeddings 32 --attention-dropout 0 --hidden-dropout 0 "
    # The padded vocabulary takes part in the softmax: it must not depend on the TP size.
    "--tokenizer-type NullTokenizer --vocab-size 300 --make-vocab-size-divisible-by 150 "
    "--lr 1e-2 --min-lr 1e-3 --lr-decay-style cosine "
    "--micro-batch-size 1 --global-batch-size 8 "
    "--log-interval 1 --eval-interval 1000 --eval-iters 2"
)


@dataclass(frozen=True)
class Run:
    """A finished run: its exit code, what it printed, and its log folder."""

    returncode: int
    output: str
    log_dir: Path

    def metrics(self, split: str | None = "train") -> list[dict[str, Any]]:
        """What was counted, of one split or (None) of all."""
        return windows(self.log_dir, split)

    def host_losses(self) -> list[str]:
        """Megatron's own ``lm loss`` of every logged iteration, as printed."""
        return re.findall(r"iteration +\d+/.*? lm loss: (\S+) ", self.output)

    def host_grad_norms(self) -> list[str]:
        """Megatron's own ``grad norm`` of every logged iteration, as printed."""
        return re.findall(r"iteration +\d+/.*? grad norm: (\S+) ", self.output)

    def skipped_iterations(self) -> dict[int, int]:
        """Megatron's own count of skipped iterations, at each iteration that it printed."""
        lines = re.findall(r"iteration +(\d+)/.* skipped iterations: +(\d+) ", self.output)
        return {int(iteration): int(skipped) for iteration, skipped in lines}

    def host_evaluations(self) -> list[str]:
        """Megatron's own loss of every evaluation, as printed, in order."""
        return re.findall(r"^ validation\S* loss at .*? lm loss value: (\S+) ", self.output, re.M)


# What the CPU needs; the plugin supplies these flags itself.
CPU_FLAGS = [word for flag in FLAGS for word in flag if word is not None]


def command(nproc: int, *words: str | Path, plugin: bool = True) -> list[str]:
    """``torchrun … -m domain_pretrain WORDS``; a single process needs no torchrun.

    Without the plugin, the first word is a script that torchrun or Python starts.
    """
    launcher = [sys.executable]
    if nproc > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
    return [*launcher, *(["-m", "domain_pretrain"] if plugin else []), *map(str, words)]


def environment(**extra: str) -> dict[str, str]:
    """The environment of a run: one thread a process, so that layouts do not fight for cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **extra}


def start(
    nproc: int,
    *words: str | Path,
    plugin: bool = True,
    timeout: float = 600,
    env: dict[str, str] | None = None,
    real: bool = False,
) -> tuple[int, str]:
    """Exit code and output of :func:`command`; a failed assertion where it takes longer."""
    whole = environment(**(env or {}))
    if not real:
        words = ("-m", "domain_pretrain", *words) if plugin else words
        given = [str(word) for word in words]
        return fork_server(whole).run(given, nproc=nproc, env=whole, timeout=timeout)
    done = subprocess.run(
        command(nproc, *words, plugin=plugin),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env=whole,
    )
    return done.returncode, done.stdout


def train(
    log_dir: Path,
    *flags: str | Path,
    nproc: int = 1,
    iterations: int = 4,
    script: str | Path | None = None,
    plugin: bool = True,
    installed: bool = True,
    expect: int | None = 0,
    timeout: float = 600,
    env: dict[str, str] | None = None,
    real: bool = False,
) -> Run:
    """Train to the end; fails the test with the run's output where the exit code is not ``expect``.

    Args:
        log_dir: folder for the metrics file.
        flags: further flags; a later flag wins over an earlier one.
        script: the user's script, an absolute path or a file of tests/e2e; None takes the
            built-in entry.
        plugin: whether to ask for channel loss.
        installed: False starts the script by itself, without ``-m domain_pretrain``.
        expect: the exit code; None takes any.
        real: start it as a user would, instead of forking it.
    """
    words: list[str | Path] = [SCRIPTS / script] if script else []
    words += [*MODEL, "--train-iters", str(iterations)]
    if plugin:
        words += ["--channel-loss", "--domain-log-dir", log_dir]
    if not installed:
        words += CPU_FLAGS
        env = {**(SINGLE_PROCESS if nproc == 1 else {}), **(env or {})}
    how: dict[str, Any] = {"timeout": timeout, "env": env, "real": real}
    code, output = start(nproc, *words, *flags, plugin=installed, **how)
    if expect is not None:
        assert code == expect, f"exit code {code}\n{output[-8000:]}"
    return Run(code, output, log_dir)


def start_many(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What tests/e2e/start_many.py makes of the cases: one process for all of them."""
    env = environment()
    words = [str(SCRIPTS / "start_many.py")]
    code, output = fork_server(env).run(words, env=env, stdin=json.dumps(cases))
    assert code == 0, output[-4000:]
    results: list[dict[str, Any]] = json.loads(output.splitlines()[-1])
    return results
