from __future__ import annotations

import errno
import fcntl
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.board import points
from support.metrics import counted, windows
from torch.utils.tensorboard import SummaryWriter

from domain_pretrain import file_lock
from domain_pretrain.errors import ConfigError, WriterError
from domain_pretrain.records.charts import charts
from domain_pretrain.records.compact import WIDE_UP_TO
from domain_pretrain.records.console import say
from domain_pretrain.records.exporter import Publisher
from domain_pretrain.records.metrics_file import metrics_entry
from domain_pretrain.records.publisher import open_publisher
from domain_pretrain.records.reader import METRICS_FILE, MetricsTail, read_events, read_metrics
from domain_pretrain.records.record import Event, Record
from domain_pretrain.records.scalars import scalar_values
from domain_pretrain.records.writer import DISCARDED_FILE, LinesFile, check_log_dir
from domain_pretrain.stats import SCALE, Average, Column, DomainStats
from domain_pretrain.watch import Reading, Watch
from domain_pretrain.watch.section import Watching


def stats(**domains: tuple[float, float] | tuple[float, float, int]) -> DomainStats:
    """``name=(loss, tokens[, nonfinite tokens])``; every sample is as good as the mean."""
    sums = np.zeros((len(domains) + 1, len(Column)), dtype=np.int64)
    for row, (loss, tokens, *nonfinite) in enumerate(domains.values()):
        samples = math.ceil(tokens / 16)
        sums[row, Column.LOSS] = round(loss * tokens * SCALE[Column.LOSS])
        sums[row, Column.TOKENS] = round(tokens * SCALE[Column.TOKENS])
        sums[row, Column.SAMPLES] = samples
        sums[row, Column.SAMPLE_LOSS] = round(loss * samples * SCALE[Column.SAMPLE_LOSS])
        sums[row, Column.NONFINITE] = nonfinite[0] if nonfinite else 0
    return DomainStats(tuple(domains), sums)


def record(iteration: int, split: str = "train", **fields: Any) -> Record:
    fields.setdefault("stats", stats(finance=(2.0, 64), general=(1.0, 32), absent=(0, 0)))
    return Record(split, iteration, 8 * iteration, **fields)


class Lines(list[str]):
    __call__ = list.append


def publisher(log_dir: Path | None = None, **fields: Any) -> tuple[Publisher, Lines]:
    out = Lines()
    defaults = {"tensorboard": None, "wandb": None, "average": "token", "after_iteration": 0}
    return open_publisher(log_dir, out=out, **{**defaults, **fields}), out


def written(tmp_path: Path, *records: Record, **fields: Any) -> list[dict[str, Any]]:
    publish, _ = publisher(tmp_path, **fields)
    for item in records:
        publish.line(item)
    publish.close()
    return windows(tmp_path)


# --- domain_metrics.jsonl ---------------------------------------------------------------------


def test_a_line_holds_the_exact_sums_and_omits_absent_domains(tmp_path: Path) -> None:
    third = round(2**24 / 3) / 2**24  # a mask of 1/3 on the fixed-point grid
    window = stats(finance=(2.125, 64), general=(1.0, third), absent=(0, 0))
    (entry,) = written(
        tmp_path,
        record(
            10,
            stats=window,
            consumed_tokens={"finance": 640.0, "general": 0.5, "absent": 9.0},
            consumed_domain_samples={"finance": 40, "general": 1, "absent": 1},
        ),
    )
    assert entry == {
        "iteration": 10,
        "consumed_samples": 80,
        "split": "train",
        "lm_loss": (2.125 * 64 + third) / (64 + third),
        "domains": {
            "finance": {
                "loss": 2.125,
                "loss_sum": 136.0,
                "tokens": 64,
                "samples": 4,
                "consumed_tokens": 640,
                "consumed_samples": 40,
            },
            "general": {
                "loss": 1.0,
                "loss_sum": third,
                "tokens": third,
                "samples": 1,
                "consumed_tokens": 0.5,
                "consumed_samples": 1,
            },
        },
    }


