"""The documents behind a finding: ``domain-pretrain trace``, in a process of its own.

It reads the run's journal and the index of the data, so it works for every layout; it has no part
in the run's groups, and training does not wait for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from queue import Empty, PriorityQueue, SimpleQueue
from typing import Any

from domain_pretrain.errors import shorten
from domain_pretrain.records.console import say
from domain_pretrain.records.record import Finding

TEXT = 80  # characters of each
MOST = 4  # findings of one rule and iteration whose documents are looked for
TIMEOUT = 120.0  # seconds, of one trace
AT_THE_END = 60.0  # seconds that a run waits for its traces
# The numbers of torchrun's process would make the trace one of the run's ranks.
_OF_THE_RUN = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC")
_URGENCY = {"error": 0, "warning": 1, "info": 2}
# What is out of the ordinary in a document, by where the loss went.
_ORDERS = {"down": "monotonous", "repeated": "copied"}


class Documents:
    """Traces findings one after the other, errors first, in a thread that waits for each.

    Args:
        log_dir: of the run.
        out: takes what went wrong, from another thread; once.
        timeout: seconds that a trace may take.
    """

    def __init__(
        self, log_dir: Path, out: Callable[[str], None] = say, timeout: float = TIMEOUT
    ) -> None:
        self._log_dir, self._out, self._timeout = log_dir, out, timeout
        self._waiting: PriorityQueue[tuple[int, int, Finding]] = PriorityQueue()
        self._done: SimpleQueue[tuple[int, Finding]] = SimpleQueue()
        self._open: dict[int, Finding] = {}
        self._count = 0
        self._taken: Counter[tuple[str, int]] = Counter()
        self._thread: threading.Thread | None = None
        self._told = False

    def start(self, finding: Finding) -> None:
        """Take a finding on; what cannot be traced is done at once."""
        self._count += 1
        self._open[self._count] = finding
        key = (finding.rule, finding.iteration)
        self._taken[key] += 1
        if "iterations" not in finding.evidence or self._taken[key] > MOST:
            self._done.put((self._count, finding))
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._waiting.put((_URGENCY[finding.severity], self._count, finding))

    def done(self, *, wait: bool) -> list[Finding]:
        """Those that are done by now; or all, after a while as they are."""
        found: list[Finding] = []
        until = time.monotonic() + (AT_THE_END if wait else 0)
        while self._open:
            try:
                number, finding = self._done.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                break
            del self._open[number]
            found.append(finding)
        if wait:
            found += self._open.values()
            self._open.clear()
        return found

    def _work(self) -> None:
        while True:
            _, number, finding = self._waiting.get()
            try:
                rows = self._trace(finding)
            except Exception as error:  # whatever it is, training goes on
                rows = ()
                self._tell(f"{type(error).__name__}: {error}")
            self._done.put((number, replace(finding, documents=rows)))

    def _trace(self, finding: Finding) -> tuple[dict[str, Any], ...]:
        done = subprocess.run(
            trace_command(self._log_dir, finding),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_environment(),
            close_fds=False,  # then Python spawns, and as it ends it refuses to fork
            timeout=self._timeout,
            check=False,
        )
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            self._tell(" ".join(last))
            return ()
        return tuple(json.loads(line) for line in done.stdout.splitlines() if line)

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            why = shorten(why, 400)
            self._out(f"channel loss | the documents behind a finding cannot be told: {why}")


def trace_command(log_dir: Path, finding: Finding) -> list[str]:
    """What finds the documents; a person may start the same."""
    first, stop = finding.evidence["iterations"]
    domain = [] if finding.domain is None else ["--domain", finding.domain]
    return [
        *(sys.executable, "-m", "domain_pretrain.commands", "trace", str(log_dir)),
        *("--iteration", f"{first}:{stop}", *domain),
        *("--worst", _ORDERS.get(finding.evidence.get("direction", ""), "odd")),
        *("--text", str(TEXT), "--json"),
    ]


def _environment() -> dict[str, str]:
    """Of the trace: one thread, no accelerator, and the packages that this process finds."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_RUN)}
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    hidden = {"CUDA_VISIBLE_DEVICES": "", "ASCEND_RT_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return {**own, "PYTHONPATH": path, **hidden}
