"""A model whose training is to be continued must be there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from domain_pretrain.checkpoints.tracker import TRACKER
from domain_pretrain.errors import ConfigError
from domain_pretrain.hosts.base import check_base


def args(**given: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"load": None, "finetune": False, **given})


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Of every kind that users give."""
    contents = {
        "checkpoints": [TRACKER, "iter_0000004/metadata.json"],
        "empty": [],
        "hugging_face": ["config.json", "model-00001-of-00002.safetensors"],
        "older_hugging_face": ["config.json", "pytorch_model.bin"],
        "without_tracker": ["iter_0000004/metadata.json"],
        "torch_dist": [".metadata", "__0_0.distcp"],
        "data": [f"{name}.bin" for name in "abcdefg"],
    }
    for name, files in contents.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).parent.mkdir(exist_ok=True)
            (tmp_path / name / file).touch()
    (tmp_path / "checkpoints" / TRACKER).write_text("4", encoding="utf-8")
    (tmp_path / "file").touch()
    return tmp_path


WRONG = {
    "missing": "does not exist",
    "empty": "the folder is empty",
    "file": "it is a file",
    "hugging_face": "Hugging Face checkpoint; convert it first, `domain-pretrain import ",
    "older_hugging_face": "Hugging Face checkpoint; convert it first, `domain-pretrain import ",
    "without_tracker": f"{TRACKER} is missing",
    "torch_dist": "the folder of one iteration",
    "checkpoints/iter_0000004": "give the one above it, .*checkpoints ",
    "data": r"it holds a\.bin, b\.bin, c\.bin, d\.bin, e\.bin and 2 more",
}


@pytest.mark.parametrize("name", WRONG)
def test_nothing_to_start_from(name: str, folders: Path) -> None:
    folder = str(folders / name)
    message = f"{folder} holds no Megatron checkpoint to start from: .*{WRONG[name]}"
    with pytest.raises(ConfigError, match=f"^--load {message}"):
        check_base(args(load=folder, finetune=True))
    with pytest.raises(ConfigError, match=f"^--pretrained-checkpoint {message}"):
        check_base(args(load=str(folders / "empty"), pretrained_checkpoint=folder))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"finetune": True},
        {"load": "empty"},  # a run that will resume from what it saves
        {"load": "checkpoints", "finetune": True},
        {"load": "s3://bucket/model", "finetune": True},
        {"load": "empty", "pretrained_checkpoint": "checkpoints"},
        {"load": "checkpoints", "pretrained_checkpoint": "missing"},  # base first, own later
        {"load": "checkpoints", "ckpt_step": 4},
        {"load": "without_tracker", "finetune": True, "ckpt_step": 4},  # Megatron asks no tracker
        {"load": "empty", "pretrained_checkpoint": "checkpoints", "ckpt_step": 4},
        {"load": "hugging_face", "finetune": True, "enable_hf2mg_convert": True},
    ],
)
def test_starts_that_are_right(
    given: dict[str, Any], folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders)
    check_base(args(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"load": "checkpoints", "ckpt_step": 5}, "iter_0000005 .* --ckpt-step 5 names.*: 4$"),
        ({"load": "empty", "ckpt_step": 5}, "iter_0000005 .* --ckpt-step 5 names.*: none$"),
        ({"load": "ahead"}, "ahead/iter_0000009 .*which its latest.* names; iterations there: 4$"),
        ({"load": "torn"}, "of torn is torn: '4four'"),
    ],
)
def test_the_iteration_that_is_named_must_be_there(
    given: dict[str, Any], message: str, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders)
    for name, said in (("checkpoints", "4"), ("ahead", "9"), ("torn", "4four")):
        (folders / name / "iter_0000004").mkdir(parents=True, exist_ok=True)
        (folders / name / TRACKER).write_text(said, encoding="utf-8")
    for finetune in (False, True):
        with pytest.raises(ConfigError, match=message):
            check_base(args(**given, finetune=finetune))


@pytest.mark.parametrize("name", ["x" * 400, "a\0b"])
def test_a_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(ConfigError, match="the folder does not exist"):
        check_base(args(load=name, finetune=True))
