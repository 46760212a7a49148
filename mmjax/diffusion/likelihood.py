"""The exact log-likelihood of the probability-flow ODE, dequantisation, and bits per dimension.

Along the ODE the log-density changes by minus the divergence of the slope (Chen et al. 2018; Song et al. 2021, appendix D.2). It is walked
along the circle of `solvers_ode`, y = x / sqrt(alpha^2 + sigma^2), from data to noise:

    log p(x_0) = log p_noise(x_T) + integral of div(dy/du) du + D log(size_T / size_0),     size = sqrt(alpha^2 + sigma^2).

B examples; x [B, ...] of D numbers each.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from mmjax.core import rng
from mmjax.core.errors import UserError, suggest
from mmjax.diffusion.path import Path
from mmjax.diffusion.prediction import Denoiser
from mmjax.diffusion.solvers_ode import ADAPTIVE, angles, circular, integrate, last_look
from mmjax.diffusion.walk import levels, on_host

Slope = Callable[[Array, Array], Array]  # (y [B, ...], u [B]) -> [B, ...]

PROBES: dict[str, Callable[..., Array]] = {
    "rademacher": lambda key, shape, dtype: jax.random.rademacher(key, shape, dtype),
    "gaussian": jax.random.normal,
}


def exact_divergence(slope: Slope) -> Callable[[Array, Array], tuple[Array, Array]]:
    """(y, u) -> the slope, and its divergence [B]: one derivative an element of an example, D in all, one after the other."""

    def both(y: Float[Array, "B *x"], u: Float[Array, "B"]) -> tuple[Array, Array]:
        size = math.prod(y.shape[1:])
        value, push = jax.linearize(lambda y: slope(y, u), y)

        def add(total: Array, i: Array) -> tuple[Array, None]:
            basis = jnp.broadcast_to(jax.nn.one_hot(i, size, dtype=y.dtype).reshape(1, *y.shape[1:]), y.shape)
            return total + (basis * push(basis)).reshape(y.shape[0], -1).sum(1), None

        return value, jax.lax.scan(add, jnp.zeros(y.shape[0], y.dtype), jnp.arange(size))[0]

    return both


def hutchinson_divergence(slope: Slope, probe: Float[Array, "B *x"]) -> Callable[[Array, Array], tuple[Array, Array]]:
    """(y, u) -> the slope, and e^T (d slope / dy) e [B]: unbiased for probes of mean 0 and covariance 1 (Hutchinson 1989)."""

    def both(y: Float[Array, "B *x"], u: Float[Array, "B"]) -> tuple[Array, Array]:
        value, change = jax.jvp(lambda y: slope(y, u), (y,), (probe,))
        return value, (probe * change).reshape(y.shape[0], -1).sum(1)

    return both


def log_likelihood(
    denoise: Denoiser,
    x: Float[Array, "B *x"],
    keys: Key[Array, "B"] | None,
    *,
    path: Path,
    divergence: str = "hutchinson",
    probe: str = "rademacher",
    start: float | None = None,
    prior: Callable[[Array], Array] | None = None,
    solver: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
) -> tuple[Float[Array, "B"], Int[Array, "B"]]:
    """log p of x under the model's probability-flow ODE, in nats, and how often the denoiser looked at each example.

    Args:
      x: data. At `start` it stands for x_t = alpha x, the little noise there left out, and its density is that of x_t times alpha^D.
      keys: one an example, for the probe; None will do where the divergence is exact.
      divergence: "hutchinson", unbiased, two looks' cost whatever D; or "exact", D derivatives a look.
      probe: "rademacher" or "gaussian"; drawn once an example. An adaptive solver needs the same slope whenever it asks: drawing
        again in each call, as SiT's code does, would make it chase noise.
      start: the path's time where the model takes over from data. By default the cleanest that a sampler looks at: time 0 of a discrete
        path, of others sigma / alpha = 0.001, or the clean end where that has more noise.
      prior: log p of x at the noise end, [B, ...] -> [B]; by default a Gaussian of the path's `prior_std`, which samples start from.

    Raises:
      UserError: an unknown name, tolerances that are not positive, no keys for a probe.
    """
    for what, given, known in (
        ("divergence", divergence, ("exact", "hutchinson")),
        ("probe", probe, PROBES),
        ("solver", solver, ADAPTIVE),
    ):
        if given not in known:
            raise UserError(f"{what} of a likelihood is {given!r}{suggest(given, known)}")
    slope = circular(denoise, path)
    if divergence == "exact":
        both = exact_divergence(slope)
    elif keys is None:
        raise UserError("divergence 'hutchinson' draws a probe: expected keys, one an example, got none; or ask for 'exact'")
    else:
        both = hutchinson_divergence(slope, jax.vmap(lambda key: PROBES[probe](rng.named(key, "probe"), x.shape[1:], x.dtype))(keys))
    walk, size, alpha = walk_up(path, start)
    dimensions = math.prod(x.shape[1:])
    state = (x * (alpha / float(size[0])), jnp.zeros(x.shape[0], x.dtype))
    f = lambda state, u: both(state[0], u)
    (y, change), evaluations = integrate(f, state, walk, solver=solver, rtol=rtol, atol=atol, max_steps=max_steps)
    end = y[-1] * float(size[1])
    at_noise = prior_log_density(end, path) if prior is None else prior(end)
    return at_noise + change[-1] + dimensions * float(np.log(alpha * size[1] / size[0])), evaluations


def walk_up(path: Path, start: float | None) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"], float]:
    """The angles of the start and of noise, sqrt(alpha^2 + sigma^2) at both, and alpha at the start."""
    if start is None:
        cleanest = float(on_host(path.at_log_snr, -math.log(math.tan(last_look(path)))))
        start = max(path.clean, cleanest)
    if not path.clean <= start < path.noise:
        raise UserError(f"a likelihood starting at time {start:g} of the path {path.name!r}; expected {path.clean:g} to {path.noise:g}")
    return *angles(path, np.array([start, path.noise])), float(levels(path, np.array([start])).alpha[0])


def prior_log_density(x: Float[Array, "B *x"], path: Path) -> Float[Array, "B"]:
    """log N(x; 0, prior_std^2), nats, summed over an example."""
    size, std = math.prod(x.shape[1:]), path.prior_std
    return -((x / std) ** 2).reshape(x.shape[0], -1).sum(1) / 2 - size * (math.log(2 * math.pi) / 2 + math.log(std))


def dequantise(pictures: UInt8[Array, "B *x"], keys: Key[Array, "B"]) -> Float[Array, "B *x"]:
    """Uniform dequantisation to [-1, 1]: 2 (v + u) / 256 - 1 with u uniform in 0..1 (Theis et al. 2016).

    The mean over u of a density's log is a lower bound of the log-probability of the integers.
    """
    u = jax.vmap(lambda key: jax.random.uniform(rng.named(key, "dequantise"), pictures.shape[1:]))(keys)
    return (pictures.astype(jnp.float32) + u) / 128 - 1


def bits_per_dimension(
    log_density: Float[Array, "B"], dimensions: int, *, levels: int = 256, low: float = -1.0, high: float = 1.0
) -> Float[Array, "B"]:
    """-log2 of the probability of integers with `levels` values, over the number of dimensions, of a density of data scaled to [low, high].

    A bin has the width (high - low) / levels: for [-1, 1] and 256 levels 7 bits are added, for [0, 1] 8.
    """
    if dimensions < 1 or not low < high:
        raise UserError(f"bits per dimension of {dimensions} dimensions scaled to [{low}, {high}]; expected at least 1, and low < high")
    return -log_density / (dimensions * math.log(2)) + math.log2(levels / (high - low))
