"""Every path x prediction x solver on the Gaussian mixture: how far samples are from it, and how fast a solver converges.

Used by the tests, which hold every cell to its bounds, and by tests/benchmarks/solvers.py, which prints the table.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.diffusion import path as paths
from mmjax.diffusion import walk
from mmjax.diffusion.prediction import check
from mmjax.diffusion.samplers import solve
from mmjax.diffusion.spacing import times
from tests.diffusion.gaussian_mixture import MIXTURE, SMOOTH, Mixture, as_network, between_true, draw, exact, sliced_wasserstein

SAMPLES = 4096
PATHS = {
    "discrete linear": {"name": "discrete", "betas": "linear"},
    "discrete cosine": {"name": "discrete", "betas": "cosine"},
    "discrete scaled linear": {"name": "discrete", "betas": "scaled_linear"},
    "discrete sigmoid": {"name": "discrete", "betas": "sigmoid"},
    "discrete zero SNR": {"name": "discrete", "betas": "scaled_linear", "zero_terminal_snr": True},
    "vp": {"name": "vp"},
    "ve": {"name": "ve"},
    "edm": {"name": "edm"},
    "flow": {"name": "flow"},
    "gvp": {"name": "gvp"},
}


class Run(NamedTuple):
    """How the grid runs a solver: its steps, options, the order that is expected of it, and whether that is measured on moments."""

    steps: int
    options: dict
    order: float | None  # None: no order (adaptive; a corrector whose own error stays)
    weak: bool = False
    counts: tuple = (32, 48, 64, 96)


RUNS = {
    "ddpm": Run(250, {}, 1, weak=True),
    "ddim": Run(100, {}, 1),
    "dpmpp_2m": Run(50, {}, 2, counts=(64, 96, 128, 192)),
    "dpmpp_2m_sde": Run(100, {}, 2, weak=True, counts=(96, 128, 192, 256)),
    "euler": Run(200, {}, 1),
    "heun": Run(50, {}, 2),
    "midpoint": Run(50, {}, 2),
    "rk4": Run(25, {}, 4, counts=(8, 12, 16, 24)),
    "dopri5": Run(2, {"rtol": 1e-4, "atol": 1e-4}, None),
    "tsit5": Run(2, {"rtol": 1e-4, "atol": 1e-4}, None),
    "edm": Run(50, {"churn": 10.0}, 2),
    "euler_maruyama": Run(250, {}, 1, weak=True),
    "predictor_corrector": Run(100, {}, None),
}


@functools.cache
def make(name):
    return paths.make(PATHS[name])


def walked(name, solver):
    """The times of a cell: equal steps of the log-SNR's sigma to the seventh root where the path begins with signal, else of time.

    Solvers that need a signal to begin with start just short of an end without it.
    """
    path, steps = make(name), RUNS[solver].steps
    silent = float(path.alpha(path.noise)) == 0
    if not silent:
        return times(path, steps, "karras" if path.steps is None else "trailing")
    grid = times(path, steps, "trailing")
    if solver in ("edm", "euler_maruyama", "predictor_corrector") and path.steps is None:
        grid = np.concatenate([[path.noise - 2e-3], grid[1:]])
    elif solver in ("edm", "euler_maruyama", "predictor_corrector"):
        grid = np.concatenate([[path.noise - 1], grid[1:]])
    return grid


def refused(name, prediction, solver):
    """Why a cell cannot be, or None."""
    grid = walked(name, solver)
    try:
        check(prediction, make(name), grid[:-1])
    except UserError as error:
        return str(error)
    return None


@functools.cache
def truth(n):
    return draw(MIXTURE, 0, n), between_true(MIXTURE, n)


def start(path, grid, n, seed):
    """x at the first time: exact noise where that is the noisy end, exact noised data elsewhere."""
    keys = rng.per_example(jax.random.key(seed), jnp.arange(n))
    if grid[0] == path.noise:
        return walk.draw(keys, (2,), path.prior_std), keys
    data = jnp.asarray(draw(MIXTURE, 77 + seed, n), jnp.float32)
    return path.mix(data, walk.draw(keys, (2,)), jnp.full((n,), grid[0], jnp.float32)), keys


def cell(name, prediction, solver, n=SAMPLES, seed=0, denoise=None):
    """Looks at the network, the ratio of sliced Wasserstein distances, and the samples."""
    path, grid = make(name), walked(name, solver)
    denoise = denoise or as_network(MIXTURE, path, prediction)
    x, keys = start(path, grid, n, seed)
    found = jax.jit(lambda x, keys: solve(denoise, x, grid, keys, path=path, solver=solver, **RUNS[solver].options))(x, keys)
    real, noise = truth(n)
    return int(found.evaluations.max()), sliced_wasserstein(found.x, real) / noise, np.asarray(found.x)


def cells(name, solver, kinds, n=SAMPLES, seed=0):
    """`cell` of several predictions with one compilation: evaluations, and prediction -> ratio."""
    path, grid = make(name), walked(name, solver)
    denoisers = [as_network(MIXTURE, path, kind) for kind in kinds]
    x, keys = start(path, grid, n, seed)

    @jax.jit
    def run(which, x, keys):
        denoise = lambda x, t: jax.lax.switch(which, denoisers, x, t)
        return solve(denoise, x, grid, keys, path=path, solver=solver, **RUNS[solver].options)

    real, noise = truth(n)
    found = [run(jnp.int32(i), x, keys) for i in range(len(kinds))]
    return int(found[0].evaluations.max()), {k: sliced_wasserstein(f.x, real) / noise for k, f in zip(kinds, found, strict=True)}


# --- order of convergence ---------------------------------------------------------------------------------------------------


def grid_between(path, steps):
    """Equal steps between two noise levels at which everything is smooth: sigma / alpha from 3 to 0.3."""
    begin, end = walk.on_host(path.at_log_snr, np.array([-np.log(3.0), np.log(3.0)]))
    if path.steps:
        begin, end = np.round(begin), np.round(end)
    return np.linspace(float(begin), float(end), steps + 1)


def fitted(errors, counts):
    """The slope of log error against log 1 / N."""
    return float(np.polyfit(-np.log(counts), np.log(errors), 1)[0])


def strong_order(name, solver, counts, **options):
    """From the distance to the ODE's own solution, by RK4 in many steps, over a few starting points. Under x64."""
    path = make(name)
    denoise = exact(SMOOTH, path)
    x = jnp.asarray(np.random.default_rng(3).standard_normal((8, 2)))
    x = x * np.hypot(*(v[0] for v in walk.levels(path, grid_between(path, 1)[:1])[:2]))
    run = lambda solver, n, **kw: solve(denoise, x, grid_between(path, n), None, path=path, solver=solver, **kw).x
    want = run("rk4", 400)
    return fitted([float(jnp.abs(run(solver, n, **options) - want).max()) for n in counts], counts)


