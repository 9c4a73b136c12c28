"""Does steering help? Everything is compared with the front of the constant blends.

    python benchmarks/steering/run.py --hours 8      # what is not done yet, in order
    python benchmarks/steering/run.py --only front   # one stage
    python benchmarks/steering/run.py --table        # tables and picture of what is there

Trains with real Megatron (``python -m domain_pretrain``), on a GPU if there is one. A run that is
done is never repeated; the folder ``runs/steering`` keeps them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import corpora  # noqa: E402
import report  # noqa: E402
from plan import STAGES, Plan  # noqa: E402
from training import Run, result_of  # noqa: E402
from written import ROOT  # noqa: E402

from domain_pretrain.file_lock import hold  # noqa: E402

HERE = Path(__file__).resolve().parent


def main() -> None:
    options = parse()
    work = options.work.resolve()
    if not options.table:
        work.mkdir(parents=True, exist_ok=True)
        lock = work / "lock"
        with lock.open("a") as file:
            hold(file, lock, f"{work} is being worked in by another process: wait, or end it")
            conduct(work, options.only, options.jobs, time.monotonic() + 3600 * options.hours)
    report.write(gather(work), options.out)


def conduct(work: Path, only: list[str], jobs: int, end: float) -> None:
    """Run what is not done, ``jobs`` at a time; none is begun after ``end``, of the monotonic
    clock. One that fails is told, and left out."""
    data = work / "corpora"
    tokenizer = corpora.build(data)
    begun: set[str] = set()
    running: set[Future[None]] = set()

    def conducted(run: Run) -> None:
        try:
            result = result_of(run, data, tokenizer, work)
        except RuntimeError as error:
            print(f"{run.name}: {error}", file=sys.stderr, flush=True)
            return
        losses = "  ".join(f"{name} {loss:.4f}" for name, loss in result["test"].items())
        print(f"{run.name:<48} {losses}  ({result['seconds']:.0f} s)", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        while True:
            done = gather(work)
            left = [
                run
                for stage, runs in Plan(done).stages().items()
                if stage in only
                for run in runs
                if run.name not in begun and (run.base is None or run.base in done)
            ]
            while left and len(running) < jobs and time.monotonic() < end:
                run = left.pop(0)
                begun.add(run.name)
                running.add(pool.submit(conducted, run))
            if not running:
                return
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for one in ended:
                one.result()  # what is not Megatron's failure ends the experiment


def gather(work: Path) -> dict[str, Any]:
    """What is done, by the name of the run."""
    return {
        str(file.parent.relative_to(work)): json.loads(file.read_text())["result"]
        for file in sorted(work.glob("*/*/result.json"))
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE")
    parser.add_argument("--hours", type=float, default=8.0, help="begin no run after (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (%(default)s)")
    parser.add_argument("--table", action="store_true", help="of what is done; run nothing")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "steering")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
