"""Documents by their content: a name for what one holds, whatever file it is in and where."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domain_pretrain.data.index import Index

CONTENT = re.compile(r"(\d+)-[0-9a-f]{16}")


def content_of(tokens: NDArray[Any]) -> str:
    """The name of a document's content: how many token ids it has, and 64 bits that tell them
    apart, in hexadecimal digits; the same for every dtype.

    Args:
        tokens: its ids, ``[tokens]``.
    """
    digest = hashlib.blake2b(np.asarray(tokens, "<i8").tobytes(), digest_size=8).hexdigest()
    return f"{len(tokens)}-{digest}"


def find_contents(index: Index, wanted: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Where they are in a prefix: each content with the number of a document that holds it.

    Of the tokens, those of documents that are as long are read.

    Args:
        index: of the prefix.
        wanted: names of contents, as :func:`content_of` makes them.
    """
    by_length: defaultdict[int, set[str]] = defaultdict(set)
    for one in wanted:
        by_length[int(one.partition("-")[0])].add(one)
    lengths = index.lengths()
    for number in np.flatnonzero(np.isin(lengths, list(by_length))).tolist():
        content = content_of(index.document(number))
        if content in by_length[int(lengths[number])]:
            yield content, number
