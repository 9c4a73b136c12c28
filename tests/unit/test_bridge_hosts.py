"""What the adapter for Megatron-Bridge says without it; test_bridge.py of tests/e2e runs it."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from domain_pretrain.errors import ConfigError, IntegrityError, UnsupportedError
from domain_pretrain.hosts import bridge
from domain_pretrain.hosts.bridge import BridgeDomains


def forward_step(state: Any, data_iterator: Any, model: Any) -> Any: ...


def test_the_host_sees_the_parameters_of_the_original() -> None:
    watched = BridgeDomains().watch(forward_step)
    assert inspect.signature(watched) == inspect.signature(forward_step)


def test_a_forward_step_without_an_iterator_is_refused() -> None:
    with pytest.raises(ConfigError, match="must take data_iterator, it takes state, batch"):
        BridgeDomains().watch(lambda state, batch: None)


def test_a_forward_step_without_its_callbacks_is_refused() -> None:
    with pytest.raises(IntegrityError, match="callbacks="):
        BridgeDomains().watch(forward_step)(None, iter(()), None)


@pytest.mark.parametrize(
    ("part", "wrong", "said"),
    [
        ("dataset", SimpleNamespace(), "is no blend of Megatron data"),
        ("model", SimpleNamespace(cuda_graph_impl="full_iteration"), "full_iteration"),
        ("dist", SimpleNamespace(use_decentralized_pg=True), "use_decentralized_pg"),
    ],
)
def test_what_cannot_be_right_is_refused(part: str, wrong: Any, said: str) -> None:
    right = {
        "dataset": SimpleNamespace(blend=None),
        "model": SimpleNamespace(cuda_graph_impl="local"),
        "dist": SimpleNamespace(use_decentralized_pg=False),
    }
    bridge._refuse(SimpleNamespace(**right))
    with pytest.raises(UnsupportedError, match=said):
        bridge._refuse(SimpleNamespace(**{**right, part: wrong}))


def test_a_checkpoint_of_a_run_without_the_plugin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"iter_0000007/domain_pretrain\.json is missing"):
        bridge._load(str(tmp_path), 7)
