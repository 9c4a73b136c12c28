"""Batch → domain ids: takes ``dataset_id`` out of each batch before the host sees it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from domain_pretrain.data.origin import ById, Constant
from domain_pretrain.errors import IntegrityError

DATASET_ID = "dataset_id"


class Source:
    """Batches → domains, for the samples of one schedule.

    Args:
        origin: of the split. (Of :class:`Sets`, the host reads one set a schedule: a constant.)
    """

    def __init__(self, origin: ById | Constant) -> None:
        self.origin = origin
        self._tables: dict[torch.device, torch.Tensor] = {}

    def rows(self, dataset_id: torch.Tensor | None, tokens: torch.Tensor) -> Rows:
        """The rows of a batch, where the batch is.

        Their domain is -1 for an id that the blend does not have; the step's check then stops the
        run.

        Args:
            dataset_id: ``[b]`` integers, or None.
            tokens: fp32 ``[b]``.

        Raises:
            IntegrityError: the ids do not fit what is known of the data.
        """
        origin = self.origin
        if isinstance(origin, Constant):
            if dataset_id is not None:
                raise IntegrityError(
                    "the batch carries dataset_id, but by the data arguments this split is one "
                    "plain dataset: the catalog does not describe the data that is loaded"
                )
            return Rows.of(torch.full_like(tokens, origin.domain, dtype=torch.int32), tokens)
        if dataset_id is None:
            raise IntegrityError(
                "the batch carries no dataset_id, although the split is a blend: the samples do "
                "not come from Megatron's BlendedDataset, or the script drops the key; give the "
                "data through --data-path, or let your dataset return 'dataset_id'"
            )
        if dataset_id.numel() != tokens.numel():
            raise IntegrityError(
                f"dataset_id has {dataset_id.numel()} entries for {tokens.numel()} rows of the "
                "batch"
            )
        ids, domains = dataset_id.reshape(-1), origin.domains
        if tokens.is_cpu and ids.is_cpu:
            known = [domains[i] if 0 <= i < len(domains) else -1 for i in ids.tolist()]
            return Rows.of_host(known, tokens.tolist())
        table = self._table(origin, tokens.device)
        return Rows.of(table[ids.to(tokens.device, torch.int64).clamp(-1, len(domains))], tokens)

    def _table(self, origin: ById, device: torch.device) -> torch.Tensor:
        """The domain of each id, then that of an id beyond them and of a negative one.

        It is where the batches live, copied once: a CUDA graph cannot capture a copy.
        """
        if device not in self._tables:
            domains = [*origin.domains, -1, -1]
            self._tables[device] = torch.tensor(domains, dtype=torch.int32, device=device)
        return self._tables[device]


class BatchTap:
    """A data iterator that remembers what the plugin needs of the last batch it handed out.

    The host gets a shallow copy without ``dataset_id``: the rerun machine may replay the very
    same dict, so it must not be changed; and without the key a blend with CP > 1 does not crash
    in the host, whose CP slicer cuts every tensor of the batch along a sequence dimension that
    ``dataset_id [b]`` does not have.
    """

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self.dataset_id: torch.Tensor | None = None
        self.loss_mask: torch.Tensor | None = None
        self.batches = 0

    def __iter__(self) -> BatchTap:
        return self

    def __next__(self) -> Any:
        batch = next(self._iterator)
        self.batches += 1
        if not isinstance(batch, dict):
            return batch
        batch = dict(batch)
        self.dataset_id = batch.pop(DATASET_ID, None)
        self.loss_mask = batch.get("loss_mask")
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)

    def rows(self, source: Source, device: torch.device) -> Rows:
        """The rows of the last batch: to be called where the loss is computed."""
        if self.loss_mask is None:
            raise IntegrityError(
                f"the forward step took {self.batches} batches, none a dict with 'loss_mask': "
                "the plugin needs Megatron's GPT batches (tokens, labels, loss_mask, …)"
            )
        mask = self.loss_mask
        if mask.dim() != 2:
            mask = mask.reshape(mask.shape[0], -1)
        tokens = mask.sum(dim=1, dtype=torch.float32)
        return source.rows(self.dataset_id, tokens).to(device)


class Rows(NamedTuple):
    """The samples of one microbatch, whole: before context parallelism cuts them.

    Attributes:
        packed: int32 ``[3 * b]``: the others, one after the other, of which they are views.
        domains: int32 ``[b]``, domain index of each sample.
        tokens: fp32 ``[b]``, loss tokens of each sample (Σ of its mask).
        inverse: fp32 ``[b]``, 1 / tokens; 1 for a sample without any.
    """

    packed: torch.Tensor
    domains: torch.Tensor
    tokens: torch.Tensor
    inverse: torch.Tensor

    @classmethod
    def of(cls, domains: torch.Tensor, tokens: torch.Tensor) -> Rows:
        """From domains ``[b]``, of any integer type, and tokens ``[b]``, both on one device."""
        if domains.dtype != torch.int32:  # an id of no domain must not become one by wrapping
            domains = domains.long().clamp(-1, 2**31 - 1).int()
        inverse = tokens.clamp(min=1.0).reciprocal()
        bits = torch.int32
        return cls.unpack(torch.cat([domains, tokens.view(bits), inverse.view(bits)]))

    @classmethod
    def of_host(cls, domains: list[int], tokens: list[float]) -> Rows:
        """The same, of Python's numbers: for a few samples faster than torch."""
        count = len(domains)
        packed = bytearray(12 * count)
        inverse = [1.0 / max(number, 1.0) for number in tokens]
        struct.pack_into(f"={count}i{2 * count}f", packed, 0, *domains, *tokens, *inverse)
        return cls.unpack(torch.frombuffer(packed, dtype=torch.int32))

    @classmethod
    def unpack(cls, packed: torch.Tensor) -> Rows:
        """From ``packed``."""
        shape, floats = (packed.numel() // 3,), packed.view(torch.float32)
        domains = packed.as_strided(shape, (1,), 0)
        tokens = floats.as_strided(shape, (1,), shape[0])
        return cls(packed, domains, tokens, floats.as_strided(shape, (1,), 2 * shape[0]))

    def to(self, device: torch.device) -> Rows:
        """The rows on ``device``, in one copy."""
        if device == self.packed.device:
            return self
        return self.unpack(self.packed.to(device, non_blocking=True))

    @classmethod
    def shared(
        cls, rows: Rows | None, count: int, device: torch.device, *, group: Any, source: int
    ) -> Rows:
        """The rows on every TP rank, of which only the first reads data.

        One broadcast over the TP group, 12 bytes a sample; needed only where weights are in force.

        Args:
            rows: on ``source``; None elsewhere.
            count: samples in the microbatch.
            device: where the losses live.
            group: the TP group.
            source: global rank of TP rank 0.
        """
        if rows is None:
            rows = cls.unpack(torch.empty(3 * count, dtype=torch.int32, device=device))
        dist.broadcast(rows.packed, src=source, group=group)
        return rows
