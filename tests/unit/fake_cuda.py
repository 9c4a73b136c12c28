"""A CUDA device in Python objects, so that what ``driver.Device`` asks of it can be checked.

It holds the rule that a machine without a GPU cannot show: a thread has no context until one is
bound to it, and without one the driver neither loads nor launches.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from domain_pretrain.kernels.domain_reduce import compiler, driver
from domain_pretrain.kernels.domain_reduce.kernel_launch import Arguments

CONTEXT = 77
FUNCTION = 88


class Status(IntEnum):
    """``CUresult``."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_CONTEXT = 201


class FakeDriver:
    """Stands in for ``cuda.bindings.driver``.

    ``calls`` are what was asked, in order; ``launches`` how, and with what arguments.
    """

    CUresult = Status

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.launches: list[tuple[driver.LaunchConfig, Arguments]] = []
        self.thread = threading.local()

    def cuDeviceGet(self, index: int) -> tuple[Status, int]:
        return Status.CUDA_SUCCESS, index

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Status, int]:
        return Status.CUDA_SUCCESS, CONTEXT + device

    def cuCtxGetCurrent(self) -> tuple[Status, int]:
        return Status.CUDA_SUCCESS, getattr(self.thread, "context", 0)

    def cuCtxSetCurrent(self, context: int) -> tuple[Status]:
        self.calls.append("bind")
        self.thread.context = context
        return (Status.CUDA_SUCCESS,)

    def cuModuleLoadData(self, code: bytes) -> tuple[Any, ...]:
        return self._in_a_context("load", code)

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> tuple[Any, ...]:
        return Status.CUDA_SUCCESS, FUNCTION

    def launch_kernel(
        self, config: Any, kernel: ctypes.c_void_p, parameters: Any, extra: None
    ) -> int:
        """``cuLaunchKernelEx`` of C, which copies what it is given."""
        assert kernel.value == FUNCTION
        arguments = Arguments.from_buffer_copy(Arguments.from_address(parameters[0]))
        self.launches.append((driver.LaunchConfig.from_buffer_copy(config._obj), arguments))
        return int(self._in_a_context("launch")[0])

    def _in_a_context(self, call: str, value: Any = None) -> tuple[Any, ...]:
        self.calls.append(call)
        if getattr(self.thread, "context", 0) != CONTEXT:
            return Status.CUDA_ERROR_INVALID_CONTEXT, None
        return Status.CUDA_SUCCESS, value


class FakeCuda:
    """Stands in for ``torch.cuda``, with one device; ``capturing`` and ``stream`` can be set."""

    capturing = False
    stream = 5
    current = 0

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(major=9, minor=0, multi_processor_count=132)

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    def _cuda_getCurrentRawStream(self, index: int) -> int:
        return self.stream

    def _cuda_getDevice(self) -> int:
        return self.current

    @contextmanager
    def device(self, index: int) -> Iterator[None]:
        before, self.current = self.current, index
        yield
        self.current = before


def fake_device(monkeypatch: pytest.MonkeyPatch) -> tuple[driver.Device, FakeDriver, FakeCuda]:
    """A ``Device`` on a fake driver, made on this thread as ``select`` makes it."""
    fake, cuda = FakeDriver(), FakeCuda()
    fake.thread.context = CONTEXT  # the runtime has bound it for torch's own work

    def zeros(*size: int, device: torch.device, **kind: Any) -> torch.Tensor:
        return torch.zeros(*size, **kind)

    monkeypatch.setattr(compiler, "bindings", lambda name: fake)
    monkeypatch.setattr(driver, "_launch_kernel", lambda: fake.launch_kernel)
    monkeypatch.setattr(
        driver, "torch", SimpleNamespace(**vars(torch) | {"cuda": cuda, "_C": cuda, "zeros": zeros})
    )
    monkeypatch.setattr(compiler, "architecture_for", lambda capability: "sm_90")
    monkeypatch.setattr(compiler, "compile_source", lambda variant, architecture: (b"code", ""))
    return driver.Device(0), fake, cuda
