"""Perceptual hashes of images, and which images of a set repeat others: deterministic, in integers from the pixels on.

A hash is 64 bits in a uint64; near-identical images (scaled, recompressed) differ in few bits. A flat image hashes to 0 whatever
its colour.
"""

import io
import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt64
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data.image import FORMATS, decoding

MAX_DISTANCE = 7  # with more, the bands by which near hashes find each other get so narrow that all meet all
_SIDE = 32
# Rows 1 to 8 of the 32-point DCT-II in fixed point: sums of integers come out the same on every machine.
_DCT = np.round(2**14 * np.cos(np.pi * np.outer(np.arange(1, 9), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE))).astype(np.int64)


def phash(grey: UInt8[np.ndarray, "32 32"]) -> int:
    """The DCT hash (C. Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", section 3.2.1).

    A bit a coefficient of the 8 x 8 lowest frequencies, the constant row and column left out: whether it is above their median.
    """
    low = (_DCT @ grey.astype(np.int64) @ _DCT.T).ravel()
    middle = np.sort(low)[31:33].sum()
    return _bits(2 * low > middle)


def dhash(grey: UInt8[np.ndarray, "8 9"]) -> int:
    """The difference hash: a bit a pair of horizontal neighbours, whether it gets brighter to the right."""
    return _bits((grey[:, 1:] > grey[:, :-1]).ravel())


def _bits(bits: Bool[np.ndarray, "64"]) -> int:
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


# name -> (hash, width and height of the grey image it takes)
HASHES: dict[str, tuple[Callable, tuple[int, int]]] = {"phash": (phash, (_SIDE, _SIDE)), "dhash": (dhash, (9, 8))}


def hash_image(encoded: bytes, kind: str = "phash") -> int:
    """The hash of an encoded image (a key of `HASHES`), 0 <= hash < 2**64.

    Raises:
      BadSample: it cannot be decoded.
    """
    with decoding(encoded), Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        image.draft("L", (4 * _SIDE, 4 * _SIDE))  # JPEG: decode at an eighth of the size where that is enough; others ignore it
        return hash_picture(image, kind)


def hash_picture(image: Image.Image, kind: str = "phash") -> int:
    """`hash_image` of a picture at hand."""
    function, size = HASHES[kind]
    return function(np.asarray(image.convert("L").resize(size, Image.Resampling.LANCZOS)))


def distance(a: UInt64[np.ndarray, "*n"], b: UInt64[np.ndarray, "*n"]) -> Int[np.ndarray, "*n"]:
    """Bits in which hashes differ."""
    return np.bitwise_count(a ^ b).astype(np.int64)


def near_pairs(hashes: UInt64[np.ndarray, "N"], limit: int) -> Int[np.ndarray, "P 2"]:
    """Every pair of places i < j whose hashes differ in at most `limit` bits; the hashes must be distinct.

    Of `limit + 1` bands of bits at least one is the same in both hashes of such a pair, so sorting by each band in turn puts
    them into one group, within which all are compared. No pair is missed.

    Raises:
      UserError: `limit` outside 0..`MAX_DISTANCE`.
    """
    if not 0 <= limit <= MAX_DISTANCE:
        raise UserError(f"perceptual hashes: a distance of {limit} bits is outside 0..{MAX_DISTANCE}")
    edges = np.linspace(0, 64, limit + 2).astype(int)
    found = [np.empty((0, 2), np.int64)]
    for low, high in itertools.pairwise(edges):
        key = (hashes << np.uint64(64 - high)) >> np.uint64(64 - high + low)
        order = np.argsort(key, kind="stable")
        key, step, here = key[order], 1, np.arange(len(order))
        while len(here := here[: np.searchsorted(here, len(order) - step)]):
            here = here[key[here] == key[here + step]]
            close = here[distance(hashes[order[here]], hashes[order[here + step]]) <= limit]
            found.append(np.stack([order[close], order[close + step]], axis=1))
            step += 1
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def repeated(hashes: UInt64[np.ndarray, "N"], rank: UInt64[np.ndarray, "N"], limit: int = 0) -> Bool[np.ndarray, "N"]:
    """Which images repeat another one that stays.

    Images are taken by ascending `rank` (equal ranks by place); one is dropped if its hash differs in at most `limit` bits from
    one that stays. So what stays does not depend on the order of the images, no two that stay are near, and a chain of small
    changes does not pull in what is far from its beginning.
    """
    order = np.lexsort((np.arange(len(rank)), rank))
    _, first = np.unique(hashes[order], return_index=True)
    stay = np.zeros(len(hashes), bool)
    stay[order[first]] = True
    if limit:
        kept = order[np.sort(first)]  # one image a hash, by rank
        for i, j in near_pairs(hashes[kept], limit).tolist():  # sorted by i: what i drops, it drops before j's turn
            if stay[kept[i]]:
                stay[kept[j]] = False
    return ~stay
