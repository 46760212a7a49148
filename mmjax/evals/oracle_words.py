"""The drawn word of a picture, read letter by letter in the fonts of the scenes: no list of words is consulted.

A word is a row of spots of one colour. Its box tells for each font how many letters it may have and where they lie; the cells are
compared with a bank of glyphs, the best readings are drawn and put in place, and what then differs is read again.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float64
from scipy import ndimage

from mmjax.data.scenes import draw, glyphs
from mmjax.data.scenes.world import Word
from mmjax.evals import oracle_view
from mmjax.evals.oracle_shapes import blurred
from mmjax.evals.oracle_view import COLOURS, Patch, View

HEIGHTS = (0.08, 0.32)  # of a capital, in units of the picture's side
LEAST, MOST = 2, 9  # letters
CELL = (16, 14)  # rows and columns of a glyph in the bank, with a margin of MARGIN heights around its cell
MARGIN = 0.1
MISFIT, OF_TWO = 0.15, 0.08  # with more of it no word is reported; no word of two letters
DROWNED = 0.6  # nor where the noise alone would be so much of a misfit
DRAWN, READ = 4, 2  # readings, each in another font, that are drawn; that are read again letter by letter
CERTAIN = 0.04  # a misfit after which no other is
LIKELY = 8  # letters that are drawn in a place
X_STEP = 0.5  # pixels between the places where a letter is looked for
BLURS = (0.0, 0.5, 0.8, 1.1, 1.6, 2.2)


@dataclasses.dataclass(frozen=True)
class SeenWord:
    """A drawn word: (x, y) is the centre of its box; `confidence` 0..1."""

    text: str
    font: str
    colour: str
    x: float
    y: float
    height: float
    confidence: float

    def word(self) -> Word:
        """As a scene graph would have it."""
        return Word(self.text, self.font, self.colour, self.x, self.y, self.height)


@dataclasses.dataclass(frozen=True)
class _Line:
    """The window of a row of spots: shares as seen, those of the picture with its noise damped, and the noise's variance."""

    a: Float64[np.ndarray, "h w"]
    calm: Float64[np.ndarray, "h w"]
    rows: slice
    columns: slice
    size: int
    smoothing: float
    noise: float

    def drawn(self, word: Word, blur: float) -> Float64[np.ndarray, "h w"]:
        return blurred(draw.word_share(word, self.rows, self.columns, self.size), blur)

    def misfit(self, shares: Float64[np.ndarray, "h w"]) -> float:
        energy = max((shares * shares).sum(), 1e-9)
        if self.noise * self.a.size > DROWNED * energy:
            return 1.0
        return float((((shares - self.a) ** 2).sum() - self.noise * self.a.size) / energy)


def take(view: View) -> SeenWord | None:
    """The word in the picture, which is then taken as explained; None where there is none."""
    found = []
    for colour, mask in _rows(oracle_view.patches(view)[0], view.size):
        line = _line(view, colour, mask)
        misfit, word, blur = _read(line)
        if word is not None and misfit < (MISFIT if len(word.text) > 2 else OF_TWO) and _whole(word):
            found.append((misfit, word, blur, colour, line))
    if not found:
        return None
    misfit, word, blur, colour, line = min(found, key=lambda f: f[0])
    oracle_view.explain(view, line.drawn(word, blur), colour, line.rows, line.columns)
    sure = min(max(1 - misfit / MISFIT, 0.0), 1.0)
    return SeenWord(word.text, word.font, COLOURS[colour], word.x, word.y, word.height, sure)


def _whole(word: Word) -> bool:
    """Whether it is of a height that words have and lies within the picture."""
    wide, high = draw.word_half_box(word)
    return HEIGHTS[0] <= word.height <= HEIGHTS[1] and max(abs(word.x - 0.5) + wide, abs(word.y - 0.5) + high) < 0.51


def _rows(patches: list[Patch], size: int) -> list[tuple[int, Bool[np.ndarray, "S S"]]]:
    """(colour, mask) of what may be a word: patches of one colour beside one another, together wider than high."""
    found = []
    for colour in sorted({p.colour for p in patches}):
        row: list[Patch] = []
        rows = []
        for p in sorted((p for p in patches if p.colour == colour), key=lambda p: p.columns.start):
            if row and not _follows(row, p):
                rows.append(row)
                row = []
            row.append(p)
        rows.append(row)
        found += [(colour, np.logical_or.reduce([p.mask for p in row])) for row in rows if _lies(row, size)]
    return found


