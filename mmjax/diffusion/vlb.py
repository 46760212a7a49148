"""The variational bound of a discrete process, in bits per dimension (Ho et al. 2020, equation 5; Nichol & Dhariwal 2021).

    L = KL(q(x_T | x0), N(0, prior_std^2)) + sum over steps t -> s of KL(q(x_s | x_t, x0), p(x_s | x_t)) - log p(x0 | x_first)

The last term is a Gaussian's mass on the bin of each of 256 levels, for data on -1, -1 + 2/255, .., 1. B examples, N steps.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from mmjax.core.errors import UserError, suggest
from mmjax.diffusion.path import Path, over
from mmjax.diffusion.posterior import VARIANCES, log_variance, posterior
from mmjax.diffusion.prediction import Denoiser, following
from mmjax.diffusion.walk import gaussian

LN2 = float(np.log(2))
CUMULATIVES = ("exact", "tanh")


class Bound(NamedTuple):
    """Bits per dimension of each example."""

    total: Float[Array, "B"]
    prior: Float[Array, "B"]
    terms: Float[Array, "N B"]  # of the steps, noisiest first; the last is the decoder's


def gaussian_kl(
    mean: Float[Array, "..."], log_var: Float[Array, "..."], other_mean: Float[Array, "..."], other_log_var: Float[Array, "..."]
) -> Float[Array, "..."]:
    """KL(N(mean, exp(log_var)), N(other_mean, exp(other_log_var))), elementwise, in nats."""
    gap = log_var - other_log_var
    return (jnp.exp(gap) - 1 - gap + (mean - other_mean) ** 2 * jnp.exp(-other_log_var)) / 2


def discretised_log_likelihood(
    x0: Float[Array, "B *x"], mean: Float[Array, "B *x"], log_var: Float[Array, "..."], cumulative: str = "exact"
) -> Float[Array, "B *x"]:
    """log of a Gaussian's mass on the bin [x0 - 1/255, x0 + 1/255], the outermost bins open (Ho et al. 2020, equation 13), in nats.

    Args:
      cumulative: "exact", whose differences of logarithms keep their digits in the tails, or "tanh", the approximation of the published
        code with its floor of 1e-12 on every mass, for parity with its numbers.

    Raises:
      UserError: an unknown cumulative.
    """
    if cumulative not in CUMULATIVES:
        raise UserError(f"cumulative of the decoder is {cumulative!r}{suggest(cumulative, CUMULATIVES)}")
    scale = jnp.exp(-log_var / 2)
    above, below = (x0 - mean + 1 / 255) * scale, (x0 - mean - 1 / 255) * scale
    lowest, highest = x0 < -0.999, x0 > 0.999
    if cumulative == "tanh":
        cdf = lambda z: (1 + jnp.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))) / 2
        mass = jnp.where(lowest, cdf(above), jnp.where(highest, 1 - cdf(below), cdf(above) - cdf(below)))
        return jnp.log(jnp.maximum(mass, 1e-12))
    # By symmetry a bin above the mean is counted from the other side, so that the larger term is never near 1.
    flip = above + below > 0
    high, low = jnp.where(flip, -below, above), jnp.where(flip, -above, below)
    larger = log_ndtr(high)
    inner = larger + jnp.log(-jnp.expm1(jnp.minimum(log_ndtr(low) - larger, -1e-30)))
    return jnp.where(lowest, log_ndtr(above), jnp.where(highest, log_ndtr(-below), inner))


def term(
    x0: Float[Array, "B *x"],
    x: Float[Array, "B *x"],
    t: ArrayLike,
    s: ArrayLike,
    predicted_x0: Float[Array, "B *x"],
    model_log_variance: Float[Array, "..."],
    path: Path,
    cumulative: str = "exact",
) -> Float[Array, "B"]:
    """What the step from t to s adds to the bound: bits per dimension, the mean over an example's elements.

    Args:
      x: at t, of the clean x0.
      predicted_x0: the model's mean is the posterior's at this x0.
      model_log_variance: of the step, of the shape of x or of t (`posterior.log_variance`).
    """
    q = posterior(path, t, s)
    mean = lambda clean: over(q.x0, x) * clean + over(q.x, x) * x
    model = over(model_log_variance, x)
    last = jnp.asarray(s) == path.clean
    variance = jnp.where(last, 1.0, q.variance)  # there the decoder stands in, and a KL would be infinite
    kl = gaussian_kl(mean(x0), over(jnp.log(variance), x), mean(predicted_x0), model)
    decoder = -discretised_log_likelihood(x0, mean(predicted_x0), model, cumulative)
    return per_example(jnp.where(over(last, x), decoder, kl)) / LN2


def prior_term(x0: Float[Array, "B *x"], path: Path, start: float | None = None) -> Float[Array, "B"]:
    """KL(q(x_start | x0), N(0, prior_std^2)) in bits per dimension; `start` is the path's noise end by default."""
    start = path.noise if start is None else start
    log_var = 2 * jnp.log(path.sigma(start))
    return per_example(gaussian_kl(path.alpha(start) * x0, log_var, jnp.zeros_like(x0), 2 * jnp.log(jnp.asarray(path.prior_std)))) / LN2


