"""Precision and recall of generated pictures by nearest neighbours (Kynkaanniemi et al. 2019, equations 1 and 2).

N real, M generated pictures, D features.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from mmjax.core.errors import UserError

BLOCK = 1024  # rows whose distances are in memory at once


def precision_recall(real: Float[np.ndarray, "N D"], generated: Float[np.ndarray, "M D"], k: int = 3) -> dict[str, float]:
    """`precision`, the share of generated pictures in a real one's ball, and `recall`, the share of real ones in a generated one's.

    A picture's ball reaches to the k-th nearest other picture of its own set.

    Raises:
      UserError: sets of no more than k pictures.
    """
    if not 1 <= k < min(len(real), len(generated)):
        raise UserError(f"precision and recall: neighbour {k} of {len(real)} and {len(generated)} pictures; expected more pictures")
    real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    precision = covered(generated, real, radii(real, k)).mean()
    recall = covered(real, generated, radii(generated, k)).mean()
    return {"precision": float(precision), "recall": float(recall)}


def radii(x: Float[np.ndarray, "N D"], k: int) -> Float[np.ndarray, "N"]:
    """The squared distance of each point to its k-th nearest other."""
    out = np.empty(len(x))
    for rows, d in _distances(x, x):
        d[np.arange(len(d)), rows] = np.inf  # itself
        out[rows] = np.partition(d, k - 1, axis=1)[:, k - 1]
    return out


def covered(points: Float[np.ndarray, "N D"], centres: Float[np.ndarray, "M D"], radii: Float[np.ndarray, "M"]) -> Bool[np.ndarray, "N"]:
    """Whether a point lies in the ball of any centre; `radii` are squared."""
    return np.concatenate([(d <= radii[None]).any(1) for _, d in _distances(points, centres)])


def _distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of x, and their squared distances to all of y, block after block."""
    lengths = np.square(y).sum(1)
    for start in range(0, len(x), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(x)))
        part = x[rows]
        yield rows, np.maximum(np.square(part).sum(1)[:, None] + lengths[None] - 2 * part @ y.T, 0)
