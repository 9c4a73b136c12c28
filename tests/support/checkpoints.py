"""Checkpoints as they lie in a folder: without weights, and what is in those of a run."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, load

from domain_pretrain.checkpoints.tracker import RELEASE, write_tracker


def write_checkpoint(folder: Path, name: str, **args: Any) -> Path:
    """One of the format ``torch``, of a single rank; the tracker names it.

    Args:
        folder: as ``--save`` takes it.
        name: ``iter_…`` or ``release``.
        args: that its run saved.
    """
    part = folder / name / "mp_rank_00"
    part.mkdir(parents=True)
    iteration = 0 if name == RELEASE else int(name.removeprefix("iter_"))
    saved = {"args": Namespace(**args), "iteration": iteration}
    torch.save(saved, part / "model_optim_rng.pt")
    write_tracker(folder, name if name == RELEASE else iteration)
    return folder / name


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a ``torch_dist`` checkpoint, whole."""
    reader = FileSystemReader(str(folder))
    known = reader.read_metadata().state_dict_metadata
    found = {
        name: torch.empty(one.size, dtype=one.properties.dtype)
        for name, one in known.items()
        if hasattr(one, "properties")
    }
    load(found, storage_reader=reader, no_dist=True)
    return found
