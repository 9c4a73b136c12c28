"""One step as a process of its own, with a time limit, whose end is written down whatever it is."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from written import ROOT, write_json

from gpu_day.steps import Step

NOT_RUN = 77  # exit code of a step that cannot run here; its last line says why, as automake has it
TAIL = 15  # lines of its output that the page shows
GRACE = 10.0  # seconds of a limit that are kept for ending what does not heed the first signal
MARK = "GPU_DAY_PROCESS"  # a variable that a process hands on to all that it starts


def run(
    step: Step,
    folder: Path,
    *,
    rehearse: bool = False,
    machine: dict[str, str] | None = None,
    ended: Sequence[str] = (),
) -> dict[str, Any]:
    """Run ``step`` and return its record, which is in ``folder/NAME.run.json`` all the while.

    Its output goes to ``NAME.log``, its numbers to ``NAME.json``. An older run's files go first, so
    that no number is taken for one of this run.

    Args:
        step: to run.
        folder: of the results.
        rehearse: run its small form.
        machine: what the record says of where it ran.
        ended: names of the signals that came so far; the first one ends the step.
    """
    out, log = folder / f"{step.name}.json", folder / f"{step.name}.log"
    work = folder / "work" / step.name
    out.unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)
    words = step.command(out, work, rehearse=rehearse)
    record: dict[str, Any] = {
        "state": "running",
        "command": shlex.join(
            ["python", *step.command(Path(out.name), Path(work.name), rehearse=rehearse)]
        ),
        "limit_s": step.limit,
        "rehearsal": rehearse,
        **(machine or {}),
    }
    write_json(record_of(step, folder), record)
    began = time.monotonic()
    code = attempt(words, log, step.limit, ended)
    lines = log.read_text("utf-8", errors="replace").splitlines()
    why = f"by {ended[0]}" if ended else f"ended by its limit of {step.limit} s"
    record |= {
        "state": state(code, ended),
        "code": code,
        "seconds": time.monotonic() - began,
        "reason": why if code is None else reason(code, lines),
        "tail": [] if code == 0 else lines[-TAIL:],
    }
    write_json(record_of(step, folder), record)
    return record


def record_of(step: Step, folder: Path) -> Path:
    """Where a step's record is."""
    return folder / f"{step.name}.run.json"


def state(code: int | None, ended: Sequence[str]) -> str:
    """What became of a process with this exit code, or without one."""
    if code is None:
        return "cut off" if ended else "timed out"
    return {0: "passed", NOT_RUN: "not run"}.get(code, "failed")


def reason(code: int, lines: Sequence[str]) -> str:
    """Why it did not pass."""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    if code == NOT_RUN:
        return last
    return "" if code == 0 else f"exit code {code}: {last}"


def attempt(words: Sequence[str], log: Path, limit: float, ended: Sequence[str] = ()) -> int | None:
    """Run this Python with ``words``; afterwards no process of it is left.

    Args:
        words: its arguments.
        log: the file for what it says.
        limit: seconds until all of it is over; it is told to end ``GRACE`` before.
        ended: names of the signals that came so far; the first one ends it.

    Returns:
        Its exit code; None where it was ended.
    """
    mark = f"{os.getpid()}.{time.monotonic_ns()}"
    until = time.monotonic() + limit - GRACE
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a signal to the day's group is not for it
        )
    try:
        while process.poll() is None and not ended and time.monotonic() < until:
            time.sleep(0.05)
        return process.returncode
    finally:
        end(process, mark)


def end(process: subprocess.Popen[Any], mark: str) -> None:
    """End the process and all that it has started, gently first; takes ``GRACE`` at most."""
    for number, seconds in ((signal.SIGTERM, 0.7 * GRACE), (signal.SIGKILL, 0.2 * GRACE)):
        until, told = time.monotonic() + seconds, set[int]()
        while left := marked(mark):
            for one in left - told:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, number)
            told |= left
            if time.monotonic() >= until:
                break
            time.sleep(0.05)
    with contextlib.suppress(subprocess.TimeoutExpired):  # the driver may hold it
        process.wait(0.1 * GRACE)


def marked(mark: str) -> set[int]:
    """Processes with this mark, also those in sessions of their own, as torchrun's workers are."""
    entry, found = f"{MARK}={mark}".encode(), set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if entry in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
    return found
