"""Start ranks by forking a process in which PyTorch is imported already.

Half of the time of a short run goes into importing PyTorch and what Megatron takes along with it.
Here one process does that, once; the plugin, Megatron and the script are imported by every rank
itself, as in any other run. A job is one line of JSON each way, through standard input and output:
``{"words", "module", "env", "nproc", "log", "timeout"}``, and the ranks' exit codes.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
import time
from importlib import import_module
from typing import Any

# What Megatron imports of others, by the time it takes; what is not installed is left out.
PRELOAD = (
    *("torch", "torch._dynamo", "torch.distributed.tensor", "torch.distributed.checkpoint"),
    *("torch.utils.tensorboard", "triton.language", "einops", "rich.table"),
    *("torch.utils.cpp_extension", "transformers.models.auto.tokenization_auto"),
    *("pydantic.main", "pydantic.fields", "yaml", "psutil"),
)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def become_rank(job: dict[str, Any], rank: int, port: int) -> None:
    """What ``python [-m MODULE] WORDS`` does, in a fork; returns or raises as that would end."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(job["env"])
    size = str(job["nproc"])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if job["module"]:
        sys.argv = ["-m", *job["words"]]
        runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(job["words"])
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")


def wait_for(ranks: list[int], timeout: float) -> list[int]:
    """Exit codes by rank, minus the signal's number where one ended it.

    As under torchrun, one that fails ends the others; so does the end of the time.
    """
    codes: dict[int, int] = {}
    end = time.monotonic() + timeout
    while len(codes) < len(ranks):
        for process in set(ranks) - codes.keys():
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                codes[process] = os.waitstatus_to_exitcode(status)
        if any(codes.values()):
            end = min(end, time.monotonic() + 3)  # others may have something to say, too
        if time.monotonic() > end:
            for process in set(ranks) - codes.keys():
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[process] for process in ranks]


def serve() -> None:
    """Take jobs until standard input ends; in a rank, be that rank."""
    for name in PRELOAD:
        try:
            import_module(name)
        except ImportError:
            continue
    for line in sys.stdin:
        job, port, ranks = json.loads(line), free_port(), []
        for rank in range(job["nproc"]):
            process = os.fork()
            if process == 0:
                become_rank(job, rank, port)
                return
            ranks.append(process)
        print(json.dumps(wait_for(ranks, job["timeout"])), flush=True)


if __name__ == "__main__":
    serve()
