"""The pieces of what the plugin adds, measured in one process: host time, memory, files."""

from __future__ import annotations

import gc
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from domain_pretrain.data.origin import ById
from domain_pretrain.flow import steer
from domain_pretrain.flow.domain_step import DomainStep
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.moment import Moment
from domain_pretrain.flow.tap import Source
from domain_pretrain.kernels.domain_reduce import Backend, cuda, driver
from domain_pretrain.records.exporter import Publisher
from domain_pretrain.records.publisher import open_publisher
from domain_pretrain.records.record import Record, reweighted
from domain_pretrain.stats import SCALE, Column, DomainStats
from domain_pretrain.strategies.section import LaggedReweight

CPU = torch.device("cpu")
ROWS, LENGTH = 4, 128  # the losses are not touched: launches return at once
MICROBATCHES = 8


class NoDevice:
    """A CUDA device whose launches cost nothing: what is left is the host's part."""

    processors = 132

    def workspace(self) -> torch.Tensor:
        return ZERO

    def __init__(self) -> None:
        self.thread = SimpleNamespace(plans={})

    def launcher(self, launch: Any) -> Callable[[], None]:
        return lambda: None


def host_backend() -> Backend:
    """The ``cuda`` backend up to the driver's launch."""
    return Backend("cuda", cuda)


def loss_func(mask: torch.Tensor, losses: torch.Tensor) -> tuple[Any, ...]:
    """A host's loss function that costs nothing either."""
    return ZERO, NO_TOKENS, {}


ZERO, NO_TOKENS = torch.zeros(()), torch.zeros((), dtype=torch.int32)


def make_step(domains: int, weighted: bool, publisher: Publisher | None = None) -> DomainStep:
    """A process's side of the plugin, of ``domains`` domains, with or without reweighting."""
    names = tuple(f"domain{i:04d}" for i in range(domains))
    steering = None
    if weighted:
        steering = steer.Reweighting.check(
            LaggedReweight(), names, average="token", tokens_per_step=2**22
        ).start(Groups(), CPU, None)
    return DomainStep(names, Groups(), CPU, publisher, steering, host_backend())


def median_us(function: Callable[[], object], seconds: float = 0.5) -> float:
    """Median CPU time of a call, µs; garbage is collected before, not within."""
    function()
    gc.collect()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 7:
        start = time.thread_time()
        function()
        times.append(time.thread_time() - start)
    return 1e6 * statistics.median(times)


def microbatch_us(domains: int, weighted: bool) -> float:
    """What a microbatch's forward pass takes more of the host where losses are counted."""
    source = Source(ById(tuple(range(domains))))
    batch = {
        "loss_mask": torch.ones(ROWS, LENGTH),
        "dataset_id": torch.arange(ROWS, dtype=torch.int16) % domains,
    }
    losses = torch.rand(ROWS, LENGTH)

    def forward_step(iterator: Iterator[Any]) -> tuple[Any, ...]:
        return losses, partial(loss_func, next(iterator)["loss_mask"])

    counted = make_step(domains, weighted).wrap_forward_step(forward_step, source, training=True)

    def run(step: Callable[..., Any]) -> None:
        output, function = step(iter([batch]))
        function(output)

    device = NoDevice()
    with patch.object(driver, "device", lambda index: device):
        return median_us(lambda: run(counted)) - median_us(lambda: run(forward_step))


def filled(step: DomainStep) -> DomainStep:
    """With a step's sums in the ledger: every domain present."""
    ledger = step._train.ledger
    ledger.open()
    domains = len(step.names)
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(1000, 100_000, domains))
    losses = torch.from_numpy(rng.uniform(1, 6, domains))
    ledger.sums[0, :-1, Column.TOKENS] = tokens * SCALE[Column.TOKENS]
    ledger.sums[0, :-1, Column.LOSS] = (tokens * losses * SCALE[Column.LOSS]).long()
    ledger.sums[0, :-1, Column.SAMPLES] = 10
    total = ledger.sums[0, :-1].sum(0)
    ledger.totals.copy_(torch.stack([total[Column.LOSS], tokens.sum(), torch.tensor(MICROBATCHES)]))
    return step


def step_us(domains: int, weighted: bool) -> float:
    """The end of a step that nothing is logged at, without its collectives."""
    step = filled(make_step(domains, weighted))
    step._proven = True
    moment = Moment(1, 1, log=False, scalars=False, microbatches=MICROBATCHES)
    return median_us(lambda: step.close(moment))


def device_bytes(domains: int, weighted: bool) -> int:
    """Device memory of a rank: persistent tensors, of every object that the step owns."""
    step = make_step(domains, weighted)
    storages = {}
    queue, seen = [step], set()
    while queue:
        one = queue.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            storage = one.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(one, (list, tuple)):
            queue.extend(one)
        elif isinstance(one, dict):
            queue.extend(one.values())
        elif type(one).__module__.startswith("domain_pretrain"):
            queue.extend(getattr(one, "__dict__", {}).values())
    return sum(storages.values())


def payload_bytes(domains: int, weighted: bool) -> int:
    """What the one all-reduce of a step sends."""
    return make_step(domains, weighted)._train.ledger.shared.nbytes


def state_bytes(domains: int, weighted: bool) -> int:
    """The plugin's part of a checkpoint."""
    return len(pickle.dumps(filled(make_step(domains, weighted)).state_dict()))


def published(domains: int, weighted: bool, points: int = 20) -> dict[str, float]:
    """Time and bytes of a logged step, on the one rank that owns the host's writers."""
    step = filled(make_step(domains, weighted))
    stats: DomainStats = step._train.ledger.read(step.names)[0]
    consumed = {name: 1e12 for name in step.names}
    counts = dict.fromkeys(step.names, 10**9)
    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)
        publisher = open_publisher(
            Path(folder), writer, None, "token", lambda text: None, after_iteration=0
        )
        clock: list[list[float]] = []
        sizes: list[list[int]] = []
        for iteration in range(1, points + 1):
            record = Record("train", iteration, iteration, stats, consumed, counts)
            if weighted:
                record = reweighted(record, stats, {"effective_domains": 1.0, "clip_rate": 0.0})
            times = [time.thread_time()]
            for write in (publisher.scalars, publisher.line):
                write(record)
                times.append(time.thread_time())
            clock.append([1e6 * (b - a) for a, b in pairwise(times)])
            writer.flush()
            files = [sum(f.stat().st_size for f in Path(folder).glob("events*"))]
            files.append((Path(folder) / "domain_metrics.jsonl").stat().st_size)
            sizes.append(files)
        publisher.close()
        writer.close()
    scalars_us, line_us = (statistics.median(column) for column in zip(*clock, strict=True))
    growth = [(b - a) / (points - 1) for a, b in zip(sizes[0], sizes[-1], strict=True)]
    return {
        "tensorboard_us": scalars_us,
        "line_us": line_us,
        "tensorboard_bytes": growth[0],
        "line_bytes": growth[1],
    }


def pieces(domains: int, weighted: bool) -> dict[str, float]:
    """Everything above, of one number of domains."""
    return {
        "domains": domains,
        "weighted": weighted,
        "microbatch_us": microbatch_us(domains, weighted),
        "step_us": step_us(domains, weighted),
        "payload_bytes": payload_bytes(domains, weighted),
        "device_bytes": device_bytes(domains, weighted),
        "state_bytes": state_bytes(domains, weighted),
        **published(domains, weighted),
    }
