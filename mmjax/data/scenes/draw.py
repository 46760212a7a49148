"""A scene as a picture: the same bytes on any machine.

A pixel's share of an object is its signed distance to the outline, a ramp one pixel wide. Only operations that IEEE 754 rounds in one
way are used (no sine but a rounded one, no matrix product, no sum whose order is open), and shares are rounded to 1/256 before
colours are mixed in integers.
"""

import functools
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, Int, UInt8

from mmjax.data.scenes import glyphs
from mmjax.data.scenes.world import Background, Object, Scene, Word

PALETTE: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 20, 35),
    "orange": (250, 125, 0),
    "yellow": (255, 225, 0),
    "green": (20, 150, 40),
    "cyan": (0, 200, 220),
    "blue": (25, 60, 225),
    "purple": (130, 30, 175),
    "pink": (255, 95, 180),
    "brown": (125, 70, 25),
    "black": (15, 15, 15),
}
IMAGE_SIZES = (16, 32, 64, 128, 256)
STROKE, WIDEST = 0.25, 0.05  # an outline's width: a share of the radius, and at most so much of the picture's side
TINT = 0.08  # a background's saturation


def turn(degrees: float) -> tuple[float, float]:
    """Cosine and sine of an angle in degrees, rounded: mathematical libraries differ in the last bit."""
    a = math.radians(degrees)
    return round(math.cos(a) * 2**20) / 2**20, round(math.sin(a) * 2**20) / 2**20


def _on_circle(x: float, y: float, r: float, degrees: float) -> tuple[float, float]:
    c, s = turn(degrees)
    return x + r * c, y + r * s


STAR_CENTRE = 0.1056  # the point around which the star's tips lie evenly is so far below its own centre


def _star() -> list[tuple[float, float]]:
    points = [_on_circle(0.0, 0.0, 1.0 if i % 2 == 0 else 0.45, 36.0 * i - 90.0) for i in range(10)]
    low = max(y for _, y in points)  # its feet reach down to 1, as its tip reaches up to -1
    return [(x, (y + 1) * 2 / (low + 1) - 1) for x, y in points]


def _heart() -> list[tuple[float, float]]:
    """Two lobes of radius 1/2 around (+-1/2, -1/2) and the tangents from the tip (0, 1)."""
    right = [_on_circle(0.5, -0.5, 0.5, a) for a in np.linspace(-180.0, 36.87, 13).tolist()]
    return right + [(0.0, 1.0)] + [(-x, y) for x, y in right[:0:-1]]


def _cross(a: float) -> list[tuple[float, float]]:
    arm = [(1.0, -a), (1.0, a), (a, a)]
    return [p for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)) for p in [(x * c - y * s, x * s + y * c) for x, y in arm]]


# Upright, each fills the square from -1 to 1 (the crescent's horns, to the right, end at 0.69). y is down.
POLYGONS: Mapping[str, list[tuple[float, float]]] = {
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1), (1, 1), (-1, 1)],
    "star": _star(),
    "cross": _cross(0.38),
    "heart": _heart(),
    "arrow": [(0, -1), (1, 0.1), (0.38, 0.1), (0.38, 1), (-0.38, 1), (-0.38, 0.1), (-1, 0.1)],
}
_BITE = (0.5, 0.75)  # the crescent is the unit circle without the circle of radius 0.75 around (0.5, 0)


@functools.lru_cache(4096)
def _polygon(shape: str, angle: float) -> Float64[np.ndarray, "K 2"]:
    c, s = turn(angle)
    p = np.array(POLYGONS[shape], np.float64)
    return np.stack([p[:, 0] * c - p[:, 1] * s, p[:, 0] * s + p[:, 1] * c], axis=1)


def distance(shape: str, angle: float, x: Float64[np.ndarray, "W"], y: Float64[np.ndarray, "H"]) -> Float64[np.ndarray, "H W"]:
    """Signed distance of the points (x, y) to the outline of the unit shape at 0: negative within."""
    if shape == "circle":
        return _radius(x, y) - 1.0
    if shape == "crescent":
        c, s = turn(angle)
        return np.maximum(_radius(x, y) - 1.0, _BITE[1] - _radius(x - _BITE[0] * c, y - _BITE[0] * s))
    a = _polygon(shape, angle)
    ax, ay = a[:, 0, None, None], a[:, 1, None, None]
    ex, ey = np.roll(ax, -1, 0) - ax, np.roll(ay, -1, 0) - ay
    dx, dy = x[None, None, :] - ax, y[None, :, None] - ay
    along = np.clip((dx * ex + dy * ey) / (ex * ex + ey * ey), 0.0, 1.0)
    across = dx - along * ex
    down = dy - along * ey
    squared = (across * across + down * down).min(0)
    level = np.where(ey == 0, 1.0, ey)
    crosses = ((dy < 0) != (dy < ey)) & (dx < dy * ex / level)  # the ray to the right
    within = np.logical_xor.reduce(crosses, axis=0)
    return np.where(within, -1.0, 1.0) * np.sqrt(squared)


