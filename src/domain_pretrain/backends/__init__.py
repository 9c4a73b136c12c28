"""Where Megatron runs: on an accelerator, which needs nothing from us, or on the CPU.

``select`` names the backend. Only the CPU's does something, in this order, before ``megatron`` is
imported: ``torch_cuda`` answers for CUDA; ``cpu`` supplies flags and registers ``cpu_seams``, what
stands instead of functions that are wrong on a CPU, among them ``core_attention``, to which
``context_parallel`` and ``attention_logits`` add what Megatron leaves to Transformer Engine.
``npu`` only asks a device what it can do, for ``doctor``. ``local_layers`` are the flags of a
machine without Transformer Engine.

Imported by ``hosts``, ``demo`` and ``commands``; it knows nothing of domains or losses.
"""

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
