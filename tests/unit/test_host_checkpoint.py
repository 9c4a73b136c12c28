"""The plugin's leaf in a checkpoint, and where a format leaves it behind."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint as dcp

from domain_pretrain.errors import IntegrityError, UnsupportedError
from domain_pretrain.hosts import upstream
from domain_pretrain.hosts.checkpoint import STATE_KEY, find_missed, pack, unpack
from domain_pretrain.hosts.runtime import Runtime

STATE = {
    "version": 1,
    "domains": ["finance/news", "a.b"],
    "consumed": {"a.b": {"tokens": 2**70, "samples": 3}},
    "windows": {"a.b": [[[1, 2]], [[3, 4]]]},
    "reweight": {"weights": {"a.b": 0.1 + 0.2}, "step": 7},
}


def save(folder: Path, **scheduler: Any) -> str:
    state = {"model": {"w": torch.ones(3)}, "opt_param_scheduler": {"max_lr": 1.0, **scheduler}}
    dcp.save(state, checkpoint_id=folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("written", [pack(STATE), STATE], ids=["a leaf", "as 0.1 did"])
def test_a_leaf_that_the_template_did_not_ask_for(written: Any, tmp_path: Path) -> None:
    assert unpack(find_missed(save(tmp_path, **{STATE_KEY: written}))) == STATE


@pytest.mark.filterwarnings("ignore")
def test_checkpoints_without_our_leaf(tmp_path: Path) -> None:
    assert find_missed(save(tmp_path / "alone")) is None
    assert find_missed(str(tmp_path / "of another format")) is None
    assert find_missed("") is None


@pytest.mark.filterwarnings("ignore")
def test_the_host_is_given_what_its_format_left_out(tmp_path: Path) -> None:
    folder = save(tmp_path, **{STATE_KEY: pack(STATE)})
    loaded: dict[str, Any] = {"opt_param_scheduler": {"max_lr": 1.0}}
    Runtime().look_into(loaded, folder)
    assert unpack(loaded["opt_param_scheduler"][STATE_KEY]) == STATE
    for partial in ({}, {"opt_param_scheduler": None}):  # weights alone, --no-load-optim
        Runtime().look_into(partial, folder)
        assert not partial.get("opt_param_scheduler")


def test_state_that_the_host_does_not_hand_on(tmp_path: Path) -> None:
    """Absence at the load is not absence in the checkpoint."""
    loaded = {"opt_param_scheduler": {STATE_KEY: pack(STATE)}}

    def check(*, handed_on: bool = False, **args: Any) -> None:
        runtime = Runtime(SimpleNamespace(**{"iteration": 4, **args}))
        runtime.look_into(loaded, "checkpoints/iter_0000004")
        if handed_on:
            runtime.load_state_leaf(pack(STATE))
        runtime._check_loaded()

    with pytest.raises(IntegrityError, match="iter_0000004 holds domain_pretrain's state, but"):
        check()
    check(handed_on=True)
    check(no_load_optim=True)
    check(iteration=0)  # --finetune


def test_the_leaf_is_one_text() -> None:
    """Formats that store every leaf by itself store one."""
    assert isinstance(pack(STATE), str)
    assert json.loads(pack(STATE)) == STATE


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("iteration 10", ("valid", False)),
        ("iteration 10 on validation set", ("valid", True)),
        ("iteration 10 on test set", ("test", True)),
    ],
)
def test_what_an_evaluation_is_of(prefix: str, expected: tuple[str, bool]) -> None:
    assert upstream.evaluated(prefix) == expected


@pytest.mark.parametrize("prefix", ["step 10", "iteration 10 on the test split", "before training"])
def test_evaluations_of_another_wording(prefix: str) -> None:
    """To take one for another split would be silently wrong."""
    with pytest.raises(UnsupportedError, match=prefix):
        upstream.evaluated(prefix)
