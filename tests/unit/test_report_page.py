"""The HTML page: what is on it, that names stay text, and what a browser makes of it."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.traces import note, write_documents

from domain_pretrain.commands.main import main
from domain_pretrain.records.experts_file import EXPERTS_FILE
from domain_pretrain.records.reader import EVENTS_FILE, METRICS_FILE
from domain_pretrain.report.page.markup import data, element
from domain_pretrain.report.page.packing import ABSENT, STEPS, Packing
from domain_pretrain.report.planned import Planned, read_planned
from domain_pretrain.report.series import Series

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from browser import Browser, chromium

EVIL = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<!--",
    "\"'><img src=x onerror=alert(3)>",
    "a\u2028b\u2029c",
    "{{scripts}}",
    "&lt;b&gt;",
    "数学",
    "\ud800",  # of a path that is no UTF-8
]
SPIKE, DIP = 11.0, 0.125


def finding(**changes: Any) -> dict[str, Any]:
    """A line of ``domain_events.jsonl``."""
    return {
        "finding": "spike",
        "domain": "plain",
        "iteration": 20,
        "severity": "error",
        "message": "it jumps",
        "cause": "its data",
        "evidence": {"z": 41.25, "onset": 19},
        "documents": [{"prefix": "/here/data/plain", "document": 7, "text": "odd text"}],
        "advice": "read it",
        **changes,
    }


def write_run(
    folder: Path, names: list[str], windows: int = 40, findings: list[dict[str, Any]] | None = None
) -> Path:
    """A run with everything that a page can show; one spike and one dip in the last domain."""
    folder.mkdir(parents=True)
    dice = np.random.default_rng(0)
    lines: list[dict[str, Any]] = [
        {"event": "start", "iteration": 0, "detail": "", "domains": names},
        {"event": "resume", "iteration": 10, "detail": ""},
        {"event": EVIL[0], "iteration": 12, "detail": EVIL[3]},
    ]
    for window in range(1, windows + 1):
        losses = dict(
            zip(names, np.arange(2, 2 + len(names)) + dice.normal(0, 0.05, len(names)), strict=True)
        )
        if window == windows // 2:
            losses[names[-1]] = SPIKE
        if window == windows // 3:
            losses[names[-1]] = DIP
        domains = {
            name: {
                **{"loss": loss, "loss_sum": 64 * loss, "tokens": 64, "samples": 4},
                **{"weight": 1.5, "expert_entropy": 0.9},
            }
            for name, loss in losses.items()
        }
        entry = {"iteration": window, "consumed_samples": 4 * len(names) * window}
        host = {"learning_rate": 1e-5, "grad_norm": 0.5, "seconds": 2.0}
        lines.append({**entry, "split": "train", "lm_loss": 2.0, "domains": domains, "host": host})
        if window % 10 == 0:
            lines.append({**entry, "split": "valid", "lm_loss": 2.0, "domains": domains})
    (folder / METRICS_FILE).write_text("".join(json.dumps(one) + "\n" for one in lines), "utf-8")
    # In layer 2 all are alike; in layer 4 each domain has an expert of its own.
    own = np.eye(len(names), dtype=int) * 128
    table = {"iteration": windows, "topk": 1, "layers": [2, 4], "domains": names}
    table["load"] = [np.full_like(own, 16).tolist(), own.tolist()]
    (folder / EXPERTS_FILE).write_text(json.dumps(table), "utf-8")
    if findings:
        text = "".join(json.dumps(one) + "\n" for one in findings)
        (folder / EVENTS_FILE).write_text(text, "utf-8")
    return folder


def page(tmp_path: Path, *words: str | Path) -> str:
    out = tmp_path / "page.html"
    assert main(["report", *map(str, words), "--html", str(out)]) == 0
    return out.read_text("utf-8")


class Reader(HTMLParser):
    """Its elements, and what is in its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, str] = {}
        self.texts: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._open = dict(attrs).get("id") or f"{tag} {len(self.inside)}"
            self.inside[self._open] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._open = ""

    def handle_data(self, text: str) -> None:
        if self._open:
            self.inside[self._open] += text
        else:
            self.texts.append(text)

    @property
    def shown(self) -> str:
        return " ".join(" ".join(self.texts).split())


