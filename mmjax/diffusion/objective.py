"""Losses of diffusion and flow models: one for each example, from what a network said of x_t.

    keys -> time (density.py) -> noise, coupled (`corrupt`) -> x_t -> network (prediction.inputs) -> loss

A published objective is a choice of parts:

    L_simple (Ho et al. 2020, equation 14)           discrete path, eps, `regression` simple
    L_vlb, L_hybrid (Nichol & Dhariwal 2021, 3.1)    discrete path, a variance learned in a range, `bound` and `hybrid`
    denoising score matching (Song et al. 2021)      ve or vp, score (or eps) with weighting likelihood, or simple on eps
    EDM (Karras et al. 2022, table 1)                edm path, edm prediction, log-normal sigma, weighting edm
    EDM2 (Karras et al. 2024, equation 21)           the same and `uncertain`
    conditional flow matching, rectified flow        flow path, velocity, `regression` simple (Lipman et al. 2023; Liu et al. 2023)
    reflow                                           the same on a teacher's pairs: `corrupt` with its noise as `eps`

B examples.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from mmjax.diffusion import vlb, weighting
from mmjax.diffusion.coupling import couple
from mmjax.diffusion.path import Path
from mmjax.diffusion.posterior import log_variance
from mmjax.diffusion.prediction import SIGMA_DATA, denoised, following, split, target
from mmjax.diffusion.weighting import Weighting

SIMPLE = weighting.make({"name": "simple"})


class Corrupted(NamedTuple):
    """Examples on their way to noise: x = alpha(t) x0 + sigma(t) eps."""

    x0: Float[Array, "B *x"]
    eps: Float[Array, "B *x"]
    t: Float[Array, "B"]
    x: Float[Array, "B *x"]


def corrupt(
    x0: Float[Array, "B *x"],
    t: Float[Array, "B"],
    path: Path,
    keys: Key[Array, "B"] | None = None,
    *,
    eps: Float[Array, "B *x"] | None = None,
    coupling: str = "independent",
    group: int | None = None,
) -> Corrupted:
    """Examples at their times.

    Args:
      keys: one an example (`rng.per_example`), of its noise alone.
      eps: the noise, where it is given: a teacher's pairs of (noise, sample) for reflow.
      coupling, group: as of `coupling.couple`.
    """
    if eps is None:
        dtype = jnp.promote_types(x0.dtype, jnp.float32)
        eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:], dtype))(keys)
    eps = couple(eps, x0, coupling, group)
    return Corrupted(x0, eps, t, path.mix(x0, eps, t))


def regression(
    output: Float[Array, "B *x"],
    example: Corrupted,
    kind: str,
    path: Path,
    weights: Weighting = SIMPLE,
    sigma_data: float = SIGMA_DATA,
) -> Float[Array, "B"]:
    """weight(t) times the mean squared error of a prediction, averaged over an example's elements."""
    wanted = target(kind, example.x0, example.eps, example.t, path, sigma_data)
    error = vlb.per_example((output.astype(wanted.dtype) - wanted) ** 2)
    return weighting.weight(weights, kind, example.t, path, sigma_data) * error


def uncertain(loss: Float[Array, "B"], log_variance: Float[Array, "B"]) -> Float[Array, "B"]:
    """loss / exp(u) + u, u the network's own guess of log E[loss] at that time (Karras et al. 2024, equation 21).

    At the best u every time weighs the same; the gradient of u itself does not depend on what made the loss.
    """
    return loss * jnp.exp(-log_variance) + log_variance


def bound(
    output: Float[Array, "B *y"],
    example: Corrupted,
    kind: str,
    path: Path,
    variance: str = "learned_range",
    *,
    learns_mean: bool = True,
    cumulative: str = "exact",
    sigma_data: float = SIGMA_DATA,
) -> Float[Array, "B"]:
    """L_vlb of a discrete path by the one step drawn, T times its term: bits per dimension, without the prior, which nothing trains.

    Args:
      output: twice the channels of x where the variance is learned.
      learns_mean: whether the prediction gets a gradient, or the variance alone.

    Raises:
      UserError: an unknown variance, an output without the channels of a learned one, a continuous path.
    """
    vlb.whole_schedule(path)
    x0, _, t, x = example
    mean, raw = split(output.astype(x.dtype), x, variance)
    clean = denoised(kind, mean if learns_mean else lax.stop_gradient(mean), x, t, path, sigma_data).x0
    model = log_variance(path, variance, t, following(path, t), None, raw)
    return vlb.training_term(x0, x, t, clean, model, path, cumulative)


def hybrid(
    output: Float[Array, "B *y"],
    example: Corrupted,
    kind: str,
    path: Path,
    variance: str = "learned_range",
    *,
    factor: float = 0.001,
    weights: Weighting = SIMPLE,
    cumulative: str = "exact",
    sigma_data: float = SIGMA_DATA,
) -> Float[Array, "B"]:
    """L_simple + factor L_vlb, whose gradient reaches the variance alone (Nichol & Dhariwal 2021, equation 16).

    L_vlb is in bits per dimension, as in the published code, whose rescaled loss is this one.
    """
    mean, _ = split(output, example.x, variance)
    simple = regression(mean, example, kind, path, weights, sigma_data)
    step = bound(output, example, kind, path, variance, learns_mean=False, cumulative=cumulative, sigma_data=sigma_data)
    return simple + factor * step
