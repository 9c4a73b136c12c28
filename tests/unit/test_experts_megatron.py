"""The routers' own loss, beside the host's: real code of Megatron's router, without a run."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from domain_pretrain.adapt.experts import Experts
from domain_pretrain.backends import cpu
from domain_pretrain.hosts import experts
from domain_pretrain.seams.seam import undo

RANKS, COEFFICIENT = 4, 0.7


@pytest.fixture(scope="module")
def module() -> Any:
    cpu.skip_cuda_extensions()
    return pytest.importorskip("megatron.core.transformer.moe.router")


@pytest.fixture
def hooked(module: Any) -> Iterator[Any]:
    """The class, as it is with an entropy loss asked for."""
    experts.install(Experts(entropy_loss=COEFFICIENT))
    yield module.TopKRouter
    experts.install(None)
    for seam in experts.EXPERT_SEAMS:
        undo(seam, module)


def router(module: Any, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    """What the host's method asks of its router, among four ranks that share a sequence."""
    group = SimpleNamespace(size=lambda: RANKS)
    state = getattr(module, "parallel_state", None)  # before 0.14, the sizes come from here
    if state is not None:
        name = "get_tensor_and_context_parallel_world_size"
        monkeypatch.setattr(state, name, lambda: RANKS)
    made = SimpleNamespace(
        config=SimpleNamespace(
            moe_z_loss_coeff=None,
            moe_router_score_function="softmax",
            num_layers=2,
            mtp_num_layers=None,
            mtp_use_repeated_layer=False,
        ),
        training=True,
        calculate_per_token_loss=True,
        layer_number=1,
        is_mtp_layer=False,
        tp_dp_cp_group=None,
    )
    if state is None or hasattr(module, "ProcessGroupCollection"):
        made.tp_cp_group = group
    vars(made).update(changes)
    return made


def gradient(hooked: Any, made: Any, *rest: Any) -> torch.Tensor:
    """Of the logits, in a backward pass with nothing but the losses that the router adds."""
    dice = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 8, generator=dice, dtype=torch.float64).requires_grad_()
    (0 * hooked.apply_z_loss(made, logits, *rest)).sum().backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize("per_token", [True, False])
def test_the_scale_is_that_of_the_hosts_z_loss(
    per_token: bool, module: Any, hooked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the host's formula in place of the entropy, the two are one loss."""
    made = router(module, monkeypatch, calculate_per_token_loss=per_token)
    monkeypatch.setattr(
        experts, "router_entropy", lambda logits, _: -logits.logsumexp(dim=-1).square()
    )
    ours = gradient(hooked, made)
    made.config.moe_z_loss_coeff = COEFFICIENT
    both = gradient(hooked, made)
    assert ours.abs().max() > 1e-3
    assert both.numpy() == pytest.approx(2 * ours.numpy(), rel=1e-9)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_the_gradient_is_that_of_the_mean(
    score: str, module: Any, hooked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = router(module, monkeypatch, calculate_per_token_loss=False)
    made.config.moe_router_score_function = score
    got = gradient(hooked, made)
    dice = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 8, generator=dice, dtype=torch.float64).requires_grad_()
    scores = logits.exp() if score == "softmax" else logits.sigmoid()
    parts = scores / scores.sum(dim=-1, keepdim=True)
    (COEFFICIENT / RANKS * (parts * parts.log()).sum(dim=-1).mean()).backward()
    assert logits.grad is not None
    assert got.numpy() == pytest.approx(logits.grad.numpy(), rel=1e-9)


def test_padding_adds_nothing(module: Any, hooked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = router(module, monkeypatch)
    padding = torch.arange(10) >= 6
    try:
        got = gradient(hooked, made, padding)
    except TypeError:
        pytest.skip("this version knows no padding")
    assert not got[6:].any()
    assert got[:6].abs().max() > 1e-3


def test_without_training_nothing_is_added(
    module: Any, hooked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not gradient(hooked, router(module, monkeypatch, training=False)).any()
    logits = torch.randn(3, 4)
    with torch.no_grad():  # the first of two passes, where activations are recomputed
        assert hooked.apply_z_loss(router(module, monkeypatch), logits) is logits


def test_what_an_earlier_run_asked_is_over(
    module: Any, hooked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gradient(hooked, router(module, monkeypatch)).any()
    experts.install(None)
    assert not gradient(hooked, router(module, monkeypatch)).any()


def test_hooked_in_where_asked_for(module: Any) -> None:
    """Not at all, or only to count, or for both."""
    kept = module.TopKRouter.routing, module.TopKRouter.apply_z_loss
    found = lambda: (module.TopKRouter.routing, module.TopKRouter.apply_z_loss)  # noqa: E731
    experts.install(Experts())
    assert found() == kept
    experts.install(Experts(load=True))
    assert found()[0] is not kept[0] and found()[1] is kept[1]
    experts.install(Experts(entropy_loss=0.1))
    assert found()[0] is not kept[0] and found()[1] is not kept[1]
    experts.install(None)
    for seam in experts.EXPERT_SEAMS:
        undo(seam, module)
    assert found() == kept