def _lies(row: list[Patch], size: int) -> bool:
    """Whether it is as high as a word may be, and wider than high."""
    high = max(p.rows.stop for p in row) - min(p.rows.start for p in row)
    wide = max(p.columns.stop for p in row) - row[0].columns.start
    return HEIGHTS[0] * size <= high <= HEIGHTS[1] * size + 3 and wide >= 1.3 * high


def _follows(row: list[Patch], p: Patch) -> bool:
    """Whether the patch is at the row's height and near its end."""
    top, bottom = min(q.rows.start for q in row), max(q.rows.stop for q in row)
    common = min(bottom, p.rows.stop) - max(top, p.rows.start)
    gap = p.columns.start - max(q.columns.stop for q in row)
    return common >= 0.5 * min(bottom - top, p.rows.stop - p.rows.start) and gap <= 0.6 * max(bottom - top, p.rows.stop - p.rows.start)


def _line(view: View, colour: int, mask: Bool[np.ndarray, "S S"]) -> _Line:
    whole = oracle_view.Patch(colour, mask, *ndimage.find_objects(mask.astype(int))[0])
    rows, columns = oracle_view.around(whole, view.size)
    calm = oracle_view.share_of(view, view.pixels, colour, rows, columns)
    a = oracle_view.share_of(view, view.raw, colour, rows, columns) if view.smoothing else calm
    near = ndimage.binary_dilation(mask[rows, columns], np.ones((3, 3)), iterations=2)
    noise = oracle_view.noise_of_share(view, colour, mask) * float(near.mean())
    a, calm = np.where(near, a, 0.0), np.clip(np.where(near, calm, 0.0), 0.0, 1.0)
    return _Line(a, calm, rows, columns, view.size, view.smoothing, noise)


def _edges(profile: Float64[np.ndarray, "n"]) -> tuple[float, float]:
    """Where a profile rises above half of its height and where it falls below it again, between pixels."""
    level = 0.5 * np.quantile(profile, 0.9)
    over = np.flatnonzero(profile > level)
    first, last = int(over[0]), int(over[-1])
    before = profile[first - 1] if first else 0.0
    after = profile[last + 1] if last + 1 < len(profile) else 0.0
    rise = (profile[first] - level) / max(profile[first] - before, 1e-6)
    fall = (profile[last] - level) / max(profile[last] - after, 1e-6)
    return first + 0.5 - rise, last + 0.5 + fall


def _read(line: _Line) -> tuple[float, Word | None, float]:
    """(misfit, word, blur) of the best reading, looked for through little blur and, if that finds none, through much."""
    best: tuple[float, Word | None, float] = (1.0, None, 0.0)
    for blur in (BLURS[1], BLURS[4]):
        best = min(best, _read_through(line, blur), key=lambda f: f[0])
        if best[0] < MISFIT:
            break
    return best


def _read_through(line: _Line, blur: float) -> tuple[float, Word | None, float]:
    """(misfit, word, blur) of the best reading with a bank blurred by so many pixels."""
    top, bottom = _edges(np.sort(line.calm, axis=1)[:, -3:].mean(1))
    heights = [h for h in (bottom - top - 0.7, bottom - top, bottom - top + 0.7) if h > 4]
    readings = [_along(line, blur, font, (top + bottom) / 2, h) for font in glyphs.FONTS for h in heights]
    drawn: list[tuple[float, Word]] = []
    for i, (_, found) in enumerate(_best_of_fonts([r for r in readings if r is not None])[:DRAWN]):
        x, y = (found.x + line.columns.start) / line.size, (found.y + line.rows.start) / line.size
        word = dataclasses.replace(found, x=x, y=y, height=found.height / line.size)
        if i == 0:
            word = _placed(line, word, blur)[1]
            blur = min(BLURS, key=lambda b: line.misfit(line.drawn(word, b)))
        drawn.append(_placed(line, word, blur))
    best: tuple[float, Word | None, float] = (1.0, None, 0.0)
    for _, word in sorted(drawn, key=lambda f: f[0])[:READ]:
        best = min(best, _settle(line, word, blur), key=lambda f: f[0])
        if best[0] < CERTAIN:
            break
    return best


