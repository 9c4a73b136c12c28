"""Ends whatever a node's processes have left behind, also where the agent itself is killed.

A rank that dies by SIGKILL cannot end its own children, such as the process with which Megatron
writes checkpoints: they would keep their memory for ever. torchrun gives each rank a process group
of its own, in which they all are, and looks after the ranks alone.

A process of its own keeps the list, run as a file so that it imports next to nothing: nothing else
is there any more once the agent has got a SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable


def kill_groups(leaders: Iterable[int]) -> None:
    """SIGKILL to all processes of the groups that these processes lead, or have led."""
    for leader in leaders:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


class Reaper:
    """The other process: kills the groups that it was told of last when this process ends."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", __file__],
            stdin=subprocess.PIPE,
            start_new_session=True,  # a signal to the agent's group is not for it
        )

    def watch(self, leaders: Iterable[int]) -> None:
        """Instead of those before."""
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):  # it was killed: then nobody watches
            pipe.write((" ".join(map(str, leaders)) + "\n").encode())
            pipe.flush()


def _main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    leaders: list[int] = []
    for line in sys.stdin:
        leaders = [int(word) for word in line.split()]
    kill_groups(leaders)


if __name__ == "__main__":
    _main()