# --- packing --------------------------------------------------------------------------------------


def unpacked(text: str, where: dict[str, Any]) -> np.ndarray[Any, Any]:
    """As decode.js does it."""
    whole = np.frombuffer(gzip.decompress(base64.b64decode(text)), "<u2").astype(np.int64)
    rows, length = where["rows"], where["length"]
    part = whole[where["at"] : where["at"] + rows * length].reshape(rows, length)
    steps = np.cumsum(part, axis=1) % 65536
    low, extent = (np.array(where[key])[:, None] for key in ("low", "extent"))
    return np.where(steps == ABSENT, np.nan, np.sinh(low + steps / STEPS * extent))


def test_numbers_come_back() -> None:
    dice = np.random.default_rng(1)
    rows = np.array(
        [
            dice.uniform(1, 4, 500),
            dice.uniform(0, 1e-5, 500),  # a learning rate
            dice.lognormal(0, 3, 500),
            np.full(500, 3.25),
            np.full(500, np.nan),
        ]
    )
    rows[0, 10], rows[0, 20], rows[0, 30] = 1e6, np.nan, -2.0  # leaves the others as they are
    packing = Packing()
    first = packing.add(rows[:2])
    rest = packing.add(rows[2:])
    found = np.concatenate([unpacked(packing.text(), one) for one in (first, rest)])
    assert np.array_equal(np.isnan(found), np.isnan(rows))
    extent = np.nan_to_num(np.nanmax(rows[1]) - np.nanmin(rows[1]))
    known = ~np.isnan(rows)
    error = np.abs(found - rows)[known]
    assert np.all(error <= 5e-4 * np.maximum(1, np.abs(rows[known])))
    assert np.nanmax(np.abs(found[1] - rows[1])) <= 1e-4 * extent


