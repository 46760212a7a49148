"""q(x_s | x_t, x0) against DDPM's tables and Gaussian conditioning, and the variances of a model's step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.diffusion import path
from mmjax.diffusion.posterior import log_variance, posterior

BETA = np.linspace(1e-4, 0.02, 1000)
BAR = np.cumprod(1 - BETA)


def test_one_step_is_ddpms():
    p, t = path.discrete(), np.array([1, 2, 500, 999])
    a, before, b = BAR[t], BAR[t - 1], BETA[t]
    with jax.enable_x64(True):
        q = posterior(p, t.astype(float), t - 1.0)
    np.testing.assert_allclose(q.x0, np.sqrt(before) * b / (1 - a), rtol=1e-9)
    np.testing.assert_allclose(q.x, np.sqrt(1 - b) * (1 - before) / (1 - a), rtol=1e-9)
    np.testing.assert_allclose(q.variance, (1 - before) / (1 - a) * b, rtol=1e-9)
    np.testing.assert_allclose(q.step, b, rtol=1e-9)
    single = posterior(p, t, t - 1)
    np.testing.assert_allclose(single.step, b, rtol=1e-4)  # float32 keeps the digits of a difference of near numbers
    np.testing.assert_allclose(single.x0, q.x0, rtol=1e-4)


def test_respaced_steps_are_those_of_the_shorter_schedule():
    """Nichol & Dhariwal 2021, section 4: alpha_bar at the kept steps makes new betas."""
    kept = np.array([0, 250, 500, 999])
    bar = BAR[kept]
    beta = 1 - bar[1:] / bar[:-1]
    with jax.enable_x64(True):
        q = posterior(path.discrete(), kept[1:].astype(float), kept[:-1].astype(float))
    np.testing.assert_allclose(q.step, beta, rtol=1e-9)
    np.testing.assert_allclose(q.variance, (1 - bar[:-1]) / (1 - bar[1:]) * beta, rtol=1e-9)


@pytest.mark.parametrize("name", ["vp", "ve", "edm", "flow", "gvp"])
def test_any_path_by_gaussian_conditioning(name):
    """x_s = alpha_s x0 + sigma_s e and x_t = r x_s + step e': condition the pair on x_t."""
    p = path.make({"name": name})
    t, s = (p.clean + (p.noise - p.clean) * np.array(u) for u in ([0.9, 0.5, 0.2], [0.5, 0.4, 0.01]))
    with jax.enable_x64(True):
        a_t, s_t, a_s, s_s = (np.asarray(f(u)) for u in (t, s) for f in (p.alpha, p.sigma))
        q = posterior(p, t, s)
    r = a_t / a_s
    gain = r * s_s**2 / s_t**2  # cov(x_s, x_t) / var(x_t), given x0
    np.testing.assert_allclose(q.x, gain, rtol=1e-9)
    np.testing.assert_allclose(q.x0, a_s - gain * a_t, rtol=1e-8)
    np.testing.assert_allclose(q.variance, s_s**2 - gain**2 * s_t**2, rtol=1e-8)
    np.testing.assert_allclose(q.step, s_t**2 - r**2 * s_s**2, rtol=1e-8)


def test_ends():
    last = posterior(path.discrete(), 0.0, -1.0)
    np.testing.assert_allclose([last.x0, last.x, last.variance], [1, 0, 0], atol=1e-6)
    first = posterior(path.flow(), 1.0, 0.75)  # nothing of x0 is left in x_t
    np.testing.assert_allclose([first.x0, first.x, first.variance], [0.25, 0, 0.75**2], atol=1e-6)


def test_variances_are_the_references():
    """fixed_small of diffusers 0.42.1, and what the original code does at the last step: the variance of the step before."""
    p, t = path.discrete(), np.array([1.0, 500.0, 999.0])
    var = lambda kind, t, s: np.exp(np.asarray(log_variance(p, kind, t, s)))
    np.testing.assert_allclose(var("fixed_small", t, t - 1), [5.45347939e-05, 0.0100512691, 0.0199999642], rtol=1e-4)
    np.testing.assert_allclose(var("fixed_large", t, t - 1), BETA[[1, 500, 999]], rtol=1e-4)
    np.testing.assert_allclose(var("fixed_small", 900.0, 800.0), 0.8197200298, rtol=1e-4)
    small_1 = (1 - BAR[0]) / (1 - BAR[1]) * BETA[1]
    for kind in ("fixed_small", "fixed_large"):
        np.testing.assert_allclose(var(kind, 0.0, -1.0), small_1, rtol=1e-4)
    walk = np.array([900.0, 600.0, 300.0, 0.0, -1.0])
    respaced = np.exp(log_variance(p, "fixed_large", 0.0, -1.0, walk))
    np.testing.assert_allclose(respaced, (1 - BAR[0]) / (1 - BAR[300]) * (1 - BAR[300] / BAR[0]), rtol=1e-4)


def test_learned_range_runs_from_small_to_large():
    p, t = path.discrete(), jnp.array([0.0, 500.0])
    raw = jnp.stack([-jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.ones((2, 3))])
    low, middle, high = (np.asarray(log_variance(p, "learned_range", t, t - 1, raw=r))[:, 0] for r in raw)
    small_1 = (1 - BAR[0]) / (1 - BAR[1]) * BETA[1]
    np.testing.assert_allclose(low, np.log([small_1, (1 - BAR[499]) / (1 - BAR[500]) * BETA[500]]), rtol=1e-4)
    np.testing.assert_allclose(high, np.log(BETA[[0, 500]]), rtol=1e-4)  # beta itself at the last step
    np.testing.assert_allclose(middle, (low + high) / 2, rtol=1e-5)
    np.testing.assert_array_equal(log_variance(p, "learned", t, t - 1, raw=raw[0]), raw[0])


@pytest.mark.parametrize(
    ("p", "kind", "kwargs", "message"),
    [
        (path.discrete(), "fixed", {}, "variance is 'fixed'"),
        (path.discrete(), "learned_range", {}, "must have twice the channels of x"),
        (path.vp(), "fixed_small", {}, "the path 'vp' is continuous"),
        (path.vp(), "fixed_small", {"times": np.array([1.0, 0.0])}, "at least two steps"),
    ],
)
def test_refused(p, kind, kwargs, message):
    with pytest.raises(UserError, match=message):
        log_variance(p, kind, 0.5, 0.2, **kwargs)
