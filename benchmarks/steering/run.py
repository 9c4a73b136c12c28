"""Does steering help? Everything is compared with the front of the constant blends.

    python benchmarks/steering/run.py --hours 8      # what is not done yet, in order
    python benchmarks/steering/run.py --only front   # one stage
    python benchmarks/steering/run.py --table        # tables and picture of what is there
    python benchmarks/steering/run.py --kept benchmarks/steering/results/cpu.json  # go on elsewhere

Trains with real Megatron (``python -m domain_pretrain``), on a GPU if there is one. A run that is
done is never repeated; the folder ``runs/steering`` keeps them. With ``--kept``, those of another
machine's results count as done, too; a base that what is left starts from is trained anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import report  # noqa: E402
from conduct import conduct, gather  # noqa: E402
from plan import STAGES, Plan  # noqa: E402
from written import ROOT  # noqa: E402

from domain_pretrain.file_lock import hold  # noqa: E402

HERE = Path(__file__).resolve().parent


def main() -> None:
    options = parse()
    work = options.work.resolve()
    kept = {} if options.kept is None else json.loads(options.kept.read_text())["runs"]
    Plan(kept).check()
    if not options.table:
        work.mkdir(parents=True, exist_ok=True)
        lock = work / "lock"
        with lock.open("a") as file:
            hold(file, lock, f"{work} is being worked in by another process: wait, or end it")
            conduct(work, options.only, options.jobs, time.monotonic() + 3600 * options.hours, kept)
    report.write({**gather(work), **kept}, options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE")
    parser.add_argument("--hours", type=float, default=8.0, help="begin no run after (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (%(default)s)")
    parser.add_argument("--kept", type=Path, help="RESULTS.json of another machine")
    parser.add_argument("--table", action="store_true", help="of what is done; run nothing")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "steering")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
