"""Samplers that step from one noise level straight to another: DDPM, DDIM and its inversion, DPM-Solver++(2M).

They need no derivative of the path, only its levels, and so hold on every path and any choice of times.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmjax.core.errors import UserError, suggest
from mmjax.diffusion.path import Path
from mmjax.diffusion.posterior import VARIANCES, Posterior, posterior
from mmjax.diffusion.prediction import Denoiser
from mmjax.diffusion.walk import Problem, Solution, Steps, levels, on_host, walk


def posteriors(path: Path, t: Float[np.ndarray, "N"], s: Float[np.ndarray, "N"]) -> Posterior:
    """q(x_s | x_t, x0) of every step, in float64."""
    return on_host(lambda t, s: posterior(path, t, s), t, s)


def ancestral(path: Path, t: Float[np.ndarray, "N"], s: Float[np.ndarray, "N"], variance: str = "fixed_small") -> Steps:
    """Steps that draw from q(x_s | x_t, x0) with x0 the denoiser's. A step to clean data draws nothing."""
    q = posteriors(path, t, s)
    if variance == "fixed_large":
        spread = np.sqrt(q.step)
    elif variance == "fixed_small":
        spread = np.sqrt(q.variance)
    else:
        spread = np.ones_like(q.step)  # times the denoiser's own
    return Steps(t=t, to=s, x=q.x, x0=q.x0, noise=np.where(levels(path, s).sigma > 0, spread, 0.0))


def ddpm(problem: Problem, *, variance: str = "fixed_small", gradient: Callable | None = None) -> Solution:
    """Ancestral sampling (Ho et al. 2020, algorithm 2; respaced as in Nichol & Dhariwal 2021, section 4), one look a step.

    Args:
      variance: of a step: `fixed_small`, that of q(x_s | x_t, x0); `fixed_large`, what noise gains from s to t; `learned` or
        `learned_range`, the denoiser's `log_variance`, which must be for these times (`prediction.denoiser(times=...)`).
      gradient: `gradient(x, t)`, added to the mean times the variance: classifier guidance of Dhariwal & Nichol 2021, algorithm 1.

    Raises:
      UserError: an unknown variance, a learned one that the denoiser does not give.
    """
    if variance not in VARIANCES:
        raise UserError(f"solver 'ddpm': variance is {variance!r}{suggest(variance, VARIANCES)}")
    steps = ancestral(problem.path, problem.times[:-1], problem.times[1:], variance)
    return walk(problem, steps, learned=variance.startswith("learned"), gradient=gradient)


def ddim(problem: Problem, *, eta: float = 0.0, diffusers_stride: int | None = None) -> Solution:
    """DDIM (Song et al. 2021a, equations 12 and 16), one look a step: 0 is deterministic, 1 is DDPM with `fixed_small`.

    At eta 0 it is Euler's method on d(x / alpha) / d(sigma / alpha) = eps.

    Args:
      diffusers_stride: compatibility. diffusers' DDIMScheduler steps to t - T // N whatever the next time is, and looks from there at the
        next time; a number here does the same. Where times are T // N apart it changes nothing.
    """
    if not eta >= 0:
        raise UserError(f"solver 'ddim': eta is {eta}, expected 0 (deterministic) to 1 (DDPM)")
    t, s = problem.times[:-1], problem.times[1:]
    if diffusers_stride is not None:
        s = np.maximum(t - diffusers_stride, problem.path.clean)
    at = levels(problem.path, s)
    drawn = eta**2 * posteriors(problem.path, t, s).variance
    if (drawn > at.sigma**2 * (1 + 1e-9)).any():
        raise UserError(f"solver 'ddim': eta {eta} asks for more noise than a step ends with; take at most 1")
    return walk(problem, Steps(t=t, to=s, x0=at.alpha, eps=np.sqrt(np.maximum(at.sigma**2 - drawn, 0.0)), noise=np.sqrt(drawn)))


def dpmpp_2m(problem: Problem) -> Solution:
    """DPM-Solver++(2M) for the probability-flow ODE (Lu et al. 2022b, algorithm 2): second order at one look a step."""
    return walk(problem, multistep(problem.path, problem.times, 0.0))


