"""Every solver on a Gaussian mixture with its exact denoiser: where samples end up, how fast errors fall, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.diffusion import path as paths
from mmjax.diffusion import walk
from mmjax.diffusion.prediction import PREDICTIONS, Denoised
from mmjax.diffusion.samplers import SOLVERS, options_of, sample, solve
from mmjax.diffusion.spacing import times
from tests.diffusion import solver_grid as grid
from tests.diffusion.gaussian_mixture import MIXTURE, exact

pytestmark = pytest.mark.slow  # minutes of compilation in all

BOUND = 3.0  # times the sliced Wasserstein distance between two true samples
FLOW, VP, EDM, DDPM = paths.flow(), paths.vp(), paths.edm(), paths.discrete()
SLICE = [
    *(("flow", "velocity", solver) for solver in grid.RUNS),
    *((name, "v", "dpmpp_2m") for name in grid.PATHS if name != "flow"),
    *(("vp", kind, "heun") for kind in PREDICTIONS),
    *(("discrete zero SNR", "v", solver) for solver in ("ddpm", "rk4", "tsit5", "edm", "euler_maruyama")),
]
# "reverse_velocity" is velocity with another sign, which no solver sees.
ALL = [(name, kind, solver) for name in grid.PATHS for kind in PREDICTIONS if kind != "reverse_velocity" for solver in grid.RUNS]


def moments(x):
    return np.concatenate([x.mean(0), np.cov(x.T).reshape(-1)])


def holds(name, kind, solver):
    if grid.refused(name, kind, solver):
        pytest.skip("refused: the prediction says nothing at a time that is walked")
    _, ratio, x = grid.cell(name, kind, solver)
    assert ratio < BOUND
    want = moments(grid.truth(len(x))[0])
    np.testing.assert_allclose(moments(x), want, atol=0.06)  # about three standard errors


def test_the_grid_has_every_solver():
    assert set(grid.RUNS) == set(SOLVERS)


@pytest.mark.parametrize(("name", "kind", "solver"), SLICE)
def test_samples_reach_the_distribution(name, kind, solver):
    holds(name, kind, solver)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "solver"), [cell for cell in ALL if cell not in SLICE])
def test_samples_reach_the_distribution_everywhere(name, kind, solver):
    holds(name, kind, solver)


@pytest.mark.parametrize("solver", [s for s, run in grid.RUNS.items() if run.order])
def test_order_of_convergence(solver):
    assert grid.order("flow", solver) == pytest.approx(grid.RUNS[solver].order, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in grid.PATHS if n != "flow"])
@pytest.mark.parametrize("solver", [s for s, run in grid.RUNS.items() if run.order])
def test_order_of_convergence_everywhere(name, solver):
    if "discrete" in name and solver == "rk4":
        pytest.skip("a table of betas is no smooth function: its kinks bound the error before the order shows")
    assert grid.order(name, solver) == pytest.approx(grid.RUNS[solver].order, abs=0.2)


# What a mistake in a sign or a swapped coefficient would do.
BROKEN = {
    "sign of eps": lambda out: Denoised(out.x0, -out.eps),
    "x0 and eps swapped": lambda out: Denoised(out.eps, out.x0),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("solver", ["ddim", "heun", "euler_maruyama"])
def test_a_wrong_denoiser_fails_the_bound(how, solver):
    true = exact(MIXTURE, VP)
    assert not grid.cell("vp", "eps", solver, n=2048, denoise=lambda x, t: BROKEN[how](true(x, t)))[1] < BOUND


def swapped(a, b):
    return lambda s: s._replace(**{a: getattr(s, b), b: getattr(s, a)})


MUTATIONS = {
    "ddim": swapped("x0", "eps"),
    "ddpm": swapped("x", "x0"),
    "dpmpp_2m": lambda s: s._replace(before=-np.asarray(s.before), x0=np.asarray(s.x0) + 2 * np.asarray(s.before)),
    "dpmpp_2m_sde": lambda s: s._replace(noise=0.0),
    "euler_maruyama": lambda s: s._replace(eps=-np.asarray(s.eps)),
    "predictor_corrector": lambda s: s._replace(noise=2 * np.asarray(s.noise)),
}


@pytest.mark.parametrize("solver", MUTATIONS)
def test_swapped_coefficients_fail(solver, monkeypatch):
    """Of the table of steps itself: samples miss the distribution, or the order is lost."""
    module = {"ddim": "discrete", "ddpm": "discrete", "dpmpp_2m": "discrete", "dpmpp_2m_sde": "discrete"}.get(solver, "sde")
    target = f"mmjax.diffusion.solvers_{module}.walk"
    monkeypatch.setattr(target, lambda problem, steps, **kw: walk.walk(problem, MUTATIONS[solver](steps), **kw))
    if solver == "dpmpp_2m":
        assert abs(grid.order("flow", solver) - 2) > 0.2
    else:
        assert not grid.cell("flow", "velocity", solver, n=2048)[1] < BOUND


def test_evaluations_are_counted_as_they_happen():
    for solver, looks in {"ddim": 8, "euler": 8, "heun": 15, "midpoint": 16, "rk4": 31, "edm": 15, "predictor_corrector": 16}.items():
        count = []

        def counting(x, t, count=count):
            jax.debug.callback(lambda _: count.append(1), t)
            return exact(MIXTURE, EDM)(x, t)

        keys = rng.per_example(jax.random.key(0), jnp.arange(2))
        found = solve(counting, walk.draw(keys, (2,), 80.0), times(EDM, 8, "karras"), keys, path=EDM, solver=solver)
        jax.block_until_ready(found.x)
        jax.effects_barrier()
        assert len(count) == looks == int(found.evaluations[0]), solver


# --- one sample, whatever its batch -----------------------------------------------------------------------------------------


@functools.cache
def batch():
    keys = rng.per_example(jax.random.key(5), jnp.arange(6))
    return walk.draw(keys, (2,)), keys


@pytest.mark.parametrize("solver", grid.RUNS)
def test_a_sample_does_not_depend_on_its_batch(solver):
    x, keys = batch()
    grid_times = np.array([0.95, 0.7, 0.4, 0.1, 0.0])
    run = lambda x, keys: sample(exact(MIXTURE, FLOW), x, grid_times, keys, path=FLOW, solver=solver)
    run = jax.jit(run) if solver in ("dopri5", "tsit5") else run
    whole = run(x, keys)
    np.testing.assert_allclose(run(x[2:4], keys[2:4]), whole[2:4], atol=2e-6)
    assert float(jnp.abs(whole[0] - whole[1]).max()) > 1e-3


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp_2m", "rk4", "tsit5", "edm", "predictor_corrector"])
def test_trajectories_begin_with_x_and_end_with_the_sample(solver):
    x, keys = batch()
    grid_times = np.array([0.95, 0.7, 0.4, 0.1, 0.0])
    found = solve(exact(MIXTURE, FLOW), x, grid_times, keys, path=FLOW, solver=solver, trajectory=True)
    assert found.states.shape == (5, 6, 2)
    np.testing.assert_array_equal(found.states[0], x)
    np.testing.assert_allclose(found.states[-1], found.x, atol=1e-6)
    plain = sample(exact(MIXTURE, FLOW), x, grid_times, keys, path=FLOW, solver=solver)
    np.testing.assert_allclose(plain, found.x, atol=1e-6)


@pytest.mark.parametrize("solver", ["heun", "edm", "rk4", "dopri5"])
def test_states_in_between_are_those_of_the_ode(solver):
    """States at inner times against the ODE's own solution there, on a path whose scale is not constant."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 2)))
        grid_times = np.linspace(0.9, 0.1, 65)
        want = sample(exact(MIXTURE, FLOW), x, np.linspace(0.9, 0.1, 1025), None, path=FLOW, solver="rk4", trajectory=True)[::16]
        tight = {"rtol": 1e-7, "atol": 1e-7} if solver == "dopri5" else {}
        got = sample(exact(MIXTURE, FLOW), x, grid_times, None, path=FLOW, solver=solver, trajectory=True, **tight)
    np.testing.assert_allclose(got, want, atol=1e-2 if solver in ("heun", "edm") else 2e-5)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dopri5"])
