"""CUDA source → cubin, by NVRTC. Needs no GPU and no compiler."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.kernels.domain_reduce.kernel_launch import Variant

SOURCE = Path(__file__).with_name("domain_reduce.cu")
OLDEST = (8, 0)
"""The lowest compute capability with all that the kernels use (``__reduce_min_sync``)."""

INTEGRATED = (72, 87, 88, 101)
"""Architectures of Tegra's GPUs: their code runs on no other GPU of the same major version."""


def compile_source(variant: Variant, architecture: str) -> tuple[bytes, str]:
    """(machine code, compiler's log with the resources that the kernel takes).

    Args:
        variant: which kernel.
        architecture: as NVRTC spells it, ``sm_90``.

    Raises:
        UnsupportedError: NVRTC is missing, or refuses the source.
    """
    library = bindings("nvrtc")
    options = [option.encode() for option in _options(variant, architecture)]
    source, name = SOURCE.read_bytes(), SOURCE.name
    program = _checked(library.nvrtcCreateProgram(source, name.encode(), 0, [], []))
    try:
        status, *_ = library.nvrtcCompileProgram(program, len(options), options)
        log = bytearray(_checked(library.nvrtcGetProgramLogSize(program)))
        _checked(library.nvrtcGetProgramLog(program, log))
        text = bytes(log).rstrip(b"\0").decode(errors="replace")
        if int(status) != 0:
            raise UnsupportedError(f"NVRTC cannot compile {name} for {architecture}:\n{text}")
        code = bytearray(_checked(library.nvrtcGetCUBINSize(program)))
        _checked(library.nvrtcGetCUBIN(program, code))
        return bytes(code), text
    finally:
        library.nvrtcDestroyProgram(program)


def architecture_for(capability: tuple[int, int]) -> str:
    """The newest architecture that NVRTC knows and that runs on ``capability``.

    A cubin runs on devices of its own major version and of its minor version or a later one, but
    one for an integrated GPU runs on that alone.
    """
    supported = _checked(bindings("nvrtc").nvrtcGetSupportedArchs())
    major, minor = capability
    fitting = [
        a
        for a in supported
        if a // 10 == major and (a % 10 == minor or (a % 10 < minor and a not in INTEGRATED))
    ]
    if capability < OLDEST or not fitting:
        raise UnsupportedError(
            f"no kernel for compute capability {major}.{minor}: at least {OLDEST[0]}.{OLDEST[1]} "
            f"is needed, and this NVRTC knows {supported}; a newer nvidia-cuda-nvrtc may help"
        )
    return f"sm_{max(fitting)}"


def _options(variant: Variant, architecture: str) -> list[str]:
    return [
        f"--gpu-architecture={architecture}",
        "-std=c++17",
        "--fmad=false",  # torch rounds products before it adds them
        "--ptxas-options=--verbose",
        "--ptxas-options=--warn-on-spills",
        "--ptxas-options=--warn-on-local-memory-usage",
        *(f"-D{name}={value}" for name, value in variant.macros().items()),
    ]


def bindings(name: str) -> Any:
    """NVIDIA's bindings of ``nvrtc`` or ``driver``.

    Raises:
        UnsupportedError: they are missing, or NVRTC is.
    """
    try:
        found = import_module(f"cuda.bindings.{name}")
        if name == "nvrtc":
            found.nvrtcVersion()  # loads the library
    except (ImportError, RuntimeError) as error:
        raise UnsupportedError(
            f"cuda.bindings.{name} cannot be used ({error}): install torch's CUDA build, or "
            f"cuda-bindings and nvidia-cuda-nvrtc of its CUDA version, {torch.version.cuda}"
        ) from error
    return found


def _checked(result: tuple[Any, ...]) -> Any:
    """The value of ``(status, value…)``, raising UnsupportedError if the status is not 0."""
    status, *values = result
    if int(status) != 0:
        raise UnsupportedError(f"NVRTC failed: {status.name}")
    return values[0] if len(values) == 1 else values or None
