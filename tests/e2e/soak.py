#!/usr/bin/env python3
"""Kill a run again and again at random moments, and compare what it leaves with an unbroken one.

    python tests/e2e/soak.py --kills 60 --work /tmp/soak

Two ranks (DP 2, or ``--layout``) train a small model on the CPU, with reweighting, evaluations and
frequent checkpoints, started as scripts/pretrain_gpu.sh starts them: ``-m domain_pretrain.launch``.
Each attempt is ended by SIGKILL: one rank or both, while training, while a checkpoint is being
saved, or while starting up. After some kills it is made to look as if the machine had crashed: a
line of the metrics file is torn, the newest checkpoint cut off, or the tracker empty. At the end
what the metrics file counts has to be that of the unbroken run byte for byte, TensorBoard's points
and the final weights equal. Exits with 1 and the differences where they are not.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(1, str(ROOT / "tests"))

from support import board  # noqa: E402
from support.fork_server import Job, fork_ranks, preload  # noqa: E402
from support.metrics import METRICS, counted  # noqa: E402

LAYOUTS = {
    "DP2": [],
    "TP2": ["--tensor-model-parallel-size", "2"],
    "PP2": ["--pipeline-model-parallel-size", "2"],
}
TRACKER = "latest_checkpointed_iteration.txt"
RANKS = 2
FLAGS = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 "
    "--seq-length 32 --max-position-embeddings 32 --attention-dropout 0 --hidden-dropout 0 "
    "--split 90,10,0 --calculate-per-token-loss "
    "--tokenizer-type NullTokenizer --vocab-size 257 --make-vocab-size-divisible-by 288 "
    "--lr 1e-2 --min-lr 1e-3 --lr-decay-style cosine --micro-batch-size 2 --global-batch-size 4 "
    # None divides another, so that kills fall into open windows of every kind.
    "--log-interval 3 --tensorboard-log-interval 5 --save-interval 4 --eval-interval 35 "
    "--eval-iters 1 --distributed-timeout-minutes 1"
)
CONFIG = """
domains:
  pages: {{data: [{0}/pages], weight: 5, pinned: true}}
  code: {{data: [{0}/code], weight: 1}}
  tests: {{data: [{0}/tests], weight: 1}}
reweight: {{strategy: linupper, warmup_steps: 20}}
"""


def prepare_corpora(folder: Path) -> None:
    """This repository's own text, a document per paragraph."""
    from domain_pretrain.prepare.corpus import prepare

    for name, pattern in (
        ("pages", "docs/*.md"),
        ("code", "src/**/*.py"),
        ("tests", "tests/**/*.py"),
    ):
        text = "\n".join(p.read_text("utf-8") for p in sorted(ROOT.glob(pattern)))
        lines = [json.dumps({"text": part}) for part in text.split("\n\n") if part.strip()]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
        prepare([folder / f"{name}.jsonl"], folder / name, "bytes", workers=1)
    (folder / "domains.yaml").write_text(CONFIG.format(folder))


