"""What every backend of the reduction promises: records, shapes, the fixed-point grid."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch

from domain_pretrain.stats import SCALE, Column

FIXED = SCALE[Column.LOSS]
"""Units per nat and per token. A power of two, so that in fp32 ``losses * (mask * FIXED)`` has the
bits of ``(losses * mask) * FIXED``."""

LIMIT = 2.0**20
"""A token with ``|mask·loss|`` above this is flagged and not accumulated: no cross entropy is that
large, and the int64 sums must not overflow (2^39 nats in all)."""

TOTAL_LIMIT = 2.0**38
"""A microbatch's loss sum above this, or NaN, adds 0 to the totals."""

SAMPLE_SCALE = SCALE[Column.SAMPLE_LOSS] / FIXED
"""From the grid of the losses to that of the samples' means."""


class Inputs(NamedTuple):
    """One microbatch, as every operation takes it, on one device; in the order of the kernels.

    The first three are always needed; :class:`.Backend` says what else an operation takes.

    Attributes:
        losses: ``[b, s]``, nats, fp32 as Megatron's cross entropy returns them; others are cast.
        mask: ``[b, s]``, finite, may be fractional. A masked token counts nowhere, unless its loss
            is not finite (0·NaN is NaN for the host, too). A token with |mask·loss| > ``LIMIT``, or
            NaN, is counted in ``Column.NONFINITE`` and left out of the loss sums, but not out of
            the token sum.
        ids: int32, ``[b, s]``: the domain of each token; or what is known of each row, ``[b]``,
            ``[2 * b]`` or ``[3 * b]``: its domain, which is enough for the loss alone; the bits of
            its fp32 inverse (see below); those of its fp32 loss tokens. With these, its sample is
            counted if it has any: they are given on one context-parallel rank, which counts.
        inverse_row_tokens: ``[b, s]``, with such ids, finite: 1 / (loss tokens of the whole sample,
            before context parallelism cut it), for the sample average. Not needed for the loss
            alone. The samples are counted by ``count_samples``.
        multipliers: fp32 ``[D]``, finite; an invalid id weighs 0. Without, every token weighs 1,
            those with an invalid id too.
        host_loss: fp32 scalar, Σ mask·loss as the host's own loss function found it.
        host_num_tokens: int32 scalar, the host's, too.
        accumulator: contiguous int64 ``[D + 1, len(Column)]``, added to in place; row D takes the
            tokens whose id is outside [0, D).
        totals: contiguous int64 ``[4]``, added to in place: the microbatch's loss sum in units of
            1 / ``FIXED`` nats (0 if it is not finite or above ``TOTAL_LIMIT``), its tokens, and 1;
            as the host found them, if they are given. The fourth takes 1 from a ``domain_loss``
            without them, where it drops a part of a token.
    """

    losses: torch.Tensor
    mask: torch.Tensor
    ids: torch.Tensor
    inverse_row_tokens: torch.Tensor | None = None
    multipliers: torch.Tensor | None = None
    host_loss: torch.Tensor | None = None
    host_num_tokens: torch.Tensor | None = None
    accumulator: torch.Tensor | None = None
    totals: torch.Tensor | None = None

    def domains(self) -> int:
        """D; 0 where nothing depends on it."""
        if self.accumulator is not None:
            return self.accumulator.shape[:1].numel() - 1
        return 0 if self.multipliers is None else self.multipliers.numel()

    def known_of_rows(self) -> int:
        """How many numbers ``ids`` hold of each row; 0 where they are those of tokens."""
        rows = self.losses.shape[0]
        return 0 if self.ids.dim() != 1 else self.ids.shape[0] // rows if rows else 3


class DomainLoss(NamedTuple):
    """The loss of one microbatch, as Megatron's schedules take it from a loss function.

    Attributes:
        loss: fp32 scalar, Σ w[domain]·mask·loss; carries the gradient. Not a view: the
            schedules divide it in place.
        report: fp32 ``[2]``: Σ mask·loss, unweighted, and Σ mask. No gradient.
        num_tokens: int32 scalar, Σ mask, rounded toward zero. No gradient.
    """

    loss: torch.Tensor
    report: torch.Tensor
    num_tokens: torch.Tensor


