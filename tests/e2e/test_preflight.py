"""The preflight asks the real Megatron: what it accepts and refuses, without a device."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from domain_pretrain.commands import main as cli
from domain_pretrain.launch.host import Answer, ask

pytestmark = pytest.mark.megatron

RUN = shlex.split(
    "--num-layers 8 --hidden-size 64 --num-attention-heads 4 --seq-length 64 "
    "--max-position-embeddings 64 --train-iters 20 --micro-batch-size 1 --global-batch-size 64 "
    "--lr 1e-3 --bf16 --mock-data --tokenizer-type NullTokenizer --vocab-size 257 "
    "--disable-bias-linear"
)
MOE = "--num-experts 8 --moe-grouped-gemm --expert-model-parallel-size 4 --sequence-parallel"

ACCEPTED = [
    "",
    # Stages that are not equal.
    "--num-layers 7 --pipeline-model-parallel-size 4 --account-for-embedding-in-pipeline-split",
    "--num-layers 7 --pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 1",
    f"--tensor-model-parallel-size 2 {MOE}",
]
REFUSED = {
    "--tensor-model-parallel-size 3": "world size (64)",
    "--num-layers 7 --pipeline-model-parallel-size 4": "num_layers = 7",
    "--num-atention-heads 8": "unrecognized arguments: --num-atention-heads 8",
    "--lr much": "argument --lr: invalid float value: 'much'",
    "--hidden-size 60 --num-attention-heads 6 --tensor-model-parallel-size 4": "(4)",
    "--global-batch-size 66": "66",
}


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkout's script, where one is named; else the built-in one."""
    monkeypatch.chdir(tmp_path)
    checkout = os.environ.get("MEGATRON_LM_PATH")
    return [f"{checkout}/pretrain_gpt.py"] if checkout else []


@pytest.mark.checkout
@pytest.mark.parametrize("more", ACCEPTED)
def test_what_trains_is_accepted(more: str, script: list[str]) -> None:
    answer = ask([*script, *RUN, *more.split()], 8, 8)
    assert (answer.outcome, answer.text) == ("accepted", "")
    assert answer.host.startswith("megatron.core 0.")


@pytest.mark.checkout
@pytest.mark.parametrize("more", REFUSED)
def test_what_does_not_is_refused_in_its_words(more: str, script: list[str]) -> None:
    answer = ask([*script, *RUN, *more.split()], 8, 8)
    assert answer.outcome == "refused"
    assert REFUSED[more] in answer.text
    assert not answer.of_this_machine


@pytest.mark.checkout
def test_what_the_plugin_refuses(script: list[str]) -> None:
    answer = ask([*script, *RUN, "--domain-config", "gone.yaml"], 8, 8)
    assert answer.outcome == "refused by the plugin"
    assert "gone.yaml" in answer.text


def test_the_command_tells(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["preflight", "--devices-per-node", "8", "--", *RUN]
    assert cli.main(words) == 0
    assert "accepts them" in capfd.readouterr().out
    assert cli.main([*words, "--pipeline-model-parallel-size", "3"]) == 2
    assert "refuses: world size (8) is not divisible" in capfd.readouterr().err
    assert not list(Path().iterdir()), "it leaves nothing behind"


def answer_of(source: str, *words: str, patience_s: float = 100) -> Answer:
    Path("mine.py").write_text(source, encoding="utf-8")
    return ask(["mine.py", *RUN, *words], 8, 8, patience_s)


def test_a_script_has_flags_of_its_own() -> None:
    source = """
from megatron.training.arguments import parse_args, validate_args
def mine(parser):
    parser.add_argument("--mine", type=int)
    return parser
validate_args(parse_args(mine))
"""
    assert answer_of(source, "--mine", "3").outcome == "accepted"
    assert answer_of(source, "--mine", "x").text == "argument --mine: invalid int value: 'x'"
    assert answer_of(source, "--other", "3").text == "unrecognized arguments: --other 3"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("", "the script ended before Megatron had validated the flags"),
        ("import os; os._exit(7)", "it ended with code 7"),
        (
            "import torch; torch.distributed.init_process_group('gloo')",
            "it asks for the other processes before it validates its flags",
        ),
    ],
)
def test_a_host_that_cannot_be_asked_is_no_refusal(source: str, text: str) -> None:
    answer = answer_of(source)
    assert answer.outcome == "not asked"
    assert text in answer.text


def test_a_host_that_does_not_answer_is_ended() -> None:
    """And what it has started with it."""
    source = """
import os, subprocess, time
child = subprocess.Popen(["sleep", "600"])
with open("pid", "w") as file:
    file.write(str(child.pid))
time.sleep(600)
"""
    answer = answer_of(source, patience_s=20)
    assert (answer.outcome, answer.text) == ("not asked", "it did not answer within 20 s")
    stat = Path("/proc", Path("pid").read_text(encoding="utf-8"), "stat")
    assert not stat.exists() or stat.read_text(encoding="utf-8").split()[2] == "Z"


def test_a_start_that_waits_for_other_processes() -> None:
    answer = ask([*RUN, "--inprocess-restart"], 8, 8)
    assert answer.outcome == "not asked"
    assert "it asks for the other processes" in answer.text


def test_no_megatron(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGATRON_LM_PATH", "/nowhere")
    answer = ask(RUN, 1, 1)
    assert answer.outcome == "not asked"
    assert "no folder megatron/training in it" in answer.text
