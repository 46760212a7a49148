"""How the times of training are drawn: maps from a uniform number to a time, so that an example's time depends on its key alone.

B examples; a unit time runs from 0 at the clean end to 1 at the noise end. On a discrete path times are whole numbers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Int, Key

from mmjax.core.errors import UserError, suggest
from mmjax.core.schedules import keywords
from mmjax.diffusion.path import Path

Quantile = Callable[[Array], Array]  # a number in (0, 1) -> a time of the path


@dataclasses.dataclass(frozen=True)
class Density:
    """A distribution of times by its inverse cumulative function, before `shift` (see `shifted`)."""

    name: str
    path: Path
    quantile: Quantile
    shift: float = 1.0

    def draw(self, keys: Key[Array, "B"]) -> Float[Array, "B"]:
        """One time an example."""
        t = self.quantile(uniform_numbers(keys))
        return t if self.shift == 1.0 else shifted(self.path, t, self.shift)


def uniform_numbers(keys: Key[Array, "B"]) -> Float[Array, "B"]:
    """One number in (0, 1) an example, neither end included: half a step of float32's uniform numbers above 0."""
    return jax.vmap(lambda key: jax.random.uniform(key, minval=2.0**-24))(keys)


def _unit(path: Path, unit: Array) -> Array:
    """The time of the path at a unit time; of a discrete path the step whose equal share of (0, 1) holds it."""
    if path.steps is not None:
        return jnp.clip(jnp.floor(unit * path.steps), 0, path.steps - 1)
    return path.clean + (path.noise - path.clean) * unit


def _uniform(path: Path, *, low: float | None = None, high: float | None = None) -> Quantile:
    """All times alike; of a continuous path those from `low` to `high`, by default its ends."""
    low, high = path.clean if low is None else low, path.noise if high is None else high
    if path.steps is not None:
        if (low, high) != (path.clean, path.noise):
            raise UserError("density 'uniform' of a discrete path takes no low and high: all its steps are drawn")
        return lambda u: _unit(path, u)
    if not path.clean <= low < high <= path.noise:
        raise UserError(f"density 'uniform' from {low} to {high}; expected times of the path {path.name!r}, {path.clean} to {path.noise}")
    return lambda u: low + (high - low) * u


def _log_normal(path: Path, *, mean: float = -1.2, std: float = 1.2) -> Quantile:
    """log(sigma / alpha) is normal (Karras et al. 2022, table 1; EDM2 at 512: -0.4 and 1)."""
    _check_std("log_normal", std)
    at = lambda u: path.at_log_snr(-(mean + std * ndtri(u)))
    if path.steps is None:
        return lambda u: jnp.clip(at(u), path.clean, path.noise)
    return lambda u: jnp.clip(jnp.round(at(u)), 0, path.steps - 1)


def _logit_normal(path: Path, *, mean: float = 0.0, std: float = 1.0) -> Quantile:
    """logit of the unit time is normal; a negative mean leans to data (Esser et al. 2024, equation 19)."""
    _check_std("logit_normal", std)
    return lambda u: _unit(path, jax.nn.sigmoid(mean + std * ndtri(u)))


def _mode(path: Path, *, scale: float = 1.29) -> Quantile:
    """Heavy tails, more (scale > 0) or less weight in the middle (Esser et al. 2024, equation 20)."""
    most = 2 / (np.pi - 2)
    if not -1 <= scale <= most:
        raise UserError(f"density 'mode' with scale {scale}; expected -1 to {most:.4f}, beyond which the map from u to t turns back")
    # the paper's u runs against t; 1 - u is as uniform, and makes the map rise
    return lambda u: _unit(path, u - scale * (jnp.sin(np.pi / 2 * u) ** 2 - u))


def _cosmap(path: Path) -> Quantile:
    """The log-SNR of the cosine schedule on the flow path (Esser et al. 2024, equation 21)."""
    return lambda u: _unit(path, 1 - 1 / (jnp.tan(np.pi / 2 * u) + 1))


DENSITIES: dict[str, Callable[..., Quantile]] = {
    "uniform": _uniform,
    "log_normal": _log_normal,
    "logit_normal": _logit_normal,
    "mode": _mode,
    "cosmap": _cosmap,
}


def make(config: Mapping, path: Path) -> Density:
    """The density of a config group: `name`, a key of `DENSITIES`, that entry's keyword arguments, and `shift` (`shifted`; 1 is none).

    Raises:
      UserError: an unknown density, an argument that it does not take, a value out of range.
    """
    args = {k: v for k, v in config.items() if v is not None}
    name, shift = args.pop("name", None), float(args.pop("shift", 1.0))
    if name not in DENSITIES:
        raise UserError(f"density of times is {name!r}{suggest(str(name), DENSITIES)}")
    if not 0 < shift < np.inf:
        raise UserError(f"density '{name}': shift is {shift}, expected a positive number")
    build = DENSITIES[name]
    return Density(name, path, build(path, **keywords(build, args, f"density '{name}'")), shift)


