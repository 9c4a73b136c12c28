"""What the adapter for Megatron-Bridge says without it; test_bridge.py of tests/e2e runs it."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from domain_pretrain.config import DomainConfig
from domain_pretrain.errors import ConfigError, IntegrityError, UnsupportedError
from domain_pretrain.flags import PluginArgs
from domain_pretrain.hosts import bridge
from domain_pretrain.hosts.bridge import BridgeDomains
from domain_pretrain.hosts.session import Session


def forward_step(state: Any, data_iterator: Any, model: Any) -> Any: ...


def test_the_host_sees_the_parameters_of_the_original() -> None:
    wrapped = BridgeDomains().wrap(forward_step)
    assert inspect.signature(wrapped) == inspect.signature(forward_step)


def test_a_forward_step_without_an_iterator_is_refused() -> None:
    with pytest.raises(ConfigError, match="must take data_iterator, it takes state, batch"):
        BridgeDomains().wrap(lambda state, batch: None)


def test_a_forward_step_without_its_callbacks_is_refused() -> None:
    with pytest.raises(IntegrityError, match="callbacks="):
        BridgeDomains().wrap(forward_step)(None, iter(()), None)


def config(**changed: Any) -> Any:
    """A config of Megatron-Bridge's, as far as the plugin looks at it."""
    sections: dict[str, dict[str, Any]] = {
        "model": {
            "cuda_graph_impl": "local",
            "seq_length": 8,
            "context_parallel_size": 1,
            "pipeline_model_parallel_size": 1,
            "calculate_per_token_loss": True,
        },
        "train": {"micro_batch_size": 1, "global_batch_size": 2},
        "dataset": {"blend": (["s3://bucket/a"], None), "blend_per_split": None},
        "dist": {"use_decentralized_pg": False},
        "ddp": {},
        "checkpoint": {"save": None},
        "logger": {"tensorboard_dir": None},
        "inprocess_restart": {"enabled": False},
    }
    for name, value in changed.items():
        section, _, key = name.partition("__")
        sections[section][key] = value
    return SimpleNamespace(**{name: SimpleNamespace(**keys) for name, keys in sections.items()})


def check(cfg: Any, reweight: str | None = None) -> None:
    options = PluginArgs(channel_loss=True, domain_reweight=reweight)
    Session(bridge._facts(cfg, options), options, DomainConfig())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model__cuda_graph_impl": "full_iteration"}, "full-iteration CUDA graph"),
        ({"dist__use_decentralized_pg": True}, "use_decentralized_pg"),
        ({"dataset__multiple_validation_sets": True}, "multiple_validation_sets"),
        # What Megatron-LM's users are told holds here, too.
        ({"model__cuda_graph_scope": ["full_iteration"]}, "full-iteration CUDA graph"),
        ({"model__cuda_graph_modules": "full_iteration"}, "full-iteration CUDA graph"),
        ({"inprocess_restart__enabled": True}, "restart inside the process"),
        ({"model__hybrid_context_parallel": True}, "hybrid-context-parallel"),
        ({"model__gtp_weight_remat_size": 2}, "tensor-parallel-num-weight-shards"),
    ],
)
def test_what_cannot_be_right_is_refused(wrong: dict[str, Any], said: str) -> None:
    pytest.importorskip("megatron.core")
    check(config())
    with pytest.raises(UnsupportedError, match=said):
        check(config(**wrong))


def test_missing_data_files_are_named() -> None:
    pytest.importorskip("megatron.core")
    with pytest.raises(ConfigError, match=r"'nowhere\.idx' does not exist"):
        check(config(dataset__blend=(["nowhere"], None)))


def test_an_unknown_core_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    core = pytest.importorskip("megatron.core")
    monkeypatch.setattr(core, "__version__", "9.9.9")
    with pytest.raises(UnsupportedError, match=r"9\.9\.9 is outside of the supported range"):
        check(config())


def test_weights_without_per_token_loss_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("megatron.core")
    check(config(), "linupper")
    assert "WARNING" not in capsys.readouterr().out
    check(config(model__calculate_per_token_loss=False), "linupper")
    assert "without --calculate-per-token-loss" in capsys.readouterr().out


def test_the_old_name_of_wrap() -> None:
    assert inspect.signature(BridgeDomains().watch(forward_step)) == inspect.signature(forward_step)


def test_a_checkpoint_of_a_run_without_the_plugin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"iter_0000007/domain_pretrain\.json is missing"):
        bridge._load(str(tmp_path), 7)
