"""The reduction against an independent oracle: the reference, and the CUDA source emulated."""

from __future__ import annotations

import shutil
import weakref
from dataclasses import replace

import domain_reduce_cases as dr
import pytest
import torch
from cuda_emulator import EmulatedDevice
from domain_reduce_cases import Case, cases, make_case, oracle, oracle_loss
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from domain_pretrain.kernels.domain_reduce import (
    Backend,
    Inputs,
    count_samples,
    cuda,
    driver,
    select,
)
from domain_pretrain.kernels.domain_reduce.kernel_launch import THREADS, divisor
from domain_pretrain.stats import SCALE, Column

HOST = {
    "host_loss": torch.ones(()),
    "host_num_tokens": torch.ones((), dtype=torch.int32),
    "totals": torch.zeros(4, dtype=torch.int64),
}

FEW = settings(
    max_examples=25,
    # A backend keeps nothing from one example to the next.
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="session")
def emulated_device(tmp_path_factory: pytest.TempPathFactory) -> EmulatedDevice:
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the CUDA source for the CPU")
    return EmulatedDevice(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(params=["reference", "emulated"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    if request.param == "reference":
        return select("reference")
    device = request.getfixturevalue("emulated_device")
    monkeypatch.setattr(driver, "device", lambda index: device)
    monkeypatch.setattr(cuda, "_index", lambda tensor: 0 if tensor.is_cpu else -1)
    return Backend("cuda", cuda)


def reduce(backend: Backend, case: Case, into: torch.Tensor | None = None) -> torch.Tensor:
    accumulator = case.accumulator() if into is None else into
    backend.domain_reduce(case.inputs(accumulator=accumulator))
    return accumulator


def same(got: float, expected: float) -> bool:
    return got == expected or (got != got and expected != expected)


@FEW
@given(case=cases())
def test_sums_equal_the_oracle(backend: Backend, case: Case) -> None:
    assert torch.equal(reduce(backend, case), oracle(case))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_token", [False, True])
def test_half_precision_losses(backend: Backend, dtype: torch.dtype, per_token: bool) -> None:
    case = make_case(3, 4, 128, per_token=per_token, special=True, dtype=dtype)
    assert torch.equal(reduce(backend, case), oracle(case))


def test_a_tile_of_more_domains_than_are_reduced_by_shuffles(backend: Backend) -> None:
    case = make_case(5, 2, 2048, 300, per_token=True, documents=1)
    assert torch.equal(reduce(backend, case), oracle(case))


@given(n=st.integers(0, 2**31 - 1), columns=st.integers(2, 2**31 - 1))
@example(n=2**31 - 1, columns=2)
@example(n=2**31 - 1, columns=3)
@example(n=2**31 - 2, columns=2**31 - 1)
@example(n=2**31 - 1, columns=2**30 + 1)
def test_a_row_is_found_without_a_division(n: int, columns: int) -> None:
    magic, shift = divisor(columns)
    assert magic < 2**32
    for token in (n, n // columns * columns, max(n // columns * columns - 1, 0)):
        assert (token * magic >> 32) >> shift == token // columns


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("columns", [1, 3, 64])
def test_views_and_unaligned_tensors(backend: Backend, columns: int, per_token: bool) -> None:
    """Wider tensors' columns and memory that begins anywhere are read as what they are."""
    case = make_case(14, 4, columns, per_token=per_token, special=True)
    wider = torch.zeros(4, columns + 3)
    wider[:, 1:-2] = case.losses
    ids = torch.cat([case.known.flatten()[:1], case.known.flatten()])[1:].view(case.known.shape)
    mask = torch.cat([torch.ones(1), case.mask.flatten()])[1:].view(case.mask.shape)
    accumulator = case.accumulator()
    backend.domain_reduce(case.inputs(wider[:, 1:-2], mask=mask, ids=ids, accumulator=accumulator))
    assert torch.equal(accumulator, oracle(case))


@pytest.mark.parametrize("name", ["losses", "mask", "ids", "inverse_row_tokens"])
def test_one_tensor_alone_is_unaligned(backend: Backend, name: str) -> None:
    case = make_case(17, 4, 64, per_token=True, special=True)
    accumulator = case.accumulator()
    inputs = case.inputs(accumulator=accumulator)
    tensor = getattr(inputs, name)
    shifted = torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(tensor.shape)
    backend.domain_reduce(inputs._replace(**{name: shifted}))
    assert torch.equal(accumulator, oracle(case))


@pytest.mark.parametrize("per_token", [False, True])
def test_a_gradient_reads_what_is_aligned_now(backend: Backend, per_token: bool) -> None:
    """Not what was when a microbatch of that layout came first."""
    case = make_case(18, 4, 64, per_token=per_token)
    sums, losses = case.accumulator(), case.losses.requires_grad_()
    ids = case.ids if per_token else case.ids[:, None]
    shifted = {
        "losses": torch.cat([losses.flatten()[:1], losses.flatten()])[1:].view(losses.shape),
        "mask": torch.cat([torch.ones(1), case.mask.flatten()])[1:].view(losses.shape),
    }
    for name in ("losses", "mask", "losses"):
        inputs = case.inputs(accumulator=sums, multipliers=case.multipliers)
        inputs = inputs._replace(**{name: shifted[name]})
        loss = backend.domain_loss(inputs).loss
        (gradient,) = torch.autograd.grad(loss, inputs.losses, retain_graph=True)
        assert torch.equal(gradient, (case.multipliers[ids] * case.mask).expand_as(losses))


@pytest.mark.parametrize("columns", [1, 3, 64])
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_more_or_less_is_known_of_the_same_rows(backend: Backend, rows: int, columns: int) -> None:
    case = make_case(15, rows, columns, special=True)
    counted = case.inputs(case.losses.requires_grad_(), multipliers=case.multipliers)
    uncounted = counted._replace(ids=counted.ids[: 2 * rows])
    for inputs, expected in (
        (counted, oracle(case)),
        (counted._replace(losses=case.losses.double()), oracle(case)),  # a copy, too
        (uncounted, oracle(replace(case, row_tokens=None))),
    ):
        accumulator = case.accumulator()
        backend.domain_reduce(inputs._replace(accumulator=accumulator))
        assert torch.equal(accumulator, expected)
        accumulator = case.accumulator()
        backend.domain_loss(inputs._replace(accumulator=accumulator))
        assert torch.equal(accumulator, expected)
    results = []
    for ids in (counted.ids, uncounted.ids, case.ids):  # the loss needs no more
        loss = backend.domain_loss(counted._replace(ids=ids)).loss
        (gradient,) = torch.autograd.grad(loss, case.losses)
        results.append((loss.item(), gradient))
    for loss, gradient in results:
        assert same(loss, results[0][0]) and torch.equal(gradient, results[0][1])


def test_few_domains_in_short_documents_take_no_atomic_per_token(
    backend: Backend, emulated_device: EmulatedDevice
) -> None:
    case = make_case(5, 2, 2048, 8, per_token=True, documents=1, special=True)
    assert torch.equal(reduce(backend, case), oracle(case))
    if backend.name == "cuda":
        assert emulated_device.additions < case.losses.numel()


@pytest.mark.parametrize("per_token", [False, True])
def test_long_rows_keep_warps_on_several_tiles(
    backend: Backend, emulated_device: EmulatedDevice, per_token: bool
) -> None:
    case = make_case(6, 2, 16384, 3, per_token=per_token, documents=3000)
    assert torch.equal(reduce(backend, case), oracle(case))
    if backend.name == "cuda":
        assert emulated_device.launches[-1].arguments.tiles_per_warp > 1


@FEW
@given(case=cases(fractional=True), cut=st.integers(0, 516), order=st.randoms())
def test_any_split_has_the_same_bits(backend: Backend, case: Case, cut: int, order: object) -> None:
    """Context-parallel ranks hold columns, data-parallel ranks and microbatches rows."""
    per_token = case.ids.dim() == 2
    pieces = []
    for r in range(case.losses.shape[0]):
        for span in (slice(0, cut), slice(cut, None)):
            row = slice(r, r + 1)
            ids = case.ids[row, span] if per_token else case.ids[row]
            inverse = case.inverse[row, span] if per_token else case.inverse[row]
            part = Case(
                case.losses[row, span], case.mask[row, span], ids, inverse, case.multipliers
            )
            pieces.append(part)
    order.shuffle(pieces)  # type: ignore[attr-defined]
    total = case.accumulator()
    for piece in pieces:
        reduce(backend, piece, into=total)
    if case.row_tokens is not None:
        count_samples(total, case.ids, case.row_tokens)
    assert torch.equal(total, reduce(backend, case))


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("columns", [1022, 2560])  # two tiles for a warp, of 32 and 128 tokens
@pytest.mark.parametrize(
    ("loss", "mask", "inverse", "multiplier"),
    [
        *((256.0 * total, 2**-10, 0.0, 0.0) for total in (126.0, 127.0, 127.9, 128.0, 128.1)),
        (3.0, 1.0, 0.001, 2.5),
        (300.0, 1.0, 0.0, 0.0),
        (-300.0, 1.0, 0.0, 0.0),
        (0.001, 40.0, 0.0, 0.0),
        (1.0, 1.0, 1.0, 0.0),
        (1.0, 1.0, 0.0, 1e5),
        (3e6, 1.0, 0.0, 0.0),
        (torch.nan, 1.0, 0.0, 1.0),
    ],
)
def test_long_documents_of_values_of_any_size(
    backend: Backend,
    loss: float,
    mask: float,
    inverse: float,
    multiplier: float,
    columns: int,
    per_token: bool,
) -> None:
    """Small ones are summed in 32 bits, where each of these alone is too large or just fits."""
    case = make_case(15, 2, columns, 1, per_token=per_token, documents=columns)
    losses = torch.full_like(case.losses, loss)
    losses[:, 1::4] *= -1 if loss == 300 else 1  # neighbours may cancel each other
    case = replace(
        case,
        losses=losses,
        mask=torch.full_like(case.mask, mask),
        inverse=torch.full_like(case.inverse, inverse),
        multipliers=torch.tensor([multiplier]),
    )
    expected, expected_loss = oracle(case), oracle_loss(case)
    assert torch.equal(reduce(backend, case), expected)
    sums = case.accumulator()
    got = backend.domain_loss(case.inputs(accumulator=sums, multipliers=case.multipliers))
    assert torch.equal(sums, expected)
    assert all(map(same, (got.loss.item(), *got.report.tolist()), expected_loss[:3]))
    alone = backend.domain_loss(
        Inputs(case.losses, case.mask, case.ids, multipliers=case.multipliers)
    ).loss
    assert same(alone.item(), expected_loss[0])


@FEW
@given(case=cases(special=False, fractional=True))
def test_float64_sums_within_the_proven_bound(case: Case) -> None:
    """Half a unit of the grid a token, after the fp32 rounding of mask·loss itself."""
    sums = reduce(select("reference"), case)
    exact = (case.losses * case.mask).double()
    ids = (case.ids if case.ids.dim() == 2 else case.ids[:, None]).expand(exact.shape)
    inverse = (case.inverse if case.ids.dim() == 2 else case.inverse[:, None]).double()
    for d in range(case.domains):
        of_d, n = (ids == d).double(), int((ids == d).sum())
        for column, terms in (
            (Column.LOSS, exact),
            (Column.TOKENS, case.mask.double()),
            (Column.SAMPLE_LOSS, exact * inverse),
        ):
            got = sums[d, column].item() / SCALE[column]
            expected = (terms * of_d).sum().item()
            bound = n * 0.5 / SCALE[column]
            if column == Column.SAMPLE_LOSS:  # its terms are rounded to fp32 once more
                bound += (terms.abs() * of_d).sum().item() * 2**-24
            assert abs(got - expected) <= bound + 1e-12 * abs(expected)


def test_accumulates_and_touches_nothing_else(backend: Backend) -> None:
    case = make_case(special=True)
    buffer = torch.full((3 * case.accumulator().numel(),), 17, dtype=torch.int64)
    middle = buffer.view(3, case.domains + 1, len(Column))[1]
    for _ in range(3):
        reduce(backend, case, into=middle)
    assert torch.equal(middle, 17 + 3 * oracle(case))
    assert (buffer.view(3, -1)[[0, 2]] == 17).all()


@FEW
@given(case=cases(per_token=False, special=True))
def test_samples_are_rows_with_tokens(backend: Backend, case: Case) -> None:
    tokens = case.row_tokens * (torch.arange(len(case.ids)) % 3 > 0)  # type: ignore[operator]
    expected = case.accumulator()
    for row, id in enumerate(case.ids.tolist()):
        if tokens[row] > 0:
            expected[dr._row(id, case.domains), Column.SAMPLES] += 1
    got = case.accumulator()
    count_samples(got, case.ids, tokens)
    assert torch.equal(got, expected)


def test_totals_take_what_the_host_found(backend: Backend) -> None:
    """A loss that is not finite, or beyond all reason, adds nothing but its tokens."""
    case = make_case(12)
    losses = [1.5, -2.25, 3e4 + 2**-9, 0.0, torch.nan, torch.inf, -torch.inf, 3e38, 2.0**38]
    for operation in (backend.domain_reduce, backend.domain_loss):
        for number, loss in enumerate(losses):
            accumulator, totals = case.accumulator(), torch.arange(4)
            tokens = torch.tensor(7 + number, dtype=torch.int32)
            host = {"host_loss": torch.tensor(loss), "host_num_tokens": tokens, "totals": totals}
            operation(case.inputs(accumulator=accumulator, **host))
            assert torch.equal(accumulator, oracle(case))
            units = int(loss * SCALE[Column.LOSS]) if abs(loss) <= 2.0**38 else 0
            assert totals.tolist() == [units, 8 + number, 3, 3]


@pytest.mark.parametrize("per_token", [False, True])
def test_of_several_blocks_each_takes_its_part(
    backend: Backend, emulated_device: EmulatedDevice, per_token: bool
) -> None:
    """One of them adds what the host found; the gradient is of all tokens."""
    case = make_case(13, 4, 3000, 5, per_token=per_token, special=True)
    losses, sums, totals = case.losses.requires_grad_(), oracle(case), torch.zeros(4).long()
    host = {"host_loss": torch.tensor(3.0), "host_num_tokens": torch.tensor(7).int()}
    given = case.inputs(multipliers=case.multipliers, totals=totals)
    for operation in (backend.domain_reduce, backend.domain_loss):
        accumulator = case.accumulator()
        operation(given._replace(accumulator=accumulator, **host))
        assert torch.equal(accumulator, sums)
    assert totals.tolist() == [2 * 3 * SCALE[Column.LOSS], 14, 2, 0]
    (gradient,) = torch.autograd.grad(backend.domain_loss(given).loss, losses)
    weights = torch.cat([case.multipliers, torch.zeros(1)])
    ids = (case.ids if per_token else case.ids[:, None]).expand(losses.shape)
    inside = (ids >= 0) & (ids < case.domains)
    assert torch.equal(gradient, weights[torch.where(inside, ids, case.domains)] * case.mask)
    if backend.name == "cuda":
        assert all(launch.grid > 1 for launch in emulated_device.launches[-4:])


@pytest.mark.parametrize("columns", [1, 2])
def test_more_rows_than_threads(
    backend: Backend, emulated_device: EmulatedDevice, columns: int
) -> None:
    case = make_case(14, 3000, columns)
    assert torch.equal(reduce(backend, case), oracle(case))
    if backend.name == "cuda":
        assert emulated_device.launches[-1].grid * THREADS < 3000


# The loss.


@FEW
@given(case=cases(fractional=True))
def test_totals_take_the_kernels_own_loss(backend: Backend, case: Case) -> None:
    totals = torch.zeros(4, dtype=torch.int64)
    for _ in range(2):
        inputs = case.inputs(accumulator=case.accumulator(), multipliers=case.multipliers)
        _, report, num_tokens = backend.domain_loss(inputs._replace(totals=totals))
    part = oracle(case)[:, Column.TOKENS].sum().item() % SCALE[Column.TOKENS] != 0
    assert totals[1:].tolist() == [2 * num_tokens.item(), 2, 2 * part]
    if not report.isnan().any():
        assert torch.tensor(totals[0].item() / 2 / SCALE[Column.LOSS]) == report[0]


@FEW
@given(case=cases(), weighted=st.booleans())
def test_loss_equals_the_oracle(backend: Backend, case: Case, weighted: bool) -> None:
    multipliers = case.multipliers if weighted else None
    accumulator = case.accumulator()
    inputs = case.inputs(accumulator=accumulator, multipliers=multipliers)
    loss, report, num_tokens = backend.domain_loss(inputs)
    expected = oracle_loss(case, weighted=weighted)
    got = (loss.item(), report[0].item(), report[1].item(), num_tokens.item())
    assert all(map(same, got, expected)), (got, expected)
    assert (loss.dtype, report.dtype, num_tokens.dtype) == (torch.float,) * 2 + (torch.int32,)
    assert torch.equal(accumulator, oracle(case))
    if weighted:
        alone = backend.domain_loss(
            Inputs(case.losses, case.mask, case.ids, multipliers=case.multipliers)
        ).loss
        assert same(alone.item(), expected[0])


@FEW
@given(case=cases(special=False), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_gradient_is_multiplier_times_the_hosts(
    backend: Backend, case: Case, dtype: torch.dtype
) -> None:
    losses = case.losses.to(dtype).requires_grad_()
    loss = backend.domain_loss(case.inputs(losses, multipliers=case.multipliers)).loss
    (loss / 3).backward()
    scale = torch.tensor(1.0) / 3
    ids = case.ids if case.ids.dim() == 2 else case.ids[:, None]
    expected = (case.multipliers[ids] * (scale * case.mask)).to(dtype)
    assert losses.grad is not None and losses.grad.dtype == dtype
    assert torch.equal(losses.grad, expected.expand_as(losses))


@FEW
@given(case=cases(special=False, fractional=True), scale=st.sampled_from([1.0, 1 / 3, 1e-30]))
def test_multipliers_of_one_give_the_hosts_bits(backend: Backend, case: Case, scale: float) -> None:
    def host(losses: torch.Tensor) -> torch.Tensor:
        return torch.sum(losses.reshape(-1).float() * case.mask.reshape(-1).float())

    host_losses = case.losses.clone().requires_grad_()
    host_loss = host(host_losses)
    (host_loss * scale).backward()
    ones = torch.ones(case.domains)
    for again in range(2):
        losses = case.losses.clone().requires_grad_()
        inputs = (
            case.inputs(losses, multipliers=ones, host_loss=host_loss.detach())
            if again
            else case.inputs(losses, accumulator=case.accumulator())
        )
        loss = backend.domain_loss(inputs).loss
        (loss * scale).backward()
        assert torch.equal(losses.grad, host_losses.grad)  # type: ignore[arg-type]
        if again:
            assert torch.equal(loss, host_loss)
        else:  # n roundings of half a unit, and in fp32 one and those of the host's n additions
            count = case.losses.numel()
            bound = count * 2**-25 + (count + 1) * 2**-24 * abs(host_loss.item())
            assert abs(loss.item() - host_loss.item()) <= bound


def test_host_loss_shifts_by_what_the_multipliers_add(backend: Backend) -> None:
    case = make_case(8, special=False)
    host = torch.tensor(1000.0)
    got = backend.domain_loss(case.inputs(multipliers=case.multipliers, host_loss=host)).loss
    weighted, raw, *_ = oracle_loss(case)
    assert got.item() == pytest.approx(1000 + weighted - raw, rel=1e-6)


def test_an_invalid_id_weighs_nothing_and_a_masked_nan_is_seen(backend: Backend) -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0, 8.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    ids = torch.tensor([[0, -1, 2, 1]], dtype=torch.int32)
    inputs = Inputs(losses, mask, ids, multipliers=torch.tensor([3.0, 5.0]))
    loss = backend.domain_loss(inputs).loss
    loss.backward()
    assert loss.item() == 3
    assert losses.grad.tolist() == [[3, 0, 0, 0]]  # type: ignore[union-attr]
    poisoned = losses.detach().clone()
    poisoned[0, 3] = torch.nan
    inputs = Inputs(poisoned, mask, ids, multipliers=torch.ones(2))
    assert backend.domain_loss(inputs).loss.isnan()


def test_a_multiplier_that_leaves_the_range_gives_nan(backend: Backend) -> None:
    case = make_case(9)
    for value in (1e9, torch.nan):
        multipliers = torch.full((case.domains,), value)
        assert backend.domain_loss(case.inputs(multipliers=multipliers)).loss.isnan()


def test_the_schedules_may_divide_the_loss_in_place(backend: Backend) -> None:
    case = make_case(10)
    losses = case.losses.requires_grad_()
    loss, report, num_tokens = backend.domain_loss(
        case.inputs(losses, accumulator=case.accumulator(), multipliers=case.multipliers)
    )
    before = report.clone()
    loss /= torch.clamp(num_tokens, min=1)
    loss /= 4
    loss.backward()
    assert torch.equal(report, before)
    assert not report.requires_grad and not num_tokens.requires_grad
    assert losses.grad is not None and losses.grad.abs().sum() > 0


def test_a_second_derivative_is_an_error(backend: Backend) -> None:
    """Not a gradient without a history, which would be taken for a constant."""
    case = make_case(13)
    losses = case.losses.requires_grad_()
    scale = torch.ones((), requires_grad=True)
    loss = backend.domain_loss(case.inputs(losses, multipliers=case.multipliers)).loss * scale
    (gradient,) = torch.autograd.grad(loss, losses, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_mask_that_changes_before_the_gradient_is_an_error(backend: Backend) -> None:
    """Not the gradient of another loss."""
    case = make_case(16)
    losses = case.losses.requires_grad_()
    loss = backend.domain_loss(case.inputs(losses, multipliers=case.multipliers)).loss
    case.mask.mul_(0.5)
    with pytest.raises(RuntimeError, match="mask was modified by an inplace operation"):
        loss.backward()


def test_a_loss_without_a_gradient(backend: Backend) -> None:
    """Evaluation: tensors of inference mode count no versions."""
    with torch.inference_mode():
        case = make_case(17)
        inputs = case.inputs(accumulator=case.accumulator(), multipliers=case.multipliers)
        loss, _, _ = backend.domain_loss(inputs)
    assert loss.item() == oracle_loss(case)[0]


# Arguments.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accumulator": torch.zeros(5, 4, dtype=torch.int64)}, "accumulator must be"),
        ({"accumulator": torch.zeros(5, 5)}, "int64"),
        ({"accumulator": torch.zeros(5, 5, dtype=torch.int64).t()}, "contiguous"),
        (
            {"accumulator": torch.zeros((), dtype=torch.int64)},
            r"accumulator must be .* got .* \(\)",
        ),
        ({"mask": torch.ones(3, 63)}, r"mask must be .*\[3, 64\], got .*\(3, 63\)"),
        ({"ids": torch.zeros(2, dtype=torch.int32)}, r"ids must be .* got .* \(2,\)"),
        ({"ids": torch.zeros(3, dtype=torch.int64)}, "ids must be int32 .* got torch.int64"),
        ({"ids": torch.zeros(12, dtype=torch.int32)}, r"ids must be .* got .* \(12,\)"),
        ({"ids": torch.zeros(3, dtype=torch.int32)}, "an accumulator needs inverse"),
        ({"inverse_row_tokens": torch.ones(3, 64)}, "inverse_row_tokens are those of tokens"),
        (
            {"ids": torch.zeros(3, 64, dtype=torch.int32), "inverse_row_tokens": torch.ones(3)},
            r"inverse_row_tokens must be .*\[3, 64\], got .*\(3,\)",
        ),
        (
            {"ids": torch.zeros(3, 64, dtype=torch.int32)},
            "an accumulator needs inverse_row_tokens",
        ),
        ({"multipliers": torch.ones(3)}, r"multipliers must be float32 \[4\], got .*\(3,\)"),
        ({"multipliers": torch.ones(())}, r"multipliers must be float32 \[4\], got .*\(\)"),
        (HOST | {"totals": torch.zeros(3)}, r"totals must be contiguous int64 \[4\]"),
        (HOST | {"host_loss": torch.ones(2)}, r"host_loss must be float32 scalar, got .*2,"),
        (HOST | {"host_num_tokens": torch.ones(())}, "num_tokens must be int32 scalar"),
    ],
)
def test_shapes_that_do_not_fit_are_errors(
    backend: Backend, change: dict[str, torch.Tensor], message: str
) -> None:
    """Also after a launch whose tensors, but for one, were the same."""
    case = make_case()
    good = {"accumulator": case.accumulator(), **HOST}
    backend.domain_reduce(case.inputs(**good))
    backend.domain_loss(case.inputs(**good))
    inputs = case.inputs(**good | change)
    with pytest.raises(ValueError, match=message):
        backend.domain_reduce(inputs)
    with pytest.raises(ValueError, match=message):
        backend.domain_loss(inputs)


def test_what_the_sums_alone_need_must_be_there(backend: Backend) -> None:
    """Not an address of nothing for a kernel. The loss does with less."""
    case = make_case()
    with pytest.raises(ValueError, match="domain_reduce needs an accumulator"):
        backend.domain_reduce(case.inputs(**HOST))
    for some in range(1, 7):
        host = {name: t for bit, (name, t) in enumerate(HOST.items()) if some >> bit & 1}
        inputs = case.inputs(accumulator=case.accumulator(), **host)
        missing = " and ".join(name for name in HOST if name not in host)
        message = f"together or not at all: {missing} must be given"
        with pytest.raises(ValueError, match=f"domain_reduce takes .* {message}"):
            backend.domain_reduce(inputs)
        if "totals" in host and len(host) == 2:
            with pytest.raises(ValueError, match=f"domain_loss with totals takes .* {message}"):
                backend.domain_loss(inputs)
        else:
            assert backend.domain_loss(inputs).loss.isfinite()


def test_what_was_added_to_is_not_mistaken_for_another(
    emulated_device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python gives the identity of what is gone to something new."""
    monkeypatch.setattr(driver, "device", lambda index: emulated_device)
    monkeypatch.setattr(emulated_device.thread, "plans", {})
    case = make_case()
    accumulator, totals = case.accumulator(), torch.zeros(4, dtype=torch.int64)
    gone = [weakref.ref(accumulator), weakref.ref(totals)]
    cuda.loss(case.inputs(accumulator=accumulator, totals=totals))
    del accumulator, totals
    assert all(reference() is not None for reference in gone)
    emulated_device.thread.plans.clear()
    assert all(reference() is None for reference in gone)


def elsewhere(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("meta")


@pytest.mark.parametrize("name", Inputs._fields[1:])
def test_another_device_is_refused(backend: Backend, name: str) -> None:
    case = make_case(per_token=name == "inverse_row_tokens")
    sums = case.accumulator()
    inputs = case.inputs(accumulator=sums, multipliers=case.multipliers, **HOST)
    backend.domain_reduce(inputs)  # what is remembered of it is of that device
    backend.domain_loss(inputs)
    sums.zero_()
    inputs = inputs._replace(**{name: elsewhere(getattr(inputs, name))})
    with pytest.raises(ValueError, match=f"{name} is on meta and the other tensors are on cpu"):
        backend.domain_reduce(inputs)
    with pytest.raises(ValueError, match="all must be on one device"):
        backend.domain_loss(inputs)
    assert not sums.any(), "nothing is added before the refusal"


def test_samples_on_another_device_are_refused() -> None:
    case = make_case()
    sums, rows = case.accumulator(), case.row_tokens
    assert rows is not None
    for ids, tokens in ((elsewhere(case.ids), rows), (case.ids, elsewhere(rows))):
        with pytest.raises(ValueError, match=r"is on .* all must be on one device"):
            count_samples(sums, ids, tokens)
    assert not sums.any(), "nothing is added before the refusal"
