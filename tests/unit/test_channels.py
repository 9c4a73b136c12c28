"""Channels of documents: their files, the domains that they become, and the sums of parents."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.prefixes import write_prefix
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from domain_pretrain.config import DomainConfig
from domain_pretrain.data import channels
from domain_pretrain.data.catalog import Catalog
from domain_pretrain.data.channels import (
    Channels,
    DocumentDomains,
    leaves_of,
    read_channels,
)
from domain_pretrain.data.domain import Domain
from domain_pretrain.data.index import Index
from domain_pretrain.data.origin import ById, ByToken
from domain_pretrain.data.reading import Reading
from domain_pretrain.errors import ConfigError, IntegrityError, UnsupportedError
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.ledger import Ledger
from domain_pretrain.flow.loss import count
from domain_pretrain.flow.microbatch import Microbatch
from domain_pretrain.flow.tap import DOMAIN_ID, BatchTap, Source
from domain_pretrain.hosts.channels import WithDomains, with_domains
from domain_pretrain.hosts.known import known_of
from domain_pretrain.kernels.domain_reduce import select
from domain_pretrain.records.metrics_file import metrics_entry
from domain_pretrain.records.record import Record
from domain_pretrain.records.scalars import scalar_values
from domain_pretrain.records.tensorboard import TensorBoard
from domain_pretrain.report.history import History
from domain_pretrain.report.table import summarise_parents
from domain_pretrain.section import parse
from domain_pretrain.stats import SCALE, Column, DomainStats

NAMES = ["news/daily", "Filings 10-K", "news/weekly"]


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """Five documents of three channels."""
    prefix = str(tmp_path / "finance")
    write_prefix(prefix, [8, 3, 5, 2, 9])
    np.save(f"{prefix}.channels.npy", np.array([0, 1, 0, 2, 1], np.int16))
    manifest = {"channels": [{"name": name, "documents": 1} for name in NAMES]}
    Path(f"{prefix}.manifest.json").write_text(json.dumps(manifest), "utf-8")
    return prefix


def read(prefix: str) -> Channels:
    return Channels.read(prefix, Index.read(prefix))


def test_domains_without_a_yardstick_are_told_of(
    prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A manifest has the entropy of a file, not of the channels within it."""
    blend = ([prefix], None)
    whole = Catalog.build(blend, None, {"finance": Domain(data=[prefix])})
    reading = Reading.check(blend, None, "1,0,0", 4, whole.prefixes, files=True)
    catalog = whole.parted({prefix: read(prefix)})
    for alarms, told in ((["spike"], False), (["dirty"], True)):
        known = known_of(DomainConfig(), catalog, reading, None, seq_length=4, alarms=alarms)
        assert not known.entropy
        assert ("finance/news/daily, finance/Filings" in capsys.readouterr().out) == told


def test_channels_are_spelled_as_domains(prefix: str) -> None:
    assert read(prefix).names == ("news/daily", "Filings_10-K", "news/weekly")


def test_channels_that_do_not_fit_are_errors(prefix: str) -> None:
    numbers = Path(f"{prefix}.channels.npy")
    manifest = Path(f"{prefix}.manifest.json")

    def refused(message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            read(prefix)

    np.save(numbers, np.array([0, 1, 0, 2], np.int16))
    refused(r"holds int16 \[4\], and the data has 5 documents: it is of other data")
    np.save(numbers, np.array([0, 1, 0, 2, 1], np.int64))
    refused(r"holds int64 \[5\]")
    numbers.write_bytes(b"not an array")
    refused("cannot be read")
    numbers.unlink()
    refused("channels.npy' is not there, and the config says `channels: true`")
    np.save(numbers, np.array([0, 1, 0, 2, 1], np.int16))
    for broken in ({}, {"channels": []}, {"channels": [{"name": 3}]}, [], {"channels": ["a"]}):
        manifest.write_text(json.dumps(broken), "utf-8")
        refused("has no 'channels' with a name each")
    twice = {"channels": [{"name": "a b"}, {"name": "a_b"}, {"name": "c"}]}
    manifest.write_text(json.dumps(twice), "utf-8")
    refused("has no 'channels' with a name each")
    manifest.unlink()
    refused("manifest.json' is not there")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(3, "has the numbers 0 to 3, and .* has 3 channels"), (-1, "has the numbers -1 to 2")],
)
def test_numbers_of_no_channel_are_errors(prefix: str, wrong: int, message: str) -> None:
    read(prefix).check_numbers()
    other = f"{prefix}2"
    write_prefix(other, [8, 3, 5, 2, 9])
    shutil.copy(f"{prefix}.manifest.json", f"{other}.manifest.json")
    np.save(f"{other}.channels.npy", np.array([0, 1, wrong, 2, 1], np.int16))
    with pytest.raises(ConfigError, match=message):
        read(other).check_numbers()


