"""How many samples of each prefix a run has read, by the data set that it trains on."""

from __future__ import annotations

from typing import Any

from domain_pretrain.data.mix.apportion import tally
from domain_pretrain.hosts.stream import Stream


def samples_by_prefix(data: Any, consumed: int) -> tuple[list[int], list[int | None]] | None:
    """Of a data set that is read in its own order, on a rank that has it.

    Args:
        data: the plugin's stream, or the host's own blend or single data set.
        consumed: samples that have been read.

    Returns:
        Of every prefix the samples that were read, and those that one epoch has (None where the
        host shuffles several together); None where the data set is of another kind.
    """
    if isinstance(data, Stream):
        return data.locator.taken(consumed), [*data.locator.lengths]
    sets = getattr(data, "datasets", None)
    if sets is None:
        return [consumed], [_one_epoch(data)]
    index = getattr(data, "dataset_index", None)
    if index is None:
        return None
    counts = tally(index[:consumed], len(sets))
    return [int(count) for count in counts], [_one_epoch(one) for one in sets]


def _one_epoch(data: Any) -> int | None:
    """Samples of a host's data set, if those are one epoch of it."""
    order, own = (getattr(data, name, None) for name in ("document_index", "indices"))
    return len(data) if order is not None and own is not None and len(order) == len(own) else None
