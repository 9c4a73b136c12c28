"""A node notices that the first one is gone, and only then."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

import pytest

from domain_pretrain.launch.lifeline import Lifeline


def test_it_gives_up_when_nobody_answers_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([OSError(), OSError(), None, ConnectionRefusedError()])
    asked = []

    def knock(address: tuple[str, int], timeout: float) -> socket.socket:
        asked.append(address)
        answer = next(answers, TimeoutError())
        if answer is not None:
            raise answer
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", knock)
    gave_up = threading.Event()
    Lifeline("first", 29500, 0.05, gave_up.set, pause_s=0.02).start()
    assert gave_up.wait(5)
    # Not for the first two, when it has not been there yet; and not before its patience ends.
    assert len(asked) >= 6
    assert set(asked) == {("first", 29500)}


def test_it_is_quiet_while_somebody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        gave_up = threading.Event()
        Lifeline("127.0.0.1", server.getsockname()[1], 0, gave_up.set, pause_s=0.01).start()
        assert not gave_up.wait(0.2)


KILLS = """
import subprocess, sys
from domain_pretrain.launch.lifeline import kill_children
children = [subprocess.Popen(["sleep", "100"], start_new_session=True) for _ in range(2)]
kill_children()
print([child.wait(5) for child in children])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_children_are_killed() -> None:
    done = subprocess.run([sys.executable, "-c", KILLS], capture_output=True, text=True)
    assert done.stdout.strip() == "[-9, -9]", done.stderr
