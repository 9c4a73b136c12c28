"""A run of TensorBoard for each domain; the config and what one compares runs by in their tabs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.board import points
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter

from domain_pretrain.adapt.load import describe
from domain_pretrain.records.charts import charts
from domain_pretrain.records.panels import workspace
from domain_pretrain.records.publisher import open_publisher
from domain_pretrain.records.record import Record
from domain_pretrain.records.tensorboard import RUNS_UP_TO, folders
from domain_pretrain.stats import SCALE, Column, DomainStats


@pytest.fixture(autouse=True)
def ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads files by name: those of one second and one process by a number, whose
    digits are not padded, so that the tenth would come before the ninth."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100))


def record(
    step: int, *names: str, split: Any = "train", loss: float = 2.0, **fields: Any
) -> Record:
    """16 tokens of each; a name with a ``-`` before it has none."""
    sums = np.zeros((len(names) + 1, len(Column)), dtype=np.int64)
    there = [not name.startswith("-") for name in names]
    sums[:-1, Column.TOKENS] = np.array(there) * 16 * SCALE[Column.TOKENS]
    sums[:-1, Column.LOSS] = np.array(there) * round(16 * loss * SCALE[Column.LOSS])
    stats = DomainStats(tuple(name.removeprefix("-") for name in names), sums)
    return Record(split, step, 8 * step, stats, **fields)


def publish(
    folder: Path, *records: Record, after: int | None = 0, writer: Any = None, **given: Any
) -> list[str]:
    """What one process writes; the notes it prints."""
    notes: list[str] = []
    host = writer or SummaryWriter(str(folder))
    publisher = open_publisher(
        None, host, None, "token", notes.append, after_iteration=after, **given
    )
    for one in records:
        publisher.scalars(one)
    publisher.close()
    host.close()
    return notes


def runs(folder: Path) -> dict[str, set[str]]:
    """Folder → tags of points in it."""
    return {
        str(path.relative_to(folder)): set(
            EventAccumulator(str(path)).Reload().Tags()["scalars"],
        )
        for path in {path.parent for path in folder.rglob("events.*")}
    }


def test_each_domain_is_a_run_with_the_same_tags(tmp_path: Path) -> None:
    """Nothing is written twice; what is about all domains stays in the host's own run."""
    numbers = {"finance": 1.0, "news": 1.0}
    window = record(
        1,
        "finance",
        "news",
        "-absent",
        weights=numbers,
        reweighting={"weighted_loss": 2.0},
        host={"grad_norm": 1.0, "max_attention_logit": 7.5},
    )
    publish(tmp_path, window, record(1, "finance", "news", "-absent", split="valid"))
    tags = {f"channel/{name}" for name in ("loss", "ppl", "tokens", "samples", "weight")}
    own = tags | {"channel/loss-valid", "channel/ppl-valid"}
    assert runs(tmp_path) == {
        ".": {"reweighting/weighted-loss", "host/max-attention-logit"},
        "domains/finance": own,
        "domains/news": own,
    }
    assert points(tmp_path)["channel-loss/finance"] == [(1, 2.0)]


def test_experts_have_a_section_of_their_own(tmp_path: Path) -> None:
    load = np.array([[[3, 1], [0, 0]]])
    experts = describe(("finance", "news"), [1], 1, load, load.sum(axis=-1), np.zeros((1, 2)))
    publish(tmp_path, record(1, "finance", "news", experts=experts), record(2, "finance", "news"))
    found = runs(tmp_path)
    numbers = ("entropy", "used", "load", "router")
    assert found["domains/finance"] >= {f"expert/{name}" for name in numbers}
    assert not [tag for tag in found["domains/news"] if tag.startswith("expert")]
    assert found["."] == {f"experts/{name}" for name in numbers}
    assert points(tmp_path)["expert-load/finance"] == [(1, 1.5)]


