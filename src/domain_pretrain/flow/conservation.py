"""The sums over the domains must be what the host itself summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from domain_pretrain.errors import IntegrityError
from domain_pretrain.stats import SCALE, Column, DomainStats


@dataclass(frozen=True)
class HostSums:
    """What the host's own loss function returned, summed like the domain sums.

    Attributes:
        loss: nats.
        tokens: as the host counts them, in whole tokens a microbatch.
        microbatches: of all ranks that count.
        fractional: how many of them had a fractional mask, whose tokens the host cuts off.
    """

    loss: float
    tokens: int
    microbatches: int
    fractional: int = 0

    @classmethod
    def of(cls, totals: Sequence[int], repeats: int) -> HostSums:
        """From a ledger's totals.

        Args:
            totals: loss in units of ``SCALE``, tokens, microbatches, fractional ones.
            repeats: how many ranks reported the same loss and tokens.
        """
        loss, tokens, microbatches, fractional = map(int, totals)
        return cls(loss / SCALE[Column.LOSS] / repeats, tokens // repeats, microbatches, fractional)


def check_conservation(stats: DomainStats, host: HostSums, microbatches: int | None = None) -> None:
    """Σ over domains must equal what the host's own loss function summed.

    Tokens must be equal (a fractional mask: to one token a microbatch, since the host cuts off the
    rest). Losses: the host adds fp32 numbers in fp32, the ledger in fixed point, so they agree to
    fp32 rounding.

    Args:
        stats: of one step, or of several.
        host: of the same.
        microbatches: how many there must have been on all ranks; None where nobody knows.

    Raises:
        IntegrityError: with both numbers.
    """
    if microbatches is not None and host.microbatches != microbatches:
        raise IntegrityError(
            f"the plugin saw {host.microbatches} of {microbatches} microbatch losses: the script's "
            "forward step or schedule bypasses the plugin's seams"
        )
    if stats.invalid_tokens:
        raise IntegrityError(
            f"{stats.invalid_tokens:g} tokens carry a domain id outside of the "
            f"{len(stats.names)} domains: the dataset ids do not fit the catalog"
        )
    total = stats.total
    if abs(total.tokens - host.tokens) > host.fractional:
        raise IntegrityError(
            f"the domains hold {total.tokens:,} loss tokens since the last check, the host's loss "
            f"function counted {host.tokens:,}: some tokens are missing or counted twice"
        )
    if total.nonfinite:
        return
    if abs(total.loss_sum - host.loss) > 1e-5 * abs(host.loss) + 1e-6 * host.tokens:
        raise IntegrityError(
            f"the domain losses add up to {total.loss_sum!r} nats since the last check, the host's "
            f"loss function to {host.loss!r}: the script's loss is not Σ mask·loss of the model "
            "output, which the channel loss is defined by"
        )
