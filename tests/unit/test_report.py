from __future__ import annotations

import errno
import io
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin
from torch.utils.tensorboard import SummaryWriter

from domain_pretrain.commands.main import main
from domain_pretrain.commands.report import run_names
from domain_pretrain.errors import ConfigError
from domain_pretrain.records.publisher import open_publisher
from domain_pretrain.records.reader import METRICS_FILE, MetricsTail, read_metrics
from domain_pretrain.records.record import Record
from domain_pretrain.records.tensorboard import RUNS_UP_TO
from domain_pretrain.report.curves import domains_of, moving_average, place
from domain_pretrain.report.history import History, read_history
from domain_pretrain.report.palette import COLOURS, colour
from domain_pretrain.report.picture import loss_picture
from domain_pretrain.report.series import MOST, Mean, Series
from domain_pretrain.report.spread import spread
from domain_pretrain.report.table import (
    event_lines,
    host_table,
    loss_table,
    summarise,
    summarise_parents,
)
from domain_pretrain.stats import SCALE, Column, DomainStats
from domain_pretrain.strategies.reference import final_losses


def line(iteration: int, split: str = "train", /, **losses: float | None) -> dict[str, Any]:
    """A line of the metrics file; every domain has 1,000 tokens."""
    domains = {
        name: {"loss": loss, "loss_sum": 1000 * (loss or 0), "tokens": 1000}
        for name, loss in losses.items()
    }
    return {"iteration": iteration, "split": split, "domains": domains}


@pytest.fixture
def metrics(tmp_path: Path) -> Callable[..., Path]:
    def write(run: str, *entries: dict[str, Any]) -> Path:
        path = tmp_path / run / METRICS_FILE
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return path

    return write


# --- the file ---------------------------------------------------------------------------------


def test_a_torn_last_line_is_left_out_at_any_byte(metrics: Callable[..., Path]) -> None:
    path = metrics("run", line(1, a=1.0), line(2, a=2.0))
    whole = path.read_bytes()
    first_end, second_end = whole.index(b"\n"), len(whole) - 1
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        expected = [1] * (size >= first_end) + [2] * (size >= second_end)
        assert [entry["iteration"] for entry in read_metrics(path)] == expected


def domain(**changes: Any) -> dict[str, Any]:
    whole = {"loss": 1.0, "loss_sum": 10.0, "tokens": 10, **changes}
    return {**line(2), "domains": {"a": {k: v for k, v in whole.items() if v is not ...}}}


# As JSON; what is wrong with it.
SPOILT = [
    ('{"iteration": 2}', "split: Field required"),
    ("[1]", "Input should be a valid dictionary"),
    ("null", "Input should be a valid dictionary"),
    ("{", "no JSON: Expecting property name"),
    ("[" * 100_000, "no JSON: maximum recursion depth"),
    ("1" * 5_000, "no JSON: Exceeds the limit"),
    ("\0\0", "no JSON"),
    (json.dumps({**line(2), "domains": []}), "domains: Input should be a valid dictionary"),
    (json.dumps({**line(2), "domains": {"a": []}}), r"domains\.a: Input should be a valid dict"),
    (json.dumps({**line(2), "iteration": True}), "iteration: Input should be a valid integer"),
    (json.dumps({**line(2), "iteration": 10**300}), "iteration: Input should be less than"),
    (json.dumps({**line(2), "split": ["train"]}), "split: Input should be 'train', 'valid' or"),
    (json.dumps(domain(tokens=...)), r"domains\.a\.tokens: Field required"),
    (json.dumps(domain(tokens=10**400)), r"domains\.a\.tokens: Input should be"),
    (json.dumps(domain(tokens=-1)), r"domains\.a\.tokens: Input should be greater"),
    (json.dumps(domain(tokens="10")), r"domains\.a\.tokens: Input should be a valid number"),
    (json.dumps(domain(tokens=math.nan)), r"domains\.a\.tokens: Input should be a finite number"),
    (json.dumps(domain(loss=...)), r"domains\.a\.loss: Field required"),
    (json.dumps(domain(loss="low")), r"domains\.a\.loss: Input should be a valid number"),
    (json.dumps(domain(loss_sum=None)), r"domains\.a\.loss_sum: Input should be a valid number"),
    (json.dumps(domain(loss_sum=1e300)), r"domains\.a\.loss_sum: Input should be less than"),
    (json.dumps(domain(samples=10**400)), r"domains\.a\.samples: Input should be"),
    (json.dumps({**line(2), "parents": [1]}), "parents: Input should be a valid dictionary"),
    (json.dumps({**line(2), "parents": {"a": 3}}), r"parents\.a: Input should be a valid dict"),
    (
        json.dumps({**line(2), "domains": {"n" * 5000: 1}}),
        r"domains\.n{72} … n{40}: Input should be a",
    ),
]


