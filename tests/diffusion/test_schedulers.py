"""Trajectories of diffusers' schedulers (tests/golden/diffusion_schedulers.py), given the same network and noise."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.diffusion import guidance, walk
from mmjax.diffusion import path as paths
from mmjax.diffusion.prediction import denoiser
from mmjax.diffusion.samplers import sample
from mmjax.diffusion.spacing import times
from tests.golden.weights import normal

GOLDEN = Path(__file__).parents[1] / "golden" / "diffusion_schedulers.npz"
SHAPE = (2, 3, 2, 2)
LINEAR, COSINE = paths.discrete(), paths.discrete(betas="cosine")
STABLE, ZERO = paths.discrete(betas="scaled_linear"), paths.discrete(betas="scaled_linear", zero_terminal_snr=True)
EDM, FLOW = paths.edm(), paths.flow()

# case -> path, prediction, solver, its options, arguments of guidance.clip or None, our own spacing of the same times
CASES = {
    "ddpm_small": (LINEAR, "eps", "ddpm", {}, None, {"spacing": "leading"}),
    "ddpm_large": (LINEAR, "eps", "ddpm", {"variance": "fixed_large"}, {}, {"spacing": "leading"}),
    "ddpm_learned": (COSINE, "eps", "ddpm", {"variance": "learned_range"}, {}, {"spacing": "leading"}),
    "ddpm_trailing": (LINEAR, "v", "ddpm", {}, None, {"spacing": "trailing"}),
    "ddim": (LINEAR, "eps", "ddim", {}, None, {"spacing": "leading"}),
    "ddim_eta": (LINEAR, "eps", "ddim", {"eta": 0.5}, None, {"spacing": "leading"}),
    "ddim_clip": (LINEAR, "eps", "ddim", {}, {"rederive": False}, {"spacing": "leading"}),
    "ddim_clip_rederived": (LINEAR, "eps", "ddim", {}, {}, {"spacing": "leading"}),
    "ddim_zero_snr": (ZERO, "v", "ddim", {}, None, {"spacing": "trailing"}),
    "ddim_trailing": (LINEAR, "eps", "ddim", {"diffusers_stride": 1000 // 7}, None, {"spacing": "trailing"}),
    "dpmpp_2m": (LINEAR, "eps", "dpmpp_2m", {}, None, {"spacing": "linspace_open"}),
    "dpmpp_2m_long": (STABLE, "v", "dpmpp_2m", {}, None, {"spacing": "linspace_open"}),
    "dpmpp_2m_sde": (LINEAR, "eps", "dpmpp_2m_sde", {}, None, {"spacing": "linspace_open"}),
    "edm_euler": (EDM, "edm", "euler", {}, None, {"spacing": "karras"}),
    "flow_euler": (FLOW, "velocity", "euler", {}, None, {"spacing": "linspace", "shift": 3.0, "shift_ends_too": True}),
    "flow_heun": (FLOW, "velocity", "heun", {}, None, {"spacing": "linspace", "shift": 3.0, "shift_ends_too": True}),
    "unclip": (COSINE, "x0", "ddpm", {"variance": "learned_range"}, {"low": -2.0, "high": 2.0}, {"spacing": "unclip"}),
    "unclip_prior": (COSINE, "x0", "ddpm", {}, {"low": -10.0, "high": 10.0}, {"spacing": "unclip"}),
    "unclip_decoder": (COSINE, "eps", "ddpm", {"variance": "learned_range"}, {}, {"spacing": "unclip"}),
}


def golden(name):
    with np.load(GOLDEN) as data:
        return data[f"{name}/times"], np.moveaxis(data[f"{name}/states"], 2, -1)


def start(name, scale=1.0):
    return jnp.asarray(scale * np.moveaxis(normal(f"{name}/start", SHAPE), 1, -1), jnp.float64)


def network(x, u, double=False):
    """The golden script's, channels last."""
    u = u.reshape(-1, 1, 1, 1)
    out = 0.8 * jnp.tanh(x + u) - 0.3 * u * x
    return jnp.concatenate([out, jnp.sin(2 * x)], -1) if double else out


