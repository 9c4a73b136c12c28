"""A whole step through DomainStep, as a loop of one's own would call it; no host."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.metrics import METRICS, windows
from support.passes import forward, our_loss_func
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from domain_pretrain.data.origin import ById
from domain_pretrain.errors import ConfigError, IntegrityError
from domain_pretrain.flow.continuity import Meaning
from domain_pretrain.flow.domain_step import DomainStep
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.microbatch import Microbatch, row_of_token
from domain_pretrain.flow.moment import Moment
from domain_pretrain.flow.tap import Rows, Source
from domain_pretrain.kernels.domain_reduce import Backend, select
from domain_pretrain.records.events_file import EventsFile
from domain_pretrain.records.publisher import open_publisher
from domain_pretrain.records.reader import read_events, read_findings
from domain_pretrain.records.record import Event
from domain_pretrain.watch import Watch
from domain_pretrain.watch.section import Watching

CPU = torch.device("cpu")
NAMES = ("finance", "general", "rare")
SOURCE = Source(ById((1, 0, 2, 1)))
Batch = dict[str, torch.Tensor]


def batches(*ids: list[int]) -> list[Batch]:
    """Microbatches of two rows of eight tokens."""
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "losses": torch.rand(2, 8, generator=generator) * 9,
            "loss_mask": (torch.rand(2, 8, generator=generator) < 0.7).float(),
            "dataset_id": torch.tensor(pair, dtype=torch.int16),
        }
        for pair in ids
    ]


def loss_func(mask: torch.Tensor, losses: torch.Tensor) -> tuple[Any, ...]:
    loss = torch.sum(losses * mask)
    return loss, mask.sum().int(), {"lm loss": loss}


def forward_step(
    iterator: Iterator[Batch], model: Any = None, loss: Callable[..., Any] = loss_func
) -> tuple[torch.Tensor, Callable[..., Any]]:
    batch = next(iterator)
    assert "dataset_id" not in batch
    return batch["losses"], partial(loss, batch["loss_mask"])


def make(log_dir: Path | None = None, **how: Any) -> DomainStep:
    publisher = None
    if log_dir is not None:
        publisher = open_publisher(
            log_dir, None, None, "token", lambda text: None, after_iteration=0
        )
    return DomainStep(NAMES, Groups(), CPU, publisher, **how)


def run(
    step: DomainStep, data: list[Batch], forward: Callable[..., Any] = forward_step, **how: Any
) -> None:
    """What a schedule does with the wrapped forward step."""
    wrapped = step.wrap_forward_step(forward, SOURCE, training=how.get("training", True))
    iterator = iter(data)
    for _ in data:
        output, loss = wrapped(iterator, None)
        loss(output)


def moment(iteration: int, **how: Any) -> Moment:
    values = {"log": True, "scalars": True, "microbatches": 2, **how}
    return Moment(iteration=iteration, consumed_samples=4 * iteration, **values)


def test_step(tmp_path: Path) -> None:
    step, data = make(tmp_path), batches([0, 1], [3, 3])
    step.open()
    run(step, data)
    step.close(moment(1))
    (line,) = windows(tmp_path)
    assert line["domains"].keys() == {"finance", "general"}, "absent is absent"
    rows = {"finance": [(0, 1)], "general": [(0, 0), (1, 0), (1, 1)]}
    for name, places in rows.items():
        masks = [data[m]["loss_mask"][r].double() for m, r in places]
        losses = [data[m]["losses"][r].double() for m, r in places]
        loss = sum(float(m @ x) for m, x in zip(masks, losses, strict=True))
        tokens = sum(int(mask.sum()) for mask in masks)
        domain = line["domains"][name]
        assert (domain["tokens"], domain["samples"]) == (tokens, len(places))
        assert domain["loss_sum"] == pytest.approx(loss, rel=1e-7)


def test_the_hosts_numbers_stand_in_the_lines_and_the_time_between_them(tmp_path: Path) -> None:
    step, data = make(tmp_path), batches([0, 1], [2, 3])
    for iteration in (1, 2, 3):
        step.open()
        run(step, data)
        host = {"learning_rate": 0.5 / iteration, "grad_norm": math.inf}
        step.close(moment(iteration, log=iteration != 2, host=host))
    content = (tmp_path / METRICS).read_text().splitlines()
    first, last = [json.loads(line)["host"] for line in content[1:]]
    assert first == {"learning_rate": 0.5, "grad_norm": None}
    assert last.pop("seconds") > 0
    assert last == {"learning_rate": 0.5 / 3, "grad_norm": None}


def test_repeated_attempts_count_once(tmp_path: Path) -> None:
    step, data = make(tmp_path), batches([0, 1], [2, 3])
    for folder, attempts in ((tmp_path / "once", 1), (tmp_path / "thrice", 3)):
        step = make(folder)
        for _ in range(attempts):
            step.open()
            run(step, data)  # the very same dicts
        step.close(moment(1))
    assert windows(tmp_path / "once") == windows(tmp_path / "thrice")


def evaluate(step: DomainStep, *sets: list[list[int]], whole: bool = True) -> None:
    """What a host does on sets of data, a step for every microbatch; the last set ``whole``."""
    step.evaluation.open()
    for place, ids in enumerate(sets, 1):
        step.evaluation.open_set()
        for data in batches(*ids):
            step.evaluation.open_attempt(1)
            run(step, [data], training=False)
            step.evaluation.close_step()
        if whole or place < len(sets):
            step.evaluation.close_set()


def test_evaluation_between_attempts_does_not_mix(tmp_path: Path) -> None:
    step, data = make(tmp_path), batches([0, 1], [2, 3])
    step.open()
    run(step, data[:1])
    evaluate(step, [[2, 2]])
    step.close_evaluation("valid", 1, 4, final=False)
    run(step, data[1:])
    step.close(moment(1))
    valid, train = windows(tmp_path)
    assert valid["domains"].keys() == {"rare"}
    assert sum(d["samples"] for d in train["domains"].values()) == 4


def test_an_attempt_at_a_step_of_an_evaluation_that_the_host_repeats(tmp_path: Path) -> None:
    step = make(tmp_path)
    step.evaluation.open()
    for data in batches([0, 1], [2, 2]):
        for _ in range(2):
            step.evaluation.open_attempt(1)
            run(step, [data], training=False)
        step.evaluation.close_step()
    step.evaluation.close_set()
    step.close_evaluation("valid", 1, 4, final=False)
    (line,) = windows(tmp_path)
    assert {name: d["samples"] for name, d in line["domains"].items()} == {
        "finance": 1,
        "general": 1,
        "rare": 2,
    }


def test_only_whole_sets_of_an_evaluation_are_published(tmp_path: Path) -> None:
    step = make(tmp_path)
    evaluate(step, [[0, 1]], whole=False)
    step.close_evaluation("valid", 1, 4, final=False)
    assert windows(tmp_path) == []
    evaluate(step, [[0, 1]], [[2, 2], [2, 2]], whole=False)
    step.close_evaluation("valid", 2, 8, final=False)
    evaluate(step, [[0, 1]], [[2, 2]])
    step.close_evaluation("valid", 3, 12, final=True)
    cut, whole = windows(tmp_path)
    assert cut["domains"].keys() == {"finance", "general"}
    assert whole["domains"].keys() == {"finance", "general", "rare"}
    assert cut["domains"]["finance"] == whole["domains"]["finance"]


def test_what_a_final_evaluation_finds_goes_with_it_at_a_resume(tmp_path: Path) -> None:
    """As its line does: the checkpoint before it does not know of either."""
    step = make(tmp_path, watch=Watch(Watching(), NAMES))
    broken = batches([0, 0])
    broken[0]["losses"][:] = math.nan
    for split, final in (("valid", False), ("test", True)):
        step.evaluation.open()
        step.evaluation.open_set()
        step.evaluation.open_attempt(1)
        run(step, broken, training=False)
        step.evaluation.close_step()
        step.evaluation.close_set()
        step.close_evaluation(split, 8, 32, final=final)
    assert len(read_findings(tmp_path)) == 2
    assert step.publisher is not None
    step.publisher.close()
    EventsFile(tmp_path, 8).close()
    (kept,) = read_findings(tmp_path)
    assert "(valid, iteration 8)" in kept.message


def test_attempts_that_a_graph_replays(tmp_path: Path) -> None:
    """It empties the ledger and fills it again, without a word, also in later evaluations."""
    step = make(tmp_path)
    for iteration in (1, 2):
        step.evaluation.open()
        for data in batches([0, 1], [2, 2]):
            if iteration == 1:
                step.evaluation.open_attempt(1)  # captured
            step.evaluation.attempt.open()
            run(step, [data], training=False)
            step.evaluation.close_step()
        step.evaluation.close_set()
        step.close_evaluation("valid", iteration, 4 * iteration, final=False)
    captured, replayed = windows(tmp_path)
    assert captured["domains"] == replayed["domains"]


def test_losses_of_an_evaluation_that_went_past_the_seams() -> None:
    step = make()
    step.evaluation.open()
    step.evaluation.open_attempt(2)
    run(step, batches([0, 1]), training=False)
    step.evaluation.close_step()
    step.evaluation.close_set()
    with pytest.raises(IntegrityError, match="saw 1 of 2 microbatch losses"):
        step.close_evaluation("valid", 1, 4, final=False)


def test_skipped_updates_are_consumed_but_not_reported(tmp_path: Path) -> None:
    step = make(tmp_path)
    for iteration in (1, 2):
        step.open()
        run(step, batches([0, 1], [0, 1]))
        step.close(moment(iteration, skipped=iteration == 1, log=iteration == 2))
    (line,) = windows(tmp_path)
    assert line["domains"]["general"]["samples"] == 2
    assert line["domains"]["general"]["consumed_samples"] == 4


def test_microbatches_that_went_past_the_seams() -> None:
    step = make()
    step.open()
    run(step, batches([0, 1]))
    with pytest.raises(IntegrityError, match="saw 1 of 2 microbatch losses"):
        step.close(moment(1, log=False))


def test_the_first_step_is_checked_even_where_it_is_not_logged() -> None:
    step = make()
    step.open()
    run(step, batches([0, 1], [0, 1]), partial(forward_step, loss=doubled))
    with pytest.raises(IntegrityError, match="is not Σ mask·loss"):
        step.close(moment(1, log=False))


def doubled(mask: torch.Tensor, losses: torch.Tensor) -> tuple[Any, ...]:
    loss, tokens, report = loss_func(mask, losses)
    return 2 * loss, tokens, report


def half_the_tokens(mask: torch.Tensor, losses: torch.Tensor) -> tuple[Any, ...]:
    mask = mask.clone()
    mask[:, ::2] = 0
    return loss_func(mask, losses)


def test_a_loss_of_other_tokens() -> None:
    step = make()
    step.open()
    run(step, batches([0, 1], [0, 1]), partial(forward_step, loss=half_the_tokens))
    with pytest.raises(IntegrityError, match="missing or counted twice"):
        step.close(moment(1))


@pytest.mark.parametrize("wrong", [-1, 4])
def test_ids_that_the_blend_does_not_have(wrong: int) -> None:
    step = make()
    step.open()
    run(step, batches([0, 1], [wrong, 1]))
    with pytest.raises(IntegrityError, match="the dataset ids do not fit the catalog"):
        step.close(moment(1))


@pytest.mark.parametrize("reading", ["line", "scalars", "state"])
def test_ids_that_the_blend_does_not_have_in_a_step_that_is_not_logged(
    tmp_path: Path, reading: str
) -> None:
    """Nothing is published or saved of a window that is not whole."""
    step = make(tmp_path)
    for iteration, wrong in ((1, 0), (2, 4), (3, 0)):
        step.open()
        run(step, batches([0, 1], [wrong, 1]))
        step.close(moment(iteration, log=False, scalars=False))
    with pytest.raises(IntegrityError, match="the dataset ids do not fit the catalog"):
        if reading == "state":
            step.state_dict()
        step.open()
        run(step, batches([0, 1], [0, 1]))
        step.close(moment(4, log=reading == "line", scalars=reading == "scalars"))
    assert windows(tmp_path) == []


def test_weights_do_not_learn_from_ids_that_the_blend_does_not_have() -> None:
    """Such tokens have no gradient: the step itself stops, logged or not."""
    step = DomainStep.create(NAMES, {"warmup_steps": 0}, tokens_per_step=32)
    mask, wrong = torch.ones(2, 8), torch.tensor([0, 3])
    for ids in (torch.tensor([0, 1]), wrong):
        step.open()
        step.loss(torch.rand(2, 8, requires_grad=True), mask, ids)
        if ids is not wrong:
            step.end_step()
    before = step.steering.memory if step.steering else None
    with pytest.raises(IntegrityError, match="8 tokens carry a domain id outside"):
        step.end_step()
    assert step.steering is not None and step.steering.memory is before


def test_a_loop_of_ones_own_finds_them_at_its_next_reading() -> None:
    step = DomainStep.create(NAMES, tokens_per_step=32)
    for ids in ([0, 3], [0, 1]):
        step.open()
        step.loss(torch.rand(2, 8, requires_grad=True), torch.ones(2, 8), torch.tensor(ids))
        step.end_step()
    with pytest.raises(IntegrityError, match="8 tokens carry a domain id outside"):
        step.stats()


@pytest.mark.parametrize("parts", [[10.5, 10.5], [0.25, 0.75], [1.0, 1.0]])
@pytest.mark.parametrize("fused", [False, True])
def test_fractional_masks(
    tmp_path: Path, parts: list[float], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host cuts off what is left of a token in each microbatch: 10 + 10 of 21; so do we."""
    monkeypatch.setattr(Backend, "fused", fused)
    step, data = make(tmp_path), batches([0, 1], [0, 1])
    for batch, part in zip(data, parts, strict=True):
        batch["loss_mask"] = torch.full((2, 8), part / 16)
    step.open()
    run(step, data, partial(forward_step, loss=our_loss_func))
    step.close(moment(1))
    (line,) = windows(tmp_path)
    assert sum(d["tokens"] for d in line["domains"].values()) == sum(parts)


