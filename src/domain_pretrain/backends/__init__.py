"""Where Megatron runs: on an accelerator, which needs nothing from us, or on the CPU."""

from __future__ import annotations

from importlib.util import find_spec

from domain_pretrain.errors import ConfigError

BACKENDS = ("auto", "cpu", "cuda", "npu")


def select(name: str = "auto") -> str:
    """Name of the backend to use: ``cpu``, ``cuda`` or ``npu``.

    Args:
        name: one of :data:`BACKENDS`; ``auto`` takes the accelerator that PyTorch sees, or the CPU.

    Raises:
        ConfigError: ``name`` is unknown.
    """
    if name not in BACKENDS:
        raise ConfigError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    if name != "auto":
        return name
    if find_spec("torch_npu"):
        return "npu"  # before torch.cuda, whose name it takes (torch_npu.contrib.transfer_to_npu)
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
