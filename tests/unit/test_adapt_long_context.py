"""The recipe of a long-context stage: when it applies, and what it doubts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.checkpoints import write_checkpoint

from domain_pretrain.adapt.long_context import LONG_CONTEXT


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved = {"max_position_embeddings": 4096, "rotary_base": 10000}
    write_checkpoint(Path("base"), "iter_0000007", **saved)


def args(**given: Any) -> Any:
    usual = {"seq_length": 32768, "rotary_base": 10000, "position_embedding_type": "rope"}
    return SimpleNamespace(**{"load": "own", "pretrained_checkpoint": "base", **usual, **given})


def doubts(given: Any) -> list[bool]:
    return [one.applies(given) for one in LONG_CONTEXT.doubts]


def test_longer_samples_than_the_base_has_positions() -> None:
    assert LONG_CONTEXT.applies(args())
    assert LONG_CONTEXT.applies(args(load="base", finetune=True, pretrained_checkpoint=None))
    assert not LONG_CONTEXT.applies(args(seq_length=4096))


def test_the_base_is_what_a_run_with_finetune_starts_from_where_load_is_empty() -> None:
    assert LONG_CONTEXT.applies(args(finetune=True))


def test_the_checkpoint_that_ckpt_step_names() -> None:
    write_checkpoint(Path("base"), "iter_0000009", max_position_embeddings=65536)
    assert not LONG_CONTEXT.applies(args())
    assert LONG_CONTEXT.applies(args(ckpt_step=7))


@pytest.mark.parametrize("given", [{"pretrained_checkpoint": None}, {"load": "base"}])
def test_a_run_without_a_base_or_with_a_checkpoint_of_its_own(given: dict[str, Any]) -> None:
    assert not LONG_CONTEXT.applies(args(**given))


def test_a_base_that_cannot_be_read_is_the_hosts_affair() -> None:
    Path("base/iter_0000007/mp_rank_00/model_optim_rng.pt").write_bytes(b"torn")
    assert not LONG_CONTEXT.applies(args())


def test_one_rank_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert not LONG_CONTEXT.applies(args())


def test_the_rotary_base_should_grow() -> None:
    assert doubts(args()) == [True]
    assert doubts(args(rotary_base=1000000)) == [False]
    assert doubts(args(use_rope_scaling=True)) == [False]
    assert doubts(args(position_embedding_type="none")) == [False]
