"""A step under torch's compiler, on the CPU; and which backend is chosen."""

from __future__ import annotations

import logging

import pytest
import torch
from domain_reduce_cases import Case, make_case, oracle
from fake_cuda import fake_device
from torch.torch_version import TorchVersion

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.kernels.domain_reduce import Backend, Inputs, cuda, driver, select

# Of 2.4 to 2.8 it is known that they leave the graph for the loss.
ONE_GRAPH = TorchVersion(torch.__version__) >= (2, 14)


def step(  # type: ignore[no-untyped-def]
    backend: Backend,
    case: Case,
    known: torch.Tensor,
    accumulator: torch.Tensor,
    losses: torch.Tensor,
):
    """What a loss function of Megatron's and its schedule do with the loss."""
    losses, mask = losses * 1.0, case.mask
    inverse, none = None if case.ids.dim() == 1 else case.inverse, (None, None)
    backend.domain_reduce(Inputs(losses, mask, known, inverse, None, *none, accumulator))
    if inverse is None:  # without row tokens: counted once
        known = known[: 2 * len(case.ids)]
    weighted = Inputs(losses, mask, known, inverse, case.multipliers, *none, accumulator)
    loss, report, num_tokens = backend.domain_loss(weighted)
    loss /= num_tokens
    return loss, report


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("per_token", [False, True])
def test_the_reference_compiles_to_one_graph(compiler: str, per_token: bool) -> None:
    torch.compiler.reset()
    case = make_case(per_token=per_token, special=False)
    compiled = torch.compile(step, backend=compiler, fullgraph=ONE_GRAPH)
    results = []
    for function in (step, compiled):
        accumulator, losses = case.accumulator(), case.losses.clone().requires_grad_()
        loss, report = function(select("reference"), case, case.known, accumulator, losses)
        loss.backward()
        results.append((accumulator, loss, report, losses.grad))
    for eager, graph in zip(*results, strict=True):
        # The same roundings of single products; what is added up is int64.
        assert torch.equal(eager, graph)
    once = oracle(case)
    once[:, 2] = 0
    assert torch.equal(results[0][0], oracle(case) + once)


def test_a_compiled_step_launches_the_kernels_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of the graph, which would hold the addresses of the first call."""
    device, fake, _ = fake_device(monkeypatch)
    monkeypatch.setattr(driver, "device", lambda index: device)
    torch.compiler.reset()
    traced: list[str] = []

    def record(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        traced.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    compiled = torch.compile(step, backend=record)
    for seed in range(3):
        case = make_case(seed)
        losses, fake.launches[:] = case.losses.requires_grad_(), []
        backend, sums = Backend("cuda", cuda), case.accumulator()
        loss, _ = compiled(backend, case, case.known, sums, losses)
        loss.backward()
        arguments = [arguments for _, arguments in fake.launches]
        assert len(arguments) == 3, "reduce, loss, gradient"
        assert {a.mask for a in arguments} == {case.mask.data_ptr()}
        assert losses.grad is not None
    assert traced and not [name for name in traced if "empty" in name], "a part of a launch"


def test_auto_without_a_gpu_is_the_reference_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    select.cache_clear()
    with caplog.at_level(logging.INFO):
        assert select("auto") is select("auto")
    assert select("auto").name == "reference"
    assert caplog.text.count("domain_reduce: reference (no CUDA device)") == 1
    with pytest.raises(UnsupportedError, match="no CUDA device"):
        select("cuda")
    select.cache_clear()


def test_losses_on_cpu_take_the_reference_even_beside_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cpu = torch.device("cpu")
    assert select("auto", cpu).name == "reference"
    with pytest.raises(UnsupportedError, match="the losses are on cpu"):
        select("cuda", cpu)


def test_an_unknown_backend_is_an_error() -> None:
    with pytest.raises(ValueError, match="auto, reference or cuda, got 'triton'"):
        select("triton")  # type: ignore[arg-type]
