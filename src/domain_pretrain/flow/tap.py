"""Batch → domain ids: takes ``dataset_id`` out of each batch before the host sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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

    def domains(self, dataset_id: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor:
        """Domain indices of the rows that hold ``tokens [b]``, int32 ``[b]``, beside them.

        -1 for an id that the blend does not have; the step's check then stops the run.
        """
        if isinstance(self.origin, Constant):
            if dataset_id is not None:
                raise IntegrityError(
                    "the batch carries dataset_id, but by the data arguments this split is one "
                    "plain dataset: the catalog does not describe the data that is loaded"
                )
            return torch.full_like(tokens, self.origin.domain, dtype=torch.int32)
        if dataset_id is None:
            raise IntegrityError(
                "the batch carries no dataset_id, although the split is a blend: the samples do "
                "not come from Megatron's BlendedDataset, or the script drops the key; give the "
                "data through --data-path, or let your dataset return 'dataset_id'"
            )
        ids = dataset_id.reshape(-1).to(tokens.device, torch.int64)
        table = self._table(self.origin, tokens.device)
        last = table.numel() - 1
        known = (ids >= 0) & (ids <= last)
        return torch.where(known, table[ids.clamp(0, last)], -1)

    def _table(self, origin: ById, device: torch.device) -> torch.Tensor:
        """The table where the batches live, copied once: a CUDA graph cannot capture a copy."""
        if device not in self._tables:
            self._tables[device] = torch.tensor(origin.domains, dtype=torch.int32, device=device)
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
        tokens = self.loss_mask.reshape(self.loss_mask.shape[0], -1).float().sum(dim=1)
        domains = source.domains(self.dataset_id, tokens)
        if domains.numel() != tokens.numel():
            raise IntegrityError(
                f"dataset_id has {domains.numel()} entries for {tokens.numel()} rows of the batch"
            )
        return Rows.of(domains, tokens).to(device)


@dataclass(frozen=True)
class Rows:
    """The samples of one microbatch, whole: before context parallelism cuts them.

    Attributes:
        domains: int32 ``[b]``, domain index of each sample.
        tokens: fp32 ``[b]``, loss tokens of each sample (Σ of its mask).
        inverse: fp32 ``[b]``, 1 / tokens; 1 for a sample without any.
    """

    domains: torch.Tensor
    tokens: torch.Tensor
    inverse: torch.Tensor

    @classmethod
    def of(cls, domains: torch.Tensor, tokens: torch.Tensor) -> Rows:
        """From domains ``[b]``, of any integer type, and tokens ``[b]``, both on one device."""
        if domains.dtype != torch.int32:  # an id of no domain must not become one by wrapping
            domains = domains.long().clamp(-1, 2**31 - 1).int()
        return cls(domains, tokens, 1.0 / tokens.clamp(min=1.0))

    def to(self, device: torch.device) -> Rows:
        """The rows on ``device``, in one copy."""
        if device == self.tokens.device:
            return self
        return self._unpack(self._pack().to(device, non_blocking=True))

    def _pack(self) -> torch.Tensor:
        """int32 ``[3, b]``; floats keep their bits."""
        bits = torch.int32
        columns = [self.domains, self.tokens.view(bits), self.inverse.view(bits)]
        return torch.stack(columns)

    @classmethod
    def _unpack(cls, packed: torch.Tensor) -> Rows:
        tokens, inverse = packed[1:].view(torch.float32).unbind()
        return cls(packed[0], tokens, inverse)

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
            packed = torch.empty(3, count, dtype=torch.int32, device=device)
        else:
            packed = rows._pack()
        dist.broadcast(packed, src=source, group=group)
        return cls._unpack(packed)
