"""What is planted, in which run, and what an alarm has to say about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

AT = 300  # the step of what happens at a step
STEPS = 600

WEIGHTS = {"general": 4.0, "code": 2.0, "maths": 2.0, "logs": 2.0}


@dataclass(frozen=True)
class Kind:
    """One kind of run.

    Attributes:
        weights: the blend, by domain.
        flags: more of Megatron's.
        fault: of faulty_gpt.py.
        pinned: domains to keep.
        base: the kind whose checkpoint it starts from.
        samples: of ``evaluate.samples``; None: what the host happens to read.
        spoiled: the domain in which the batch of step :data:`AT` is garbage.
        saves: whether others start from it.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)
    flags: tuple[str, ...] = ()
    fault: str = ""
    pinned: tuple[str, ...] = ()
    base: str | None = None
    samples: int | None = None
    spoiled: str | None = None
    saves: bool = False


FORGETS = {"general": 0.1, "code": 4.0, "maths": 4.0, "logs": 4.0}
BAD = {"dirty": 1.0, "newlines": 1.0, "copied": 1.0, "empty": 1.0}
KINDS = {
    "clean": Kind(),
    "bad-data": Kind({**WEIGHTS, **BAD}, flags=("--eod-mask-loss",)),
    "garbage": Kind(spoiled="code"),
    "rate": Kind(fault="rate"),
    "nan": Kind(fault="nan", flags=("--no-check-for-nan-in-loss-and-grad",)),
    "base": Kind({"general": 2.0, "familiar": 2.0}, saves=True),
    "continued": Kind({**FORGETS, "familiar": 1.0}, pinned=("general",), base="base"),
    # Without familiar, whose validation part is shorter than a sample.
    "continued-fixed": Kind(FORGETS, pinned=("general",), base="base", samples=32),
}


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        title: of it.
        kind: of run that it is planted in.
        rule, domain: of the finding that is right.
        causes: that are right.
        at: the iteration at which it happens; None: all along.
        documents: whether documents can be behind it.
    """

    title: str
    kind: str
    rule: str
    domain: str | None
    causes: tuple[str, ...]
    at: int | None = None
    documents: bool = True


DATA = ("data", "data that moved the optimizer")
FAULTS = (
    Fault("a dirty domain (bytes at random)", "bad-data", "dirty", "dirty", ("data",)),
    Fault("newlines only", "bad-data", "dirty", "newlines", ("data",)),
    Fault("a duplicated shard", "bad-data", "duplicate", "copied", ("data",)),
    Fault("a starved domain (empty documents)", "bad-data", "starved", "empty", ("data",)),
    Fault("one garbage batch", "garbage", "spike", "code", DATA, at=AT),
    Fault("learning rate × 20", "rate", "all_moved", None, ("optimizer",), AT, documents=False),
    Fault("NaN in one domain's loss", "nan", "nonfinite", "logs", ("data",), at=AT),
    Fault(
        "a forgotten replay domain",
        "continued",
        "forgetting",
        "general",
        ("the other domains",),
        documents=False,
    ),
    Fault(
        "the same, with `evaluate.samples`",
        "continued-fixed",
        "forgetting",
        "general",
        ("the other domains",),
        documents=False,
    ),
    Fault("a domain already seen", "continued", "too_low", "familiar", ("data",)),
)