@pytest.mark.parametrize("points", [1, 3, 499, 500, 501, 700, 5000])
def test_a_grid_loses_no_extreme_and_no_value(points: int) -> None:
    dice = np.random.default_rng(points)
    values = dice.normal(2, 0.1, points)
    values[points // 2], values[points // 3] = SPIKE, DIP if points > 2 else SPIKE
    series = Series()
    for at, value in enumerate(values):
        given = {"a": float(value), "b": math.nan} if at % 3 else {"a": float(value)}
        series.add(at + 1.0, at + 1, given)
    grid = series.grid(500)
    assert grid.names == series.names
    assert grid.mean.shape[1] == len(grid.tokens) == min(points, 500) or points > 1024
    assert grid.mean.shape[1] <= 500
    ends = grid.iteration.astype(int)
    parts = np.split(values, ends[:-1])  # what each bucket holds
    assert grid.high[0].tolist() == [part.max() for part in parts]
    assert grid.low[0].tolist() == [part.min() for part in parts]
    assert np.allclose(grid.mean[0], [part.mean() for part in parts])
    assert np.isclose(grid.total[0].sum(), values.sum())
    assert grid.tokens[-1] == points and np.all(np.diff(grid.tokens) > 0)
    if points > 2:
        assert np.isnan(grid.mean[1]).all() and grid.broken[1].sum() == points - -(-points // 3)


# --- what is on it --------------------------------------------------------------------------------


def test_names_stay_text(tmp_path: Path) -> None:
    """No name, text or number of the data becomes an element, an attribute or a piece of script."""
    evil = [
        finding(
            domain=name,
            message=name,
            cause=name,
            advice=name,
            evidence={name: name},
            documents=[{name: name}],
        )
        for name in EVIL
    ]
    names = [f"d{number}" for number in range(len(EVIL))]
    good = [finding(domain=name) for name in names]
    plain = Reader(page(tmp_path, write_run(tmp_path / "a", names, findings=good)))
    found = Reader(page(tmp_path, write_run(tmp_path / "b", EVIL, findings=evil)))
    count = lambda reader, tag: sum(one == tag for one, _ in reader.elements)  # noqa: E731
    for tag in ("script", "style", "img", "b", "svg", "iframe"):
        assert count(found, tag) == count(plain, tag), tag
    attributes = {key for _, given in found.elements for key in given}
    assert not [key for key in attributes if key.startswith("on")]
    assert found.inside.keys() == plain.inside.keys()
    told = json.loads(found.inside["data"])
    assert [one["name"] for one in told["domains"]] == EVIL
    for name in EVIL[:-1]:
        assert " ".join(name.split()) in found.shown
    whole = (tmp_path / "page.html").read_text("utf-8")
    inside = whole[whole.index('id="data"') : whole.index('id="packed"')]
    assert not set("<>&\u2028\u2029") & set(
        inside[inside.index(">") + 1 : inside.index("</script>")]
    )


def test_markup_escapes_what_it_did_not_make() -> None:
    inner = element("b", "<i>")
    assert inner == "<b>&lt;i&gt;</b>"
    assert element("p", inner, "&", title='"<') == (
        '<p title="&quot;&lt;"><b>&lt;i&gt;</b>&amp;</p>'
    )
    assert json.loads(data({"</script>": "\u2028&"})) == {"</script>": "\u2028&"}
    assert data("</script>\u2028&") == '"\\u003c/script\\u003e\\u2028\\u0026"'


def test_nothing_is_fetched(tmp_path: Path) -> None:
    text = page(tmp_path, write_run(tmp_path / "a", ["plain", "other"], findings=[finding()]))
    found = Reader(text)
    policy = next(given for _, given in found.elements if given.get("http-equiv"))
    assert policy["content"].startswith("default-src 'none';")
    for tag, given in found.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert "src" not in given and "srcset" not in given
        assert (given.get("href") or "#").startswith("#")
    for name, inside in found.inside.items():
        if name.startswith("style"):
            assert not re.search(r"url\(|@import|@font-face", inside)
        elif name.startswith("script"):
            assert not re.search(
                r"\bfetch\(|XMLHttpRequest|WebSocket|\bimport\b|sendBeacon", inside
            )


def test_a_finding_is_told_with_all_that_is_known(tmp_path: Path) -> None:
    found = Reader(page(tmp_path, write_run(tmp_path / "a", ["plain"], findings=[finding()])))
    for words in (
        "#1",
        "error",
        "spike",
        "plain",
        "iteration 20",
        "it jumps",
        "its data",
        "read it",
    ):
        assert words in found.shown
    for words in ("onset 19", "z 41.25", "prefix …/data/plain document 7", "odd text"):
        assert words in found.shown
    assert "/here/data/plain" in [given.get("title") for _, given in found.elements]
    assert ("details", "alarm-1") in [(tag, given.get("id")) for tag, given in found.elements]
    marks = json.loads(found.inside["data"])["runs"][0]["marks"]
    assert [one["kind"] for one in marks] == ["resume", "event", "error"]
    assert marks[-1]["x"] == {"iterations": 20, "tokens": 20 * 64.0}


def test_a_run_without_findings_says_none(tmp_path: Path) -> None:
    found = Reader(page(tmp_path, write_run(tmp_path / "a", ["plain"])))
    assert "Alarms 0" in found.shown
    assert "alarms" not in [given.get("id") for _, given in found.elements]


def test_thousands_of_findings_do_not_fill_the_page(tmp_path: Path) -> None:
    many = [finding(message=f"jump {number}") for number in range(1000)]
    found = Reader(page(tmp_path, write_run(tmp_path / "a", ["plain"], findings=many)))
    assert sum(given.get("class") == "alarm" for _, given in found.elements) == 200
    assert "and 800 more in domain_events.jsonl" in found.shown
    assert len(json.loads(found.inside["data"])["runs"][0]["marks"]) == 1002


def test_the_console_tells_what_alarms_found(tmp_path: Path, capsys: Any) -> None:
    many = [finding(message=f"jump {number}") for number in range(20)]
    page(tmp_path, write_run(tmp_path / "a", ["plain"], findings=many))
    said = capsys.readouterr().out
    assert "error at iteration 20, spike: jump 7\n… 12 more in domain_events.jsonl\n" in said
    assert re.search(r"page: .*page\.html \(0\.1 MB\)", said)


def test_runs_to_compare(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", ["a", "b"])
    other = write_run(tmp_path / "other", ["b", "c"])
    found = Reader(page(tmp_path, first, other, "--compare"))
    told = json.loads(found.inside["data"])
    assert [run["name"] for run in told["runs"]] == ["first", "other"]
    assert [run["start"]["tokens"] for run in told["runs"]] == [0, 0]
    assert [one["name"] for one in told["domains"]] == ["a", "b", "c"]
    assert "Comparison of runs" in found.shown and "other − first" in found.shown
    found = Reader(page(tmp_path, first, other))
    told = json.loads(found.inside["data"])
    assert told["runs"][1]["start"] == {"tokens": 40 * 128.0, "iterations": 40}
    assert "Comparison of runs" not in found.shown


def test_a_page_that_cannot_be_written_is_said(tmp_path: Path, capsys: Any) -> None:
    run = write_run(tmp_path / "a", ["plain"])
    assert main(["report", str(run), "--html", str(tmp_path / "no" / "page.html")]) != 0
    said = capsys.readouterr()
    assert "cannot write" in said.err + said.out
    assert not list(tmp_path.glob("**/*.html"))


def by_samples(folder: Path, since: int = 0) -> Path:
    """Its losses become means over samples, from the line after that iteration on."""
    path = folder / METRICS_FILE
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for line in lines:
        if "split" in line and line["iteration"] > since:
            for values in line["domains"].values():
                values["sample_loss_sum"] = values["loss"] * values["samples"]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), "utf-8")
    return folder


@pytest.mark.parametrize("since", [0, 20])
def test_losses_by_another_average_are_not_subtracted(
    tmp_path: Path, capsys: Any, since: int
) -> None:
    token = write_run(tmp_path / "token", ["a", "b"])
    other = write_run(tmp_path / "other", ["a", "b"])
    difference = re.compile(r"[+-]\d\.\d{3} ± ")
    found = Reader(page(tmp_path, token, other, "--compare"))
    assert difference.search(found.shown)
    assert "do not compare" not in capsys.readouterr().out
    by_samples(other, since)
    found = Reader(page(tmp_path, token, other, "--compare"))
    assert "other − token" in found.shown and not difference.search(found.shown)
    over = "over samples and tokens" if since else "over samples"
    told = f"they are means over tokens in token, {over} in other."
    assert told in found.shown and told in capsys.readouterr().out
    assert ("do not compare" in Reader(page(tmp_path, other)).shown) == bool(since)
    by_samples(token)
    by_samples(other)
    found = Reader(page(tmp_path, token, other, "--compare"))
    assert difference.search(found.shown) and "do not compare" not in found.shown


# --- shares by plan -------------------------------------------------------------------------------


def test_shares_by_the_hosts_blend(tmp_path: Path) -> None:
    domains = {str(tmp_path / name): name for name in "ab"}
    for prefix in domains:
        write_documents(Path(prefix), [[0, 1] * 20] * 40)
    note(tmp_path, domains, 10)
    planned = read_planned(tmp_path)
    assert planned.shares(0, 40) == pytest.approx({"a": 2 / 3, "b": 1 / 3})


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    def write(*starts: dict[str, Any]) -> Planned:
        lines = [
            {
                "iteration": one["at"],
                "consumed_samples": one["at"],
                "order": {"data": [[["a", one.get("share"), 1, 1]], None, None]},
                "reads": {"prefixes": ["x", "y"], "domains": ["a", "b"], "plan": one["plan"]},
            }
            for one in starts
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "domain_journal.jsonl").write_text(text, "utf-8")
        return read_planned(tmp_path)

    return write


def plan(*stages: tuple[int | None, list[float] | None], block: int | None = None) -> Any:
    told = [{"samples": size, "weights": of, "shape": "constant"} for size, of in stages]
    return {"prefixes": ["x", "y"], "stages": told, "samples": 100, "cuts": [], "block": block}


def test_shares_by_stages_and_resumes(journal: Any) -> None:
    planned = journal({"at": 0, "plan": plan((60, [3, 1]), (None, [1, 1]))})
    assert planned.shares(0, 60) == pytest.approx({"a": 0.75, "b": 0.25})
    assert planned.shares(30, 90) == pytest.approx({"a": 0.625, "b": 0.375})
    planned = journal(
        {"at": 0, "plan": plan((None, [3, 1]))}, {"at": 50, "plan": plan((None, [0, 1]))}
    )
    assert planned.shares(0, 100) == pytest.approx({"a": 0.375, "b": 0.625})
    assert planned.shares(60, 100) == pytest.approx({"b": 1.0})


def test_what_is_not_planned_is_not_told(journal: Any, tmp_path: Path) -> None:
    assert read_planned(tmp_path / "nowhere").shares(0, 10) == {}
    assert journal({"at": 0, "plan": plan((None, [1, 1]), block=10)}).shares(0, 10) == {}
    assert journal({"at": 0, "plan": plan((None, None))}).shares(0, 10) == {}  # by size
    assert journal({"at": 0, "plan": None}).shares(0, 10) == {}


# --- in a browser ---------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(
    chromium() is None, reason="no chromium on PATH: what a browser makes of the page is not tried"
)


