"""Other models that guide a diffusion model while it is sampled: a classifier of noisy pictures, a weaker model of the same pictures.

They are read from workdirs or published weights when sampling is first traced, and are no parameters of the model.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.convert.pretrained import Pretrained, from_pretrained
from mmjax.core.config import Group, get, kwargs_for
from mmjax.core.errors import UserError, suggest
from mmjax.core.types import Array
from mmjax.diffusion import guidance, prediction, walk
from mmjax.diffusion import path as paths

if TYPE_CHECKING:
    from mmjax.tasks.diffusion import System

FORMS = ("score", "mean")


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A classifier of noisy pictures (Dhariwal & Nichol 2021).

    Attributes:
      path: a run of task "noisy_classification", or published weights that `mmjax.from_pretrained` reads as a classifier.
      scale: the factor on the gradient of its log-probability.
      form: "score" (their algorithm 2, any solver) or "mean" (algorithm 1, solver "ddpm").
    """

    path: str
    scale: float = 1.0
    form: str = "score"


@dataclasses.dataclass(frozen=True)
class Weaker:
    """A smaller or less trained model on the same path: guidance away from it in place of the unconditional model (Karras et al. 2024).

    Attributes:
      path: a run of task "diffusion", or published weights; of the same prediction of labels or context.
    """

    path: str


def parse_classifier(given: Group, solver: str) -> Classifier:
    """Raises UserError: an unknown key or form, a form that the solver has not."""
    where = "config.model.sampler.classifier"
    get(given, "path", where)
    made = Classifier(**kwargs_for(Classifier, given, where))
    if made.form not in FORMS:
        raise UserError(f"{where}.form is {made.form!r}{suggest(made.form, FORMS)}")
    if made.form == "mean" and solver != "ddpm":
        raise UserError(f"{where}.form is 'mean', which shifts the mean of a step of solver 'ddpm'; the solver is {solver!r}: take 'score'")
    return made


def parse_weaker(given: Group) -> Weaker:
    """Raises UserError: an unknown key."""
    where = "config.model.sampler.weaker"
    get(given, "path", where)
    return Weaker(**kwargs_for(Weaker, given, where))


def _check_path(given: Group, system: "System", what: str) -> None:
    """Raises UserError unless signal and noise are the same at every time of the model's path."""
    other, own = paths.make(given), system.path
    mine, theirs = (walk.levels(path, np.linspace(own.clean, own.noise, 33)) for path in (own, other))
    if own.name != other.name or not np.allclose(mine[:2], theirs[:2], rtol=1e-3, atol=1e-6):
        raise UserError(f"{what} was trained on path {dict(given)}, this model on {dict(system.settings.path)}")


@functools.lru_cache(maxsize=4)
def _read(path: str) -> Pretrained:
    return from_pretrained(path)


def classes(path: str) -> int:
    """How many a classifier tells apart."""
    return _read(path).config["model"]["classifier"]["classes"]


def gradient(made: Classifier, labels: Array, system: "System") -> guidance.Gradient:
    """The scaled slope of the log-probability of `labels` [B].

    Raises:
      UserError: no classifier, or one of pictures of another shape or on another path.
    """
    judge, where = _read(made.path), "config.model.sampler.classifier.path"
    if "classify" not in judge.predict:
        raise UserError(f"{where}: '{made.path}' is no classifier of noisy pictures")
    model = judge.config["model"]
    takes = (model["size"], model["size"], model["channels"])
    if takes != system.shape:
        raise UserError(f"{where}: '{made.path}' judges pictures of {takes}, and what is drawn has {system.shape}")
    if "path" in model:  # published ones do not say
        _check_path(model["path"], system, f"{where}: '{made.path}'")
    told = float(model.get("time_scale", 1.0))

    def log_probability(x: Array, t: Array) -> Array:
        logits = judge.predict["classify"](judge.params, x, told * t)
        return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]

    return guidance.log_probability_gradient(log_probability, made.scale)


def weaker_denoiser(made: Weaker, system: "System", given: Mapping[str, Array], params: Any, times: np.ndarray) -> prediction.Denoiser:
    """The weaker model under the same conditions.

    Raises:
      UserError: no diffusion network, or one on another path.
    """
    other, where = _read(made.path), "config.model.sampler.weaker.path"
    if "network" not in other.predict:
        raise UserError(f"{where}: '{made.path}' is no diffusion model")
    model = other.config["model"]
    if "path" not in model:
        raise UserError(f"{where}: '{made.path}' does not say which path it was trained on")
    _check_path(model["path"], system, f"{where}: '{made.path}'")
    told = system.conditions(params, given, None)
    return prediction.denoiser(
        lambda x, t: other.predict["network"](other.params, x, t, **told),
        system.path,
        model["prediction"],
        sigma_data=model.get("sigma_data", prediction.SIGMA_DATA),
        normalised=model.get("normalised"),
        condition=model.get("condition"),
        time_scale=model.get("time_scale", 1.0),
        variance=model.get("variance") or None,
        times=times,
    )
