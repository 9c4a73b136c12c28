"""A device that runs ``domain_reduce.cu`` on the CPU; ``cuda_emulator.h`` says what that proves."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch

from domain_pretrain.kernels import domain_reduce
from domain_pretrain.kernels.domain_reduce.kernel_launch import Arguments, KernelLaunch, Variant

SOURCES = Path(domain_reduce.__file__).parent

FLAGS = [
    *("-std=c++17", "-O0", "-fPIC", "-shared", "-w", "-fno-strict-aliasing"),
    "-ffp-contract=off",  # a fused multiply-add would round once where torch rounds twice
    "-fno-gnu-unique",  # __shared__ arrays are static here: each library must have its own
    "-fsanitize=undefined",  # reported through the handlers in cuda_emulator.h
]

MAIN = """
#include "cuda_emulator.h"
#include "domain_reduce.cu"
static const Arguments* arguments;
static void run() {{ {kernel}(*arguments); }}
extern "C" unsigned long size_of_arguments() {{ return sizeof(Arguments); }}
extern "C" int additions() {{ return emulator::additions; }}
extern "C" const char* launch(const Arguments* a, int grid, unsigned seed) {{
  arguments = a;
  return emulator::launch(run, grid, seed);
}}
"""


class EmulatedDevice:
    """Stands in for ``driver.Device``."""

    def __init__(self, folder: Path, processors: int = 1) -> None:
        self.processors = processors
        self.thread = SimpleNamespace(plans={})
        self.launches: list[KernelLaunch] = []
        self.seed = 0
        self.additions = 0  # atomics of the last launch
        self._folder = folder
        self._workspace = torch.zeros(4, dtype=torch.int64)

    def workspace(self) -> torch.Tensor:
        return self._workspace

    def launcher(self, launch: KernelLaunch) -> Callable[[], None]:
        library = compile_for_cpu(launch.variant, self._folder)

        def enqueue() -> None:
            self.launches.append(launch)
            self.seed += 1
            error = library.launch(ctypes.byref(launch.arguments), launch.grid, self.seed)
            assert error is None, error.decode()
            self.additions = library.additions()
            assert not self._workspace.any(), "the workspace must be left as it was found"

        return enqueue


@cache
def compile_for_cpu(variant: Variant, folder: Path) -> ctypes.CDLL:
    """One variant of the kernel as a shared library."""
    shutil.copy(SOURCES / "domain_reduce.cu", folder)
    name = "_".join(str(v) for v in variant)
    source, binary = folder / f"{name}.cpp", folder / f"{name}.so"
    source.write_text(MAIN.format(kernel=variant.kernel))
    folders = [f"-I{folder}", f"-I{Path(__file__).parent}"]
    macros = [f"-D{key}={value}" for key, value in variant.macros().items()]
    subprocess.run(["g++", *FLAGS, *folders, *macros, source, "-o", binary], check=True)
    library = ctypes.CDLL(str(binary))
    library.launch.restype = ctypes.c_char_p
    library.size_of_arguments.restype = ctypes.c_ulong
    assert library.size_of_arguments() == ctypes.sizeof(Arguments)
    return library
