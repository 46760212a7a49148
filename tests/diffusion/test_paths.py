"""Paths and beta schedules: published values, closed forms in float64, inverses, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.diffusion import path, schedule

CONTINUOUS = ("vp", "ve", "edm", "flow", "gvp")
SD = {"betas": "scaled_linear"}

# name of the schedule, t, alpha_bar: diffusers 0.42.1's DDPMScheduler
ALPHA_BARS = [
    ({"betas": "linear"}, (0, 499, 999), (0.9998999834, 0.0785872340, 4.03583035e-5)),
    ({"betas": "cosine"}, (0, 499, 999), (0.9999586940, 0.4938434660, 2.428735e-9)),
    (SD, (0, 499, 999), (0.9991499782, 0.2776694298, 0.00466009509)),
    ({**SD, "zero_terminal_snr": True}, (0, 499, 998, 999), (0.9991499782, 0.2423589975, 1.96796e-7, 0.0)),
]


@pytest.mark.parametrize(("group", "t", "want"), ALPHA_BARS, ids=lambda x: str(x))
def test_alpha_bar_equals_the_reference(group, t, want):
    p = path.make({"name": "discrete", **group})
    with jax.enable_x64(True):
        alpha, sigma = np.asarray(p.alpha(np.array(t, float))), np.asarray(p.sigma(np.array(t, float)))
    np.testing.assert_allclose(alpha**2, want, rtol=0, atol=1e-6)
    np.testing.assert_allclose(alpha**2, want, rtol=1e-4, atol=0)  # the reference multiplies in float32
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-14)
    np.testing.assert_allclose(p.alpha(np.array(t)), alpha, rtol=1e-6)  # float32, whole times
    np.testing.assert_allclose(p.sigma(np.array(t)), sigma, rtol=1e-6)


def test_stable_diffusion_sigmas():
    p = path.make({"name": "discrete", **SD})
    np.testing.assert_allclose(np.exp(-p.log_snr(np.array([0, 999]))), [0.029167, 14.614641], rtol=2e-5)


def test_betas_by_their_formulae():
    i = np.arange(4000)
    np.testing.assert_allclose(schedule.betas("linear", 4000), (1e-4 + (0.02 - 1e-4) * i / 3999) / 4, rtol=1e-12)
    np.testing.assert_allclose(schedule.betas("linear", 4000, start=1e-3, end=2e-3)[[0, -1]], [1e-3, 2e-3], rtol=1e-12)
    f = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(schedule.alpha_bar(schedule.betas("cosine", 4000))[:3900], f((i[:3900] + 1) / 4000) / f(0), rtol=1e-9)
    assert schedule.betas("cosine").max() == 0.999
    ends = schedule.betas("scaled_linear", 1000, 0.0015, 0.0195)
    middle = (np.sqrt(0.0015) + 499 / 999 * (np.sqrt(0.0195) - np.sqrt(0.0015))) ** 2
    np.testing.assert_allclose([ends[0], ends[-1], ends[499]], [0.0015, 0.0195, middle], rtol=1e-9)
    sigmoid = schedule.betas("sigmoid", 101)
    np.testing.assert_allclose(sigmoid[[0, 50]], [1e-4 + 0.0199 / (1 + np.exp(6)), 1e-4 + 0.0199 / 2], rtol=1e-12)


def test_zero_terminal_snr_moves_and_scales_the_roots():
    """Algorithm 1: the first root stays, the last is 0, and between them the map is affine."""
    before = schedule.betas("scaled_linear")
    old, new = (np.sqrt(schedule.alpha_bar(b)) for b in (before, schedule.rescale_to_zero_terminal_snr(before)))
    np.testing.assert_allclose(new, (old - old[-1]) * old[0] / (old[0] - old[-1]), atol=1e-12)
    assert new[-1] == 0
    np.testing.assert_allclose(new[0], old[0])


CLOSED = {  # alpha, sigma
    "vp": lambda t: (np.exp(-0.05 * t - 4.975 * t**2), np.sqrt(1 - np.exp(-0.1 * t - 9.95 * t**2))),
    "ve": lambda t: (1 + 0 * t, 0.01 * 5000**t),
    "edm": lambda t: (1 + 0 * t, t),
    "flow": lambda t: (1 - t, t),
    "gvp": lambda t: (np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_paths_by_their_formulae(name):
    p = path.make({"name": name})
    t = p.clean + (p.noise - p.clean) * np.linspace(0, 1, 11)
    alpha, sigma = CLOSED[name](t)
    with jax.enable_x64(True):
        np.testing.assert_allclose(p.alpha(t), alpha, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(p.sigma(t), sigma, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(p.alpha(t.astype(np.float32)), alpha, rtol=2e-5, atol=1e-7)
    assert p.alpha(np.float32(0.5)).dtype == jnp.float32
    data, noise = (p.alpha(p.clean), p.sigma(p.clean)), (p.alpha(p.noise), p.sigma(p.noise))
    assert data[0] == 1 and data[1] == (np.float32(0.01) if name == "ve" else 0)
    np.testing.assert_allclose(noise[1], p.prior_std, rtol=1e-4)
    if name in ("flow", "gvp"):
        assert noise[0] == 0  # exactly: what is refused there is recognised by it


EVERY = (*CONTINUOUS, "discrete", "zero_snr")


def named(name):
    return path.make({"name": "discrete", **SD, "zero_terminal_snr": True}) if name == "zero_snr" else path.make({"name": name})


@pytest.mark.parametrize("name", EVERY)
def test_time_at_inverts_log_snr(name):
    p = named(name)
    span = p.noise - p.clean
    t = p.clean + span * np.linspace(0.003, 0.9995, 40)  # on a discrete path between its steps too, up to the last of them
    with jax.enable_x64(True):
        lam = p.log_snr(t)
        np.testing.assert_allclose(lam, np.log(np.asarray(p.alpha(t))) - np.log(np.asarray(p.sigma(t))), rtol=1e-12, atol=1e-12)
        assert (np.diff(lam) < 0).all()
        np.testing.assert_allclose(p.at_log_snr(lam), t, rtol=0, atol=1e-9 * span)
    np.testing.assert_allclose(p.at_log_snr(p.log_snr(t.astype(np.float32))), t, rtol=0, atol=2e-4 * span)


@pytest.mark.parametrize("name", EVERY)
def test_rates_are_derivatives(name):
    p = named(name)
    t = p.clean + (p.noise - p.clean) * np.linspace(0.05321, 0.94487, 9)  # no kink of a discrete path
    with jax.enable_x64(True):
        h = 1e-6 * (p.noise - p.clean)
        slope = lambda f: (f(t + h) - f(t - h)) / (2 * h)
        d_alpha, d_sigma = p.rates(t)
        np.testing.assert_allclose(d_alpha, slope(p.alpha), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(d_sigma, slope(p.sigma), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(p.drift(t), slope(lambda t: jnp.log(p.alpha(t))), rtol=1e-6, atol=1e-9)
        want = slope(lambda t: p.sigma(t) ** 2) - 2 * p.drift(t) * p.sigma(t) ** 2
        np.testing.assert_allclose(p.diffusion2(t), want, rtol=1e-5)
        np.testing.assert_allclose(p.diffusion2(t), -2 * p.sigma(t) ** 2 * slope(p.log_snr), rtol=1e-5)


def test_published_sdes():
    """VP: f = -beta / 2, g^2 = beta. VE: g = sigma sqrt(2 log(max / min)). EDM: g^2 = 2 t. Flow: f = -1 / (1 - t), g^2 = 2 t / (1 - t)."""
    t = np.linspace(0.1, 0.9, 5)
    with jax.enable_x64(True):
        beta = 0.1 + 19.9 * t
        np.testing.assert_allclose(path.vp().drift(t), -beta / 2, rtol=1e-12)
        np.testing.assert_allclose(path.vp().diffusion2(t), beta, rtol=1e-12)
        np.testing.assert_allclose(path.ve().diffusion2(t), (0.01 * 5000**t) ** 2 * 2 * np.log(5000), rtol=1e-12)
        np.testing.assert_allclose(path.edm().diffusion2(t), 2 * t, rtol=1e-12)
        np.testing.assert_allclose(path.flow().drift(t), -1 / (1 - t), rtol=1e-12)
        np.testing.assert_allclose(path.flow().diffusion2(t), 2 * t / (1 - t), rtol=1e-12)


def test_discrete_path_begins_at_clean_data():
    p = path.discrete()
    assert (p.clean, p.noise, p.steps) == (-1.0, 999.0, 1000)
    assert p.alpha(-1) == 1 and p.sigma(-1) == 0 and p.log_snr(-1) == np.inf
    assert p.at_log_snr(np.float32(np.inf)) == -1


def test_between_steps_log_alpha_bar_is_linear():
    p = path.discrete()
    with jax.enable_x64(True):
        at = lambda t: np.log(np.asarray(p.alpha(np.array(t, float))))
        np.testing.assert_allclose(at([-0.75, 400.25, 998.25]), 0.75 * at([-1, 400, 998]) + 0.25 * at([0, 401, 999]), rtol=1e-10)


def test_mix_broadcasts_over_examples():
    p, t = path.flow(), jnp.array([0.0, 0.25, 1.0])
    x0, eps = jnp.ones((3, 2, 4)), 3 * jnp.ones((3, 2, 4))
    np.testing.assert_allclose(p.mix(x0, eps, t)[:, 0, 0], [1, 1.5, 3])
    np.testing.assert_allclose(p.mix(x0, eps, 0.25)[:, 1, 3], [1.5, 1.5, 1.5])


REFUSED = [
    ({"name": "flwo"}, "path is 'flwo'; did you mean 'flow'?"),
    ({}, "path is None"),
    ({"name": "vp", "beta_mni": 1.0}, "path 'vp': unknown key 'beta_mni'; did you mean 'beta_min'?"),
    ({"name": "vp", "beta_min": 3.0, "beta_max": 1.0}, "expected 0 < beta_min <= beta_max"),
    ({"name": "ve", "sigma_min": 0.0}, "path 've': sigma from 0.0 to 50.0"),
    ({"name": "edm", "sigma_max": -1.0}, "path 'edm': sigma from 0.0 to -1.0"),
    ({"name": "discrete", "betas": "cosin"}, "beta schedule is 'cosin'; did you mean 'cosine'?"),
    ({"name": "discrete", "betas": "cosine", "beta_end": 0.5}, "a cosine schedule has no beta_start and beta_end"),
    ({"name": "discrete", "steps": 1}, "a beta schedule of 1 steps"),
    ({"name": "discrete", "steps": 10}, "expected all between 0 and 1"),
]


@pytest.mark.parametrize(("group", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_refused(group, message):
    with pytest.raises(UserError) as caught:
        path.make(group)
    assert message in str(caught.value) and "\n" not in str(caught.value)