@pytest.mark.parametrize(("spoilt", "why"), SPOILT, ids=[why for _, why in SPOILT])
def test_a_spoilt_line_is_left_out_and_named(
    spoilt: str, why: str, metrics: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = metrics("run", line(1, a=1.0), line(3, a=1.0))
    first, last = path.read_text().splitlines()
    path.write_text("\n".join([first, spoilt, last, "{}", ""]))
    assert [entry["iteration"] for entry in read_metrics(path)] == [1, 3]
    said = capsys.readouterr().out
    assert re.search(rf"domain_metrics\.jsonl: 2 of 4 lines left out, line 2: {why}", said)
    assert len(said) < 500
    assert final_losses(path) == {"a": 1.0}
    assert main(["report", str(path.parent)]) == 0

    path.write_text(f"{spoilt}\n")
    with pytest.raises(ConfigError, match=rf"holds no line of .*; line 1: {why}"):
        read_metrics(path)


def test_a_number_that_no_float_holds_is_not_finite(metrics: Callable[..., Path]) -> None:
    huge = {"consumed_samples": 10**400, "host": {"grad_norm": -(10**400), "learning_rate": 1e-5}}
    path = metrics("run", {**line(1, a=1.0), **huge})
    history = read_history(path)
    assert math.isnan(history.host.last("grad_norm"))
    assert math.isnan(history.host.last("consumed_samples"))
    assert history.host.last("learning_rate") == 1e-5
    run = str(path.parent)
    assert main(["report", run]) == main(["watch", "--once", run]) == 0


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--channel-loss"):
        read_metrics(tmp_path)


def test_a_growing_file_is_followed_line_by_line(tmp_path: Path) -> None:
    tail, path = MetricsTail(tmp_path), tmp_path / METRICS_FILE
    assert tail.read() == []
    whole = "".join(json.dumps(line(i, a=1.0)) + "\n" for i in (1, 2)).encode()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        expected = [ends.index(size) + 1] if size in ends else []
        assert [entry["iteration"] for entry in tail.read()] == expected
    assert tail.read() == []


# --- TensorBoard ------------------------------------------------------------------------------


def custom_scalars(logdir: Path) -> tuple[CustomScalarsPlugin, RequestContext]:
    """TensorBoard's own plugin over ``logdir``."""
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(logdir))
    plugins: dict[str, object] = {}
    context = TBContext(
        data_provider=provider,
        multiplexer=multiplexer,
        logdir=str(logdir),
        plugin_name_to_instance=plugins,
    )
    plugins["scalars"] = ScalarsPlugin(context)
    return CustomScalarsPlugin(context), RequestContext()


def publish(logdir: Path, weights: dict[str, float] | None) -> None:
    names = ("finance", "general", *(f"d{number}" for number in range(RUNS_UP_TO - 1)))
    sums = np.zeros((len(names) + 1, len(Column)), dtype=np.int64)
    sums[:2, Column.LOSS] = [2 * SCALE[Column.LOSS], 3 * SCALE[Column.LOSS]]
    sums[:2, Column.TOKENS] = SCALE[Column.TOKENS]
    stats = DomainStats(names, sums)
    consumed = {"finance": 1.0, "general": 1.0}
    writer = SummaryWriter(str(logdir))
    publisher = open_publisher(None, writer, None, "token", after_iteration=0)
    for iteration in (1, 2):
        record = Record("train", iteration, 8, stats, consumed, weights=weights, shares=weights)
        publisher.scalars(record)
    publisher.scalars(Record("valid", 2, 8, stats))
    writer.close()


