"""A colour for each domain, which it keeps from picture to picture."""

from __future__ import annotations

import colorsys

# Okabe and Ito's colours, distinct with any kind of colour vision; their yellow, invisible on white
# paper, is a dark purple here. A label at the end of each curve also names it.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4B2E83", "#000000")

# The same hues where the paper is dark.
ON_DARK = ("#4AA8E0", "#F07C3A", "#2FC79A", "#E39AC2", "#F0B429", "#8CCBF2", "#A58BE0", "#E8E8E8")

_GOLDEN = 0.618034  # of a turn: hues of neighbours are far apart, however many there are


def colour(place: int, *, dark: bool = False) -> str:
    """The colour of the domain at that place of the config, as ``#RRGGBB``; on dark paper, too."""
    if place < len(COLOURS):
        return (ON_DARK if dark else COLOURS)[place]
    lightness = (0.32, 0.42, 0.52)[place % 3] + (0.28 if dark else 0)
    channels = colorsys.hls_to_rgb(place * _GOLDEN % 1, lightness, 0.7)
    return "#" + "".join(f"{round(255 * channel):02X}" for channel in channels)
