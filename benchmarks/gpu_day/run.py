"""Run the GPU day, or pieces of it, and make the page of what has been written so far.

    scripts/gpu_day.sh [--wheels DIR] [--out DIR] [--piece NAME]... [--rehearse]

The wheels that scripts/gpu_wheels.sh fetched are installed into a folder of their own, which goes
at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from written import commit  # noqa: E402

from gpu_day import needs, page  # noqa: E402
from gpu_day.runner import attempt, run  # noqa: E402
from gpu_day.steps import PIECES, STEPS, chosen  # noqa: E402

WHEELS_LIMIT = 120  # seconds; it takes a few


def main() -> int:
    options = parse()
    wheels = sorted(options.wheels.resolve().glob("*.whl")) if options.wheels else []
    if options.wheels and not wheels:
        given = options.wheels
        return refuse(f"--wheels {given}: no wheel there; fill it: scripts/gpu_wheels.sh {given}")
    if not needs.found("torch"):
        return refuse(needs.obstacle())
    machine = describe()
    if not machine["gpu"] and not options.rehearse:
        return refuse("no CUDA device; --rehearse tries the machinery on a CPU")
    if machine["commit"] == "unknown":
        return refuse("git tells no commit here: say what is measured, COMMIT=hash")
    folder = options.out.resolve()
    if (not options.rehearse) in page.kinds(folder):
        return refuse(
            f"--out {options.out}: a rehearsal and a GPU's results do not share a folder; "
            "name another"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page.write(folder)
    except OSError as error:
        return refuse(f"--out {options.out}: {error.strerror}; name a folder for the results")
    ended: list[str] = []
    note_signals(ended)
    failed = False
    with tempfile.TemporaryDirectory(prefix="gpu_day-", ignore_cleanup_errors=True) as site:
        if wheels and (why := install(wheels, Path(site), folder / "wheels.log", ended)):
            return refuse(why)
        sys.path.insert(0, site)
        if why := needs.obstacle():
            return refuse(why)
        if absent := needs.missing(needs.MACHINE):  # only some steps need each
            say(f"gpu_day: this Python lacks {', '.join(absent)}: steps that need it will fail")
        paths = [ROOT / "src", BENCHMARKS, site, *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ |= {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONUNBUFFERED": "1"}
        if options.rehearse:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        for step in chosen(options.piece):
            if ended:
                break
            say(f"{step.name}: {step.title} (at most {step.limit} s)")
            record = run(step, folder, rehearse=options.rehearse, machine=machine, ended=ended)
            page.write(folder)
            say(f"{step.name}: {record['state']} {record['reason']}".rstrip())
            failed |= record["state"] in ("failed", "timed out")
    say(f"gpu_day: {folder / page.NAME}")
    return 128 + signal.Signals[ended[0]] if ended else int(failed)


def refuse(why: str) -> int:
    """Say why nothing is run; the exit code."""
    print(f"gpu_day: {why}", file=sys.stderr)
    return 2


def say(line: str) -> None:
    """Print it; a terminal or a pipe that is gone does not end the day."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def note_signals(ended: list[str]) -> None:
    """From here on, signals that end a process add their names to ``ended`` instead.

    So none comes amid the start or the end of a step, or of the page, whatever sends how many.
    """
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda came, _: ended.append(signal.Signals(came).name))


def install(wheels: list[Path], site: Path, log: Path, ended: list[str]) -> str:
    """Install wheels into ``site``, without network; why that failed, or nothing."""
    # Isolated: an image's PIP_CONSTRAINT names other versions of the same packages.
    words = "-m pip --isolated install --disable-pip-version-check --quiet --no-index --no-deps"
    words += " --no-compile --no-cache-dir --target"
    code = attempt([*words.split(), str(site), *map(str, wheels)], log, WHEELS_LIMIT, ended)
    if code == 0:
        return ""
    if ended:
        return f"ended by {ended[0]} before the first step"
    why = f"it took over {WHEELS_LIMIT} s" if code is None else log.read_text("utf-8").strip()
    return f"pip cannot install what is in {wheels[0].parent}: {why}"


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
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="what scripts/gpu_wheels.sh fetched"
    )
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
