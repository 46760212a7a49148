"""A picture made ready for reading: its noise, its background, and the spots of colour that stand out from it."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float64, Int, Shaped
from PIL import Image
from scipy import ndimage

from mmjax.data.scenes import draw
from mmjax.evals.oracle_shapes import Spot

SIDE = 64  # larger pictures are averaged down to it
COLOURS = tuple(draw.PALETTE)
PALETTE = np.array(list(draw.PALETTE.values()), np.float64)
LIGHT, GREY, NEAR = 130.0, 60.0, 45.0  # a background is so light at least, its channels differ by less, and it is near its own median
LEAST_BACKGROUND = 0.15  # of the picture
STANDS_OUT = 32.0  # levels of 0..255 by which a spot differs from what is behind it
COVERED, HARDLY = 0.35, 0.2  # a pixel belongs to a spot from this share on; to what a spot may be a part of
SPECK = 6  # pixels; smaller spots are none


@dataclasses.dataclass
class View:
    """A picture being read, in levels of 0..255 with the background's texture damped by `damp` (pixels times matrix).

    `behind` is what is known to lie behind the next thing: the background, then the objects found so far.
    """

    raw: Float64[np.ndarray, "S S 3"]
    pixels: Float64[np.ndarray, "S S 3"]  # with less noise
    behind: Float64[np.ndarray, "S S 3"]
    palette: Float64[np.ndarray, "C 3"]
    damp: Float64[np.ndarray, "3 3"]
    smoothing: float  # sigma of the Gaussian that its noise was damped with, in pixels
    noise: float  # standard deviation of the picture's noise, in levels

    @property
    def size(self) -> int:
        """Pixels a side."""
        return len(self.pixels)


@dataclasses.dataclass(frozen=True)
class Patch:
    """Connected pixels of one colour."""

    colour: int
    mask: Bool[np.ndarray, "S S"]
    rows: slice
    columns: slice
    parts: tuple["Patch", ...] = ()  # those of its pixels that are surely covered, where they do not hang together

    @property
    def area(self) -> int:
        """In pixels."""
        return int(self.mask[self.rows, self.columns].sum())


def levels(image: Shaped[np.ndarray, "H W 3"]) -> Float64[np.ndarray, "S S 3"]:
    """The picture in 0..255, at most SIDE pixels a side."""
    x = image.astype(np.float64) * (1.0 if image.dtype == np.uint8 else 255.0)
    side = len(x)
    if side <= SIDE:
        return x
    if side % SIDE == 0:
        k = side // SIDE
        return x.reshape(SIDE, k, SIDE, k, 3).mean((1, 3))
    channels = [Image.fromarray(x[..., i].astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX) for i in range(3)]
    return np.stack([np.asarray(c, np.float64) for c in channels], -1)


def noise_of(x: Float64[np.ndarray, "S S 3"]) -> float:
    """Standard deviation of its noise (J. Immerkaer, 1996, by the median, which edges do not move)."""
    second = x[2:] - 2 * x[1:-1] + x[:-2]
    second = second[:, 2:] - 2 * second[:, 1:-1] + second[:, :-2]
    return float(np.median(np.abs(second)) / (6 * 0.6745))


def look(x: Float64[np.ndarray, "S S 3"]) -> View | None:
    """The view of a picture, or None where no background can be made out."""
    noise = noise_of(x)
    smoothing = 0.0 if noise < 4 else min(0.6 + noise / 60, 1.6)
    raw = x
    if smoothing:
        x = ndimage.gaussian_filter(x, (smoothing, smoothing, 0))
    flat = (x.min(-1) > LIGHT) & (x.max(-1) - x.min(-1) < GREY)
    if flat.mean() < LEAST_BACKGROUND:
        return None
    median = np.median(x[flat], axis=0)
    flat &= np.abs(x - median).max(-1) < NEAR
    if flat.mean() < LEAST_BACKGROUND:
        return None
    behind = _spread(x, flat, len(x) / 8)
    values, vectors = np.linalg.eigh(np.cov((raw - behind)[flat].T) + 9 * np.eye(3))
    keep = max(np.sqrt(values[1] / values[2]), 0.25)  # how much is kept of the direction in which the background varies
    damp = np.eye(3) - (1 - keep) * np.outer(vectors[:, 2], vectors[:, 2])
    return View(raw @ damp, x @ damp, behind @ damp, PALETTE @ damp, damp, smoothing, noise)


def _spread(x: Float64[np.ndarray, "S S 3"], known: Bool[np.ndarray, "S S"], sigma: float) -> Float64[np.ndarray, "S S 3"]:
    """The known pixels, smoothed, and from them the unknown ones."""
    weight = ndimage.gaussian_filter(known.astype(np.float64), sigma, mode="nearest") + 1e-6
    total = ndimage.gaussian_filter(np.where(known[..., None], x, 0.0), (sigma, sigma, 0), mode="nearest")
    mean = x[known].mean(0)
    return (total + 1e-6 * mean) / weight[..., None]


def share_of(view: View, pixels: Float64[np.ndarray, "S S 3"], colour: int, rows: slice, columns: slice) -> Float64[np.ndarray, "h w"]:
    """How far each pixel of the window lies from what is behind it towards a colour: 0 not at all, 1 all the way."""
    way = view.palette[colour] - view.behind[rows, columns]
    off = pixels[rows, columns] - view.behind[rows, columns]
    return np.clip((off * way).sum(-1) / np.maximum((way * way).sum(-1), 1.0), -1.0, 2.0)


def noise_of_share(view: View, colour: int, mask: Bool[np.ndarray, "S S"]) -> float:
    """The variance of a share around the pixels of the mask."""
    way = view.palette[colour] - view.behind[mask].mean(0)
    return float(view.noise**2 * ((way @ view.damp) ** 2).sum() / (way @ way) ** 2)


def patches(view: View) -> tuple[list[Patch], Bool[np.ndarray, "S S"]]:
    """(the spots of colour that stand out of what is behind, the widest first; all that surely stands out)."""
    colour, share, strength = _nearest(view)
    out = (share > COVERED) & (strength > STANDS_OUT)
    hardly = out | (share > HARDLY) & (strength > 0.7 * STANDS_OUT)
    found = []
    for c in np.unique(colour[out]).tolist():
        sure = _components(out & (colour == c), c)
        for whole in _components(hardly & (colour == c), c):
            parts = tuple(p for p in sure if whole.mask[p.mask].any())
            if len(parts) == 1 and parts[0].area > 0.6 * whole.area:
                found.append(parts[0])
            elif parts:
                found.append(dataclasses.replace(whole, parts=parts))
    return sorted(found, key=_width), out


def _nearest(view: View) -> tuple[Int[np.ndarray, "S S"], Float64[np.ndarray, "S S"], Float64[np.ndarray, "S S"]]:
    """For each pixel the colour on the way to which it lies, how far (0..1), and how many levels that is; 0 where hardly any."""
    off = view.pixels - view.behind
    colour = np.zeros(off.shape[:2], np.int64)
    share, strength = np.zeros(off.shape[:2]), np.zeros(off.shape[:2])
    squared = (off * off).sum(-1)
    some = squared > (0.7 * STANDS_OUT) ** 2
    off, behind, squared = off[some], view.behind[some], squared[some]
    towards = off @ view.palette.T - (off * behind).sum(-1)[:, None]
    length = (view.palette**2).sum(-1) - 2 * behind @ view.palette.T + (behind * behind).sum(-1)[:, None]
    along = np.clip(towards / np.maximum(length, 1.0), 0.0, 1.0)
    rest = squared[:, None] - 2 * along * towards + along * along * length
    best = rest.argmin(1)
    each = np.arange(len(best))
    colour[some], share[some] = best, along[each, best]
    strength[some] = along[each, best] * np.sqrt(np.maximum(length[each, best], 0.0))
    return colour, share, strength


def _components(mask: Bool[np.ndarray, "S S"], colour: int) -> list[Patch]:
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    found = [Patch(colour, labels == i + 1, *window) for i, window in enumerate(ndimage.find_objects(labels))]
    return [p for p in found if p.area >= SPECK]


def _width(p: Patch) -> int:
    return -(p.rows.stop - p.rows.start) * (p.columns.stop - p.columns.start)


def around(patch: Patch, size: int, margin: int = 3) -> tuple[slice, slice]:
    """The patch's window with a margin."""
    wider = lambda s: slice(max(s.start - margin, 0), min(s.stop + margin, size))
    return wider(patch.rows), wider(patch.columns)


