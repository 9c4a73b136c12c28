"""The operators under torch's compiler and checkers, on the CPU; and which backend is chosen."""

from __future__ import annotations

import logging

import pytest
import torch
from domain_reduce_cases import Case, make_case, oracle, oracle_loss

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.kernels.domain_reduce import Backend, Tokens, operators, select

BACKENDS = [select("reference"), Backend("cuda", operators)]


def ids_of(backend: Backend) -> str:
    return backend.name


@pytest.mark.parametrize("per_token", [False, True])
def test_opcheck(per_token: bool) -> None:
    case = make_case(per_token=per_token)
    tokens, alone = case.tokens(), Tokens(case.losses, case.mask, case.ids)
    acc = case.accumulator
    w = case.multipliers
    check = torch.library.opcheck
    check(operators.reduce_operator, (*tokens, None, None, None, acc(), None))
    totals, *host = torch.zeros(3, dtype=torch.int64), torch.tensor(1.0), torch.tensor(1).int()
    uncounted = tokens._replace(row_tokens=None)
    check(operators.reduce_operator, (*uncounted, None, *host, acc(), totals))
    check(operators.loss_operator, (*tokens, w, None, None, acc(), totals))
    check(operators.loss_operator, (*alone, w, torch.tensor(1.0), None, None, None))
    check(operators.gradient_operator, (torch.tensor(0.5), case.mask, case.ids, w))


def step(backend: Backend, case: Case, accumulator: torch.Tensor, losses: torch.Tensor):  # type: ignore[no-untyped-def]
    """What a loss function of Megatron's and its schedule do with the loss."""
    losses = losses * 1.0
    backend.domain_reduce(accumulator, case.tokens(losses))
    tokens = Tokens(losses, case.mask, case.ids, case.inverse)
    loss, report, num_tokens = backend.domain_loss(accumulator, tokens, case.multipliers)
    loss /= num_tokens
    return loss, report


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("backend", BACKENDS, ids=ids_of)
@pytest.mark.parametrize("per_token", [False, True])
def test_compiles_to_one_graph(backend: Backend, compiler: str, per_token: bool) -> None:
    torch.compiler.reset()
    case = make_case(per_token=per_token, special=False)
    compiled = torch.compile(step, backend=compiler, fullgraph=True)
    results = []
    for function in (step, compiled):
        accumulator, losses = case.accumulator(), case.losses.clone().requires_grad_()
        loss, report = function(backend, case, accumulator, losses)
        loss.backward()
        results.append((accumulator, loss, report, losses.grad))
    for eager, graph in zip(*results, strict=True):
        # The same roundings of single products; what is added up is int64.
        assert torch.equal(eager, graph)
    once = oracle(case)
    once[:, 2] = 0
    assert torch.equal(results[0][0], oracle(case) + once)


@pytest.mark.parametrize("backend", BACKENDS, ids=ids_of)
def test_the_operators_fall_back_to_the_reference_on_cpu(backend: Backend) -> None:
    case = make_case(special=True)
    accumulator = case.accumulator()
    got = backend.domain_loss(accumulator, case.tokens(), case.multipliers)
    assert torch.equal(accumulator, oracle(case))
    assert got.loss.isnan()
    assert got.num_tokens.item() == oracle_loss(case)[3]


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
