"""Fonts for names in any script: what matplotlib's own font lacks, another one here may have."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from domain_pretrain.process import notice

SHOWN = 8  # characters in the notice


@contextmanager
def fonts_for(texts: Iterable[str]) -> Iterator[None]:
    """Within it, matplotlib writes ``texts`` as they are, with fonts that have their characters.

    What no font has is a box in the picture, and named in one notice.
    """
    import matplotlib

    families, missing = _choose({char for text in texts for char in text if char.isprintable()})
    if missing:
        shown = "".join(sorted(missing)[:SHOWN]) + "…" * (len(missing) > SHOWN)
        notice(
            f"no font on this machine has {shown}: the picture shows boxes instead; install a font "
            "that does, such as Noto Sans CJK for Chinese, Japanese and Korean"
        )
    family = [*matplotlib.rcParams["font.family"], *families]
    log = logging.getLogger(
        "matplotlib.font_manager"
    )  # says, say, that a font is not there in bold
    level = log.level
    with (
        # A name may have $ in it, which begins no formula.
        matplotlib.rc_context({"font.family": family, "text.parse_math": False}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


def _choose(wanted: set[str]) -> tuple[list[str], set[str]]:
    """Further font families, as few as have all there is to have; and the characters none has."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    missing = wanted - _characters(findfont(FontProperties()))
    if not missing:
        return [], missing
    files = {font.name: font.fname for font in fontManager.ttflist}
    has = {
        name: missing & _characters(file)
        for name, file in sorted(files.items())
        if "Last Resort" not in name  # which has a box for everything
    }
    families: list[str] = []
    while any(has.values()):
        best = max(has, key=lambda name: len(has[name]))
        families.append(best)
        found = has.pop(best)
        missing -= found
        has = {name: characters - found for name, characters in has.items()}
    return families, missing


def _characters(file: str) -> set[str]:
    from matplotlib.font_manager import get_font

    with suppress(OSError, RuntimeError):  # of emoji, say, that cannot be drawn at any size
        return {chr(code) for code in get_font(file).get_charmap()}
    return set()
