#!/usr/bin/env python3
"""Open a log folder in a real TensorBoard and a real browser, and save what they show.

    python scripts/tensorboard_screenshot.py LOGDIR OUT.png

Starts TensorBoard on a free loopback port, opens its Custom Scalars page in headless Chromium
(Debian: apt-get install chromium), waits until every chart has drawn its lines, opens the legends
and writes a PNG. Exits with 1 and a message when there is nothing to see.
"""

from __future__ import annotations

import argparse
import base64
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

from browser import Browser, Failure, chromium

# TensorBoard's page is a tree of shadow roots, which querySelectorAll does not enter.
HELPERS = """
const all = (selector, root = document) => [
  ...root.querySelectorAll(selector),
  ...[...root.querySelectorAll('*')].filter(e => e.shadowRoot)
    .flatMap(e => all(selector, e.shadowRoot))];
const cards = () => all('tf-custom-scalar-multi-line-chart-card');
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
            while not _has_layout(address):
                if server.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise Failure(
                        f"TensorBoard does not show a custom-scalars layout of {logdir}; it said:\n"
                        f"{log.read()}"
                    )
                time.sleep(0.5)
            yield address
        finally:
            server.terminate()
            server.wait()


def _has_layout(address: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{address}/data/plugin/custom_scalars/layout", timeout=5) as reply:
            return bool(json.load(reply))
    except (OSError, ValueError):
        return False


def run(browser: Browser, script: str) -> Any:
    """Run JavaScript in TensorBoard's page; the value it returns."""
    return browser.evaluate(f"(() => {{ {HELPERS} {script} }})()")


def wait_until_drawn(browser: Browser, timeout_s: float = 60) -> list[list[int]]:
    """Until every chart that has series shows curves, and nothing changes any more."""
    deadline = time.monotonic() + timeout_s
    before: list[list[int]] = []
    while True:
        time.sleep(1.5)
        run(browser, ARRANGE)
        charts: list[list[int]] = run(browser, CHARTS)
        drawn = all(curves > 0 for series, curves in charts if series)
        if drawn and charts == before and any(curves for _, curves in charts):
            return charts
        if time.monotonic() > deadline:
            raise Failure(
                f"after {timeout_s:.0f} s the charts are not drawn; (series, curves) of each: "
                f"{charts}"
            )
        before = charts


def screenshot(logdir: Path, png: Path, width: int = 1400, height: int = 1250) -> list[list[int]]:
    """Write the picture; returns (series, curves) of every chart in it."""
    executable = chromium()
    if executable is None:
        raise Failure("no chromium on PATH; on Debian or Ubuntu: apt-get install chromium")
    with (
        tensorboard(logdir) as address,
        contextlib.closing(Browser(executable, width, height)) as browser,
    ):
        browser.call("Page.navigate", url=f"{address}/#custom_scalars")
        charts = wait_until_drawn(browser)
        picture = browser.call("Page.captureScreenshot", format="png")["data"]
    png.write_bytes(base64.b64decode(picture))
    return charts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("logdir", type=Path, metavar="LOGDIR")
    parser.add_argument("png", type=Path, metavar="OUT.png")
    args = parser.parse_args()
    try:
        charts = screenshot(args.logdir, args.png)
    except Failure as failure:
        print(f"tensorboard_screenshot: {failure}", file=sys.stderr)
        return 1
    print(f"{args.png}: {len(charts)} charts, {sum(curves for _, curves in charts)} curves drawn")
    return 0


if __name__ == "__main__":
    sys.exit(main())
