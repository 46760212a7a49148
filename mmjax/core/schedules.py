"""Learning rates as functions of the step: optax schedules chosen by name, each with linear warm-up.

Every schedule is a function of `step`, the number of updates taken so far, so update number k (from 0) uses `schedule(k)`:
- `schedule(0)` is 0 with warm-up, the peak without;
- `schedule(warmup)` is the peak, `optim.lr`;
- `schedule(steps)`, where the run ends, is `end_factor * peak` exactly for those that take an `end_factor` (the last
  update, at `steps - 1`, is thus one notch above it and never wasted), and it stays there beyond.
"""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from mmjax.core.errors import UserError, suggest

Schedule = Callable[[Int[Array, ""] | int], Float[Array, ""]]


def make(config: ConfigDict, total_steps: int) -> Schedule:
    """The learning rate of a run of `total_steps` updates from the config group `optim`.

    Reads `lr` (the peak), `warmup`, `schedule` (a key of `SCHEDULES`) and `schedule_args` (the keyword arguments of that
    entry, whose docstring gives the formula).

    Returns:
      `schedule(step) -> float32[]`, to be called in or out of jit.

    Raises:
      UserError: an unknown schedule or argument, a value of the wrong type or range, a warm-up that fills the run.
    """
    peak, warmup = float(config.lr), config.warmup
    if not peak >= 0:
        raise UserError(f"optim.lr is {peak}, expected a number of at least 0")
    if not 0 <= warmup < total_steps:
        raise UserError(f"optim.warmup is {warmup} and the run has {total_steps} steps; expected 0 <= optim.warmup < steps")
    if config.schedule not in SCHEDULES:
        raise UserError(f"optim.schedule is {config.schedule!r}{suggest(config.schedule, SCHEDULES)}")
    build = SCHEDULES[config.schedule]
    args = keywords(build, config.schedule_args.to_dict(), f"optim.schedule_args of '{config.schedule}'")
    main = build(peak, warmup, total_steps, **args)
    joined = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup]) if warmup else main

    def schedule(step: Int[Array, ""] | int) -> Float[Array, ""]:
        return jnp.asarray(joined(step), jnp.float32)

    return schedule


# Each takes the peak, the length of the warm-up and of the run, and returns a function of t = step - warmup >= 0.
# Below, T = steps - warmup.


def _constant(peak: float, warmup: int, steps: int) -> optax.Schedule:
    """The peak."""
    return optax.constant_schedule(peak)


def _linear(peak: float, warmup: int, steps: int, *, end_factor: float = 0.0) -> optax.Schedule:
    """peak * (1 - (1 - end_factor) * t / T)."""
    return optax.linear_schedule(peak, peak * _factor(end_factor), steps - warmup)


def _cosine(peak: float, warmup: int, steps: int, *, end_factor: float = 0.0) -> optax.Schedule:
    """peak * (end_factor + (1 - end_factor) * (1 + cos(pi t / T)) / 2), Loshchilov and Hutter 2017, eq. 5, one period."""
    return optax.cosine_decay_schedule(peak, steps - warmup, alpha=_factor(end_factor))


def _rsqrt(peak: float, warmup: int, steps: int, *, timescale: int | None = None) -> optax.Schedule:
    """peak * sqrt(timescale / (timescale + t)), Zhai et al. 2022 (Scaling ViT), section 3.5, without a cooldown: the run's end
    does not enter. `timescale` defaults to the warm-up: then it is peak * sqrt(warmup / step), Vaswani et al. 2017, eq. 3."""
    scale = warmup if timescale is None else timescale
    if scale <= 0:
        given = "optim.warmup is 0 and no timescale is given" if timescale is None else f"timescale is {timescale}"
        raise UserError(f"optim.schedule_args of 'rsqrt': {given}; expected a timescale of at least 1 step")
    return lambda t: peak * jnp.sqrt(scale / (scale + t))


def _wsd(peak: float, warmup: int, steps: int, *, decay_steps: int, end_factor: float = 0.0) -> optax.Schedule:
    """Warm-up, stable, decay (Hu et al. 2024, MiniCPM, section 4.2; the decay linear as in Haegele et al. 2024): the peak up
    to step steps - decay_steps, from there linearly to end_factor * peak."""
    if not 1 <= decay_steps <= steps - warmup:
        raise UserError(f"optim.schedule_args of 'wsd': decay_steps is {decay_steps}, expected 1 to {steps - warmup} (steps - warmup)")
    return optax.linear_schedule(peak, peak * _factor(end_factor), decay_steps, transition_begin=steps - warmup - decay_steps)


def _piecewise(peak: float, warmup: int, steps: int, *, boundaries: Mapping | tuple) -> optax.Schedule:
    """The peak times every factor whose step has been reached: `boundaries` is ((step, factor), ...) or {step: factor},
    steps counted from the run's start; ((600, 0.1), (800, 0.1)) ends at a hundredth."""
    where = "optim.schedule_args of 'piecewise'"
    try:
        pairs = boundaries.items() if isinstance(boundaries, Mapping) else boundaries
        scales = {int(step): float(factor) for step, factor in pairs}
    except (TypeError, ValueError):
        raise UserError(f"{where}: boundaries is {boundaries!r}, expected ((step, factor), ...)") from None
    for step, factor in scales.items():
        if not (warmup < step < steps and factor >= 0):
            raise UserError(
                f"{where}: boundary {step}: {factor}; expected a step after the warm-up ({warmup}) and before {steps}, a factor >= 0"
            )
    return optax.piecewise_constant_schedule(peak, {step - warmup: factor for step, factor in scales.items()})


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "rsqrt": _rsqrt,
    "wsd": _wsd,
    "piecewise": _piecewise,
}


def _factor(end_factor: float) -> float:
    if not 0 <= end_factor <= 1:
        raise UserError(f"optim.schedule_args: end_factor is {end_factor}, expected 0 to 1 (the last learning rate over the peak)")
    return end_factor


def keywords(function: Callable, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`given` as keyword arguments of `function`, checked against its keyword-only parameters and their annotations.

    Raises:
      UserError: a name it does not take, a missing one, a value of another type (an int may stand for a float).
    """
    known = {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for name, value in given.items():
        if name not in known:
            raise UserError(f"{where}: unknown key '{name}'{suggest(name, known) if known else '; it takes none'}")
        hint = known[name].annotation
        allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        fits = isinstance(value, allowed) or (float in allowed and isinstance(value, int))
        if not fits or (isinstance(value, bool) and bool not in allowed):
            expected = " or ".join("none" if t is types.NoneType else t.__name__ for t in allowed)
            raise UserError(f"{where}: {name} is {value!r}, expected {expected}")
    missing = [name for name, p in known.items() if p.default is p.empty and name not in given]
    if missing:
        raise UserError(f"{where}: '{missing[0]}' must be given")
    return dict(given)