def without_mask(iterator: Iterator[Batch], model: Any) -> tuple[Any, ...]:
    output, loss = forward_step(iterator)
    return output, lambda losses: loss(losses)


def with_old_loss(iterator: Iterator[Batch], model: Any) -> tuple[Any, ...]:
    output, loss = forward_step(iterator)
    return output, partial(lambda mask, losses: loss(losses)[:2], torch.ones(2, 8))


def with_mean_output(iterator: Iterator[Batch], model: Any) -> tuple[Any, ...]:
    output, loss = forward_step(iterator)
    return output.mean(), loss


def with_two_outputs(iterator: Iterator[Batch], model: Any) -> tuple[Any, ...]:
    output, loss = forward_step(iterator)  # as BERT's: of the tokens, and of the sentence order
    return (output, output[:, 0]), loss  # type: ignore[return-value]


def with_own_batches(iterator: Iterator[Batch], model: Any) -> tuple[Any, ...]:
    return forward_step(iter([{k: v for k, v in batches([0, 1])[0].items() if k != "dataset_id"}]))


@pytest.mark.parametrize("shape", [(3, 4), (12,), (1, 12), (12, 1), (3, 1, 4), (3, 4, 1)])
@pytest.mark.parametrize("mask", [(3, 4), (1, 12), (3, 1, 4)])
def test_losses_in_the_order_of_the_samples(shape: tuple[int, ...], mask: tuple[int, ...]) -> None:
    losses, rows = torch.arange(12.0), Rows.of(torch.arange(3), torch.full((3,), 4.0))
    built = Microbatch.build(losses.view(shape), torch.ones(mask), rows, Groups())
    assert torch.equal(built.losses, losses.view(3, 4)), "also rows that the host joined"