@pytest.mark.parametrize("weights", [None, {"finance": 1.0, "general": 1.0}])
def test_tensorboard_finds_all_domains_of_a_metric_in_one_chart(
    tmp_path: Path, weights: dict[str, float] | None
) -> None:
    publish(tmp_path, weights)
    plugin, context = custom_scalars(tmp_path)
    charts = {
        (category["title"], chart["title"]): chart["multiline"]["tag"]
        for category in json.loads(plugin.layout_impl(context, ""))["category"]
        for chart in category["chart"]
    }
    tags = {
        title: sorted(plugin.scalars_impl(context, ".", pattern, "")["tag_to_events"])
        for title, (pattern,) in charts.items()
    }
    expected = {
        ("channel loss", "train"): "channel-loss",
        ("channel loss", "validation"): "channel-loss-valid",
        ("perplexity", "train"): "channel-ppl",
        ("perplexity", "validation"): "channel-ppl-valid",
        ("data", "share of the window's tokens"): "channel-tokens",
        ("data", "tokens consumed so far"): "channel-consumed",
    }
    if weights:
        expected["reweighting", "multiplier"] = "channel-weight"
        expected["reweighting", "share of the weighted tokens"] = "channel-share"
    assert tags == {title: [f"{tag}/finance", f"{tag}/general"] for title, tag in expected.items()}


# --- series -----------------------------------------------------------------------------------


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), st.sampled_from([1.0, 2.5, 9.0, math.nan])),
        min_size=1,
        max_size=70,
    ),
    st.sampled_from([2, 8, 64]),
)
def test_a_series_keeps_every_spike_in_bounded_memory(
    points: list[dict[str, float]], limit: int
) -> None:
    series = Series(limit)
    for number, values in enumerate(points, start=1):
        series.add(10.0 * number, number, values)
    for name in series.names:
        curve = series.curve(name)
        given = [values[name] for values in points if name in values]
        finite = [value for value in given if math.isfinite(value)]
        assert len(curve.mean) <= limit
        assert (np.diff(curve.iteration) > 0).all()
        assert (curve.tokens == 10 * curve.iteration).all()
        assert curve.broken.sum() == len(given) - len(finite)
        assert np.isnan(curve.mean).sum() == np.isnan(curve.low).sum() <= curve.broken.sum()
        if finite:
            assert np.nanmin(curve.low) == min(finite)
            assert np.nanmax(curve.high) == max(finite)
        known = ~np.isnan(curve.mean)
        assert (curve.low[known] <= curve.mean[known] + 1e-12).all()
        assert (curve.mean[known] <= curve.high[known] + 1e-12).all()
        assert series.last(name) == given[-1] or math.isnan(given[-1])
    if len(points) <= limit:  # then each point is there as it was given
        for name in series.names:
            there = [number for number, values in enumerate(points, start=1) if name in values]
            assert series.curve(name).iteration.tolist() == there


