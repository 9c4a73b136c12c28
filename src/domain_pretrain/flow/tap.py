"""Batch → domain ids: takes ``dataset_id`` out of each batch before the host sees it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import torch.distributed as dist

from domain_pretrain.data.origin import ById, ByToken, Constant
from domain_pretrain.errors import IntegrityError
from domain_pretrain.stats import SCALE, Column

DATASET_ID = "dataset_id"
DOMAIN_ID = "domain_id"
LEAST = 1 / SCALE[Column.TOKENS]  # loss tokens of a sample: the sums know no fewer


class Source:
    """Batches → domains, for the samples of one schedule.

    Args:
        origin: of the split. (Of :class:`Sets`, the host reads one set a schedule: a constant.)

    Attributes:
        by_token: whether a domain is known of every token, not of every sample.
    """

    def __init__(self, origin: ById | Constant | ByToken) -> None:
        self.origin = origin
        self.by_token = isinstance(origin, ByToken)
        self._tables: dict[torch.device, torch.Tensor] = {}
        # Of a few samples, the same ones come again and again.
        table = origin.domains if isinstance(origin, ById) else ()
        self._packed = lru_cache(maxsize=4096)(partial(_pack, table))

    def rows(
        self, dataset_id: torch.Tensor | None, tokens: torch.Tensor, device: torch.device
    ) -> Rows:
        """The rows of a batch, on ``device``; of one whose samples have a domain each.

        Their domain is -1 for an id that the blend does not have; the step's check then stops the
        run.

        Args:
            dataset_id: ``[b]`` integers, or None.
            tokens: fp32 ``[b]``, where the batch is.
            device: where the losses live.

        Raises:
            IntegrityError: the ids do not fit what is known of the data.
        """
        origin = self.origin
        assert not isinstance(origin, ByToken)
        if isinstance(origin, Constant):
            if dataset_id is not None:
                raise IntegrityError(
                    "the batch carries dataset_id, but by the data arguments this split is one "
                    "plain dataset: the catalog does not describe the data that is loaded"
                )
            domains = torch.full_like(tokens, origin.domain, dtype=torch.int32)
            return Rows.of(domains, tokens).to(device)
        if dataset_id is None:
            raise IntegrityError(
                "the batch carries no dataset_id, although the split is a blend: the samples do "
                "not come from Megatron's BlendedDataset, or the script drops the key; give the "
                "data through --data-path, or let your dataset return 'dataset_id'"
            )
        ids = dataset_id if dataset_id.dim() == 1 else dataset_id.reshape(-1)
        if tokens.is_cpu and ids.is_cpu:
            return Rows(self._packed(tuple(ids.tolist()), tuple(tokens.tolist()), device))
        _check_ids(len(ids), len(tokens))
        ids = ids.to(tokens.device, torch.int64)
        found = self._table(origin, tokens.device)[ids.clamp(-1, len(origin.domains))]
        return Rows.of(found, tokens).to(device)

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
        self.domain_id: torch.Tensor | None = None
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
        self.domain_id = batch.pop(DOMAIN_ID, None)
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
        # Without a cast that none needs: this is half of the time that the samples take.
        tokens = mask.sum(1) if mask.dtype == torch.float32 else mask.float().sum(1)
        if source.by_token:
            return Rows.of_tokens(self.domain_id, mask, tokens).to(device)
        return source.rows(self.dataset_id, tokens, device)


def _pack(
    table: tuple[int, ...], ids: tuple[int, ...], tokens: tuple[float, ...], device: torch.device
) -> torch.Tensor:
    """``Rows.packed``, made of Python's numbers: of a few samples faster than by torch."""
    _check_ids(len(ids), len(tokens))
    domains = [table[i] if 0 <= i < len(table) else -1 for i in ids]
    inverse = [1.0 / number if number >= LEAST else 1.0 for number in tokens]
    packed = _layout(len(ids)).pack(*domains, *inverse, *tokens)
    made = torch.frombuffer(bytearray(packed), dtype=torch.int32)
    return made if device.type == "cpu" else made.to(device, non_blocking=True)


def _ids(given: torch.Tensor) -> torch.Tensor:
    """As int32; an id of no domain must not become one by wrapping."""
    return given if given.dtype == torch.int32 else given.long().clamp(-1, 2**31 - 1).int()


def _check_ids(ids: int, rows: int) -> None:
    if ids != rows:
        raise IntegrityError(f"dataset_id has {ids} entries for {rows} rows of the batch")


