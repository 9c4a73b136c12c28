"""Run one phase: torchrun as a child process, its output in a file, its progress on the screen.

The progress is what the phase writes into its metrics file; its output is for people.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from domain_pretrain.errors import DomainPretrainError
from domain_pretrain.records.reader import MetricsTail

ELASTIC_REPORT = re.compile(r"torch/distributed/elastic/.*(failed \(exitcode|Sending process)")
TAIL = 30
SAID = 10  # progress lines per phase, where there is no terminal


class PhaseFailed(DomainPretrainError):
    """A process ended with an exit code other than 0; the message ends with its last lines."""


def torchrun(nproc: int, words: Iterable[str]) -> list[str]:
    """``torchrun … -m domain_pretrain WORDS`` with this Python."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
    return [sys.executable, *launcher, "-m", "domain_pretrain", *words]


def run(
    command: list[str], environment: Mapping[str, str], log: Path, what: str = "training"
) -> Iterator[str]:
    """Run ``command`` and yield the lines that it prints, which also go to the file ``log``.

    Args:
        command, environment: of the process.
        log: the file.
        what: it is, for the message.

    Raises:
        PhaseFailed: naming the exit code and the log's last lines.
    """
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        file.write(f"$ {shlex.join(command)}\n")
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                yield line.rstrip("\n")
        except BaseException:  # such as Ctrl-C: torchrun takes its workers with it
            process.terminate()
            raise
    if process.returncode:
        raise PhaseFailed(
            f"{what} ended with exit code {process.returncode}; the end of {log}:\n{_tail(log)}"
        )


def _tail(log: Path) -> str:
    """The last lines before torchrun's own report, which says only that a process has ended."""
    lines = log.read_text("utf-8", errors="replace").splitlines()
    end = next((i for i, line in enumerate(lines) if ELASTIC_REPORT.search(line)), len(lines))
    return "\n".join(f"  {line}" for line in lines[:end][-TAIL:])


class PhaseProgress:
    """A bar with the domains' losses; without a terminal, a line now and then.

    Args:
        console: where it is shown.
        name: of the phase.
        iterations: how many it has.
        folder: where it writes its metrics file.
    """

    def __init__(self, console: Console, name: str, iterations: int, folder: Path) -> None:
        self._tail = MetricsTail(folder)
        self._console = console
        self._name = name
        self._iterations = iterations
        self._losses = ""
        self._said = 0
        self._progress = Progress(
            TextColumn(f"{name:<9}"),
            BarColumn(bar_width=10),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting Megatron …", total=iterations)

    def __enter__(self) -> PhaseProgress:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.update()
            self._show(self._iterations)  # the last ones may be fewer than a logging interval
        self._progress.stop()

    def update(self) -> None:
        """Show what the phase has written since the last call."""
        for entry in self._tail.read():
            if entry["split"] == "train":
                losses = ((name, domain["loss"]) for name, domain in entry["domains"].items())
                self._losses = "  ".join(f"{name} {_number(loss)}" for name, loss in losses)
                self._show(entry["iteration"])

    def _show(self, iteration: int) -> None:
        self._progress.update(self._task, completed=iteration, description=self._losses)
        step = iteration * SAID // self._iterations
        if not self._console.is_terminal and step > self._said:
            self._said = step
            count = f"{iteration:>5}/{self._iterations}"
            self._console.print(f"{self._name:<9} {count}  {self._losses}", soft_wrap=True)


def _number(loss: float | None) -> str:
    return "NaN" if loss is None else f"{loss:.2f}"
