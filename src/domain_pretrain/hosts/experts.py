"""The routers of a mixture of experts: what they choose is counted, and may be made less sure.

Both seams are applied where ``adapt.experts`` asks for them, and not otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from packaging.version import Version

from domain_pretrain.adapt.experts import Experts
from domain_pretrain.adapt.router import count_rows, mean_of, router_entropy
from domain_pretrain.errors import UnsupportedError
from domain_pretrain.flow.experts import ExpertCounts
from domain_pretrain.seams.importhook import after_import
from domain_pretrain.seams.seam import Seam, apply, misfits, package_root

_MODULE = "megatron.core.transformer.moe.router"
# Since then the host multiplies what it adds to a loss per token by the ranks that share a
# sequence, too.
_BY_RANKS = Version("0.19.0.dev0")


@dataclass
class _Asked:
    """What the routers of a run are to do.

    Attributes:
        counts: takes what they choose; None: nobody does.
        places: of each router that is counted, its place among those of this rank.
        coefficient: of the entropy loss.
    """

    counts: ExpertCounts | None = None
    places: Mapping[Any, int] = field(default_factory=dict)
    coefficient: float = 0.0


class _Current:
    """The run of this process. Seams live as long as the process, which may have several runs."""

    asked = _Asked()


def _routing(original: Callable[..., Any]) -> Callable[..., Any]:
    def routing(self: Any, logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = original(self, logits, *args, **kwargs)
        counts, place = _Current.asked.counts, _Current.asked.places.get(self)
        if counts is None or place is None or not counts.counting:
            return result
        # As the host counts for its own balance: where activations are recomputed, the first pass
        # runs without gradients, and the second one counts.
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                padding = _padding(args, kwargs)
                flat = logits.reshape(-1, logits.shape[-1])
                entropy = router_entropy(flat, self.config.moe_router_score_function)
                counts.add(place, count_rows(result[1], entropy, logits.shape[1], padding))
        return result

    return routing


def _apply_z_loss(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply_z_loss(self: Any, logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        logits = original(self, logits, *args, **kwargs)
        coefficient = _Current.asked.coefficient
        if not (coefficient and self.training and torch.is_grad_enabled()):
            return logits
        return add_entropy_loss(self, logits, coefficient, _padding(args, kwargs))

    return apply_z_loss


def _padding(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor | None:
    found = args[0] if args else kwargs.get("padding_mask")
    return None if found is None else found.reshape(-1)


def add_entropy_loss(
    router: Any, logits: torch.Tensor, coefficient: float, padding: torch.Tensor | None
) -> torch.Tensor:
    """The logits, whose backward pass adds that of −coefficient × mean entropy of their tokens.

    Scaled as the host scales its z-loss, so that the gradient is that of the mean over all
    microbatches, also where the loss is summed over tokens.

    Args:
        router: of the host.
        logits: ``[tokens, experts]``.
        coefficient: of the loss.
        padding: ``[tokens]``, True where there is no token; or None.
    """
    from megatron.core import __version__ as version
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    entropy = router_entropy(logits, router.config.moe_router_score_function)
    ranks = _ranks_of(router)
    loss = -coefficient / ranks * mean_of(entropy, padding)
    if router.calculate_per_token_loss:
        loss = loss * (logits.shape[0] if padding is None else (~padding).sum())
        if Version(version) >= _BY_RANKS:
            loss = loss * ranks
    scaled: torch.Tensor = MoEAuxLossAutoScaler.apply(logits, loss)
    return scaled


def _ranks_of(router: Any) -> int:
    """How many ranks share a sequence: tensor × context parallel."""
    group = getattr(router, "tp_cp_group", None)  # since 0.14
    if group is not None:
        return int(group.size())
    from megatron.core import parallel_state as mpu

    return int(mpu.get_tensor_and_context_parallel_world_size())


COUNT = Seam(
    "routers",
    f"{_MODULE}:TopKRouter.routing",
    ("logits",),
    "takes the logits in the shape of the batch, and returns what each token goes to, after "
    "tokens were dropped: what the host itself counts; with adapt.experts alone",
    _routing,
)
ENTROPY_LOSS = Seam(
    "router loss",
    f"{_MODULE}:TopKRouter.apply_z_loss",
    ("logits",),
    "is where the host adds its own loss of the same tensor, whether or not it has one; with "
    "adapt.experts.entropy_loss alone",
    _apply_z_loss,
)
EXPERT_SEAMS: tuple[Seam, ...] = (COUNT, ENTROPY_LOSS)


def install(experts: Experts | None) -> None:
    """Hook into the routers as the config asks, once its checks have passed.

    Args:
        experts: of the config; None: the run has none, and what an earlier one asked is over.

    Raises:
        UnsupportedError: the host's routers are not what the plugin knows.
    """
    from domain_pretrain.hosts import mindspeed

    _Current.asked = _Asked()
    if experts is None or not experts.counts:
        return
    _Current.asked.coefficient = experts.entropy_loss
    if mindspeed.present():
        raise UnsupportedError(
            "adapt.experts: MindSpeed has routers of its own, with which it was never run; leave "
            "it out"
        )
    seams = EXPERT_SEAMS if experts.entropy_loss else (COUNT,)
    after_import(_MODULE, lambda module: _apply(seams, module))


def _apply(seams: Sequence[Seam], module: ModuleType) -> None:
    problems = misfits(seams, package_root(module))
    if problems:
        raise UnsupportedError("adapt.experts: this Megatron does not fit: " + "; ".join(problems))
    for seam in seams:
        apply(seam, module)


def begin(counts: ExpertCounts, model: Sequence[Any]) -> None:
    """Once the model is there, on every rank: which of its routers are counted.

    Those of multi-token prediction are not: their tokens are other layers' again, shifted.

    Args:
        counts: takes what they choose.
        model: its chunks on this rank.
    """
    from megatron.core.transformer.moe.router import TopKRouter

    found = [
        module
        for chunk in model
        for name, module in chunk.named_modules()
        if isinstance(module, TopKRouter) and "mtp" not in name.split(".")
    ]
    _Current.asked.counts = counts
    _Current.asked.places = {router: place for place, router in enumerate(found)}
    config = next((router.config for router in found), None)
    counts.begin(
        [int(router.layer_number) for router in found],
        0 if config is None else config.num_moe_experts,
        0 if config is None else config.moe_router_topk,
    )
