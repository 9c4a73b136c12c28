"""Loads cubins and launches kernels through the CUDA driver API, on torch's streams.

What happens once goes through cuda-bindings; a launch through ctypes, with arguments that are made
beforehand: docs/kernels.md has the measurement.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.kernels.domain_reduce import compiler
from domain_pretrain.kernels.domain_reduce.kernel_launch import THREADS, KernelLaunch, Variant

WORKSPACE_BYTES = 32


class LaunchConfig(ctypes.Structure):
    """``CUlaunchConfig``."""

    _fields_ = [
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z")),
        *((name, ctypes.c_uint) for name in ("block_x", "block_y", "block_z")),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    ]


class Device:
    """One CUDA device: its kernels, and the workspaces of the kernels that need one.

    Two launches that may run at the same time must not share a workspace. Launches on one stream
    run one after the other, so each stream has one; a captured launch runs whenever its graph is
    replayed, so it has one in the graph's own memory, zeroed by the graph.

    Attributes:
        processors: multiprocessors.
        thread: of the thread that asks.
    """

    def __init__(self, index: int) -> None:
        self._driver = compiler.bindings("driver")
        properties = torch.cuda.get_device_properties(index)
        self._index = index
        self._architecture = compiler.architecture_for((properties.major, properties.minor))
        self.processors = properties.multi_processor_count
        self._kernels: dict[Variant, Any] = {}
        handle = self._check(self._driver.cuDeviceGet(index))
        self._context = self._check(self._driver.cuDevicePrimaryCtxRetain(handle))  # torch's
        self._launch_kernel = _launch_kernel()
        self.thread = _Thread(self)
        self._workspaces: dict[int, torch.Tensor] = {}  # by stream

    def workspace(self) -> torch.Tensor:
        """A zeroed workspace for the next launch on the current stream."""
        capturing = torch.cuda.is_current_stream_capturing()
        stream = torch._C._cuda_getCurrentRawStream(self._index)
        if not capturing and stream in self._workspaces:
            return self._workspaces[stream]
        device = torch.device("cuda", self._index)
        workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        if not capturing:
            self._workspaces[stream] = workspace
        return workspace

    def launcher(self, launch: KernelLaunch) -> Callable[[], None]:
        """Enqueues the launch on the current stream, with what its arguments hold at that moment.

        Only for the thread that asks for it: another might change the arguments meanwhile.
        """
        index, launch_kernel = self._index, self._launch_kernel
        kernel = ctypes.c_void_p(int(self.kernel(launch.variant)))
        config = LaunchConfig(launch.grid, 1, 1, THREADS, 1, 1)
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(launch.arguments))
        by_reference = ctypes.byref(config)

        def enqueue() -> None:
            if torch._C._cuda_getDevice() != index:
                with torch.cuda.device(index):
                    return enqueue()
            config.stream = torch._C._cuda_getCurrentRawStream(index)
            status = launch_kernel(by_reference, kernel, parameters, None)
            if status:
                self._check((self._driver.CUresult(status),))

        return enqueue

    def kernel(self, variant: Variant) -> Any:
        """The kernel, compiled and loaded when it is first asked for.

        Raises:
            UnsupportedError: it cannot be compiled, or this driver cannot load it.
        """
        if variant not in self._kernels:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "the first use of a domain_reduce kernel loads code, which a CUDA graph cannot "
                    "capture: run one iteration before the capture"
                )
            code, _ = compiler.compile_source(variant, self._architecture)
            self.bind_context()
            try:
                module = self._check(self._driver.cuModuleLoadData(code))
                found = self._driver.cuModuleGetFunction(module, variant.kernel.encode())
                self._kernels[variant] = self._check(found)
            except RuntimeError as error:
                raise UnsupportedError(f"cannot load the kernel: {error}") from error
        return self._kernels[variant]

    def bind_context(self) -> None:
        """Give this thread torch's context, where it has none."""
        if not int(self._check(self._driver.cuCtxGetCurrent())):
            self._check(self._driver.cuCtxSetCurrent(self._context))

    def _check(self, result: tuple[Any, ...]) -> Any:
        status, *values = result
        if int(status) != 0:
            raise RuntimeError(f"CUDA driver: {status.name} on cuda:{self._index}")
        return values[0] if values else None


class _Thread(threading.local):
    """What a thread has of its own; made when it first asks.

    ``plans`` are what it keeps of its launches: their arguments are changed by each. Then it gets
    the device's context, too, where it has none: autograd's worker threads start without. The
    runtime binds one in its own calls, but torch need not have made any, and the driver API refuses
    to launch or load without.
    """

    def __init__(self, device: Device) -> None:
        self.plans: dict[Any, Any] = {}
        device.bind_context()


@cache
def device(index: int) -> Device:
    """The device of a CUDA tensor, ``tensor.device.index``."""
    return Device(index)


def _launch_kernel() -> Any:
    """``cuLaunchKernelEx``, of CUDA 11.8 and later: it takes the fewest arguments."""
    try:
        return ctypes.CDLL("libcuda.so.1").cuLaunchKernelEx
    except (OSError, AttributeError) as error:
        raise UnsupportedError(f"the CUDA driver cannot be used ({error})") from error
