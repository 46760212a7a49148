"""Whether generated pictures are copies: the training picture nearest to each, by pixels and by perceptual hash.

What is near depends on the pictures, so the threshold is measured: validation pictures, which no model can have copied, have their
nearest training pictures too, and one in a hundred of them is as near as the threshold. A share of generated pictures well above the
validation pictures' own is memorisation. Q pictures are asked about, n training pictures are in a chunk; memory holds one chunk at a time.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8, UInt64

from mmjax.data import phash
from mmjax.data.image import to_pil

QUANTILE = 0.01
BLOCK_BYTES = 64 << 20  # float64 pixels of a block of pictures


@dataclasses.dataclass(frozen=True)
class Nearest:
    """Of each picture: the distance to the nearest training picture and that one's number."""

    distances: Float64[np.ndarray, "Q"]
    numbers: Int64[np.ndarray, "Q"]


def hashes(pictures: UInt8[np.ndarray, "n S S 3"]) -> UInt64[np.ndarray, "n"]:
    """The perceptual hash of each."""
    return np.array([phash.hash_picture(to_pil(picture)) for picture in pictures], np.uint64)


def pixel_distances(a: UInt8[np.ndarray, "q S S 3"], b: UInt8[np.ndarray, "n S S 3"]) -> Float64[np.ndarray, "q n"]:
    """Root mean square difference of two pictures' values, 0..1. Sums are of whole numbers below 2^53: a copy is at exactly 0."""
    a, b = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * (a @ b.T)
    return np.sqrt(np.maximum(squared, 0) / a.shape[1]) / 255


def hash_distances(a: UInt64[np.ndarray, "q"], b: UInt64[np.ndarray, "n"]) -> Float64[np.ndarray, "q n"]:
    """Bits in which hashes differ."""
    a, b = np.broadcast_arrays(a[:, None], b[None, :])
    return phash.distance(a, b).astype(np.float64)


class Search:
    """Nearest training pictures of Q pictures, found as the training pictures come by."""

    def __init__(self, pictures: UInt8[np.ndarray, "Q S S 3"]):
        self._pictures, self._hashes, self._seen = pictures, hashes(pictures), 0
        count = len(pictures)
        self._best = {kind: (np.full(count, np.inf), np.full(count, -1, np.int64)) for kind in ("pixels", "hash")}
        self._block = max(1, BLOCK_BYTES // (8 * max(pictures[:1].size, 1)))

    def look_at(self, chunk: UInt8[np.ndarray, "n S S 3"]) -> None:
        """At the next n training pictures, of the same size."""
        codes = hashes(chunk)
        for start in range(0, len(self._pictures), self._block):
            block = slice(start, start + self._block)
            self._keep("pixels", block, pixel_distances(self._pictures[block], chunk))
            self._keep("hash", block, hash_distances(self._hashes[block], codes))
        self._seen += len(chunk)

    def _keep(self, kind: str, block: slice, distances: Float64[np.ndarray, "q n"]) -> None:
        best, numbers = self._best[kind]
        nearest = distances.argmin(1)
        least = distances[np.arange(len(distances)), nearest]
        nearer = least < best[block]  # the first of several as near
        numbers[block] = np.where(nearer, nearest + self._seen, numbers[block])
        best[block] = np.where(nearer, least, best[block])

    def found(self) -> dict[str, Nearest]:
        """By "pixels" (root mean square, 0..1) and by "hash" (bits of 64)."""
        return {kind: Nearest(*pair) for kind, pair in self._best.items()}


def search(pictures: UInt8[np.ndarray, "Q S S 3"], training: Iterable[UInt8[np.ndarray, "_ S S 3"]]) -> dict[str, Nearest]:
    """`Search` through all chunks."""
    one = Search(pictures)
    for chunk in training:
        one.look_at(chunk)
    return one.found()


@dataclasses.dataclass(frozen=True)
class Memorised:
    """The shares of pictures at the threshold or nearer, generated and validation ones (about QUANTILE by construction, but for ties)."""

    threshold: float
    share: float
    validation_share: float
    median: float
    validation_median: float


def measure(generated: Nearest, validation: Nearest, quantile: float = QUANTILE) -> Memorised:
    """The threshold is the `quantile` of validation pictures' distances, the lower of the two it lies between."""
    a, b = generated.distances, validation.distances
    threshold = float(np.quantile(b, quantile, method="lower"))
    return Memorised(threshold, float((a <= threshold).mean()), float((b <= threshold).mean()), float(np.median(a)), float(np.median(b)))


def plain(found: Mapping[str, Memorised]) -> dict[str, Any]:
    """As JSON."""
    return {kind: dataclasses.asdict(one) for kind, one in found.items()}


def table(found: Mapping[str, Memorised]) -> str:
    """A line a kind of distance."""
    columns = ("median", "validation", "threshold", "as near, %", "validation")
    lines = [f"{'nearest training picture':<26}" + "".join(f"  {name:>10}" for name in columns)]
    names = {"pixels": "pixels, rms of 0..1", "hash": "perceptual hash, bits"}
    for kind, m in found.items():
        distances = "".join(f"  {value:10.4g}" for value in (m.median, m.validation_median, m.threshold))
        lines.append(f"{names[kind]:<26}{distances}  {100 * m.share:10.2f}  {100 * m.validation_share:10.2f}")
    return "\n".join(lines)
