"""What a network predicts, and what that says of x0 and eps.

On x = alpha x0 + sigma eps every prediction is a combination p x0 + q eps with (p, q) known at time t, so one 2 x 2 system turns each
into (x0, eps) and from there into any other:

    eps       (0, 1)                                   Ho et al. 2020
    x0        (1, 0)
    v         (-sigma, alpha)                          Salimans & Ho 2022, section 4
    velocity  (d alpha / dt, d sigma / dt)             the path's own motion; eps - x0 on the flow path
    reverse_velocity  velocity's negative              the same of those whose time runs from noise to data: x0 - eps (Ma et al. 2024)
    score     (0, -1 / sigma)                          Song et al. 2021: the gradient of log p(x_t | x0)
    edm       (sigma / (s n), -s alpha / n)            Karras et al. 2022, table 1: F, with s = sigma_data and n^2 = sigma^2 + s^2 alpha^2

B examples; x is [B, ...], t [B] or a scalar.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from mmjax.core.errors import UserError, suggest
from mmjax.diffusion.path import Path, as_time, over
from mmjax.diffusion.posterior import log_variance

PREDICTIONS = ("eps", "x0", "v", "velocity", "reverse_velocity", "score", "edm")
SIGMA_DATA = 0.5  # standard deviation of the data that EDM's scalings assume


class Denoised(NamedTuple):
    """What a denoiser says of x_t."""

    x0: Float[Array, "B *x"]
    eps: Float[Array, "B *x"]
    log_variance: Float[Array, "B *x"] | None = None  # of the next step, where the network learns it


Denoiser = Callable[[Array, Array], Denoised]  # (x [B, ...], t [B])


def row(kind: str, t: ArrayLike, path: Path, sigma_data: float = SIGMA_DATA) -> tuple[Float[Array, "*t"], Float[Array, "*t"]]:
    """(p, q) of the table above: the prediction is p x0 + q eps.

    Raises:
      UserError: an unknown prediction.
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    if kind == "eps":
        return jnp.zeros_like(alpha), jnp.ones_like(alpha)
    if kind == "x0":
        return jnp.ones_like(alpha), jnp.zeros_like(alpha)
    if kind == "v":
        return -sigma, alpha
    if kind in ("velocity", "reverse_velocity"):
        p, q = path.rates(t)
        return (p, q) if kind == "velocity" else (-p, -q)
    if kind == "score":
        return jnp.zeros_like(alpha), -1 / sigma
    if kind == "edm":
        n = spread(path, t, sigma_data)
        return sigma / (sigma_data * n), -sigma_data * alpha / n
    raise UserError(f"prediction is {kind!r}{suggest(kind, PREDICTIONS)}")


def spread(path: Path, t: ArrayLike, sigma_data: float = SIGMA_DATA) -> Float[Array, "*t"]:
    """Standard deviation of x_t where that of the data is sigma_data."""
    return jnp.hypot(path.sigma(t), sigma_data * path.alpha(t))


def target(
    kind: str, x0: Float[Array, "B *x"], eps: Float[Array, "B *x"], t: ArrayLike, path: Path, sigma_data: float = SIGMA_DATA
) -> Float[Array, "B *x"]:
    """What a network of that prediction should give for x_t = alpha x0 + sigma eps."""
    p, q = row(kind, t, path, sigma_data)
    return over(p, x0) * x0 + over(q, eps) * eps


def denoised(
    kind: str, output: Float[Array, "B *x"], x: Float[Array, "B *x"], t: ArrayLike, path: Path, sigma_data: float = SIGMA_DATA
) -> Denoised:
    """x0 and eps from x and a network's output: `target` run backwards. Float32 or wider."""
    p, q = row(kind, t, path, sigma_data)
    alpha, sigma = path.alpha(t), path.sigma(t)
    det = alpha * q - sigma * p
    of = lambda a, b: over(a / det, x) * x + over(b / det, x) * output
    return Denoised(of(q, -sigma), of(-p, alpha))


def check(kind: str, path: Path, times: Iterable[float], sigma_data: float = SIGMA_DATA) -> None:
    """Refuses a prediction that says nothing of x0 at one of the times that will be walked, which are concrete numbers.

    Raises:
      UserError: an unknown prediction, or one of no use at one of the times.
    """
    times = np.asarray(list(times), np.float32)
    alpha, sigma, (p, q) = path.alpha(times), path.sigma(times), row(kind, times, path, sigma_data)
    useless = ~np.isfinite(p) | ~np.isfinite(q) | ~(np.abs(alpha * q - sigma * p) > 0)
    if useless.any():
        t = times[useless.argmax()]
        a, s = path.alpha(t), path.sigma(t)
        why = "there is no signal there" if a == 0 else "there is no noise there" if s == 0 else "its factors are not finite there"
        advice = "predict v, x0 or velocity, or start from a cleaner time" if a == 0 else "end at a noisier time"
        raise UserError(
            f"prediction {kind!r} is undefined at time {t:g} of the path {path.name!r} (alpha {a:.3g}, sigma {s:.3g}): {why}; {advice}"
        )


CONDITIONS: dict[str, Callable[[Path, ArrayLike], Array]] = {
    "time": lambda path, t: as_time(t),
    "one_minus_time": lambda path, t: 1 - as_time(t),  # of networks whose time 0 is noise and 1 data
    "quarter_log_sigma": lambda path, t: -path.log_snr(t) / 4,  # Karras et al. 2022, table 1
}