@pytest.mark.parametrize("shape", [(4, 3), (2, 6), (6, 2), (3, 2, 2), (2, 3, 2)])
@pytest.mark.parametrize("mask", [(3, 4), (1, 12)])
def test_losses_in_another_order_are_refused(shape: tuple[int, ...], mask: tuple[int, ...]) -> None:
    """``[s, b]`` are Megatron's before it turns them: as many, but not of these samples."""
    rows = Rows.of(torch.arange(3), torch.full((3,), 4.0))
    with pytest.raises(
        IntegrityError, match=r"returned \(.*\) losses for 3 samples and a loss mask"
    ):
        Microbatch.build(torch.rand(shape), torch.ones(mask), rows, Groups())


def test_any_number_of_unfinished_steps() -> None:
    step = make()
    for _ in range(50):
        step.open()
        run(step, batches([0, 1]))
    step.end_step()
    assert step.stats().total.samples == 2


class Crossings(TorchDispatchMode):
    """Notes what copies between devices; what reads a value back fails on fake tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        given, made = (
            {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}
            for tree in ((args, kwargs), result)
        )
        if given and made and given != made:
            self.names.append(str(function))
        return result


@pytest.mark.parametrize("kind", [None, "lagged", "domain", "sample"])
def test_a_microbatch_stays_on_its_device(kind: str | None) -> None:
    """Else each would wait for a copy, which a CUDA graph cannot capture at all."""
    device, backend = torch.device("cuda"), select("reference")
    with FakeTensorMode():
        plugin = forward(backend, kind, device)
        losses = torch.rand(3, 16, device=device, requires_grad=True)
        mask, ids = (
            torch.ones(3, 16, device=device),
            torch.zeros(3, dtype=torch.int64, device=device),
        )
        plugin.loss(losses, mask, ids)  # the first makes what is kept
        with Crossings() as crossings:
            plugin.loss(losses, mask, ids)
    assert crossings.names == []


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (without_mask, r"must return \(output, partial\(loss_func, loss_mask, …\)\)"),
        (with_old_loss, r"must return \(loss_sum, num_tokens, report\).* it returned 2"),
        (with_mean_output, "one loss per token"),
        (with_two_outputs, "the model returned a tuple instead of one loss per token"),
        (with_own_batches, "took 0 batches"),
    ],
)
def test_scripts_that_cannot_be_counted(forward: Callable[..., Any], message: str) -> None:
    step = make()
    step.open()
    with pytest.raises(IntegrityError, match=message):
        run(step, batches([0, 1]), forward)


def test_nan_is_counted_before_the_host_raises() -> None:
    """The host's own check for NaN does not know domains."""

    def checked(mask: torch.Tensor, losses: torch.Tensor) -> tuple[Any, ...]:
        result = loss_func(mask, losses)
        if torch.isnan(result[0]):
            raise RuntimeError("found NaN in local forward loss calculation")
        return result

    step = make()
    step.open()
    data = batches([0, 1], [3, 2])
    data[1]["losses"][1, :] = torch.nan
    with pytest.raises(RuntimeError, match="found NaN"):
        run(step, data, partial(forward_step, loss=checked))
    assert step.nonfinite_domains(training=True) == ["rare"]
    assert step.nonfinite_domains(training=False) == []


