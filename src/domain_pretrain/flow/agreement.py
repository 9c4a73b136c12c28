"""Ranks prove that they agree on what is in force, in the step's one all-reduce.

Every rank works out the multipliers for itself, from the same reduced sums. A cluster may mix
processors whose libraries round differently, and a start may mix configs. So each step every rank
that counts adds a digest of what it had in force: three words d of 20 bits, and their squares. All
are equal exactly if N·Σd² = (Σd)², which every rank can tell from the sums alone, whatever the
number N of ranks: 48 bytes.

A rank beside those that count (TP rank > 0, other stages) that differs from them finds out alone:
it names itself and ends, and the launcher ends the others.

The digest (``kernels/digest.py``) is taken of the fp32 multipliers: what differs only beyond them
has no effect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import torch.distributed as dist

from domain_pretrain.errors import IntegrityError
from domain_pretrain.flow.groups import Groups
from domain_pretrain.kernels.digest import WORDS
from domain_pretrain.process import rank


def check_agreement(own: Sequence[int] | None, sums: Sequence[int], groups: Groups) -> None:
    """Called by every rank after the sums of ``digest.moments`` were reduced, and read.

    Args:
        own: this rank's words; None where it took no part in what they are made of.
        sums: ``[2 * WORDS]``, over the ranks that count.
        groups: where this rank stands.

    Raises:
        IntegrityError: ranks differ; names them.
    """
    ranks = groups.dp_cp_size
    first, second = sums[:WORDS], sums[WORDS:]
    if any(ranks * square != word * word for word, square in zip(first, second, strict=True)):
        raise _disagreement(_name_ranks(tuple(own or ()), groups))
    if own is not None and any(
        ranks * word != total for word, total in zip(own, first, strict=True)
    ):
        raise _disagreement(f"rank {rank()}")


def known_everywhere(names: Collection[str], groups: Groups) -> frozenset[str]:
    """Those that every stage and tensor rank names; all of them call this together.

    Args:
        names: that this rank has a number for. A stage without a parameter of its own has no
            learning rate.
        groups: where this rank stands.
    """
    group = groups.model_parallel
    if group is None:
        return frozenset(names)
    everyone: list[Collection[str]] = [()] * dist.get_world_size(group)
    dist.all_gather_object(everyone, sorted(names), group=group)
    return frozenset.intersection(*map(frozenset, everyone))


def _disagreement(who: str) -> IntegrityError:
    return IntegrityError(
        f"the ranks do not agree on what is in force (multipliers, mix, config): {who} differs "
        "from the others. Nodes with different processors or library versions round differently, "
        "and every rank works these out for itself: train on nodes of one kind with the same "
        "versions of numpy and torch, and give every rank the same config and flags"
    )


def _name_ranks(own: tuple[int, ...], groups: Groups) -> str:
    """All ranks get here together. One all-gather over dp_cp, one broadcast over model_parallel."""
    named: list[str] = [""]
    if groups.is_counting:
        everyone = [own] * groups.dp_cp_size
        numbers = [0]
        if groups.dp_cp is not None:
            dist.all_gather_object(everyone, own, group=groups.dp_cp)
            numbers = dist.get_process_group_ranks(groups.dp_cp)
        common = Counter(everyone).most_common(1)[0][0]
        odd = [n for n, words in zip(numbers, everyone, strict=True) if words != common]
        named = [f"rank{'s' * (len(odd) > 1)} {', '.join(map(str, odd))}"]
    if groups.model_parallel is not None:
        dist.broadcast_object_list(named, src=groups.counting_rank, group=groups.model_parallel)
    return named[0]
