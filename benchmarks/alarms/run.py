"""Do the alarms find what is wrong, and nothing else? Planted faults and clean runs of Megatron.

``python benchmarks/alarms/run.py``: every fault with three seeds, and ten clean runs. Finished runs
are kept in ``runs/alarms``, so an interrupted experiment goes on where it stopped. The table is
``results/cpu.md``; every finding is in ``results/cpu.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults import KINDS
from judgement import markdown, told
from planted_data import write
from planted_run import run
from provenance import provenance
from written import write_json

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
    print(_write(args.results, runs))


def _write(results: Path, runs: dict[str, list[dict[str, Any]]]) -> str:
    """The table; kinds that were not asked for are as an earlier command has left them."""
    file, of = results / "cpu.json", provenance(__file__)
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"runs": {}}
    new = {
        kind: [{**told(kind, one), "by": of} for one in of_kind] for kind, of_kind in runs.items()
    }
    both = {kind: one for kind in KINDS if (one := new.get(kind) or kept["runs"].get(kind))}
    here = f"{Path.cwd()}/"  # documents are named by where the runs lie, which is a machine's own
    write_json(file, json.loads(json.dumps({**of, "runs": both}).replace(here, "")))
    table = markdown(both)
    (results / "cpu.md").write_text(table, encoding="utf-8")
    return table


if __name__ == "__main__":
    main()
