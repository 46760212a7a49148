"""Solvers of the probability-flow ODE, dx/dt = (d alpha/dt) x0(x, t) + (d sigma/dt) eps(x, t): fixed Runge-Kutta steps, and adaptive ones.

On the flow path this is the learnt velocity. Fixed steps are taken in the path's own time: on `edm` that is sigma (Karras et al. 2022), on
`flow` the time of rectified flow. To walk another path than the network's, see `prediction.on_path`.

Adaptive solvers are those of diffrax (Kidger 2021). They walk the angle atan(sigma / alpha), in which every path is the same circle,
y = cos(u) x0 + sin(u) eps, dy/du = cos(u) eps - sin(u) x0: no end is singular and a discrete path has no kinks. Each example has steps of
its own, so that a sample does not depend on its batch; the network still looks at the whole batch at once.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.core.types import PyTree
from mmjax.diffusion.path import Path
from mmjax.diffusion.prediction import Denoiser, on_path
from mmjax.diffusion.walk import After, Problem, Solution, finite, gaussian, levels, need_keys, rates, solution


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method: nodes c, rows of a, weights b."""

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


EULER = Tableau((0,), ((),), (1,))
HEUN = Tableau((0, 1), ((), (1,)), (1 / 2, 1 / 2))
MIDPOINT = Tableau((0, 1 / 2), ((), (1 / 2,)), (0, 1))
THIRD = Tableau(
    (0, 1 / 3, 2 / 3), ((), (1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4)
)  # Heun's of order 3, which does not look at the step's end
RK4 = Tableau((0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


class Looks(NamedTuple):
    """One row a look at the network; M looks, S stages of a step.

    Attributes:
      t, d_alpha, d_sigma: the time, and the path's motion there.
      slot: which stage of its step.
      partial, whole: [M, S] factors on the stages' slopes: of the point looked at, and of x at the step's end (0 before it).
      kick: standard deviation of noise added before the step (churn).
      to, ends: the time the step ends at, and whether this row is its last.
    """

    t: np.ndarray
    d_alpha: np.ndarray
    d_sigma: np.ndarray
    slot: np.ndarray
    partial: np.ndarray
    whole: np.ndarray
    kick: np.ndarray
    to: np.ndarray
    ends: np.ndarray


def looks(path: Path, begin: np.ndarray, end: np.ndarray, tableau: Tableau, closing: Tableau, kick: np.ndarray | None = None) -> Looks:
    """The rows of steps from begin[i] to end[i]. A step to no noise, where the slope may be infinite and a network says nothing, is one of
    `closing`, which does not look at its end."""
    kick = np.zeros_like(begin) if kick is None else kick
    silent = levels(path, end).sigma == 0
    size = max(len(tableau.nodes), len(closing.nodes))
    rows = []
    for t, s, shut, noise in zip(begin, end, silent, kick, strict=True):
        nodes, stages, weights = closing if shut else tableau
        pad = lambda row, h=s - t: [h * a for a in row] + [0.0] * (size - len(row))
        for i, (c, row) in enumerate(zip(nodes, stages, strict=True)):
            last = i + 1 == len(nodes)
            rows.append((t + c * (s - t), i, pad(row), pad(weights if last else ()), noise if i == 0 else 0.0, s, last))
    t, slot, partial, whole, kicks, to, ends = (np.array(column) for column in zip(*rows, strict=True))
    return Looks(t, *rates(path, t), slot, partial, whole, kicks, to, ends)


def runge_kutta(problem: Problem, rows: Looks, scale: np.ndarray | None = None) -> Solution:
    """The scan over looks: the network stands in the program once, whatever the method, and looks no more often than it must.

    Args:
      scale: float64[N + 1], what states in the trajectory and `after` are to be multiplied by to be the caller's x.
    """
    path, noisy = problem.path, bool(rows.kick.any())
    finite({"d alpha / dt": rows.d_alpha, "d sigma / dt": rows.d_sigma}, rows.t, path, "the ODE", "begin at a cleaner time")
    keys = need_keys(problem) if noisy or problem.after is not None else problem.keys
    dtype, batch = problem.x.dtype, problem.x.shape[0]
    kinds = {"b": bool, "i": jnp.int32, "f": dtype}
    table = Looks(*(jnp.asarray(c, kinds[c.dtype.kind]) for c in rows))
    scales = jnp.asarray(np.ones(rows.ends.sum() + 1) if scale is None else scale, dtype)[np.cumsum(rows.ends)]  # after each row
    combine = lambda factors, slopes: jnp.tensordot(factors, slopes, 1)

    def body(carry: tuple[Array, Array], scanned: tuple[Array, Looks, Array]):
        (x, slopes), (i, row, size) = carry, scanned
        if noisy:
            x = x + row.kick * gaussian(keys, i, x)
        out = problem.denoise(x + combine(row.partial, slopes), jnp.full((batch,), row.t, dtype))
        slopes = slopes.at[row.slot].set(row.d_alpha * out.x0 + row.d_sigma * out.eps)
        x = x + combine(row.whole, slopes)
        if problem.after is not None:
            x = jax.lax.cond(row.ends, lambda x: _after(problem.after, x, row.to, size, rng.fold(keys, i)), lambda x: x, x)
        return (x, slopes), x * size if problem.trajectory else None

    slopes = jnp.zeros((rows.partial.shape[1], *problem.x.shape), dtype)
    (x, _), states = jax.lax.scan(body, (problem.x, slopes), (jnp.arange(len(rows.t)), table, scales))
    return solution(problem, x, states, np.flatnonzero(rows.ends), len(rows.t))


def _after(after: After, x: Array, t: Array, scale: Array, keys: Array) -> Array:
    return after(x * scale, jnp.full((x.shape[0],), t, x.dtype), keys) / scale


def _fixed(problem: Problem, tableau: Tableau, closing: Tableau) -> Solution:
    return runge_kutta(problem, looks(problem.path, problem.times[:-1], problem.times[1:], tableau, closing))


def euler(problem: Problem) -> Solution:
    """Euler's method: order 1, one look a step."""
    return _fixed(problem, EULER, EULER)


def heun(problem: Problem) -> Solution:
    """Heun's method: order 2, two looks a step, one at a last step to no noise (Karras et al. 2022, algorithm 1)."""
    return _fixed(problem, HEUN, EULER)


def midpoint(problem: Problem) -> Solution:
    """The midpoint method: order 2, two looks a step."""
    return _fixed(problem, MIDPOINT, MIDPOINT)


def rk4(problem: Problem) -> Solution:
    """The classical Runge-Kutta method: order 4, four looks a step; three of an open method at a last step to no noise, which keeps the
    order."""
    return _fixed(problem, RK4, THIRD)


# The circle that adaptive solvers walk; the sine of what is left vanishes exactly where there is no signal.
QUARTER = math.pi / 2
CIRCLE = Path(
    "angle",
    lambda u: jnp.sin(QUARTER - u),
    lambda u: jnp.sin(u),
    lambda log_snr: jnp.arctan(jnp.exp(-log_snr)),
    0.0,
    QUARTER,
)


def circular(denoise: Denoiser, path: Path) -> Callable[[Array, Array], Array]:
    """dy/du on the circle, (y [B, ...], u [B]) -> [B, ...]."""
    turned = on_path(denoise, path, CIRCLE)

    def slope(y: Array, u: Array) -> Array:
        out = turned(y, u)
        wide = lambda a: a.reshape(a.shape + (1,) * (y.ndim - 1))
        return wide(jnp.cos(u)) * out.eps - wide(jnp.sin(u)) * out.x0

    return slope


def angles(path: Path, times: Float[np.ndarray, "n"]) -> tuple[np.ndarray, np.ndarray]:
    """The angle at each time, and x over y there, sqrt(alpha^2 + sigma^2)."""
    at = levels(path, times)
    return np.arctan2(at.sigma, at.alpha), np.hypot(at.alpha, at.sigma)


def last_look(path: Path) -> float:
    """The cleanest angle to look at: that of a discrete path's time 0, else 0.001, where sigma is a thousandth of the signal."""
    return float(angles(path, np.zeros(1))[0][0]) if path.steps else 1e-3


ADAPTIVE = {"dopri5": "Dopri5", "tsit5": "Tsit5"}  # names in diffrax


def integrate(
    f: Callable[[PyTree, Array], PyTree],
    y: PyTree,
    save: Float[np.ndarray, "n"],
    *,
    solver: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
) -> tuple[PyTree, Int[Array, "B"]]:
    """dy/du = f(y, u) from save[0] to save[-1], each example with steps of its own.

    Args:
      f: (leaves [B, ...], u [B]) -> the same tree; row b of its output may depend on row b of its input alone.
      y: leaves [B, ...] at save[0].
      save: monotonous.

    Returns:
      leaves [n, B, ...] at `save`, and how often f looked at each example.

    Raises:
      UserError: tolerances that are not positive. A run that takes more than max_steps fails when it is computed.
    """
    if not (rtol > 0 and atol > 0):
        raise UserError(f"solver {solver!r}: rtol is {rtol} and atol {atol}; expected positive numbers, for example 1e-5")
    batch = jax.tree.leaves(y)[0].shape[0]
    time = jax.dtypes.canonicalize_dtype(jnp.promote_types(jax.tree.leaves(y)[0].dtype, jnp.float32))
    import diffrax  # here: the two take as long to load as half of the rest, and most programs have no use for them
    import equinox as eqx

    closed = eqx.filter_closure_convert(f, y, jnp.zeros((batch,), time))
    arrays, rest = eqx.partition(closed, eqx.is_array)
    method = getattr(diffrax, ADAPTIVE[solver])()

    @jax.custom_batching.custom_vmap
    def one(arrays: PyTree, y: PyTree, u: Array) -> PyTree:  # only its shapes are used: `whole` runs
        repeated = jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape)), (y, u))
        return jax.tree.map(lambda a: a[0], eqx.combine(arrays, rest)(*repeated))

    @one.def_vmap
    def whole(size: int, batched: PyTree, arrays: PyTree, y: PyTree, u: Array) -> tuple[PyTree, PyTree]:
        first = lambda a, many: a[0] if many else a
        repeat = lambda a, many: a if many else jnp.broadcast_to(a, (size, *a.shape))
        arrays = jax.tree.map(first, arrays, batched[0])
        out = eqx.combine(arrays, rest)(*jax.tree.map(repeat, (y, u), (batched[1], batched[2])))
        return out, jax.tree.map(lambda _: True, out)

    def solve(y: PyTree, arrays: PyTree) -> tuple[PyTree, Array]:
        found = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda u, y, arrays: one(arrays, y, u)),
            method,
            jnp.asarray(save[0], time),
            jnp.asarray(save[-1], time),
            None,
            y,
            args=arrays,
            saveat=diffrax.SaveAt(ts=jnp.asarray(save, time)),
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            max_steps=max_steps,
        )
        return found.ys, found.stats["num_steps"]

    ys, steps = jax.vmap(solve, in_axes=(0, None), out_axes=(1, 0))(y, arrays)
    # Both methods look at a step's end first thing in the next (7 stages, 6 new); choosing the first step takes two looks.
    return ys, (2 + 6 * steps).astype(jnp.int32)