def test_state(tmp_path: Path) -> None:
    """A checkpoint in an open window, in the middle of training."""
    unbroken, data = make(tmp_path / "unbroken"), batches([0, 1], [2, 3])
    step = make(tmp_path / "first")
    for iteration in range(1, 6):
        if iteration == 3:  # a new process
            state = step.state_dict()
            step = make(tmp_path / "second")
            step.load_state_dict(state)
        for one in (unbroken, step):
            one.open()
            run(one, data)
            one.close(moment(iteration, log=iteration == 4, scalars=iteration == 5))
    assert windows(tmp_path / "second") == windows(tmp_path / "unbroken")
    assert step.state_dict() == unbroken.state_dict()


def test_a_begun_stage_is_an_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By what has been consumed; a run that starts behind it does not tell it again."""

    def begun(before: int, after: int) -> list[str]:
        return ["stage 2"] if before < 6 <= after else []

    for start, folder in ((0, tmp_path / "whole"), (8, tmp_path / "later")):
        step = make(folder, begun=begun, consumed_samples=start)
        for iteration in range(1 + start // 4, 4):
            step.open()
            run(step, batches([0, 1], [1, 0]))
            step.close(moment(iteration))
    assert read_events(tmp_path / "whole")[-1] == Event("stage", 2, "stage 2")
    assert [one.name for one in read_events(tmp_path / "later")] == ["start"]
    assert capsys.readouterr().out.count("after iteration 2: stage 2") == 1


def test_state_of_another_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    """A prefix that changed its domain, and a config that changed at all."""

    def meant(**how: Any) -> Meaning:
        prefixes = {"/data/a": "finance", "/data/b": "general", "/data/c": "rare"}
        settings = {"reweight.strategy": "linupper", "reweight.temperature": 1.0}
        return Meaning(NAMES, **{"prefixes": prefixes, "settings": settings, **how})

    state = make(meaning=meant()).state_dict()
    make(meaning=meant()).load_state_dict(state)
    assert not capsys.readouterr().out

    moved = meant(prefixes={"/data/a": "general", "/other/b": "general", "/data/c": "rare"})
    with pytest.raises(ConfigError, match=r"domains: /data/a from finance to general\. .*--allow"):
        make(meaning=moved).load_state_dict(state)
    make(meaning=moved, allow_domain_change=True).load_state_dict(state)
    assert "/data/a from finance to general" in capsys.readouterr().out

    other = meant(settings={"reweight.strategy": "linupper", "domains.rare.pinned": True})
    make(meaning=other).load_state_dict(state)
    told = capsys.readouterr().out
    assert "reweight.temperature 1.0 → default" in told
    assert "domains.rare.pinned default → True" in told

    del state["prefixes"], state["settings"]  # as version 0.1 wrote it
    make(meaning=other).load_state_dict(state)
    assert not capsys.readouterr().out


def test_state_of_other_domains() -> None:
    step = make()
    step.open()
    run(step, batches([0, 1], [2, 3]))
    step.close(moment(1))
    state = step.state_dict()

    names = ("general", "finance", "fresh")
    other = DomainStep(names, Groups(), CPU)
    with pytest.raises(ConfigError, match=r"gone \['rare'\], new \['fresh'\]"):
        other.load_state_dict(state)
    allowed = DomainStep(names, Groups(), CPU, allow_domain_change=True)
    allowed.load_state_dict(state)
    assert allowed.windows.consumed()[1] == {"general": 2, "finance": 1, "fresh": 0}
    with pytest.raises(ConfigError, match="has version 999"):
        step.load_state_dict({**state, "version": 999})


@pytest.mark.megatron
@pytest.mark.parametrize(("rows", "cp"), [(1, 2), (2, 2), (3, 2), (2, 4), (4, 1)])
def test_rows_of_packed_tokens_are_the_hosts(
    rows: int, cp: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megatron's own flattening and cutting, of a batch whose tokens are their row's number."""
    utils = pytest.importorskip("megatron.core.utils")
    if not hasattr(utils, "flatten_batch_for_packed_sequences"):
        pytest.skip("this Megatron does not flatten packed rows")
    length = 24
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: cp)
    for rank in range(cp):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda group, rank=rank: rank)
        batch = {
            "tokens": torch.arange(rows)[:, None].expand(rows, length),
            "cu_seqlens": torch.tensor([[0, 10, length]] * rows, dtype=torch.int32),
        }
        batch = utils.flatten_batch_for_packed_sequences(batch)
        batch = utils.get_batch_on_this_cp_rank(
            batch, is_hybrid_cp=False, use_per_sequence_balancing=True
        )
        (tokens,) = batch["tokens"]
        groups = Groups(cp_size=cp, cp_rank=rank)
        assert row_of_token(rows, len(tokens), groups, CPU).tolist() == tokens.tolist()
