#!/usr/bin/env python3
"""Open a report page in a real browser, and save it as it looks on a desk and on a phone.

    python scripts/report_screenshot.py report.html OUT.png

Writes one PNG: on the left the page, light, with the pointer on the first chart; on the right the
same dark on a phone, from its alarms on (or its curves, where there are none). Needs Chromium
(Debian: apt-get install chromium), and Pillow, which comes with matplotlib.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from pathlib import Path

from browser import Browser, Failure
from PIL import Image

HEIGHT, DESK, PHONE, GAP = 1120, 1100, 480, 24
# Two thirds into the first chart, for the pointer: its tooltip says the losses there.
POINT = """
(() => {
  const box = document.querySelector('.u-over').getBoundingClientRect();
  return [box.x + box.width * 0.62, box.y + box.height * 0.5];
})()
"""
DARK_FROM_ALARMS = """
document.querySelector('#theme').click();
(document.querySelector('#alarms') || document.querySelector('#curves')).scrollIntoView();
"""


def shot(page: Path, width: int, *, dark: bool) -> Image.Image:
    """The page in a window of its own."""
    with contextlib.closing(Browser(width, HEIGHT)) as browser:
        size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": dark}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        browser.call("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + 30
        while not browser.evaluate("!!document.querySelector('.u-over')"):
            if time.monotonic() > deadline:
                raise Failure(f"{page} shows no chart: is it a page of domain-pretrain report?")
            time.sleep(0.2)
        if dark:
            browser.evaluate(DARK_FROM_ALARMS)
        else:
            x, y = browser.evaluate(POINT)
            browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        time.sleep(1)
        return Image.open(io.BytesIO(browser.picture())).convert("RGB")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("page", type=Path, metavar="report.html")
    parser.add_argument("png", type=Path, metavar="OUT.png")
    args = parser.parse_args()
    try:
        desk = shot(args.page, DESK, dark=False)
        phone = shot(args.page, PHONE, dark=True)
    except Failure as failure:
        print(f"report_screenshot: {failure}", file=sys.stderr)
        return 1
    whole = Image.new("RGB", (DESK + GAP + PHONE, HEIGHT), "white")
    whole.paste(desk, (0, 0))
    whole.paste(phone, (DESK + GAP, 0))
    # 256 colours: a third of the bytes, and no difference that one sees.
    whole.quantize(256, method=Image.Quantize.MAXCOVERAGE).save(args.png, optimize=True)
    print(f"{args.png}: {args.png.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