def _radius(x: Float64[np.ndarray, "W"], y: Float64[np.ndarray, "H"]) -> Float64[np.ndarray, "H W"]:
    return np.sqrt((x * x)[None, :] + (y * y)[:, None])


def reach(o: Object) -> float:
    """How far from its centre an object may reach, whatever its angle."""
    return o.r if o.shape in ("circle", "crescent") else o.r * 1.4143


@functools.lru_cache(4096)
def _half_box(shape: str, angle: float) -> tuple[float, float]:
    if shape in ("circle", "crescent"):
        return 1.0, 1.0
    x, y = np.abs(_polygon(shape, angle)).max(0).tolist()
    return x, y


def half_box(o: Object) -> tuple[float, float]:
    """Half the width and height of the upright box around its centre that holds it as it is turned."""
    x, y = _half_box(o.shape, o.angle)
    return x * o.r, y * o.r


def word_half_box(word: Word) -> tuple[float, float]:
    """Half the width and height of the box a word fills, with what a slanted font leans out of its cells."""
    wide, high = glyphs.extent(word)
    return (wide + abs(glyphs.FONTS[word.font].slant) * word.height) / 2, high / 2


def window(x: float, y: float, reach_x: float, reach_y: float, size: int) -> tuple[slice, slice]:
    """Rows and columns of the pixels that something around (x, y) may touch; empty where it lies beyond the picture."""
    edge = lambda v: min(max(v, 0), size)
    rows = slice(edge(math.floor((y - reach_y) * size) - 1), edge(math.ceil((y + reach_y) * size) + 1))
    columns = slice(edge(math.floor((x - reach_x) * size) - 1), edge(math.ceil((x + reach_x) * size) + 1))
    return rows, columns


def centres(part: slice, size: int) -> Float64[np.ndarray, "n"]:
    """Pixel centres, in units of the picture's side."""
    return (np.arange(part.start, part.stop) + 0.5) / size


def share(o: Object, rows: slice, columns: slice, size: int, soft: float = 1.0) -> Float64[np.ndarray, "h w"]:
    """How much of each pixel of the window the object covers, 0..1; `soft` is the width of the ramp at its edge in pixels."""
    x, y = (centres(columns, size) - o.x) / o.r, (centres(rows, size) - o.y) / o.r
    d = distance(o.shape, o.angle, x, y)
    if o.outline:
        half = min(STROKE, WIDEST / o.r) / 2
        d = np.abs(d + half) - half
    return np.clip(0.5 - d * (o.r * size / soft), 0.0, 1.0)


def word_share(word: Word, rows: slice, columns: slice, size: int) -> Float64[np.ndarray, "h w"]:
    """How much of each pixel of the window the strokes of the word cover."""
    font = glyphs.FONTS[word.font]
    wide, high = glyphs.extent(word)
    left, top = word.x - wide / 2, word.y - high / 2
    out = np.zeros((rows.stop - rows.start, columns.stop - columns.start))
    for i, letter in enumerate(word.text):
        x0 = left + i * (font.width + font.gap) * word.height
        lean = abs(font.slant) / 2 * word.height
        r, c = window(x0 + font.width / 2 * word.height, word.y, font.width / 2 * word.height + lean, high / 2, size)
        r, c = _within(r, rows), _within(c, columns)
        x, y = (centres(c, size) - x0) / word.height, (centres(r, size) - top) / word.height
        d = _to_segments(glyphs.segments(letter, word.font), x, y) - font.stroke / 2
        part = out[r.start - rows.start : r.stop - rows.start, c.start - columns.start : c.stop - columns.start]
        np.maximum(part, np.clip(0.5 - d * (word.height * size), 0.0, 1.0), out=part)
    return out


def _within(part: slice, whole: slice) -> slice:
    start = min(max(part.start, whole.start), whole.stop)
    return slice(start, max(start, min(part.stop, whole.stop)))


def _to_segments(lines: Float64[np.ndarray, "K 4"], x: Float64[np.ndarray, "W"], y: Float64[np.ndarray, "H"]) -> Float64[np.ndarray, "H W"]:
    x0, y0, x1, y1 = lines.T[..., None, None]
    ex, ey = x1 - x0, y1 - y0
    dx, dy = x[None, None, :] - x0, y[None, :, None] - y0
    along = np.clip((dx * ex + dy * ey) / (ex * ex + ey * ey), 0.0, 1.0)
    across, down = dx - along * ex, dy - along * ey
    return np.sqrt((across * across + down * down).min(0))