def _best_of_fonts(readings: list[tuple[float, Word]]) -> list[tuple[float, Word]]:
    """Of every font the reading that explains most, the best first."""
    ordered = sorted(readings, key=lambda r: -r[0])
    return [r for i, r in enumerate(ordered) if r[1].font not in [q[1].font for q in ordered[:i]]]


@functools.lru_cache(256)
def _bank(font: str, blur: float) -> Float64[np.ndarray, "L P"]:
    """The font's glyphs, in the order of glyphs.ALPHABET, through a Gaussian of `blur` heights; on the grid of _cells."""
    f = glyphs.FONTS[font]
    fine = 24  # pixels a height
    size = fine * 3
    rows = []
    u, v = _grid(font)
    for letter in glyphs.ALPHABET:
        word = Word(letter, font, "black", 0.5, 0.5, fine / size)
        whole = slice(0, size)
        a = ndimage.gaussian_filter(draw.word_share(word, whole, whole, size), blur * fine)
        x = size / 2 + (u - f.width / 2) * fine - 0.5
        y = size / 2 + (v - 0.5) * fine - 0.5
        rows.append(ndimage.map_coordinates(a, np.stack(np.meshgrid(y, x, indexing="ij")), order=1).ravel())
    return np.stack(rows)


def _grid(font: str) -> tuple[Float64[np.ndarray, "X"], Float64[np.ndarray, "Y"]]:
    """Where a cell is sampled, from its top left corner, in heights."""
    f = glyphs.FONTS[font]
    wide = f.width + 2 * MARGIN + abs(f.slant)
    u = -MARGIN - abs(f.slant) / 2 + (np.arange(CELL[1]) + 0.5) / CELL[1] * wide
    return u, -MARGIN + (np.arange(CELL[0]) + 0.5) / CELL[0] * (1 + 2 * MARGIN)


def _along(line: _Line, blur: float, font: str, y: float, height: float) -> tuple[float, Word] | None:
    """(squared shares explained, word in pixels of the window) of the font's best run of letters at a height; None if none has two."""
    f = glyphs.FONTS[font]
    u, v = _grid(font)
    bank, a = _bank(font, _bank_blur(line, blur, height)), line.calm
    lefts = np.arange(-2.0, a.shape[1] - f.width * height + 2, X_STEP)
    if not len(lefts):
        return None
    band = _between(y - height / 2 + v * height - 0.5, a.shape[0]) @ a
    cells = band @ _between((lefts[:, None] + u * height - 0.5).ravel(), a.shape[1]).T
    cells = cells.reshape(len(v), len(lefts), len(u)).transpose(1, 0, 2).reshape(len(lefts), -1)
    gain = 2 * cells @ bank.T - (bank * bank).sum(1)  # what a letter explains of the cell, less what it adds
    letters, gain = gain.argmax(1), gain.max(1)
    pitch = (f.width + f.gap) * height / X_STEP
    places = np.arange(len(lefts))[:, None] + np.round(np.arange(MOST) * pitch).astype(np.int64)
    runs = np.where(places < len(lefts), gain[np.minimum(places, len(lefts) - 1)], -np.inf).cumsum(1)[:, LEAST - 1 :]
    start, n = (int(i) for i in np.unravel_index(runs.argmax(), runs.shape))
    total, n = float(runs[start, n]), n + LEAST
    if total <= 0:
        return None
    text = "".join(glyphs.ALPHABET[letters[i]] for i in places[start, :n])
    x = lefts[start] + (n * f.width + (n - 1) * f.gap) * height / 2
    pixels_a_sample = (u[1] - u[0]) * (v[1] - v[0]) * height**2
    return total * pixels_a_sample, Word(text, font, "black", float(x), float(y), float(height))


def _between(at: Float64[np.ndarray, "N"], n: int) -> Float64[np.ndarray, "N n"]:
    """Linear interpolation at places `at` of n values, as a matrix; beyond them lie zeros."""
    return np.clip(1 - np.abs(at[:, None] - np.arange(n)), 0, None)


