"""q(x_s | x_t, x0), the Gaussian that a step from t to a cleaner s aims at, on any path; DDPM's posterior is that of s = t - 1.

With r = alpha_t / alpha_s and step^2 = sigma_t^2 - r^2 sigma_s^2, the variance that noise gains from s to t (beta of DDPM):

    mean = alpha_s step^2 / sigma_t^2 x0 + r sigma_s^2 / sigma_t^2 x_t,     variance = step^2 sigma_s^2 / sigma_t^2.

A pair of steps further apart than one gives the respaced process of Nichol & Dhariwal 2021, section 4.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from mmjax.core.errors import UserError, suggest
from mmjax.diffusion.path import Path

VARIANCES = ("fixed_small", "fixed_large", "learned", "learned_range")


class Posterior(NamedTuple):
    """Factors of x0 and of x_t in the mean, and variances; each of the shape of t."""

    x0: Float[Array, "*t"]
    x: Float[Array, "*t"]
    variance: Float[Array, "*t"]  # of the posterior: fixed_small; 0 where s is clean
    step: Float[Array, "*t"]  # step^2 above: fixed_large


def posterior(path: Path, t: ArrayLike, s: ArrayLike) -> Posterior:
    """q(x_s | x_t, x0). Undefined where alpha_t and alpha_s are both 0.

    step^2 is made of log-SNRs, as sigma_t^2 (1 - exp(2 (log_snr_t - log_snr_s))): a difference of near numbers would lose its digits.
    """
    sigma_t, sigma_s, alpha_t, alpha_s = path.sigma(t), path.sigma(s), path.alpha(t), path.alpha(s)
    step = sigma_t**2 * -jnp.expm1(2 * (path.log_snr(t) - path.log_snr(s)))
    kept = sigma_s**2 / sigma_t**2
    return Posterior(alpha_s * step / sigma_t**2, alpha_t / alpha_s * kept, step * kept, step)


def log_variance(
    path: Path, kind: str, t: ArrayLike, s: ArrayLike, times: np.ndarray | None = None, raw: Float[Array, "*x"] | None = None
) -> Float[Array, "..."]:
    """The log of the variance of a model's step from t to s, of one of `VARIANCES`.

    The posterior's variance is 0 at the last step, to clean data; its logarithm is there taken at the step before, and so is that of
    fixed_large (Ho et al. 2020's code: what the decoder's likelihood needs).

    Args:
      times: all times of the process, falling, with the clean end last; the whole schedule of a discrete path if left out.
      raw: what a network says [B, ...]: of learned the log-variance itself, of learned_range o in log variance =
        f log(step^2) + (1 - f) log(posterior variance), f = (o + 1) / 2 (Nichol & Dhariwal 2021, equation 15).

    Returns:
      Of the shape of t, or of raw where there is one.

    Raises:
      UserError: an unknown kind, a learned one without raw, no times for a continuous path.
    """
    if kind not in VARIANCES:
        raise UserError(f"variance is {kind!r}{suggest(kind, VARIANCES)}")
    if kind.startswith("learned") and raw is None:
        raise UserError(f"variance is {kind!r}, and the network gives none: its output must have twice the channels of x")
    if kind == "learned":
        return raw
    floor_pair = _step_before_the_last(path, times)
    now, floor = posterior(path, t, s), posterior(path, *floor_pair)
    last = jnp.asarray(s) == path.clean
    small = jnp.log(jnp.where(last, floor.variance, now.variance))
    if kind == "fixed_small":
        return small
    if kind == "fixed_large":
        return jnp.where(last, small, jnp.log(now.step))
    pad = lambda a: a.reshape(a.shape + (1,) * (raw.ndim - a.ndim))
    f = (raw + 1) / 2
    return f * pad(jnp.log(now.step)) + (1 - f) * pad(small)


def _step_before_the_last(path: Path, times: np.ndarray | None) -> tuple[float, float]:
    if times is None and path.steps is None:
        raise UserError(f"the path {path.name!r} is continuous: the variance of a step needs the times of all steps")
    if times is None:
        return 1.0, 0.0
    if len(times) < 3:
        raise UserError("a fixed or learned variance needs at least two steps")
    return float(times[-3]), float(times[-2])