def test_what_domains_are_parts_of_is_a_run_above_theirs(tmp_path: Path) -> None:
    publish(tmp_path, record(1, "a/b", "a/c"))
    assert runs(tmp_path).keys() == {".", "domains/a", "domains/a/b", "domains/a/c"}
    assert points(tmp_path)["channel-tokens/a"] == [(1, 1.0)]


@pytest.mark.parametrize("count", [RUNS_UP_TO, RUNS_UP_TO + 1])
def test_so_many_domains_are_runs_and_more_are_tags(tmp_path: Path, count: int) -> None:
    names = [f"d{number}" for number in range(count)]
    publish(tmp_path, record(1, *names))
    assert len(runs(tmp_path)) == (count + 1 if count == RUNS_UP_TO else 1)
    assert points(tmp_path).keys() >= {f"channel-loss/{name}" for name in names}
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert ("custom_scalars__config__" in tags["tensors"]) == (count > RUNS_UP_TO)


def test_a_mirror_gets_names_with_the_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who listens at the class takes tags for curves, as SwanLab does: one file says all."""
    original, heard = SummaryWriter.add_scalar, {}

    def add_scalar(self: Any, tag: str, value: float, *given: Any) -> None:
        heard[tag] = value
        original(self, tag, value, *given)

    monkeypatch.setattr(SummaryWriter, "add_scalar", add_scalar)
    publish(tmp_path, record(1, "finance", "news"))
    assert {"channel-loss/finance", "channel-loss/news"} <= heard.keys()
    assert runs(tmp_path).keys() == {"."}


def test_another_writer_gets_everything_itself(tmp_path: Path) -> None:
    class Other:
        def __init__(self) -> None:
            self.tags: set[str] = set()

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self.tags.add(tag)

        def close(self) -> None:
            pass

    writer = Other()
    notes = publish(tmp_path, record(1, "finance"), writer=writer, config={"a": 1})
    assert "channel-loss/finance" in writer.tags
    assert "Custom Scalars" in notes[0]


def test_a_resumed_run_shows_no_point_twice(tmp_path: Path) -> None:
    """As in the metrics file: what came after the checkpoint makes way."""
    names = ("finance", "late")
    first = [record(step, "finance", "-late", loss=step) for step in (0, 1, 2, 3)]
    publish(tmp_path, *first, record(4, *names, loss=4))
    publish(tmp_path, *(record(step, *names, loss=9) for step in (3, 5)), after=2)
    found = points(tmp_path)
    assert found["channel-loss/finance"] == [(0, 0), (1, 1), (2, 2), (3, 9), (5, 9)]
    assert found["channel-loss/late"] == [(3, 9), (5, 9)]
    publish(tmp_path, record(7, *names, split="valid"), after=None)  # it only evaluates
    assert points(tmp_path)["channel-loss/finance"] == found["channel-loss/finance"]
    publish(tmp_path, record(0, *names, loss=7), after=0)
    assert points(tmp_path)["channel-loss/finance"] == [(0, 7)], "a new run"


@pytest.mark.parametrize("again", ["finance", "many"])
def test_points_of_a_domain_that_does_not_come_again_make_way_too(
    tmp_path: Path, again: str
) -> None:
    """Also where the domains have become too many for a run each."""
    names = ("finance", "a/dirty", "a/b")
    publish(tmp_path, *(record(step, *names, loss=step) for step in (1, 2, 3, 4)))
    others = ["finance"] if again == "finance" else [f"d{n}" for n in range(RUNS_UP_TO + 1)]
    publish(tmp_path, record(3, *others, loss=9), after=2)
    found = points(tmp_path)
    assert found["channel-loss/a/dirty"] == [(1, 1), (2, 2)]
    assert found["channel-loss/a"] == [(1, 1), (2, 2)]
    publish(tmp_path, record(1, *others, loss=7), after=0)
    assert "channel-loss/a/dirty" not in {tag for tag, its in points(tmp_path).items() if its}


def test_a_domain_that_comes_again_later_keeps_what_it_then_has(tmp_path: Path) -> None:
    """In the file with the mark: a second one may have a name that is read before the first."""
    publish(tmp_path, *(record(step, "finance", "late", loss=step) for step in (1, 2, 3, 4)))
    resumed = [
        record(3, "finance", "-late", loss=9),
        record(4, "finance", "-late", loss=9),
        record(5, "finance", "late", loss=9),
    ]
    publish(tmp_path, *resumed, after=2)
    found = points(tmp_path)
    assert found["channel-loss/finance"] == [(1, 1), (2, 2), (3, 9), (4, 9), (5, 9)]
    assert found["channel-loss/late"] == [(1, 1), (2, 2), (5, 9)]
    assert len(list((tmp_path / "domains" / "late").iterdir())) == 2


def test_the_last_evaluation_is_on_disk_before_anything_is_closed(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path), flush_secs=3600)
    publisher = open_publisher(None, writer, None, "token", after_iteration=0)
    publisher.scalars(record(10, "finance", split="valid", final=True))
    assert points(tmp_path)["channel-loss-valid/finance"] == [(10, 2.0)]
    publisher.close()
    writer.close()


# --- folders ----------------------------------------------------------------------------------


def test_names_stay_as_they_are() -> None:
    names = ("general", "finance/10-K_filings", "金融/新聞", "v0.1")
    found = folders(names)
    assert all(found[name] == name for name in names)
    assert found["finance"] == "finance"


@given(
    st.lists(st.text(min_size=1) | st.sampled_from(["..", "a", "A", "ß", "ss", "/", "a/", "a/.."]))
)
def test_folders_are_below_and_apart_on_any_file_system(names: list[str]) -> None:
    found = folders(names)
    assert found.keys() >= set(names)
    assert len({folder.casefold() for folder in found.values()}) == len(found)
    for folder in found.values():
        parts = folder.split("/")
        assert not os.path.isabs(folder) and not {"", ".", ".."} & set(parts)
        assert all(len(os.fsencode(part)) <= 255 for part in parts)
        assert not any(character in folder for character in '\\:*?"<>|\0\n')


# --- tabs -------------------------------------------------------------------------------------


def test_settings_are_in_their_tabs(tmp_path: Path) -> None:
    config = {"domains.finance.weight": 0.5, "domains.finance.data": ["金融"], "mix.seed": None}
    flags = {"lr": 1e-3, "train_iters": 100, "optimizer": "adam", "clip_grad": float("inf")}
    publish(tmp_path, after=7, hyperparameters=flags, config=config)
    events = EventAccumulator(str(tmp_path)).Reload()
    started = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = HParamsPluginData.FromString(started).session_start_info.hparams
    assert {name: value.WhichOneof("kind") for name, value in hparams.items()} == {
        "lr": "number_value",
        "train_iters": "number_value",
        "optimizer": "string_value",
        "domains.finance.weight": "number_value",
    }
    (text,) = events.Tensors("domain_pretrain/text_summary")
    assert text.step == 7
    (content,) = text.tensor_proto.string_val
    assert content.decode() == (
        "```yaml\ndomains.finance.weight: 0.5\ndomains.finance.data:\n- 金融\nmix.seed: null\n```"
    )


def test_without_training_the_tabs_stay_as_they_are(tmp_path: Path) -> None:
    publish(tmp_path, after=None, hyperparameters={"lr": 1.0}, config={"a": 1})
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["tensors"] == []


# --- W&B --------------------------------------------------------------------------------------


def test_wandb_has_a_panel_for_each_chart() -> None:
    pytest.importorskip("wandb_workspaces")
    found = workspace("team", "project")
    panels = {
        (section.name, panel.title): panel.metric_regex
        for section in found.sections
        for panel in section.panels
    }
    assert panels == {
        (category, title): f"^{pattern}"
        for category, content in charts(weights=True, mix=True).items()
        for title, (_, (pattern,)) in content.items()
    }