def walked(name, change=None, **more):
    """Our states at the scheduler's own times."""
    path, kind, solver, options, clip, _ = CASES[name]
    at = golden(name)[0]
    if name == "flow_heun":  # lists inner times twice
        at = np.unique(at)[::-1]
    grid = np.append(at[at > 0] if path.steps is None else at, path.clean)
    learned = options.get("variance", "").startswith("learned")
    scale = 1000.0 if path.steps else 1.0
    denoise = denoiser(
        lambda x, c: network(x, c / scale, learned),
        path,
        kind,
        variance="learned_range" if learned else None,
        times=grid if learned else None,
    )
    if clip is not None:
        denoise = guidance.clip(denoise, path, **clip)
    x = start(name, np.sqrt(80**2 + 1) if name == "edm_euler" else 1.0)
    keys = jax.random.split(jax.random.key(0), SHAPE[0])
    return sample(denoise, x, grid, keys, path=path, solver=solver, trajectory=True, **(options if change is None else change), **more)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def same_noise(name, monkeypatch):
    table = np.stack([np.moveaxis(normal(f"{name}/noise/{i}", SHAPE), 1, -1) for i in range(25)]).astype(np.float64)
    monkeypatch.setattr(walk, "gaussian", lambda keys, step, x: jnp.asarray(table)[step])


def far(got, want):
    return float(np.abs(np.asarray(got) - want).max() / np.abs(want).max())


@pytest.mark.parametrize("name", CASES)
def test_states_equal_diffusers(name, monkeypatch):
    same_noise(name, monkeypatch)
    assert far(walked(name), golden(name)[1]) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_spacings_equal_diffusers(name):
    path, *_, how = CASES[name]
    at, states = golden(name)
    want = np.unique(np.append(at, path.clean))[::-1]
    np.testing.assert_allclose(times(path, len(states) - 1, **how), want, rtol=2e-6)


def test_euler_discrete_is_euler_in_sigma():
    """diffusers walks x / alpha over sigma / alpha and gives the network x: that is DDIM, and `edm` without its correction."""
    sigmas, want = golden("euler_discrete")
    grid = np.append(np.linspace(0, 999, 10)[::-1], -1)
    # Between whole times the scheduler interpolates sigma, and a path log alpha_bar: compared at whole ones.
    path = STABLE
    at = walk.levels(path, np.round(grid[:-1]))
    np.testing.assert_allclose((at.sigma / at.alpha), sigmas[:-1], rtol=2e-5)
    denoise = denoiser(lambda x, c: network(x, c / 1000), path, "eps")
    x = start("euler_discrete") * sigmas[0] * at.alpha[0]
    keys = jax.random.split(jax.random.key(0), 2)
    for solver, options in (("ddim", {}), ("edm", {"second_order": False})):
        states = sample(denoise, x, np.round(grid), keys, path=path, solver=solver, trajectory=True, **options)
        alphas = np.append(at.alpha, 1.0).reshape(-1, 1, 1, 1, 1)
        assert far(states / alphas, want) < 2e-5, solver  # its sigmas are float32


def test_the_stride_of_diffusers_is_not_ours():
    """Its DDIM steps to t - T // N and looks from there at the next time: an error where times are not that far apart."""
    want = golden("ddim_trailing")[1]
    assert far(walked("ddim_trailing"), want) < 1e-6
    assert far(walked("ddim_trailing", {}), want) > 1e-3


def test_clipping_without_eps_is_not_the_default():
    assert far(walked("ddim_clip_rederived"), golden("ddim_clip")[1]) > 1e-2


@pytest.mark.parametrize(("kind", "want"), [("eps", 1.6807101965), ("v", 0.9885517359)])
def test_one_step_of_ddim(kind, want):
    denoise = denoiser(lambda x, c: jnp.full_like(x, 0.5), LINEAR, kind)
    got = sample(denoise, jnp.ones((1, 1)), [900.0, 800.0], None, path=LINEAR, solver="ddim")
    np.testing.assert_allclose(got, [[want]], rtol=2e-6)


def test_five_steps_of_dpmpp_2m():
    denoise = denoiser(lambda x, c: jnp.full_like(x, 0.5), STABLE, "eps")
    got = sample(denoise, jnp.ones((1, 1)), times(STABLE, 5, "linspace_open"), None, path=STABLE, solver="dpmpp_2m", trajectory=True)
    np.testing.assert_allclose(got[1:, 0, 0], [1.9064939, 3.4104152, 5.1624708, 6.6216965, 7.3414946], rtol=1e-6)
