"""Sampling: a denoiser, noise to start from, falling times, and a solver by name.

    times     falling, concrete; `spacing.times` makes them. The sample stands at the last, as a rule the clean end
    x_init    at times[0]: `walk.draw(keys, shape, path.prior_std)` at the noisy end, or `inpaint.noised` data for image-to-image
    keys      one a sample; what is drawn for a sample is a function of its key and the step, so a sample does not depend on its batch

Looks at the network for N steps to no noise: ddpm, ddim, dpmpp_2m, dpmpp_2m_sde, euler, euler_maruyama N; heun, edm 2 N - 1; midpoint 2 N;
rk4 4 N - 1; predictor_corrector 2 N; dopri5, tsit5 as many as tolerances ask for.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mmjax.core.errors import UserError, suggest
from mmjax.diffusion import solvers_discrete, solvers_ode, solvers_sde
from mmjax.diffusion.path import Path
from mmjax.diffusion.prediction import Denoiser
from mmjax.diffusion.walk import After, Problem, Solution

SOLVERS: dict[str, Callable[..., Solution]] = {
    "ddpm": solvers_discrete.ddpm,
    "ddim": solvers_discrete.ddim,
    "dpmpp_2m": solvers_discrete.dpmpp_2m,
    "dpmpp_2m_sde": solvers_discrete.dpmpp_2m_sde,
    "euler": solvers_ode.euler,
    "heun": solvers_ode.heun,
    "midpoint": solvers_ode.midpoint,
    "rk4": solvers_ode.rk4,
    "dopri5": solvers_ode.dopri5,
    "tsit5": solvers_ode.tsit5,
    "edm": solvers_sde.edm,
    "euler_maruyama": solvers_sde.euler_maruyama,
    "predictor_corrector": solvers_sde.predictor_corrector,
}


def solve(
    denoise: Denoiser,
    x_init: Float[Array, "B *x"],
    times: Any,
    keys: Key[Array, "..."] | None,
    *,
    path: Path,
    solver: str,
    after: After | None = None,
    trajectory: bool = False,
    **options: Any,
) -> Solution:
    """Samples, and says what it took.

    Args:
      denoise: (x [B, ...], t [B]) -> Denoised; every example has the same t.
      x_init: at times[0], float32 (or float64 under x64; half precision would lose small steps).
      times: float[N + 1], falling, within the path's ends; concrete, for the factors of every step are made of them beforehand.
      keys: one typed key an example. None will do for a solver that draws nothing.
      solver: a key of `SOLVERS`; `options` are its keyword arguments.
      after: `after(x, t [B], keys [B]) -> x` at the end of every step, as inpainting wants.
      trajectory: also give x at every time, [N + 1, B, ...].

    Raises:
      UserError: an unknown solver or option, times that do not fall or leave the path, keys of another number than x_init.
    """
    check_options(solver, options)
    grid = check_times(times, path)
    if keys is not None and (not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.shape != x_init.shape[:1]):
        raise UserError(f"keys are {keys.dtype}{list(keys.shape)}, expected {x_init.shape[0]} typed keys (jax.random.key), one an example")
    if x_init.dtype not in (jnp.float32, jnp.float64):
        raise UserError(f"x_init is {x_init.dtype}, expected float32: small steps are lost in less; cast inside the network instead")
    return SOLVERS[solver](Problem(denoise, x_init, grid, keys, path, after, trajectory), **options)


def sample(
    denoise: Denoiser,
    x_init: Float[Array, "B *x"],
    times: Any,
    keys: Key[Array, "..."] | None,
    *,
    path: Path,
    solver: str,
    after: After | None = None,
    trajectory: bool = False,
    **options: Any,
) -> Array:
    """x at the last time, [B, ...]; with `trajectory` at every time, x_init first, [N + 1, B, ...]. Arguments and errors are `solve`'s."""
    found = solve(denoise, x_init, times, keys, path=path, solver=solver, after=after, trajectory=trajectory, **options)
    return found.states if trajectory else found.x


def options_of(solver: str) -> dict[str, Any]:
    """A solver's options and their defaults."""
    return {p.name: p.default for p in inspect.signature(SOLVERS[solver]).parameters.values() if p.kind is p.KEYWORD_ONLY}


def check_options(solver: str, options: dict[str, Any]) -> None:
    """Raises `UserError` for a solver or an option that does not exist, or one of another type than its default."""
    if solver not in SOLVERS:
        raise UserError(f"solver is {solver!r}{suggest(str(solver), SOLVERS)}")
    known = options_of(solver)
    for name, value in options.items():
        if name not in known:
            raise UserError(f"solver {solver!r}: unknown option '{name}'{suggest(name, known) if known else '; it takes none'}")
        default = known[name]
        number = isinstance(default, float | int) and not isinstance(default, bool)
        fits = isinstance(value, float | int | np.number) and not isinstance(value, bool) if number else isinstance(value, type(default))
        if default is not None and not fits:
            raise UserError(f"solver {solver!r}: {name} is {value!r}, expected {'a number' if number else type(default).__name__}")


def check_start(solver: str, options: Mapping[str, Any], path: Path, times: Float[np.ndarray, "N_plus_1"]) -> None:
    """Raises `UserError` for a solver that cannot begin where there is no signal, and times that do; at configuration, as they themselves
    raise it when they sample."""
    given = {**options_of(solver), **options}
    needs = solver == "edm" or given.get("diffusion") == "sbdm" or given.get("predictor") == "euler_maruyama"
    if needs and path.alpha(np.float32(times[0])) == 0:
        else_take = "diffusion 'sigma'" if solver == "euler_maruyama" else "another solver"
        raise UserError(
            f"solver {solver!r}: no signal at time {times[0]:g} of the path {path.name!r}; begin at a cleaner time, or take {else_take}"
        )


def check_times(times: Any, path: Path) -> Float[np.ndarray, "N_plus_1"]:
    """`times` in float64 on the host; raises `UserError` where they are no walk along the path from noise to data."""
    if isinstance(times, jax.core.Tracer):
        raise UserError("times are traced: expected concrete numbers, as spacing.times gives; close over them, do not pass them")
    grid = np.asarray(times, np.float64)
    if grid.ndim != 1 or len(grid) < 2:
        raise UserError(f"times have shape {list(grid.shape)}, expected at least two in a row: N + 1 for N steps")
    if not (np.diff(grid) < 0).all():
        i = int(np.flatnonzero(~(np.diff(grid) < 0))[0])
        raise UserError(f"times must fall, from noise to data: times[{i}] is {grid[i]:g} and times[{i + 1}] is {grid[i + 1]:g}")
    slack = 1e-6 * (path.noise - path.clean)
    if grid[0] > path.noise + slack or grid[-1] < path.clean - slack:
        raise UserError(
            f"times go from {grid[0]:g} to {grid[-1]:g}, but the path {path.name!r} from {path.noise:g} (noise) to {path.clean:g} (data)"
        )
    return grid