def per_example(values: Float[Array, "B *x"]) -> Float[Array, "B"]:
    """Mean over all but the batch axis."""
    return values.reshape(len(values), -1).mean(1)


def bits_per_dimension(
    denoise: Denoiser,
    x0: Float[Array, "B *x"],
    keys: Key[Array, "B"],
    path: Path,
    variance: str = "fixed_small",
    times: np.ndarray | None = None,
    cumulative: str = "exact",
) -> Bound:
    """The bound of every example, each step's expectation by one draw: N looks of the denoiser, in one scan.

    Args:
      x0: data on the 256 levels of -1..1.
      keys: one an example; its noise is a function of its key and the step alone.
      variance: of `posterior.VARIANCES`; a learned one is taken from the denoiser, which must be made for the same `times`.
      times: falling, the clean end last; all steps of a discrete path by default.

    Raises:
      UserError: an unknown variance, a learned one that the denoiser does not give, no times for a continuous path.
    """
    times = whole_schedule(path) if times is None else np.asarray(times, np.float64)

    def step(_, pair):
        number, t, s = pair
        eps = gaussian(keys, number, x0)
        every = jnp.full((len(x0),), t)
        x = path.mix(x0, eps, every)
        said = denoise(x, every)
        return None, term(x0, x, t, s, said.x0, model_log_variance(said.log_variance, variance, path, t, s, times), path, cumulative)

    pairs = (jnp.arange(len(times) - 1), jnp.asarray(times[:-1]), jnp.asarray(times[1:]))
    terms = lax.scan(step, None, pairs)[1]
    prior = prior_term(x0, path, float(times[0]))
    return Bound(prior + terms.sum(0), prior, terms)


def model_log_variance(
    learned: Float[Array, "..."] | None, variance: str, path: Path, t: ArrayLike, s: ArrayLike, times: np.ndarray | None
) -> Float[Array, "..."]:
    """The log-variance that a denoiser gave, or the fixed one of that name.

    Raises:
      UserError: an unknown variance, or a learned one that the denoiser did not give.
    """
    if variance not in VARIANCES:
        raise UserError(f"variance is {variance!r}{suggest(variance, VARIANCES)}")
    if not variance.startswith("learned"):
        return log_variance(path, variance, t, s, times)
    if learned is None:
        raise UserError(f"variance is {variance!r}, and the denoiser gives none")
    return learned


def whole_schedule(path: Path) -> Float[np.ndarray, "N"]:
    """T - 1, T - 2, .., 0 and the clean end.

    Raises:
      UserError: a continuous path.
    """
    if path.steps is None:
        raise UserError(f"the path {path.name!r} is continuous: the bound needs the times of its steps")
    return np.arange(path.steps - 1, -2, -1, dtype=np.float64)


def training_term(
    x0: Float[Array, "B *x"],
    x: Float[Array, "B *x"],
    t: Float[Array, "B"],
    predicted_x0: Float[Array, "B *x"],
    model_log_variance: Float[Array, "..."],
    path: Path,
    cumulative: str = "exact",
) -> Float[Array, "B"]:
    """`term` of one drawn step of a discrete path's whole schedule, times T: over uniform t its mean is the bound without the prior."""
    return path.steps * term(x0, x, t, following(path, t), predicted_x0, model_log_variance, path, cumulative)
