"""Pictures that show nothing of the scenes' vocabulary: empty, noise, halves of objects, textures alone, shapes and colours unknown to it.

`picture(i, size)` is number i; its kinds take turns.
"""

import dataclasses
import math

import numpy as np
from scipy import ndimage

from mmjax.data.scenes import draw
from mmjax.data.scenes.sample import Draws, background, generator
from mmjax.data.scenes.world import COLOURS, SHAPES, SIZES, Background, Object

FINE = 4  # pixels are averaged over so many each way


def picture(i: int, size: int = 64) -> tuple[str, np.ndarray]:
    """(kind, uint8 picture)."""
    kind = tuple(KINDS)[i % len(KINDS)]
    d, rng = Draws(generator("adversarial", index=i)), np.random.default_rng(i)
    return kind, np.clip(KINDS[kind](d, rng, size) + 0.5, 0, 255).astype(np.uint8)


def _empty(d, rng, size):
    return draw.background(background(d), size).astype(float)


def _noise(d, rng, size):
    """Of pixels, of coloured blobs, or of grey around a light mean."""
    kind = d.pick(("uniform", "blobs", "grey"))
    if kind == "uniform":
        return rng.uniform(0, 255, (size, size, 3))
    if kind == "grey":
        return 200 + 70 * rng.standard_normal((size, size, 3))
    blobs = ndimage.gaussian_filter(rng.standard_normal((size, size, 3)), (d.between(1, 4), d.between(1, 4), 0))
    return 190 + 60 * blobs / blobs.std()


def _covered(d, rng, size, covered, colour=None):
    under = draw.background(background(d), size).astype(float)
    top = np.array(draw.PALETTE[d.pick(COLOURS)] if colour is None else colour, float)
    share = covered.reshape(size, FINE, size, FINE).mean((1, 3))[..., None]
    return under + share * (top - under)


def _grid(size):
    at = draw.centres(slice(0, size * FINE), size * FINE)
    return at[None, :], at[:, None]


def _whole(d, side, **changes):
    o = Object(d.pick(SHAPES), "red", d.pick(SIZES), d.between(0.3, 0.7), d.between(0.3, 0.7), d.between(-20, 20))
    o = dataclasses.replace(o, **changes)
    whole = slice(0, side * FINE)
    return o, draw.share(o, whole, whole, side * FINE)


def _half(d, rng, size):
    """What is left of an object on one side of its upright or level middle, but where that is a triangle."""
    upright = d.chance(0.5)
    shapes = [s for s in SHAPES if upright or s not in ("triangle", "arrow", "heart")]
    o, covered = _whole(d, size, shape=d.pick(shapes), angle=0.0, size=d.pick(SIZES[1:]))
    x, y = _grid(size)
    left = (x - o.x) * d.pick((-1, 1)) > 0 if upright else (y - o.y) * d.pick((-1, 1)) > 0
    return _covered(d, rng, size, covered * left)


def _cut_off(d, rng, size):
    """An object of which half lies beyond the picture's edge."""
    edge = {d.pick(("x", "y")): float(d.pick((0, 1)))}
    _, covered = _whole(
        d, size, size=d.pick(SIZES[1:]), shape=d.pick([s for s in SHAPES if s not in ("triangle", "arrow")]), angle=0.0, **edge
    )
    return _covered(d, rng, size, covered)


def _stripes(d, rng, size):
    """Coloured textures alone."""
    a, b = d.shuffled(COLOURS)[:2]
    kind = d.pick(("stripes", "checks", "gradient"))
    share = np.clip(draw.background(Background(kind, 0.0, 1.0, 0.0, int(rng.integers(1 << 30))), size)[..., :1] / 255.0, 0, 1)
    light = np.array([235.0, 235.0, 230.0]) if d.chance(0.5) else np.array(draw.PALETTE[b], float)
    return light + share * (np.array(draw.PALETTE[a], float) - light)


def _foreign(d, rng, size):
    """Thick rings, bars, ellipses, half moons, angles, lines."""
    x, y = _grid(size)
    c, s = draw.turn(d.between(0, 180))
    u, v = x - d.between(0.35, 0.65), y - d.between(0.35, 0.65)
    u, v = u * c + v * s, v * c - u * s
    r = d.between(0.12, 0.26)
    kind = d.pick(("ring", "bar", "ellipse", "moon", "angle", "line", "zigzag"))
    far = np.sqrt(u * u + v * v)
    if kind == "ring":
        covered = (far < r) & (far > r * d.between(0.35, 0.6))
    elif kind == "bar":
        covered = (abs(u) < r) & (abs(v) < r / 3)
    elif kind == "ellipse":
        covered = u * u + 3 * v * v < r * r
    elif kind == "moon":
        covered = (far < r) & (u > 0)
    elif kind == "angle":
        covered = (abs(u) < r) & (abs(v) < r) & ((u < -r / 3) | (v > r / 3))
    elif kind == "line":
        covered = (abs(u) < 0.4) & (abs(v) < 0.012)
    else:
        covered = (abs(v - 0.08 * np.sign(np.sin(u / r * 3 * math.pi))) < 0.04) & (abs(u) < r)
    return _covered(d, rng, size, covered.astype(float))


def _grey(d, rng, size):
    """Shapes of the vocabulary in colours that are in no palette."""
    _, covered = _whole(d, size, size=d.pick(SIZES[1:]))
    return _covered(d, rng, size, covered, d.pick(((128, 128, 128), (255, 255, 255), (140, 150, 90), (120, 120, 200), (100, 150, 150))))


KINDS = {
    "empty": _empty,
    "noise": _noise,
    "half": _half,
    "cut off": _cut_off,
    "stripes": _stripes,
    "foreign": _foreign,
    "grey": _grey,
}
