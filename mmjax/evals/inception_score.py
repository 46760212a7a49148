"""Inception score (Salimans et al. 2016, section 4): how sure a classifier is of each picture, and how evenly over classes.

N pictures, K classes.
"""

import numpy as np
from jaxtyping import Float

from mmjax.core.errors import UserError


def inception_score(logits: Float[np.ndarray, "N K"], splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over `splits` runs of neighbouring pictures of exp(mean KL(p(class | picture) || p(class))).

    A run's p(class) is its own mean, so the score falls with fewer pictures: the published ones are of ten runs of 5,000. Pictures are to
    come in an order that has nothing to do with their class.

    Raises:
      UserError: fewer pictures than runs.
    """
    if not 1 <= splits <= len(logits):
        raise UserError(f"inception score: {splits} splits of {len(logits)} pictures")
    x = np.asarray(logits, np.float64)
    x = x - x.max(1, keepdims=True)
    log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
    scores = [np.exp(_divergence(part)) for part in np.array_split(log_p, splits)]
    return float(np.mean(scores)), float(np.std(scores))


def _divergence(log_p: Float[np.ndarray, "n K"]) -> float:
    p = np.exp(log_p)
    mean = p.mean(0)
    entropy = lambda p, log_p: -(p * log_p).sum(-1)
    return float(entropy(mean, np.log(np.maximum(mean, np.finfo(np.float64).tiny))) - entropy(p, log_p).mean())