@given(
    st.integers(1, 1500),
    st.lists(st.tuples(st.integers(0, 1499), st.integers(1, 400)), min_size=1, max_size=4),
    st.sampled_from([0.05, 0.5]),
    st.sampled_from([2, 8, 1024]),
    st.integers(0, 2**32 - 1),
)
def test_the_ends_of_a_curve_are_means_of_its_first_and_last_values_wherever_they_are(
    windows: int, stretches: list[tuple[int, int]], part: float, limit: int, seed: int
) -> None:
    """Also where a bucket of the run holds all that a domain has."""
    dice = np.random.default_rng(seed)
    series, values = Series(limit), []
    for at in range(windows):
        point = {"general": 2.0}
        if at == 0 or any(begin <= at < begin + length for begin, length in stretches):
            values.append(math.nan if dice.random() < 1e-3 else 4 - at / 500 + dice.normal(0, 0.1))
            point["anneal"] = values[-1]
        series.add(at + 1.0, at + 1, point)
    wanted = max(1, min(max(5, math.ceil(part * len(values))), len(values) // 2, MOST))
    assert series.count("anneal") == len(values)
    assert series.first("anneal") == values[0] or math.isnan(values[0])
    ends = (values[:wanted], values[-wanted:])
    for mean, held in zip(series.ends("anneal", part), ends, strict=True):
        if np.isfinite(held).all():
            assert mean.value == pytest.approx(np.mean(held), abs=1e-12)
            error = np.std(held, ddof=1) / math.sqrt(wanted) if wanted > 1 else None
            assert mean.error == (None if error is None else pytest.approx(error, abs=1e-12))
        else:
            assert math.isnan(mean.value) and mean.error is None


def test_a_short_stage_of_a_long_run_falls_as_far_as_it_fell() -> None:
    series = Series()
    for at in range(20_000):
        given = {"general": 2.0}
        if 16_700 <= at < 16_800:
            given["anneal"] = 4 - 3 * (at - 16_700) / 100
        series.add(at + 1.0, at + 1, given)
    first, last = series.ends("anneal", 0.05)
    assert (first.value, last.value) == (pytest.approx(3.94), pytest.approx(1.09))


def test_few_values_are_halved_and_one_that_is_not_finite_is_told() -> None:
    few = Series()
    for number, value in enumerate([4.0, 2.0, math.nan, 1.0], start=1):
        few.add(number, number, {"a": value, **({"b": value} if number == 1 else {})})
    assert few.ends("a", 0.05)[0] == Mean(3.0, 1.0)  # half of them, no more
    assert math.isnan(few.ends("a", 0.05)[1].value)
    assert few.ends("b", 0.05) == (Mean(4.0, None), Mean(4.0, None))


# --- curves -----------------------------------------------------------------------------------


def test_runs_follow_one_another_on_either_axis(metrics: Callable[..., Path]) -> None:
    base = metrics("base", line(10, a=3.0), line(20, a=2.0), line(20, "valid", a=2.5))
    continued = metrics(
        "continued", line(10, a=1.5, b=4.0), line(20, b=None), line(30, "test", a=9.0)
    )
    named = [("base", read_history(base)), ("continued", read_history(continued))]
    by_tokens, by_iterations, compared = (
        place(named, x, compare=compare)
        for x, compare in (("tokens", False), ("iterations", False), ("tokens", True))
    )
    assert [(run.name, run.start, run.end) for run in by_tokens] == [
        ("base", 0, 2000),
        ("continued", 2000, 5000),
    ]
    assert [run.start for run in by_iterations] == [0, 20]
    assert [(run.start, run.end) for run in compared] == [(0, 2000), (0, 3000)]
    a = by_tokens[0].history.train.curve("a")
    assert by_tokens[0].of(a).tolist() == [1000, 2000]
    assert a.mean.tolist() == a.low.tolist() == a.high.tolist() == [3.0, 2.0]
    b = by_iterations[1].history.train.curve("b")
    assert by_iterations[1].of(b).tolist() == [30, 40]
    assert b.mean[0] == 4.0 and math.isnan(b.mean[1]) and b.broken.tolist() == [0, 1]
    valid = by_tokens[0].history.valid.curve("a")
    assert (by_tokens[0].of(valid).tolist(), valid.mean.tolist()) == ([2000], [2.5])
    assert domains_of(by_tokens) == ["a", "b"]


def test_a_run_that_goes_on_in_a_folder_of_its_own_counts_on(metrics: Callable[..., Path]) -> None:
    header = {"event": "resume", "iteration": 20, "detail": "", "domains": ["a"]}
    base = read_history(metrics("base", line(10, a=3.0), line(20, a=2.0)))
    rest = read_history(metrics("rest", header, line(30, a=1.5), line(40, a=1.0)))
    base_run, rest_run = place([("base", base), ("rest", rest)], "iterations", compare=False)
    assert rest_run.of(rest.train.curve("a")).tolist() == [30, 40]
    assert (rest_run.begin, rest_run.end) == (base_run.end, 40) == (20, 40)
    assert [rest_run.at(mark) for mark in rest.marks] == [20]
    _, by_tokens = place([("base", base), ("rest", rest)], "tokens", compare=False)
    assert (by_tokens.begin, by_tokens.end) == (2000, 4000)
    (alone,) = place([("rest", rest)], "iterations", compare=False)
    assert (alone.begin, alone.of(rest.train.curve("a")).tolist()) == (20, [30, 40])
    silent = History()
    silent.add(header)
    named = [("base", base), ("silent", silent), ("rest", rest)]
    _, without, behind = place(named, "iterations", compare=False)
    assert (without.begin, without.end, behind.begin, behind.end) == (20, 20, 20, 40)


def test_the_moving_average_keeps_a_slope_straight_to_both_ends() -> None:
    slope = 0.5 * np.arange(50)
    assert moving_average(slope, 9) == pytest.approx(slope)
    assert moving_average(np.array([1.0, math.nan, 3.0]), 3)[1] == 2.0
    assert np.isnan(moving_average(np.array([math.nan, math.nan]), 1)).all()


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=12).map(sorted),
    st.floats(0.01, 1),
)
def test_labels_stay_in_order_and_apart(heights: list[float], gap: float) -> None:
    moved = spread(heights, gap)
    distances = np.diff(moved)
    assert len(moved) == len(heights)
    assert (distances >= gap * (1 - 1e-6)).all()
    assert sum(moved) == pytest.approx(sum(heights))  # none drifts away
    if (np.diff(heights) >= gap).all():
        assert moved == pytest.approx(heights)


