"""What launching asks of the CUDA driver, on a driver of Python objects."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from fake_cuda import fake_device

from domain_pretrain.kernels.domain_reduce.kernel_launch import (
    KernelLaunch,
    Tensors,
    Variant,
    lay_out,
)


def gradient_launch() -> KernelLaunch:
    mask = torch.ones(2, 8)
    tensors = Tensors(
        mask=mask,
        ids=torch.zeros(2, dtype=torch.int32),
        grad=torch.ones(()),
        grad_losses=torch.empty(2, 8),
    )
    return lay_out("gradient", (2, 8), tensors, domains=0, processors=132)


def on_a_new_thread(function: Callable[[], object]) -> None:
    """Run it where no context is bound, as on autograd's worker; what it raises is raised here."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def test_a_threads_first_launch_binds_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward runs on a thread of autograd's that need not have one."""
    device, fake, _ = fake_device(monkeypatch)
    launch = gradient_launch()
    device.kernel(launch.variant)
    device.launch(launch)
    assert fake.calls == ["load", "launch"], "this thread has torch's context"

    def backward() -> None:
        for _ in range(3):
            device.launch(launch)

    fake.calls.clear()
    on_a_new_thread(backward)
    assert fake.calls == ["bind", "launch", "launch", "launch"]


def test_a_threads_first_load_binds_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient's kernel is first asked for in backward."""
    device, fake, _ = fake_device(monkeypatch)
    on_a_new_thread(lambda: device.kernel(Variant("reduce")))
    on_a_new_thread(lambda: device.launch(gradient_launch()))
    assert fake.calls == ["bind", "load", "bind", "load", "launch"]


def test_a_stream_keeps_its_workspace_and_a_capture_returns_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many launches a process captures, none of them runs out, and none is kept."""
    device, _, cuda = fake_device(monkeypatch)
    first = device.workspace()
    assert device.workspace().data_ptr() == first.data_ptr()
    cuda.stream = 6
    assert device.workspace().data_ptr() != first.data_ptr()
    cuda.capturing = True
    captured = [weakref.ref(device.workspace()) for _ in range(5000)]
    assert not any(workspace() is not None for workspace in captured)
    cuda.capturing = False
    assert device.workspace().data_ptr() != first.data_ptr()
    cuda.stream = 5
    assert device.workspace().data_ptr() == first.data_ptr()
