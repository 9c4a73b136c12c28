"""What it takes to find a run's samples again: told at each start, and read back by a trace."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from inspect import signature
from pathlib import Path
from typing import Any

from packaging.version import Version
from pydantic import BaseModel, ValidationError

from domain_pretrain.data.mix.plan import Plan
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.data.reading import Reading
from domain_pretrain.errors import ConfigError, UnsupportedError, first_problem
from domain_pretrain.paths import is_remote
from domain_pretrain.records.journal import Start

_KIND = "GPTDataset"
_NO_RAMP = (0, 18)  # from here on, Megatron takes --rampup-batch-size and does nothing with it
# Of the flags, those that decide how many samples a step takes.
_BATCH = (
    "global_batch_size",
    "micro_batch_size",
    "data_parallel_size",
    "rampup_batch_size",
    "step_batch_size_schedule",
    "decrease_batch_size_if_needed",
    "seq_length",
)


def tell_data(builder: Any) -> dict[str, Any]:
    """What a ``BlendedMegatronDatasetBuilder`` is about to build from; JSON values."""
    config = builder.config
    plain = {field.name: getattr(config, field.name) for field in fields(config) if field.init}
    tokenizer = getattr(config, "tokenizer", None)
    return {
        "kind": getattr(builder.cls, "__name__", str(builder.cls)),
        "sizes": [None if size is None else int(size) for size in builder.sizes],
        "config": {name: value for name, value in plain.items() if _is_plain(value)},
        "tokenizer": {
            # As the host's hash takes them.
            "unique_identifiers": json.loads(
                json.dumps(tokenizer, default=lambda one: getattr(one, "unique_identifiers", None))
            ),
            "vocab_size": getattr(tokenizer, "vocab_size", None),
        },
    }


def tell_run(
    flags: Any,
    core_version: str,
    reading: Reading,
    domain_of: Mapping[str, str],
    plan: Plan | None,
    data: Mapping[str, Any] | None,
    channels: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """What it takes to find a run's samples again; JSON values.

    Args:
        flags: an object with the host's settings, under the names of Megatron-LM's flags.
        core_version: of ``megatron.core``.
        reading: of the run.
        domain_of: data prefix, normalised → name of its domain.
        plan: of the plugin's stream.
        data: of :func:`tell_data`; None: the host has built its data where nobody saw it.
        channels: data prefix, normalised → the domains of its channels, where it has some.
    """
    blend, read = reading.blends[0], reading.already_read
    prefixes = () if blend is None else blend[0]
    return {
        "core_version": core_version,
        "folder": os.getcwd(),
        "prefixes": list(prefixes),
        "domains": [domain_of[normalise(prefix)] for prefix in prefixes],
        "channels": [list((channels or {}).get(normalise(prefix), ())) for prefix in prefixes],
        "written": [written(prefix) for prefix in prefixes],
        "phases": bool(getattr(flags, "phase_transition_iterations", None)),
        "batch": {name: getattr(flags, name, None) for name in _BATCH},
        "plan": None if plan is None else asdict(plan),
        "already_read": None if read is None else read.told(),
        "data": None if data is None else dict(data),
    }


class _Batch(BaseModel):
    global_batch_size: int | None = None
    micro_batch_size: int | None = None
    data_parallel_size: int | None = None
    rampup_batch_size: list[int] | None = None
    step_batch_size_schedule: str | None = None
    decrease_batch_size_if_needed: bool | None = None
    seq_length: int | None = None


class _Data(BaseModel):
    kind: str
    sizes: list[int | None]
    config: dict[str, Any]
    tokenizer: dict[str, Any]


class _AlreadyRead(BaseModel):
    path: Path
    digest: str


class Reads(BaseModel):
    """What :func:`tell_run` has told, read back."""

    core_version: str
    folder: str
    prefixes: tuple[str, ...]
    domains: tuple[str, ...]
    channels: tuple[tuple[str, ...], ...] = ()  # an older start does not tell them
    written: list[float | None]
    phases: bool
    batch: _Batch
    plan: dict[str, Any] | None
    already_read: _AlreadyRead | None = None
    data: _Data | None

    @classmethod
    def of(cls, start: Start) -> Reads:
        """Of a start in the journal.

        Raises:
            ConfigError: it was written by an older version, or says something else.
            UnsupportedError: its samples do not come in an order that can be told.
        """
        where = f"the journal's start at iteration {start.iteration:,}"
        if start.reads is None:
            raise ConfigError(
                f"{where} was written by an older version of domain_pretrain and lacks `reads`, "
                "which says how the data was built, and the batch sizes: what is read from the "
                "next start on can be traced, this cannot"
            )
        try:
            reads = cls.model_validate(start.reads)
        except ValidationError as error:
            problem = first_problem(error, "reads")
            raise ConfigError(f"{where} cannot be used: {problem}") from None
        loader = start.order.get("settings", {}).get("--dataloader-type")
        if loader not in (None, "single"):
            raise UnsupportedError(
                f"{where}: --dataloader-type {loader} takes samples in an order of its own, which "
                "depends on the layout; only Megatron's default, single, can be traced"
            )
        if reads.phases:
            raise UnsupportedError(
                f"{where}: with --phase-transition-iterations each phase reads its data from the "
                "start; that is not traced"
            )
        if reads.data is None:
            raise UnsupportedError(
                f"{where}: the run's script does not build its data with Megatron's "
                "BlendedMegatronDatasetBuilder on the last rank, or is Megatron-Bridge's; that is "
                "not traced"
            )
        if reads.data.kind != _KIND:
            raise UnsupportedError(
                f"{where}: the run reads a {reads.data.kind}, and only Megatron's {_KIND} is traced"
            )
        return reads

    def batch_at(self) -> Callable[[int], int]:
        """Gives the samples of the step that begins after so many consumed.

        Raises:
            UnsupportedError: this Megatron grows batches in another way than the run's.
        """
        batch = self.batch
        if not (batch.rampup_batch_size or batch.step_batch_size_schedule):
            unit = (batch.micro_batch_size or 1) * (batch.data_parallel_size or 1)
            size = batch.global_batch_size or unit
            if batch.decrease_batch_size_if_needed:
                size = size // unit * unit
            return lambda consumed: size
        return _Growing(batch, self.core_version)


class _Growing:
    """By the host's own calculator, of which a process has one."""

    _in_force: _Growing | None = None

    def __init__(self, batch: _Batch, core_version: str) -> None:
        with quiet():
            from megatron.core import num_microbatches_calculator as host

        self._host = host
        known = signature(host.init_num_microbatches_calculator).parameters
        given = batch.model_dump(exclude_none=True)
        self._given = {name: value for name, value in given.items() if name in known}
        if batch.step_batch_size_schedule and "step_batch_size_schedule" not in known:
            raise UnsupportedError(
                f"the run has --step-batch-size-schedule under megatron-core {core_version}, which "
                "that installed here does not know yet: trace it with the run's own Megatron"
            )
        if Version(core_version).release >= _NO_RAMP:  # there, the run itself has not heeded it
            self._given |= {name: None for name in known if name == "rampup_batch_size"}
        elif batch.rampup_batch_size and self(0) != batch.rampup_batch_size[0]:
            raise UnsupportedError(
                f"the run has --rampup-batch-size under megatron-core {core_version}, which that "
                "installed here does not know any more: trace it with the run's own Megatron"
            )

    def __call__(self, consumed: int) -> int:
        if _Growing._in_force is not self:
            self._host.unset_num_microbatches_calculator()
            self._host.init_num_microbatches_calculator(rank=1, **self._given)  # 0 would log
            _Growing._in_force = self
        self._host.update_num_microbatches(consumed, consistency_check=False)
        return int(self._host.get_current_running_global_batch_size())


def written(prefix: str) -> float | None:
    """When the tokens were written, in seconds since 1970; None where that is not known."""
    try:
        return None if is_remote(prefix) else round(os.path.getmtime(f"{prefix}.bin"), 3)
    except OSError:
        return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


@contextmanager
def quiet() -> Iterator[None]:
    """Megatron warns of what a trace does not need: a GPU, Transformer Engine, an index on disk."""
    for name in ("torch.utils.cpp_extension", "megatron"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