def test_under_jit_with_parameters_and_conditions_in_the_closure(solver):
    """An adaptive solver sees examples one by one; what the network closes over is still the whole batch's."""
    x, keys = batch()
    grid_times = np.array([0.9, 0.5, 0.1])
    shift = jnp.arange(6.0)[:, None]

    def run(scale, shift, x):
        def denoise(x, t):
            assert x.shape == (6, 2) and t.shape == (6,)
            out = exact(MIXTURE, FLOW)(x, t)
            return Denoised(scale * out.x0 + shift, (x - (1 - t)[:, None] * (scale * out.x0 + shift)) / t[:, None])

        return sample(denoise, x, grid_times, keys, path=FLOW, solver=solver)

    together = jax.jit(run)(0.9, shift, x)
    assert together.shape == (6, 2)
    # Where the mixture's components meet, the ODE magnifies rounding by some hundreds, and with it what adaptive steps are taken.
    np.testing.assert_allclose(together, run(0.9, shift, x), atol=2e-2 if solver == "dopri5" else 1e-4)
    assert float(together[5].mean() - together[0].mean()) > 2  # every example kept its own condition


def test_eta_one_is_ddpm_and_sde_without_noise_is_2m():
    x, keys = batch()
    grid_times = np.linspace(0.95, 0, 21)
    run = lambda solver, **kw: np.asarray(sample(exact(MIXTURE, FLOW), x, grid_times, keys, path=FLOW, solver=solver, **kw))
    np.testing.assert_allclose(run("ddim", eta=1.0), run("ddpm"), atol=1e-5)
    np.testing.assert_allclose(run("dpmpp_2m_sde", eta=0.0), run("dpmpp_2m"), atol=1e-6)
    np.testing.assert_allclose(run("euler_maruyama", norm=0.0), run("euler"), atol=1e-5)
    np.testing.assert_allclose(run("predictor_corrector", corrector_steps=0), run("ddpm"), atol=1e-6)
    np.testing.assert_allclose(run("edm", second_order=False), run("ddim"), atol=2e-4)  # the same method in other variables


