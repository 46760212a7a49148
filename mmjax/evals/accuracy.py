"""Accuracies from class scores, shared by the evaluators that end in a choice among classes.

N examples, K classes.
"""

import numpy as np
from jaxtyping import Float, Int


def accuracies(scores: Float[np.ndarray, "N K"], labels: Int[np.ndarray, "N"]) -> dict[str, float]:
    """Top-1, top-5 (with five classes or more) and mean per-class accuracy, as fractions. A tie with the right class counts as wrong."""
    own = scores[np.arange(len(labels)), labels][:, None]
    rank = (scores >= own).sum(1) - 1
    out = {"accuracy": float((rank == 0).mean())}
    if scores.shape[1] >= 5:
        out["accuracy_top5"] = float((rank < 5).mean())
    out["mean_per_class"] = float(np.mean([(rank[labels == k] == 0).mean() for k in np.unique(labels)]))
    return out


def confusion(scores: Float[np.ndarray, "N K"], labels: Int[np.ndarray, "N"]) -> Int[np.ndarray, "K K"]:
    """Counts: row the true class, column the best-scored one."""
    out = np.zeros((scores.shape[1],) * 2, np.int64)
    np.add.at(out, (labels, scores.argmax(1)), 1)
    return out
