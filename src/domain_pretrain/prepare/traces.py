"""Traces of junk in the texts: counted, never removed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.entities import html5

from domain_pretrain.prepare.manifest import Found

_ENTITY = re.compile(r"&(?:[a-zA-Z][a-zA-Z0-9]{1,31}|#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6});")

# U+FFFD in UTF-8 read as GBK; memory of Windows programs; UTF-8 read as Latin-1 or cp1252: a
# two-byte letter, the quotes and dashes, U+FFFD, the byte order mark.
_MOJIBAKE = re.compile(
    "锟斤拷|烫烫烫|屯屯屯|[ÂÃ][\u0080-\u00bf]|â€[\u0080-\u00bf\u0152-\u017e\u2013-\u203a\u02dc\u20ac™]"
    "|ï¿½|ï»¿"
)
_MOJIBAKE_BEGINS = "锟烫屯ÂÃâï"


@dataclass
class Traces:
    """What the texts of a chunk, or of a dataset, show."""

    replacement_characters: int = 0
    html_entities: Found = field(default_factory=Found)
    mojibake: Found = field(default_factory=Found)
    special_tokens: Found = field(default_factory=Found)
    special_token_counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: Traces) -> None:
        """Add ``other``'s to these."""
        self.replacement_characters += other.replacement_characters
        self.html_entities.add(other.html_entities)
        self.mojibake.add(other.mojibake)
        self.special_tokens.add(other.special_tokens)
        self.special_token_counts.update(other.special_token_counts)


class TraceFinder:
    """Looks at texts.

    Args:
        special_tokens: the tokenizer's, as they are spelled.
    """

    def __init__(self, special_tokens: Sequence[str]) -> None:
        # The longest first: one may begin as another does.
        names = sorted(filter(None, special_tokens), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, names))) if names else None

    def look(self, text: str, traces: Traces) -> None:
        """Add what is in ``text`` to ``traces``."""
        traces.replacement_characters += text.count("\ufffd")
        if "&" in text:
            entities = _ENTITY.findall(text)
            traces.html_entities.note(sum(e[1] == "#" or e[1:] in html5 for e in entities))
        # A search for single characters is many times quicker.
        if not text.isascii() and any(first in text for first in _MOJIBAKE_BEGINS):
            traces.mojibake.note(len(_MOJIBAKE.findall(text)))
        if self._special is not None:
            tokens = self._special.findall(text)
            traces.special_tokens.note(len(tokens))
            traces.special_token_counts.update(tokens)
