"""The config's ``watch.command``: a program of the user's that is told of each finding."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from domain_pretrain.errors import ConfigError, shorten
from domain_pretrain.records.console import say
from domain_pretrain.records.events_file import finding_entry
from domain_pretrain.records.exporter import Exporter
from domain_pretrain.records.record import Finding

TIMEOUT = 30.0  # seconds that a call may take


def check_command(argv: Sequence[str]) -> None:
    """Refuse a program that is not there, before training.

    Raises:
        ConfigError: names it.
    """
    if argv and shutil.which(argv[0]) is None:
        raise ConfigError(
            f"watch.command: there is no program {argv[0]!r} that can be started here: give its "
            "path; it is started as it stands, without a shell"
        )


class Command(Exporter):
    """Starts the program for each finding, one after the other, and never by a shell.

    Training does not wait for it; what goes wrong with it is told, and that is all.

    Args:
        argv: the program and its arguments.
        out: takes what is told, from another thread.
        timeout: seconds that one call may take.
    """

    def __init__(
        self, argv: Sequence[str], out: Callable[[str], None] = say, timeout: float = TIMEOUT
    ) -> None:
        self._argv, self._out, self._timeout = list(argv), out, timeout
        self._waiting: SimpleQueue[Finding | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def traced(self, finding: Finding) -> None:
        """Once its documents are known, or known to be none."""
        if self._thread is None:
            thread = threading.Thread(target=self._work, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the process is ending: Python starts no more of them
                self._tell(finding)
                return
            self._thread = thread
        self._waiting.put(finding)

    def close(self) -> None:
        """Wait for what was started, and for at most one call that hangs."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(2 * self._timeout)

    def _work(self) -> None:
        while (finding := self._waiting.get()) is not None:
            self._tell(finding)

    def _tell(self, finding: Finding) -> None:
        problem = self._call(json.dumps(finding_entry(finding), ensure_ascii=False) + "\n")
        if problem:
            self._out(f"channel loss | watch.command {self._argv[0]!r} {problem}")

    def _call(self, text: str) -> str:
        """What went wrong; empty where nothing did."""
        try:
            done = subprocess.run(
                [shutil.which(self._argv[0]) or self._argv[0], *self._argv[1:]],
                input=text.encode(errors="backslashreplace"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=self._timeout,
                close_fds=False,  # with a path, Python then spawns; as it ends, it refuses to fork
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"was ended: it took more than {self._timeout:.0f} seconds"
        except (OSError, ValueError) as error:
            return f"cannot be started: {error}"
        said = shorten(done.stderr.decode(errors="replace").strip(), 200)
        return f"ended with {done.returncode}: {said}" if done.returncode else ""
