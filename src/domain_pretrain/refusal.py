"""A combination of a host's flags that cannot be right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Refusal:
    """A combination of Megatron's flags that cannot be right with the plugin.

    Attributes:
        flags: what the user gave, as typed.
        applies: Megatron's args → whether the combination is on.
        why: the reason, and what to do instead.
    """

    flags: str
    applies: Callable[[Any], bool]
    why: str


def on(args: Any, *names: str) -> bool:
    """Whether all of these flags are given; one that a host does not have is not."""
    return all(bool(getattr(args, name, None)) for name in names)


def on_gloo(args: Any) -> bool:
    """Whether the ranks talk by gloo, as those of the CPU backend do."""
    return getattr(args, "distributed_backend", None) == "gloo"
