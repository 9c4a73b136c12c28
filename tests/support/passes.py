"""One microbatch from its losses to their gradient, with the plugin and without it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from domain_pretrain.data.origin import ById
from domain_pretrain.flow import steer
from domain_pretrain.flow.forward import FROM_SUMS, Forward
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.ledger import Ledger
from domain_pretrain.flow.tap import Source
from domain_pretrain.kernels.domain_reduce import Backend
from domain_pretrain.strategies.section import parse_reweight

CPU = torch.device("cpu")
NAMES = ("finance", "general", "rare")
SOURCE = Source(ById((1, 0, 2)))


def new_samples() -> Source:
    """A source for which every batch is of samples that it has not seen."""
    source = Source(SOURCE.origin)
    source._packed = source._packed.__wrapped__  # type: ignore[assignment]
    return source


def loss_func(mask: torch.Tensor, losses: torch.Tensor) -> tuple[Any, ...]:
    """The operations of Megatron's own loss function."""
    losses, mask = losses.view(-1).float(), mask.view(-1).float()
    loss = torch.sum(losses * mask)
    num_tokens = mask.sum().clone().detach().to(torch.int)
    report = torch.cat([loss.clone().detach().view(1), num_tokens.view(1)])
    return loss, num_tokens, {"lm loss": report}


def our_loss_func(mask: torch.Tensor, losses: torch.Tensor) -> tuple[Any, ...]:
    """The same, of a script that lets the plugin sum."""
    return loss_func(mask, losses)


setattr(our_loss_func, FROM_SUMS, lambda loss, report, tokens: (loss, tokens, {"lm loss": report}))


def steering(kind: str | None, device: torch.device) -> steer.Steering | None:
    if kind is None:
        return None
    options: dict[str, Any] = {"scope": "global_batch"}
    if kind != "lagged":
        options = {"scope": "microbatch", "unit": kind, "warmup_steps": 0}
    checked = steer.Reweighting.check(
        parse_reweight(options), NAMES, average="token", tokens_per_step=100.0
    )
    made = checked.start(Groups(), device, None)
    if isinstance(made, steer.Lagged):
        made._multipliers.copy_(torch.tensor([0.5, 1.25, 3.0]))
    return made


def forward(backend: Backend, kind: str | None = None, device: torch.device = CPU) -> Forward:
    ledger = Ledger(len(NAMES), Groups(), device, weighted=kind is not None)
    return Forward(Groups(), ledger, backend, steering(kind, device))


def microbatch() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses ``[3, 16]`` with gradient, and the batch they belong to."""
    generator = torch.Generator().manual_seed(5)
    losses = (torch.rand(3, 16, generator=generator) * 9).requires_grad_()
    mask = (torch.rand(3, 16, generator=generator) < 0.8).float()
    return losses, {"loss_mask": mask, "dataset_id": torch.tensor([0, 1, 0], dtype=torch.int16)}


class Pass:
    """The pass of a microbatch through a loss function, from its losses to their gradient."""

    def __init__(
        self,
        plugin: Forward | None,
        function: Callable[..., Any],
        device: torch.device = CPU,
        *,
        joined: bool = False,  # the host's packed rows: one row of all tokens
        source: Source = SOURCE,
    ) -> None:
        losses, batch = microbatch()
        mask = batch["loss_mask"].to(device)
        losses = losses.detach().to(device)
        if joined:
            losses, mask = losses.view(1, -1), mask.view(1, -1)
        self._losses = losses.requires_grad_()
        self._one = torch.ones((), device=device)

        def forward_step(iterator: Any, model: Any) -> tuple[Any, ...]:
            next(iterator)
            return self._losses, partial(function, mask)

        step = forward_step if plugin is None else plugin.wrap(forward_step, source)
        _, self._loss_func = step(iter([batch]), None)

    def __call__(self) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """The loss, the rest of the loss function's answer, the gradient."""
        loss, *rest = self.forward()
        return loss.detach(), rest, self.backward(loss)

    def forward(self) -> Any:
        """The loss function's answer."""
        return self._loss_func(self._losses)

    def backward(self, loss: torch.Tensor) -> torch.Tensor:
        """The gradient."""
        return torch.autograd.grad(loss, self._losses, self._one)[0]


def run(plugin: Forward | None, function: Callable[..., Any]) -> tuple[Any, ...]:
    return Pass(plugin, function)()
