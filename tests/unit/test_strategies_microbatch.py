"""Weights on the device, within a microbatch: per domain and per sample."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domain_pretrain.strategies.microbatch import microbatch_multipliers, sample_multipliers
from domain_pretrain.strategies.shapes import SHAPES

F64 = torch.float64


def tensors(losses, tokens, dtype=F64):
    """Means and counts → sums and counts."""
    tokens = torch.tensor(tokens, dtype=dtype)
    return torch.tensor(losses, dtype=dtype) * tokens, tokens


def close(found, expected, rtol=1e-14):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=rtol, atol=0)


def test_by_hand():
    # Losses 1, 2, 3, 5: scores 0, 0.5, 1, 1 (linupper). Tokens 40, 30, 20, 10: m = w·100/tokens.
    powers = [1, math.e**0.5, math.e, math.e]
    w = [p / sum(powers) for p in powers]
    found = microbatch_multipliers(*tensors([1, 2, 3, 5], [40, 30, 20, 10]))
    close(found, [w[0] * 2.5, w[1] * 100 / 30, w[2] * 5, w[3] * 10])
    # token_share: m = 4·w scaled to Σ share·m = 1.
    found = microbatch_multipliers(
        *tensors([1, 2, 3, 5], [40, 30, 20, 10]), objective="token_share"
    )
    c = 1 / (0.4 * w[0] + 0.3 * w[1] + 0.2 * w[2] + 0.1 * w[3])
    close(found, [c * x for x in w])


def test_the_weighted_loss_and_its_gradient_are_those_of_the_formula():
    torch.manual_seed(0)
    ids = torch.tensor([0, 2, 2, 0, 1, 2, 0, 0, 1, 2])
    logits = torch.randn(10, dtype=F64, requires_grad=True)
    losses = logits.exp()
    sums = torch.zeros(4, dtype=F64).index_add(0, ids, losses.detach())
    counts = torch.bincount(ids, minlength=4).to(F64)
    found = microbatch_multipliers(sums, counts, temperature=0.4)
    ours = (found[ids] * losses).sum() / 10

    # The recipe, spelled out.
    means = [losses[ids == d].mean() for d in range(3)]
    values = [float(m.detach()) for m in means]
    h = [(2 * v - (max(values) + min(values))) / (max(values) - min(values)) for v in values]
    w = torch.softmax(torch.tensor([min(x + 1, 1.0) for x in h], dtype=F64) / 0.4, dim=0)
    theirs = sum(w[d] * means[d] for d in range(3))

    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)
    (mine,) = torch.autograd.grad(ours, logits, retain_graph=True)
    (reference,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(mine, reference, rtol=1e-12, atol=0)


def straightforward(losses, ids, domains, temperature):
    """bincount, normalise, softmax over those present: fp32, as one would write it down."""
    counts = torch.bincount(ids, minlength=domains).float()
    sums = torch.bincount(ids, weights=losses, minlength=domains).float()
    present = counts > 0
    mean = sums[present] / counts[present]
    h = (2 * mean - (mean.max() + mean.min())) / max(float(mean.max() - mean.min()), 1e-6)
    s = torch.minimum(h + 1, torch.ones_like(h))
    weights = torch.zeros(domains)
    weights[present] = torch.softmax(s / temperature, dim=0)
    return sums, counts, weights


# Both score the same means, but one softmax runs over the domains present and the other over all
# with gaps, so they differ in what a vector of the CPU holds: each an ulp of exp, up to five
# roundings in the sum of six terms, one in the quotient, of 2^-24 relative (exp: 2^-23) each.
SOFTMAX_FP32 = 2 * (2 + 5 + 1) * 2**-24
# Weight → multiplier → weight: the share and a quotient, two sums of up to eight terms that are
# themselves rounded up to three times, their quotient, a product, and a product and quotient back.
AND_BACK_FP32 = (2 + 2 * (7 + 3) + 1 + 1 + 2) * 2**-24


@pytest.mark.parametrize("seed", range(20))
def test_as_written_down_straightforwardly(seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 6, (12,), generator=generator)
    losses = torch.rand(12, generator=generator) * 9
    sums, counts, weights = straightforward(losses, ids, 8, 1.0)
    found = microbatch_multipliers(sums, counts)
    w = found * counts / counts.sum()
    torch.testing.assert_close(w, weights, rtol=SOFTMAX_FP32 + AND_BACK_FP32, atol=0)


@pytest.mark.parametrize("objective", ["token_share", "domain_mean"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_single_domain_is_left_alone(objective, dtype):
    found = microbatch_multipliers(*tensors([0, 3.3, 0], [0, 7, 0], dtype), objective=objective)
    assert found.tolist() == [1, 1, 1]
    assert found.dtype == dtype


def test_equal_losses():
    for tokens in ([8, 1, 1], [3, 36, 36]):  # the second would be off by rounding
        found = microbatch_multipliers(*tensors([2, 2, 2], tokens), objective="token_share")
        assert found.tolist() == [1, 1, 1]
    # Each domain a third of the loss: 10/(3·8), 10/3, 10/3.
    found = microbatch_multipliers(*tensors([2, 2, 2], [8, 1, 1]))
    close(found, [10 / 24, 10 / 3, 10 / 3])


def test_nothing_and_what_is_not_finite():
    found = microbatch_multipliers(*tensors([0, 0], [0, 0]))
    assert found.tolist() == [1, 1]
    for bad in (math.nan, math.inf):
        found = microbatch_multipliers(*tensors([1, bad, 3], [1, 1, 1]), objective="token_share")
        assert found[1] == 1
        # 1 : e of two thirds of the tokens: c·(1 + e)/3 = 2/3.
        close(found[::2], [2 / (1 + math.e), 2 * math.e / (1 + math.e)])


def test_pinned():
    pinned = torch.tensor([True, False, False])
    found = microbatch_multipliers(
        *tensors([1, 3, 5], [20, 10, 10]), pinned=pinned, objective="token_share"
    )
    assert found[0] == 1
    close(found[1:], [2 / (1 + math.e), 2 * math.e / (1 + math.e)])


def test_temperature_as_a_tensor():
    given_sums = tensors([1, 2, 3], [1, 2, 3])
    as_float = microbatch_multipliers(*given_sums, temperature=0.4)
    as_tensor = microbatch_multipliers(*given_sums, temperature=torch.tensor(0.4, dtype=F64))
    # A division by a number may be a product with its inverse: an ulp or two of the scores.
    torch.testing.assert_close(as_float, as_tensor, rtol=1e-14, atol=0)


rows = st.lists(
    st.tuples(st.floats(0, 30), st.sampled_from([0.0, 1.0, 3.0, 1000.0])), min_size=1, max_size=8
)


@settings(max_examples=60)
@given(
    rows=rows,
    shape=st.sampled_from(sorted(SHAPES)),
    objective=st.sampled_from(["token_share", "domain_mean"]),
    temperature=st.sampled_from([1e-300, 1e-3, 0.4, 1.0, 100.0]),
    dtype=st.sampled_from([F64, torch.float32]),
)
def test_the_sum_rule(rows, shape, objective, temperature, dtype):
    losses, tokens = zip(*rows, strict=True)
    sums, counts = tensors(losses, tokens, dtype)
    if dtype == torch.float32:
        temperature = max(temperature, 1e-30)  # a number of that type
    found = microbatch_multipliers(
        sums, counts, shape=SHAPES[shape], temperature=temperature, objective=objective
    )
    present = counts > 0
    assert torch.isfinite(found).all()
    assert (found[~present] == 1).all()
    if present.any():
        # A few sums of eight terms, and ten products and quotients.
        assert abs(float(counts @ found / counts.sum()) - 1) <= 40 * torch.finfo(dtype).eps


def test_no_value_is_read_back_by_the_host():
    # Meta tensors have no values: whatever needs one on the host raises.
    sums, tokens, pinned = torch.empty(3, 5, device="meta")
    found = microbatch_multipliers(sums, tokens, pinned=pinned > 0)
    assert found.shape == (5,)
    assert found.device.type == "meta"


# -- samples -------------------------------------------------------------------------------------


def test_samples_of_equal_length_by_hand():
    # l = 1, 2, 3, 5 as above; multiplier N·w.
    powers = [1, math.e**0.5, math.e, math.e]
    found = sample_multipliers(*tensors([1, 2, 3, 5], [16] * 4))
    close(found, [4 * p / sum(powers) for p in powers])


def test_samples_of_unequal_length():
    # Σ m·loss / tokens = Σ w·l, with l = 1, 2, 3, 5 the mean of each sample: w ∝ e^(score / 0.4).
    sums, tokens = tensors([1, 2, 3, 5], [16, 3, 1, 12])
    found = sample_multipliers(sums, tokens, temperature=0.4)
    p = [1, math.e**1.25, math.e**2.5, math.e**2.5]
    expected = (p[0] + 2 * p[1] + 3 * p[2] + 5 * p[3]) / sum(p)
    close((found @ sums) / tokens.sum(), expected)


def test_the_published_range():
    # 128 losses, evenly spread: e^s has mean (e + (e − 1))/2 = 2.218, so N·w is 0.451 … 1.225, and
    # the effective sample size N·2.218²/mean(e^2s), mean(e^2s) = (e² + (e² − 1)/2)/2 = 5.292:
    # 128·0.9298 = 119, the paper's setting.
    found = sample_multipliers(*tensors(torch.linspace(1, 5, 128).tolist(), [512] * 128))
    m = found
    assert float(m.min()) == pytest.approx(0.451, abs=0.003)
    assert float(m.max()) == pytest.approx(1.225, abs=0.003)
    assert float(m.sum() ** 2 / (m**2).sum()) == pytest.approx(119, abs=0.5)


def test_a_sample_without_tokens_and_a_single_one():
    found = sample_multipliers(*tensors([1, 0, 3], [4, 0, 4]))
    assert found[1] == 1
    close(found[::2], [2 / (1 + math.e), 2 * math.e / (1 + math.e)])
    assert sample_multipliers(*tensors([3.3], [5])).tolist() == [1]
