"""What every sampler shares: the problem, numbers known before it starts, noise by key, and the scan over one-look steps.

Times are concrete, so whatever depends on them alone (levels, posteriors, the factors of a step) is computed once on the host in float64
and handed to the scan as a table. A step that looks at the network once is, on any path,

    x' = a x + b x0 + c eps + d x0_before + e z,      z standard normal,

and DDPM, DDIM, DPM-Solver++(2M), Euler-Maruyama and Langevin are nothing but tables of (a, b, c, d, e).

B examples; x is [B, ...]; N steps, N + 1 times.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.diffusion.path import Path
from mmjax.diffusion.prediction import Denoiser

After = Callable[[Array, Array, Array], Array]  # (x [B, ...], the time it has reached [B], keys [B]) -> x


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is to be sampled.

    Attributes:
      x: [B, ...] at times[0].
      times: float64[N + 1], falling.
      keys: [B] typed keys, one a sample; None for a solver that draws nothing.
      after: changes x at the end of every step (inpainting); None leaves it alone.
      trajectory: whether `Solution.states` is wanted.
    """

    denoise: Denoiser
    x: Float[Array, "B *x"]
    times: Float[np.ndarray, "N_plus_1"]
    keys: Key[Array, "B"] | None
    path: Path
    after: After | None = None
    trajectory: bool = False


class Solution(NamedTuple):
    """What a solver found.

    Attributes:
      x: at the last time.
      states: x at every time, x_init first; None unless asked for.
      evaluations: how often the denoiser looked at each example.
    """

    x: Float[Array, "B *x"]
    states: Float[Array, "N_plus_1 B *x"] | None
    evaluations: Int[Array, "B"]


class Levels(NamedTuple):
    """A path at some times, in float64 on the host."""

    alpha: Float[np.ndarray, "n"]
    sigma: Float[np.ndarray, "n"]
    log_snr: Float[np.ndarray, "n"]


def on_host(f: Callable[..., Any], *args: Any) -> Any:
    """f of concrete numbers, at once and in float64, also while a caller is being traced; numpy arrays."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return jax.tree.map(np.asarray, f(*(jnp.asarray(a, jnp.float64) for a in args)))


def levels(path: Path, times: Float[np.ndarray, "n"]) -> Levels:
    """alpha, sigma and log(alpha / sigma), -inf where there is no signal and inf where there is no noise."""
    return Levels(*on_host(lambda t: (path.alpha(t), path.sigma(t), path.log_snr(t)), times))


def rates(path: Path, times: Float[np.ndarray, "n"]) -> tuple[np.ndarray, np.ndarray]:
    """d alpha / dt and d sigma / dt. A discrete path has kinks at whole times: its slope there is the one over half a step to both sides,
    which is right to second order in the size of a step."""
    if path.steps is None:
        return on_host(path.rates, times)
    low, high = np.maximum(times - 0.5, path.clean), np.minimum(times + 0.5, path.noise)
    at = levels(path, times)
    d_alpha = (levels(path, high).alpha - levels(path, low).alpha) / (high - low)
    return d_alpha, -at.alpha * d_alpha / at.sigma  # alpha^2 + sigma^2 is 1


def gaussian(keys: Key[Array, "B"], step: Int[Array, ""], x: Float[Array, "B *x"]) -> Float[Array, "B *x"]:
    """Standard normal noise of a step, each example's a function of its own key and the step alone."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(rng.fold(keys, step))


def draw(keys: Key[Array, "B"], shape: tuple[int, ...], scale: float = 1.0) -> Float[Array, "B *x"]:
    """Noise to start from, float32 [B, *shape]: of standard deviation `scale`, a path's `prior_std`; no step draws the same."""
    return scale * jax.vmap(lambda key: jax.random.normal(rng.named(key, "start"), shape, jnp.float32))(keys)


class Steps(NamedTuple):
    """A table of one-look steps. Each column is float64[M], or one number for all.

    Attributes:
      t, to: where the network looks, and the time that the step ends at.
      x, x0, eps, before, noise: the factors a to e above.
      ends: whether a step of the sampler ends with the row (a corrector's row ends none).
      looks: whether the row asks the network at all (going back to a noisier time does not).
    """

    t: Any
    to: Any
    x: Any = 0.0
    x0: Any = 0.0
    eps: Any = 0.0
    before: Any = 0.0
    noise: Any = 0.0
    ends: Any = True
    looks: Any = True


