"""A node notices that the first one is gone, and only then."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from domain_pretrain.launch.lifeline import Lifeline


class Enough(Exception):
    """The time of the test is up."""


class Clock:
    """Stands in for the module ``time``: only sleeping takes any, and only on this clock."""

    def __init__(self, until: float) -> None:
        self.now, self.until = 0.0, until

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now > self.until:
            raise Enough


@pytest.mark.parametrize("last", [None, ConnectionRefusedError()])
def test_it_gives_up_when_nobody_answers_any_more(
    last: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([OSError(), OSError(), None, ConnectionRefusedError(), last])
    asked, gave_up = [], []

    def knock(address: tuple[str, int], timeout: float) -> socket.socket:
        asked.append(address)
        answer = next(answers, TimeoutError())
        if answer is not None:
            raise answer
        return socket.socket()

    clock = Clock(until=1000)
    monkeypatch.setattr(sys.modules[Lifeline.__module__], "time", clock)
    monkeypatch.setattr(socket, "create_connection", knock)
    lifeline = Lifeline("first", 29500, 25, lambda: gave_up.append(clock.now), pause_s=10)
    lifeline.start()
    lifeline.join(60)
    # Not for the first two, when it has not been there yet; the last answer came at 40, so not
    # at 50 and 60 either.
    assert gave_up == [70]
    assert asked == [("first", 29500)] * 8


def test_it_is_quiet_while_somebody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Lifeline.__module__], "time", Clock(until=300))
    gave_up: list[bool] = []
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(Enough):
        port = server.getsockname()[1]
        Lifeline("127.0.0.1", port, 0, lambda: gave_up.append(True), pause_s=10).run()
    assert not gave_up


KILLS = """
import subprocess, sys
from domain_pretrain.launch.lifeline import kill_children
children = [subprocess.Popen(["sleep", "1000"], start_new_session=True) for _ in range(2)]
kill_children()
print([child.wait(500) for child in children])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_children_are_killed() -> None:
    done = subprocess.run([sys.executable, "-c", KILLS], capture_output=True, text=True)
    assert done.stdout.strip() == "[-9, -9]", done.stderr