def inputs(
    x: Float[Array, "B *x"],
    t: ArrayLike,
    path: Path,
    kind: str,
    *,
    sigma_data: float = SIGMA_DATA,
    normalised: bool | None = None,
    condition: str | None = None,
    time_scale: float = 1.0,
) -> tuple[Float[Array, "B *x"], Array]:
    """What a network is shown of (x, t), in training as in sampling.

    Args:
      normalised: whether it sees x over `spread`, its standard deviation; by default with prediction edm alone.
      condition: what it is told of the time, of `CONDITIONS`; by default quarter_log_sigma with edm, else the time.
      time_scale: factor on that.
    """
    normalised = kind == "edm" if normalised is None else normalised
    condition = condition or ("quarter_log_sigma" if kind == "edm" else "time")
    seen = x / over(spread(path, t, sigma_data), x) if normalised else x
    return seen, time_scale * CONDITIONS[condition](path, t)


def denoiser(
    network: Callable[[Array, Array], Array],
    path: Path,
    kind: str,
    *,
    sigma_data: float = SIGMA_DATA,
    normalised: bool | None = None,
    condition: str | None = None,
    time_scale: float = 1.0,
    variance: str | None = None,
    times: np.ndarray | None = None,
) -> Denoiser:
    """A network of any prediction as a function of (x, t).

    Args:
      network: `network(x [B, ..., C], c [B]) -> [B, ..., C]`, or 2 C channels where it learns a variance, which is the second half.
      normalised, condition, time_scale: as of `inputs`.
      variance: "learned" or "learned_range" (`posterior.log_variance`); without it a second half of the output is left alone.
      times: where steps are not those of a discrete path, the times that will be walked, falling, clean end last.

    Raises:
      UserError: an unknown prediction, condition or variance.
    """
    check_names(kind, condition, variance)

    def denoise(x: Float[Array, "B *x"], t: ArrayLike) -> Denoised:
        seen, told = inputs(x, t, path, kind, sigma_data=sigma_data, normalised=normalised, condition=condition, time_scale=time_scale)
        mean, raw = split(network(seen, told).astype(x.dtype), x, variance)
        result = denoised(kind, mean, x, t, path, sigma_data)
        if raw is None:
            return result
        return result._replace(log_variance=log_variance(path, variance, t, following(path, t, times), times, raw))

    return denoise


def split(
    output: Float[Array, "B *y"], x: Float[Array, "B *x"], variance: str | None = None
) -> tuple[Float[Array, "B *x"], Float[Array, "B *x"] | None]:
    """A network's prediction and, where it learns one, the variance's half of its channels.

    Raises:
      UserError: a learned variance is asked of an output that has not twice the channels of x.
    """
    channels = x.shape[-1]
    mean, raw = output[..., :channels], output[..., channels:]
    if variance is None or not variance.startswith("learned"):
        return mean, None
    if raw.shape != x.shape:
        raise UserError(
            f"variance is {variance!r}: the network gives {output.shape[-1]} channels, expected {2 * channels}, twice those of x"
        )
    return mean, raw


def check_names(kind: str, condition: str | None, variance: str | None) -> None:
    """Raises `UserError` for a name that `denoiser` does not know."""
    learned = ("learned", "learned_range")
    for what, given, known in (("prediction", kind, PREDICTIONS), ("condition", condition, CONDITIONS), ("variance", variance, learned)):
        if given is not None and given not in known:
            raise UserError(f"{what} of a denoiser is {given!r}{suggest(str(given), known)}")


def following(path: Path, t: ArrayLike, times: np.ndarray | None = None) -> Float[Array, "*t"]:
    """The time that a process of these times goes to from t: the largest below it. The one before, of a discrete path without times."""
    t = as_time(t)
    if times is None:
        return t - 1
    rising = jnp.asarray(np.asarray(times)[::-1], t.dtype)
    return rising[jnp.maximum(jnp.searchsorted(rising, t, side="left") - 1, 0)]


def on_path(denoise: Denoiser, native: Path, path: Path) -> Denoiser:
    """A denoiser of one path as a denoiser of another: at equal signal-to-noise ratio the two states differ by a factor alone.

    So a network trained on one path is sampled by a solver on any other (Karras et al. 2022, appendix C). A learned variance is that of the
    native path's own steps, and is dropped.
    """

    def translated(x: Float[Array, "B *x"], t: ArrayLike) -> Denoised:
        there, factor = _elsewhere(native, path, t)
        return denoise(x * over(factor, x), there)._replace(log_variance=None)

    return translated


def gradient_on_path(gradient: Callable[[Array, Array], Array], native: Path, path: Path) -> Callable[[Array, Array], Array]:
    """A gradient with regard to the state of one path, `gradient(x, t)`, as one with regard to the state of another, by the chain rule."""

    def translated(x: Float[Array, "B *x"], t: ArrayLike) -> Array:
        there, factor = _elsewhere(native, path, t)
        return over(factor, x) * gradient(x * over(factor, x), there)

    return translated


def _elsewhere(native: Path, path: Path, t: ArrayLike) -> tuple[Array, Array]:
    """The native path's time of the same signal-to-noise ratio as another's at `t`, and its state there over the other's."""
    there = native.at_log_snr(path.log_snr(t))
    size = lambda p, time: jnp.hypot(p.alpha(time), p.sigma(time))
    return there, size(native, there) / size(path, t)