def test_edm_with_churn_by_its_algorithm():
    """Algorithm 2 of the paper written out in float64, with the same noise."""
    grid_times = times(EDM, 6, "karras")
    true = exact(MIXTURE, EDM)
    with jax.enable_x64(True):
        keys = rng.per_example(jax.random.key(1), jnp.arange(3))
        x0 = 80 * jax.random.normal(jax.random.key(2), (3, 2))
        got = sample(true, x0, grid_times, keys, path=EDM, solver="edm", churn=3.0, s_min=0.05, s_max=50.0, s_noise=1.003)
        x, look = np.asarray(x0), 0
        for i in range(6):
            s, after = grid_times[i], grid_times[i + 1]
            gain = min(3.0 / 6, np.sqrt(2) - 1) if 0.05 <= s <= 50 else 0.0
            up = s * (1 + gain)
            x = x + np.sqrt(up**2 - s**2) * 1.003 * np.asarray(walk.gaussian(keys, jnp.asarray(look), x0))
            see = lambda x, s: np.asarray(true(jnp.asarray(x), jnp.full(3, s)).x0)
            slope = (x - see(x, up)) / up
            y = x + (after - up) * slope
            look += 1
            if after > 0:
                slope = (slope + (y - see(y, after)) / after) / 2
                look += 1
            x = x + (after - up) * slope
    np.testing.assert_allclose(got, x, rtol=1e-8, atol=1e-8)


SIT = {  # w of SiT's compute_diffusion at SiT's time 0.25, which is 0.75 here, on the linear path with norm 1
    "constant": 1.0,
    "sigma": 0.75,
    "linear": 0.75,
    "decreasing": 0.25 * (np.cos(np.pi * 0.25) + 1) ** 2,
    "increasing-decreasing": np.sin(np.pi * 0.25) ** 2,
    "sbdm": 0.75 + 0.75**2 / 0.25,  # sigma sigma' - sigma^2 alpha' / alpha
}