def adaptive(problem: Problem, solver: str, rtol: float, atol: float, max_steps: int) -> Solution:
    """Integrates along the circle. Times between the ends are only where states are saved.

    Where the walk ends without noise, the ODE ends at `last_look` and a DDIM step goes the rest of the way.
    """
    if problem.after is not None:
        raise UserError(f"solver {solver!r} chooses its own steps and cannot be interrupted after each; take heun or another fixed one")
    angle, size = angles(problem.path, problem.times)
    floor = last_look(problem.path)
    jump = angle[-1] < floor
    inside = np.concatenate([angle[angle > floor], [floor]]) if jump else angle
    if len(inside) < 2:
        raise UserError(f"solver {solver!r}: nothing to integrate between times {problem.times[0]:g} and {problem.times[-1]:g}")
    x, dtype = problem.x, problem.x.dtype
    slope = circular(problem.denoise, problem.path)
    ys, evaluations = integrate(slope, x / float(size[0]), inside, solver=solver, rtol=rtol, atol=atol, max_steps=max_steps)
    end = ys[-1]
    if jump:
        out = on_path(problem.denoise, problem.path, CIRCLE)(end, jnp.full((x.shape[0],), floor, dtype))
        y = jnp.stack([math.cos(a) * out.x0 + math.sin(a) * out.eps for a in angle[angle <= floor]])
        ys, evaluations = jnp.concatenate([ys[:-1], y]), evaluations + 1
    scale = jnp.asarray(size, dtype).reshape(-1, *(1 for _ in x.shape))
    states = ys * scale
    return Solution(states[-1], states if problem.trajectory else None, evaluations)


def dopri5(problem: Problem, *, rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 10_000) -> Solution:
    """Dormand and Prince's 5(4) with adaptive steps, the RK45 of Song et al. 2021."""
    return adaptive(problem, "dopri5", rtol, atol, max_steps)


def tsit5(problem: Problem, *, rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 10_000) -> Solution:
    """Tsitouras' 5(4) with adaptive steps."""
    return adaptive(problem, "tsit5", rtol, atol, max_steps)