Scalars = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""The fields of a :class:`DomainLoss`."""


class Kernels(Protocol):
    """What a backend's module brings: the operations of :class:`.Backend`, without the gradient."""

    def reduce(self, inputs: Inputs) -> None:
        """The sums alone."""

    def loss(self, inputs: Inputs) -> tuple[Scalars, Any]:
        """The loss, and what its gradient needs of the inputs."""

    def gradient(self, grad: torch.Tensor, kept: Any) -> torch.Tensor:
        """``w[domain]·(grad·mask)``, fp32 ``[b, s]``."""


def check(inputs: Inputs, *, sums_alone: bool) -> None:
    """Raise ValueError unless all that is needed is there, of its shape and type, on one device.

    Args:
        inputs: of an operation.
        sums_alone: which is ``domain_reduce``.
    """
    shape = tuple(inputs.losses.shape)
    if len(shape) != 2:
        raise ValueError(f"losses must be [b, s], got {shape}")
    rows, domains = shape[0], inputs.domains()
    fitting: dict[str, tuple[Any, ...]] = {  # types, and shapes
        "mask": (None, shape),
        "ids": (torch.int32, shape, (rows,), (2 * rows,), (3 * rows,)),
        "inverse_row_tokens": (None, shape),
        "multipliers": (torch.float32, (domains,)),
        "host_loss": (torch.float32, ()),
        "host_num_tokens": (torch.int32, ()),
        "accumulator": (torch.int64, (domains + 1, len(Column))),
        "totals": (torch.int64, (4,)),
    }
    for name, (dtype, *shapes) in fitting.items():
        tensor = getattr(inputs, name)
        if tensor is None:
            continue
        added_to = dtype == torch.int64
        fits = tensor.shape in shapes and tensor.dtype == (dtype or tensor.dtype)
        if not fits or (added_to and not tensor.is_contiguous()):
            kind = "contiguous " * added_to + str(dtype or "").removeprefix("torch.")
            raise ValueError(
                f"{name} must be {kind} {' or '.join(str(list(s) or 'scalar') for s in shapes)}, "
                f"got {tensor.dtype} {tuple(tensor.shape)} with strides {tensor.stride()}"
            )
    known, inverse = inputs.known_of_rows(), inputs.inverse_row_tokens
    if known and inverse is not None:
        raise ValueError("inverse_row_tokens are those of tokens: give what is of rows in ids")
    if inputs.accumulator is not None and inverse is None and known < 2:
        raise ValueError("an accumulator needs inverse_row_tokens, too")
    if sums_alone and inputs.accumulator is None:
        raise ValueError("domain_reduce needs an accumulator: it takes the sums")
    together = ("host_loss", "host_num_tokens", "totals")
    missing = [name for name in together if getattr(inputs, name) is None]
    # The loss puts itself into totals without the host's, and takes host_loss without totals.
    some = len(missing) in (1, 2) if sums_alone else missing in (["host_loss"], ["host_num_tokens"])
    if some:
        raise ValueError(
            f"{'domain_reduce' if sums_alone else 'domain_loss with totals'} takes "
            f"{', '.join(together[: 3 if sums_alone else 2])} together or not at all: "
            f"{' and '.join(missing)} must be given, too"
        )
    check_device(dict(zip(Inputs._fields, inputs, strict=True)))  # torch.compile takes no _asdict


def check_device(tensors: dict[str, torch.Tensor | None]) -> None:
    """A kernel would follow another device's pointers, to an illegal access or to wrong sums."""
    (_, first), *others = [(name, t) for name, t in tensors.items() if t is not None]
    for name, tensor in others:
        if tensor.device != first.device:
            raise ValueError(
                f"{name} is on {tensor.device} and the other tensors are on {first.device}: "
                "all must be on one device"
            )
