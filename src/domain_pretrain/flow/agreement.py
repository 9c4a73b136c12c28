"""Ranks prove that they agree on what is in force, in the step's one all-reduce.

Every rank works out the multipliers for itself, from the same reduced sums. A cluster may mix
processors whose libraries round differently, and a start may mix configs. So each step every rank
that counts adds a digest of what it had in force: three words d of 20 bits, and their squares. All
are equal exactly if N·Σd² = (Σd)², which every rank can tell from the sums alone, whatever the
number N of ranks: 48 bytes.

The digest is taken of the fp32 multipliers: what differs only beyond them has no effect.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
import torch.distributed as dist

from domain_pretrain.errors import IntegrityError
from domain_pretrain.flow.groups import Groups
from domain_pretrain.process import rank

WORDS = 3
# The largest prime below 2^20: Σd² over 2^20 ranks stays in int64.
PRIME = 2**20 - 3


class Agreement:
    """Digests of what is in force on this rank.

    Args:
        constants: what must be the same on every rank all run long: the config, the domains.
        device: where the digests are made, without reading anything back.
    """

    def __init__(self, constants: str, device: torch.device) -> None:
        digest = hashlib.sha256(constants.encode(errors="surrogatepass")).digest()
        salt = [int.from_bytes(digest[4 * k : 4 * k + 4], "big") % PRIME for k in range(WORDS)]
        self._salt = torch.tensor(salt, device=device)
        self._coefficients = torch.empty(0)

    def digest(self, in_force: torch.Tensor | None) -> torch.Tensor:
        """int64 ``[WORDS]``, each in [0, PRIME).

        Args:
            in_force: fp32 ``[n]``; None where the constants are all there is.
        """
        if in_force is None:
            return self._salt
        bits = in_force.detach().float().contiguous().view(torch.int32).to(torch.int64)
        halves = torch.stack([bits & 0xFFFF, (bits >> 16) & 0xFFFF])  # [2, n]
        return ((self._of(halves) * halves).sum(dim=(1, 2)) + self._salt) % PRIME

    def _of(self, halves: torch.Tensor) -> torch.Tensor:
        """``[WORDS, 2, n]`` fixed factors in [1, PRIME): products of 36 bits, sums that fit."""
        shape = (WORDS, *halves.shape)
        if self._coefficients.shape != shape:
            places = torch.arange(1, 1 + WORDS * halves.numel(), dtype=torch.int64)
            mixed = (places * 1_103_515_245 + 12_345) % (2**31)
            factors = 1 + (mixed * 31 + places) % (PRIME - 1)
            self._coefficients = factors.view(shape).to(halves.device)
        return self._coefficients


def moments(words: torch.Tensor) -> torch.Tensor:
    """int64 ``[2 * WORDS]``: the words and their squares, to be summed over ranks."""
    return torch.cat([words, words * words])


def check_agreement(own: Sequence[int] | None, sums: Sequence[int], groups: Groups) -> None:
    """Called by every rank after the sums of :func:`moments` were reduced, and read.

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


def _disagreement(who: str) -> IntegrityError:
    return IntegrityError(
        f"the ranks do not agree on what is in force (multipliers, config): {who} differs from the "
        "others. Nodes with different processors or library versions round differently, and every "
        "rank works the multipliers out for itself: train on nodes of one kind with the same "
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
