"""A way to train that the host's own flags turn on, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from domain_pretrain.refusal import Refusal


@dataclass(frozen=True)
class HostFlag:
    """A flag of the host.

    Attributes:
        name: as it is typed.
        says: what it sets, and its default.
        versions: of ``megatron.core``, that have it, ``>=0.18``.
    """

    name: str
    says: str
    versions: str


def _nothing(args: Any, saved: Mapping[str, Any]) -> str | None:
    return None


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
        base: the host's args, and those in the checkpoint that the run starts from, empty where it
            has none → what is doubtful about that start, if anything.
        flags: of the host, that belong to it.
        page: of the docs, ``docs/muon.md``.
    """

    name: str
    summary: str
    applies: Callable[[Any], bool]
    since: str
    packages: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    doubts: tuple[Refusal, ...] = ()
    base: Callable[[Any, Mapping[str, Any]], str | None] = _nothing
    flags: tuple[HostFlag, ...] = ()
    page: str = ""
