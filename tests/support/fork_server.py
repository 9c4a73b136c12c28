"""A process in which PyTorch is imported already, and from which ranks are forked.

Most of the time of a short run goes into importing PyTorch and what Megatron takes along with it.
Here one process does that, once; the plugin, Megatron and the script are imported by every rank
itself, as in any other run. :class:`support.forks.ForkServer` starts this file and talks to it
through a socket: a job is one line of JSON each way, a :class:`Job` there and ``{"codes",
"timed_out"}`` back. The socket's end is the server's, and that of all its ranks.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import multiprocessing.process
import os
import random
import runpy
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module, invalidate_caches
from multiprocessing.context import SpawnContext
from typing import NoReturn, TypedDict

# What Megatron and the plugin import of others, by the time it takes; what is not installed is
# left out. `python -X importtime -m domain_pretrain ...` says what the host of the day wants.
PRELOAD = (
    *("torch", "torch.distributed._tensor", "torch._dynamo.backends.registry", "torch._inductor"),
    *("torch.distributed.tensor", "torch.distributed.checkpoint", "torch.utils.tensorboard"),
    *("torch.distributed._symmetric_memory", "torch.utils.cpp_extension", "triton.language"),
    *("transformers.models.auto.tokenization_auto", "einops", "rich.table", "absl.logging"),
    *("pydantic.main", "pydantic.fields", "pydantic.types", "annotated_types", "yaml", "psutil"),
    *("packaging.version", "packaging.specifiers", "numpy.typing"),
)
SUBREAPER, PARENT_DEATH_SIGNAL = 36, 1  # of prctl(2)
_prctl = ctypes.CDLL(None).prctl


class Job(TypedDict):
    """Ranks to start.

    Attributes:
        words: what would follow ``python``: ``-m MODULE WORDS``, or ``SCRIPT WORDS``.
        env: the whole environment.
        nproc: ranks; one is a process of its own, more of them are told so as torchrun tells them.
        log: the file that gets what they print.
        stdin: the file that they read.
        timeout: seconds; then they are killed.
    """

    words: list[str]
    env: dict[str, str]
    cwd: str
    nproc: int
    log: str
    stdin: str
    timeout: float


class Ending:
    """Ends a rank after all that it does at its exit, and before the interpreter is taken down.

    That would write to, and so copy, all that was imported before the fork: a quarter of the time
    of a short run. What has not been written by then stays unwritten, as in a run that is killed.
    """

    def __init__(self) -> None:
        self.code: int | None = None  # None: not a rank whose script has ended
        atexit.register(self._end)  # the first to be registered is the last to be called

    def of(self, script: Callable[[], None]) -> NoReturn:
        """Run a rank's script, and end as it ends."""
        try:
            script()
            self.code = 0
        except SystemExit as end:
            self.code = end.code if isinstance(end.code, int) else int(end.code is not None)
            raise
        except Exception:
            self.code = 1
            raise
        sys.exit()

    def _end(self) -> None:
        if self.code is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.code)


def preload() -> None:
    """Import :data:`PRELOAD`."""
    for name in PRELOAD:
        try:
            import_module(name)
        except ModuleNotFoundError:
            continue
    gc.freeze()  # the ranks' collections leave alone, and unwritten, what they share


