"""Losses of domains, as a metrics file has them and as a script's recordings say they should be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from support.corpora import domain_of
from support.launch import Run
from support.metrics import METRICS

Entry = dict[str, Any]
# Sums of float32 losses, in fixed point: half a unit of 2⁻²⁴ for each token.
PER_TOKEN = 2**-25


def mean(entry: Entry) -> float:
    """Σ sums / Σ tokens over the domains of a metrics line, nats a token."""
    domains = entry["domains"].values()
    return sum(d["loss_sum"] for d in domains) / sum(d["tokens"] for d in domains)


def points(evaluations: Iterable[Entry]) -> list[tuple[str, int, bool]]:
    """Split and iteration of evaluations, and whether training had ended."""
    return [(e["split"], e["iteration"], e.get("final", False)) for e in evaluations]


def sums_by_domain(
    rows: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> dict[str, tuple[float, int]]:
    """Σ mask·loss in float64 and Σ mask of each domain that has tokens.

    Args:
        rows: losses, mask and tokens (or labels) of one sample, or of a part of one, each ``[s]``.
    """
    sums: dict[str, tuple[float, int]] = {}
    for losses, mask, tokens in rows:
        loss, count = sums.get(domain_of(tokens), (0.0, 0))
        loss += float(np.sum(losses.astype(np.float64).reshape(-1) * mask.reshape(-1)))
        sums[domain_of(tokens)] = (loss, count + int(mask.sum()))
    return {name: (loss, count) for name, (loss, count) in sums.items() if count}


def assert_sums(entry: Entry, expected: dict[str, tuple[float, int]]) -> None:
    """A metrics line has exactly these domains, their tokens, and their sums."""
    assert entry["domains"].keys() == expected.keys()
    for name, (loss_sum, tokens) in expected.items():
        assert entry["domains"][name]["tokens"] == tokens
        assert abs(entry["domains"][name]["loss_sum"] - loss_sum) <= tokens * PER_TOKEN


def assert_close(got: list[Entry], expected: list[Entry]) -> None:
    """Two layouts of one training: the same counts; losses but for the order of float32 sums."""
    assert [e["iteration"] for e in got] == [e["iteration"] for e in expected]
    for want, have in zip(expected, got, strict=True):
        assert have["domains"].keys() == want["domains"].keys()
        for name, domain in want["domains"].items():
            assert have["domains"][name]["tokens"] == domain["tokens"]
            assert have["domains"][name]["samples"] == domain["samples"]
            assert have["domains"][name]["loss"] == pytest.approx(domain["loss"], rel=1e-5)


def assert_evaluations_add_up(run: Run) -> list[Entry]:
    """The domains of every evaluation add up to the loss that Megatron printed (7 digits)."""
    entries = [entry for entry in run.metrics(None) if entry["split"] != "train"]
    printed = [float(loss) for loss in run.host_evaluations()]
    assert printed
    assert [mean(entry) for entry in entries] == pytest.approx(printed, rel=2e-6)
    return entries


def assert_host_numbers(run: Run) -> None:
    """A metrics line has the host's numbers as it prints them, and, but for the first, a time."""
    content = (run.log_dir / METRICS).read_text().splitlines()
    lines = [line for line in map(json.loads, content) if line.get("split") == "train"]
    numbers = [line["host"] for line in lines]
    rates = re.findall(r"iteration +\d+/.*? learning rate: (\S+) ", run.output)
    norms = map(float, run.host_grad_norms())  # three decimals are printed
    assert [n["learning_rate"] for n in numbers] == pytest.approx(list(map(float, rates)), rel=1e-6)
    assert [n["grad_norm"] for n in numbers] == pytest.approx(list(norms), abs=6e-4)
    assert ["seconds" in n for n in numbers] == [False, *[True] * (len(numbers) - 1)]