@given(loss_sum=st.integers(-(2**53), 2**53), tokens=st.integers(1, 2**53))
def test_sums_come_back_from_the_file_bit_by_bit(
    tmp_path_factory: pytest.TempPathFactory, loss_sum: int, tokens: int
) -> None:
    sums = np.zeros((2, len(Column)), dtype=np.int64)
    sums[0, Column.LOSS], sums[0, Column.TOKENS] = loss_sum, tokens
    (entry,) = written(
        tmp_path_factory.mktemp("log"), record(1, stats=DomainStats(("finance",), sums))
    )
    finance = entry["domains"]["finance"]
    assert finance["loss_sum"] * 2**24 == loss_sum
    assert finance["tokens"] * 2**24 == tokens
    assert finance["loss"] == finance["loss_sum"] / finance["tokens"]


def test_non_finite_losses_are_null_and_counted(tmp_path: Path) -> None:
    (entry,) = written(tmp_path, record(1, stats=stats(good=(1.0, 16), bad=(2.0, 32, 3))))
    assert entry["lm_loss"] is None
    assert entry["domains"]["bad"]["loss"] is None
    assert entry["domains"]["bad"]["nonfinite"] == 3
    assert entry["domains"]["good"] == {"loss": 1.0, "loss_sum": 16.0, "tokens": 16, "samples": 1}


def test_a_window_without_tokens_has_a_line_without_domains(tmp_path: Path) -> None:
    (entry,) = written(tmp_path, record(1, stats=stats(finance=(0, 0))))
    assert entry["lm_loss"] is None
    assert entry["domains"] == {}


def test_the_sample_average_keeps_lm_loss_a_mean_over_tokens(tmp_path: Path) -> None:
    window = stats(finance=(2.0, 64), general=(1.0, 32))
    window.sums[0, Column.SAMPLE_LOSS] = 3 * 4 * SCALE[Column.SAMPLE_LOSS]  # 4 samples of 3 nats
    (entry,) = written(tmp_path, record(1, stats=window), average="sample")
    assert entry["domains"]["finance"]["loss"] == 3.0
    assert entry["domains"]["finance"]["sample_loss_sum"] == 12.0
    assert entry["lm_loss"] == (128 + 32) / 96


def test_weights_and_final_are_there_only_when_they_say_something(tmp_path: Path) -> None:
    plain, weighted, final = written(
        tmp_path,
        record(1),
        record(2, weights={"finance": 1.5, "general": 0.5, "absent": 1.0}),
        record(2, split="test", final=True),
    )
    assert "weight" not in plain["domains"]["finance"] and "final" not in plain
    assert weighted["domains"]["finance"]["weight"] == 1.5
    assert final["final"] is True and final["split"] == "test"


def test_names_of_any_script_survive(tmp_path: Path) -> None:
    names = ["金融/a b", 'quote"\\', "no\udcffutf8", "line\nbreak\u2028"]
    (entry,) = written(tmp_path, record(1, stats=stats(**{name: (1.0, 16) for name in names})))
    assert list(entry["domains"]) == names
    assert len(read_metrics(tmp_path)) == 1


def test_a_line_is_on_its_way_to_disk_when_line_returns(tmp_path: Path) -> None:
    publish, _ = publisher(tmp_path)
    publish.line(record(1))
    assert [entry["iteration"] for entry in read_metrics(tmp_path)] == [1]
    publish.close()


def test_an_event_is_a_line_that_readers_of_losses_do_not_see(tmp_path: Path) -> None:
    events = [Event("resume", 20), Event("blend", 20, "金融 0.2, was 0.1")]
    publish, _ = publisher(tmp_path)
    publish.line(record(20))
    for event in events:
        publish.event(event)
    publish.line(record(30))
    publish.close()
    start = Event("start", 0)
    assert read_events(tmp_path) == [start, *events]
    assert [entry["iteration"] for entry in read_metrics(tmp_path)] == [20, 30]
    tail = MetricsTail(tmp_path).read()
    assert [entry["iteration"] for entry in tail] == [20, 30]

    # A run that resumes at 20 keeps what happened there; one from 10 never got there.
    LinesFile.open(tmp_path / METRICS_FILE, 20).close()
    assert read_events(tmp_path) == [start, *events]
    LinesFile.open(tmp_path / METRICS_FILE, 10).close()
    assert read_events(tmp_path) == [start]


@pytest.mark.parametrize("spoilt", [{"detail": 1}, {"event": None}, {"iteration": -1}])
def test_a_spoilt_event_is_left_out(
    tmp_path: Path, spoilt: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"event": "resume", "iteration": 0, "detail": ""}
    lines = [json.dumps(entry) + "\n" for entry in (whole, {**whole, **spoilt}, whole)]
    (tmp_path / METRICS_FILE).write_text("".join(lines))
    assert read_events(tmp_path) == [Event("resume", 0)] * 2
    assert "1 of 3 lines left out, line 2: " in capsys.readouterr().out


