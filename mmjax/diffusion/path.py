"""Paths from data to noise: x_t = alpha(t) x0 + sigma(t) eps, eps standard normal.

Time runs from data (`clean`) to noise (`noise`). B examples; t is a scalar or [B], and broadcasts over what follows the batch axis of x.

    discrete  t in 0..T-1 (and -1, where nothing is added yet); alpha^2 + sigma^2 = 1      Ho et al. 2020
    vp        t in [0, 1], d log alpha / dt = -(beta_min + t (beta_max - beta_min)) / 2     Song et al. 2021, equation 32
    ve        t in [0, 1], alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t           Song et al. 2021, equation 30
    edm       t = sigma in [0, sigma_max], alpha = 1                                        Karras et al. 2022, table 1
    flow      t in [0, 1], alpha = 1 - t, sigma = t                                         Liu et al. 2023; Lipman et al. 2023
    gvp       t in [0, 1], alpha = cos(pi t / 2), sigma = sin(pi t / 2)                     Albergo et al. 2023; Ma et al. 2024
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from mmjax.core.errors import UserError, suggest
from mmjax.core.schedules import keywords
from mmjax.diffusion import schedule


@dataclasses.dataclass(frozen=True)
class Path:
    """A pair of functions of time, and its two ends.

    Attributes:
      alpha, sigma: elementwise and differentiable in t; float32, or float64 under x64.
      time_at: the inverse of `log_snr`.
      clean, noise: the times of data and of noise.
      steps: T of a discrete path, whose times are -1..T-1, fractions allowed (log alpha_bar is linear in between).
      prior_std: standard deviation of the noise that sampling starts from.
    """

    name: str
    alpha: Callable[[ArrayLike], Array]
    sigma: Callable[[ArrayLike], Array]
    time_at: Callable[[ArrayLike], Array]
    clean: float
    noise: float
    steps: int | None = None
    prior_std: float = 1.0

    def log_snr(self, t: ArrayLike) -> Float[Array, "*t"]:
        """log(alpha / sigma): half the logarithm of the signal-to-noise ratio alpha^2 / sigma^2."""
        return jnp.log(self.alpha(t)) - jnp.log(self.sigma(t))

    def at_log_snr(self, log_snr: ArrayLike) -> Float[Array, "*t"]:
        """The time of a given `log_snr`."""
        return self.time_at(log_snr)

    def rates(self, t: ArrayLike) -> tuple[Float[Array, "*t"], Float[Array, "*t"]]:
        """d alpha / dt and d sigma / dt; where a discrete path has a kink, the slope towards noise."""
        t = as_time(t)
        rate = lambda f: jax.jvp(f, (t,), (jnp.ones_like(t),))[1]
        return rate(self.alpha), rate(self.sigma)

    def drift(self, t: ArrayLike) -> Float[Array, "*t"]:
        """f of dx = f x dt + g dw: d log alpha / dt."""
        return self.rates(t)[0] / self.alpha(t)

    def diffusion2(self, t: ArrayLike) -> Float[Array, "*t"]:
        """g^2 of dx = f x dt + g dw: d sigma^2 / dt - 2 f sigma^2. Undefined where alpha is 0, and at sigma 0 of a vp path."""
        d_alpha, d_sigma = self.rates(t)
        sigma = self.sigma(t)
        return 2 * sigma * (d_sigma - sigma * d_alpha / self.alpha(t))

    def mix(self, x0: Float[Array, "B *x"], eps: Float[Array, "B *x"], t: ArrayLike) -> Float[Array, "B *x"]:
        """x_t = alpha(t) x0 + sigma(t) eps."""
        return over(self.alpha(t), x0) * x0 + over(self.sigma(t), eps) * eps


def over(values: Shaped[Array, "*t"], x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """A value an example (or one for all) as a factor of x [B, ...]."""
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))


def as_time(t: ArrayLike) -> Float[Array, "..."]:
    """t as floating point, at least float32."""
    t = jnp.asarray(t)
    return t.astype(jnp.promote_types(t.dtype, jnp.float32) if jnp.issubdtype(t.dtype, jnp.floating) else float)


def at_time(f: Callable[[Array], Array]) -> Callable[[ArrayLike], Array]:
    """f of any number."""
    return lambda t: f(as_time(t))


def discrete(
    *,
    betas: str = "linear",
    steps: int = 1000,
    beta_start: float | None = None,
    beta_end: float | None = None,
    zero_terminal_snr: bool = False,
) -> Path:
    """Discrete variance-preserving diffusion by a schedule of `schedule.BETAS`."""
    return from_betas(schedule.betas(betas, steps, beta_start, beta_end, zero_terminal_snr))


def from_betas(table: Float[np.ndarray, "T"]) -> Path:
    """The discrete path of a table of betas; its last beta may be 1 (zero terminal SNR), the others lie between 0 and 1.

    Between whole times log alpha_bar is linear; towards an alpha of 0, where that cannot be, alpha itself is.
    """
    level = np.concatenate([[1.0], schedule.alpha_bar(table)])
    ends_in_noise = bool(level[-1] == 0)
    log_level = np.log(level[:-1] if ends_in_noise else level)  # at times -1, 0, ...
    last = len(log_level) - 2  # the last time of that table

    def log_alpha_bar(t: Array) -> Array:
        return jnp.interp(t, jnp.arange(-1, last + 1, dtype=t.dtype), jnp.asarray(log_level, t.dtype))

    def alpha(t: Array) -> Array:
        inner = jnp.exp(log_alpha_bar(t) / 2)
        return inner * jnp.clip(last + 1 - t, 0.0, 1.0) if ends_in_noise else inner

    def sigma(t: Array) -> Array:
        inner = jnp.abs(jnp.expm1(log_alpha_bar(t)))  # exact where alpha_bar is near 1
        return jnp.sqrt(jnp.where(t > last, 1 - alpha(t) ** 2, inner) if ends_in_noise else inner)

    def time_at(log_snr: Array) -> Array:
        log_bar = -jax.nn.softplus(-2 * log_snr)
        times = jnp.arange(-1, last + 1, dtype=log_snr.dtype)
        t = jnp.interp(-log_bar, jnp.asarray(-log_level, log_snr.dtype), times)
        if not ends_in_noise:
            return t
        return jnp.where(log_bar < log_level[-1], last + 1 - jnp.exp((log_bar - log_level[-1]) / 2), t)

    return Path("discrete", at_time(alpha), at_time(sigma), at_time(time_at), -1.0, float(len(table) - 1), len(table))


def vp(*, beta_min: float = 0.1, beta_max: float = 20.0) -> Path:
    """Continuous variance-preserving diffusion, beta linear in t."""
    if not 0 < beta_min <= beta_max:
        raise UserError(f"path 'vp': beta_min {beta_min} and beta_max {beta_max}; expected 0 < beta_min <= beta_max")
    slope = beta_max - beta_min
    log_alpha_bar = lambda t: -t * (beta_min + slope * t / 2)

    def time_at(log_snr: Array) -> Array:
        decay = jax.nn.softplus(-2 * log_snr)  # -log alpha_bar, a quadratic in t
        return 2 * decay / (beta_min + jnp.sqrt(beta_min**2 + 2 * slope * decay))

    alpha, sigma = lambda t: jnp.exp(log_alpha_bar(t) / 2), lambda t: jnp.sqrt(jnp.abs(jnp.expm1(log_alpha_bar(t))))
    return Path("vp", at_time(alpha), at_time(sigma), at_time(time_at), 0.0, 1.0)


def ve(*, sigma_min: float = 0.01, sigma_max: float = 50.0) -> Path:
    """Variance-exploding diffusion; its clean end keeps noise of sigma_min."""
    _check_sigmas("ve", sigma_min, sigma_max)
    log_ratio = float(np.log(sigma_max / sigma_min))
    sigma = lambda t: sigma_min * jnp.exp(log_ratio * t)
    time_at = lambda log_snr: (-log_snr - float(np.log(sigma_min))) / log_ratio
    return Path("ve", at_time(jnp.ones_like), at_time(sigma), at_time(time_at), 0.0, 1.0, prior_std=float(sigma_max))


def edm(*, sigma_max: float = 80.0) -> Path:
    """Time is the noise level itself."""
    _check_sigmas("edm", 0.0, sigma_max)
    time_at = lambda log_snr: jnp.exp(-log_snr)
    return Path("edm", at_time(jnp.ones_like), at_time(lambda t: t), at_time(time_at), 0.0, float(sigma_max), prior_std=float(sigma_max))


def flow() -> Path:
    """Rectified flow, the conditional optimal-transport path."""
    return Path("flow", at_time(lambda t: 1 - t), at_time(lambda t: t), at_time(lambda log_snr: jax.nn.sigmoid(-log_snr)), 0.0, 1.0)


def gvp() -> Path:
    """The trigonometric path. The sine of the time that is left: a cosine would not vanish exactly at the end."""
    quarter = np.pi / 2
    alpha, sigma = lambda t: jnp.sin(quarter * (1 - t)), lambda t: jnp.sin(quarter * t)
    time_at = lambda log_snr: jnp.arctan(jnp.exp(-log_snr)) / quarter
    return Path("gvp", at_time(alpha), at_time(sigma), at_time(time_at), 0.0, 1.0)


PATHS: dict[str, Callable[..., Path]] = {"discrete": discrete, "vp": vp, "ve": ve, "edm": edm, "flow": flow, "gvp": gvp}


def make(config: Mapping) -> Path:
    """The path of a config group: `name`, a key of `PATHS`, and the keyword arguments of that entry beside it.

    Raises:
      UserError: an unknown path, an argument that it does not take, a value out of range.
    """
    args = {k: v for k, v in config.items() if v is not None}
    name = args.pop("name", None)
    if name not in PATHS:
        raise UserError(f"path is {name!r}{suggest(str(name), PATHS)}")
    build = PATHS[name]
    return build(**keywords(build, args, f"path '{name}'"))


def _check_sigmas(name: str, low: float, high: float) -> None:
    if not (low < high < np.inf and low >= 0 and (low > 0 or name == "edm")):
        raise UserError(f"path '{name}': sigma from {low} to {high}; expected 0 < sigma_min < sigma_max")