def interleaved(tables: Sequence[Steps]) -> Steps:
    """Row 0 of every table, then row 1 of every table, and so on."""
    size = len(tables[0].t)
    return Steps(*(np.stack([np.broadcast_to(c, (size,)) for c in columns], 1).reshape(-1) for columns in zip(*tables, strict=True)))


def walk(
    problem: Problem,
    steps: Steps,
    *,
    learned: bool = False,
    gradient: Callable[[Array, Array], Array] | None = None,
) -> Solution:
    """The scan over a table of steps.

    Args:
      learned: noise is multiplied by the standard deviation that the denoiser gives, `exp(log_variance / 2)`.
      gradient: `gradient(x, t)` is added to the step's mean times the step's variance (classifier guidance, mean form).
    """
    size = len(steps.t)
    table = Steps(*(np.broadcast_to(column, (size,)) for column in steps))
    used = {name for name in ("x", "x0", "eps", "before", "noise") if np.any(getattr(table, name))}
    keys = need_keys(problem) if "noise" in used else problem.keys
    batch, dtype = problem.x.shape[0], problem.x.dtype
    rows = Steps(*(jnp.asarray(c, bool if c.dtype == bool else dtype) for c in table))

    def move(i: Array, row: Steps, x: Array, before: Array) -> tuple[Array, Array]:
        at = jnp.full((batch,), row.t, dtype)
        out = problem.denoise(x, at)
        values = {"x": x, "x0": out.x0, "eps": out.eps, "before": before}
        new = sum(getattr(row, name) * values[name] for name in ("x", "x0", "eps", "before") if name in used)
        spread = row.noise
        if learned:
            spread = spread * jnp.exp(need_variance(out.log_variance) / 2)
        if gradient is not None:
            new = new + spread**2 * gradient(x, at)
        return (new + spread * gaussian(keys, i, x) if "noise" in used else new), out.x0

    def body(carry: tuple[Array, Array], scanned: tuple[Array, Steps]):
        (x, before), (i, row) = carry, scanned
        if table.looks.all():
            x, before = move(i, row, x, before)
        else:
            plain = lambda i, row, x, before: (row.x * x + row.noise * gaussian(keys, i, x), before)
            x, before = jax.lax.cond(row.looks, move, plain, i, row, x, before)
        if problem.after is not None:
            x = problem.after(x, jnp.full((batch,), row.to, dtype), rng.fold(keys, i))
        return (x, before), x if problem.trajectory else None

    if problem.after is not None:
        keys = need_keys(problem)
    (x, _), states = jax.lax.scan(body, (problem.x, jnp.zeros_like(problem.x)), (jnp.arange(size), rows))
    return solution(problem, x, states, np.flatnonzero(table.ends), int(table.looks.sum()))


def solution(problem: Problem, x: Array, states: Array | None, ends: np.ndarray, evaluations: int) -> Solution:
    """Puts x_init before the states that end a step."""
    if states is not None:
        states = jnp.concatenate([problem.x[None], states[ends]])
    return Solution(x, states, jnp.full((x.shape[0],), evaluations, jnp.int32))


class NoKeys(UserError):
    """A solver that draws noise was given no keys."""


def need_keys(problem: Problem) -> Array:
    """The problem's keys; raises `NoKeys` where there are none."""
    if problem.keys is None:
        raise NoKeys("the solver draws noise: expected keys, one a sample (mmjax.core.rng.per_example); got none")
    return problem.keys


def need_variance(log_variance: Array | None) -> Array:
    """The denoiser's log variance; raises `UserError` where there is none."""
    if log_variance is None:
        raise UserError("variance is learned, and the denoiser gives none: build it with variance='learned_range' or take a fixed one")
    return log_variance


def finite(values: Mapping[str, np.ndarray], times: np.ndarray, path: Path, who: str, advice: str) -> None:
    """Raises `UserError` where a number that a solver needs is infinite at one of the times."""
    for name, value in values.items():
        if not np.isfinite(value).all():
            t = times[np.flatnonzero(~np.isfinite(value))[0]]
            raise UserError(f"{who}: {name} is not finite at time {t:g} of the path {path.name!r}; {advice}")
