"""Ask the host itself whether it accepts a run's flags, on this machine, without a device."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import suppress

from pydantic import BaseModel

from domain_pretrain.flags import add_arguments
from domain_pretrain.json_file import parse_json
from domain_pretrain.process import NOTICE, SINGLE_PROCESS

MARK = "domain_pretrain rehearsal: "  # begins the line with the answer, among the host's own
_WARNING = f"{NOTICE}WARNING: "
PATIENCE_S = 180  # Megatron's imports take seconds; from a cold network file system, minutes
# What another machine may have: a refusal because of it is no verdict on the run.
_MACHINE = re.compile(
    r"(?i:environment variable|compute capability|transformer[ _-]?engine|nvidia_resiliency|apex|"
    r"\binstall)|CUDA_DEVICE_MAX_CONNECTIONS|NVTE_|\bTE\b|Blackwell|Hopper"
)


class Answer(BaseModel):
    """What the host says.

    Attributes:
        outcome: ``accepted``; ``refused``; ``refused by the plugin``; or ``not asked`` where it
            could not be.
        host: its name and version.
        text: why.
        warnings: of the plugin, on the way.
    """

    outcome: str
    host: str = ""
    text: str = ""
    warnings: list[str] = []

    @property
    def of_this_machine(self) -> bool:
        """Whether it refuses for what this machine lacks, and that of the run may have."""
        return bool(_MACHINE.search(self.text))


def without_plugin(words: Sequence[str]) -> list[str]:
    """The command without the plugin's flags, which then does nothing."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    return add_arguments(parser).parse_known_args(list(words))[1]


def ask(words: Sequence[str], nodes: int, devices: int, patience_s: float = PATIENCE_S) -> Answer:
    """Start the command ``-m domain_pretrain WORDS`` in a process that stops before any device.

    Args:
        words: of the command: a script perhaps, and the flags.
        nodes, devices: of the run, for the world size.
        patience_s: in seconds; a host that needs longer counts as not asked.
    """
    if any(word.split("=")[0] == "--yaml-cfg" for word in words):
        return Answer(outcome="not asked", text="with --yaml-cfg Megatron has other checks")
    ranks = {"WORLD_SIZE": str(nodes * devices), "LOCAL_WORLD_SIZE": str(devices)}
    process = subprocess.Popen(
        [sys.executable, "-m", "domain_pretrain.launch.rehearsal", *words],
        env={**os.environ, **SINGLE_PROCESS, **ranks, "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=patience_s)[0]
    except subprocess.TimeoutExpired:
        return Answer(outcome="not asked", text=f"it did not answer within {patience_s:g} s")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it has started
        process.wait()
    for line in reversed(output.splitlines()):
        if line.startswith(MARK):
            answer = Answer.model_validate(parse_json(line[len(MARK) :], "the host's answer"))
            return answer.model_copy(update={"warnings": _warnings(output)})
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
    return Answer(
        outcome="not asked", text=f"it ended with code {process.returncode}: {last[:300]}"
    )


def _warnings(output: str) -> list[str]:
    told = [line for line in output.splitlines() if line.startswith(_WARNING)]
    return [line.removeprefix(_WARNING) for line in dict.fromkeys(told)]
