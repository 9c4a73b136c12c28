#!/usr/bin/env python3
"""How large a page of ``report --html`` is, and how long a browser takes to open it.

    python benchmarks/report_page/run.py --output benchmarks/report_page/results/cpu.json

The metrics file, of 1,000 domains and 10,000 windows by default, is written by the plugin's own
writer, with reweighting and evaluations. Two domains have a window of their own: a spike and a dip,
which have to be in what the page has drawn. *Drawn* is the time from the start of the navigation to
the frame after the last curve, in headless Chromium (Debian: apt-get install chromium), without
network; the page is opened anew each time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "scripts")]

from browser import Browser, Failure, chromium  # noqa: E402
from provenance import provenance  # noqa: E402
from written import write_json  # noqa: E402

from domain_pretrain.records.metrics_file import MetricsFile  # noqa: E402
from domain_pretrain.records.record import Record, reweighted  # noqa: E402
from domain_pretrain.stats import SCALE, Column, DomainStats  # noqa: E402

SPIKE, DIP = 11.0, 0.2  # nats
WINDOW = 4_000_000  # tokens
DRAWN = "Number(document.documentElement?.dataset.ready ?? 0)"
FAILED = "document.documentElement?.dataset.failed ?? ''"


def stats(names: tuple[str, ...], losses: Any, tokens: Any) -> DomainStats:
    sums = np.zeros((len(names) + 1, len(Column)), dtype=np.int64)
    sums[:-1, Column.LOSS] = losses * tokens * SCALE[Column.LOSS]
    sums[:-1, Column.TOKENS] = tokens * SCALE[Column.TOKENS]
    sums[:-1, Column.SAMPLES] = tokens // 4096 + 1
    return DomainStats(names, sums)


def write(folder: Path, domains: int, windows: int) -> None:
    """A metrics file; the last domain has a spike, the one before it a dip."""
    names, dice = tuple(f"domain-{place:04}" for place in range(domains)), np.random.default_rng(0)
    base = dice.uniform(1, 4, domains)
    file = MetricsFile(folder, "token", after_iteration=0, corpus_tokens={})
    for window in range(1, windows + 1):
        losses = base + 2 * np.exp(-5 * window / windows) + dice.normal(0, 0.08, domains)
        if window == windows * 3 // 5:
            losses[-1] = SPIKE
        if window == windows // 3:
            losses[-2] = DIP
        tokens = dice.poisson(WINDOW / domains, domains)
        weights = 1 + 0.3 * np.sin(window / windows + base) + dice.normal(0, 0.02, domains)
        consumed = {name: float(window * WINDOW // domains) for name in names}
        samples = {name: window * 1000 for name in names}
        host = {"learning_rate": 1e-5, "grad_norm": float(dice.gamma(4, 0.2)), "seconds": 12.3}
        own = stats(names, losses, tokens)
        record = Record("train", window, window * 1000, own, consumed, samples, host=host)
        file.line(reweighted(record, stats(names, losses, np.rint(tokens * weights)), {}))
        if window % max(1, windows // 20) == 0:
            file.line(Record("valid", window, window * 1000, stats(names, losses + 0.1, tokens)))
    file.close()


def page(folder: Path, out: Path) -> float:
    """Seconds of ``report --html``."""
    started = time.monotonic()
    command = [sys.executable, "-m", "domain_pretrain.commands", "report", str(folder)]
    subprocess.run([*command, "--html", str(out)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def opened(out: Path, found: str) -> tuple[float, Any]:
    """Seconds until it is drawn, and the value of an expression then."""
    with closing(Browser(1280, 900)) as browser:
        browser.call("Network.enable")
        given = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        browser.call("Network.emulateNetworkConditions", **given)
        browser.call("Page.navigate", url=out.resolve().as_uri())
        deadline = time.monotonic() + 120
        while not (drawn := browser.evaluate(DRAWN)):
            failed = browser.evaluate(FAILED)
            if failed or time.monotonic() > deadline:
                raise Failure(failed or "not drawn after two minutes")
            time.sleep(0.05)
        return drawn / 1000, browser.evaluate(found)


# What the curves of the last two domains reach, of the numbers that are drawn.
REACHED = """(async () => {
  const report = JSON.parse(document.getElementById('data').textContent);
  const packed = await unpack(document.getElementById('packed').textContent.trim());
  const {of, mean, low, high} = report.runs[0].curves.train, last = report.domains.length - 1;
  const row = (part, place) => [...decode(packed, part ?? mean, of.indexOf(place))];
  return [Math.max(...row(high, last)), Math.min(...row(low, last - 1))];
})()"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--domains", type=int, default=1000)
    parser.add_argument("--windows", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="metrics file and page stay")
    options = parser.parse_args(arguments)
    if chromium() is None:
        print("no chromium on PATH; on Debian or Ubuntu: apt-get install chromium")
        return 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        out = folder / "report.html"
        if not (folder / "domain_metrics.jsonl").exists():
            write(folder, options.domains, options.windows)
        seconds = page(folder, out)
        turns = [opened(out, REACHED) for _ in range(options.turns)]
        result = {
            **provenance(__file__),
            "load": os.getloadavg()[0],
            "domains": options.domains,
            "windows": options.windows,
            "metrics_mb": (folder / "domain_metrics.jsonl").stat().st_size / 1e6,
            "page_mb": out.stat().st_size / 1e6,
            "report_s": seconds,
            "drawn_s": [drawn for drawn, _ in turns],
            "spike": {"planted": SPIKE, "drawn": turns[0][1][0]},
            "dip": {"planted": DIP, "drawn": turns[0][1][1]},
        }
    print(json.dumps(result, indent=1))
    write_json(options.output, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