@pytest.fixture
def browser() -> Iterator[Browser]:
    with closing(Browser(1000, 800)) as found:
        for domain in ("Network", "Runtime", "Page"):
            found.call(f"{domain}.enable")
        offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        found.call("Network.emulateNetworkConditions", **offline)
        yield found


def opened(browser: Browser, file: Path) -> None:
    """Wait until the page has drawn its curves."""
    browser.call("Page.navigate", url=file.as_uri())
    deadline = time.monotonic() + 60
    while not browser.evaluate("document.documentElement?.dataset.ready ?? null"):
        failed = browser.evaluate("document.documentElement?.dataset.failed ?? null")
        assert failed is None, failed
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Pixels of the first domain's blue, #0072B2.
BLUE = """(() => {
  const canvas = document.querySelector('[data-chart=train] canvas');
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const near = (i, value) => Math.abs(data[i] - value) < 6;
  let found = 0;
  for (let i = 0; i < data.length; i += 4)
    if (data[i + 3] && near(i, 0) && near(i + 1, 114) && near(i + 2, 178)) found++;
  return found;
})()"""


@needs_chromium
def test_a_browser_draws_it_without_network_and_runs_no_name(
    tmp_path: Path, browser: Browser
) -> None:
    evil = [finding(domain=name, message=name, documents=[{name: name}]) for name in EVIL]
    page(tmp_path, write_run(tmp_path / "a", EVIL, windows=2000, findings=evil))
    opened(browser, tmp_path / "page.html")
    seen = browser.events
    asked = [one["params"] for one in seen if one["method"] == "Network.requestWillBeSent"]
    assert [one["request"]["url"] for one in asked] == [(tmp_path / "page.html").as_uri()]
    wrong = ("Runtime.exceptionThrown", "Page.javascriptDialogOpening")
    assert not [one for one in seen if one["method"] in wrong]
    chips = "[...document.querySelectorAll('#domains label')].map(one => one.innerText.trim())"
    assert browser.evaluate(chips)[:2] == EVIL[:2]


