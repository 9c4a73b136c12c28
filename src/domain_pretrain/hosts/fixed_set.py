"""The fixed validation set on Megatron: its data sets once more, over one pass, and its own loop.

What the host evaluates on moves on through the blend, and a rare domain has a handful of samples
in it. The same prefixes, split and seed give one pass of each prefix that depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from domain_pretrain.data.origin import ById
from domain_pretrain.errors import UnsupportedError
from domain_pretrain.evaluate.fixed import choose, microbatches, steps
from domain_pretrain.flow.tap import DATASET_ID, Source


class FixedSet:
    """The set, on every rank; only those that read data have its data sets.

    Every rank makes it, and calls :meth:`run`, together.

    Args:
        args: the host's.
        built: the host's validation data for each model chunk of this rank; None: not read here.
        domains: domain index of every validation prefix, in the order of the blend.
        samples: of each domain.
        device: for what travels between the ranks.

    Attributes:
        domains: domain index of each sample.
        source: tells the samples of a batch apart, by their place in the set.
    """

    def __init__(
        self,
        args: Any,
        built: Sequence[Any],
        domains: Sequence[int],
        samples: int,
        device: torch.device,
    ) -> None:
        self._args, self._built = args, built
        self._sets = _one_pass_each(built, len(domains))
        # One broadcast a run, of 8 bytes a prefix: most ranks have no data to look at.
        lengths = torch.tensor([len(one or ()) for one in self._sets], device=device)
        dist.broadcast(lengths, src=0)
        self._rows = choose(lengths.tolist(), domains, samples)
        self.domains = tuple(domains[number] for number, _ in self._rows)
        self.source = Source(ById(tuple(range(len(self._rows)))))

    def run(self, forward_step: Any, model: Any, config: Any) -> None:
        """Let the host evaluate on the set; everything it counts meanwhile is as it was, after."""
        from megatron.training import training

        args = self._args
        kept = {name: getattr(args, name) for name in ("eval_iters", "consumed_valid_samples")}
        args.eval_iters = steps(len(self._rows), _batch(args))
        chunks = [None if one is None else self._batches() for one in self._built]
        try:
            training.evaluate(
                forward_step, chunks if len(chunks) > 1 else chunks[0], model, None, config
            )
        finally:
            vars(args).update(kept)

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        from megatron.core import parallel_state as mpu

        micro = getattr(self._args, "eval_micro_batch_size", self._args.micro_batch_size)
        replica, replicas = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
        count = len(self._rows)
        for rows in microbatches(count, _batch(self._args), micro, replica, replicas):
            yield torch.utils.data.default_collate([self._sample(row) for row in rows])

    def _sample(self, row: int | None) -> dict[str, Any]:
        number, index = self._rows[row or 0]
        sample = {DATASET_ID: row or 0, **self._sets[number][index]}
        if row is None:  # it fills up the last step, and counts nothing
            sample["loss_mask"] = torch.zeros_like(sample["loss_mask"])
        return sample


def _batch(args: Any) -> int:
    """Samples of a step of an evaluation, over all ranks."""
    return int(getattr(args, "eval_global_batch_size", args.global_batch_size))


def _one_pass_each(built: Sequence[Any], count: int) -> list[Any]:
    """The data sets behind the host's, made for one pass; None each where no data is read.

    Raises:
        UnsupportedError: they are not Megatron's.
    """
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )

    here = next((one for one in built if one is not None), None)
    members = [None] * count if here is None else _members(here)
    if len(members) != count or any(
        one is not None and not hasattr(one, "indices") for one in members
    ):
        raise UnsupportedError(
            f"evaluate.samples: the script's validation data is a {type(here).__name__}, not a "
            "blend of Megatron's data sets; leave evaluate.samples out"
        )
    return [
        BlendedMegatronDatasetBuilder.build_generic_dataset(
            type(one),
            lambda one=one: one is not None,
            True,  # first on rank 0, which writes the index files that the others read
            *(() if one is None else _arguments(one)),
        )
        for one in members
    ]


def _members(dataset: Any) -> list[Any]:
    if isinstance(dataset, list):  # several validation sets
        return [member for one in dataset for member in _members(one)]
    return list(getattr(dataset, "datasets", [dataset]))


def _arguments(one: Any) -> tuple[Any, ...]:
    """Of the constructor of a mid-level data set: all its documents, once."""
    return (one.dataset, one.dataset_path, one.indices, None, one.index_split, one.config)