def test_only_domains_that_ask_for_it_have_channels(prefix: str) -> None:
    indices = {prefix: Index.read(prefix)}
    asking = {"finance": Domain(data=[prefix], channels=True)}
    assert read_channels(asking, {prefix: "finance"}, indices).keys() == {prefix}
    silent = {"finance": Domain(data=[prefix])}
    assert read_channels(silent, {prefix: "finance"}, indices) == {}
    assert read_channels({}, {prefix: "finance"}, indices) == {}
    with pytest.raises(ConfigError, match="'s3://bucket/finance' is not on this machine's disk"):
        read_channels(asking, {"s3://bucket/finance": "finance"}, indices)


def test_channels_become_domains_where_their_domain_stood(prefix: str) -> None:
    other = str(Path(prefix).with_name("more"))
    catalog = Catalog(
        ("general", "finance", "code"),
        (ById((0, 1, 1, 2)), ById((0, 1, 1, 2)), None),
        {"/general": "general", prefix: "finance", other: "finance", "/code": "code"},
    )
    more = Channels(Path("more.npy"), ("chats", "news/daily"))
    parted = catalog.parted({prefix: read(prefix), other: more})
    assert parted.names == (
        "general",
        "finance/news/daily",
        "finance/Filings_10-K",
        "finance/news/weekly",
        "finance/chats",
        "code",
    )
    assert parted.splits == (ByToken(), ByToken(), None)
    assert parted.prefixes == catalog.prefixes
    assert parted.documents["/general"] == DocumentDomains(None, (0,))
    assert parted.documents[prefix].domains == (1, 2, 3)
    assert parted.documents[other].domains == (4, 1)
    documents = np.array([4, 0, 3])
    assert parted.documents[prefix].of(documents).tolist() == [2, 1, 3]
    assert parted.documents["/code"].of(documents).tolist() == [5, 5, 5]
    assert leaves_of("finance", parted.names) == list(parted.names[1:5])
    assert leaves_of("code", parted.names) == ["code"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"channel_loss": {"average": "sample"}}, "channel_loss.average: sample"),
        ({"evaluate": {"samples": 8}}, "evaluate.samples"),
        ({"mix": {"dynamic": {"strategy": "linupper"}}}, "mix.dynamic"),
        ({"reweight": {"scope": "microbatch"}}, "reweight.scope: microbatch"),
    ],
)
def test_what_is_about_whole_samples_is_refused(more: dict[str, Any], reason: str) -> None:
    domains = {"finance": {"data": ["finance"], "channels": True}}
    with pytest.raises(ConfigError, match=f"domain 'finance' has channels, .*{reason}"):
        parse(DomainConfig, {"domains": domains, **more})
    domains["finance"]["channels"] = False
    parse(DomainConfig, {"domains": domains, **more})


# What the host builds.


class Windows:
    """A ``GPTDataset`` as far as it is looked at: windows over a row of documents."""

    def __init__(self, prefix: str, lengths: list[int], seq_length: int, seed: int) -> None:
        self.dataset_path = prefix
        self.dataset = SimpleNamespace(sequence_lengths=np.array(lengths, np.int32))
        self.config = SimpleNamespace(add_extra_token_to_sequence=True)
        order = np.random.default_rng(seed).permutation(len(lengths))
        self.document_index = order.astype(np.int32)
        # Each token of the row of documents, as (place of its document, place in it).
        self.row = [(at, k) for at, d in enumerate(order) for k in range(lengths[d])]
        count = (len(self.row) - 1) // seq_length
        self.sample_index = np.array([self.row[i * seq_length] for i in range(count + 1)])
        self.shuffle_index = np.random.default_rng(seed + 1).permutation(count)
        self.seq_length = seq_length

    def __len__(self) -> int:
        return len(self.shuffle_index)

    def targets(self, index: int) -> list[int]:
        """The document of every predicted token, by the row."""
        first = int(self.shuffle_index[index]) * self.seq_length
        span = self.row[first + 1 : first + self.seq_length + 1]
        return [int(self.document_index[at]) for at, _ in span]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"tokens": torch.zeros(self.seq_length, dtype=torch.int64)}