def spots(view: View, patch: Patch, out: Bool[np.ndarray, "S S"], blur: float) -> list[Spot]:
    """The patch to be fitted: as it is, and where it surrounds other things, as if it went on behind them.

    `out` is where anything stands out of what is behind.
    """
    rows, columns = around(patch, view.size)
    own = patch.mask[rows, columns]
    others = out[rows, columns] & ~own & ~_beside(own)
    hidden = ndimage.binary_dilation(others, np.ones((3, 3))) & ~own
    near = ndimage.binary_dilation(own, np.ones((3, 3)), iterations=2)
    w = np.where(hidden, 0.0, 1.0)
    calm = share_of(view, view.pixels, patch.colour, rows, columns)
    a = share_of(view, view.raw, patch.colour, rows, columns) if view.smoothing else calm
    calm = np.where(near & ~hidden, calm, 0.0)
    noise = noise_of_share(view, patch.colour, patch.mask)
    spot = Spot(a, calm, w, rows, columns, view.size, blur, float(np.hypot(blur, view.smoothing)), noise)
    within = hidden & ndimage.binary_fill_holes(own)
    if within.any():
        return [spot, dataclasses.replace(spot, calm=np.where(within, 1.0, calm))]
    return [spot]


def cut_off(spot: Spot) -> float:
    """The squared shares of what would go on beyond the picture's edge for two pixels, if it does not end just there."""
    sides = [(spot.rows.start == 0, spot.calm[0]), (spot.rows.stop == spot.size, spot.calm[-1])]
    sides += [(spot.columns.start == 0, spot.calm[:, 0]), (spot.columns.stop == spot.size, spot.calm[:, -1])]
    return 2.0 * sum(float((side[side > 0.8] ** 2).sum()) for touches, side in sides if touches)


def explain(view: View, shares: Float64[np.ndarray, "h w"], colour: int, rows: slice, columns: slice) -> None:
    """Puts a thing that was found behind what is still to be found."""
    there = view.behind[rows, columns]
    view.behind[rows, columns] = there + np.clip(shares, 0, 1)[..., None] * (view.palette[colour] - there)


def colour_of(
    view: View, shares: Float64[np.ndarray, "h w"], w: Float64[np.ndarray, "h w"], rows: slice, columns: slice
) -> tuple[int, float]:
    """(nearest colour of the palette, its distance in levels) of a thing that covers the window so far."""
    there, m = view.behind[rows, columns], shares[..., None]
    weight = w[..., None] * m
    own = (weight * (view.raw[rows, columns] - (1 - m) * there)).sum((0, 1)) / np.maximum((weight * m).sum(), 1e-6)
    off = np.linalg.norm(view.palette - own, axis=1)
    return int(off.argmin()), float(off.min())


def _beside(own: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    return ndimage.binary_dilation(own)
