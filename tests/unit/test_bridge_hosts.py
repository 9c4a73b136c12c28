"""What the adapter for Megatron-Bridge says without it; test_bridge.py of tests/e2e runs it."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from domain_pretrain.config import DomainConfig
from domain_pretrain.data.origin import ById
from domain_pretrain.errors import ConfigError, IntegrityError, UnsupportedError
from domain_pretrain.flags import PluginArgs
from domain_pretrain.flow.domain_step import DomainStep
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.tap import Source
from domain_pretrain.hosts import bridge
from domain_pretrain.hosts.bridge import BridgeDomains
from domain_pretrain.hosts.session import Session
from domain_pretrain.records.record import Record


def forward_step(state: Any, data_iterator: Any, model: Any) -> Any: ...


def test_the_host_sees_the_parameters_of_the_original() -> None:
    wrapped = BridgeDomains().wrap(forward_step)
    assert inspect.signature(wrapped) == inspect.signature(forward_step)


def test_a_stream_of_our_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text("mix: {skip: [{samples: [0, 8]}]}", "utf-8")
    with pytest.raises(UnsupportedError, match="mix is not supported with Megatron-Bridge"):
        BridgeDomains(tmp_path / "mix.yaml")


def test_a_cut_in_a_stream_of_our_own_is_refused(tmp_path: Path) -> None:
    """Not by an error that asks for mix, which is refused as well."""
    (tmp_path / "watch.yaml").write_text("watch: {on_spike: rollback}", "utf-8")
    with pytest.raises(UnsupportedError, match="not with Megatron-Bridge: give on_spike: stop"):
        BridgeDomains(tmp_path / "watch.yaml")


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
        "dataset": {"blend": (["s3://bucket/a"], None), "blend_per_split": None, "split": "8,1,1"},
        "dist": {"use_decentralized_pg": False},
        "ddp": {},
        "checkpoint": {"save": None},
        "optimizer": {"optimizer": "adam", "lr": 1e-3, "clip_grad": 1.0},
        "scheduler": {"lr_decay_style": "cosine", "lr_warmup_iters": 10},
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
        ({"checkpoint__non_persistent_ckpt_type": "local"}, "non_persistent_ckpt_type: local"),
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


def test_runs_can_be_compared_by_what_the_optimizer_is_told() -> None:
    pytest.importorskip("megatron.core")
    told = bridge._facts(config(), PluginArgs(channel_loss=True)).hyperparameters
    assert told == {
        **{"seq_length": 8, "global_batch_size": 2, "micro_batch_size": 1},
        **{"optimizer": "adam", "lr": 1e-3, "clip_grad": 1.0},
        **{"lr_decay_style": "cosine", "lr_warmup_iters": 10},
    }


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


# Checkpoints.


class TrainState:
    """Megatron-Bridge's, as far as checkpoints go."""

    def __init__(self, step: int) -> None:
        self.step = step

    def state_dict(self) -> dict[str, Any]:
        return {"step": torch.tensor(self.step)}

    def save(self, folder: Path) -> None:
        """As the host saves a checkpoint."""
        where = folder / f"iter_{self.step:07d}"
        where.mkdir(parents=True)
        torch.save(self.state_dict(), where / "train_state.pt")


def loads_from(folder: Path | str | None, **more: Any) -> Any:
    """The checkpoint section of a config."""
    return SimpleNamespace(**{"load": None if folder is None else str(folder), **more})


def saved_with(folder: Path, step: int, state: Any) -> None:
    train_state = TrainState(step)
    bridge._carry(train_state, lambda: {"tokens": state})
    train_state.save(folder)


def test_the_state_rides_in_the_train_state(tmp_path: Path) -> None:
    for step in (3, 7):
        saved_with(tmp_path, step, 10 * step)
    assert bridge._load(loads_from(tmp_path), 7) == {"tokens": 70}
    assert bridge._load(loads_from(tmp_path / "iter_0000003"), 3) == {"tokens": 30}


def test_the_state_is_that_of_the_request() -> None:
    train_state, tokens = TrainState(3), [30]
    bridge._carry(train_state, lambda: {"tokens": tokens[0]})
    requested = train_state.state_dict()
    train_state.step, tokens[0] = 5, 50
    assert requested == {"step": torch.tensor(3), bridge.STATE_KEY: {"tokens": 30}}


