"""Reads a picture of the scenes' world back into what is in it: objects with shape, colour, size and place, and the drawn word.

It knows the vocabulary and how things are drawn, and nothing of the scene it looks at. A spot of colour is what stands out of the
background on the way to one colour of the palette; it is an object if some shape, drawn in the best place, looks like it. Blur and
noise, which generated pictures have, are estimated and drawn along. What no shape explains is no object: if it is one spot of a clear
colour it is reported as a blob, else not at all.
"""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64, Shaped

from mmjax.data.scenes import draw
from mmjax.data.scenes.world import RADIUS, Object
from mmjax.evals import oracle_shapes, oracle_view, oracle_words
from mmjax.evals.oracle_shapes import Spot
from mmjax.evals.oracle_view import COLOURS, Patch, View
from mmjax.evals.oracle_words import SeenWord

OFF_COLOUR = 55.0  # levels; a thing farther from every colour of the palette has none
MISFIT = 0.08  # with more of it, and more than chance may add, nothing is reported
CHANCE = 2.0  # standard deviations
UNKNOWN = 0.15  # where so much of a picture stands out and is nothing that is known, it is none of the scenes' world
DROWNED = 0.5  # nor where the noise alone would be so much of a misfit
VISIBLE = 0.6  # so much of a thing must show
RADII = (0.06, 0.48)
MOST = 24  # objects in a picture
LEAST_BLOB = 0.006  # of the picture; smaller spots without a shape are none
WIDEST_BLOB = 0.56  # of its side; nor are wider ones, as stripes are
BLURS = (0.0, 0.4, 0.7, 1.0, 1.4, 1.9, 2.5)


@dataclasses.dataclass(frozen=True)
class Seen:
    """An object: `radius` as measured, from which comes `size`; `confidence` 0..1."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    confidence: float
    radius: float
    angle: float
    outline: bool

    def object(self) -> Object:
        """As a scene graph would have it, with the size's own radius where that is near."""
        own = abs(self.radius - RADIUS[self.size]) < 0.15 * RADIUS[self.size]
        return Object(self.shape, self.colour, self.size, self.x, self.y, self.angle, self.outline, 0.0 if own else self.radius)


