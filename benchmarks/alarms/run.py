"""Do the alarms find what is wrong, and nothing else? Planted faults and clean runs of Megatron.

``python benchmarks/alarms/run.py``: every fault with three seeds, and ten clean runs. Finished runs
are kept in ``runs/alarms``, so an interrupted experiment goes on where it stopped. The table is
``results/cpu.md``; every finding is in ``results/cpu.json``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults import FAULTS, KINDS
from judgement import judge, markdown, others
from planted_data import write
from planted_run import run
from provenance import provenance
from written import write_json

from domain_pretrain.records.events_file import plain
from domain_pretrain.records.reader import read_findings

DATA_SEEDS = 3


def main() -> None:
    """Train what is missing, and write the table."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="of every fault (%(default)s)")
    parser.add_argument("--clean", type=int, default=10, help="clean runs (%(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--table", action="store_true", help="of the runs that are done; no others")
    parser.add_argument("--runs", type=Path, default=Path("runs/alarms"))
    parser.add_argument("--results", type=Path, default=here / "results")
    args = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in args.kinds}
    for seed in range(max(args.seeds, args.clean)):
        for kind in args.kinds:
            if seed >= (args.clean if kind == "clean" else args.seeds):
                continue
            if args.table and not (args.runs / f"{kind}-{seed}" / "done.json").exists():
                continue
            corpora = args.runs.resolve() / "corpora"
            write(corpora / str(seed % DATA_SEEDS), seed % DATA_SEEDS)
            done = run(args.runs.resolve(), corpora, kind, seed, seed % DATA_SEEDS)
            runs[kind].append({**done, "seed": seed})
            print(f"{kind} {seed}: {done['seconds']} s", flush=True)
    _write(args.results, runs)
    print(markdown(runs))


def _write(results: Path, runs: dict[str, list[dict[str, Any]]]) -> None:
    told = {
        kind: [
            {
                "seed": one["seed"],
                "seconds": one["seconds"],
                "judged": {f.title: judge(f, one) for f in FAULTS if f.kind == kind},
                "unexplained": len(others(kind, one)),
                "findings": [plain(asdict(f)) for f in read_findings(Path(one["folder"]))],
            }
            for one in of_kind
        ]
        for kind, of_kind in runs.items()
    }
    write_json(results / "cpu.json", {**provenance(__file__), "runs": told})
    (results / "cpu.md").write_text(markdown(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