def test_a_non_persistent_checkpoint_goes_before_a_persistent_one(tmp_path: Path) -> None:
    """As in the host, which reads its newest, and of two at one step the non-persistent."""
    saved_with(tmp_path, 7, "persistent")
    saved_with(tmp_path / "non_persistent", 7, "beside")
    saved_with(tmp_path / "elsewhere", 7, "elsewhere")
    more = {"non_persistent_ckpt_type": "global", "save": None}
    for place, found in (
        (None, "beside"),
        (tmp_path / "elsewhere", "elsewhere"),
        (tmp_path / "nowhere", "persistent"),
    ):
        settings = loads_from(tmp_path, non_persistent_global_ckpt_dir=place, **more)
        assert bridge._load(settings, 7) == {"tokens": found}


def test_a_checkpoint_of_before_has_the_state_beside_it(tmp_path: Path) -> None:
    TrainState(7).save(tmp_path)
    (tmp_path / "iter_0000007" / "domain_pretrain.json").write_text('{"tokens": 70}')
    assert bridge._load(loads_from(tmp_path), 7) == {"tokens": 70}


def test_a_checkpoint_of_a_run_without_the_plugin_is_refused(tmp_path: Path) -> None:
    TrainState(7).save(tmp_path)
    with pytest.raises(ConfigError, match=r"iter_0000007/train_state\.pt holds no state"):
        bridge._load(loads_from(tmp_path), 7)


@pytest.mark.parametrize("folder", [None, "", "iter_0000008"])
def test_the_state_of_another_step_is_refused(folder: str | None, tmp_path: Path) -> None:
    saved_with(tmp_path, 7, 70)
    (tmp_path / "iter_0000007").rename(tmp_path / "iter_0000008")
    settings = loads_from(None if folder is None else tmp_path / folder)
    with pytest.raises(ConfigError, match=r"after step 8, but no train_state\.pt of that step"):
        bridge._load(settings, 8)


def test_a_save_that_left_the_state_out_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    domains = BridgeDomains()
    monkeypatch.setattr(bridge.dist, "get_rank", lambda: 0)
    step = SimpleNamespace(state_dict=lambda: {"tokens": 30})
    monkeypatch.setattr(domains, "_step", step)
    monkeypatch.setattr(domains, "_session", object())
    context = SimpleNamespace(state=SimpleNamespace(train_state=TrainState(3)))
    domains.on_train_start(context)
    assert context.state.train_state.state_dict()[bridge.STATE_KEY] == {"tokens": 30}
    domains.on_checkpoint_save(context)
    with pytest.raises(IntegrityError, match="without asking its train state"):
        domains.on_checkpoint_save(context)


@pytest.mark.parametrize("repeated", [False, True])
def test_an_evaluation_that_is_not_published_leaves_nothing_to_the_next(
    repeated: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of schedules that the host repeats no callback tells which; of one cut off there is none."""
    published: list[Record] = []
    exporter = SimpleNamespace(
        scalars=lambda record: None, line=published.append, finding=lambda finding: None
    )
    domains, names = BridgeDomains(), ("a", "b")
    domains._step = DomainStep(names, Groups(), torch.device("cpu"), exporter)  # type: ignore[arg-type]
    source = Source(ById((0, 1)))
    domains._session = SimpleNamespace(source=lambda split: source)  # type: ignore[assignment]
    cfg = config(train__eval_iters=3)  # of 2 microbatches each
    progress = SimpleNamespace(step=4, consumed_train_samples=8)
    state = SimpleNamespace(cfg=cfg, train_state=progress)
    context = SimpleNamespace(state=state, model=[None])

    def loss_func(mask: torch.Tensor, losses: torch.Tensor) -> tuple[Any, ...]:
        loss = (mask * losses).sum()
        return loss, mask.sum().int(), {"lm loss": loss}

    def forward(state: Any, data_iterator: Any, model: Any) -> Any:
        batch = next(data_iterator)
        return torch.ones(1, 8), functools.partial(loss_func, batch["loss_mask"])

    batch = {"loss_mask": torch.ones(1, 8), "dataset_id": torch.tensor([1], dtype=torch.int16)}
    wrapped = domains.wrap(forward)

    def evaluate(forwards: int, *, to_its_end: bool = True) -> None:
        domains.on_eval_start(context)
        for _ in range(forwards):
            losses, loss = wrapped(state, iter([batch]), None)
            loss(losses)
        if to_its_end:
            domains.on_eval_end(context)

    if repeated:
        evaluate(8)
        assert "8 forward passes instead of 6" in capsys.readouterr().out
    else:
        evaluate(2, to_its_end=False)  # time ran out on it
    assert not published
    evaluate(6)
    (record,) = published
    assert record.stats.get("b") is not None
    assert record.stats.total.tokens == 48
