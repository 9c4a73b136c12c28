"""CUDA source → cubin, by NVRTC, kept in the user's cache folder. Needs no GPU and no compiler.

A cache entry is named after everything that it depends on, so it is never out of date. It is
written to a temporary file and renamed, so that processes that start at once see a whole file or
none. It begins with its own checksum, so that a damaged one is compiled again.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.kernels.domain_reduce.kernel_launch import Variant
from domain_pretrain.whole_file import whole_file

logger = logging.getLogger(__name__)

SOURCE = "domain_reduce.cu"
OLDEST = (8, 0)
"""The lowest compute capability with all that the kernels use (``__reduce_min_sync``)."""

INTEGRATED = (72, 87, 88, 101)
"""Architectures of Tegra's GPUs: their code runs on no other GPU of the same major version."""


def cubin(variant: Variant, architecture: str) -> bytes:
    """The machine code of ``variant`` for ``architecture`` (``sm_90``), compiled at most once.

    Raises:
        UnsupportedError: NVRTC is missing, or refuses the source.
    """
    options = _options(variant, architecture)
    entry = _cache_entry(f"{variant.kernel}-{architecture}", options)
    if entry is not None:
        code = _read(entry)
        if code is not None:
            return code
    code, _ = compile_source(variant, architecture)
    if entry is not None:
        _write(entry, code)
    return code


def compile_source(variant: Variant, architecture: str) -> tuple[bytes, str]:
    """(machine code, compiler's log with the resources that the kernel takes), uncached."""
    nvrtc = _nvrtc()
    options = [option.encode() for option in _options(variant, architecture)]
    program = _checked(nvrtc.nvrtcCreateProgram(_source(), SOURCE.encode(), 0, [], []))
    try:
        status, *_ = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        text = bytes(log).rstrip(b"\0").decode(errors="replace")
        if int(status) != 0:
            raise UnsupportedError(f"NVRTC cannot compile {SOURCE} for {architecture}:\n{text}")
        code = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program)))
        _checked(nvrtc.nvrtcGetCUBIN(program, code))
        return bytes(code), text
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def architecture_for(capability: tuple[int, int]) -> str:
    """The newest architecture that NVRTC knows and that runs on ``capability``.

    A cubin runs on devices of its own major version and of its minor version or a later one, but
    one for an integrated GPU runs on that alone.
    """
    supported = _checked(_nvrtc().nvrtcGetSupportedArchs())
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


def version() -> str:
    """NVRTC's version."""
    major, minor = _checked(_nvrtc().nvrtcVersion())
    return f"{major}.{minor}"


def cache_folder() -> Path:
    """Where cubins are kept: ``domain_pretrain/kernels`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "domain_pretrain" / "kernels"


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


def _source() -> bytes:
    return (Path(__file__).parent / SOURCE).read_bytes()


def _cache_entry(name: str, options: list[str]) -> Path | None:
    digest = hashlib.sha256()
    for part in (_source(), version().encode(), "\0".join(options).encode()):
        digest.update(hashlib.sha256(part).digest())
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        logger.warning("every process compiles its own kernels: no cache folder (%s)", error)
        return None
    return folder / f"{name}-{digest.hexdigest()[:32]}.cubin"


def _read(entry: Path) -> bytes | None:
    try:
        content = entry.read_bytes()
    except OSError:
        return None
    checksum, code = content[:32], content[32:]
    if hashlib.sha256(code).digest() == checksum:
        return code
    logger.warning("%s is damaged and is compiled again", entry)
    return None


def _write(entry: Path, code: bytes) -> None:
    try:
        with whole_file(entry) as file:
            file.write(hashlib.sha256(code).digest() + code)
    except OSError as error:
        logger.warning("cannot keep the compiled kernel in %s: %s", entry.parent, error)


def _nvrtc():  # type: ignore[no-untyped-def]  # a module
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # loads the library
    except (ImportError, RuntimeError) as error:
        raise UnsupportedError(
            f"NVRTC is not available ({error}): install torch's CUDA build, or "
            "cuda-bindings and nvidia-cuda-nvrtc of torch's CUDA version"
        ) from error
    return nvrtc


def _checked(result):  # type: ignore[no-untyped-def]
    """The value of ``(status, value…)``, raising UnsupportedError if the status is not 0."""
    status, *values = result
    if int(status) != 0:
        raise UnsupportedError(f"NVRTC failed: {status.name}")
    return values[0] if len(values) == 1 else values or None