@given(
    lengths=st.lists(st.integers(1, 9), min_size=3, max_size=12),
    seq_length=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_every_target_has_the_domain_of_its_document(
    lengths: list[int], seq_length: int, seed: int
) -> None:
    if sum(lengths) <= seq_length:
        return
    windows = Windows("x", lengths, seq_length, seed)
    table = np.arange(len(lengths)) % 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channels, "_mapped", lambda path: table.astype(np.int16))
        found = WithDomains(windows, DocumentDomains(Path("x.npy"), (7, 5, 9)))
        for index in range(len(found)):
            expected = [(7, 5, 9)[table[document]] for document in windows.targets(index)]
            assert found[index][DOMAIN_ID].tolist() == expected
            assert found[index][DOMAIN_ID].dtype == np.int16


def test_blends_and_lists_are_reached_and_sent_to_workers() -> None:
    documents = {"/a": DocumentDomains(None, (0,)), "/b": DocumentDomains(None, (1,))}
    blend = SimpleNamespace(datasets=[Windows("/a", [5, 5], 4, 0), Windows("/b", [5, 5], 4, 0)])
    single = Windows("/b", [5, 5], 4, 0)
    train, valid, test = with_domains((blend, [single, None], None), documents)
    assert train is blend and test is None and valid[1] is None
    assert train.datasets[1][0][DOMAIN_ID].tolist() == [1] * 4
    sent = pickle.loads(pickle.dumps(valid[0]))
    assert len(sent) == 2 and sent[1][DOMAIN_ID].tolist() == [1] * 4
    assert sent.dataset_path == "/b", "what else it is asked for is the host's"
    with pytest.raises(UnsupportedError, match="reads its data by SimpleNamespace"):
        with_domains(SimpleNamespace(), documents)


# What is made of a batch.

SOURCE = Source(ByToken())
CPU = torch.device("cpu")


def tapped(mask: torch.Tensor, domain_id: torch.Tensor | None) -> BatchTap:
    batch = {"loss_mask": mask, "dataset_id": torch.tensor([0, 3])}
    if domain_id is not None:
        batch[DOMAIN_ID] = domain_id
    tap = BatchTap(iter([batch]))
    assert set(next(tap)) == {"loss_mask"}, "the host sees what it knows"
    return tap


def test_rows_know_the_domain_of_each_token() -> None:
    mask = torch.tensor([[1.0, 1, 0, 1], [0, 0, 0, 1]])
    ids = torch.tensor([[2, 2, 1, 0], [4, 4, 4, 0]], dtype=torch.int16)
    rows = tapped(mask, ids).rows(SOURCE, CPU)
    assert rows.by_token is not None and rows.present is not None
    assert torch.equal(rows.by_token, ids.int())
    assert rows.present.tolist() == [0, 2, 0], "of masked tokens nothing is counted"
    assert rows.tokens.tolist() == [3, 1]
    microbatch = Microbatch.build(torch.rand(2, 4), mask, rows, Groups())
    inputs = microbatch.inputs()
    assert torch.equal(inputs.ids, ids.int())
    assert inputs.inverse_row_tokens is not None
    assert torch.allclose(inputs.inverse_row_tokens[:, 0], torch.tensor([1 / 3, 1.0]))


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_context_parallel_rank_knows_the_domains_of_its_tokens(rank: int, joined: bool) -> None:
    """By position; rows that the host joined are cut as one. The samples are counted once."""
    ids, mask = torch.arange(16).view(2, 8) // 3, torch.ones(2, 8)
    ids[1] = 5
    rows = tapped(mask, ids).rows(SOURCE, CPU)
    if joined:
        held = [[0, 1, 2, 3, 12, 13, 14, 15], [4, 5, 6, 7, 8, 9, 10, 11]][rank]
        expected = ids.flatten()[held][None]
    else:
        expected = ids[:, [[0, 1, 6, 7], [2, 3, 4, 5]][rank]]
    groups = Groups(cp_size=2, cp_rank=rank)
    losses = torch.rand(expected.shape)
    microbatch = Microbatch.build(losses, torch.ones(expected.shape), rows, groups)
    assert microbatch.ids().tolist() == expected.tolist()
    ledger = Ledger(6, groups, CPU)
    count(select("reference"), ledger, microbatch, None)
    found = ledger.sums[0]
    assert found[:, Column.SAMPLES].tolist() == ([1, 1, 1, 0, 0, 1, 0] if rank == 0 else [0] * 7)
    tokens = torch.bincount(expected.flatten(), minlength=7) * SCALE[Column.TOKENS]
    assert torch.equal(found[:, Column.TOKENS], tokens)


