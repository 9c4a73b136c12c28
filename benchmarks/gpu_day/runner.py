"""One step as a process of its own, with a time limit, whose end is written down whatever it is."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from written import ROOT, write_json

from gpu_day.steps import Step

NOT_RUN = 77  # exit code of a step that cannot run here; its last line says why, as automake has it
TAIL = 15  # lines of its output that the page shows
GRACE = 15.0  # seconds that torchrun has to end its workers, which are in sessions of their own


def run(
    step: Step,
    folder: Path,
    *,
    rehearse: bool = False,
    machine: dict[str, str] | None = None,
    limit: float | None = None,
) -> dict[str, Any]:
    """Run ``step`` and return its record, which is in ``folder/NAME.run.json`` all the while.

    Its output goes to ``NAME.log``, its numbers to ``NAME.json``. An older run's files go first, so
    that no number is taken for one of this run.
    """
    limit = step.limit if limit is None else limit
    out, log = folder / f"{step.name}.json", folder / f"{step.name}.log"
    work = folder / "work" / step.name
    out.unlink(missing_ok=True)
    words = step.command(out, work, rehearse=rehearse)
    record: dict[str, Any] = {
        "state": "running",
        "command": shlex.join(
            ["python", *step.command(Path(out.name), Path(work.name), rehearse=rehearse)]
        ),
        "limit_s": limit,
        "rehearsal": rehearse,
        **(machine or {}),
    }
    write_json(record_of(step, folder), record)
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also where this process is interrupted
            end(process)
    lines = log.read_text("utf-8", errors="replace").splitlines()
    record |= {
        "state": state(code),
        "code": code,
        "seconds": time.monotonic() - began,
        "reason": reason(code, limit, lines),
        "tail": [] if code == 0 else lines[-TAIL:],
    }
    write_json(record_of(step, folder), record)
    return record


def record_of(step: Step, folder: Path) -> Path:
    """Where a step's record is."""
    return folder / f"{step.name}.run.json"


def state(code: int | None) -> str:
    """What became of a process with this exit code, or without one."""
    if code is None:
        return "timed out"
    return {0: "passed", NOT_RUN: "not run"}.get(code, "failed")


def reason(code: int | None, limit: float, lines: list[str]) -> str:
    """Why it did not pass."""
    if code is None:
        return f"ended after its limit of {limit:.0f} s"
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    if code == NOT_RUN:
        return last
    return "" if code == 0 else f"exit code {code}: {last}"


def end(process: subprocess.Popen[Any]) -> None:
    """End what is left of the step's processes, gently first."""
    until = time.monotonic() + GRACE
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < until:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
