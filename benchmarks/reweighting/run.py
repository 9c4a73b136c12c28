"""Does reweighting by channel loss help? An experiment on the demo's domains.

    python benchmarks/reweighting/run.py [--seeds 5] [--steps 400] [--jobs 1] [--work DIR]
    python benchmarks/reweighting/run.py --quick --out /tmp/quick.json     # smoke test

Trains with real Megatron (``python -m domain_pretrain``, one process a run), on a GPU if there is
one. A run that is done is never repeated: start it again after an interruption. Writes the results
as JSON, and tables and a picture beside it (report.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent)]

import corpora  # noqa: E402
import report  # noqa: E402
from arms import ARMS, REWEIGHT  # noqa: E402
from experiment import Experiment  # noqa: E402
from training import MODEL  # noqa: E402

EVALUATIONS = 80  # batches, 427 sequences of each domain: all that is held out of code


def main() -> None:
    options = parse()
    data = options.work / "corpora"
    experiment = Experiment(
        work=options.work,
        corpora=data,
        tokenizer=corpora.build(data),
        arms=tuple(options.arms),
        seeds=2 if options.quick else options.seeds,
        steps=40 if options.quick else options.steps,
        evaluations=8 if options.quick else EVALUATIONS,
        most_rates=1 if options.quick else 7,
        jobs=options.jobs,
    )
    result = {
        "what": "validation loss by domain, unweighted, under reweighting and its controls",
        "command": command(options),
        **machine(),
        "steps": experiment.steps,
        "model": " ".join(MODEL),
        "reweight": REWEIGHT,
        "arms": experiment.conduct(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result) + "\n")
    report.write(options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=5, help="of the comparison (%(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="of each run (%(default)s)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="2 seeds, 40 steps: a smoke test")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "reweighting")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu.json")
    options = parser.parse_args()
    options.work = options.work.resolve() / ("quick" if options.quick else "full")
    return options


def command(options: argparse.Namespace) -> str:
    """What repeats it, wherever the clone lies."""
    words = ["python", "benchmarks/reweighting/run.py"]
    words += (
        ["--quick"]
        if options.quick
        else ["--seeds", str(options.seeds), "--steps", str(options.steps)]
    )
    words += [] if options.arms == list(ARMS) else ["--arms", *options.arms]
    return " ".join(words)


def machine() -> dict[str, Any]:
    """Where, on what and with what it was measured."""
    import torch

    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu(),
        "commit": commit,
        "date": date.today().isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "megatron-core", "numpy")},
        },
    }


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((ln.split(":")[1].strip() for ln in lines if ln.startswith("model name")), "")
    return f"{os.cpu_count()} x {model or platform.processor()}"


if __name__ == "__main__":
    main()
