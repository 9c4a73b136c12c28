"""A CUDA driver whose functions return at once, so that the host's part of a launch can be timed.

A library of C with the name of NVIDIA's: whoever opens that name next, cuda-bindings and ctypes,
gets it. The tensors are those of the CPU; what torch would ask of its CUDA runtime is answered by a
function that returns a constant.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch

from domain_pretrain.kernels.domain_reduce import compiler, driver

SOURCE = """
#include <string.h>
static int zero(void) { return 0; }
static int handle(void** out) { *out = (void*)8; return 0; }
static int number(int* out) { *out = 0; return 0; }
int cuLaunchKernelEx(void* config, void* f, void** arguments, void** extra) { return 0; }
int cuGetProcAddress_v2(const char* name, void** found, int version, long flags, void* status) {
  const char* with_handle[] = {"CtxGet", "GetFunction", "Load", "Retain"};
  *found = !strcmp(name, "cuDeviceGet") ? (void*)number : (void*)zero;
  for (int i = 0; i < 4; i++) {
    if (strstr(name, with_handle[i])) *found = (void*)handle;
  }
  return 0;
}
int cuGetProcAddress(const char* name, void** found, int version, long flags) {
  return cuGetProcAddress_v2(name, found, version, flags, 0);
}
"""


def load(folder: Path) -> None:
    """Compile the library and put it in the place of the driver's.

    Args:
        folder: takes the source and the library.

    Raises:
        FileNotFoundError: there is no gcc.
        subprocess.CalledProcessError: it cannot compile the library.
    """
    source, library = folder / "stub.c", folder / "libcuda.so.1"
    source.write_text(SOURCE)
    flags = ["-O2", "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["gcc", *flags, "-o", library, source], check=True)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def pretend() -> None:
    """From now on the CPU's tensors are those of a GPU with 132 multiprocessors."""
    properties = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    cuda = SimpleNamespace(
        get_device_properties=lambda index: properties,
        is_current_stream_capturing=lambda: False,
        _cuda_getCurrentRawStream=lambda index: 5,
        _cuda_getDevice=lambda: 0,
    )

    def zeros(*size: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(*size, dtype=dtype)

    fake = SimpleNamespace(**vars(torch) | {"cuda": cuda, "_C": cuda, "zeros": zeros})
    patch.object(driver, "torch", fake).start()
    patch.object(compiler, "architecture_for", lambda capability: "sm_90").start()
    patch.object(compiler, "compile_source", lambda variant, architecture: (b"code", "")).start()
    device = driver.Device(0)
    patch.object(driver, "device", lambda index: device).start()