@lru_cache
def _layout(count: int) -> struct.Struct:
    """Of ``Rows.packed``, for ``count`` samples."""
    return struct.Struct(f"={count}i{2 * count}f")


@dataclass(slots=True)  # not frozen, which takes thrice the time: there is one a microbatch
class Rows:
    """The samples of one microbatch, whole: before context parallelism cuts them.

    Attributes:
        packed: int32 ``[3 * b]``: ``domains``, ``inverse`` and ``tokens``, one after the other, as
            the kernels take them; the three are views, made when they are asked for.
        by_token: int32 ``[b, s]``, domain index of each token where they have one each; then
            ``domains`` say nothing. Else None.
        present: int32 ``[m]``, with ``by_token``: the domains of each sample's loss tokens, sample
            by sample.
    """

    packed: torch.Tensor
    by_token: torch.Tensor | None = None
    present: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.packed.numel() // 3

    @property
    def domains(self) -> torch.Tensor:
        """int32 ``[b]``, domain index of each sample."""
        return self.packed[: len(self)]

    @property
    def inverse(self) -> torch.Tensor:
        """fp32 ``[b]``, 1 / tokens; 1 for a sample without any, or less than ``LEAST``."""
        return self.packed[len(self) : 2 * len(self)].view(torch.float32)

    @property
    def tokens(self) -> torch.Tensor:
        """fp32 ``[b]``, loss tokens of each sample (Σ of its mask)."""
        return self.packed[2 * len(self) :].view(torch.float32)

    @classmethod
    def of(cls, domains: torch.Tensor, tokens: torch.Tensor) -> Rows:
        """From domains ``[b]``, of any integer type, and tokens ``[b]``, both on one device."""
        inverse = torch.where(tokens >= LEAST, tokens, 1.0).reciprocal()
        bits = torch.int32
        return cls(torch.cat([_ids(domains), inverse.view(bits), tokens.view(bits)]))

    @classmethod
    def of_tokens(
        cls, domain_id: torch.Tensor | None, mask: torch.Tensor, tokens: torch.Tensor
    ) -> Rows:
        """From the domain of every token ``[b, s]``, their mask, and tokens ``[b]``.

        Raises:
            IntegrityError: the batch does not tell the domains.
        """
        if domain_id is None or domain_id.shape != mask.shape:
            found = "no" if domain_id is None else f"a {tuple(domain_id.shape)}"
            raise IntegrityError(
                f"the batch carries {found} domain_id for a loss mask of {tuple(mask.shape)}: the "
                "config says that the data has channels, and the script's data sets or its batches "
                "do not tell them"
            )
        nobody = torch.full_like(tokens, -1, dtype=torch.int32)
        seen = [ids[counts != 0].unique() for ids, counts in zip(domain_id, mask, strict=True)]
        packed = cls.of(nobody, tokens).packed
        return cls(packed, _ids(domain_id), _ids(torch.cat(seen)))

    def to(self, device: torch.device) -> Rows:
        """The rows on ``device``, in one copy; in three where tokens have domains."""
        if device == self.packed.device:
            return self
        packed = self.packed.to(device, non_blocking=True)
        if self.by_token is None or self.present is None:
            return Rows(packed)
        by_token = self.by_token.to(device, non_blocking=True)
        return Rows(packed, by_token, self.present.to(device, non_blocking=True))

    @classmethod
    def shared(
        cls,
        rows: Rows | None,
        count: int,
        length: int | None,
        device: torch.device,
        *,
        group: Any,
        source: int,
    ) -> Rows:
        """The rows on every TP rank, of which only the first reads data.

        One broadcast over the TP group, 12 bytes a sample; another of 4 bytes a token where tokens
        have domains. Needed only where weights are in force.

        Args:
            rows: on ``source``; None elsewhere.
            count: samples in the microbatch.
            length: tokens of a sample, where each token has a domain; else None.
            device: where the losses live.
            group: the TP group.
            source: global rank of TP rank 0.
        """
        if rows is None:
            ids = None
            if length is not None:
                ids = torch.empty(count, length, dtype=torch.int32, device=device)
            rows = cls(torch.empty(3 * count, dtype=torch.int32, device=device), ids)
        dist.broadcast(rows.packed, src=source, group=group)
        if rows.by_token is not None:
            dist.broadcast(rows.by_token, src=source, group=group)
        return rows
