"""Frechet distance between Gaussians fitted to features (Heusel et al. 2017, equation 6), in float64.

D features.
"""

import dataclasses
import io
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64

from mmjax.core.errors import UserError
from mmjax.data import files


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and unbiased covariance of `count` feature vectors; of a file that does not tell how many there were, count is 0."""

    mean: Float64[np.ndarray, "D"]
    covariance: Float64[np.ndarray, "D D"]
    count: int

    @property
    def size(self) -> int:
        return len(self.mean)


def of(features: Float[np.ndarray, "N D"]) -> Statistics:
    """Of feature vectors; of a single one the covariance is 0.

    Raises:
      UserError: no features, or some that are not finite.
    """
    x = np.asarray(features, np.float64)
    if not len(x) or not np.isfinite(x).all():
        raise UserError(f"features of {len(x)} pictures are {'not finite' if len(x) else 'no base for statistics'}")
    mean = x.mean(0)
    centred = x - mean[None]
    return Statistics(mean, centred.T @ centred / max(1, len(x) - 1), len(x))


def merged(a: Statistics, b: Statistics) -> Statistics:
    """Of both sets together, as if they had been one (Chan, Golub, LeVeque 1979): batches, or parts on several machines.

    Raises:
      UserError: different sizes, or counts that are not known.
    """
    _same_size(a, b)
    if not a.count or not b.count:
        raise UserError("statistics from a file that does not say of how many pictures cannot be merged with others")
    n, step = a.count + b.count, b.mean - a.mean
    scatter = (a.count - 1) * a.covariance + (b.count - 1) * b.covariance + np.outer(step, step) * (a.count * b.count / n)
    return Statistics(a.mean + step * (b.count / n), scatter / (n - 1), n)


def distance(a: Statistics, b: Statistics) -> float:
    """|m - n|^2 + tr(C + D - 2 (C^1/2 D C^1/2)^1/2), never below 0.

    The last trace is the sum of the singular values of C^1/2 D^1/2, whose squares are the eigenvalues of C D: with roots of symmetric
    matrices nothing turns complex, and small eigenvalues, of which fewer pictures than features leave many, lose no digits to a square.

    Raises:
      UserError: statistics of different sizes.
    """
    _same_size(a, b)
    cross = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
    apart = np.square(a.mean - b.mean).sum()
    return max(0.0, float(apart + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross))


def _root(x: Float64[np.ndarray, "D D"]) -> Float64[np.ndarray, "D D"]:
    """Of a positive semi-definite matrix; what rounding made of eigenvalues of 0 is taken for 0."""
    values, vectors = np.linalg.eigh((x + x.T) / 2)
    return (vectors * np.sqrt(np.maximum(values, 0))[None]) @ vectors.T


def _same_size(a: Statistics, b: Statistics) -> None:
    if a.size != b.size:
        raise UserError(f"statistics of {a.size} and of {b.size} features are of different networks or layers and cannot be compared")


# --- files ---------------------------------------------------------------------------------------------------------------


def read(path: str, size: int | None = None) -> Statistics:
    """Statistics of a `.npz` with `mu` and `sigma`, as pytorch-fid, EDM and ADM's reference batches have them; `count` if it is there.

    Args:
      size: how many features there are to be; any if not given.

    Raises:
      UserError: no such file, another format, something stored in it that would have to be executed, or another number of features.
    """
    try:
        with np.load(io.BytesIO(files.read(path)), allow_pickle=False) as f:
            found = {name: np.asarray(f[name], np.float64) for name in ("mu", "sigma", "count") if name in f.files}
            names = ", ".join(f.files)
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise UserError(f"statistics '{path}' cannot be read: {e}; expected a .npz with mu and sigma") from None
    if not {"mu", "sigma"} <= set(found):
        raise UserError(f"statistics '{path}' hold {names or 'nothing'}; expected mu and sigma")
    mean, covariance = found["mu"], found["sigma"]
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"statistics '{path}': mu {mean.shape} and sigma {covariance.shape} are no finite mean and covariance")
    if size is not None and len(mean) != size:
        raise UserError(
            f"statistics '{path}' are of {len(mean)} features, the network that judges has {size}; give those of the same network"
        )
    return Statistics(mean, covariance, int(found.get("count", 0)))


def write(path: str | Path, statistics: Statistics) -> None:
    """A `.npz` that `read` and its peers read: `mu`, `sigma`, and `count`; the file has its name only when it is whole."""
    temporary = Path(f"{path}.part")
    with open(temporary, "wb") as f:
        np.savez_compressed(f, mu=statistics.mean, sigma=statistics.covariance, count=np.int64(statistics.count))
    temporary.replace(path)
