"""Gradients that ranks wrote down, each a part of those of the undivided model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

Gradients = dict[str, np.ndarray]
# float32 sums in another order than autograd's in float64; a wrong formula is off by 1e-3 and more.
TOLERANCE = 1e-5


def load(path: Path) -> Gradients:
    """By parameter; of a rank's file, by ``NAME@DIM@RANK``, -1 where TP cuts nothing."""
    with np.load(path) as file:
        return dict(file)


def error(got: np.ndarray, expected: np.ndarray) -> float:
    """|got − expected| / |expected|."""
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def assert_gradients(files: list[Path], expected: Gradients) -> None:
    """Every parameter of every rank has its part of the gradient, and none is left over."""
    found = set()
    for file in files:
        for key, got in load(file).items():
            name, dim, part = key.split("@")
            want = expected[name]
            if int(dim) >= 0:
                parts = want.shape[int(dim)] // got.shape[int(dim)]
                want = np.split(want, parts, int(dim))[int(part)]
            assert error(got, want) <= TOLERANCE, (file.name, name)
            found.add(name)
    assert found == expected.keys()