# --- picture ----------------------------------------------------------------------------------


def colours_of(png: Path) -> set[str]:
    image = pytest.importorskip("matplotlib.image").imread(png)
    pixels = (image[..., :3] * 255).round().astype(int) @ [1 << 16, 1 << 8, 1]
    return {f"#{pixel:06X}" for pixel in np.unique(pixels)}


def test_the_picture_shows_every_domain_of_all_phases(
    tmp_path: Path, metrics: Callable[..., Path]
) -> None:
    base = metrics("base", *[line(i, a=3 - i / 40) for i in range(1, 90)])
    continued = metrics(
        "continued",
        *[line(i, a=1.0, b=4 - i / 40, c=2.0) for i in range(1, 90)],
        line(90, "valid", a=1.1, b=2.0, c=2.1),
    )
    runs = [("base", read_history(base)), ("continued", read_history(continued))]
    loss_picture(runs, tmp_path / "x.png")
    shown = colours_of(tmp_path / "x.png")
    assert set(COLOURS[:3]) <= shown
    assert not set(COLOURS[3:7]) & shown


def test_of_many_domains_the_broken_and_the_worst_have_a_colour(
    tmp_path: Path, metrics: Callable[..., Path]
) -> None:
    losses: dict[str, float | None] = {f"d{i:02}": float(i) for i in range(30)}
    path = metrics("run", line(1, **losses), line(2, **{**losses, "d03": None}))
    texts = texts_of(tmp_path, path)
    labels = {name for name in losses if any(text.startswith(f"{name}  ") for text in texts)}
    assert labels == {"d03", *(f"d{i}" for i in range(24, 30))}
    assert {"d03  NaN", "and 23 more"} <= texts


def texts_of(folder: Path, *paths: Path, **how: Any) -> set[str]:
    """What is written in the picture: each text stands in a comment of the SVG."""
    loss_picture([(p.parent.name, read_history(p)) for p in paths], folder / "x.svg", **how)
    svg = (folder / "x.svg").read_text(encoding="utf-8")
    return set(re.findall("<!-- (.*?) -->", svg))


def test_runs_are_compared_on_one_axis(tmp_path: Path, metrics: Callable[..., Path]) -> None:
    one = metrics("one", *[line(i, a=3.0, b=2.0) for i in range(1, 4)])
    two = metrics("two", *[line(i, a=2.5, c=1.0) for i in range(1, 6)])
    texts = texts_of(tmp_path, one, two, x="iterations", compare=True)
    assert {"a  3.00 / 2.50", "b  2.00", "c  1.00", "one", "two"} <= texts
    assert "6" not in texts  # where the axis would go on, were they one after the other
    texts = texts_of(tmp_path, one, two, x="iterations")
    assert {"a  2.50", "b  2.00", "c  1.00", "6"} <= texts


@pytest.mark.parametrize("compare", [False, True])
def test_names_are_written_as_they_are(
    tmp_path: Path, metrics: Callable[..., Path], compare: bool
) -> None:
    r"""``$\foo$`` is no formula, and a label of matplotlib's that begins with ``_`` is no label."""
    names = [r"a$\foo$b", "_p$q$r"]
    paths = [metrics(name, line(1, a=3.0), line(2, a=2.0)) for name in names]
    assert set(names) <= texts_of(tmp_path, *paths, compare=compare)
    assert set(names) <= texts_of(tmp_path, *reversed(paths), compare=compare)


