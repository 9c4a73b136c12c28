"""Reading a pickle without importing or calling anything that it names.

A pickle can name any function and have it called. What is wanted of a checkpoint's pickles is
known, so whatever they name is replaced by a stand-in that takes what is done to it. Objects of
the host's own are replaced too: Megatron must not be imported before the plugin is enabled, and
may not be on the path at all.
"""

from __future__ import annotations

import pickle
from typing import Any


class StandIn:
    """Takes whatever a pickle does to an object; keeps its fields."""

    state: Any = None

    def __new__(cls, *args: Any) -> StandIn:  # noqa: D102
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None: ...

    def __call__(self, *args: Any) -> StandIn:  # noqa: D102
        return StandIn()

    @property
    def fields(self) -> dict[str, Any]:
        """What an object of a plain class has; nothing of one that pickles itself otherwise."""
        return self.state if isinstance(self.state, dict) else {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...  # noqa: D102

    def extend(self, items: Any) -> None: ...  # noqa: D102

    def add(self, item: Any) -> None: ...  # noqa: D102


class Reader(pickle._Unpickler):
    """Every object is a :class:`StandIn`; plain lists, dicts, numbers and texts are themselves.

    By pickle's unpickler in Python, which takes twice as long as the one in C: that one makes room
    for as many objects as the file says, and one damaged byte can say billions.
    """

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for."""
        return StandIn

    def persistent_load(self, pid: Any) -> Any:
        """The storage of a tensor, which lies elsewhere in the file."""
        return None