@needs_chromium
def test_switches_take_curves_away_and_bring_them_back(tmp_path: Path, browser: Browser) -> None:
    page(tmp_path, write_run(tmp_path / "a", ["first", "other", "third"]))
    opened(browser, tmp_path / "page.html")
    drawn = browser.evaluate(BLUE)
    assert drawn > 100
    switch = "document.querySelector('#domains input').click()"
    browser.evaluate(switch)
    assert browser.evaluate(BLUE) == 0
    browser.evaluate(switch)
    assert browser.evaluate(BLUE) == drawn
    browser.evaluate("document.querySelector('[name=x][value=iterations]').click()")
    assert browser.evaluate(BLUE) > 100
    browser.evaluate("document.getElementById('theme').click()")  # where it is another blue
    assert browser.evaluate(BLUE) == 0
    # What is under the pointer, by keyboard.
    hover = "document.querySelector('[data-chart=train]').dispatchEvent(new KeyboardEvent("
    browser.evaluate(hover + "'keydown', {key: 'ArrowRight'}))")
    said = "new Promise(done => setTimeout(() => done(document.getElementById('tip').innerText)))"
    assert "first" in browser.evaluate(said)


def test_experts_have_a_table(tmp_path: Path) -> None:
    shown = Reader(page(tmp_path, write_run(tmp_path / "a", ["first", "other"]))).shown
    assert "At iteration 40, 1 a token" in shown
    assert "first 1.5 of 2 1.0 (layer 4) 2.0 × (layer 4, expert 0)" in shown
    (tmp_path / "a" / EXPERTS_FILE).unlink()
    assert "a token" not in Reader(page(tmp_path, tmp_path / "a")).shown