def free_port() -> int:
    """A port that nobody listens on, and that the kernel gives to nobody who asks for any."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def fork_ranks(job: Job, ending: Ending, *not_theirs: socket.socket) -> list[int]:
    """The process of each rank, which leads a process group of its own, as under torchrun."""
    port, ranks = free_port(), []
    for rank in range(job["nproc"]):
        process = os.fork()
        if process == 0:
            for open_socket in not_theirs:
                open_socket.close()
            os.setpgid(0, 0)
            _prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
            ending.of(partial(_become, job, rank, port))
        os.setpgid(process, process)  # whoever comes first
        ranks.append(process)
    return ranks


def _become(job: Job, rank: int, port: int) -> None:
    """What ``python WORDS`` does, in a fork; returns or raises as that would end."""
    os.dup2(os.open(job["stdin"], os.O_RDONLY), 0)
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.environ.clear()
    os.environ.update(job["env"])
    if job["nproc"] > 1:
        os.environ.update(_elastic(rank, job["nproc"], port))
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    sys.pycache_prefix = os.environ.get("PYTHONPYCACHEPREFIX") or None
    os.chdir(job["cwd"])
    multiprocessing.process.ORIGINAL_DIR = job["cwd"]  # a spawned process would go there
    # Megatron's checkpoint writer takes a queue from a manager, a process that has nothing to do:
    # started by Python's own hand, it would import all that the script imports.
    SpawnContext.Manager = lambda self: multiprocessing.get_context("fork").Manager()  # type: ignore[method-assign]
    given = [path for path in job["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    invalidate_caches()
    words = job["words"]
    if words[0] == "-m":
        sys.path[:] = [job["cwd"], *given, *sys.path]
        sys.argv = ["-m", *words[2:]]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[:] = [os.path.dirname(os.path.realpath(words[0])), *given, *sys.path]
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


def _elastic(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank."""
    numbers = {
        **{"RANK": rank, "LOCAL_RANK": rank, "ROLE_RANK": rank, "GROUP_RANK": 0},
        **{"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "ROLE_WORLD_SIZE": size},
        **{"GROUP_WORLD_SIZE": 1, "MASTER_PORT": port},
        **{"TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_MAX_RESTARTS": 0},
    }
    texts = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "forked"}
    return {**texts, **{name: str(number) for name, number in numbers.items()}}


class Ranks:
    """The ranks of one job until the last of them, and all that they started, has ended."""

    def __init__(self, ranks: list[int]) -> None:
        self.ranks = ranks
        self.codes: dict[int, int] = {}
        self.alone = False  # no process is left, nor one that a rank has started

    def look(self) -> None:
        """Take note of who has ended. (What a rank leaves behind becomes the server's child.)"""
        while not self.alone:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.alone = True
                return
            if process == 0:
                return
            if process in self.ranks:
                self.codes[process] = os.waitstatus_to_exitcode(status)

    def done(self) -> bool:
        return len(self.codes) == len(self.ranks)

    def signal(self, number: int) -> None:
        """To each rank's group."""
        for process in self.ranks:
            try:
                os.killpg(process, number)
            except ProcessLookupError:
                continue

    def wait(self, timeout: float, control: socket.socket) -> bool:
        """Until all have ended; False where they had to be killed for the time.

        As under torchrun, one that fails ends the others. The server's own end is theirs, too.
        """
        end, failed_at = time.monotonic() + timeout, None
        while not self.done():
            self.look()
            if failed_at is None and any(self.codes.values()):
                failed_at = time.monotonic()
                self.signal(signal.SIGTERM)
            if time.monotonic() > min(end, (failed_at or end) + 30):
                break
            if select.select([control], [], [], 0.01)[0]:  # closed: nobody waits for an answer
                self.signal(signal.SIGKILL)
                sys.exit()
        in_time = self.done() or failed_at is not None
        # Its helpers end with a rank that ended well; nothing of the others is to be left.
        grace = time.monotonic() + (2 if self.done() and failed_at is None else 0)
        while not self.alone:
            if time.monotonic() > grace:
                self.signal(signal.SIGKILL)
            self.look()
            time.sleep(0.01)
        return in_time


def lines(control: socket.socket) -> Iterator[bytes]:
    """What arrives, line by line, until the other side is closed."""
    text = b""
    while part := control.recv(1 << 16):
        *whole, text = (text + part).split(b"\n")
        yield from whole


def serve(control: socket.socket) -> None:
    """Take jobs until the socket is closed; in a rank, be that rank."""
    _prctl(SUBREAPER, 1)
    control.set_inheritable(False)
    ending = Ending()
    preload()
    for line in lines(control):
        job: Job = json.loads(line)
        ranks = Ranks(fork_ranks(job, ending, control))
        in_time = ranks.wait(job["timeout"], control)
        codes = [ranks.codes[process] for process in ranks.ranks]
        control.sendall(json.dumps({"codes": codes, "timed_out": not in_time}).encode() + b"\n")


if __name__ == "__main__":
    del sys.path[0]  # this folder: its files are not to be imported in place of packages
    serve(socket.socket(fileno=int(sys.argv[1])))