def _check_std(name: str, std: float) -> None:
    if not 0 < std < np.inf:
        raise UserError(f"density '{name}': std is {std}, expected a positive number")


# --- resolution-dependent shift ------------------------------------------------------------------------------------------


def shifted(path: Path, t: Float[Array, "*t"], factor: float) -> Float[Array, "*t"]:
    """The time at which sigma / alpha is `factor` times what it is at t: more noise for larger pictures, which hide it worse.

    On the flow path this is factor t / (1 + (factor - 1) t) (Esser et al. 2024, equation 23). A whole step on a discrete path.
    """
    if path.name == "flow":
        return factor * t / (1 + (factor - 1) * t)
    moved = jnp.clip(path.at_log_snr(path.log_snr(t) - float(np.log(factor))), path.clean, path.noise)
    return moved if path.steps is None else jnp.clip(jnp.round(moved), 0, path.steps - 1)


def shift_of_size(tokens: int, base_tokens: int) -> float:
    """sqrt(m / n), the factor that a picture of m pixels or tokens needs to be as noisy as one of n (Esser et al. 2024, section 5.3.2)."""
    return float(np.sqrt(tokens / base_tokens))


def dynamic_shift(tokens: int, base_tokens: int = 256, max_tokens: int = 4096, base_mu: float = 0.5, max_mu: float = 1.15) -> float:
    """exp(mu) with mu linear in the number of tokens: the `use_dynamic_shifting` of diffusers."""
    return float(np.exp(base_mu + (tokens - base_tokens) * (max_mu - base_mu) / (max_tokens - base_tokens)))


# --- densities of unit times, as weights ---------------------------------------------------------------------------------


def logit_normal_pdf(t: Float[Array, "*t"], mean: float = 0.0, std: float = 1.0) -> Float[Array, "*t"]:
    """Density at a unit time."""
    logit = jnp.log(t) - jnp.log1p(-t)
    return jnp.exp(-(((logit - mean) / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi) * t * (1 - t))


def cosmap_pdf(t: Float[Array, "*t"]) -> Float[Array, "*t"]:
    """Density at a unit time: 2 / (pi - 2 pi t + 2 pi t^2)."""
    return 2 / (np.pi * (1 - 2 * t + 2 * t**2))


# --- importance sampling by the loss's second moment ---------------------------------------------------------------------


class Moments(NamedTuple):
    """The last losses of every step of a discrete path; plain arrays, for a train state."""

    losses: Float[Array, "T H"]  # a ring: the newest writes over the oldest
    count: Int[Array, "T"]  # how many were ever seen


class Draw(NamedTuple):
    """Times, and the factors that make a mean over them one over uniform times."""

    t: Float[Array, "B"]
    weight: Float[Array, "B"]


def no_moments(steps: int, history: int = 10) -> Moments:
    """The state before any loss was seen."""
    return Moments(jnp.zeros((steps, history)), jnp.zeros((steps,), jnp.int32))


def probabilities(state: Moments, uniform: float = 0.001) -> Float[Array, "T"]:
    """sqrt(E[loss^2]) over its sum, mixed with a little of the uniform; uniform until every step has a full history.

    Nichol & Dhariwal 2021, equation 18, with a history of 10.
    """
    steps, history = state.losses.shape
    root = jnp.sqrt((state.losses**2).mean(1))
    p = root / jnp.maximum(root.sum(), jnp.finfo(root.dtype).tiny) * (1 - uniform) + uniform / steps
    ready = (state.count >= history).all() & (root.sum() > 0)
    return jnp.where(ready, p, 1 / steps)


def draw_by_importance(keys: Key[Array, "B"], state: Moments, uniform: float = 0.001) -> Draw:
    """A time an example from `probabilities`, weighted by 1 / (T p)."""
    p = probabilities(state, uniform)
    total = jnp.cumsum(p)
    t = jnp.searchsorted(total, uniform_numbers(keys) * total[-1], side="left")
    return Draw(t.astype(p.dtype), 1 / (len(p) * p[t]))


def observe(state: Moments, t: Float[Array, "B"], losses: Float[Array, "B"]) -> Moments:
    """The state after a batch, as if its examples were seen one by one; `losses` before any weight of `Draw`."""
    steps, history = state.losses.shape
    t = t.astype(jnp.int32)
    order = jnp.argsort(t, stable=True)
    alike = t[order]
    first = jnp.searchsorted(alike, alike, side="left")
    rank = jnp.arange(len(t)) - first  # among the batch's examples of the same time
    seen = jnp.searchsorted(alike, alike, side="right") - first
    slot = (state.count[alike] + rank) % history
    row = jnp.where(rank >= seen - history, alike, steps)  # what a later example writes over is dropped, not raced against
    kept = state.losses.at[row, slot].set(jax.lax.stop_gradient(losses)[order].astype(state.losses.dtype), mode="drop")
    return Moments(kept, state.count.at[t].add(1))
