from __future__ import annotations

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
from domain_pretrain.errors import ConfigError
from domain_pretrain.records.publisher import open_publisher
from domain_pretrain.records.reader import METRICS_FILE, MetricsTail, read_metrics
from domain_pretrain.records.record import Record
from domain_pretrain.report.curves import Curve, moving_average, read_curves
from domain_pretrain.report.picture import COLOURS, loss_picture
from domain_pretrain.report.spread import spread
from domain_pretrain.report.table import CORPUS_TOKENS_FILE, corpus_tokens, loss_table, summarise
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
    (json.dumps({**line(2), "domains": {"n" * 5000: 1}}), r"domains\.n{72}: Input should be a"),
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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"corpus_tokens\.json', line 1, column 2, is not JSON: Expecting property name"),
        ("[" * 100_000, r"corpus_tokens\.json' is nested too deeply"),
        ('{"a": ' + "1" * 5_000 + "}", r"corpus_tokens\.json' is not JSON: Exceeds the limit"),
        ("[1]", "should hold the number of tokens of each domain: Input should be a valid dict"),
        ('{"a": "many"}', "should hold the number of tokens of each domain: Input should be a val"),
        ('{"a": 0}', "should hold the number of tokens of each domain: Input should be greater"),
    ],
    ids=range(6),
)
def test_a_spoilt_count_of_tokens_is_a_clear_error(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / CORPUS_TOKENS_FILE).write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        corpus_tokens(tmp_path)
    assert len(str(caught.value)) < 600


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
    sums = np.zeros((3, len(Column)), dtype=np.int64)
    sums[:2, Column.LOSS] = [2 * SCALE[Column.LOSS], 3 * SCALE[Column.LOSS]]
    sums[:2, Column.TOKENS] = SCALE[Column.TOKENS]
    stats = DomainStats(("finance", "general"), sums)
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


# --- curves -----------------------------------------------------------------------------------


def test_phases_follow_one_another_on_either_axis(metrics: Callable[..., Path]) -> None:
    base = metrics("base", line(10, a=3.0), line(20, a=2.0), line(20, "valid", a=2.5))
    continued = metrics(
        "continued", line(10, a=1.5, b=4.0), line(20, b=None), line(30, "test", a=9.0)
    )
    phases = [("base", base), ("continued", continued)]
    by_tokens, by_iterations = (read_curves(phases, x) for x in ("tokens", "iterations"))
    assert by_tokens.starts == [("base", 0), ("continued", 2000)]
    assert by_tokens.train["a"] == [
        Curve(0, [1000, 2000], [3.0, 2.0]),
        Curve(1, [4000], [1.5]),
    ]
    assert by_tokens.valid == {"a": [Curve(0, [2000], [2.5])]}
    assert by_iterations.starts == [("base", 0), ("continued", 20)]
    (b,) = by_iterations.train["b"]
    assert b.x == [30, 40] and b.loss[0] == 4.0 and math.isnan(b.loss[1])


def test_the_moving_average_keeps_a_slope_straight_to_both_ends() -> None:
    slope = [0.5 * i for i in range(50)]
    assert moving_average(slope, 9) == pytest.approx(slope)
    assert moving_average([1.0, math.nan, 3.0], 3)[1] == 2.0


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
    loss_picture(None, tmp_path / "x.png", phases=[("base", base), ("continued", continued)])
    shown = colours_of(tmp_path / "x.png")
    assert set(COLOURS[:3]) <= shown
    assert not set(COLOURS[3:7]) & shown


def test_of_many_domains_the_broken_and_the_worst_have_a_colour(
    tmp_path: Path, metrics: Callable[..., Path]
) -> None:
    losses: dict[str, float | None] = {f"d{i:02}": float(i) for i in range(30)}
    path = metrics("run", line(1, **losses), line(2, **{**losses, "d03": None}))
    loss_picture(path, tmp_path / "x.svg")
    svg = (tmp_path / "x.svg").read_text(
        encoding="utf-8"
    )  # each label stands in a comment of the SVG
    labels = {name for name in losses if f"<!-- {name}  " in svg}
    assert labels == {"d03", *(f"d{i}" for i in range(24, 30))}
    assert "<!-- d03  NaN -->" in svg and "<!-- and 23 more -->" in svg


def test_a_domain_that_was_never_finite_can_be_drawn(
    tmp_path: Path, metrics: Callable[..., Path]
) -> None:
    loss_picture(metrics("run", line(1, a=1.0, b=None)), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 0


def test_a_picture_without_lines_or_matplotlib_is_a_clear_error(
    tmp_path: Path, metrics: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = metrics("run", line(1, "valid", a=1.0))
    with pytest.raises(ConfigError, match="nothing to draw"):
        loss_picture(path, tmp_path / "x.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"domain-pretrain\[demo\]"):
        loss_picture(path, tmp_path / "x.png")


# --- table and command ------------------------------------------------------------------------

ENTRIES = [
    line(10, a=3.0, b=None),
    line(10, "valid", a=3.5),
    line(20, a=2.0),
    line(20, "valid", a=2.5),
    line(20, "test", a=9.0),
]


def text_of(*args: Any) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(loss_table(*args))
    return console.export_text()


def test_the_table_tells_start_and_end_of_every_domain() -> None:
    a, b = summarise(ENTRIES, {"a": 1000})
    assert (a.tokens, a.epochs, a.start, a.end, a.valid) == (2000, 2.0, 3.0, 2.0, 2.5)
    assert a.ppl == math.exp(2.5)
    assert (b.tokens, b.epochs, b.valid) == (1000, None, None)
    assert b.start is not None and math.isnan(b.start)
    rows = [row for row in text_of([a, b]).splitlines() if row.startswith("│")]  # without header
    assert [cell.strip() for cell in rows[0].strip("│").split("│")] == [
        "a", "2,000", "2.00", "3.000 → 2.000", "2.500", "12.18",
    ]  # fmt: skip
    assert [cell.strip() for cell in rows[1].strip("│").split("│")] == [
        "b", "1,000", "–", "NaN → NaN", "–", "–",
    ]  # fmt: skip


def test_columns_that_say_nothing_are_left_out() -> None:
    text = text_of(summarise([line(10, a=1.0)]))
    assert "epochs" not in text and "valid" not in text
    assert "2.72" in text


def report(*arguments: Any) -> int:
    return main(["report", *map(str, arguments)])


def test_the_command_prints_a_table_and_writes_a_picture(
    tmp_path: Path, metrics: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base, continued = metrics("base", *ENTRIES), metrics("continued/tensorboard", *ENTRIES)
    (base.parent / CORPUS_TOKENS_FILE).write_text('{"a": 500}')
    png = tmp_path / "out.png"
    assert report(base.parent, continued.parent.parent, "--png", png) == 0
    out = capsys.readouterr().out
    assert out.count("3.000 → 2.000") == 2
    assert "4.00" in out
    assert png.read_bytes().startswith(b"\x89PNG")


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
