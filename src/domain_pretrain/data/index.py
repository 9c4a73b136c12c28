"""``PREFIX.idx``: what it says of ``PREFIX.bin``, and whether the two fit each other.

The layout is that of megatron-core's ``IndexedDataset``: a magic, a version (uint64), the dtype's
code (uint8), the number of sequences and of document ends (uint64 each); then the sequences'
lengths (int32), their offsets in ``PREFIX.bin`` in bytes (int64), and the document ends (int64).
Megatron reads all of it without a check, and a wrong one costs minutes and ends in a traceback of
numpy's. The header and the last entries tell most of it with a few short reads.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from domain_pretrain.errors import ConfigError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
# By the code in the header; ids are integers, though the format also knows float64 and float32.
DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
_CHUNK = 1 << 16  # lengths that are read at a time


@dataclass(frozen=True)
class Index:
    """A data prefix whose files fit each other.

    Attributes:
        prefix: of the two files.
        dtype: of the token ids, by numpy's name.
        sequences: how many; Megatron's splits cut between them. At least 1.
        tokens: of all sequences; at least 1.
    """

    prefix: str
    dtype: str
    sequences: int
    tokens: int

    @classmethod
    def read(cls, prefix: str) -> Index:
        """Read the header and the last entries; a few hundred bytes, whatever the size.

        Raises:
            ConfigError: the files cannot be read, are not an index and its tokens, are cut off, or
                hold no token.
        """
        try:
            size = os.path.getsize(f"{prefix}.bin")
            with open(f"{prefix}.idx", "rb") as file:
                return cls._read(prefix, file, size)
        except ConfigError:
            raise
        except (OSError, ValueError) as error:  # also of a name that no file can have
            raise ConfigError(f"{prefix!r} cannot be read: {error}") from error

    @classmethod
    def _read(cls, prefix: str, file: BinaryIO, size: int) -> Index:
        name = f"{prefix}.idx"
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(MAGIC):
            raise ConfigError(f"{name!r} is not a Megatron index: it does not begin as one")
        _, version, code, sequences, ends = _HEADER.unpack(header)
        if version != VERSION:
            raise ConfigError(f"{name!r} has version {version}; Megatron reads {VERSION}")
        if code not in DTYPES:
            raise ConfigError(
                f"{name!r} names dtype code {code}, which is none of token ids "
                f"({', '.join(DTYPES.values())}): prepare the data again"
            )
        if not sequences or not size:
            raise ConfigError(f"{prefix!r} holds no tokens")
        length = os.fstat(file.fileno()).st_size
        needed = _HEADER.size + 12 * sequences + 8 * ends
        if length < needed:
            raise ConfigError(
                f"{name!r} is cut off: it has {length:,} of {needed:,} bytes; copy it again"
            )
        item = np.dtype(DTYPES[code]).itemsize
        last = _number(file, "<i", _HEADER.size + 4 * (sequences - 1))
        offset = _number(file, "<q", _HEADER.size + 12 * sequences - 8)
        end = _number(file, "<q", needed - 8) if ends else 0
        if end != sequences or last < 0 or offset < 0 or offset % item:
            raise ConfigError(
                f"{name!r} contradicts itself: {sequences:,} sequences, documents up to {end:,}, "
                f"the last sequence at byte {offset:,} with {last:,} tokens; prepare the data again"
            )
        if offset + last * item != size:
            raise ConfigError(
                f"{prefix + '.bin'!r} does not fit its index: it has {size:,} bytes, and the index "
                f"describes {offset + last * item:,} ({DTYPES[code]}); copy or prepare both again"
            )
        return cls(prefix, DTYPES[code], sequences, size // item)

    def holds(self, first: int, stop: int, tokens: int) -> bool:
        """Whether the sequences from ``first`` up to, without, ``stop`` have so many tokens.

        Reads their lengths until there are enough, so that it costs little where there are.
        """
        with open(f"{self.prefix}.idx", "rb") as file:
            file.seek(_HEADER.size + 4 * first)
            while first < stop and tokens > 0:
                count = min(_CHUNK, stop - first)
                tokens -= int(np.frombuffer(file.read(4 * count), "<i4").sum(dtype=np.int64))
                first += count
        return tokens <= 0

    def count(self, first: int, stop: int) -> int:
        """Tokens of the sequences from ``first`` up to, without, ``stop``.

        Reads the lengths of those, or of all others where that is less: a training split is most.
        """
        others = self.sequences - (stop - first)
        if stop - first <= others:
            return self._sum(first, stop)
        return self.tokens - self._sum(0, first) - self._sum(stop, self.sequences)

    def _sum(self, first: int, stop: int) -> int:
        total = 0
        with open(f"{self.prefix}.idx", "rb") as file:
            file.seek(_HEADER.size + 4 * first)
            for at in range(first, stop, _CHUNK):
                lengths = np.frombuffer(file.read(4 * min(_CHUNK, stop - at)), "<i4")
                total += int(lengths.sum(dtype=np.int64))
        return total

    def lengths(self) -> NDArray[np.int32]:
        """Tokens of every sequence; mapped, 4 bytes each."""
        return np.memmap(f"{self.prefix}.idx", "<i4", "r", _HEADER.size, self.sequences)

    def document(self, number: int) -> NDArray[Any]:
        """Ids of a sequence, ``[tokens]``."""
        place = _HEADER.size + 4 * self.sequences
        begins = np.memmap(f"{self.prefix}.idx", "<i8", "r", place, self.sequences)
        count = int(self.lengths()[number])
        return np.fromfile(f"{self.prefix}.bin", self.dtype, count, offset=int(begins[number]))

    def check_lengths(self) -> None:
        """Look at every length, and where it says the next sequence begins; 12 bytes each.

        Raises:
            ConfigError: one is negative, or a sequence begins elsewhere. The last one's end is
                that of the tokens: :meth:`read` has looked.
        """
        count, item, end = self.sequences, np.dtype(self.dtype).itemsize, 0
        place = _HEADER.size + 4 * count
        lengths = self.lengths()
        offsets = np.memmap(f"{self.prefix}.idx", "<i8", "r", place, count)
        for first in range(0, count, _CHUNK):
            sizes = lengths[first : first + _CHUNK].astype(np.int64) * item
            begins = end + np.cumsum(sizes) - sizes
            wrong = (sizes < 0) | (offsets[first : first + _CHUNK] != begins)
            if wrong.any():
                at = first + int(wrong.argmax())
                raise ConfigError(
                    f"{self.prefix + '.idx'!r} contradicts itself: its sequence {at:,} has "
                    f"{int(lengths[at]):,} tokens and begins at byte {int(offsets[at]):,} of "
                    f"{self.prefix + '.bin'!r}; by those before it, it begins at "
                    f"{int(begins[at - first]):,}; prepare the data again"
                )
            end = int(begins[-1] + sizes[-1])


def _number(file: BinaryIO, layout: str, at: int) -> int:
    file.seek(at)
    (value,) = struct.unpack(layout, file.read(struct.calcsize(layout)))
    return int(value)
