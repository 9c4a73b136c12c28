"""Megatron's own layers, for where Transformer Engine is not installed."""

from __future__ import annotations

from importlib.util import find_spec

# As a user would type them. Each stands for a kernel of Transformer Engine or apex that Megatron
# would take by default; without both it refuses to build the model, or fails in its first step.
FLAGS: tuple[tuple[str, str | None], ...] = (
    ("--transformer-impl", "local"),
    ("--attention-backend", "unfused"),
    ("--no-persist-layer-norm", None),
    ("--no-masked-softmax-fusion", None),
    ("--no-gradient-accumulation-fusion", None),
    ("--no-rope-fusion", None),
)

WORDS = [word for flag in FLAGS for word in flag if word is not None]


def has_transformer_engine() -> bool:
    """Whether Transformer Engine is installed."""
    return find_spec("transformer_engine") is not None


def gpu_flags() -> list[str]:
    """What Megatron on a GPU needs to be told on this machine: nothing, or :data:`WORDS`."""
    return [] if has_transformer_engine() else WORDS