def _settle(line: _Line, word: Word, blur: float) -> tuple[float, Word, float]:
    """(misfit, word, blur) after putting the word in place and reading its letters anew, until they stay."""
    for _ in range(3):
        _, word = _placed(line, word, blur)
        text = "".join(_letter(line, word, blur, i) for i in range(len(word.text)))
        if text == word.text:
            break
        word = dataclasses.replace(word, text=text)
    return line.misfit(line.drawn(word, blur)), word, blur


def _letter(line: _Line, word: Word, blur: float, i: int) -> str:
    """The letter that, drawn in place of letter i, comes nearest to what is seen."""
    f = glyphs.FONTS[word.font]
    x = word.x + (i - (len(word.text) - 1) / 2) * (f.width + f.gap) * word.height
    one = dataclasses.replace(word, text=word.text[i], x=x)
    _, columns = draw.window(x, word.y, *draw.word_half_box(one), line.size)
    columns = slice(max(columns.start, line.columns.start), min(columns.stop, line.columns.stop))
    if columns.stop <= columns.start:
        return word.text[i]
    here = slice(columns.start - line.columns.start, columns.stop - line.columns.start)
    cell = dataclasses.replace(line, a=line.a[:, here], calm=line.calm[:, here], columns=columns)
    left = cell.a - cell.drawn(word, blur) + cell.drawn(one, blur)  # what the other letters do not explain
    # A digit must be better than a letter by more than chance: words are mostly of letters.
    near = _likely(line, one, blur, x)
    cost = lambda c: float(((left - cell.drawn(dataclasses.replace(one, text=c), blur)) ** 2).sum()) + 4 * line.noise * c.isdigit()
    return min(near, key=cost)


def _likely(line: _Line, one: Word, blur: float, x: float) -> list[str]:
    """The letters whose glyph in the bank comes nearest to the cell around x, and the one it is held for."""
    u, v = _grid(one.font)
    height = one.height * line.size
    bank = _bank(one.font, _bank_blur(line, blur, height))
    across = x * line.size - line.columns.start + (u - glyphs.FONTS[one.font].width / 2) * height - 0.5
    down = one.y * line.size - line.rows.start + (v - 0.5) * height - 0.5
    cell = (_between(down, line.a.shape[0]) @ line.calm @ _between(across, line.a.shape[1]).T).ravel()
    gain = 2 * bank @ cell - (bank * bank).sum(1)
    return [*{one.text: 0, **dict.fromkeys(glyphs.ALPHABET[i] for i in np.argsort(-gain)[:LIKELY].tolist())}]


def _bank_blur(line: _Line, blur: float, height: float) -> float:
    """The bank's blur, in heights and in few steps, for a line read through a blur and at a height of so many pixels."""
    return round(float(np.hypot(line.smoothing, max(blur, 0.5))) / height / 0.02) * 0.02


def _placed(line: _Line, word: Word, blur: float) -> tuple[float, Word]:
    """(misfit, word) after Gauss-Newton on place and height."""
    at = np.array([word.x, word.y, word.height])
    moved = lambda p: dataclasses.replace(word, x=float(p[0]), y=float(p[1]), height=float(p[2]))
    now = line.drawn(word, blur)
    best = (line.misfit(now), word)
    for _ in range(3):
        x, y, height = at
        taller = (line.drawn(moved((x, y, height + 0.1 / line.size)), blur) - now) * 10  # for a pixel more
        down, across = np.gradient(now)
        jacobian = np.stack([-across.ravel(), -down.ravel(), taller.ravel()], 1)  # a word moved by a pixel
        gram = jacobian.T @ jacobian
        step = np.linalg.solve(gram + (1e-3 * np.trace(gram) / 3 + 1e-9) * np.eye(3), jacobian.T @ (line.a - now).ravel())
        at = at + np.clip(step, -0.8, 0.8) / line.size
        now = line.drawn(moved(at), blur)
        best = min(best, (line.misfit(now), moved(at)), key=lambda f: f[0])
        if np.abs(step).max() < 0.05:
            break
    return best
