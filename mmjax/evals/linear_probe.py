"""A linear classifier on frozen features, as CLIP's authors fit it (Radford et al. 2021, appendix A.3).

Logistic regression by scikit-learn's L-BFGS, at most 1,000 iterations, on the image tower's features before the projection, neither
normalised nor augmented. The weight of the L2 penalty is searched for on a validation split; the last fit is on the training and the
validation split together and is judged on a split that neither was.

N examples, D features, K classes.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from mmjax.core.config import Group
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.data import transforms
from mmjax.data.source import open_source
from mmjax.evals import encode
from mmjax.evals.accuracy import accuracies

NEEDS = ("image_features",)
ARGUMENTS = ("train", "validation", "split", "batch_size", "transforms")

# The penalty's weight is 10 ** (-6 + i / 8), i = 0..96; the search starts with every sixteenth, which are two decades apart.
STEPS, A_DECADE, FIRST = 96, 8, 16
ITERATIONS = 1000

Features = Float[np.ndarray, "N D"]
Labels = Int[np.ndarray, "N"]
Split = tuple[np.ndarray, np.ndarray]  # Features and Labels of as many examples as it has


def penalty(step: int) -> float:
    """The weight of |w|^2 / 2 beside the summed cross-entropy, 1e-6 to 1e6."""
    return 10.0 ** (step / A_DECADE - 6)


def search(score: Callable[[int], float]) -> int:
    """The step in 0..96 that the paper's halving search ends at: it scores every sixteenth, and then again and again the two
    beside the best, half as far away. Of equal scores the larger penalty's is the best. At most 15 steps are scored."""
    scores: dict[int, float] = {}
    steps, width = range(0, STEPS + 1, FIRST), FIRST
    while True:
        scores |= {step: score(step) for step in steps if 0 <= step <= STEPS and step not in scores}
        best = max(scores, key=lambda step: (scores[step], step))
        width //= 2
        if not width:
            return best
        steps = (best - width, best + width)


def fit(features: Features, labels: Labels, step: int) -> Any:
    """The fitted `sklearn.linear_model.LogisticRegression`; the intercept has no penalty."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # to stop after so many iterations is the procedure
        return LogisticRegression(C=1 / penalty(step), solver="lbfgs", max_iter=ITERATIONS).fit(features, labels)


def scores(model: Any, features: Features, classes: int) -> Float[np.ndarray, "N K"]:
    """Logits of all classes; a class that the fit never saw has -inf."""
    seen = model.decision_function(features)
    if seen.ndim == 1:  # two classes: the second one's logit less the first one's
        seen = np.stack([np.zeros_like(seen), seen], 1)
    out = np.full((len(features), classes), -np.inf, seen.dtype)
    out[:, model.classes_] = seen
    return out


def probe(train: Split, validation: Split, test: Split) -> dict[str, float]:
    """`accuracy.accuracies` on `test`, the penalty that was found, and the accuracy on `validation` it was found by.

    Deterministic: L-BFGS starts at zero and draws nothing.

    Raises:
      UserError: training examples of one class alone, or features that are not finite.
    """
    classes = 1 + max(int(labels.max()) for _, labels in (train, validation, test))
    for name, (features, _) in (("train", train), ("validation", validation), ("split", test)):
        if not np.isfinite(features).all():
            raise UserError(f"linear_probe: features of `{name}` are not finite")
    if len(np.unique(train[1])) < 2:
        raise UserError("linear_probe: all training examples are of one class")

    def judged(given: Split, step: int, on: Split) -> dict[str, float]:
        return accuracies(scores(fit(*given, step), on[0], classes), on[1])

    found: dict[int, float] = {}

    def score(step: int) -> float:
        found[step] = judged(train, step, validation)["accuracy"]
        return found[step]

    best = search(score)
    both = tuple(np.concatenate(parts) for parts in zip(train, validation, strict=True))
    return {**judged(both, best, test), "penalty": penalty(best), "validation_accuracy": found[best]}


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> Callable[[Params], dict[str, float]]:
    """Config: `train`, `validation` and `split`, which is what is reported on; `batch_size`, `transforms`. A set without a validation
    split gives part of its training split: "train[:90%]" and "train[90%:]"."""
    transform = transforms.build(config["transforms"], None)
    batch_size = encode.pad_to_mesh(config["batch_size"], mesh)
    features = encode.compile_over(mesh, predict["image_features"])
    sources = [open_source(data, config[key]) for key in ("train", "validation", "split")]

    def evaluate(params: Params) -> dict[str, float]:
        found = [encode.split(features, params, source, transform, ("image", "label"), batch_size, mesh) for source in sources]
        return {**probe(*((x, labels) for x, labels, _ in found)), **encode.left_out(sources[-1], found[-1][2])}

    return evaluate
