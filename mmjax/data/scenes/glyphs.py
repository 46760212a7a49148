"""The fonts of drawn words: capitals and digits as strokes on a grid of 4 by 6, so no picture depends on the fonts of a machine.

Every font is monospaced and every glyph reaches the left and right edge of its cell, so a word's box tells how many letters it has.
What handwriting tells apart by habit is told apart by form: 0 has a bar within, 1 a foot, I two bars; 2, 5, 6 and 9 corners that Z, S
and G lack.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64

from mmjax.data.scenes.world import Word

# A point is two digits, x then y (y down); a stroke is a run of points, strokes are parted by commas.
_STROKES = {
    "A": "06 20 46, 14 34",
    "B": "06 00 30 41 42 33 44 45 36 06, 03 33",
    "C": "41 30 10 01 05 16 36 45",
    "D": "00 20 42 44 26 06 00",
    "E": "40 00 06 46, 03 33",
    "F": "40 00 06, 03 33",
    "G": "41 30 10 01 05 16 36 45 43 23",
    "H": "00 06, 40 46, 03 43",
    "I": "00 40, 20 26, 06 46",
    "J": "10 40 45 36 16 05",
    "K": "00 06, 40 03 46",
    "L": "00 06 46",
    "M": "06 00 23 40 46",
    "N": "06 00 46 40",
    "O": "10 30 41 45 36 16 05 01 10",
    "P": "06 00 30 41 42 33 03",
    "Q": "10 30 41 45 36 16 05 01 10, 24 46",
    "R": "06 00 30 41 42 33 03, 23 46",
    "S": "41 30 10 01 02 13 33 44 45 36 16 05",
    "T": "00 40, 20 26",
    "U": "00 05 16 36 45 40",
    "V": "00 26 40",
    "W": "00 16 23 36 40",
    "X": "00 46, 40 06",
    "Y": "00 23 40, 23 26",
    "Z": "00 40 06 46",
    "0": "10 30 41 45 36 16 05 01 10, 22 24",
    "1": "02 20 26, 06 46",
    "2": "01 10 30 41 42 06 46",
    "3": "00 40 23 33 44 45 36 16 05",
    "4": "36 30 04 44",
    "5": "40 00 03 33 44 45 36 06",
    "6": "40 00 06 46 43 03",
    "7": "00 40 16",
    "8": "13 02 01 10 30 41 42 33 13 04 05 16 36 45 44 33",
    "9": "06 46 40 00 03 43",
}
ALPHABET = "".join(_STROKES)


@dataclasses.dataclass(frozen=True)
class Font:
    """Lengths in units of a capital's height: cell width, gap between cells, stroke width; `slant` is the shear."""

    width: float = 0.66
    gap: float = 0.22
    stroke: float = 0.14
    slant: float = 0.0
    serif: bool = False


FONTS: Mapping[str, Font] = {
    "plain": Font(),
    "bold": Font(width=0.74, stroke=0.21),
    "slanted": Font(gap=0.26, slant=0.25),
    "serif": Font(width=0.72, stroke=0.12, serif=True),
    "wide": Font(width=0.95, stroke=0.16),
}


@functools.cache
def segments(letter: str, font: str) -> Float64[np.ndarray, "K 4"]:
    """The centre lines of a glyph as (x0, y0, x1, y1), its cell's top left corner at 0, in units of a capital's height.

    Strokes of the font's width around them stay within the cell, which `slant` shears about its middle.
    """
    f = FONTS[font]
    runs = [[(int(p[0]), int(p[1])) for p in stroke.split()] for stroke in _STROKES[letter].split(",")]
    lines = [(*a, *b) for run in runs for a, b in itertools.pairwise(run)]
    if f.serif:
        lines += _serifs(runs)
    grid = np.array(lines, np.float64).reshape(-1, 2, 2) / (4, 6)
    xy = grid * (f.width - f.stroke, 1 - f.stroke) + f.stroke / 2
    xy[..., 0] += f.slant * (0.5 - xy[..., 1])
    return xy.reshape(-1, 4)


def _serifs(runs: list[list[tuple[int, int]]]) -> list[tuple[float, float, float, float]]:
    """A bar across every stroke that ends at the top or the bottom of the cell, unless it ends in a bar already."""
    ends = [(run[0], run[1]) for run in runs] + [(run[-1], run[-2]) for run in runs]
    return [(max(x - 1.0, 0.0), float(y), min(x + 1.0, 4.0), float(y)) for (x, y), (_, inner) in ends if y in (0, 6) and inner != y]


def extent(word: Word) -> tuple[float, float]:
    """Width and height of the word's box, without what a slanted font leans out of it."""
    f, n = FONTS[word.font], len(word.text)
    return (n * f.width + (n - 1) * f.gap) * word.height, word.height
