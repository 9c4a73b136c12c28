"""Notices that this node is cut off from the first one, where torchrun's store is.

The store's client waits in ``recv`` until the kernel gives up on the connection, which takes
Linux about 15 minutes (``net.ipv4.tcp_retries2``), whatever timeouts torchrun was given.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path


class Lifeline(threading.Thread):
    """Contacts the first node's port, and calls ``give_up`` when nobody has answered for long.

    Args:
        host, port: where the nodes meet.
        patience_s: seconds without an answer, after a first one. Before it, torchrun's own
            ``join_timeout`` holds.
        give_up: called once, in this thread; the main thread may hang.
        pause_s: seconds between two attempts, and the timeout of each.
    """

    def __init__(
        self,
        host: str,
        port: int,
        patience_s: float,
        give_up: Callable[[], None],
        pause_s: float = 10,
    ) -> None:
        super().__init__(name="lifeline", daemon=True)
        self._address = (host, port)
        self._patience_s, self._pause_s = patience_s, pause_s
        self._give_up = give_up

    def run(self) -> None:
        """Try until nobody answers any more."""
        answered: float | None = None
        while True:
            if self._answers():
                answered = time.monotonic()
            elif answered is not None and time.monotonic() - answered > self._patience_s:
                self._give_up()
                return
            time.sleep(self._pause_s)

    def _answers(self) -> bool:
        try:
            socket.create_connection(self._address, timeout=self._pause_s).close()
        except ConnectionRefusedError:
            return True  # the machine is there; that its store is not, torchrun notices itself
        except OSError:
            return False
        return True


def kill_children() -> None:
    """SIGKILL to this process's children, which torchrun gave a process group each."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    for child in " ".join(path.read_text() for path in children).split():
        try:
            os.killpg(int(child), signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