@pytest.mark.parametrize("form", SIT)
def test_diffusions_are_sits(form):
    from mmjax.diffusion.solvers_sde import diffusion

    np.testing.assert_allclose(diffusion(FLOW, np.array([0.75]), form, 1.0), SIT[form], rtol=1e-12)


@pytest.mark.parametrize("form", [f for f in SIT if f != "constant"])
def test_any_diffusion_reaches_the_distribution(form, monkeypatch):
    monkeypatch.setitem(grid.RUNS, "euler_maruyama", grid.RUNS["euler_maruyama"]._replace(options={"diffusion": form, "last": "mean"}))
    assert grid.cell("flow", "velocity", "euler_maruyama")[1] < BOUND


@pytest.mark.parametrize("last", ["mean", "tweedie", "euler"])
def test_last_steps(last):
    x, keys = batch()
    run = lambda times: sample(exact(MIXTURE, FLOW), x, times, keys, path=FLOW, solver="euler_maruyama", diffusion="sigma", last=last)
    out = exact(MIXTURE, FLOW)(x, jnp.full((6,), 0.5))
    velocity = out.eps - out.x0
    want = {"mean": x - 0.5 * (velocity + 0.5 * out.eps / 0.5), "tweedie": out.x0, "euler": x - 0.5 * velocity}[last]
    np.testing.assert_allclose(run([0.5, 0.0]), want, atol=1e-6)


# --- refused -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "huen"}, "did you mean 'heun'"),
        ({"solver": "ddim", "etta": 1.0}, "did you mean 'eta'"),
        ({"solver": "ddim", "eta": "high"}, "eta is 'high', expected a number"),
        ({"solver": "heun", "eta": 1.0}, "it takes none"),
        ({"solver": "ddim", "eta": 1.5}, "more noise"),
        ({"solver": "ddpm", "variance": "fixed"}, "did you mean 'fixed_"),
        ({"solver": "ddpm", "variance": "learned_range"}, "denoiser gives none"),
        ({"times": [0.0, 0.5, 1.0]}, "must fall"),
        ({"times": [1.0]}, "at least two"),
        ({"times": [1.2, 0.5, 0.0]}, "but the path 'flow' from 1"),
        ({"keys": None, "solver": "ddpm"}, "expected keys"),
        ({"solver": "edm"}, "sigma / alpha is not finite at time 1 of the path 'flow'"),
        ({"solver": "euler_maruyama"}, "take diffusion 'sigma'"),
        ({"solver": "euler_maruyama", "diffusion": "sbmd"}, "did you mean 'sbdm'"),
        ({"solver": "euler_maruyama", "last": "meen"}, "did you mean 'mean'"),
        ({"solver": "predictor_corrector", "snr": 0.0}, "expected snr > 0"),
        ({"solver": "dopri5", "rtol": 0.0}, "positive"),
    ],
    ids=str,
)
def test_bad_input(change, message):
    x, keys = batch()
    args = {"times": [1.0, 0.5, 0.0], "keys": keys, "solver": "heun", "path": FLOW} | change
    with pytest.raises(UserError, match=message) as error:
        sample(exact(MIXTURE, FLOW), x, args.pop("times"), args.pop("keys"), **args)
    assert "\n" not in str(error.value)


def test_keys_and_times_of_the_wrong_kind():
    x, keys = batch()
    with pytest.raises(UserError, match="expected 6 typed keys"):
        sample(exact(MIXTURE, FLOW), x, [1.0, 0.0], keys[:3], path=FLOW, solver="ddpm")
    with pytest.raises(UserError, match="times are traced"):
        jax.jit(lambda t: sample(exact(MIXTURE, FLOW), x, t, keys, path=FLOW, solver="ddim"))(jnp.array([1.0, 0.0]))
    with pytest.raises(UserError, match="expected float32"):
        sample(exact(MIXTURE, FLOW), x.astype(jnp.bfloat16), [1.0, 0.0], keys, path=FLOW, solver="ddim")


def test_options_are_listed():
    assert options_of("ddim") == {"eta": 0.0, "diffusers_stride": None}
    assert options_of("heun") == {}