def weak_order(name, solver, counts, **options):
    """From the variance of samples of one Gaussian, without sampling: there x_N = a x_0 + sum_i b_i z_i + c, and a, b are derivatives."""
    path, std = make(name), 0.7
    denoise = exact(Mixture(np.array([1.0]), np.array([[0.4]]), np.array([std])), path)
    errors = []
    for n in counts:
        grid = grid_between(path, n)
        (alpha, end_alpha), (sigma, end_sigma) = (v[[0, -1]] for v in walk.levels(path, grid)[:2])

        def last(x, z, grid=grid):
            old, walk.gaussian = walk.gaussian, lambda keys, i, x: z[i].reshape(1, 1)
            try:
                return solve(denoise, x.reshape(1, 1), grid, jax.random.split(jax.random.key(0), 1), path=path, solver=solver, **options).x[
                    0, 0
                ]
            finally:
                walk.gaussian = old

        a, b = jax.grad(last, (0, 1))(jnp.asarray(0.3), jnp.zeros(n))
        found = a**2 * (alpha**2 * std**2 + sigma**2) + (b**2).sum()
        errors.append(abs(float(found) - (end_alpha**2 * std**2 + end_sigma**2)))
    return fitted(errors, counts)


def order(name, solver):
    """The fitted order of a cell, or None where there is none to fit."""
    run = RUNS[solver]
    if run.order is None:
        return None
    options = {"eta": 1.0} if solver == "dpmpp_2m_sde" else {}
    if solver == "euler_maruyama":
        options = {"last": "noise"}
    with jax.enable_x64(True):
        return (weak_order if run.weak else strong_order)(name, solver, run.counts, **options)
