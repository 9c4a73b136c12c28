"""Headless Chromium for scripts, benchmarks and tests, over its debugging pipe."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from typing import Any


class Failure(Exception):
    """Said to the user without a traceback."""


def chromium() -> str | None:
    """Where it is, if it is installed (Debian: apt-get install chromium)."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """Headless Chromium, driven over its debugging pipe (messages end with a NUL byte).

    Args:
        width, height: of its window, in pixels.

    Raises:
        Failure: it is not installed.
    """

    def __init__(self, width: int, height: int) -> None:
        executable = chromium()
        if executable is None:
            raise Failure("no chromium on PATH; on Debian or Ubuntu: apt-get install chromium")
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        flags = "--headless=new --no-sandbox --disable-gpu --hide-scrollbars --no-proxy-server"
        # Chromium reads the pipe at file descriptor 3 and answers at 4.
        self._process = subprocess.Popen(
            [
                *("bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash"),
                *(executable, *flags.split(), "--remote-debugging-pipe"),
                *(f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}"),
            ],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self.events: list[dict[str, Any]] = []  # of the domains that were enabled, as they come
        self._id = 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and its result."""
        self._id += 1
        message: dict[str, Any] = {"id": self._id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                chunk = os.read(self._read, 1 << 16)
                if not chunk:
                    raise Failure(f"Chromium ended during {method}; does it start here by hand?")
                self._buffer += chunk
            answer, self._buffer = self._buffer.split(b"\0", 1)
            reply = json.loads(answer)
            if reply.get("id") == self._id:
                if "error" in reply:
                    raise Failure(f"Chromium refused {method}: {reply['error']['message']}")
                return dict(reply["result"])
            self.events.append(reply)

    def evaluate(self, expression: str) -> Any:
        """The value of JavaScript in the page; of a promise, what it comes to."""
        given = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        reply = self.call("Runtime.evaluate", **given)
        if "exceptionDetails" in reply:
            raise Failure(f"the page is not as expected: {reply['exceptionDetails']}")
        return reply["result"].get("value")

    def picture(self) -> bytes:
        """What is in the window, a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """End the browser and forget its profile."""
        os.close(self._write)
        self._process.terminate()
        self._process.wait()
        os.close(self._read)
        self._profile.cleanup()
