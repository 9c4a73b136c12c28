"""The demo, and what it has learnt so far, as JSON while it trains.

python benchmarks/gpu_day/demo.py --work FOLDER [--iterations 300] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

from written import write_json  # noqa: E402

from domain_pretrain.report.history import read_history  # noqa: E402
from domain_pretrain.report.table import summarise  # noqa: E402

METRICS = "domain_metrics.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--work", type=Path, required=True, help="folder for all it writes")
    parser.add_argument("--iterations", type=int, default=300, help="of continued pretraining")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    words = ["demo", "--out", str(options.work), "--iterations", str(options.iterations)]
    process = subprocess.Popen([sys.executable, "-m", "domain_pretrain.commands", *words])
    code = None
    while code is None:
        time.sleep(1)
        code = process.poll()
        write_json(options.out, {"phases": phases(options.work)})
    sys.exit(code)


def phases(folder: Path) -> dict[str, Any]:
    """Of each phase: how far it is, and each domain's loss at its start and its end, nats."""
    found = {}
    for name in ("base", "continued"):
        if (folder / name / METRICS).is_file():
            history = read_history(folder / name)
            found[name] = {
                "iteration": history.end_iteration,
                "domains": {
                    summary.domain: [summary.start.value, summary.end.value]
                    for summary in summarise(history)
                    if summary.start is not None and summary.end is not None
                },
            }
    return found


if __name__ == "__main__":
    main()
