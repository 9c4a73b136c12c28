"""The start of a run, without devices, up to the point where the host has validated its flags.

``python -m domain_pretrain.launch.rehearsal [SCRIPT.py] <flags>`` is ``-m domain_pretrain`` that
stops there. :mod:`.host` starts it, and reads the one line that it prints last.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, NoReturn

from domain_pretrain import enable
from domain_pretrain.__main__ import find_host, run, script_of
from domain_pretrain.backends import cpu
from domain_pretrain.errors import DomainPretrainError
from domain_pretrain.hosts.command_line import flags_of_command_line
from domain_pretrain.hosts.rehearsal import after_validation, refusal, version
from domain_pretrain.launch.host import MARK


def main() -> None:
    """Print ``MARK`` and a JSON object, ``outcome`` and ``text``; then end, whatever runs."""
    argparse.ArgumentParser.error = _refuse  # type: ignore[method-assign, assignment]
    try:
        script = script_of(sys.argv[1:])
        find_host(script)
    except DomainPretrainError as error:
        _answer("not asked", str(error))
    try:
        _without_devices()
        enable()
        after_validation(lambda: _answer("accepted"))
        run(script)
    except BaseException as error:  # whatever a script may raise
        found = refusal(error)
        if found is not None:
            _answer("refused" if found.by_host else "refused by the plugin", found.text)
        _answer("not asked", f"{type(error).__name__}: {error}")
    _answer("not asked", "the script ended before Megatron had validated the flags")


def _without_devices() -> None:
    """Let Megatron be imported, and start, on a node that has no device, as where it has one.

    The flags that the CPU backend supplies would change what is validated.
    """
    import torch

    # Before the host's checks, as with --inprocess-restart, or past them, as with --yaml-cfg: there
    # are no other processes to wait for.
    distributed: Any = torch.distributed
    distributed.init_process_group = distributed.TCPStore = _stop
    if find_spec("torch_npu"):
        return
    cpu.install()
    if flags_of_command_line().domain_backend != "cpu":
        sys.argv += ["--domain-backend", "cuda"]
        cuda: Any = torch.cuda  # some checks ask for the generation: the run may have any
        cuda.get_device_capability = lambda *_: (9, 0)
        cuda.get_device_properties = lambda *_: SimpleNamespace(name="", major=9, minor=0)


def _stop(*_: object, **__: object) -> NoReturn:
    _answer("not asked", "it asks for the other processes before it validates its flags")


def _refuse(_parser: argparse.ArgumentParser, message: str) -> NoReturn:
    raise ValueError(message)


def _answer(outcome: str, text: str = "") -> NoReturn:
    answer = {"outcome": outcome, "host": version(), "text": text}
    print(f"\n{MARK}{json.dumps(answer)}", flush=True)
    os._exit(0)  # threads and exit handlers of a run that never was


if __name__ == "__main__":
    main()