def background(b: Background, size: int) -> Int[np.ndarray, "S S 3"]:
    """The picture without objects, 0..255."""
    hue = np.array([min(max(abs((b.tint * 6 + shift) % 6 - 3) - 1, 0.0), 1.0) for shift in (0, 4, 2)])
    tinted = lambda lightness: np.floor(lightness * (1 - TINT * (1 - hue)) * 255 + 0.5).astype(np.int32)
    first, second = tinted(b.shade), tinted(b.second)
    if b.kind == "plain":
        return np.broadcast_to(first, (size, size, 3)).copy()
    return _mix(np.broadcast_to(first, (size, size, 3)), second, _texture(b, size))


def _texture(b: Background, size: int) -> Float64[np.ndarray, "S S"]:
    """Where the second shade shows, 0..1."""
    raw = np.random.Philox(key=b.seed).random_raw(4 + 17 * 17)  # the raw numbers never change with NumPy's version
    a, f, p, q = ((raw[:4] >> np.uint64(11)) * 2.0**-53).tolist()
    at = centres(slice(0, size), size)
    across, down = at[None, :], at[:, None]
    if b.kind == "noise":
        return _smooth((raw[4:] >> np.uint64(11)).reshape(17, 17) * 2.0**-53, at * 16)
    c, s = turn(a * 180)
    turned, other = across * c + down * s, down * c - across * s
    frequency = 3 + math.floor(f * 4)
    if b.kind == "gradient":
        return np.clip(0.5 + (turned - (c + s) / 2) * 0.8, 0.0, 1.0)
    if b.kind == "stripes":
        return _band(turned * frequency + p, size / frequency)
    if b.kind == "checks":
        i, j = _band(turned * frequency + p, size / frequency), _band(other * frequency + q, size / frequency)
        return i + j - 2 * i * j
    if b.kind == "dots":
        u, v = turned * frequency + p, other * frequency + q
        u, v = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
        return np.clip(0.5 + (0.3 - np.sqrt(u * u + v * v)) * (size / frequency), 0.0, 1.0)
    raise ValueError(f"no background {b.kind!r}")


def _band(phase: Float64[np.ndarray, "S S"], pixels: float) -> Float64[np.ndarray, "S S"]:
    """A square wave of period 1, its edges a pixel wide where a period has so many."""
    return np.clip(0.5 + (np.abs(phase - np.floor(phase) - 0.5) - 0.25) * pixels, 0.0, 1.0)


def _smooth(grid: Float64[np.ndarray, "n n"], at: Float64[np.ndarray, "S"]) -> Float64[np.ndarray, "S S"]:
    """Bilinear between the points of the grid."""
    i = np.floor(at).astype(np.int64)
    t = at - i
    rows = grid[i] * (1 - t)[:, None] + grid[i + 1] * t[:, None]
    return rows[:, i] * (1 - t) + rows[:, i + 1] * t


def _mix(under: Int[np.ndarray, "h w 3"], colour: Int[np.ndarray, "3"], covered: Float64[np.ndarray, "h w"]) -> Int[np.ndarray, "h w 3"]:
    k = np.floor(covered * 256 + 0.5).astype(np.int32)[..., None]
    return (under * (256 - k) + colour * k + 128) >> 8


def paint(canvas: Int[np.ndarray, "S S 3"], o: Object) -> None:
    """Draws the object over the canvas, in place."""
    size = len(canvas)
    rows, columns = window(o.x, o.y, reach(o), reach(o), size)
    canvas[rows, columns] = _mix(canvas[rows, columns], np.array(PALETTE[o.colour], np.int32), share(o, rows, columns, size))


def paint_word(canvas: Int[np.ndarray, "S S 3"], word: Word) -> None:
    """Draws the word over the canvas, in place."""
    size = len(canvas)
    rows, columns = window(word.x, word.y, *word_half_box(word), size)
    canvas[rows, columns] = _mix(canvas[rows, columns], np.array(PALETTE[word.colour], np.int32), word_share(word, rows, columns, size))


def render(scene: Scene, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """The picture of a scene, `size` of IMAGE_SIZES; 16 is drawn at 64 and averaged over 4 by 4 pixels."""
    if size not in IMAGE_SIZES:
        raise ValueError(f"a picture's side is one of {IMAGE_SIZES}, got {size}")
    if size == 16:
        blocks = render(scene, 64).astype(np.int32).reshape(16, 4, 16, 4, 3)
        return ((blocks.sum((1, 3)) + 8) >> 4).astype(np.uint8)
    canvas = background(scene.background, size)
    for o in scene.objects:
        paint(canvas, o)
    if scene.word:
        paint_word(canvas, scene.word)
    return canvas.astype(np.uint8)
