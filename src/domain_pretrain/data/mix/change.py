"""What a resumed run may do to the stream: cut what it has not come to yet, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from domain_pretrain.data.mix.plan import Plan

_TOLERANCE = 1e-9  # of a share


def changes(before: Mapping[str, Any], now: Mapping[str, Any], consumed: int) -> Iterator[str]:
    """Changes after which samples are read again or never, in the words of a person.

    Args:
        before, now: of :meth:`.Plan.dump`.
        consumed: samples that the run before has trained on.
    """
    old_stages, new_stages = before["stages"], now["stages"]
    same = len(old_stages) == len(new_stages) and all(
        _same_stage(*pair) for pair in zip(old_stages, new_stages, strict=True)
    )
    if not same:
        yield f"mix.schedule {_told(old_stages)} → {_told(new_stages)}"
        return
    old_block, new_block = before.get("block"), now.get("block")
    if old_block != new_block:
        yield f"mix.dynamic in blocks of {old_block or 'none'} → {new_block or 'none'}"
        return
    old, new = (tuple((first, stop) for first, stop in one["cuts"]) for one in (before, now))
    passed = Plan((), (), 0, old).passed(consumed)
    old_passed, new_passed = (_below(passed, cuts) for cuts in (old, new))
    if old_passed != new_passed:
        yield (
            f"mix.skip {_ranges(old_passed)} → {_ranges(new_passed)} in the part of the stream "
            f"that the run is through with, positions below {passed:,}; cuts from there on may be "
            "added and taken out"
        )
    old_left, new_left = (one.get("omissions", []) for one in (before, now))
    if new_left[: len(old_left)] != old_left:
        yield (
            "mix.skip leaving documents out → none, and no other mix either, so that Megatron's "
            "own order is counted on; leave any document out, or give one stage without a length"
        )


def _same_stage(old: Sequence[Any], new: Sequence[Any]) -> bool:
    (old_samples, old_shares, old_shape), (new_samples, new_shares, new_shape) = old, new
    if (old_samples, old_shape) != (new_samples, new_shape):
        return False
    if old_shares is None or new_shares is None:
        return old_shares is new_shares
    return len(old_shares) == len(new_shares) and all(
        math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
        for one, other in zip(old_shares, new_shares, strict=True)
    )


def _below(position: int, cuts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(first, min(stop, position)) for first, stop in cuts if first < position]


def _told(stages: Sequence[Sequence[Any]]) -> str:
    told = []
    for samples, shares, shape in stages:
        length = "the rest" if samples is None else f"{samples:,} samples"
        weights = "" if shares is None else f" at {':'.join(f'{100 * s:.4g}' for s in shares)}"
        told.append(f"{length}{weights}" + ("" if shape == "constant" else f" ({shape})"))
    return "[" + ", ".join(told) + "]"


def _ranges(cuts: Sequence[tuple[int, int]]) -> str:
    return "none" if not cuts else " ".join(f"[{first:,}, {stop:,})" for first, stop in cuts)