# --- many domains -----------------------------------------------------------------------------

MANY = {f"d{i:03}/金融": (1 + i / 1000, 16.0 * i) for i in range(WIDE_UP_TO + 1)}  # d000 is absent
BROKEN = {**MANY, "d007/金融": (1.0, 32.0, 3), "d008/金融": (0.0, 0.0, 3)}


@pytest.mark.parametrize("average", ["token", "sample"])
def test_a_line_of_many_domains_says_the_same_in_less(tmp_path: Path, average: Average) -> None:
    weights = {name: 1 + place / 3 for place, name in enumerate(MANY)}
    training: dict[str, Any] = {
        "consumed_tokens": {name: 1e9 + place for place, name in enumerate(MANY)},
        "consumed_domain_samples": dict.fromkeys(MANY, 12),
        "weights": weights,
        "shares": {**weights, "d009/金融": math.nan},
        "reweighting": {"weighted_loss": 1.25},
        "host": {"learning_rate": 1e-3},
    }
    all_there = {name: (2.0, 16.0) for name in MANY}
    records = [
        record(10, stats=stats(**MANY), **training),
        record(20, stats=stats(**BROKEN), **training),
        record(20, "valid", stats=stats(**all_there)),
        record(30, stats=stats(**dict.fromkeys(MANY, (0.0, 0.0))), **training),
        record(40, "test", stats=stats(**MANY), final=True),
    ]
    publish, _ = publisher(tmp_path, average=average)
    for item in records:
        publish.line(item)
    publish.close()
    wide = [metrics_entry(item, average) for item in records]
    header, *lines = (tmp_path / METRICS_FILE).read_bytes().splitlines()
    assert read_metrics(tmp_path) == json.loads(json.dumps(wide))
    assert json.loads(header)["domains"] == list(MANY)
    assert b"d001" not in b"".join(lines)
    assert len(lines[1]) < len(json.dumps(wide[1])) / 2
    assert MetricsTail(tmp_path).read() == read_metrics(tmp_path)


def test_the_lines_of_a_resumed_run_may_have_other_domains(tmp_path: Path) -> None:
    other = {**MANY, "new": (3.0, 16.0)}
    written(tmp_path, record(10, stats=stats(**MANY)), record(20, stats=stats(**MANY)))
    written(tmp_path, record(20, stats=stats(**other)), after_iteration=10)
    old, new = read_metrics(tmp_path)
    assert list(old["domains"]) == list(MANY)[1:]
    assert list(new["domains"]) == [*list(MANY)[1:], "new"]
    # What was cut can be read, too.
    (tmp_path / DISCARDED_FILE).rename(tmp_path / METRICS_FILE)
    (cut,) = read_metrics(tmp_path)
    assert (cut["iteration"], list(cut["domains"])) == (20, list(MANY)[1:])


