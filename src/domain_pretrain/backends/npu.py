"""Whether an Ascend NPU can do what the plugin needs, found out by trying: for ``doctor``.

A run asks the same at its start, and decides for itself.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.kernels.exactness.device_check import (
    all_reduces_int64,
    check_device,
    computes_float64,
)

LIMBS = "missing: sums travel as int32 limbs, with the same result"


@dataclass(frozen=True)
class Finding:
    """One question and its answer.

    Attributes:
        question: what was tried.
        answer: what it means.
        fit: whether a run would be right with it.
    """

    question: str
    answer: str
    fit: bool = True


def find(kind: str = "npu", backend: str = "hccl") -> list[Finding]:
    """Try out the first device of a kind, and the collectives between the first two."""
    if kind == "npu":
        import_module("torch_npu")
    device, devices = torch.device(kind, 0), getattr(torch, kind).device_count()
    if not devices:
        return [Finding("devices", f"torch_npu sees no {kind}", fit=False)]
    found = [_sums(device), _float64(device)]
    return [*found, _all_reduce(kind, backend, min(devices, 2))]


def present() -> bool:
    """Whether torch_npu is installed; not imported."""
    return find_spec("torch_npu") is not None


def _sums(device: torch.device) -> Finding:
    question = "sums in int64 (index_add_, shifts)"
    try:
        check_device(device)
    except UnsupportedError as error:
        return Finding(question, str(error), fit=False)
    return Finding(question, "exact")


def _float64(device: torch.device) -> Finding:
    missing = "missing: channel loss runs, reweighting does not"
    return Finding("float64", "yes" if computes_float64(device) else missing)


def _all_reduce(kind: str, backend: str, ranks: int) -> Finding:
    """Starts ``ranks`` processes, which try an all-reduce between them."""
    question = f"int64 all-reduce ({backend}, {ranks} device{'s' * (ranks > 1)})"
    with tempfile.TemporaryDirectory() as folder:
        try:
            mp.spawn(_rank, args=(kind, backend, ranks, folder), nprocs=ranks)
        except (mp.ProcessExitedException, mp.ProcessRaisedException) as error:
            last = str(error).strip().splitlines()[-1]
            return Finding(question, f"{backend} does not run here: {last}", fit=False)
        exact = Path(folder, "exact").exists()
    return Finding(question, "exact" if exact else LIMBS)


def _rank(rank: int, kind: str, backend: str, ranks: int, folder: str) -> None:
    if kind == "npu":
        import_module("torch_npu")
    accelerator: Any = getattr(torch, kind)
    accelerator.set_device(rank)
    store = Path(folder, "store").as_uri()
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=ranks)
    if all_reduces_int64(torch.device(kind, rank)) and rank == 0:
        Path(folder, "exact").touch()
    dist.destroy_process_group()
