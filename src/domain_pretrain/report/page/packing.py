"""Numbers for a page: 16 bits each, as differences, compressed, as text."""

from __future__ import annotations

import base64
import gzip
from typing import Any

import numpy as np

from domain_pretrain.report.series import Floats

STEPS = 65534
ABSENT = 65535


class Packing:
    """Matrices of numbers, packed one behind the other; ``decode.js`` is the other side.

    Each row is laid on a scale of its own between its least and its greatest number. The scale is
    that of asinh: even up to about 1, logarithmic above, so that one number of a million leaves
    the others as they are. The error is at most 1e-4 of a number, or of the row's extent below 1.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._used = 0

    def add(self, rows: Floats) -> dict[str, Any]:
        """Pack ``[rows, numbers]``, where NaN is none; says where they are, as JSON values."""
        scaled = np.arcsinh(np.where(np.isfinite(rows), rows, np.nan))
        there = np.isfinite(scaled)
        low = np.min(scaled, axis=1, initial=np.inf, where=there)
        high = np.max(scaled, axis=1, initial=-np.inf, where=there)
        low, high = (np.where(np.isfinite(one), one, 0.0) for one in (low, high))
        extent = np.where(high > low, high - low, 1.0)
        steps = np.rint((scaled - low[:, None]) / extent[:, None] * STEPS)
        whole = np.where(there, steps, ABSENT).astype(np.int64)
        # Of a row, each number less the one before it: small numbers, which compress well.
        self._parts.append(np.diff(whole, axis=1, prepend=0).astype("<u2").tobytes())
        at, self._used = self._used, self._used + rows.size
        return {
            "at": at,
            "rows": rows.shape[0],
            "length": rows.shape[1],
            "low": [float(f"{one:.9g}") for one in low],
            "extent": [float(f"{one:.9g}") for one in extent],
        }

    def text(self) -> str:
        """All of them: base64 of gzip, the same for the same numbers."""
        return base64.b64encode(gzip.compress(b"".join(self._parts), 9, mtime=0)).decode("ascii")
