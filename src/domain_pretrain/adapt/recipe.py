"""A way to train that the host's own flags turn on, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from domain_pretrain.refusal import Refusal


@dataclass(frozen=True)
class Recipe:
    """What is known of a way to train, beside its flags.

    Attributes:
        name: as ``doctor`` and the docs call it.
        summary: what it is for, in one sentence.
        applies: the host's args → whether the run trains so.
        since: the first version of ``megatron.core`` that has it, ``0.16``.
        packages: distributions that it needs besides Megatron.
        refusals: what cannot be right with it.
        doubts: combinations that run, and are seldom what was meant; told at the start.
        page: of the docs, ``docs/muon.md``.
    """

    name: str
    summary: str
    applies: Callable[[Any], bool]
    since: str
    packages: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    doubts: tuple[Refusal, ...] = ()
    page: str = ""
