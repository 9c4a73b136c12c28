"""``--channel-key``: which channel each document of a dataset belongs to."""

from __future__ import annotations

from array import array

import numpy as np

from domain_pretrain.prepare.manifest import Channel


class Channels:
    """Documents are added up; 4 bytes for each of them stay in memory.

    Channels are numbered from 0 as they first appear. So what is prepared again with further
    inputs behind the old ones keeps its numbers.

    Attributes:
        found: by number.
    """

    def __init__(self) -> None:
        self.found: list[Channel] = []
        self._numbers: dict[str, int] = {}
        self._documents = array("i")

    def note(self, name: str, tokens: int, text_bytes: int) -> None:
        """Add one document of the channel ``name``."""
        number = self._number(name)
        self._documents.append(number)
        self.found[number].add(1, tokens, text_bytes)

    def add(self, other: Channels) -> None:
        """Add ``other``'s documents behind these, whatever its numbers are."""
        numbers = [self._number(channel.name) for channel in other.found]
        for number, channel in zip(numbers, other.found, strict=True):
            self.found[number].add(channel.documents, channel.tokens, channel.text_bytes)
        mapped = np.array(numbers, np.intc)[np.asarray(other._documents)]
        self._documents.frombytes(mapped.tobytes())

    def of_documents(self) -> np.ndarray:
        """The number of each document's channel; int16."""
        return np.asarray(self._documents).astype(np.int16)

    def _number(self, name: str) -> int:
        number = self._numbers.setdefault(name, len(self.found))
        if number == len(self.found):
            self.found.append(Channel(name=name))
        return number
