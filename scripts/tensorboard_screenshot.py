#!/usr/bin/env python3
"""Open a log folder in a real TensorBoard and a real browser, and save what they show.

    python scripts/tensorboard_screenshot.py LOGDIR OUT.png [TAB]

Starts TensorBoard on a free loopback port, opens a tab in headless Chromium (Debian: apt-get
install chromium), waits until every chart has drawn its lines, and writes a PNG. TAB is timeseries
(the default), hparams, text, or custom_scalars (the default where a run has more than 50 domains).
Exits with 1 and a message when there is nothing to see.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from browser import Browser, Failure

TABS = ("timeseries", "hparams", "text", "custom_scalars")
# Of tabs in which Megatron has much, what is the plugin's.
OURS = {
    "timeseries": "?tagFilter=channel#timeseries",
    "text": "#text&tagFilter=domain_pretrain",
}
# TensorBoard's page is a tree of shadow roots, which querySelectorAll does not enter.
HELPERS = """
const all = (selector, root = document) => [
  ...root.querySelectorAll(selector),
  ...[...root.querySelectorAll('*')].filter(e => e.shadowRoot)
    .flatMap(e => all(selector, e.shadowRoot))];
const cards = () => all('tf-custom-scalar-multi-line-chart-card');
"""
# Without the settings, which take a fifth of the page.
HIDE_SETTINGS = "all('button.settings-button.checked').forEach(button => button.click());"
# The legend of each chart that is in view; hparams and text have rows of other kinds.
LEGENDS = """
return all('card-view').map(card => all('tb-data-table-content-row', card).length)
  .filter(rows => rows);
"""
ROWS = """
return all('vaadin-grid-cell-content, tf-markdown-view')
  .map(cell => (cell.shadowRoot || cell).textContent.trim()).filter(text => text);
"""
# The middle of the loss chart, for the pointer: TensorBoard then says which curve is which.
MIDDLE = """
const card = all('card-view').find(card => card.querySelector('[title="channel/loss"]'));
if (!card) return null;
const box = all('line-chart', card)[0].getBoundingClientRect();
return [box.x + box.width / 2, box.y + box.height / 2];
"""
# The first chart large, its legend open, and no curve cut off as an outlier.
ARRANGE = """
const dashboard = all('tf-custom-scalar-dashboard')[0];
if (dashboard) dashboard._ignoreYOutliers = false;
const first = cards()[0];
if (first && !first._expanded) { first._toggleExpanded(); first._toggleMatchesOpen(); }
"""
# For each chart: how many series it has, and how many curves it has drawn.
CHARTS = """
return cards().map(card => [
  Object.keys(card._nameToDataSeries || {}).length,
  all('path.line', card.shadowRoot).filter(path => path.getAttribute('d')).length]);
"""


@contextlib.contextmanager
def tensorboard(logdir: Path, timeout_s: float = 60) -> Iterator[str]:
    """Serve ``logdir`` on loopback; yields the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # A relative folder: the page shows it.
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logdir.resolve().name]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=logdir.resolve().parent
        )
        try:
            address = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + timeout_s
            while not _answer(address, "runs"):
                if server.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise Failure(f"TensorBoard shows no run in {logdir}; it said:\n{log.read()}")
                time.sleep(0.5)
            yield address
        finally:
            server.terminate()
            server.wait()


def _answer(address: str, what: str) -> Any:
    """What TensorBoard says; None: nothing yet."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{address}/data/{what}", timeout=5) as reply:
            return json.load(reply)
    except (OSError, ValueError):
        return None


def run(browser: Browser, script: str) -> Any:
    """Run JavaScript in TensorBoard's page; the value it returns."""
    return browser.evaluate(f"(() => {{ {HELPERS} {script} }})()")


def wait_until_drawn(browser: Browser, timeout_s: float = 60) -> str:
    """Until every custom chart that has series shows curves, and nothing changes any more."""
    deadline = time.monotonic() + timeout_s
    before: list[list[int]] = []
    while True:
        time.sleep(1.5)
        run(browser, ARRANGE)
        charts: list[list[int]] = run(browser, CHARTS)
        drawn = all(curves > 0 for series, curves in charts if series)
        if drawn and charts == before and any(curves for _, curves in charts):
            return f"{len(charts)} charts, {sum(curves for _, curves in charts)} curves drawn"
        if time.monotonic() > deadline:
            raise Failure(
                f"after {timeout_s:.0f} s the charts are not drawn; (series, curves) of each: "
                f"{charts}"
            )
        before = charts


def wait_until_still(browser: Browser, tab: str, timeout_s: float = 60) -> str:
    """Until there is something in the tab, and the picture does not change any more."""
    deadline = time.monotonic() + timeout_s
    before = b""
    while True:
        time.sleep(2)
        run(browser, HIDE_SETTINGS)
        found = run(browser, LEGENDS if tab == "timeseries" else ROWS)
        shown = browser.picture()
        if found and shown == before:
            if tab != "timeseries":
                return f"{len(found)} cells"
            return f"{len(found)} charts in view, with {sum(found)} curves"
        if time.monotonic() > deadline:
            raise Failure(f"after {timeout_s:.0f} s the tab {tab} is empty, or still changing")
        before = shown


def screenshot(logdir: Path, png: Path, tab: str | None) -> str:
    """Write the picture; returns what is in it."""
    width, height = 1400, 640 if tab in ("hparams", "text") else 1250
    with (
        tensorboard(logdir) as address,
        contextlib.closing(Browser(width, height)) as browser,
    ):
        if tab is None:
            layout = _answer(address, "plugin/custom_scalars/layout")
            tab = "custom_scalars" if layout else "timeseries"
        browser.call("Page.navigate", url=f"{address}/{OURS.get(tab, '#' + tab)}")
        if tab == "custom_scalars":
            seen = wait_until_drawn(browser)
        else:
            seen = wait_until_still(browser, tab)
            middle = run(browser, MIDDLE)
            if middle is not None:
                x, y = middle
                browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
                time.sleep(1)
        png.write_bytes(browser.picture())
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("logdir", type=Path, metavar="LOGDIR")
    parser.add_argument("png", type=Path, metavar="OUT.png")
    parser.add_argument("tab", nargs="?", choices=TABS, metavar="TAB")
    args = parser.parse_args()
    try:
        seen = screenshot(args.logdir, args.png, args.tab)
    except Failure as failure:
        print(f"tensorboard_screenshot: {failure}", file=sys.stderr)
        return 1
    print(f"{args.png}: {seen}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
