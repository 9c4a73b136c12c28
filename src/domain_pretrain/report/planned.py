"""What the journal of a run tells of its data: the shares that were planned, and its entropy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from domain_pretrain.data.mix.apportion import Shape
from domain_pretrain.data.mix.plan import Plan, Stage
from domain_pretrain.data.mix.planned import planned_shares
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.data.told import read_manifests
from domain_pretrain.errors import ConfigError
from domain_pretrain.records.journal import Start, read_starts


class _Stage(BaseModel):
    samples: int | None
    weights: tuple[float, ...] | None
    shape: Shape


class _Mix(BaseModel):
    stages: list[_Stage]
    cuts: list[tuple[int, int]] = []
    block: int | None = None


class _Reads(BaseModel):
    folder: str = ""
    prefixes: tuple[str, ...]
    domains: tuple[str, ...]
    plan: _Mix | None = None


@dataclass(frozen=True)
class _Stretch:
    """What holds from one start of the run on."""

    consumed: int
    plan: Plan
    domains: tuple[str, ...]


@dataclass(frozen=True)
class Planned:
    """What is known of a run's data, beside its metrics.

    Attributes:
        entropy: nats, of the token ids of a domain: the loss of a model that knows how often each
            is, and nothing else. Of the domains whose data is still here, with its manifest.
    """

    stretches: tuple[_Stretch, ...] = ()
    entropy: Mapping[str, float] = field(default_factory=dict)

    def shares(self, first: int, stop: int) -> dict[str, float]:
        """Each domain's planned part of the samples from ``first`` up to, without, ``stop``.

        Empty where that is not known: of a blend by size, or where the losses decide.
        """
        found: dict[str, float] = {}
        known = 0
        begins = [one.consumed for one in self.stretches]
        for one, end in zip(self.stretches, [*begins[1:], stop], strict=False):
            low, high = max(first, one.consumed), min(stop, end)
            if low >= high:
                continue
            shares = planned_shares(one.plan, None, one.domains, one.domains, low, high)
            if not shares:
                return {}
            known += high - low
            for name, share in shares.items():
                found[name] = found.get(name, 0.0) + share * (high - low)
        return {name: samples / known for name, samples in found.items()}


def read_planned(log_dir: Path) -> Planned:
    """Read the journal beside a metrics file; without one, nothing is known."""
    try:
        starts = read_starts(log_dir)
    except ConfigError:
        return Planned()
    stretches = []
    owners: dict[str, str] = {}
    for start in starts:
        try:
            reads = _Reads.model_validate(start.reads)
        except ValidationError:
            return Planned()
        plan = _plan(start, reads)
        if plan is not None and len(plan.prefixes) == len(reads.domains):
            stretches.append(_Stretch(start.consumed_samples, plan, reads.domains))
        paths = [os.path.join(reads.folder, prefix) for prefix in reads.prefixes]
        owners.update(zip(map(normalise, paths), reads.domains, strict=False))
    complete = len(stretches) == len(starts)
    return Planned(tuple(stretches) if complete else (), read_manifests(owners, owners).entropy)


def _plan(start: Start, reads: _Reads) -> Plan | None:
    """The stream by plan; None where it has none."""
    if reads.plan is None:
        shares = _shares(start.order)
        return None if shares is None else Plan(reads.prefixes, (Stage(None, shares),), 0)
    if reads.plan.block is not None:
        return None
    stages = tuple(Stage(one.samples, one.weights, one.shape) for one in reads.plan.stages)
    return Plan(reads.prefixes, stages, 0, tuple(reads.plan.cuts))


def _shares(order: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Of the host's blend: ``[[prefix, share, …], …]`` is the first of ``data``."""
    try:
        shares = [float(member[1]) for member in order["data"][0]]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return tuple(shares)
