"""Averages of parameters over training: by a constant decay, a half-life, or a power function of time; and any width after the fact.

A power-function average (Karras et al. 2024, EDM2, section 3 and appendix C) weighs the parameters of time u at time t by
(gamma + 1) u^gamma / t^(gamma + 1): its profile is relative to the length of training. Its width is told by `std`, the standard deviation
of u / t. Snapshots of one or two of them, stored along the way, make the average of any other width by least squares.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Float, Float64, Int
from ml_collections import ConfigDict

from mmjax.core import checkpoint_read, tree
from mmjax.core.errors import UserError, suggest

Decay = float | Callable[[Int[Array, ""]], Float[Array, ""]]  # decay, or decay as a function of the step

SNAPSHOTS = "snapshots"  # the folder of a workdir that they are stored in
WIDEST = math.sqrt(1 / 12)  # std of gamma = 0, the mean of everything so far


def decays(config: ConfigDict, batch_size: int) -> dict[str, Decay]:
    """Of the config group `ema`: name -> decay. An entry is one of

      0.999: that decay.
      {"half_life": h, "ramp": r}: 0.5^(batch_size / h) for h examples, and early on for the share r of the examples seen, where that is
        less; without `ramp` h from the first step. As in EDM (Karras et al. 2022, whose r is 0.05).
      {"power": std}: (1 - 1 / t)^(gamma + 1) in step t = 1, 2, ... (EDM2, section 3.1).

    Raises:
      UserError: anything else.
    """
    return {name: _decay(entry, batch_size, f"ema.{name}") for name, entry in config.items()}


def _decay(entry: Any, batch_size: int, where: str) -> Decay:
    if not isinstance(entry, ConfigDict | Mapping):
        if isinstance(entry, bool) or not isinstance(entry, int | float):
            raise UserError(f"{where} is {entry!r}, expected a decay, {{'half_life': examples, 'ramp': share}} or {{'power': std}}")
        return entry
    for key in entry:
        if key not in ("half_life", "ramp", "power"):
            raise UserError(f"{where} has an unknown key '{key}'{suggest(key, ('half_life', 'ramp', 'power'))}")
    for key, value in entry.items():
        if isinstance(value, bool) or not ((key == "ramp" and value is None) or (isinstance(value, int | float) and value > 0)):
            raise UserError(f"{where}.{key} is {value!r}, expected a number above 0")
    if "power" in entry:
        if len(entry) > 1:
            raise UserError(f"{where} has 'power', a profile of its own, and {', '.join(k for k in entry if k != 'power')}: take one")
        exponent = gamma_of(entry["power"], f"{where}.power") + 1
        # log1p: 1 - 1 / t would lose the last digits of 1 / t.
        return lambda step: jnp.exp(jnp.float32(exponent) * jnp.log1p(-1 / (step + 1).astype(jnp.float32)))
    if "half_life" not in entry:
        raise UserError(f"{where} has a ramp and no half_life, examples after which parameters count half")
    life, ramp = float(entry["half_life"]), entry.get("ramp")

    def by_half_life(step: Int[Array, ""]) -> Float[Array, ""]:
        seen = step.astype(jnp.float32) * batch_size
        now = jnp.float32(life) if ramp is None else jnp.minimum(life, ramp * seen)
        return jnp.exp2(-batch_size / jnp.maximum(now, 1e-8))

    return by_half_life


def widths(config: ConfigDict | Mapping[str, Any]) -> dict[str, float]:
    """Name -> std of the power-function averages in the config group `ema`."""
    return {name: entry["power"] for name, entry in config.items() if isinstance(entry, ConfigDict | Mapping) and "power" in entry}


def gamma_of(std: float, where: str = "std") -> float:
    """The exponent of a profile's standard deviation (EDM2, algorithm 2): std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

    Raises:
      UserError: outside 0 < std < WIDEST.
    """
    if not 0 < std < WIDEST:
        raise UserError(f"{where} is {std}, the width of a power-function average: expected above 0 and below {WIDEST:.4f}")
    roots = np.roots([1, 7, 16 - std**-2, 12 - std**-2])
    return float(roots.real.max())


def std_of(gamma: float) -> float:
    """The inverse of `gamma_of`."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def coefficients(snapshots: Sequence[tuple[float | int, float]], time: float | int, std: float) -> Float64[np.ndarray, "N"]:
    """The factors of snapshots whose sum is nearest to the average of width `std` at `time`; they add up to 1 (EDM2, algorithm 3).

    Args:
      snapshots: (time, std) of each of N.

    Raises:
      UserError: no snapshots, or some that are of later times.
    """
    if not snapshots or max(t for t, _ in snapshots) > time or min(t for t, _ in snapshots) <= 0:
        raise UserError(f"an average at step {time:g} is made of snapshots from steps 1 to {time:g}, got {[t for t, _ in snapshots]}")
    times, gammas = np.array([t for t, _ in snapshots], np.float64), np.array([gamma_of(s) for _, s in snapshots])
    among = _products(times[:, None], gammas[:, None], times[None], gammas[None])
    wanted = _products(times, gammas, np.float64(time), gamma_of(std))
    found = np.linalg.lstsq(among, wanted, rcond=None)[0]
    return found / found.sum()


def _products(t: Any, g: Any, u: Any, h: Any) -> Float64[np.ndarray, "*n"]:
    """The integral over time of the product of two profiles, of exponents g and h at times t and u (EDM2, appendix C.3)."""
    early, late = np.minimum(t, u), np.maximum(t, u)
    return (g + 1) * (h + 1) / (g + h + 1) / late * (early / late) ** np.where(t < u, h, g)


def synthesise(
    workdir: str | Path,
    config: ConfigDict,
    std: float,
    step: int | None = None,
    shardings: Callable[[str, jax.ShapeDtypeStruct], Sharding | None] = lambda path, x: None,
) -> tuple[int, int, dict[str, Any]]:
    """The average of width `std` from the snapshots of a run, at its newest one, or the newest up to `step`.

    Args:
      config: the run's group `ema`.
      shardings: as of `checkpoint_read.read_params`.

    Returns:
      The step, how many snapshots it is made of, and the averaged parameters: the trained ones alone.

    Raises:
      UserError: the run stores no snapshots, has none yet, or one is damaged.
    """
    gamma_of(std, "the average's std")
    kept, folder = widths(config), checkpoint_read.absolute(Path(workdir) / SNAPSHOTS)
    if not kept:
        raise UserError(f"'{workdir}' keeps no power-function average, of which others are made; train with ema.NAME={{'power': 0.05}}")
    steps = checkpoint_read.on_first(lambda: checkpoint_read.committed_steps(folder))
    steps = [s for s in steps if step is None or s <= step]
    if not steps:
        raise UserError(f"'{folder}' has no snapshots{'' if step is None else f' up to step {step}'}; see checkpoint.snapshot_every")
    found = [(s, name) for s in steps for name in kept]
    factors = coefficients([(s, kept[name]) for s, name in found], steps[-1], std)
    add = jax.jit(lambda total, x, factor: jax.tree.map(lambda t, v: t + factor * v, total, x), donate_argnums=0)
    total = None
    for (s, name), factor in zip(found, factors, strict=True):
        _, x = checkpoint_read.read_params(folder, (f"ema/{name}",), s, frozen=False, shardings=shardings)
        x = tree.unflatten({path: jnp.asarray(v) for path, v in tree.flatten(x).items()})
        total = add(jax.tree.map(jnp.zeros_like, x) if total is None else total, x, jnp.float32(factor))
    return steps[-1], len(found), total
