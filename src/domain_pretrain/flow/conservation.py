"""The sums over the domains must be what the host itself summed."""

from __future__ import annotations

from dataclasses import dataclass

from domain_pretrain.errors import IntegrityError
from domain_pretrain.stats import DomainStats


@dataclass(frozen=True)
class HostSums:
    """What the host's own loss function returned, summed like the domain sums."""

    loss: float
    tokens: int
    microbatches: int


def check_conservation(stats: DomainStats, host: HostSums) -> None:
    """Σ over domains must equal what the host's own loss function summed.

    Tokens must be equal (a fractional mask: to less than one token a microbatch, which is what
    the host cuts off). Losses: the host adds fp32 numbers in fp32, the ledger in fixed point, so
    they agree to fp32 rounding.

    Raises:
        IntegrityError: with both numbers.
    """
    if stats.invalid_tokens:
        raise IntegrityError(
            f"{stats.invalid_tokens:g} tokens carry a domain id outside of the "
            f"{len(stats.names)} domains: the dataset ids do not fit the catalog"
        )
    total = stats.total
    slack = 0 if float(total.tokens).is_integer() else host.microbatches
    if abs(total.tokens - host.tokens) > slack:
        raise IntegrityError(
            f"the domains hold {total.tokens:,} loss tokens in this step, the host's loss "
            f"function counted {host.tokens:,}: some tokens are missing or counted twice"
        )
    if total.nonfinite:
        return
    if abs(total.loss_sum - host.loss) > 1e-5 * abs(host.loss) + 1e-6 * host.tokens:
        raise IntegrityError(
            f"the domain losses add up to {total.loss_sum!r} nats in this step, the host's loss "
            f"function to {host.loss!r}: the script's loss is not Σ mask·loss of the model output, "
            "which the channel loss is defined by"
        )
