"""Loads cubins and launches kernels through the CUDA driver API, on torch's streams.

A launch costs about 2 µs of Python, as much as one small torch operation: see docs/kernels.md for
the measurement that chose cuda-bindings.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import torch

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.kernels.domain_reduce import compiler
from domain_pretrain.kernels.domain_reduce.kernel_launch import THREADS, KernelLaunch, Variant

WORKSPACE_BYTES = 32


class Device:
    """One CUDA device: its kernels, and the workspaces of the kernels that need one.

    Two launches that may run at the same time must not share a workspace. Launches on one stream
    run one after the other, so each stream has one; a captured launch runs whenever its graph is
    replayed, so it has one in the graph's own memory, zeroed by the graph.
    """

    def __init__(self, index: int) -> None:
        self._driver = _driver()
        properties = torch.cuda.get_device_properties(index)
        self._index = index
        self._architecture = compiler.architecture_for((properties.major, properties.minor))
        self.processors = properties.multi_processor_count
        self._kernels: dict[Variant, Any] = {}
        handle = self._check(self._driver.cuDeviceGet(index))
        self._context = self._check(self._driver.cuDevicePrimaryCtxRetain(handle))  # torch's
        self._thread = threading.local()
        self._workspaces: dict[int, torch.Tensor] = {}  # by stream

    def workspace(self) -> torch.Tensor:
        """A zeroed workspace for the next launch on the current stream."""
        if torch.cuda.is_current_stream_capturing():
            return self._zeros()
        stream = torch.cuda.current_stream(self._index).cuda_stream
        if stream not in self._workspaces:
            self._workspaces[stream] = self._zeros()
        return self._workspaces[stream]

    def _zeros(self) -> torch.Tensor:
        device = torch.device("cuda", self._index)
        return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)

    def launch(self, launch: KernelLaunch) -> None:
        """Enqueue on the current stream; returns at once."""
        with torch.cuda.device(self._index):
            self._bind_context()
            kernel = self.kernel(launch.variant)
            stream = torch.cuda.current_stream().cuda_stream
            arguments = ((launch.arguments,), (None,))  # None: a ctypes structure, by value
            size = (launch.grid, 1, 1, THREADS, 1, 1)
            self._check(self._driver.cuLaunchKernel(kernel, *size, 0, stream, arguments, 0))

    def kernel(self, variant: Variant) -> Any:
        """The kernel, compiled or read from the cache, and loaded, when it is first asked for.

        Raises:
            UnsupportedError: it cannot be compiled, or this driver cannot load it.
        """
        kernel = self._kernels.get(variant)
        if kernel is None:
            _refuse_capture()
            code = compiler.cubin(variant, self._architecture)
            self._bind_context()
            try:
                module = self._check(self._driver.cuModuleLoadData(code))
                kernel = self._check(
                    self._driver.cuModuleGetFunction(module, variant.kernel.encode())
                )
            except RuntimeError as error:
                raise UnsupportedError(f"cannot load the kernel: {error}") from error
            self._kernels[variant] = kernel
        return kernel

    def _bind_context(self) -> None:
        """Give this thread the device's context, once, where it has none.

        Autograd's worker threads start without: the runtime binds one in its own calls, but torch
        need not have made any, and the driver API refuses to launch or load without.
        """
        if getattr(self._thread, "bound", False):
            return
        if not int(self._check(self._driver.cuCtxGetCurrent())):
            self._check(self._driver.cuCtxSetCurrent(self._context))
        self._thread.bound = True

    def _check(self, result: tuple[Any, ...]) -> Any:
        status, *values = result
        if int(status) != 0:
            raise RuntimeError(f"CUDA driver: {status.name} on cuda:{self._index}")
        return values[0] if values else None


@cache
def device(index: int) -> Device:
    """The device of a CUDA tensor, ``tensor.device.index``."""
    return Device(index)


def _refuse_capture() -> None:
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "the first use of a domain_reduce kernel loads code, which a CUDA graph cannot "
            "capture: run one iteration before the capture"
        )


def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise UnsupportedError(
            "the cuda backend needs the package cuda-bindings of torch's CUDA version "
            f"{torch.version.cuda} ({error}); newer CUDA builds of torch install it"
        ) from error
    return driver
