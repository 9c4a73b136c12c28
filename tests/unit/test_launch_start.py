"""From which weights a run starts: what the preflight says about folders of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from domain_pretrain.checkpoints.tracker import TRACKER
from domain_pretrain.errors import ConfigError
from domain_pretrain.hosts.base import check_base
from domain_pretrain.launch.flags import Flags
from domain_pretrain.launch.preflight import inspect
from domain_pretrain.launch.start import find_start


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run", "base", "untold"):
        for iteration in (5, 10):
            part = Path(name, f"iter_{iteration:07d}", "mp_rank_00")
            part.mkdir(parents=True)
            torch.save({"a": 1}, part / "model_optim_rng.pt")
        if name != "untold":
            Path(name, TRACKER).write_text("10", encoding="utf-8")
    Path("released/release/mp_rank_00").mkdir(parents=True)
    Path("released", TRACKER).write_text("release\n", encoding="utf-8")
    Path("empty").mkdir()
    Path("hugging_face").mkdir()
    Path("hugging_face/model.safetensors").touch()


STARTS = {
    "": "random weights",
    "--load empty": "random weights: empty holds no checkpoint yet",
    "--load gone": "random weights: gone holds no checkpoint yet",
    "--load run": "iteration 10 of run",
    "--load run --ckpt-step 5": "iteration 5 of run",
    "--load untold --ckpt-step 5": "iteration 5 of untold",
    "--load untold": "iteration 10 (the launch scripts make its tracker say so before they start) "
    "of untold",
    "--load run --finetune": "the weights of iteration 10 of run; counts from 0",
    "--load run --finetune --ckpt-step 5": "the weights of iteration 5 of run; counts from 0",
    "--load released": "the released weights of released",
    "--load released --finetune": "the released weights of released",
    "--load run --pretrained-checkpoint base": "iteration 10 of run",
    "--load empty --pretrained-checkpoint base": "the weights of iteration 10 of base; "
    "counts from 0",
    "--pretrained-checkpoint base": "the weights of iteration 10 of base; counts from 0",
    "--load empty --pretrained-checkpoint released": "the released weights of released",
    "--load s3://bucket/run": "what s3:/bucket/run names (an object store: not looked into)",
    "--load s3://bucket/run --pretrained-checkpoint gone": "what s3:/bucket/run names (an object "
    "store: not looked into)",
    "--load hugging_face --enable-hf2mg-convert": "hugging_face, converted by MindSpeed-LLM",
}


@pytest.mark.parametrize("words", STARTS)
def test_where_it_starts(words: str) -> None:
    assert find_start(Flags.parse(["--channel-loss", *words.split()])) == (STARTS[words], [])


@pytest.mark.parametrize("folder", ["gone", "empty", "hugging_face", "base/iter_0000010"])
@pytest.mark.parametrize(
    "words", ["--finetune --load {}", "--load empty --pretrained-checkpoint {}"]
)
def test_a_base_that_is_not_there_is_what_the_run_says(folder: str, words: str) -> None:
    given = [*words.format(folder).split(), "--channel-loss"]
    with pytest.raises(ConfigError) as refused:
        check_base(Flags.parse(given))
    assert str(refused.value) in inspect(given, 1, 1).problems


def test_without_channel_loss_megatron_trains_from_random_weights() -> None:
    report = inspect(["--finetune", "--load", "empty"], 1, 1)
    assert not report.problems
    assert dict(report.rows)["starts from"] == "random weights"
    (warning,) = report.warnings
    assert warning.startswith("Megatron would start from random weights: --load empty holds no")
    # It does not from --pretrained-checkpoint: that it must find.
    assert inspect(["--load", "empty", "--pretrained-checkpoint", "gone"], 1, 1).problems


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--load run --ckpt-step 7", "iter_0000007 does not exist, which --ckpt-step 7 names"),
        ("--pretrained-checkpoint torn", "of torn is torn: ''"),
        ("--pretrained-checkpoint square", "of square is torn: '²'"),
        ("--pretrained-checkpoint long", "of long is torn: '999"),
        ("--pretrained-checkpoint ahead", "iter_0000020 does not exist, which its latest_"),
        ("--pretrained-checkpoint cut", "iter_0000010 is not good: mp_rank_00/model_optim_rng.pt"),
    ],
)
def test_what_is_named_must_be_there(words: str, said: str) -> None:
    trackers = {"torn": "", "square": "²", "long": "9" * 5000, "ahead": "20", "cut": "10"}
    for name, tracker in trackers.items():
        Path(name).mkdir()
        Path(name, TRACKER).write_text(tracker, encoding="utf-8")
    Path("cut/iter_0000010/mp_rank_00").mkdir(parents=True)
    Path("cut/iter_0000010/mp_rank_00/model_optim_rng.pt").write_bytes(b"PK")
    problems = inspect(words.split(), 1, 1).problems
    assert len(problems) == 1
    assert said in problems[0]


def test_a_broken_newest_checkpoint_is_told() -> None:
    Path("run/iter_0000010/mp_rank_00/model_optim_rng.pt").write_bytes(b"PK")
    report = inspect(["--load", "run"], 1, 1)
    assert "iteration 5" in dict(report.rows)["starts from"]
    assert "iter_0000010 is not good" in report.warnings[0]