@pytest.mark.parametrize("domain_id", [None, torch.zeros(2, 3, dtype=torch.int16)])
def test_batches_that_do_not_tell_are_stopped(domain_id: torch.Tensor | None) -> None:
    found = "no" if domain_id is None else r"a \(2, 3\)"
    with pytest.raises(IntegrityError, match=f"the batch carries {found} domain_id"):
        tapped(torch.ones(2, 4), domain_id).rows(SOURCE, CPU)


# Parents.


def test_parents_are_the_sums_of_their_parts() -> None:
    names = ("a/b/c", "plain", "a/b/d", "a/e", "x/y")
    sums = np.zeros((6, len(Column)), np.int64)
    for row, (loss, tokens) in enumerate([(8, 4), (5, 5), (1, 2), (9, 3), (0, 0)]):
        sums[row, Column.LOSS] = loss * SCALE[Column.LOSS]
        sums[row, Column.TOKENS] = tokens * SCALE[Column.TOKENS]
    stats = DomainStats(names, sums)
    found = {name: (totals.loss_sum, totals.tokens) for name, totals in stats.parents()}
    assert found == {"a": (18, 9), "a/b": (9, 6)}
    record = Record("train", 1, 8, stats)
    assert metrics_entry(record, "token")["parents"] == {
        "a": {"loss": 2.0, "loss_sum": 18.0, "tokens": 9},
        "a/b": {"loss": 1.5, "loss_sum": 9.0, "tokens": 6},
    }
    values = scalar_values(record, "token")
    assert values["channel-loss/a"] == 2.0 and values["channel-loss/a/b/c"] == 2.0
    assert values["channel-tokens/a"] == pytest.approx(9 / 14)
    flat = DomainStats(("plain",), sums[[1, 5]])
    assert "parents" not in metrics_entry(Record("train", 1, 8, flat), "token")


def test_a_domain_with_the_name_of_a_parent_is_a_part_of_it(tmp_path: Path) -> None:
    """It keeps its own curves, and those of all of them have another name."""
    names = ("news", "news/uk", "news/us")
    sums = np.zeros((4, len(Column)), np.int64)
    for row, (loss, tokens) in enumerate([(8, 2), (1, 1), (3, 1)]):
        sums[row, Column.LOSS] = loss * SCALE[Column.LOSS]
        sums[row, Column.TOKENS] = tokens * SCALE[Column.TOKENS]
    record = Record("train", 1, 8, DomainStats(names, sums))
    entry = metrics_entry(record, "token")
    assert entry["parents"] == {"news": {"loss": 3.0, "loss_sum": 12.0, "tokens": 4}}
    assert entry["domains"]["news"]["loss"] == 4.0
    values = scalar_values(record, "token")
    assert values["channel-loss/news"] == 4.0 and values["channel-loss/news (all)"] == 3.0
    assert values["channel-tokens/news"] == 0.5
    host = SummaryWriter(str(tmp_path))
    board = TensorBoard(host, "token", print, after_iteration=0, hyperparameters={}, config={})
    board.scalars(record)
    board.close()
    host.close()
    for folder, expected in (("news", 4.0), ("news/uk", 1.0), ("news__all_", 3.0)):
        events = EventAccumulator(str(tmp_path / "domains" / folder)).Reload()
        assert events.Scalars("channel/loss")[0].value == expected
    history = History(domains=[*names])
    history.add(entry)
    (parent,) = summarise_parents(history)
    assert (parent.domain, parent.tokens) == ("news/…", 4)
