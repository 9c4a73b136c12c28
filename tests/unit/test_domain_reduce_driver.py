"""What launching asks of the CUDA driver, on a driver of Python objects."""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from domain_reduce_cases import make_case
from fake_cuda import FakeCuda, FakeDriver, Status, fake_device

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.kernels.domain_reduce import Backend, Inputs, compiler, cuda, driver
from domain_pretrain.kernels.domain_reduce.kernel_launch import (
    THREADS,
    KernelLaunch,
    Variant,
    lay_out,
)


def gradient_launch() -> KernelLaunch:
    mask, ids = torch.ones(2, 8), torch.zeros(2, dtype=torch.int32)
    return lay_out("gradient", Inputs(mask, mask, ids), aligned=True, processors=132)


def test_more_tokens_than_are_counted_are_refused() -> None:
    mask, ids = torch.empty(2, 2**30, device="meta"), torch.empty(2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"fewer than 2\^31 tokens, got 2 x 1073741824"):
        lay_out("reduce", Inputs(mask, mask, ids), aligned=True, processors=132)
    lay_out("reduce", Inputs(mask[:, 1:], mask[:, 1:], ids), aligned=True, processors=132)


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
    device.launcher(gradient_launch())()
    assert fake.calls == ["load", "launch"], "this thread has torch's context"

    def backward() -> None:
        assert device.thread.plans == {}, "a thread has its own"
        launch = device.launcher(gradient_launch())
        for _ in range(3):
            launch()

    fake.calls.clear()
    on_a_new_thread(backward)
    assert fake.calls == ["bind", "launch", "launch", "launch"]


def test_a_threads_first_load_binds_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient's kernel is first asked for in backward."""
    device, fake, _ = fake_device(monkeypatch)
    on_a_new_thread(lambda: device.kernel(Variant("reduce")))
    on_a_new_thread(lambda: device.launcher(gradient_launch())())
    assert fake.calls == ["bind", "load", "bind", "load", "launch"]


def test_a_first_use_within_a_capture_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    device, fake, cuda = fake_device(monkeypatch)
    cuda.capturing = True
    with pytest.raises(RuntimeError, match="run one iteration before the capture"):
        device.kernel(Variant("reduce"))
    assert fake.calls == []
    cuda.capturing = False
    device.kernel(Variant("reduce"))
    cuda.capturing = True
    device.kernel(Variant("reduce"))
    assert fake.calls == ["load"]


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


# A launch of a backend.


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> tuple[Backend, FakeDriver, FakeCuda]:
    """The ``cuda`` backend, for which tensors of the CPU are those of the fake device."""
    device, fake, fake_cuda = fake_device(monkeypatch)
    monkeypatch.setattr(driver, "device", lambda index: device)
    return Backend("cuda", cuda), fake, fake_cuda


Fakes = tuple[Backend, FakeDriver, FakeCuda]


def test_a_launch_has_the_addresses_of_its_own_tensors(fakes: Fakes) -> None:
    backend, fake, _ = fakes
    sums = make_case().accumulator()
    totals, loss, num_tokens = sums.new_zeros(4), torch.ones(()), torch.ones(()).int()
    host = {"totals": totals, "host_loss": loss, "host_num_tokens": num_tokens}
    kept = []
    for seed in range(3):
        inputs = make_case(seed).inputs(accumulator=sums, **host)
        backend.domain_reduce(inputs)
        kept.append((inputs, fake.launches[-1]))
    for inputs, (config, arguments) in kept:
        assert arguments.losses == inputs.losses.data_ptr()
        assert arguments.mask == inputs.mask.data_ptr()
        known = [arguments.ids, arguments.inverse_row_tokens, arguments.row_tokens]
        assert known == [inputs.ids[part:].data_ptr() for part in (0, 3, 6)]
        assert arguments.accumulator == sums.data_ptr()
        assert arguments.totals == totals.data_ptr()
        assert arguments.host_num_tokens == num_tokens.data_ptr()
        assert arguments.multipliers is None and arguments.workspace is None
        assert (arguments.rows, arguments.tokens, arguments.domains) == (3, 3 * 64, 4)
        assert (config.grid_x, config.block_x, config.stream) == (1, THREADS, FakeCuda.stream)
    assert len(cuda.driver.device(0).thread.plans) == 1, "one layout, one plan"