# The colour of every cell of the map, by row.
CELLS = """[...document.querySelectorAll('[data-experts] tr')].map(row =>
  [...row.querySelectorAll('td')].map(cell => getComputedStyle(cell).backgroundColor))"""


@needs_chromium
def test_the_map_of_experts_shows_a_layer_at_a_time(tmp_path: Path, browser: Browser) -> None:
    page(tmp_path, write_run(tmp_path / "a", ["first", "other", "third"]))
    opened(browser, tmp_path / "page.html")
    alike = browser.evaluate(CELLS)
    assert len(alike) == 3
    assert len({colour for row in alike for colour in row}) == 1
    browser.evaluate("""(() => {
      const select = document.querySelector('[data-experts] select');
      select.value = 1;
      select.dispatchEvent(new Event('change'));
    })()""")
    own = browser.evaluate(CELLS)
    full, none = own[0][0], own[0][1]
    assert full != none
    assert own == [[full if row == at else none for at in range(3)] for row in range(3)]
    browser.evaluate("document.getElementById('theme').click()")
    assert browser.evaluate(CELLS)[0][0] != full


@needs_chromium
def test_dragging_looks_closer_and_a_double_click_goes_back(
    tmp_path: Path, browser: Browser
) -> None:
    page(tmp_path, write_run(tmp_path / "a", ["first", "other"]))
    opened(browser, tmp_path / "page.html")
    whole = browser.evaluate(BLUE)
    place = browser.evaluate("""(() => {
      const over = document.querySelector('[data-chart=train] .u-over');
      over.scrollIntoView({block: 'center'});
      const {x, y, width, height} = over.getBoundingClientRect();
      return {x: x + width / 2, y: y + height / 2};
    })()""")

    def mouse(kind: str, dx: int = 0, clicks: int = 1) -> None:
        at = {"x": place["x"] + dx, "y": place["y"], "button": "left", "clickCount": clicks}
        browser.call("Input.dispatchMouseEvent", type=kind, buttons=1, **at)

    mouse("mouseMoved")
    mouse("mousePressed")
    for dx in (20, 60, 100):
        mouse("mouseMoved", dx)
    mouse("mouseReleased", 100)
    hidden = "new Promise(done => setTimeout(() => done(document.getElementById('whole').hidden)))"
    assert browser.evaluate(hidden) is False
    assert browser.evaluate(BLUE) != whole  # without the spike, its scale is another, too
    for clicks in (1, 2):
        mouse("mousePressed", clicks=clicks)
        mouse("mouseReleased", clicks=clicks)
    assert browser.evaluate(hidden) is True
    assert browser.evaluate(BLUE) == whole


@needs_chromium
def test_a_browser_unpacks_the_spike_and_the_dip(tmp_path: Path, browser: Browser) -> None:
    page(tmp_path, write_run(tmp_path / "a", ["plain", "jumps"], windows=3000))
    opened(browser, tmp_path / "page.html")
    found = browser.evaluate("""(async () => {
      const {mean, low, high} = JSON.parse($('data').textContent).runs[0].curves.train;
      const packed = await unpack($('packed').textContent);
      return [decode(packed, low, 1).reduce((a, b) => Math.min(a, b)),
              decode(packed, high, 1).reduce((a, b) => Math.max(a, b)),
              Math.max(...decode(packed, mean, 1)), mean.length];
    })()""")
    assert found[:2] == pytest.approx([DIP, SPIKE], rel=1e-3)
    assert found[2] < 6 and found[3] <= 500  # each is one of several windows of its bucket


@needs_chromium
def test_a_phone_needs_no_sideways_scrolling(tmp_path: Path, browser: Browser) -> None:
    names = ["plain", "a domain with a name that is longer than a phone is wide, by quite a bit"]
    page(tmp_path, write_run(tmp_path / "a", names, findings=[finding()]))
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.call("Emulation.setDeviceMetricsOverride", **phone)
    opened(browser, tmp_path / "page.html")
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
