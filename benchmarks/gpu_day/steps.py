"""The steps as data: which, in which order, with which limits."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

START = 40  # seconds for what comes before the first step: PyTorch's import, and the wheels
PIECE_LIMIT = 540  # seconds; a piece has to fit into nine minutes, with its start

# Fills a card without Transformer Engine: unfused attention keeps no matrix of scores.
FULL = (
    "--num-layers 12 --hidden-size 1024 --num-attention-heads 16 --seq-length 2048 "
    "--max-position-embeddings 2048 --recompute-granularity selective"
)
TINY = (
    "--num-layers 2 --hidden-size 128 --num-attention-heads 4 --seq-length 128 "
    "--max-position-embeddings 128 --recompute-granularity selective"
)
TESTS = "-m pytest -q -rs -p no:cacheprovider -p gpu_day.outcomes --outcomes {out} tests/gpu -k"


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: as the command line and the files have it.
        title: what it answers.
        piece: what runs together.
        limit: seconds until all of it is over, whatever it does.
        words: of the command, after the interpreter; {out} is its JSON, {work} a folder of its own.
        rehearsal: the same on a CPU, small; None where it is the same command.
    """

    name: str
    title: str
    piece: str
    limit: int
    words: str
    rehearsal: str | None = None

    def command(self, out: Path, work: Path, *, rehearse: bool) -> list[str]:
        """The words, with the files in place."""
        words = self.rehearsal if rehearse and self.rehearsal is not None else self.words
        return [word.format(out=out, work=work) for word in shlex.split(words)]


STEPS = (
    Step("tests", "Are the kernels right?", "1", 250, f"{TESTS} 'not sanitizer'"),
    Step(
        "launches",
        "What does a microbatch launch?",
        "1",
        40,
        "benchmarks/gpu_day/launch_counts.py --out {out}",
    ),
    Step(
        "kernels",
        "How fast are the kernels?",
        "1",
        210,
        "benchmarks/domain_reduce/run.py --quick --out {out}",
    ),
    Step(
        "demo",
        "Does the demo train?",
        "2",
        200,
        "benchmarks/gpu_day/demo.py --iterations 300 --work {work} --out {out}",
        "benchmarks/gpu_day/demo.py --iterations 20 --work {work} --out {out}",
    ),
    Step(
        "step-time",
        "What does channel loss cost a step?",
        "2",
        150,
        f"benchmarks/step_time/run.py --steps 40 {FULL} --out {{out}}",
        f"benchmarks/step_time/run.py --steps 4 {TINY} --out {{out}}",
    ),
    Step(
        "step-time-reweight",
        "What does reweighting cost a step?",
        "2",
        150,
        f"benchmarks/step_time/run.py --steps 40 --reweight linupper {FULL} --out {{out}}",
        f"benchmarks/step_time/run.py --steps 4 --reweight linupper {TINY} --out {{out}}",
    ),
    Step(
        "profile",
        "What does a training step launch, and does it wait?",
        "3",
        120,
        f"benchmarks/step_time/profile_steps.py {FULL} --out {{out}}",
        f"benchmarks/step_time/profile_steps.py --steps 2 {TINY} --out {{out}}",
    ),
    Step(
        "graph",
        "Does a full-iteration CUDA graph give the same sums?",
        "3",
        160,
        "benchmarks/gpu_day/graph.py --work {work} --out {out}",
    ),
    Step("sanitizer", "Does compute-sanitizer find anything?", "3", 170, f"{TESTS} sanitizer"),
)
PIECES = tuple(dict.fromkeys(step.piece for step in STEPS))


def chosen(names: list[str]) -> list[Step]:
    """The steps of these pieces, and those of these names; all where none is named."""
    return [step for step in STEPS if not names or {step.name, step.piece} & set(names)]
