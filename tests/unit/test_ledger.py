"""The ledger's sums, the windows over them, and the check that nothing was lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domain_pretrain.errors import IntegrityError
from domain_pretrain.flow.conservation import HostSums, check_conservation
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.ledger import Ledger
from domain_pretrain.flow.windows import Windows
from domain_pretrain.stats import SCALE, Column, DomainStats

CPU = torch.device("cpu")
NAMES = ("a", "b")
SHAPE = (len(NAMES) + 1, len(Column))


def stats(*, loss: float = 6.0, tokens: float = 4.0, invalid: float = 0.0) -> DomainStats:
    """Half of the tokens and losses in each of two domains."""
    sums = np.zeros(SHAPE, dtype=np.int64)
    sums[:2, Column.LOSS] = round(loss / 2 * SCALE[Column.LOSS])
    sums[:2, Column.TOKENS] = round(tokens / 2 * SCALE[Column.TOKENS])
    sums[2, Column.TOKENS] = round(invalid * SCALE[Column.TOKENS])
    return DomainStats(NAMES, sums)


def test_ledger_adds_up_what_the_host_says() -> None:
    ledger = Ledger(2, Groups(), CPU)
    ledger.sums[0, 1, Column.TOKENS] += 5 * SCALE[Column.TOKENS]
    ledger.totals += torch.tensor([round(3.75 * SCALE[Column.LOSS]), 5, 2])
    ledger.reduce()  # one process: nobody to talk to
    read = ledger.read(NAMES)
    assert read.host == HostSums(loss=3.75, tokens=5, microbatches=2)
    assert [name for name, _ in read.stats] == ["b"]


def test_a_new_attempt_forgets_the_old_one() -> None:
    ledger = Ledger(2, Groups(), CPU)
    ledger.sums.fill_(3)
    ledger.totals.fill_(3)
    ledger.open()
    read = ledger.read(NAMES)
    assert not read.stats.sums.any()
    assert read.host == HostSums(0.0, 0, 0)


def test_hosts_that_reduce_over_context_parallel_ranks_report_each_sum_twice() -> None:
    ledger = Ledger(2, Groups(cp_size=2, host_repeats=2), CPU)
    for _ in range(2):  # what the all-reduce adds up: both ranks report the whole
        ledger.totals += torch.tensor([round(1.5 * SCALE[Column.LOSS]), 3, 1])
    assert ledger.read(NAMES).host == HostSums(1.5, 3, 2)


def test_what_is_read_does_not_change_later() -> None:
    ledger = Ledger(2, Groups(), CPU)
    before = ledger.read(NAMES).stats
    ledger.sums.fill_(1)
    assert not before.sums.any()


@pytest.mark.parametrize(
    ("host", "wrong"),
    [
        (HostSums(6.0, 4, 1), None),
        (HostSums(6.0 + 3e-5, 4, 1), None),  # fp32 rounding of the host's sum
        (HostSums(6.1, 4, 1), r"6\.0 nats since the last check, the host's loss function to 6\.1"),
        (HostSums(6.0, 5, 1), "counted 5: some tokens are missing"),
        (HostSums(6.0, 3, 9), "missing or counted twice"),  # whole masks: to the token
        (HostSums(6.0, 4, 2), "saw 2 of 1 microbatch losses"),
    ],
)
def test_conservation(host: HostSums, wrong: str | None) -> None:
    if wrong is None:
        check_conservation(stats(), host, 1 if host.microbatches < 9 else None)
    else:
        with pytest.raises(IntegrityError, match=wrong):
            check_conservation(stats(), host, 1 if host.microbatches < 9 else None)


def test_conservation_of_fractional_masks() -> None:
    """The host cuts off less than a token for each such microbatch; 10.5 + 10.5 is whole again."""
    check_conservation(stats(tokens=4.5), HostSums(6.0, 3, 2, fractional=2))
    check_conservation(stats(tokens=21), HostSums(6.0, 20, 2, fractional=2))
    for tokens, seen in ((4.5, 2), (21, 18)):
        with pytest.raises(IntegrityError):
            check_conservation(stats(tokens=tokens), HostSums(6.0, seen, 2, fractional=2))
    with pytest.raises(IntegrityError):
        check_conservation(stats(tokens=21), HostSums(6.0, 20, 2, fractional=0))


@pytest.mark.parametrize(
    ("mask", "fractional"),
    [
        ([[1, 0, 1], [1, 1, 1]], 0),
        ([[0.5, 0.5, 1], [1, 1, 1]], 1),  # its sum is whole, those of its parts may not be
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_ledger_knows_fractional_masks(
    mask: list[list[float]], fractional: int, dtype: torch.dtype
) -> None:
    ledger = Ledger(2, Groups(), CPU)
    ledger.note_fractions(torch.tensor(mask).to(dtype))
    expected = fractional if dtype.is_floating_point else 0
    assert ledger.read(NAMES).host == HostSums(0.0, 0, 0, expected)


def test_tokens_of_no_domain() -> None:
    with pytest.raises(IntegrityError, match="1 tokens carry a domain id outside of the 2 domains"):
        check_conservation(stats(invalid=1), HostSums(6.0, 4, 1))


def test_conservation_says_nothing_of_losses_that_are_not_finite() -> None:
    broken = stats()
    broken.sums[0, Column.NONFINITE] = 1
    check_conservation(broken, HostSums(0.0, 4, 1))
    with pytest.raises(IntegrityError):
        check_conservation(broken, HostSums(0.0, 5, 1))


STEP = st.integers(0, 2**32)  # seeds: hypothesis is slow at drawing fifteen numbers
EVENT = st.one_of(
    st.tuples(st.just("step"), STEP, st.booleans()),
    st.tuples(st.sampled_from(["log", "scalars", "consumed", "checkpoint"])),
)


def ledger(sums: np.ndarray | torch.Tensor, *, lost: int = 0) -> Ledger:
    """A step with these sums ``SHAPE``, whose host counted as many tokens and ``lost`` more."""
    found = Ledger(len(NAMES), Groups(), CPU)
    found.sums[0] = torch.as_tensor(sums)
    total = found.sums[0, :-1].sum(0)
    tokens = total[Column.TOKENS] // SCALE[Column.TOKENS] + lost
    found.totals.copy_(torch.stack([total[Column.LOSS], tokens, torch.tensor(1)]))
    return found


@pytest.mark.parametrize("reading", ["check", "state_dict"])
def test_a_step_that_nobody_read_is_checked_at_the_next_reading(reading: str) -> None:
    step = np.zeros(SHAPE, dtype=np.int64)
    step[0, Column.TOKENS] = 8 * SCALE[Column.TOKENS]
    invalid = step.copy()
    invalid[[0, 2]] = invalid[[2, 0]]
    for wrong, microbatches, message in (
        (ledger(invalid), 1, "8 tokens carry a domain id outside"),
        (ledger(step, lost=1), 1, "missing or counted twice"),
        (ledger(step), 2, "saw 3 of 4 microbatch losses"),
    ):
        for skipped in (False, True):
            windows = Windows(NAMES, CPU)
            windows.add(ledger(step), 1, skipped=False)
            windows.add(wrong, microbatches, skipped=skipped)
            windows.add(ledger(step), 1, skipped=False)
            with pytest.raises(IntegrityError, match=message):
                getattr(windows, reading)()
            assert not any(windows.consumed()[1].values()), "nothing of it was taken over"


def test_a_loop_that_does_not_say_how_many_microbatches_it_ran() -> None:
    windows = Windows(NAMES, CPU)
    for known in (1, None, 1):
        windows.add(ledger(np.zeros(SHAPE, dtype=np.int64)), known, skipped=False)
    windows.check()
    windows.add(ledger(np.zeros(SHAPE, dtype=np.int64)), 2, skipped=False)
    with pytest.raises(IntegrityError, match="saw 1 of 2"):
        windows.check()


@settings(max_examples=40)
@given(st.lists(EVENT, max_size=12))
def test_windows(events: list[tuple]) -> None:
    """Against plain sums, with checkpoints into a new process at any time."""
    windows = Windows(NAMES, CPU)
    model = {"log": np.zeros(SHAPE, dtype=np.int64), "scalars": np.zeros(SHAPE, dtype=np.int64)}
    consumed = np.zeros(SHAPE, dtype=np.int64)
    index = {"log": Windows.LOG, "scalars": Windows.SCALARS}
    for kind, *rest in events:
        if kind == "step":
            step = np.random.default_rng(rest[0]).integers(-(2**40), 2**40, SHAPE)
            step[-1] = 0  # invalid ids: another test
            step[:, Column.TOKENS] &= -SCALE[Column.TOKENS]  # whole masks
            windows.add(ledger(step), 1, skipped=rest[1])
            consumed += step
            if not rest[1]:
                for window in model.values():
                    window += step
        elif kind == "checkpoint":
            state = windows.state_dict()
            windows = Windows(NAMES, CPU)
            windows.load_state_dict(state)
        elif kind == "consumed":
            windows.check()
            tokens, samples = windows.consumed()
            expected = consumed[:-1, Column.TOKENS] / SCALE[Column.TOKENS]
            assert list(tokens.values()) == expected.tolist()
            assert list(samples.values()) == consumed[:-1, Column.SAMPLES].tolist()
        else:
            (read,) = windows.read(index[kind])
            assert (read.sums == model[kind]).all()
            windows.restart(index[kind])
            model[kind][:] = 0


def test_consumed_outgrows_int64() -> None:
    windows = Windows(NAMES, CPU)
    step = torch.zeros(SHAPE, dtype=torch.int64)
    step[0, Column.TOKENS] = 2**62
    for _ in range(8):
        windows.add(ledger(step), 1, skipped=False)
        windows.restart(Windows.LOG)
        windows.restart(Windows.SCALARS)
        windows.check()
        tokens, _ = windows.consumed()
    assert tokens["a"] == 8 * 2**62 / SCALE[Column.TOKENS]
    again = Windows(NAMES, CPU)
    again.load_state_dict(windows.state_dict())
    assert again.consumed() == windows.consumed()


def test_state_is_mapped_by_name() -> None:
    windows = Windows(NAMES, CPU)
    step = torch.arange(SHAPE[0] * SHAPE[1]).view(SHAPE)
    step[:, Column.TOKENS] *= SCALE[Column.TOKENS]
    step[-1] = 0
    windows.add(ledger(step), 1, skipped=False)
    changed = Windows(("new", "b", "a"), CPU)
    changed.load_state_dict(windows.state_dict())
    (log,) = changed.read(Windows.LOG)
    assert log.sums.tolist() == [[0] * 5, step[1].tolist(), step[0].tolist(), [0] * 5]
    assert changed.consumed()[1] == {
        "new": 0,
        "b": int(step[1, Column.SAMPLES]),
        "a": int(step[0, Column.SAMPLES]),
    }


def test_state_is_made_of_python_primitives() -> None:
    """Checkpoints are loaded with weights_only, and saved as JSON in some formats."""
    windows = Windows(NAMES, CPU)
    windows.add(ledger(torch.zeros(SHAPE, dtype=torch.int64)), 1, skipped=False)

    def check(value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                assert type(key) is str
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)
        else:
            assert type(value) is int

    check(windows.state_dict())


def test_a_window_goes_on_where_reweighting_begins_or_ends() -> None:
    """Before it began all multipliers were one; after it ended none is in force."""
    before = Windows(NAMES, CPU)
    before._sums[: Windows.CONSUMED, 0, :2] = torch.arange(20).view(2, 2, 5)
    begun = Windows(NAMES, CPU, layers=2)
    begun.load_state_dict(before.state_dict())
    for layer in range(2):
        assert torch.equal(begun._sums[:, layer], before._sums[:, 0])
    begun._sums[: Windows.CONSUMED, 1] += 7
    ended = Windows(NAMES, CPU)
    ended.load_state_dict(begun.state_dict())
    assert torch.equal(ended._sums, before._sums)
