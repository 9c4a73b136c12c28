"""Run the GPU day, or pieces of it, and make the page of what has been written so far.

    scripts/gpu_day.sh [--wheels DIR] [--out DIR] [--piece NAME]... [--rehearse]

scripts/gpu_day.sh prepares the environment and starts this.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from written import commit  # noqa: E402

from gpu_day import page  # noqa: E402
from gpu_day.runner import run  # noqa: E402
from gpu_day.steps import PIECES, STEPS, chosen  # noqa: E402


def main() -> int:
    options = parse()
    machine = describe()
    if not machine["gpu"] and not options.rehearse:
        print("gpu_day: no CUDA device; --rehearse tries the machinery on a CPU", file=sys.stderr)
        return 2
    if machine["commit"] == "unknown":
        print("gpu_day: no git here: say what is measured, COMMIT=hash", file=sys.stderr)
        return 2
    folder = options.out.resolve()
    if (not options.rehearse) in page.kinds(folder):
        print(
            f"gpu_day: --out {options.out}: a rehearsal and a GPU's results do not share a folder; "
            "name another",
            file=sys.stderr,
        )
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    paths = [ROOT / "src", BENCHMARKS, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONUNBUFFERED": "1"}
    if options.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Ended by somebody else's time limit, it ends its step and makes the page of what is there.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failed = False
    try:
        for step in chosen(options.piece):
            print(f"{step.name}: {step.title} (at most {step.limit} s)", flush=True)
            record = run(step, folder, rehearse=options.rehearse, machine=machine)
            print(f"{step.name}: {record['state']} {record['reason']}".rstrip(), flush=True)
            failed |= record["state"] in ("failed", "timed out")
            page.write(folder)
    finally:
        page.write(folder)
    print(f"gpu_day: {folder / page.NAME}")
    return int(failed)


def describe() -> dict[str, str]:
    """What it runs on; "gpu" is empty without one."""
    import torch

    found = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name() if found else "",
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_day.sh",
        description=__doc__.splitlines()[0],  # type: ignore[union-attr]
        allow_abbrev=False,
    )
    parser.add_argument("--wheels", metavar="DIR", help="what scripts/gpu_wheels.sh fetched")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "runs" / "gpu_day",
        metavar="DIR",
        help="folder of the results; a piece adds to what is there (runs/gpu_day)",
    )
    names = [*PIECES, *(step.name for step in STEPS)]
    parser.add_argument(
        "--piece",
        action="append",
        default=[],
        choices=names,
        metavar="NAME",
        help=f"run only this, of {', '.join(names)}; may be repeated",
    )
    parser.add_argument("--rehearse", action="store_true", help="small, on a CPU")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
