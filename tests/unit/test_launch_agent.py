"""torchrun as the launch scripts start it: what it restarts, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process groups and /proc")

PATIENCE_S = 300  # for what has to come, however busy the machine is


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def start(
    folder: Path, script: str, *flags: str, node: int = 0, nodes: int = 1, port: int = 0
) -> subprocess.Popen[str]:
    """An agent whose rank is a few lines of bash, in ``folder``; it looks at the flags, too."""
    path = folder / "rank.sh"
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    words = [
        *(f"--nnodes={nodes}", "--nproc-per-node=1", "--rdzv-backend=c10d"),
        *(f"--rdzv-endpoint=127.0.0.1:{port or free_port()}", "--rdzv-id=test"),
        *(f"--rdzv-conf=join_timeout=300,is_host={int(node == 0)}", "--max-restarts=3"),
        *(f"--log-dir=logs{node}", "--local-addr=127.0.0.1", "--no-python", str(path)),
        *flags,
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "domain_pretrain.launch.agent", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ends(agent: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        said, _ = agent.communicate(timeout=PATIENCE_S)
    finally:
        agent.kill()
    return agent.returncode, said


def read_when_there(path: Path) -> str:
    end = time.monotonic() + PATIENCE_S
    while not (path.exists() and path.read_text(encoding="utf-8").endswith("\n")):
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.05)
    return path.read_text(encoding="utf-8")


def alive(pid: int) -> bool:
    """Whether it runs; a dead one may stay as a zombie where nobody collects them."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def test_what_cannot_succeed_is_not_restarted(tmp_path: Path) -> None:
    """On no node, though only one of them has the rank that ended with 2."""
    script = """
    echo start >> starts$RANK
    if [[ $RANK == 1 ]]; then
      until [[ -e starts0 ]]; do sleep 0.1; done
      exit 2
    fi
    exec sleep 1000
    """
    port = free_port()
    agents = [start(tmp_path, script, node=node, nodes=2, port=port) for node in (0, 1)]
    outcomes = [ends(agent) for agent in agents]
    assert [code for code, _ in outcomes] == [2, 2], outcomes
    said = sorted(said.partition("launch: ")[2] for _, said in outcomes)
    assert said[0].startswith("a rank on another node ended with exit code 2: no restart can")
    assert said[1].startswith("rank 1 ended with exit code 2: no restart can change that. Logs: l")
    for rank in (0, 1):
        assert (tmp_path / f"starts{rank}").read_text() == "start\n"


def test_other_failures_are_restarted(tmp_path: Path) -> None:
    code, said = ends(start(tmp_path, "echo start >> starts; [[ $(wc -l < starts) == 3 ]]"))
    assert code == 0, said
    assert (tmp_path / "starts").read_text() == "start\n" * 3


DECISION = {"iteration": 9, "onset": 6, "message": "a jump", "reason": "enough"}
BACK = {**DECISION, "action": "rollback", "resume": 5, "samples": [1, 2]}
STOP = {**DECISION, "action": "stop"}


def decide(folder: Path, *decisions: list[dict[str, Any]]) -> str:
    """Lines that put one list of decisions after the other beside the checkpoints."""
    (folder / "run").mkdir()
    for number, one in enumerate(decisions, start=1):
        (folder / f"{number}.json").write_text(json.dumps({"decisions": one}))
    return """
    echo start >> starts$RANK
    number=$(wc -l < starts$RANK)
    if [[ $RANK == 0 && -e $number.json ]]; then cp $number.json run/domain_decisions.json; fi
    """


def test_a_rollback_is_no_restart(tmp_path: Path) -> None:
    """Four of them, where three restarts are allowed."""
    script = decide(tmp_path, *([BACK] * count for count in range(1, 5)))
    script += "[[ $number == 5 ]] || exit 75"
    code, said = ends(start(tmp_path, script, "--save", "run"))
    assert code == 0, said
    assert (tmp_path / "starts0").read_text() == "start\n" * 5
    logs = {path.name for path in tmp_path.glob("logs0/*/attempt_*")}
    assert logs == {f"attempt_{number}" for number in range(5)}, "none took the place of another"


def test_75_without_a_decision_is_a_failure(tmp_path: Path) -> None:
    """Of before it started, there is one."""
    script = decide(tmp_path)
    (tmp_path / "run" / "domain_decisions.json").write_text(json.dumps({"decisions": [BACK]}))
    code, said = ends(start(tmp_path, script + "exit 75", "--save", "run"))
    assert code == 75, said
    assert "rank 0 failed: exit code 75, no restart left" in said
    assert (tmp_path / "starts0").read_text() == "start\n" * 4


def test_a_run_that_has_decided_to_stop_is_not_restarted(tmp_path: Path) -> None:
    """On no node, though only the first one's rank ended."""
    script = decide(tmp_path, [BACK, STOP])
    script += """
    if [[ $RANK == 0 ]]; then
      until [[ -e starts1 ]]; do sleep 0.1; done
      exit 75
    fi
    exec sleep 1000
    """
    port = free_port()
    agents = [
        start(tmp_path, script, "--save", "run", node=node, nodes=2, port=port) for node in (0, 1)
    ]
    outcomes = [ends(agent) for agent in agents]
    assert [code for code, _ in outcomes] == [75, 75], outcomes
    said = sorted(said.partition("launch: ")[2] for _, said in outcomes)
    assert said[0].startswith("a rank on another node has decided to stop. Logs: ")
    assert said[1].startswith("stopped at iteration 9: a jump; no rollback: enough. Logs: ")
    for rank in (0, 1):
        assert (tmp_path / f"starts{rank}").read_text() == "start\n"


# Its child is as Megatron's checkpoint worker: in the rank's group, and not to be ended by SIGTERM.
WITH_A_CHILD = """
if [[ $TORCHELASTIC_RESTART_COUNT == 0 ]]; then
  (trap "" TERM; exec sleep 1000) &
  echo $! $$ > pids
  {then}
fi
child=/proc/$(cut -d" " -f1 pids)/stat
until grep -qs "(sleep) [ZX]" $child || [[ ! -e $child ]]; do sleep 0.1; done
"""


def test_a_dead_rank_leaves_no_process(tmp_path: Path) -> None:
    """The second start ends when the child of the first one is gone."""
    code, said = ends(start(tmp_path, WITH_A_CHILD.format(then="kill -9 $$")))
    assert code == 0, said


def test_what_a_rank_left_that_ended_well_stays(tmp_path: Path) -> None:
    """An upload in the background, say."""
    code, said = ends(start(tmp_path, "sleep 1000 > /dev/null 2>&1 & echo $! > pids"))
    assert code == 0, said
    (child,) = map(int, (tmp_path / "pids").read_text().split())
    assert alive(child)
    os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_agent_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    agent = start(tmp_path, WITH_A_CHILD.format(then="wait"))
    pids = [int(pid) for pid in read_when_there(tmp_path / "pids").split()]
    assert all(map(alive, pids))
    agent.send_signal(number)
    code, said = ends(agent)  # nobody is left who could write to the pipe
    assert code == (-9 if number == signal.SIGKILL else 128 + number), said
    end = time.monotonic() + PATIENCE_S
    while any(map(alive, pids)):
        assert time.monotonic() < end
        time.sleep(0.05)