def dpmpp_2m_sde(problem: Problem, *, eta: float = 1.0) -> Solution:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, equation 20): the same with noise; eta 0 is `dpmpp_2m`, 1 the diffusion SDE."""
    if not eta >= 0:
        raise UserError(f"solver 'dpmpp_2m_sde': eta is {eta}, expected 0 (no noise) to 1 (the diffusion SDE)")
    return walk(problem, multistep(problem.path, problem.times, eta))


def multistep(path: Path, times: Float[np.ndarray, "N_plus_1"], eta: float) -> Steps:
    """With h the gain in log-SNR and r = h_before / h: x' = (sigma'/sigma) e^(-eta h) x + alpha' (1 - e^(-(1 + eta) h)) D + noise,
    D = x0 + (x0 - x0_before) / 2r. First order, D = x0, where r is undefined: at the first step, at steps from pure noise, to clean data.
    """
    at = levels(path, times)
    gain = np.diff(at.log_snr)
    with np.errstate(invalid="ignore", divide="ignore"):
        half = np.concatenate([[0.0], gain[1:] / gain[:-1] / 2])  # 1 / 2r
    half = np.where(np.isfinite(gain) & np.isfinite(half), half, 0.0)
    decay = np.exp(-eta * gain) if eta else np.ones_like(gain)
    pull = at.alpha[1:] * -np.expm1(-(1 + eta) * gain)
    noise = at.sigma[1:] * np.sqrt(-np.expm1(-2 * eta * gain)) if eta else 0.0
    x = at.sigma[1:] / at.sigma[:-1] * decay
    return Steps(t=times[:-1], to=times[1:], x=x, x0=pull * (1 + half), before=-pull * half, noise=noise)


def invert(
    denoise: Denoiser,
    x: Float[Array, "B *x"],
    times: Any,
    *,
    path: Path,
    refine: int = 0,
    trajectory: bool = False,
) -> Array:
    """DDIM run from data to noise: what `ddim` at the same times, falling, leads back to x from (Song et al. 2021a, section 4.3).

    A step up uses x0 and eps seen at its lower end, where DDIM will look at the upper: an error of first order in the step. Each
    refinement looks at the upper end instead, and moves so that the step down returns; a few make the round trip exact.

    Args:
      x: at times[0]; data if that is the clean end.
      times: float[N + 1], rising.
      refine: refinements a step; each looks once.
      trajectory: return x at every time, [N + 1, B, ...], instead.
    """
    times = np.asarray(times, np.float64)
    if not (times.ndim == 1 and len(times) > 1 and (np.diff(times) > 0).all()):
        raise UserError(f"DDIM inversion walks from data to noise: expected rising times, got {np.round(times[:3], 4).tolist()}...")
    at = levels(path, times)
    (alpha, high_alpha), (sigma, high_sigma) = ((a[:-1], a[1:]) for a in (at.alpha, at.sigma))
    table = {
        # Without noise the network says nothing: there the first look is at the time of the upper end.
        "look": np.where(sigma > 0, times[:-1], times[1:]),
        "keep": high_alpha / alpha,
        "add": high_sigma - high_alpha / alpha * sigma,
        "to": times[1:],
        "alpha": alpha,
        "sigma": sigma,
        "slope": (alpha * high_alpha + sigma * high_sigma) / (high_alpha**2 + high_sigma**2),  # of the step down, x0 and eps turning with x
    }
    rows = {k: jnp.asarray(v, x.dtype) for k, v in table.items()}

    def body(x: Array, row: dict[str, Array]):
        full = lambda t: jnp.full((x.shape[0],), t, x.dtype)
        up = row["keep"] * x + row["add"] * denoise(x, full(row["look"])).eps

        def nearer(_: Array, up: Array) -> Array:
            seen = denoise(up, full(row["to"]))
            return up + (x - row["alpha"] * seen.x0 - row["sigma"] * seen.eps) / row["slope"]

        up = jax.lax.fori_loop(0, refine, nearer, up) if refine else up
        return up, up if trajectory else None

    end, states = jax.lax.scan(body, x, rows)
    return jnp.concatenate([x[None], states]) if trajectory else end
