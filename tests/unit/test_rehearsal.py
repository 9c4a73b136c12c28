"""What counts as the host's refusal, and what as a start that went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from domain_pretrain.errors import ConfigError, DomainPretrainError, UnsupportedError
from domain_pretrain.hosts.megatron import clear_exit
from domain_pretrain.hosts.rehearsal import Refusal, refusal
from domain_pretrain.launch.host import MARK, Answer, ask
from domain_pretrain.launch.preflight import inspect

# Of a module that belongs to the host, by its name.
HOST = """
def validate_args(args):
    stages = 4
    if args.kind == "text":
        assert args.num_layers % stages == 0, "layers must be divisible"
    elif args.kind == "bare":
        assert (
            args.num_layers
            % stages == 0
        )
    elif args.kind == "attribute":
        args.nothing
    elif args.kind == "call":
        args.call()
    raise ValueError("what for")

def helper(args):
    raise ValueError("not a check")
"""


@pytest.fixture
def host(tmp_path: object) -> dict[str, Callable[..., None]]:
    path = f"{tmp_path}/arguments.py"
    with open(path, "w", encoding="utf-8") as file:
        file.write(HOST)
    names: dict[str, Callable[..., None]] = {"__name__": "megatron.training.arguments"}  # type: ignore[dict-item]
    exec(compile(HOST, path, "exec"), names)
    return names


def raised(call: Callable[..., None], *args: object) -> BaseException:
    with pytest.raises(BaseException) as caught:
        call(*args)
    return caught.value


def args(kind: str) -> SimpleNamespace:
    def call() -> None:
        raise RuntimeError("of a library that it calls")

    return SimpleNamespace(kind=kind, num_layers=5, call=call)


def test_a_failed_check_is_told_with_what_it_looked_at(
    host: dict[str, Callable[..., None]],
) -> None:
    check = host["validate_args"]
    values = "(num_layers = 5, stages = 4)"
    said = {
        "text": f"layers must be divisible {values}",
        "bare": f"it asserts args.num_layers % stages == 0 {values}",
        "other": "what for",
    }
    for kind, text in said.items():
        assert refusal(raised(check, args(kind))) == Refusal(text)


def test_what_breaks_is_no_refusal(host: dict[str, Callable[..., None]]) -> None:
    check = host["validate_args"]
    for kind in ("attribute", "call"):
        assert refusal(raised(check, args(kind))) is None
    assert refusal(raised(host["helper"], args("text"))) is None
    assert refusal(SystemExit(1)) is None
    assert refusal(KeyboardInterrupt()) is None


@pytest.mark.parametrize("kind", [ConfigError, UnsupportedError])
def test_the_plugins_own_refusals(kind: type[DomainPretrainError]) -> None:
    def stop() -> None:
        with clear_exit():
            raise kind("the config is wrong")

    assert refusal(raised(stop)) == Refusal("the config is wrong", by_host=False)
    assert refusal(kind("no such config")) == Refusal("no such config", by_host=False)


@pytest.mark.parametrize(
    "text",
    [
        "Only transformer-engine>=1.7.0 supports MoE FP8 training, but your version is 0.0.0.",
        "requires setting the environment variable CUDA_DEVICE_MAX_CONNECTIONS to 1",
        "Unsupported compute capability for GroupedGEMM kernels.",
        "nvidia_resiliency_ext is required for local checkpointing",
        "Overlapping needs TE >= 2.3",
    ],
)
def test_what_this_machine_lacks_is_no_verdict(text: str) -> None:
    assert Answer(outcome="refused", text=text).of_this_machine


def test_what_is_wrong_anywhere_is_one() -> None:
    text = "world size (8) is not divisible by total_model_size (total_model_size=3)"
    assert not Answer(outcome="refused", text=text).of_this_machine


def test_what_the_plugin_warns_of_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that the host prints, before its answer, which is the last line of its kind."""
    python = tmp_path / "python"
    answer = Answer(outcome="accepted", host="megatron.core 0.19.2").model_dump_json()
    lines = [
        "using world size: 1",
        "domain_pretrain: mix: dynamic: decided for 64 samples at a time",
        "domain_pretrain: WARNING: hold: epsilon is small",
        "domain_pretrain: WARNING: hold: epsilon is small",
        "WARNING: of the host's own",
        f"{MARK}{answer}",
    ]
    python.write_text(f"#!/bin/sh\ncat <<'END'\n{chr(10).join(lines)}\nEND\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    told = ask(["--lr", "1"], 1, 1)
    assert (told.outcome, told.warnings) == ("accepted", ["hold: epsilon is small"])
    report = inspect(["--lr", "1"], 1, 1, lambda *_: told)
    assert report.warnings.count("hold: epsilon is small") == 1
