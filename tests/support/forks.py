"""Jobs for :mod:`support.fork_server`: one server for each environment that imports depend on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

# What Python, PyTorch and the libraries below it read when they start or are imported; the rest of
# an environment is a rank's own.
_READ_AT_IMPORT = ("PYTHON", "LD_", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "TORCH", "PYTORCH_")
_READ_AT_IMPORT += ("TRITON_", "CUDA_", "NPU_", "ASCEND_")
# Obeyed by each rank; what is imported before is installed.
_OF_A_RANK = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")


class ForkServer:
    """A process in which PyTorch is imported, and which starts ranks by forking itself."""

    def __init__(self, env: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  as long as the server
        self._lock = threading.Lock()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("fork_server.py"), str(theirs.fileno())],
                env=env,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=subprocess.STDOUT,
            )

    def run(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str],
        nproc: int = 1,
        cwd: Path | None = None,
        stdin: str = "",
        timeout: float = 600,
    ) -> tuple[int, str]:
        """Exit code and output of ``python WORDS``, or of ``nproc`` ranks of it under torchrun.

        torchrun's own code is 1 whatever its ranks' are.

        Raises:
            AssertionError: they took longer than ``timeout`` seconds, or the server has died.
        """
        with tempfile.TemporaryDirectory() as folder, self._lock:
            log, given = Path(folder, "output"), Path(folder, "stdin")
            log.touch()
            given.write_text(stdin, encoding="utf-8")
            job = {
                "words": list(words),
                "env": dict(env),
                "cwd": str(cwd or Path.cwd()),
                "nproc": nproc,
                "log": str(log),
                "stdin": str(given),
                "timeout": timeout,
            }
            try:
                reply = self._ask(job, timeout)
            except BaseException:  # nobody waits for the ranks any more
                self.close()
                raise
            output = log.read_text(encoding="utf-8", errors="replace")
        if reply is None:
            said, code = self.close(), self.process.returncode
            raise AssertionError(f"the fork server has ended ({code}): {said}\n{output[-4000:]}")
        assert not reply["timed_out"], f"not ended after {timeout} s:\n{output[-8000:]}"
        codes = reply["codes"]
        return codes[0] if nproc == 1 else int(any(codes)), output

    def _ask(self, job: dict[str, object], timeout: float) -> dict | None:
        """None where there is no server any more."""
        self._socket.settimeout(timeout + 120)  # it keeps the time itself; this is its own end
        try:
            self._socket.sendall(json.dumps(job).encode() + b"\n")
            reply = b""
            while not reply.endswith(b"\n"):
                part = self._socket.recv(1 << 16)
                if not part:
                    return None
                reply += part
        except ConnectionError:
            return None
        return json.loads(reply)

    def close(self) -> str:
        """End the server and the ranks that it has; what it said, which should be nothing."""
        self._socket.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._said.seek(0)
        return self._said.read().decode(errors="replace")


_servers: dict[frozenset[tuple[str, str]], ForkServer] = {}
_starting = threading.Lock()


def fork_server(env: Mapping[str, str]) -> ForkServer:
    """The server for this environment, started when it is first asked for."""
    read = {k: v for k, v in env.items() if k.startswith(_READ_AT_IMPORT)}
    shared = {k: v for k, v in read.items() if k not in _OF_A_RANK}
    with _starting:
        server = _servers.get(frozenset(shared.items()))
        if server is None or server.process.poll() is not None:
            base = {k: os.environ[k] for k in ("PATH", "HOME", "TMPDIR") if k in os.environ}
            # As the CPU backend has it before PyTorch is imported.
            compiler = {"TORCHDYNAMO_DISABLE": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
            server = ForkServer({**base, **compiler, **shared})
            _servers[frozenset(shared.items())] = server
    return server


def close_fork_servers() -> None:
    """End them all."""
    for server in _servers.values():
        server.close()
    _servers.clear()
