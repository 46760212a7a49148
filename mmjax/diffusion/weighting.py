"""Weights of the squared error at time t, stated where the literature states them and carried over to what the network predicts.

At a given x_t the errors of any two predictions are proportional: with det = alpha q - sigma p of the prediction's row (prediction.py),
error_i / error_j = det_i / det_j. So a weight w on the error of prediction j is w (det_j / det_i)^2 on that of i.
SNR is (alpha / sigma)^2. All errors are squared and averaged over the elements of x.

    simple       1 on the prediction itself                                  Ho et al. 2020, equation 14, where that is eps
    min_snr      min(SNR, gamma) on x0                                       Hang et al. 2023
    p2           1 / (k + SNR)^gamma on eps                                  Choi et al. 2022
    edm          (s^2 + sigma_data^2) / (s sigma_data)^2 on x0, s = sigma / alpha     Karras et al. 2022, table 1
    likelihood   g^2 / 2 on the score: - d(SNR)/dt / 2 on x0                 Song et al. 2021b; Kingma et al. 2021, equation 17
    vlb          of the KL of the discrete step from t, on x0                Ho et al. 2020, equation 12
    sigma_sqrt   1 / sigma^2 on the velocity                                 that name is of diffusers; on the flow path 1 / sigma^4 on x0
    cosmap, logit_normal   the density of that name at t, on the velocity    Esser et al. 2024, section 3.1: weights in place of a density
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from mmjax.core.errors import UserError, suggest
from mmjax.core.schedules import keywords
from mmjax.diffusion.density import cosmap_pdf, logit_normal_pdf
from mmjax.diffusion.path import Path, as_time
from mmjax.diffusion.posterior import log_variance, posterior
from mmjax.diffusion.prediction import SIGMA_DATA, row


class Weighting(NamedTuple):
    """A factor on the mean squared error of prediction `on` (None: of whatever the network predicts), a function of (t, path)."""

    on: str | None
    factor: Callable[[Array, Path], Array]


def snr(t: Array, path: Path) -> Array:
    """(alpha / sigma)^2."""
    return jnp.exp(2 * path.log_snr(t))


def _simple() -> Weighting:
    return Weighting(None, lambda t, path: jnp.ones_like(t))


def _min_snr(*, gamma: float = 5.0) -> Weighting:
    _check_positive("min_snr", gamma=gamma)
    return Weighting("x0", lambda t, path: jnp.minimum(snr(t, path), gamma))


def _p2(*, k: float = 1.0, gamma: float = 1.0) -> Weighting:
    _check_positive("p2", k=k, gamma=gamma)
    return Weighting("eps", lambda t, path: (k + snr(t, path)) ** -gamma)


def _edm(*, sigma_data: float = SIGMA_DATA) -> Weighting:
    _check_positive("edm", sigma_data=sigma_data)
    return Weighting("x0", lambda t, path: snr(t, path) + sigma_data**-2)


def _likelihood() -> Weighting:
    return Weighting("score", lambda t, path: path.diffusion2(t) / 2)


def _vlb(*, variance: str = "fixed_small") -> Weighting:
    """Half the squared factor of x0 in the mean of the step to t - 1, over the model's variance."""
    if variance not in ("fixed_small", "fixed_large"):
        raise UserError(f"weighting 'vlb': variance is {variance!r}, expected 'fixed_small' or 'fixed_large'")

    def factor(t: Array, path: Path) -> Array:
        if path.steps is None:
            raise UserError(f"weighting 'vlb' is of discrete paths, and {path.name!r} is continuous: take 'likelihood'")
        return posterior(path, t, t - 1).x0 ** 2 / (2 * jnp.exp(log_variance(path, variance, t, t - 1)))

    return Weighting("x0", factor)


def _unit_time(t: Array, path: Path) -> Array:
    return (t - path.clean) / (path.noise - path.clean)


def _sigma_sqrt() -> Weighting:
    return Weighting("velocity", lambda t, path: path.sigma(t) ** -2)


def _cosmap() -> Weighting:
    return Weighting("velocity", lambda t, path: cosmap_pdf(_unit_time(t, path)))


def _logit_normal(*, mean: float = 0.0, std: float = 1.0) -> Weighting:
    _check_positive("logit_normal", std=std)
    return Weighting("velocity", lambda t, path: logit_normal_pdf(_unit_time(t, path), mean, std))


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "simple": _simple,
    "min_snr": _min_snr,
    "p2": _p2,
    "edm": _edm,
    "likelihood": _likelihood,
    "vlb": _vlb,
    "sigma_sqrt": _sigma_sqrt,
    "cosmap": _cosmap,
    "logit_normal": _logit_normal,
}


def make(config: Mapping) -> Weighting:
    """The weighting of a config group: `name`, a key of `WEIGHTINGS`, and that entry's keyword arguments.

    Raises:
      UserError: an unknown weighting, an argument that it does not take, a value out of range.
    """
    args = {k: v for k, v in config.items() if v is not None}
    name = args.pop("name", None)
    if name not in WEIGHTINGS:
        raise UserError(f"weighting is {name!r}{suggest(str(name), WEIGHTINGS)}")
    build = WEIGHTINGS[name]
    return build(**keywords(build, args, f"weighting '{name}'"))


def weight(weighting: Weighting, kind: str, t: ArrayLike, path: Path, sigma_data: float = SIGMA_DATA) -> Float[Array, "*t"]:
    """The factor on the mean squared error of a network of prediction `kind`."""
    t = as_time(t)
    factor = weighting.factor(t, path)
    if weighting.on in (None, kind):
        return factor
    return factor * (_det(weighting.on, t, path, sigma_data) / _det(kind, t, path, sigma_data)) ** 2


def _det(kind: str, t: Array, path: Path, sigma_data: float) -> Array:
    p, q = row(kind, t, path, sigma_data)
    return path.alpha(t) * q - path.sigma(t) * p


def _check_positive(name: str, **values: float) -> None:
    for key, value in values.items():
        if not 0 < value < np.inf:
            raise UserError(f"weighting '{name}': {key} is {value}, expected a positive number")