class Attempt:
    """The ranks of one start, forked from here, where PyTorch is imported already."""

    def __init__(self, folder: Path, words: list[str], log: Path) -> None:
        self.log = log
        self._metrics = folder / METRICS
        self.began = time.monotonic()
        job: Job = {
            "words": ["-m", "domain_pretrain.launch", *words],
            "env": {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            "cwd": str(Path.cwd()),
            "nproc": RANKS,
            "log": str(log),
            "stdin": os.devnull,
            "timeout": 0,  # nobody asks
        }
        self.ranks = fork_ranks(job)

    def text(self) -> str:
        """What the ranks have said so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_for(self, words: str, times: int = 1, timeout: float = 300) -> bool:
        """Until ``words`` have been said so often; False where the ranks end before."""
        end = time.monotonic() + timeout
        while self.text().count(words) < times:
            if self.ended() or time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def ended(self) -> bool:
        """Whether no rank is left, or one of them has ended by itself."""
        return any(os.waitid(os.P_PID, r, os.WEXITED | os.WNOWAIT | os.WNOHANG) for r in self.ranks)

    def kill(self, ranks: list[int]) -> None:
        """SIGKILL to these ranks' process groups, their checkpoint writers among them; the others
        follow, as torchrun has it."""
        for position in ranks:
            _kill_group(self.ranks[position])
        if len(ranks) < RANKS:
            time.sleep(0.3)
        for process in self.ranks:
            _kill_group(process)
        for process in self.ranks:
            os.waitpid(process, 0)

    def wait(self) -> list[int]:
        """Exit codes, when all have ended by themselves."""
        return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in self.ranks]


def _kill_group(process: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


def words_of(folder: Path, data: Path, options: argparse.Namespace) -> list[str]:
    """The command line of a run in ``folder``; the same for every attempt."""
    paths = {
        "--train-iters": options.iterations,
        "--domain-config": data / "domains.yaml",
        "--domain-log-dir": folder,
        "--tensorboard-dir": folder / "tensorboard",
        "--save": folder / "checkpoints",
        "--load": folder / "checkpoints",
        "--data-cache-path": data / "cache",
    }
    layout = [*LAYOUTS[options.layout], *(["--async-save"] if options.async_save else [])]
    return [*FLAGS.split(), *layout, *(str(word) for pair in paths.items() for word in pair)]


def injure(attempt: Attempt, dice: random.Random, startup_s: float) -> str | None:
    """Kill the attempt at a random moment; says how, or None where it ended before."""
    kind = dice.choices(("training", "saving", "starting"), (60, 25, 15))[0]
    if kind == "starting":
        time.sleep(dice.uniform(0, startup_s))
    else:
        said = "saving checkpoint at" if kind == "saving" else "] iteration "
        if not attempt.wait_for(said, times=dice.randint(1, 4)):
            return None
        time.sleep(dice.uniform(0, 0.15 if kind == "saving" else 0.5))
    if attempt.ended():
        return None
    whom = dice.choice(([0], [1], [0, 1]))
    attempt.kill(whom)
    return f"{kind}, {'both ranks' if len(whom) == RANKS else f'rank {whom[0]}'}"


def crash(folder: Path, dice: random.Random) -> str | None:
    """Leave what a crash of the machine may leave behind a kill; says what, mostly nothing."""
    checkpoints = sorted((folder / "checkpoints").glob("iter_*/metadata.json"))
    kind = dice.choices(("", "line", "checkpoint", "tracker"), (70, 10, 10, 10))[0]
    if kind == "line" and (folder / METRICS).exists():
        with open(folder / METRICS, "ab") as file:
            file.write(b'{"iteration": 99')
        return "a torn line"
    if kind == "checkpoint" and len(checkpoints) > 1:
        largest = max(checkpoints[-1].parent.iterdir(), key=lambda path: path.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)
        return "a checkpoint cut off"
    if kind == "tracker" and checkpoints:
        os.truncate(folder / "checkpoints" / TRACKER, 0)
        return "an empty tracker"
    return None


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Our TensorBoard points, the last one written of each step."""
    return {
        tag: sorted(dict(curve).items())
        for tag, curve in board.points(folder / "tensorboard").items()
        if tag.startswith(("channel-", "reweighting"))
    }


def weights(folder: Path, iteration: int) -> dict[str, bytes]:
    """Every tensor of a checkpoint, as bytes."""
    import torch
    from support.checkpoints import read_tensors

    state = read_tensors(folder / "checkpoints" / f"iter_{iteration:07d}")
    return {name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in state.items()}


def differences(broken: Path, unbroken: Path, iterations: int) -> list[str]:
    """What differs between the two runs, a line each."""
    found = []
    have, want = (counted(folder).splitlines() for folder in (broken, unbroken))
    if have != want:
        first = next((i for i, pair in enumerate(zip(have, want)) if pair[0] != pair[1]), None)  # noqa: B905
        found.append(
            f"{METRICS}: {len(have)} and {len(want)} lines, the first other one is {first}"
        )
    if points(broken) != points(unbroken):
        found.append("TensorBoard's points")
    if weights(broken, iterations) != weights(unbroken, iterations):
        found.append("the final checkpoint's tensors")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--iterations", type=int, default=350)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", choices=LAYOUTS, default="DP2")
    parser.add_argument("--async-save", action="store_true", help="Megatron's flag")
    parser.add_argument("--work", type=Path, required=True, help="an empty or new folder")
    options = parser.parse_args()
    preload()
    work, dice = options.work.resolve(), random.Random(options.seed)
    data, broken, unbroken = work / "data", work / "broken", work / "unbroken"
    for folder in (broken, unbroken):
        folder.mkdir(parents=True)
    preparing = os.fork()  # it imports Megatron, which every rank does for itself
    if preparing == 0:
        prepare_corpora(data)
        os._exit(0)
    os.waitpid(preparing, 0)

    print("the unbroken run ...", flush=True)
    reference = Attempt(unbroken, words_of(unbroken, data, options), work / "unbroken.log")
    assert reference.wait_for("] iteration "), reference.text()[-3000:]
    startup_s = time.monotonic() - reference.began
    codes = reference.wait()
    took = time.monotonic() - reference.began
    assert codes == [0] * RANKS, reference.text()[-3000:]
    print(f"  {took:.0f} s, of them {startup_s:.0f} s start-up", flush=True)

    kinds: collections.Counter[str] = collections.Counter()
    debris: collections.Counter[str] = collections.Counter()
    began, attempts, kills, ended = time.monotonic(), 0, 0, False
    while not ended:
        log = work / f"attempt_{attempts:03d}.log"
        attempt = Attempt(broken, words_of(broken, data, options), log)
        attempts += 1
        how = injure(attempt, dice, startup_s) if kills < options.kills else None
        if how is None:
            codes = attempt.wait()
            if codes != [0] * RANKS:
                print(f"attempt {attempts - 1} ended with {codes}:\n{attempt.text()[-3000:]}")
                return 1
            ended = True
            continue
        kills += 1
        kinds[how] += 1
        left = crash(broken, dice)
        if left:
            debris[left] += 1
        tracker = broken / "checkpoints" / TRACKER
        reached = tracker.read_text() if tracker.exists() else "-"
        print(f"kill {kills:3d}: {how}; tracker {reached or 'empty'}; {left or ''}", flush=True)

    print(f"\n{kills} kills, {attempts} attempts, {time.monotonic() - began:.0f} s\n")
    for title, counter in (("killed while", kinds), ("left behind", debris)):
        print(f"| {title} | times |\n|---|---|")
        for name, count in sorted(counter.items()):
            print(f"| {name} | {count} |")
        print()
    found = differences(broken, unbroken, options.iterations)
    lines = counted(broken).splitlines()
    print(f"{len(lines)} metric lines; differences from the unbroken run: {found or 'none'}")
    if kills < options.kills:
        print(f"the run ended before its {options.kills} kills: raise --iterations")
        return 1
    if not found:
        shutil.rmtree(work)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
