"""One microbatch on the last pipeline stage: per-token losses beside the samples they belong to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from domain_pretrain.errors import IntegrityError
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.tap import Rows
from domain_pretrain.kernels.domain_reduce import Inputs
from domain_pretrain.zigzag import zigzag_order


@dataclass(slots=True)  # not frozen, which takes thrice the time
class Microbatch:
    """Losses, mask and samples of one microbatch, in fitting shapes.

    Attributes:
        losses: ``[b, s / cp]`` per-token losses of this CP rank, nats, with gradient; or
            ``[1, b·s / cp]`` where the host joined packed rows and then cut them for CP.
        mask: loss mask of the same shape.
        rows: the ``b`` whole samples.
        groups: where this rank stands.
        flattened: whether several samples share the one row of ``losses``, cut for context
            parallelism.
    """

    losses: torch.Tensor
    mask: torch.Tensor
    rows: Rows
    groups: Groups
    flattened: bool

    @classmethod
    def build(
        cls, losses: torch.Tensor, mask: torch.Tensor, rows: Rows, groups: Groups
    ) -> Microbatch:
        """Bring what the host has into shape.

        Raises:
            IntegrityError: losses, mask and samples do not fit together.
        """
        shape = mask.shape
        if losses.shape == shape and len(shape) == 2 and rows.packed.numel() == 3 * shape[0]:
            return cls(losses, mask, rows, groups, False)  # almost always: they fit
        if losses.numel() != mask.numel():
            raise IntegrityError(
                f"the model returned {tuple(losses.shape)} losses for a loss mask of "
                f"{tuple(mask.shape)}: the channel loss needs one loss per token"
            )
        if mask.dim() != 2:
            mask = mask.reshape(mask.shape[0] if mask.dim() else 1, -1)
        samples = len(rows)
        if mask.shape[0] not in (samples, 1):
            raise IntegrityError(
                f"{samples} samples were read for a loss mask of {tuple(mask.shape)}"
            )
        if groups.cp_size == 1 and samples > 1 and mask.numel() % samples == 0:
            mask = mask.reshape(samples, -1)  # a view: joined rows that nothing has cut
        if losses.shape != mask.shape:  # else a view would be a node of autograd's graph
            sizes = [size for size in losses.shape if size != 1]
            by_sample = [samples, mask.numel() // max(samples, 1)]
            if len(sizes) > 1 and sizes not in ([*mask.shape], by_sample):
                raise IntegrityError(
                    f"the model returned {tuple(losses.shape)} losses for {samples} samples and a "
                    f"loss mask of {tuple(mask.shape)}: each row must be a sample, or one row all"
                )
            losses = losses.reshape(mask.shape)
        return cls(losses, mask, rows, groups, flattened=mask.shape[0] != samples)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Values of samples ``[b]`` as ``[b]``, or as ``[1, b·s / cp]`` where flattened."""
        return values[self.row_of_token()] if self.flattened else values

    def per_token(self, values: torch.Tensor) -> torch.Tensor:
        """Values of samples ``[b]``, to be broadcast against ``losses``."""
        return self.spread(values) if self.flattened else values[:, None]

    def row_of_token(self) -> torch.Tensor:
        """The sample of each token, int64, in the shape of ``losses``."""
        rows, (height, width) = len(self.rows), self.losses.shape
        device = self.losses.device
        if not self.flattened:
            return torch.arange(rows, device=device)[:, None].expand(height, width)
        return row_of_token(rows, width, self.groups, device)[None]

    def ids(self) -> torch.Tensor:
        """Domain indices, int32: ``[b]``, or of each token in the shape of ``losses``."""
        whole, groups = self.rows.by_token, self.groups
        if whole is None:
            return self.spread(self.rows.domains)
        if groups.cp_size == 1:
            return whole.view(self.losses.shape)
        if self.flattened:  # the host joins the rows before it cuts them
            return zigzag_order(whole.flatten(), groups.cp_size)[groups.cp_rank][None]
        return zigzag_order(whole.t(), groups.cp_size)[groups.cp_rank].t()

    def inputs(self, *given: torch.Tensor | None, count: bool = False) -> Inputs:
        """The tokens beside their domains, as the kernels take them.

        Args:
            given: the fields of :class:`.Inputs` from ``multipliers`` on; by position, as names
                would take as long as a launch.
            count: count the samples, too, where each has a row and a domain of its own; on the
                first context parallel rank, as all hold the same ones.
        """
        rows, losses = self.rows, self.losses
        if rows.by_token is None and not self.flattened:  # almost always, and it waits for us
            counts = count and self.groups.cp_rank == 0
            known = rows.packed if counts else rows.packed[: 2 * len(rows)]
            return Inputs(losses, self.mask, known, None, *given)
        inverse = self.per_token(rows.inverse).expand(losses.shape)
        return Inputs(losses, self.mask, self.ids(), inverse, *given)


@dataclass(frozen=True)
class Weights:
    """What the per-token losses of a microbatch are multiplied by.

    Attributes:
        multipliers: fp32 ``[n]``, one for each domain, or what ``ids`` point into.
        ids: int32 ``[b]``, the multiplier that each sample takes; None: that of its domain.
    """

    multipliers: torch.Tensor
    ids: torch.Tensor | None = None

    def of_samples(self, rows: Rows) -> torch.Tensor:
        """fp32 ``[b]``."""
        return self.multipliers[(rows.domains if self.ids is None else self.ids).long()]


def row_of_token(rows: int, local: int, groups: Groups, device: torch.device) -> torch.Tensor:
    """The sample of each of this CP rank's ``local`` tokens, where samples were concatenated.

    The host joins the rows first and cuts for context parallelism afterwards.
    """
    total = local * groups.cp_size
    row = torch.arange(total, device=device) // (total // rows)
    return row if groups.cp_size == 1 else zigzag_order(row, groups.cp_size)[groups.cp_rank]
