"""Which shape of the vocabulary a spot of one colour is: by moments and a bank of templates first, then by drawing it and comparing.

A spot comes as the share `a` [h, w] of each pixel that its colour covers, seen with weight `w` (0 where another thing hides it).
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float64
from scipy import ndimage

from mmjax.data.scenes import draw
from mmjax.data.scenes.world import RADIUS, SHAPES, Object

PATCH = 20  # a template's side
REACH = 2.2  # its half side, in units of the spot's spread
PERIOD = {"circle": 10, "square": 90, "cross": 90}  # degrees after which a shape looks the same; the rest 360
STEP = 10
LINES = (draw.STROKE, 0.17, 0.12)  # outlines of containers are thinner, in units of their radius
TRIED = 4  # hypotheses that are drawn
CERTAIN = 0.01  # a misfit so small that no other hypothesis is drawn
FAINT = 0.002  # of a spot's noise: below it, the first hypothesis that fits is taken
FINE = 56  # the side of the pictures that templates are made of


@dataclasses.dataclass(frozen=True)
class Spot:
    """A window of a picture of `size` pixels a side, in which a spot of one colour lies.

    `a` are the shares as seen, through a Gaussian of `blur` pixels and with a noise of variance `noise`; `calm` are those of the
    picture whose noise was damped, through a Gaussian of `calm_blur`. `w` are weights: 0 where another thing hides the spot.
    """

    a: Float64[np.ndarray, "h w"]
    calm: Float64[np.ndarray, "h w"]
    w: Float64[np.ndarray, "h w"]
    rows: slice
    columns: slice
    size: int
    blur: float
    calm_blur: float
    noise: float

    def drawn(self, o: Object) -> Float64[np.ndarray, "h w"]:
        """The shares the object would have."""
        return blurred(draw.share(o, self.rows, self.columns, self.size), self.blur)

    def misfit(self, shares: Float64[np.ndarray, "h w"]) -> float:
        """Squared difference from what is seen, less that of the noise, relative to the square of what would be.

        0 is perfect, 1 as bad as nothing.
        """
        off = (self.w * (shares - self.a) ** 2).sum() - self.noise * self.w.sum()
        return float(off / max((self.w * shares * shares).sum(), 1e-9))

    def noisiness(self, shares: Float64[np.ndarray, "h w"]) -> float:
        """What the noise alone would be as a misfit."""
        return float(self.noise * self.w.sum() / max((self.w * shares * shares).sum(), 1e-9))

    def chance(self, shares: Float64[np.ndarray, "h w"]) -> float:
        """The standard deviation of that."""
        return self.noisiness(shares) * float(np.sqrt(2 / max(self.w.sum(), 1.0)))


@functools.lru_cache(1024)
def _kernel(n: int, sigma: float) -> Float64[np.ndarray, "n n"]:
    """Gaussian blur as a matrix; what lies beyond the window repeats its edge."""
    return ndimage.gaussian_filter1d(np.eye(n), sigma, axis=0, mode="nearest")


def blurred(x: Float64[np.ndarray, "h w"], sigma: float) -> Float64[np.ndarray, "h w"]:
    """Through a Gaussian of `sigma` pixels."""
    if sigma < 0.1:
        return x
    return _kernel(x.shape[0], sigma) @ x @ _kernel(x.shape[1], sigma).T


@dataclasses.dataclass(frozen=True)
class _Template:
    shape: str
    angle: float
    outline: bool
    spread: float  # of the unit shape: root mean square distance from the centroid
    x: float  # centroid of the unit shape
    y: float


@functools.lru_cache(16)
def _bank(blur: float = 0.0) -> tuple[list["_Template"], Float64[np.ndarray, "T P"]]:
    """Templates and their patches through a Gaussian of `blur` spreads; rows of zero mean and length 1."""
    templates, sharp = _sharp_bank()
    soft = ndimage.gaussian_filter(sharp, (0, blur * PATCH / 2 / REACH, blur * PATCH / 2 / REACH), mode="constant")
    rows = soft.reshape(len(templates), -1)
    rows = rows - rows.mean(1, keepdims=True)
    return templates, rows / np.sqrt((rows * rows).sum(1, keepdims=True))


@functools.cache
def _sharp_bank() -> tuple[list["_Template"], Float64[np.ndarray, "T P P"]]:
    """Templates, each shape at steps of 10 degrees, filled and as an outline."""
    templates, rows = [], []
    at = draw.centres(slice(0, FINE), FINE)
    for shape in SHAPES:
        for line in (0.0, *(LINES if shape != "crescent" else LINES[:1])):
            for angle in range(0, PERIOD.get(shape, 360), STEP):
                o = Object(shape, "red", "large", 0.5, 0.5, float(angle), radius=0.3)
                d = draw.distance(shape, o.angle, (at - 0.5) / o.r, (at - 0.5) / o.r)
                d = np.abs(d + line / 2) - line / 2 if line else d
                covered = np.clip(0.5 - d * o.r * FINE, 0, 1)
                cx, cy, spread = _moments(covered)
                rows.append(_patch(covered, cx, cy, spread))
                unit = o.r * FINE
                templates.append(
                    _Template(shape, o.angle, bool(line), spread / unit, (cx + 0.5 - FINE / 2) / unit, (cy + 0.5 - FINE / 2) / unit)
                )
    return templates, np.stack(rows)


def _moments(a: Float64[np.ndarray, "h w"], blur: float = 0.0) -> tuple[float, float, float]:
    """(x, y, spread) in pixels of the shares: their centroid and, less what a blur adds, their root mean square distance from it."""
    x, y = np.arange(a.shape[1]), np.arange(a.shape[0])
    total, across, down = a.sum(), a.sum(0), a.sum(1)
    cx, cy = float((across * x).sum() / total), float((down * y).sum() / total)
    squared = float((across * (x - cx) ** 2).sum() + (down * (y - cy) ** 2).sum()) / total
    return cx, cy, float(np.sqrt(max(squared - 2 * blur**2, 1.0)))


def _patch(a: Float64[np.ndarray, "h w"], x: float, y: float, scale: float) -> Float64[np.ndarray, "P P"]:
    """`a` on a grid around (x, y) whose half side is REACH times `scale` pixels."""
    cell = 2 * REACH * scale / PATCH
    a = ndimage.gaussian_filter(a, 0.4 * cell, mode="constant")  # else thin lines fall between the samples
    steps = (np.arange(PATCH) + 0.5) / PATCH * 2 - 1
    at = np.meshgrid(y + steps * REACH * scale, x + steps * REACH * scale, indexing="ij")
    return ndimage.map_coordinates(a, np.stack(at), order=1, mode="constant")


def hypotheses(spot: Spot, least: float) -> list[tuple[float, Object]]:
    """(correlation, object) for the likeliest of each shape, filled and outlined, from its moments; those of at least `least`."""
    a = np.clip(spot.calm, 0.0, 1.0)
    if a.sum() < 2:
        return []
    cx, cy, spread = _moments(a, spot.calm_blur)
    templates, rows = _bank(round(spot.calm_blur / spread / 0.06) * 0.06)
    p = _patch(a, cx, cy, spread).ravel()
    p = p - p.mean()
    scores = rows @ p / max(np.sqrt((p * p).sum()), 1e-9)
    best: dict[tuple[str, bool], int] = {}
    for i in np.argsort(-scores).tolist():
        best.setdefault((templates[i].shape, templates[i].outline), i)
    found = []
    for i in best.values():
        t = templates[i]
        if scores[i] < least:
            break
        r = spread / t.spread / spot.size
        x = (cx + 0.5 + spot.columns.start) / spot.size - t.x * r
        y = (cy + 0.5 + spot.rows.start) / spot.size - t.y * r
        found.append((float(scores[i]), Object(t.shape, "red", "large", float(x), float(y), t.angle, t.outline, r)))
    return found


_STEPS = np.array([0.004, 0.004, 0.004, 3.0])  # in x, y, radius (shares of the picture's side) and degrees


def refined(spot: Spot, o: Object, turns: int = 3) -> tuple[float, Object]:
    """(misfit, object) after Gauss-Newton on place, radius and angle."""
    best, n = (spot.misfit(spot.drawn(o)), o), 3 if o.shape == "circle" else 4
    at = np.array([o.x, o.y, o.r, o.angle])
    for _ in range(turns):
        now = spot.drawn(o)
        columns = []
        for i in range(n):
            moved = at.copy()
            moved[i] += _STEPS[i]
            columns.append(((spot.drawn(_at(o, moved)) - now) * spot.w).ravel())
        jacobian = np.stack(columns, 1)
        gram = jacobian.T @ jacobian
        step = np.linalg.solve(gram + (1e-3 * np.trace(gram) / n + 1e-9) * np.eye(n), jacobian.T @ ((spot.a - now) * spot.w).ravel())
        at[:n] += np.clip(step, -6, 6) * _STEPS[:n]
        at[2] = max(at[2], 1.5 / spot.size)
        o = _at(o, at)
        best = min(best, (spot.misfit(spot.drawn(o)), o), key=lambda f: f[0])
        if np.abs(step).max() < 0.15:
            break
    return best


def _at(o: Object, p: Float64[np.ndarray, "4"]) -> Object:
    x, y, r, angle = p.tolist()
    return dataclasses.replace(o, x=x, y=y, radius=r, angle=angle)


def fit(spot: Spot, least: float = 0.5) -> list[tuple[float, Object]]:
    """(misfit, object) of the likeliest hypotheses, best first; empty where no shape is even alike."""
    found = []
    for _, o in hypotheses(spot, least)[:TRIED]:
        found.append(refined(spot, _scaled(spot, o) if o.outline else o))
        if found[-1][0] < CERTAIN and spot.noise < FAINT:
            break
    found.sort(key=lambda f: f[0] + _surprise(spot, f[1]))
    if found and found[0][1].shape == "star":
        found += [refined(spot, o) for o in _other_tips(found[0][1])]
        found.sort(key=lambda f: f[0] + _surprise(spot, f[1]))
    return found


def _scaled(spot: Spot, o: Object) -> Object:
    """The outline at the radius near its own that fits best: a thin line's slopes lead nowhere from a line's width away."""
    near = [dataclasses.replace(o, radius=o.r * scale) for scale in (0.9, 0.94, 0.97, 1.0, 1.03, 1.06, 1.1)]
    return min(near, key=lambda n: spot.misfit(spot.drawn(n)))


def _surprise(spot: Spot, o: Object) -> float:
    """What an unusual size or angle costs, as a misfit: where noise leaves two shapes equally likely, the usual one is taken."""
    usual = min(abs(o.r / r - 1) for r in RADIUS.values()) < 0.06 or o.r > max(RADIUS.values())
    period = PERIOD.get(o.shape, 360)
    upright = abs((o.angle + period / 2) % period - period / 2) < 30
    nats = 3.0 * (not usual) + 1.5 * (not upright)
    return 2 * nats * spot.noise / max(float((spot.drawn(o) ** 2).sum()), 1e-9)


def _other_tips(o: Object) -> list[Object]:
    """The star with each of its other tips up: it is not quite regular, but so nearly that a search ends at a wrong one."""
    turns = [draw.turn(o.angle + 72 * i) for i in range(5)]
    places = [(o.x + draw.STAR_CENTRE * o.r * (s - turns[0][1]), o.y - draw.STAR_CENTRE * o.r * (c - turns[0][0])) for c, s in turns]
    return [dataclasses.replace(o, x=x, y=y, angle=o.angle + 72 * i) for i, (x, y) in enumerate(places)][1:]