@pytest.mark.parametrize("runs", [1, 2, 6])
def test_long_names_leave_room_for_the_curves(
    tmp_path: Path, metrics: Callable[..., Path], recwarn: pytest.WarningsRecorder, runs: int
) -> None:
    paths = [
        metrics(f"{at}{'r' * 120}", line(1, **{"d" * 120: 3.0}, b=2.0), line(2, **{"d" * 120: 2.0}))
        for at in range(runs)
    ]
    texts = texts_of(tmp_path, *paths, compare=runs > 1)
    assert any(re.fullmatch(r"d+ … d+  2\.00.*", text) for text in texts)
    assert len([text for text in texts if re.fullmatch(r"\dr+ … r+", text)]) == runs
    assert not [one for one in recwarn if "layout" in str(one.message)]


def test_a_picture_is_whole_or_not_there_and_what_cannot_be_drawn_is_told_before(
    tmp_path: Path,
    metrics: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = metrics("run", line(1, a=3.0), line(2, a=2.0))
    out = tmp_path / "x.PNG"
    assert report(path.parent, "--png", out) == 0
    before = out.read_bytes()
    assert report(path.parent, "--png", tmp_path / "plain") == 0
    assert (tmp_path / "plain").read_bytes()[:4] == b"\x89PNG"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        assert report(path.parent, "--png", out) == 2
    assert f"cannot write {out}: No space left on device" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_file()) == ["plain", "x.PNG"]

    def never(*_: Any) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr("domain_pretrain.commands.report.read_history", never)
    for name, problem in (
        ("x.foo", "matplotlib writes no .foo; give a name that ends in one of ."),
        ("none/x.png", "No such file or directory"),
    ):
        assert report(path.parent, "--png", tmp_path / name) == 2
        assert problem in capsys.readouterr().err


def test_a_domain_keeps_its_colour(tmp_path: Path, metrics: Callable[..., Path]) -> None:
    """It goes by its place in the config, whichever domains are the worst ones now."""
    assert [colour(place) for place in range(len(COLOURS))] == list(COLOURS)
    assert len({colour(place) for place in range(200)}) == 200
    names = [f"d{i:02}" for i in range(12)]
    early = {name: 20.0 - place for place, name in enumerate(names)}
    late = {name: 1.0 + place for place, name in enumerate(names)}
    for run, losses in (("early", early), ("late", late)):
        header = {"event": "start", "iteration": 0, "detail": "", "domains": names}
        path = metrics(run, header, line(1, **losses), line(2, **losses))
        loss_picture([("", read_history(path))], tmp_path / f"{run}.png")
    early_colours, late_colours = (colours_of(tmp_path / f"{run}.png") for run in ("early", "late"))
    assert {colour(place) for place in range(7)} <= early_colours
    assert {colour(place) for place in range(5, 12)} <= late_colours
    assert not {colour(place) for place in range(5)} & late_colours


def test_what_happened_is_marked(tmp_path: Path, metrics: Callable[..., Path]) -> None:
    events = [
        {"event": "start", "iteration": 0, "detail": ""},
        {"event": "resume", "iteration": 2, "detail": "", "domains": ["a"]},
        {"event": "blend", "iteration": 2, "detail": "a 0.2, was 0.1"},
    ]
    lines = [line(i, a=1.0) for i in range(1, 5)]
    path = metrics("run", events[0], *lines[:2], *events[1:], *events[1:], *lines[2:])
    history = read_history(path)
    assert [(mark.event.name, mark.tokens) for mark in history.marks] == [
        ("resume", 2000),
        ("blend", 2000),
    ] * 2
    assert event_lines(history) == [
        "resumed after iteration 2",
        "after iteration 2: blend: a 0.2, was 0.1",
    ]
    texts = texts_of(tmp_path, path)
    assert "blend" in texts and "resume" not in texts
    assert any("┊ resumed" in text for text in texts)


