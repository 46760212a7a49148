"""Kernel Inception distance (Binkowski et al. 2018, section 4): the squared maximum mean discrepancy of features, without bias.

N, M pictures, D features.
"""

import numpy as np
from jaxtyping import Float

from mmjax.core.errors import UserError


def kernel(x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "N M"]:
    """(x . y / D + 1)^3."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def discrepancy(x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]) -> float:
    """The unbiased estimate, which can be below 0 (Gretton et al. 2012, equation 3)."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    within = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    return float(within(kernel(x, x)) + within(kernel(y, y)) - 2 * kernel(x, y).mean())


def kid(
    x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"], subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation of `discrepancy` over random subsets of `size` pictures of each, drawn without replacement.

    Raises:
      UserError: fewer pictures than a subset has, or subsets of fewer than two.
    """
    if not 2 <= size <= min(len(x), len(y)):
        raise UserError(f"kid: subsets of {size} pictures, of {len(x)} and {len(y)}; expected at least 2 and no more than there are")
    draw = np.random.default_rng(seed)
    pick = lambda a: a[draw.choice(len(a), size, replace=False)]
    values = np.array([discrepancy(pick(x), pick(y)) for _ in range(subsets)])
    return float(values.mean()), float(values.std())