def columns(**changes: Any) -> dict[str, Any]:
    whole = {"loss_sum": [1.0], "tokens": [1], "samples": [1], **changes}
    return {"iteration": 2, "split": "train", "columns": whole}


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [
        (columns(), "1 domains, which no line before it names"),
        ({**columns(), "present": [2]}, "1 domains, which no line before it names"),
        ({**columns(), "present": [-1]}, "present.0: Input should be greater"),
        ({**columns(), "present": [0, 0]}, "present should name each domain once"),
        ({**columns(), "columns": []}, "columns: Input should be a valid dict"),
        (columns(tokens=[1, 2]), "its columns should be of one length"),
        (columns(weight=[]), "its columns should be of one length"),
        (columns(tokens=[None]), "columns.tokens.0: Input should be a valid number"),
        (columns(weight=["x"]), "columns.weight.0: Input should be a valid number"),
        ({"event": "start", "iteration": 0, "detail": "", "domains": 1}, "domains: Input should"),
    ],
)
def test_a_spoilt_line_of_many_domains_is_left_out(
    spoilt: dict[str, Any], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = {"event": "start", "iteration": 0, "detail": "", "domains": ["a", "b"]}
    good = {**columns(), "present": [1]}
    lines = [json.dumps(line) + "\n" for line in (start, good, spoilt, good)]
    (tmp_path / METRICS_FILE).write_text("".join(lines))
    assert [list(entry["domains"]) for entry in read_metrics(tmp_path)] == [["b"], ["b"]]
    assert f"1 of 4 lines left out, line 3: {why}" in capsys.readouterr().out


# --- resume -----------------------------------------------------------------------------------

RUN = [
    record(10),
    record(20),
    record(20, split="valid"),
    # checkpoint of iteration 20
    record(30),
    record(40),
    record(40, split="valid"),
    # checkpoint of iteration 40, and training ends
    record(40, split="valid", final=True),
    record(40, split="test", final=True),
]


def keys(path: Path) -> list[tuple[int, str, bool]]:
    lines = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    lines = [line for line in lines if "event" not in line]
    return [(line["iteration"], line["split"], line.get("final", False)) for line in lines]


@pytest.mark.parametrize(
    ("after_iteration", "kept"),
    [(0, 0), (5, 0), (20, 3), (35, 4), (40, 6), (41, 8), (None, 8)],
)
def test_a_resumed_run_keeps_what_came_before_its_checkpoint(
    tmp_path: Path, after_iteration: int | None, kept: int
) -> None:
    written(tmp_path, *RUN)
    before = keys(tmp_path / METRICS_FILE)
    LinesFile.open(tmp_path / METRICS_FILE, after_iteration).close()
    assert keys(tmp_path / METRICS_FILE) == before[:kept]
    assert keys(tmp_path / DISCARDED_FILE) == before[kept:]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_metrics_file_elsewhere_stays_there(tmp_path: Path) -> None:
    written(tmp_path / "far", *RUN)
    link, target = tmp_path / METRICS_FILE, tmp_path / "far" / METRICS_FILE
    link.symlink_to(target)
    LinesFile.open(link, 20).close()
    assert link.is_symlink()
    assert len(keys(target)) == 3
    assert len(keys(tmp_path / DISCARDED_FILE)) == len(RUN) - 3


@pytest.mark.parametrize("killed_after", range(3, len(RUN) + 1))
def test_killed_and_resumed_equals_unbroken(tmp_path: Path, killed_after: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    written(whole, *RUN)
    written(broken, *RUN[:killed_after])
    checkpoint, rest = (20, RUN[3:]) if killed_after < 6 else (40, RUN[6:])
    written(broken, *rest, after_iteration=checkpoint)
    assert counted(broken) == counted(whole)
    assert read_events(broken) == [Event("start", 0), *[Event("resume", checkpoint)] * bool(rest)]


def test_a_line_at_iteration_zero_is_of_an_older_run(tmp_path: Path) -> None:
    written(tmp_path, record(0, split="valid"))
    LinesFile.open(tmp_path / METRICS_FILE, 0).close()
    assert keys(tmp_path / METRICS_FILE) == []
    assert keys(tmp_path / DISCARDED_FILE) == [(0, "valid", False)]


WRITES = """
import subprocess
import sys
from domain_pretrain.records.writer import LinesFile
lines = LinesFile.open(sys.argv[1], 0)
lines.append({"iteration": 1, "split": "train", "domains": {}})
print("open", flush=True)
sys.stdin.read()
"""


def test_two_runs_do_not_write_to_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / METRICS_FILE
    monkeypatch.setattr(file_lock, "PATIENCE_S", 0)
    with subprocess.Popen(
        [sys.executable, "-c", WRITES, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        before = path.read_bytes()
        with pytest.raises(WriterError, match=r"another run is writing to .*metrics"):
            LinesFile.open(path, 0)
        assert path.read_bytes() == before
        other.kill()  # as a run that dies: its lock is gone with it
    LinesFile.open(path, 1).close()
    assert path.read_bytes() == before


def test_a_file_system_without_locks_is_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    written(tmp_path, *RUN[:2])
    assert len(keys(tmp_path / METRICS_FILE)) == 2


def test_discarded_lines_pile_up_over_several_kills(tmp_path: Path) -> None:
    for _ in range(3):
        written(tmp_path, *RUN[:2])
    assert len(keys(tmp_path / METRICS_FILE)) == 2
    assert len(keys(tmp_path / DISCARDED_FILE)) == 4


def test_a_file_without_anything_to_cut_is_not_rewritten(tmp_path: Path) -> None:
    written(tmp_path, *RUN[:3])
    inode = (tmp_path / METRICS_FILE).stat().st_ino
    LinesFile.open(tmp_path / METRICS_FILE, 20).close()
    assert (tmp_path / METRICS_FILE).stat().st_ino == inode
    assert not (tmp_path / DISCARDED_FILE).exists()


@pytest.fixture(scope="module")
def run_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("run")
    window = stats(**{"general": (1.0, 32), "金融": (1.5, 8)})
    records = [record(1, stats=window), record(2, "valid", stats=window), record(3, stats=window)]
    written(folder, *records)
    return (folder / METRICS_FILE).read_bytes()


@settings(max_examples=60)
@given(data=st.data())
def test_cut_at_any_byte_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, run_bytes: bytes, data: st.DataObject
) -> None:
    size = data.draw(st.integers(0, len(run_bytes)), label="bytes written before the kill")
    k = data.draw(st.integers(0, 4), label="iteration of the checkpoint")
    folder = tmp_path_factory.mktemp("torn")
    path = folder / METRICS_FILE
    path.write_bytes(run_bytes[:size])

    file = LinesFile.open(path, k)
    file.append({"iteration": k + 1, "split": "train", "domains": {}})
    file.close()

    whole = run_bytes.splitlines()
    # A line is whole as soon as its last brace is there, be the newline lost or not.
    ends = np.cumsum([len(line) + 1 for line in whole]) - 1
    survivors = [line for line, end in zip(whole, ends, strict=True) if end <= size]
    *kept, appended = path.read_bytes().splitlines()
    aside = folder / DISCARDED_FILE
    discarded = aside.read_bytes().splitlines() if aside.exists() else []
    torn = [json.loads(line)["torn"] for line in discarded if b'"torn"' in line]
    moved = [line for line in discarded if b'"torn"' not in line]

    assert json.loads(appended)["iteration"] == k + 1
    assert all(json.loads(line)["iteration"] <= k for line in kept)
    assert all(json.loads(line)["iteration"] > k or k == 0 for line in moved)
    assert kept + moved == survivors
    start = len(b"".join(line + b"\n" for line in survivors))
    fragment = run_bytes[start:size]
    assert torn == ([fragment.decode(errors="backslashreplace")] if fragment else [])


def test_a_spoilt_line_in_the_middle_is_set_aside_not_fatal(tmp_path: Path) -> None:
    written(tmp_path, *RUN[:2])
    path = tmp_path / METRICS_FILE
    start, first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(start + first + b"\0\0\0\n" + second)
    LinesFile.open(path, 20).close()
    assert path.read_bytes() == start + first + second
    assert json.loads((tmp_path / DISCARDED_FILE).read_bytes()) == {"torn": "\0\0\0"}


# --- start-up ---------------------------------------------------------------------------------


def test_check_log_dir_makes_the_folder_and_leaves_nothing_in_it(tmp_path: Path) -> None:
    check_log_dir(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_log_dir_in_an_object_store_is_no_folder_on_this_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("s3://bucket/log", Path("msc://profile/log")):  # pathlib joins the slashes
        with pytest.raises(ConfigError, match="--domain-log-dir a folder on a disk"):
            check_log_dir(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["below a file", "is a file", "not writable", "file is a folder"])
def test_an_unusable_log_dir_is_an_error_at_start_up(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "log" / METRICS_FILE).mkdir(parents=True)
    path = {
        "below a file": tmp_path / "file" / "log",
        "is a file": tmp_path / "file",
        "not writable": Path("/proc"),  # also for root
        "file is a folder": tmp_path / "log",
    }[kind]
    with pytest.raises(ConfigError, match="--domain-log-dir") as error:
        publisher(path)
    assert str(path) in str(error.value)


# --- TensorBoard and W&B ----------------------------------------------------------------------


def test_train_tags_and_values(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    publish, _ = publisher(tensorboard=writer)
    publish.scalars(
        record(
            10,
            consumed_tokens={"finance": 640.0, "general": 320.0, "absent": 0.0},
            weights={"finance": 1.5, "general": 0.5, "absent": 1.0},
        )
    )
    publish.scalars(record(20, stats=stats(finance=(1.5, 64), general=(0, 0), absent=(0, 0))))
    publish.close()
    writer.close()
    assert points(tmp_path) == {
        "channel-loss/finance": [(10, 2.0), (20, 1.5)],
        "channel-loss/general": [(10, 1.0)],
        "channel-ppl/finance": [
            (10, pytest.approx(math.exp(2.0))),
            (20, pytest.approx(math.exp(1.5))),
        ],
        "channel-ppl/general": [(10, pytest.approx(math.e))],
        "channel-tokens/finance": [(10, pytest.approx(2 / 3)), (20, 1.0)],
        "channel-tokens/general": [(10, pytest.approx(1 / 3))],
        "channel-samples/finance": [(10, 4.0), (20, 4.0)],
        "channel-samples/general": [(10, 2.0)],
        "channel-weight/finance": [(10, 1.5)],
        "channel-weight/general": [(10, 0.5)],
        "channel-consumed/finance": [(10, 640.0)],
        "channel-consumed/general": [(10, 320.0)],
    }


def test_shares_of_the_stream_are_told_where_the_losses_decide(tmp_path: Path) -> None:
    window = record(10, mix={"finance": 0.25, "general": 0.5, "absent": 0.25})
    (entry,) = written(tmp_path, window)
    assert {name: found["mix"] for name, found in entry["domains"].items()} == {
        "finance": 0.25,
        "general": 0.5,
    }
    told = {tag: v for tag, v in scalar_values(window, "token").items() if "-mix" in tag}
    assert told == {"channel-mix/finance": 0.25, "channel-mix/general": 0.5}
    assert not [tag for tag in scalar_values(record(10), "token") if "-mix" in tag]
    tag = ["Multiline", ["channel-mix/.*"]]
    assert tag in charts(weights=False, mix=True)["data"].values()
    assert tag not in charts(weights=False)["data"].values()


@pytest.mark.parametrize("split", ["valid", "test"])
def test_an_evaluation_has_loss_and_ppl_only(tmp_path: Path, split: str) -> None:
    writer = SummaryWriter(str(tmp_path))
    publish, _ = publisher(tensorboard=writer)
    publish.scalars(record(10, split=split))
    publish.close()
    writer.close()
    assert sorted(points(tmp_path)) == [
        f"channel-{metric}-{split}/{domain}"
        for metric in ("loss", "ppl")
        for domain in ("finance", "general")
    ]


def test_the_last_evaluation_is_on_disk_at_once(tmp_path: Path) -> None:
    """The host ends after it; the writer would flush minutes later."""
    writer = SummaryWriter(str(tmp_path), flush_secs=3600)
    publish, _ = publisher(tensorboard=writer)
    publish.scalars(record(10, split="valid", final=True))
    assert "channel-loss-valid/finance" in points(tmp_path)
    publish.close()
    writer.close()


def test_a_nan_domain_is_a_nan_point_and_the_others_are_not_touched(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    publish, _ = publisher(tensorboard=writer)
    publish.scalars(record(1, stats=stats(good=(1.0, 16), bad=(2.0, 32, 3))))
    publish.close()
    writer.close()
    found = points(tmp_path)
    assert math.isnan(found["channel-loss/bad"][0][1])
    assert found["channel-loss/good"] == [(1, 1.0)]


class RecordingWandb:
    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, float], int]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append((values, step))


def test_wandb_gets_one_call_for_a_record() -> None:
    wandb = RecordingWandb()
    publish, _ = publisher(wandb=wandb)
    publish.scalars(record(7, split="valid"))
    publish.scalars(record(8, stats=stats(finance=(0, 0))))
    assert wandb.calls == [
        (
            {
                "channel-loss-valid/finance": 2.0,
                "channel-ppl-valid/finance": pytest.approx(math.exp(2.0)),
                "channel-loss-valid/general": 1.0,
                "channel-ppl-valid/general": pytest.approx(math.e),
            },
            7,
        )
    ]


# --- console ----------------------------------------------------------------------------------


def test_the_arrow_points_from_the_domains_last_value() -> None:
    publish, out = publisher()
    absent = {"absent": (0.0, 0.0)}
    publish.line(record(1, stats=stats(finance=(2.5, 16), general=(1.0, 16), **absent)))
    publish.line(record(2, stats=stats(finance=(2.0, 16), general=(0, 0), **absent)))
    publish.line(record(2, "valid", stats=stats(finance=(9.0, 16))))
    publish.line(record(3, stats=stats(finance=(2.0, 16), general=(1.5, 16), **absent)))
    assert [line for line in out if "valid" not in line] == [
        "channel loss | finance 2.500 | general 1.000",
        "channel loss | finance 2.000 ▼",
        "channel loss | finance 2.000 | general 1.500 ▲",
    ]


def test_an_evaluation_is_a_table() -> None:
    publish, out = publisher()
    publish.line(record(50, "valid", stats=stats(finance=(2.0, 4096), general=(1.0, 12))))
    publish.line(record(99, "valid", stats=stats(finance=(1.5, 4096))))
    assert out == [
        "channel loss (valid) at iteration 50\n"
        "  domain   loss             ppl          tokens\n"
        "  finance  2.000           7.39           4,096\n"
        "  general  1.000           2.72              12",
        "channel loss (valid) at iteration 99\n"
        "  domain   loss             ppl          tokens\n"
        "  finance  1.500 ▼         4.48           4,096",
    ]


def test_what_domains_are_part_of_stands_below_them() -> None:
    publish, out = publisher()
    losses = {"fin/news": (2.0, 32.0), "fin/chats": (1.0, 32.0), "web": (3.0, 64.0)}
    publish.line(record(50, "valid", stats=stats(**losses)))
    publish.line(record(99, "valid", stats=stats(**losses | {"fin/news": (1.0, 32.0)})))
    assert out[0].splitlines()[2:] == [
        "  fin/news   2.000           7.39              32",
        "  fin/chats  1.000           2.72              32",
        "  web        3.000          20.09              64",
        "  fin/…      1.500           4.48              64",
    ]
    assert out[1].splitlines()[-1].startswith("  fin/…      1.000 ▼")


def test_a_thousand_domains_fit_one_line_the_worst_first() -> None:
    publish, out = publisher()
    losses = {f"d{i:03}": (1 + i / 1000, 16.0) for i in range(1000)}
    publish.line(record(1, stats=stats(**losses)))
    publish.line(record(1, "valid", stats=stats(**losses)))
    line, table = out
    assert line.startswith("channel loss | d999 1.999 | d998 1.998 | ")
    assert line.endswith(" | … 992 more")
    assert len(line) < 160
    assert table.splitlines()[-1] == "  … 992 more"


def test_a_nan_domain_is_named_first_and_loudly() -> None:
    publish, out = publisher()
    many = {f"d{i:02}": (float(i), 16.0) for i in range(20)}
    window = stats(**many, bad=(0.5, 32, 3))
    publish.line(record(30, stats=window))
    watch = Watch(Watching(), window.names)
    for finding in watch.read(Reading("train", 30, window)):
        publish.finding(finding)
    line, warning, _ = out
    assert line.startswith("channel loss | bad NaN | d19 19.000 | ")
    assert warning == (
        "channel loss | ERROR: NaN or infinite loss (train, iteration 30) "
        "in domain bad (3 tokens); likely cause: data"
    )


def test_a_window_without_tokens_says_so() -> None:
    publish, out = publisher()
    publish.line(record(1, stats=stats(finance=(0, 0))))
    assert out == ["channel loss | no tokens"]


def test_a_terminal_without_unicode_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    say("channel loss | 金融 2.131 ▼ | general 1.870 ▲ | … 3 more")
    assert raw.getvalue() == b"channel loss | ?? 2.131 v | general 1.870 ^ | ... 3 more\n"


def test_a_writer_without_custom_scalars_is_noted_once() -> None:
    publish, out = publisher(tensorboard=SimpleNamespace(add_scalar=lambda *_: None))
    publish.scalars(record(1))
    publish.scalars(record(2))
    (note,) = out
    assert "Custom Scalars" in note


def entry(iteration: int) -> dict[str, Any]:
    return {"iteration": iteration, "split": "train", "domains": {}}


def iterations(path: Path) -> list[int]:
    return [json.loads(line)["iteration"] for line in path.read_bytes().splitlines()]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE")
def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """A write that the disk takes only in part leaves nothing of its line, then or later."""
    resource = pytest.importorskip("resource")
    path = tmp_path / METRICS_FILE
    file = LinesFile.open(path, 0)
    file.append(entry(1))
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, limits[1]))
    try:
        with pytest.raises(ConfigError, match=r"cannot write to .*no line is lost"):
            file.append(entry(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole
    file.append(entry(3))
    file.close()
    assert iterations(path) == [1, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE")
def test_a_full_disk_at_a_resume_leaves_the_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / METRICS_FILE
    file = LinesFile.open(path, 0)
    for iteration in range(1, 9):
        file.append(entry(iteration))
    file.close()
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(ConfigError, match="cannot write to"):
            LinesFile.open(path, 7)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    LinesFile.open(path, 7).close()
    assert iterations(path) == list(range(1, 8))