def make_font(folder: Path, characters: str) -> str:
    """A font that has these characters, as boxes; its family is called ``Made Up``."""
    builder = pytest.importorskip("fontTools.fontBuilder").FontBuilder(1000, isTTF=True)
    pen = pytest.importorskip("fontTools.pens.ttGlyphPen").TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(point)
    pen.closePath()
    names = {ord(char): f"g{place}" for place, char in enumerate(characters)}
    order = [".notdef", *names.values()]
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(names)
    glyph = pen.glyph()
    builder.setupGlyf(dict.fromkeys(order, glyph))
    builder.setupHorizontalMetrics(dict.fromkeys(order, (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Made Up", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(folder / "made_up.ttf")
    return str(folder / "made_up.ttf")


def test_names_that_no_font_can_write_are_told_in_one_notice(
    tmp_path: Path,
    metrics: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = pytest.importorskip("matplotlib.font_manager").fontManager
    own = [font for font in manager.ttflist if font.name.startswith("DejaVu")]
    monkeypatch.setattr(manager, "ttflist", own)
    history = read_history(metrics("run", line(1, **{"金": 1.0, "融": 2.0, "é": 3.0})))
    loss_picture([("", history)], tmp_path / "x.png")
    (said,) = capsys.readouterr().out.splitlines()
    assert "no font on this machine has 融金: the picture shows boxes instead" in said

    manager.addfont(make_font(tmp_path, "金"))
    loss_picture([("", history)], tmp_path / "x.png")
    assert "no font on this machine has 融: " in capsys.readouterr().out
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    assert not caplog.records  # as that the font has no bold letters


def test_a_domain_that_was_never_finite_can_be_drawn(
    tmp_path: Path, metrics: Callable[..., Path]
) -> None:
    history = read_history(metrics("run", line(1, a=1.0, b=None)))
    loss_picture([("", history)], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 0


def test_a_picture_without_lines_or_matplotlib_is_a_clear_error(
    tmp_path: Path, metrics: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [("", read_history(metrics("run", line(1, "valid", a=1.0))))]
    with pytest.raises(ConfigError, match="nothing to draw"):
        loss_picture(runs, tmp_path / "x.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"domain-pretrain\[demo\]"):
        loss_picture(runs, tmp_path / "x.png")


# --- table and command ------------------------------------------------------------------------

ENTRIES = [
    line(10, a=3.0, b=None),
    line(10, "valid", a=3.5),
    line(20, a=2.0),
    line(20, "valid", a=2.5),
    line(20, "test", a=9.0),
]


def header(**sizes: int | None) -> dict[str, Any]:
    """The header of a run of these domains, with the tokens of their corpora."""
    start = {"event": "start", "iteration": 0, "detail": ""}
    return {**start, "domains": list(sizes), "corpus_tokens": list(sizes.values())}


def history_of(*entries: dict[str, Any]) -> History:
    history = History()
    for entry in entries:
        history.add(entry)
    history.domains = history.domains or history.train.names
    return history


def rows_of(table: Any) -> list[list[str]]:
    """The cells of its rows, without the header."""
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table)
    rows = [row for row in console.export_text().splitlines() if row.startswith("│")]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]


def test_the_table_tells_start_and_end_of_every_domain() -> None:
    a, b = summarise(history_of(header(a=1000, b=None), *ENTRIES))
    assert (a.tokens, a.epochs, a.valid) == (2000, 2.0, 2.5)
    assert (a.start, a.end) == (Mean(3.0, None), Mean(2.0, None))
    assert a.ppl == math.exp(2.5)
    assert (b.tokens, b.epochs, b.valid) == (1000, None, None)
    assert b.start is not None and math.isnan(b.start.value)
    assert rows_of(loss_table([a, b])) == [
        ["a", "2,000", "2.00", "3.000 → 2.000", "2.500", "12.18"],
        ["b", "1,000", "–", "NaN → NaN", "–", "–"],
    ]


def test_a_validation_loss_has_its_error_where_that_is_known() -> None:
    last = line(20, "valid", a=2.5)
    last["domains"]["a"]["error"] = 0.0625
    history = history_of(header(a=None), *ENTRIES[:2], line(20, a=2.0), last)
    table = loss_table(summarise(history))
    assert rows_of(table)[0][3] == "2.500 ± 0.062"
    assert "over the samples of evaluate.samples" in str(table.caption)
    # The last evaluation counts: this one does not know.
    (a,) = summarise(history_of(header(a=None), last, *ENTRIES[2:4]))
    assert a.valid_mean == Mean(2.5, None)


def test_what_domains_are_part_of_stands_below_them() -> None:
    """Their sums over again, so that nothing is counted twice."""
    names = {"fin/a": 1000, "fin/b": 500, "web": None}
    lines = [
        {**line(10, **dict.fromkeys(names, 3.0)), "parents": {"fin": {"loss": 3.0, "tokens": 1}}},
        {**line(20, **dict.fromkeys(names, 2.0)), "parents": {"fin": {"loss": 2.0, "tokens": 1}}},
        {**line(20, "valid", **{"fin/a": 2.5}), "parents": {"fin": {"loss": 2.25, "tokens": 1}}},
    ]
    history = history_of(header(**names), *lines)
    (fin,) = summarise_parents(history)
    whole = summarise(history)
    assert fin.tokens == whole[0].tokens + whole[1].tokens
    assert fin.epochs == pytest.approx(fin.tokens / 1500)
    rows = rows_of(loss_table(whole, parents=[fin]))
    assert [row[0] for row in rows] == ["fin/a", "fin/b", "web", "fin/…"]
    assert rows[-1][3:] == ["3.000 → 2.000", "2.250", "9.49"]
    assert summarise_parents(history_of(*ENTRIES)) == []
    unknown = history_of(header(**{"fin/a": 1000, "fin/b": None}), *lines)
    assert summarise_parents(unknown)[0].epochs is None


def test_a_change_within_its_error_is_marked() -> None:
    noise = [0.5, -0.5] * 20
    entries = [
        line(i, falls=3.0 - i / 20 + by, flat=1.0 + by) for i, by in enumerate(noise, start=1)
    ]
    falls, flat = summarise(history_of(*entries))
    assert (falls.unchanged, flat.unchanged) == (False, True)
    cells = [row[2] for row in rows_of(loss_table([falls, flat]))]
    assert re.fullmatch(r"\d\.\d{3} ± 0\.\d{3} → \d\.\d{3} ± 0\.\d{3}", cells[0])
    assert re.fullmatch(r"\d\.\d{3} ± 0\.\d{3} ≈ \d\.\d{3} ± 0\.\d{3}", cells[1])


def test_columns_that_say_nothing_are_left_out() -> None:
    table = loss_table(summarise(history_of(line(10, a=1.0))))
    assert rows_of(table) == [["a", "1,000", "1.000 → 1.000", "2.72"]]
    assert table.caption is None


def test_the_hosts_numbers_are_shown() -> None:
    rates = [1e-3, 2e-3, 1e-4]
    entries: list[dict[str, Any]] = [
        {**line(i, a=1.0), "host": {"learning_rate": rate, "grad_norm": None if i == 2 else i}}
        for i, rate in enumerate(rates, start=1)
    ]
    entries[1]["host"]["seconds"] = entries[2]["host"]["seconds"] = 0.25
    assert rows_of(host_table(history_of(*entries))) == [
        ["learning rate", "0.001", "0.0001", "0.0001", "0.002"],
        ["gradient norm", "1.000", "3.000", "1.000", "3.000"],
        ["tokens per second", "4,000", "4,000", "4,000", "4,000"],
    ]
    assert host_table(history_of(line(1, a=1.0))) is None


def report(*arguments: Any) -> int:
    return main(["report", *map(str, arguments)])


def test_the_command_prints_a_table_and_writes_a_picture(
    tmp_path: Path, metrics: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base = metrics("base", header(a=500), *ENTRIES)
    continued = metrics("continued/tensorboard", *ENTRIES)
    png = tmp_path / "out.png"
    assert report(base.parent, continued.parent.parent, "--png", png) == 0
    out = capsys.readouterr().out
    assert out.count("3.000 → 2.000") == 2
    assert "4.00" in out
    assert png.read_bytes().startswith(b"\x89PNG")
    assert report(base.parent, continued.parent.parent, "--compare", "--png", png) == 0
    assert run_names([base.parent, continued.parent.parent]) == ["base", "continued"]
    assert run_names([Path("a/log"), Path("b/log")]) == ["a/log", "b/log"]


def test_the_command_says_what_is_missing(
    tmp_path: Path, metrics: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(tmp_path) == 2
    assert "--domain-log-dir" in capsys.readouterr().err
    metrics("base", *ENTRIES)
    metrics("continued", *ENTRIES)
    assert report(tmp_path) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/base {tmp_path}/continued" in error
    assert report(metrics("empty").parent) == 2
    assert "no lines yet" in capsys.readouterr().err