@dataclasses.dataclass(frozen=True)
class Blob:
    """A spot of a colour that no shape explains; `area` is a share of the picture."""

    colour: str
    area: float


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is in a picture, the largest object first; nothing where nothing is."""

    objects: tuple[Seen, ...] = ()
    word: SeenWord | None = None
    blobs: tuple[Blob, ...] = ()


def read(images: Shaped[np.ndarray, "N H W 3"], workers: int = 0) -> list[Reading]:
    """What each picture shows.

    Args:
      images: uint8, or floats 0..1; square, 16 pixels a side or more.
      workers: processes to share the work; 0 does it here.

    Raises:
      ValueError: pictures of another form.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] != images.shape[2] or images.shape[1] < 16:
        raise ValueError(f"pictures are [N, side, side, 3] with a side of at least 16, got {images.shape}")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"pictures are uint8 or floats 0..1, got {images.dtype}")
    if workers <= 1 or len(images) < 2 * workers:
        return [_read_one(image) for image in images]
    # Not forked: a fork of a process that runs JAX may hang. And of one thread each: their matrices are small.
    context = multiprocessing.get_context("spawn")
    with _environment("OPENBLAS_NUM_THREADS", "1"), concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        return list(pool.map(_read_one, images, chunksize=max(1, min(64, len(images) // (4 * workers)))))


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """An environment variable for the processes started within; one that is set already stays."""
    before = os.environ.get(name)
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _read_one(image: Shaped[np.ndarray, "H W 3"]) -> Reading:
    view = oracle_view.look(oracle_view.levels(image))
    if view is None:
        return Reading()
    word = oracle_words.take(view)
    objects, blobs, rest = _things(view)
    if rest.mean() > UNKNOWN:
        return Reading()
    return Reading(tuple(objects), word, tuple(blobs))


def _things(view: View) -> tuple[list[Seen], list[Blob], Bool[np.ndarray, "S S"]]:
    """What the picture's spots are, the widest first: what lies inside another thing is looked at against it. Last, where it stands
    out and is neither object nor blob."""
    found: list[Seen] = []
    blobs: list[Blob] = []
    known = np.zeros((view.size, view.size), bool)
    refused = np.zeros((view.size, view.size), bool)
    blur = None
    left, out = oracle_view.patches(view)
    while left and len(found) < MOST:
        patch = left.pop(0)
        if refused[patch.mask].mean() > 0.5:
            continue
        blur = _blur(view, patch, out) if blur is None else blur
        best = _best(view, patch, out, BLURS[1] if blur is None else blur)
        if best is None:
            if patch.parts:
                left = [*patch.parts, *left]
            else:
                refused |= patch.mask
                blob = _blob(view, patch)
                if blob is not None:
                    blobs.append(blob)
                    known |= patch.mask
            continue
        seen, spot, shares = best
        found.append(seen)
        oracle_view.explain(view, shares, COLOURS.index(seen.colour), spot.rows, spot.columns)
        if not spot.w.all():  # something hid a part of it, whose edges were judged against the wrong colour
            left, out = oracle_view.patches(view)
        else:
            out = out & ~patch.mask
    return found, blobs, oracle_view.patches(view)[1] & ~known


def _blob(view: View, patch: Patch) -> Blob | None:
    """The patch as a spot of its colour; None if it is too small, too wide, or mottled."""
    area = patch.area / view.size**2
    width = max(patch.rows.stop - patch.rows.start, patch.columns.stop - patch.columns.start) / view.size
    if area < LEAST_BLOB or width > WIDEST_BLOB:
        return None
    spots = view.raw[patch.mask] - view.palette[patch.colour]
    inner = np.linalg.norm(spots, axis=1)
    inner = inner[inner <= np.median(inner)]  # its edge is mixed with what is behind
    return Blob(COLOURS[patch.colour], area) if inner.mean() < OFF_COLOUR else None


def _blur(view: View, patch: Patch, out: Bool[np.ndarray, "S S"]) -> float | None:
    """The Gaussian, in pixels, through which the picture's edges are best explained; None if the patch is nothing."""
    found = []
    for sharp in oracle_view.spots(view, patch, out, 0.0):
        best = oracle_shapes.fit(sharp)[:1]
        if best and best[0][0] < oracle_shapes.CERTAIN and not view.smoothing:
            return 0.0
        spot = dataclasses.replace(sharp, blur=BLURS[2], calm_blur=float(np.hypot(BLURS[2], view.smoothing)))
        for _, o in oracle_shapes.fit(spot)[:2]:
            through = [dataclasses.replace(spot, blur=b) for b in BLURS]
            best = min(through, key=lambda s: s.misfit(s.drawn(o)))
            found.append((oracle_shapes.refined(best, o, 1)[0], best.blur))
    misfit, blur = min(found, default=(1.0, 0.0))
    return blur if misfit < MISFIT else None


def _best(view: View, patch: Patch, out: Bool[np.ndarray, "S S"], blur: float) -> tuple[Seen, Spot, Float64[np.ndarray, "h w"]] | None:
    """(what the patch is, its spot, the shares it covers), or None."""
    fits = [(misfit, o, spot) for spot in oracle_view.spots(view, patch, out, blur) for misfit, o in oracle_shapes.fit(spot)]
    fits.sort(key=lambda f: f[0])
    if not fits:
        return None
    misfit, o, spot = fits[0]
    shares = spot.drawn(o)
    colour, off = oracle_view.colour_of(view, shares, spot.w, spot.rows, spot.columns)
    limit = MISFIT + CHANCE * spot.chance(shares)
    misfit += oracle_view.cut_off(spot) / max(float((shares**2).sum()), 1e-9)
    if not RADII[0] <= o.r <= RADII[1] or _visible(o, spot, shares) < VISIBLE:
        return None
    doubt = max(misfit / limit, spot.noisiness(shares) / DROWNED, off / OFF_COLOUR)
    if doubt >= 1:
        return None
    size = min(RADIUS, key=lambda s: abs(RADIUS[s] - o.r))
    return Seen(o.shape, COLOURS[colour], size, o.x, o.y, 1 - max(doubt, 0.0), o.r, o.angle % 360, o.outline), spot, shares


def _visible(o: Object, spot: Spot, shares: Float64[np.ndarray, "h w"]) -> float:
    """The part of the object that shows: in the picture and not hidden."""
    reach = draw.reach(o)
    cells = 48
    fine = dataclasses.replace(o, x=0.5, y=0.5, radius=o.r / reach * 0.45)
    whole = draw.share(fine, slice(0, cells), slice(0, cells), cells).sum() * (reach / 0.45 / cells * spot.size) ** 2
    return float((shares * spot.w).sum() / max(whole, 1e-9))
