"""Checkpoints of the format ``torch``, in which each rank of the model has a file."""

from __future__ import annotations

from pathlib import Path


def rank_files(checkpoint: Path) -> list[Path]:
    """Those files, in order; none in a checkpoint of another format."""
    return sorted(checkpoint.glob("mp_rank_*/model_optim_rng.pt"))
