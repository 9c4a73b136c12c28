"""The CUDA kernels on a GPU: ``pytest tests/gpu`` on any CUDA machine; skipped elsewhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

UNIT = Path(__file__).parents[1] / "unit"
sys.path.append(str(UNIT))

from domain_reduce_cases import Case, make_case, oracle, oracle_loss  # noqa: E402
from support.launches import launches  # noqa: E402

from domain_pretrain.kernels.domain_reduce import (  # noqa: E402
    Backend,
    count_samples,
    driver,
    select,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CASES = [
    make_case(seed, rows, columns, domains, per_token=per_token, documents=documents, special=True)
    for seed, (rows, columns, domains, per_token, documents) in enumerate(
        [
            (1, 1, 1, False, 1),
            (0, 64, 3, False, 1),
            (4, 4096, 8, False, 1),
            (3, 4097, 8, True, 50),
            (4, 4096, 8, True, 4096),
            (2, 8192, 1000, True, 1),
            (2, 8192, 64, True, 50),
            (5, 130, 300, True, 7),
        ]
    )
]


@pytest.fixture(params=["cuda", "reference"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return select(request.param)


@pytest.fixture
def cuda() -> Backend:
    return select("cuda")


@pytest.fixture(autouse=True)
def workspaces_stay_zero() -> Iterator[None]:
    yield
    torch.cuda.synchronize()
    workspaces = driver.device(torch.cuda.current_device())._workspaces
    assert not any(workspace.any() for workspace in workspaces.values())


def reduce(backend: Backend, case: Case, accumulator: torch.Tensor) -> None:
    backend.domain_reduce(case.inputs(accumulator=accumulator))


def full_step(backend: Backend, case: Case, accumulator: torch.Tensor) -> torch.Tensor:
    losses = case.losses.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(full_step_loss(backend, case, accumulator, losses), losses)
    return gradient


def same(got: float, expected: float) -> bool:
    return got == expected or (got != got and expected != expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_sums_and_loss_equal_the_oracle(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    host = Case(**{**vars(case), "losses": case.losses.to(dtype)})
    case = host.to("cuda")
    accumulator = case.accumulator()
    reduce(backend, case, accumulator)
    assert torch.equal(accumulator.cpu(), oracle(host))
    accumulator.zero_()
    got = backend.domain_loss(case.inputs(accumulator=accumulator, multipliers=case.multipliers))
    assert torch.equal(accumulator.cpu(), oracle(host))
    values = (got.loss.item(), *got.report.tolist(), got.num_tokens.item())
    assert all(map(same, values, oracle_loss(host))), (values, oracle_loss(host))


def test_strided_and_misaligned_views_equal_contiguous_ones(cuda: Backend) -> None:
    host = make_case(20, 4, 512, 8, per_token=True, special=True)
    case = host.to("cuda")
    padded = torch.zeros(4, 521, device="cuda")
    padded[:, 5:517] = case.losses
    for losses in (case.losses.t().contiguous().t(), padded[:, 5:517]):
        accumulator = case.accumulator()
        cuda.domain_reduce(case.inputs(losses, accumulator=accumulator))
        assert torch.equal(accumulator.cpu(), oracle(host))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [512, 513])
def test_gradient_equals_torchs(cuda: Backend, dtype: torch.dtype, columns: int) -> None:
    case = make_case(21, 4, columns, 8, per_token=True, dtype=dtype).to("cuda")
    ones = torch.ones(8, device="cuda")
    losses = case.losses.requires_grad_()
    host = torch.sum(losses.float() * case.mask)
    (expected,) = torch.autograd.grad(host / 7, losses)
    for multipliers in (ones, case.multipliers):
        inputs = case.inputs(losses, multipliers=multipliers, host_loss=host.detach())
        loss = cuda.domain_loss(inputs).loss
        (gradient,) = torch.autograd.grad(loss / 7, losses)
        if multipliers is ones:
            assert torch.equal(gradient, expected)
            assert torch.equal(loss, host)
        else:
            scale = torch.ones((), device="cuda") / 7
            weighted = multipliers[case.ids] * (scale * case.mask)
            assert torch.equal(gradient, weighted.to(dtype))


def test_bits_repeat(cuda: Backend) -> None:
    case = make_case(22, 8, 32768, 64, per_token=True, documents=50).to("cuda")
    results = []
    for _ in range(20):
        accumulator = case.accumulator()
        results.append((accumulator, full_step(cuda, case, accumulator)))
    for accumulator, gradient in results[1:]:
        assert torch.equal(accumulator, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_a_hundred_graph_replays_add_a_hundred_times(cuda: Backend) -> None:
    host = make_case(23, 4, 4096, 8)
    case = host.to("cuda")
    accumulator = case.accumulator()
    full_step(cuda, case, accumulator)
    graph = torch.cuda.CUDAGraph()
    accumulator.zero_()
    with torch.cuda.graph(graph):
        gradient = full_step(cuda, case, accumulator)
    assert not accumulator.any(), "a capture runs nothing"
    for _ in range(100):
        graph.replay()
    assert torch.equal(accumulator.cpu(), 100 * oracle(host))
    assert torch.equal(gradient, full_step(cuda, case, accumulator))


def test_first_use_in_a_capture_is_refused(cuda: Backend) -> None:
    device = driver.device(torch.cuda.current_device())
    kernels, device._kernels = device._kernels, {}
    device.thread.plans.clear()
    case = make_case().to("cuda")
    try:
        with (
            pytest.raises(RuntimeError, match="run one iteration before the capture"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            reduce(cuda, case, case.accumulator())
    finally:
        device._kernels = kernels


def test_no_host_sync_and_no_device_allocation_once_warm(backend: Backend) -> None:
    case = make_case(24, 4, 4096, 8).to("cuda")
    accumulator = case.accumulator()
    full_step(backend, case, accumulator)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["num_device_alloc"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            reduce(backend, case, accumulator)
            count_samples(accumulator, case.ids, case.row_tokens)
            full_step(backend, case, accumulator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["num_device_alloc"] == before


def test_launches_are_counted(cuda: Backend) -> None:
    case = make_case(25, 4, 4096, 8).to("cuda")
    accumulator, losses = case.accumulator(), case.losses.requires_grad_()
    one = torch.ones((), device="cuda")

    def weighted() -> None:
        loss = cuda.domain_loss(case.inputs(losses, multipliers=case.multipliers)).loss
        torch.autograd.grad(loss, losses, one)

    def fused() -> None:
        torch.autograd.grad(full_step_loss(cuda, case, accumulator, losses), losses, one)

    def vanilla() -> None:
        flat, mask = losses.view(-1).float(), case.mask.view(-1).float()
        loss = torch.sum(flat * mask)
        tokens = mask.sum().clone().detach().to(torch.int)
        torch.cat([loss.clone().detach().view(1), tokens.view(1)])
        torch.autograd.grad(loss, losses, one)

    assert launches(lambda: reduce(cuda, case, accumulator)) == ["reduce"]
    assert launches(weighted) == ["loss", "gradient"]
    assert launches(fused) == ["loss", "gradient"]
    assert len(launches(vanilla)) > 2


def test_streams_do_not_share_a_workspace(cuda: Backend) -> None:
    cases = [make_case(30 + i, 8, 8192, 8) for i in range(4)]
    on_device = [case.to("cuda") for case in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    full_step(cuda, on_device[0], on_device[0].accumulator())
    torch.cuda.synchronize()
    for _ in range(20):
        losses = []
        for case, stream in zip(on_device, streams, strict=True):
            with torch.cuda.stream(stream):
                losses.append(cuda.domain_loss(case.inputs(multipliers=case.multipliers)).loss)
        torch.cuda.synchronize()
        for loss, case in zip(losses, cases, strict=True):
            assert loss.item() == oracle_loss(case)[0]


@pytest.mark.parametrize("name", ["cuda", "reference"])
def test_inductor_leaves_its_graph_for_a_kernel_alone(name: str) -> None:
    backend = select(name)  # type: ignore[arg-type]
    host = make_case(26, 4, 512, 8)
    case = host.to("cuda")
    compiled = torch.compile(full_step_loss, fullgraph=name == "reference")
    accumulator, losses = case.accumulator(), case.losses.requires_grad_()
    loss = compiled(backend, case, accumulator, losses)
    loss.backward()
    eager = case.losses.detach().requires_grad_()
    full_step_loss(backend, case, case.accumulator(), eager).backward()
    assert torch.equal(accumulator.cpu(), oracle(host))
    assert torch.equal(losses.grad, eager.grad)


def full_step_loss(
    backend: Backend, case: Case, accumulator: torch.Tensor, losses: torch.Tensor
) -> torch.Tensor:
    inputs = case.inputs(losses, accumulator=accumulator, multipliers=case.multipliers)
    return backend.domain_loss(inputs).loss


FRESH_PROCESS = f"""
import sys
sys.path[:0] = [{str(UNIT)!r}]
from domain_reduce_cases import make_case, oracle
from domain_pretrain.kernels.domain_reduce import select
for per_token, columns in ((False, 2048), (True, 2051)):
    host = make_case(1, 4, columns, 8, per_token=per_token, special=True)
    case = host.to("cuda")
    losses, sums = case.losses.requires_grad_(), case.accumulator()
    inputs = case.inputs(losses, accumulator=sums, multipliers=case.multipliers)
    select("cuda").domain_loss(inputs).loss.backward()
    assert (sums.cpu() == oracle(host)).all()
"""


def test_the_first_backward_of_a_process_is_ours() -> None:
    """Autograd's worker thread has no context then."""
    command = [sys.executable, "-c", FRESH_PROCESS]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-2000:]


def test_a_new_thread_may_launch(cuda: Backend) -> None:
    host = make_case(27, 4, 512, 8)
    case = host.to("cuda")
    accumulator = case.accumulator()
    torch.cuda.synchronize()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(reduce, cuda, case, accumulator).result()
    torch.cuda.synchronize()
    assert torch.equal(accumulator.cpu(), oracle(host))


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("no compute-sanitizer on PATH")
    # Torch asks the driver for what older ones do not have: an error of the call, not of a kernel.
    options = ["--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9"]
    command = [sanitizer, *options, sys.executable, "-c", FRESH_PROCESS]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500)
    if "Device not supported" in result.stdout:
        pytest.skip("compute-sanitizer does not support this device")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
