"""Experts by domain: maths against float64, counts by row, and what is published of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.made_up_runs import NAMES, MadeUpRun, only

from domain_pretrain.adapt.experts import Experts as Section
from domain_pretrain.adapt.load import describe, entropy, summary
from domain_pretrain.adapt.router import (
    ENTROPY,
    MORE,
    TOKENS,
    UNIT,
    by_domain,
    count_rows,
    mean_of,
    router_entropy,
)
from domain_pretrain.errors import ConfigError, IntegrityError, UnsupportedError
from domain_pretrain.flow.experts import ExpertCounts
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.tap import Rows
from domain_pretrain.hosts.support import REFUSED_WITH_EXPERTS, check_flags
from domain_pretrain.records.compact import compact, expand
from domain_pretrain.records.experts_file import (
    DISCARDED_FILE,
    EXPERTS_FILE,
    MOST,
    ExpertsFile,
    ExpertsTable,
    read_experts,
    table_of,
)
from domain_pretrain.records.metrics_file import metrics_entry
from domain_pretrain.records.publisher import open_publisher
from domain_pretrain.records.record import Experts, Record
from domain_pretrain.records.scalars import scalar_values
from domain_pretrain.section import parse
from domain_pretrain.stats import DomainStats
from domain_pretrain.watch import Known
from domain_pretrain.watch.section import Watching

CPU = torch.device("cpu")

# Routers.

SCORES = {
    "softmax": np.exp,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "sqrtsoftplus": lambda x: np.sqrt(np.log1p(np.exp(x))),
}


@pytest.mark.parametrize("function", SCORES)
def test_entropy_of_a_router(function: str) -> None:
    logits = 3 * torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    scores = SCORES[function](logits.double().numpy())
    parts = scores / scores.sum(axis=1, keepdims=True)
    expected = -(parts * np.log(parts)).sum(axis=1)
    assert router_entropy(logits, function).numpy() == pytest.approx(expected, abs=1e-5)
    assert router_entropy(logits.double(), function).numpy() == pytest.approx(expected, rel=1e-12)
    assert router_entropy(torch.zeros(1, 8), function).item() == pytest.approx(np.log(8))


def test_padding_is_no_token() -> None:
    values, padding = torch.tensor([1.0, 5.0, 3.0]), torch.tensor([False, True, False])
    assert mean_of(values, None).item() == 3
    assert mean_of(values, padding).item() == 2
    assert mean_of(values, torch.ones(3, dtype=torch.bool)).item() == 0


def test_rows_lie_side_by_side() -> None:
    """Token t is of row t mod rows: [sequence, rows] is how Megatron lays a batch."""
    chosen = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 1]]).bool()
    nats = torch.tensor([0.5, 1.0, 0.25, 0.125])
    counts = count_rows(chosen, nats, 2, None)
    assert counts[:, :-MORE].tolist() == [[2, 0, 1], [0, 2, 1]]
    assert counts[:, TOKENS].tolist() == [2, 2]
    assert (counts[:, ENTROPY] * UNIT).tolist() == [0.75, 1.125]
    padding = torch.tensor([False, True, True, False])
    counts = count_rows(chosen, nats, 2, padding)
    assert counts[:, :-MORE].tolist() == [[1, 0, 1], [0, 1, 1]]
    assert counts[:, TOKENS].tolist() == [1, 1]


def test_rows_get_their_domains_later() -> None:
    rows = [torch.tensor([[1, 2], [3, 4]]), torch.tensor([[5, 6], [7, 8]])]
    ids = torch.tensor([1, 0, 1, -1], dtype=torch.int32)
    assert by_domain(rows, ids, 2).tolist() == [[3, 4], [6, 8], [7, 8]]


# Numbers.


def test_numbers_of_a_load() -> None:
    load = np.array([[2, 2, 0, 0], [1, 1, 1, 1]])
    found = summary(load, np.array([2, 2]), np.array([2 * np.log(4), 0.0]))
    assert found == pytest.approx({"entropy": 0.75, "load": 1.5, "used": 3.0, "router": 0.5})
    assert entropy(np.array([7, 0, 0])) == 0
    assert np.isnan(entropy(np.zeros((1, 3), dtype=np.int64)))


def test_a_domain_without_tokens_has_no_numbers() -> None:
    load = np.array([[[4, 4], [0, 0]], [[8, 0], [0, 0]]])
    tokens = np.array([[4, 0], [4, 0]])
    found = describe(("a", "b"), [1, 3], 2, load, tokens, 0.5 * tokens)
    assert found.domains.keys() == {"a"}
    assert found.overall == found.domains["a"]


# A step.


def routed(dice: np.random.Generator, rows: int = 2) -> torch.Tensor:
    """Of a microbatch of 16 positions, 2 of 4 experts each."""
    order = torch.from_numpy(dice.random((16 * rows, 4)).argsort(axis=1))
    return count_rows(order < 2, torch.ones(16 * rows), rows, None)


def counts_of(layers: int = 2) -> ExpertCounts:
    counts = ExpertCounts(("a", "b", "c"), Groups(micro_batch_size=2), CPU)
    counts.begin(range(2, 2 + layers), 4, 2)
    return counts


def hear(counts: ExpertCounts, *domains: int) -> None:
    counts.hear(Rows.of(torch.tensor(domains), torch.ones(len(domains))))


def test_a_step_is_counted_whichever_layer_comes_first() -> None:
    dice = np.random.default_rng(0)
    counts = counts_of()
    counts.expect(logged=True)
    counts.open()
    first, second = [routed(dice) for _ in range(2)], [routed(dice) for _ in range(2)]
    for place, one in ((0, first[0]), (1, second[0]), (0, first[1]), (1, second[1])):
        counts.add(place, one)
    hear(counts, 2, 0)
    hear(counts, 0, 0)
    found = counts.close(2, 64)
    assert found is not None
    assert found.layers == (2, 3)
    for layer, of in enumerate((first, second)):
        assert found.load[layer, 2].tolist() == of[0][0, :4].tolist()
        assert found.load[layer, 0].tolist() == (of[0][1] + of[1].sum(dim=0))[:4].tolist()
    assert not found.load[:, 1].any()
    assert found.domains.keys() == {"a", "c"}
    assert found.overall["router"] == pytest.approx(1 / np.log(4))


def test_an_attempt_that_is_repeated_counts_once() -> None:
    dice = np.random.default_rng(1)
    counts = counts_of(1)
    counts.expect(logged=True)
    for _ in range(3):
        counts.open()
        counts.add(0, routed(dice))
        hear(counts, 0, 1)
    found = counts.close(1, 32)
    assert found is not None and found.load.sum() == 64
    assert counts.close(1, 32) is None, "the next step is not logged"


def test_other_steps_cost_nothing() -> None:
    counts = counts_of()
    counts.expect(logged=False)
    counts.open()
    hear(counts, 0, 1)
    assert not counts.counting
    assert counts.close(1, 32) is None


@pytest.mark.parametrize("times", [0, 2])
def test_a_router_that_does_not_run_once_a_microbatch(times: int) -> None:
    counts = counts_of()
    counts.expect(logged=True)
    counts.open()
    for place, runs in ((0, 1), (1, times)):
        for _ in range(runs):
            counts.add(place, routed(np.random.default_rng(2)))
    hear(counts, 0, 1)
    with pytest.raises(IntegrityError, match="layer 3 counted 0 tokens in a step of 32"):
        counts.close(1, 32)


def test_an_id_of_no_domain_is_noticed() -> None:
    counts = counts_of(1)
    counts.expect(logged=True)
    counts.open()
    counts.add(0, routed(np.random.default_rng(3)))
    hear(counts, 0, 7)
    with pytest.raises(IntegrityError, match="counted 16 tokens in a step of 32"):
        counts.close(1, 32)


# What is asked for, and refused.


def test_options() -> None:
    assert not Section().counts
    assert Section(load=True).counts
    assert Section(entropy_loss=0.01).counts
    for given in ({"load": 1}, {"entropy_loss": -1.0}, {"entropy_loss": True}, {"loads": True}):
        with pytest.raises(ConfigError, match=r"adapt\.experts"):
            parse(Section, given, "adapt.experts")


FINE = {
    "num_experts": 4,
    "cuda_graph_impl": "none",
    "moe_token_dispatcher_type": "alltoall",
    "tensor_model_parallel_size": 2,
    "micro_batch_size": 2,
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_experts": None}, "no experts to count"),
        ({"cuda_graph_impl": "local"}, "a graph replays"),
        ({"enable_cuda_graph": True}, "a graph replays"),
        ({"moe_token_dispatcher_type": "alltoall_seq"}, "use alltoall"),
        ({"dataloader_inter_document_masking": True}, "end to end"),
    ],
)
def test_what_cannot_be_counted_is_refused(changes: dict[str, Any], words: str) -> None:
    check_flags(SimpleNamespace(**FINE), REFUSED_WITH_EXPERTS)
    with pytest.raises(UnsupportedError, match=words):
        check_flags(SimpleNamespace(**{**FINE, **changes}), REFUSED_WITH_EXPERTS)


# What is published.


def experts_of(load: np.ndarray[Any, Any], names: tuple[str, ...] = NAMES) -> Experts:
    """From ``[layers, domains, experts]``, two experts a token."""
    tokens = -(-load.sum(axis=-1) // 2)
    layers = range(1, len(load) + 1)
    return describe(names, layers, 2, load, tokens, tokens * 0.5)


def record_of(experts: Experts | None, names: tuple[str, ...] = NAMES) -> Record:
    stats = DomainStats(names, np.full((len(names) + 1, 5), 2**30, dtype=np.int64))
    return Record("train", 7, 70, stats, experts=experts)


EVEN = np.full((2, len(NAMES), 8), 100)


def test_a_line_and_its_tags() -> None:
    load = EVEN.copy()
    load[:, 1] = 0  # the second has tokens in the window, and none in this step
    record = record_of(experts_of(load))
    entry = json.loads(json.dumps(metrics_entry(record, "token")))
    assert entry["experts"] == {
        **{"layers": 2, "count": 8, "topk": 2},
        **{name: pytest.approx(value) for name, value in record.experts.overall.items()},  # type: ignore[union-attr]
    }
    assert entry["domains"][NAMES[0]]["expert_used"] == pytest.approx(8)
    assert not any(key.startswith("expert") for key in entry["domains"][NAMES[1]])
    assert expand(compact(entry, NAMES), NAMES) == entry
    values = scalar_values(record, "token")
    assert values[f"expert-entropy/{NAMES[0]}"] == pytest.approx(1)
    assert values["experts/load"] == pytest.approx(1)
    assert f"expert-entropy/{NAMES[1]}" not in values
    without = metrics_entry(replace(record, experts=None), "token")
    assert "expert" not in json.dumps(without)


def test_the_file_holds_the_last_step(tmp_path: Path) -> None:
    file = ExpertsFile(tmp_path, 0)
    file.line(record_of(None))
    assert read_experts(tmp_path) is None
    load = EVEN.copy()
    load[:, 2] = 0
    file.line(record_of(experts_of(load)))
    found = read_experts(tmp_path)
    assert found is not None
    assert found.domains == [name for name in NAMES if name != NAMES[2]]
    assert np.array_equal(found.load, np.delete(load, 2, axis=1))


@pytest.mark.parametrize(
    ("after_iteration", "stays"), [(0, False), (3, False), (4, True), (9, True), (None, True)]
)
def test_a_table_of_a_step_that_a_run_goes_back_behind_is_set_aside(
    tmp_path: Path, after_iteration: int | None, stays: bool
) -> None:
    """Also by a run that counts none."""
    ExpertsFile(tmp_path, 0).line(replace(record_of(experts_of(EVEN)), iteration=4))
    written = read_experts(tmp_path)
    assert written is not None
    open_publisher(
        tmp_path, None, None, "token", lambda text: None, after_iteration=after_iteration
    ).close()
    assert read_experts(tmp_path) == (written if stays else None)
    aside = tmp_path / DISCARDED_FILE
    assert aside.exists() != stays
    if not stays:
        assert ExpertsTable.model_validate_json(aside.read_bytes()) == written


def test_the_file_of_many_domains_holds_the_largest() -> None:
    names = tuple(f"d{number}" for number in range(300))
    load = np.ones((16, 300, 128), dtype=np.int64)
    load[:, 250:] = 5
    table = table_of(experts_of(load, names), names, 1)
    assert len(table.domains) == MOST // (16 * 128) == 128
    assert set(names[250:]) < set(table.domains)


FOREIGN = '{"iteration": 1, "topk": 2, "layers": [1], "domains": ["a"], "load": [[[1], [2]]]}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Invalid JSON"),
        ("[" * 10_000, "Invalid JSON"),
        ("[]", "object"),
        (FOREIGN, "load should have a row for each domain of each layer"),
        (
            FOREIGN.replace("[1]", "[1, 2]", 1).replace("[[[1], [2]]]", "[[[1]], [[1,2]]]"),
            "load should have as many experts in each row",
        ),
        (FOREIGN.replace("[[[1], [2]]]", "[[[-1]]]"), "load.0.0.0: Input should be greater"),
    ],
)
def test_a_foreign_file_is_left_out(text: str, words: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / EXPERTS_FILE).write_text(text, encoding="utf-8")
    assert read_experts(tmp_path) is None
    said = " ".join(capsys.readouterr().out.split())
    assert "is left out" in said and words in said


# The alarm.


def few(share: float) -> np.ndarray[Any, Any]:
    """The second domain's tokens: this much of them to the first two of eight experts."""
    load = EVEN.copy()
    load[:, 1] = round(800 * (1 - share) / 6)
    load[:, 1, :2] = round(800 * share / 2)
    return load