def test_another_layout_is_checked_and_planned_again(fakes: Fakes) -> None:
    backend, fake, _ = fakes
    case = make_case()
    inputs = case.inputs(accumulator=case.accumulator())
    backend.domain_reduce(inputs)
    for changed, message in (
        (inputs._replace(ids=inputs.ids.long()), "ids must be int32"),
        (inputs._replace(mask=case.mask[:, :-1]), "mask must be"),
        (inputs._replace(ids=inputs.ids[:-1]), "ids must be int32"),
        (inputs._replace(ids=case.ids), "an accumulator needs"),
        (inputs._replace(accumulator=None), "domain_reduce needs an accumulator"),
        (inputs._replace(accumulator=case.accumulator().int()), "must be contiguous int64"),
    ):
        with pytest.raises(ValueError, match=message):
            backend.domain_reduce(changed)
    assert len(fake.launches) == 1
    unaligned = torch.cat([case.mask.flatten()[:1], case.mask.flatten()])[1:].view(case.mask.shape)
    for change in (
        {"mask": unaligned},
        {"losses": case.losses.double()},
        {"accumulator": torch.zeros(9, 5, dtype=torch.int64)},
    ):
        backend.domain_reduce(inputs._replace(**change))
    assert [arguments.domains for _, arguments in fake.launches] == [4, 4, 4, 8]
    read, copied = fake.launches[1][1], fake.launches[2][1]
    assert read.mask == unaligned.data_ptr() and copied.losses != case.losses.data_ptr()


def test_layouts_are_forgotten_before_they_pile_up(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, fake, _ = fakes
    monkeypatch.setattr(cuda, "MOST_PLANS", 4)
    for columns in range(1, 20):
        case = make_case(columns=columns)
        backend.domain_reduce(case.inputs(accumulator=case.accumulator()))
        assert len(driver.device(0).thread.plans) <= 4
    assert len(fake.launches) == 19


def test_a_launch_is_on_the_current_stream_and_on_the_tensors_device(fakes: Fakes) -> None:
    backend, fake, fake_cuda = fakes
    case = make_case()
    sums, devices = case.accumulator(), []

    def launch_kernel(*call: object) -> int:
        devices.append(fake_cuda.current)
        return fake.launch_kernel(*call)  # type: ignore[arg-type]

    driver.device(0)._launch_kernel = launch_kernel
    for stream, current in ((5, 0), (9, 0), (9, 3)):
        fake_cuda.stream, fake_cuda.current = stream, current
        driver.device(0).thread.plans.clear()
        backend.domain_reduce(case.inputs(accumulator=sums))
        backend.domain_reduce(case.inputs(accumulator=sums))
        assert fake_cuda.current == current
    assert devices == [0] * 6
    assert [config.stream for config, _ in fake.launches] == [5, 5, 9, 9, 9, 9]


def test_a_launch_that_fails_says_so(fakes: Fakes) -> None:
    backend, case = fakes[0], make_case()
    driver.device(0)._launch_kernel = lambda *call: int(Status.CUDA_ERROR_INVALID_CONTEXT)
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_CONTEXT on cuda:0"):
        backend.domain_reduce(case.inputs(accumulator=case.accumulator()))


def test_the_launch_is_configured_by_the_bytes_of_nvidias_header() -> None:
    bindings = pytest.importorskip("cuda.bindings.driver", reason="no cuda-bindings")
    theirs, ours = bindings.CUlaunchConfig(), driver.LaunchConfig(2, 3, 4, 5, 6, 7, 8, 9)
    for axis, grid, block in (("X", 2, 5), ("Y", 3, 6), ("Z", 4, 7)):
        setattr(theirs, f"gridDim{axis}", grid)
        setattr(theirs, f"blockDim{axis}", block)
    theirs.sharedMemBytes, theirs.hStream = 8, bindings.CUstream(9)
    size = ctypes.sizeof(ours)
    assert ctypes.string_at(theirs.getPtr(), size) == ctypes.string_at(ctypes.addressof(ours), size)


@pytest.mark.parametrize("name", ["nvrtc", "driver"])
def test_bindings_that_are_missing_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"cuda.bindings.{name}", None)  # its import fails
    with pytest.raises(UnsupportedError, match=rf"cuda\.bindings\.{name} cannot be used.*nvrtc of"):
        compiler.bindings(name)
