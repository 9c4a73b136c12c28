"""A forked run is what the same words would be as a process of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import forks
from support.forks import ForkServer, fork_server
from support.launch import environment

# Prints what a script can see of how it was started; no time for Megatron.
SEEN = """
import json, os, sys
import beside
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "name": __name__, "file": __file__,
    "env": dict(os.environ), "stdin": sys.stdin.read(), "bytecode": sys.dont_write_bytecode,
    "main": sys.modules["__main__"].beside.__name__,
}))
"""


@pytest.fixture
def server() -> ForkServer:
    return fork_server(environment())


@pytest.fixture
def script(tmp_path: Path) -> Path:
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "seen.py").write_text(SEEN)
    (folder / "beside.py").write_text("")
    return folder / "seen.py"


def wait_until_gone(process: int) -> None:
    end = time.monotonic() + 60
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(process).status() != psutil.STATUS_ZOMBIE:  # not ours to wait for
            assert time.monotonic() < end
            time.sleep(0.05)


def run(server: ForkServer, folder: Path, text: str, **how: Any) -> tuple[int, str]:
    (folder / "text.py").write_text(text)
    return server.run([str(folder / "text.py")], env=environment(), **how)


def test_no_file_beside_the_server_is_taken_for_a_package(
    server: ForkServer, tmp_path: Path
) -> None:
    here = Path(forks.__file__).parent
    code, output = run(
        server,
        tmp_path,
        "import sys\n"
        "files = [getattr(module, '__file__', None) or '' for module in sys.modules.values()]\n"
        f"taken = [file for file in files if file.startswith({str(here)!r})\n"
        "         and not file.endswith('fork_server.py')]\n"
        f"assert not taken and {str(here)!r} not in sys.path, (taken, sys.path)\n",
    )
    assert code == 0, output


@pytest.mark.parametrize("as_module", [False, True])
def test_sees_what_a_process_would(
    as_module: bool, server: ForkServer, script: Path, tmp_path: Path
) -> None:
    words = ["-m", "seen", "a b", "--flag"] if as_module else [str(script), "a b", "--flag"]
    cwd = script.parent if as_module else tmp_path
    env = environment(MARK="1", PYTHONPATH=f"{tmp_path}{os.pathsep}/elsewhere")
    env.pop("HOME", None)
    plain = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=env, input="given", capture_output=True, text=True
    )
    code, output = server.run(words, cwd=cwd, env=env, stdin="given")
    assert code == plain.returncode == 0, output
    forked, expected = json.loads(output), json.loads(plain.stdout)
    for seen in (forked, expected):
        # Python's own note of how it set up the locale.
        seen["env"].pop("LC_CTYPE", None)
    # setuptools, of which PyTorch imports parts, appends a folder of its own.
    forked["path"] = forked["path"][: len(expected["path"])]
    assert forked == expected


def test_ranks_are_told_what_torchrun_tells(server: ForkServer, tmp_path: Path) -> None:
    text = """
import os, torch
torch.distributed.init_process_group("gloo")
total = torch.ones(())
torch.distributed.all_reduce(total)
assert os.getpgrp() == os.getpid() and torch.distributed.get_world_size() == int(total) == 2
print(f"rank {os.environ['LOCAL_RANK']}\\n", end="", flush=True)
torch.distributed.destroy_process_group()
"""
    code, output = run(server, tmp_path, text, nproc=2)
    assert code == 0, output
    assert sorted(line for line in output.splitlines() if "rank" in line) == ["rank 0", "rank 1"]


# What was imported before the fork has something to do at the exit, too: here, logging.
HANDED_ON_AT_EXIT = """
import logging.handlers
printed = logging.StreamHandler()
logging.getLogger().addHandler(logging.handlers.MemoryHandler(9, target=printed))
logging.getLogger().warning("handed on")
"""


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit('the reason')", 1, "the reason"),
        ("raise ValueError('the reason')", 1, "ValueError: the reason"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import atexit; atexit.register(print, 'at exit')", 0, "at exit"),
        ("import atexit; atexit.register(print, 'at exit'); raise KeyError", 1, "at exit"),
        ("from threading import Timer; Timer(0.2, print, ['later']).start()", 0, "later"),
        (HANDED_ON_AT_EXIT, 0, "handed on"),
        ("import atexit; atexit.register(lambda: 1 / 0)", 0, "ZeroDivisionError"),
    ],
)
def test_ends_as_a_process_would(
    text: str, code: int, said: str, server: ForkServer, tmp_path: Path
) -> None:
    found, output = run(server, tmp_path, text)
    assert found == code
    assert said in output


def test_one_that_fails_ends_the_others(server: ForkServer, tmp_path: Path) -> None:
    text = """
import os, sys, time
sys.exit(5) if os.environ["RANK"] == "1" else time.sleep(1000)
"""
    assert run(server, tmp_path, text, nproc=2)[0] == 1  # as torchrun has it


STARTS_ONE_MORE = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
print(child.pid, flush=True)
time.sleep(float(os.environ["SECONDS"]))
"""


def test_nothing_is_left(server: ForkServer, tmp_path: Path) -> None:
    """Neither of a run that ended in time, nor of one that did not; the server goes on."""
    (tmp_path / "text.py").write_text(STARTS_ONE_MORE)
    words = [str(tmp_path / "text.py")]
    code, output = server.run(words, env=environment(SECONDS="0"))
    assert code == 0
    assert not psutil.pid_exists(int(output))
    with pytest.raises(AssertionError, match=r"not ended after 1 s:\n\d+") as late:
        server.run(words, env=environment(SECONDS="1000"), timeout=1)
    assert not psutil.pid_exists(int(str(late.value).splitlines()[1]))
    assert psutil.Process(server.process.pid).children() == []
    assert run(server, tmp_path, "")[0] == 0


def test_forks_from_a_single_thread(server: ForkServer, tmp_path: Path) -> None:
    """A lock that another thread held would stay locked in the fork."""
    assert run(server, tmp_path, "")[0] == 0  # so that all is imported
    assert psutil.Process(server.process.pid).num_threads() == 1


def test_a_manager_imports_nothing(server: ForkServer, tmp_path: Path) -> None:
    """Started anew, it would import the script once more, and whatever that imports."""
    text = """
import multiprocessing
queue = multiprocessing.get_context("spawn").Manager().Queue()
queue.put("told")
print(__name__, queue.get())
"""
    assert run(server, tmp_path, text) == (0, "__main__ told\n")


def test_megatron_is_imported_by_the_ranks_alone(server: ForkServer, tmp_path: Path) -> None:
    text = "import sys; print([n for n in sys.modules if n.startswith(('megatron', 'domain_'))])"
    assert run(server, tmp_path, text) == (0, "[]\n")


def test_a_server_that_dies_says_so(tmp_path: Path) -> None:
    """With what it said; its ranks die with it, and the next run gets another one."""
    env = environment(TORCH_ANOTHER="1")  # a server of this test's own
    server = fork_server(env)
    (tmp_path / "text.py").write_text(
        "import os, signal, sys, time\n"
        "print(os.getpid(), flush=True)\n"
        "os.kill(os.getppid(), signal.SIGKILL)\n"
        "time.sleep(1000)\n"
    )
    words = [str(tmp_path / "text.py")]
    with pytest.raises(AssertionError, match=r"the fork server has ended \(-9\)") as dead:
        server.run(words, env=env)
    wait_until_gone(int(str(dead.value).splitlines()[-1]))
    assert fork_server(env) is not server
    fork_server(env).close()