def ask(run: MadeUpRun, load: np.ndarray[Any, Any] | None) -> list[Any]:
    experts = None if load is None else experts_of(load)
    return run.step(experts=experts)


def test_few_experts() -> None:
    run = MadeUpRun(only("few_experts", few_experts={"steps": 20}), Known())
    assert not [found for _ in range(20) for found in ask(run, few(0.97))], "too early"
    assert not [found for _ in range(5) for found in ask(run, EVEN)]
    assert not ask(run, few(0.97)) + ask(run, None) + ask(run, few(0.97))
    (finding,) = ask(run, few(0.97))
    assert (finding.rule, finding.domain) == ("few_experts", NAMES[1])
    assert finding.evidence["used"] < 3 < 7 < finding.evidence["used_by_all"]
    assert "of 8" in finding.message and "expert 0" in finding.message
    json.dumps(finding.evidence)
    assert not [found for _ in range(50) for found in ask(run, few(0.97))], "told once"


@pytest.mark.parametrize(
    "load",
    [
        few(0.7),  # it prefers two experts, and uses all
        few(0.97) // 40,  # hardly any tokens
        EVEN[..., :2],  # two experts of two
    ],
    ids=["a preference", "few tokens", "no choice"],
)
def test_no_alarm(load: np.ndarray[Any, Any]) -> None:
    run = MadeUpRun(Watching(alarms={"few_experts": {"steps": 0}}), Known())
    assert not [found for _ in range(20) for found in ask(run, load)]
