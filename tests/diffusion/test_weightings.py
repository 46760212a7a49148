"""Weightings: by formula, carried from prediction to prediction, and equal to each other where theory says so."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.diffusion import path, weighting
from mmjax.diffusion.posterior import posterior
from mmjax.diffusion.prediction import PREDICTIONS, denoised, target
from mmjax.diffusion.weighting import make, weight

NAMES = ("discrete", "vp", "ve", "edm", "flow", "gvp")
ALL = [{"name": name} for name in weighting.WEIGHTINGS]


def inner(p):
    return p.clean + (p.noise - p.clean) * np.array([0.0313, 0.3071, 0.6137, 0.9123])


@pytest.mark.parametrize(("name", "kind"), list(itertools.product(NAMES, PREDICTIONS)))
def test_a_weighted_error_is_the_same_through_any_prediction(name, kind):
    """A network's output, and the same opinion said as x0: every weighting weighs the two errors alike."""
    p = path.make({"name": name})
    t = inner(p)
    with jax.enable_x64(True):
        r = np.random.default_rng(0)
        x0, eps, wrong = (jnp.asarray(r.standard_normal((4, 5))) for _ in range(3))
        x = p.mix(x0, eps, t)
        error = lambda kind, output: np.asarray((output - target(kind, x0, eps, t, p)) ** 2).mean(1)
        opinion = denoised(kind, wrong, x, t, p)
        for group in ALL:
            if group["name"] == "simple" or (group["name"] == "vlb" and p.steps is None):
                continue
            through = lambda k, output: weight(make(group), k, t, p) * error(k, output)  # noqa: B023
            np.testing.assert_allclose(through(kind, wrong), through("x0", opinion.x0), rtol=1e-7, err_msg=str(group))


def at(group, kind, t, p):
    with jax.enable_x64(True):
        return np.asarray(weight(make(group), kind, t, p))


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_simple_is_one_on_what_is_predicted(kind):
    np.testing.assert_array_equal(at({"name": "simple"}, kind, inner(path.vp()), path.vp()), 1)


@pytest.mark.parametrize("name", ["edm", "ve", "vp", "flow"])
def test_edm_is_one_on_its_own_target(name):
    p = path.make({"name": name})
    np.testing.assert_allclose(at({"name": "edm"}, "edm", inner(p), p), 1, rtol=1e-9)
    if name == "edm":
        s = inner(p)
        np.testing.assert_allclose(at({"name": "edm"}, "x0", s, p), (s**2 + 0.25) / (s * 0.5) ** 2, rtol=1e-12)


def test_min_snr_by_its_formulae():
    """gamma 5 on a variance-preserving path: on x0, on eps, on v (Hang et al. 2023, section 3.4)."""
    p = path.discrete()
    t = np.array([5.0, 150.0, 600.0, 950.0])
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t.astype(int)]
    snr = bar / (1 - bar)
    least = np.minimum(snr, 5)
    assert (snr > 5).any() and (snr < 5).any()
    for kind, want in (("x0", least), ("eps", least / snr), ("v", least / (snr + 1))):
        np.testing.assert_allclose(at({"name": "min_snr"}, kind, t, p), want, rtol=1e-8)
        np.testing.assert_allclose(at({"name": "min_snr", "gamma": 1.0}, kind, t, p), want * np.minimum(snr, 1) / least, rtol=1e-8)
        np.testing.assert_allclose(weight(make({"name": "min_snr"}), kind, t, p), want, rtol=1e-4)  # float32


def test_min_snr_with_v_survives_zero_snr():
    p = path.discrete(betas="scaled_linear", zero_terminal_snr=True)
    np.testing.assert_array_equal(weight(make({"name": "min_snr"}), "v", np.array([999.0]), p), 0)


def test_p2_by_its_formula():
    p, t = path.vp(), inner(path.vp())
    snr = (np.asarray(p.alpha(t), np.float64) / np.asarray(p.sigma(t), np.float64)) ** 2
    np.testing.assert_allclose(at({"name": "p2", "k": 2.0, "gamma": 0.5}, "eps", t, p), (2 + snr) ** -0.5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_likelihood_is_the_slope_of_the_signal_to_noise_ratio(name):
    """g^2 / 2 on the score = - SNR' / 2 on x0 = - (log SNR)' / 2 on eps, on any path."""
    p = path.make({"name": name})
    t = inner(p)
    with jax.enable_x64(True):
        h = 1e-6 * (p.noise - p.clean)
        slope = lambda f: np.asarray((f(t + h) - f(t - h)) / (2 * h))
        on_x0, on_eps = -slope(lambda t: jnp.exp(2 * p.log_snr(t))) / 2, -slope(lambda t: 2 * p.log_snr(t)) / 2
    np.testing.assert_allclose(at({"name": "likelihood"}, "x0", t, p), on_x0, rtol=1e-5)
    np.testing.assert_allclose(at({"name": "likelihood"}, "eps", t, p), on_eps, rtol=1e-5)
    np.testing.assert_allclose(at({"name": "likelihood"}, "score", t, p), p.diffusion2(t) / 2, rtol=1e-3)


def test_rectified_flow_likelihood():
    """Esser et al. 2024, section 2: on the flow path - lambda' / 2 = 1 / (t (1 - t)) on eps, so (1 - t) / t on the velocity."""
    t = inner(path.flow())
    np.testing.assert_allclose(at({"name": "likelihood"}, "eps", t, path.flow()), 1 / (t * (1 - t)), rtol=1e-9)
    np.testing.assert_allclose(at({"name": "likelihood"}, "velocity", t, path.flow()), (1 - t) / t, rtol=1e-9)


def test_vlb_by_its_formulae():
    """Ho et al. 2020, equation 12, on eps: beta^2 / (2 s^2 alpha (1 - alpha_bar)); with the posterior's own variance a drop of SNR / 2."""
    p, t = path.discrete(), np.array([1, 10, 500, 999])
    beta = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - beta)
    want = beta[t] ** 2 / (2 * beta[t] * (1 - beta[t]) * (1 - bar[t]))
    np.testing.assert_allclose(at({"name": "vlb", "variance": "fixed_large"}, "eps", t.astype(float), p), want, rtol=1e-8)
    snr = bar / (1 - bar)
    np.testing.assert_allclose(at({"name": "vlb"}, "x0", t.astype(float), p), (snr[t - 1] - snr[t]) / 2, rtol=1e-8)
    q = posterior(p, 1.0, 0.0)
    np.testing.assert_allclose(at({"name": "vlb"}, "x0", np.array([0.0]), p), 1 / (2 * q.variance), rtol=1e-4)  # the decoder's


def test_many_steps_of_the_bound_are_the_likelihood():
    """With T steps of a smooth schedule the bound's weight tends to the continuous one, per unit of t."""
    p = path.discrete(steps=4000)
    t = np.array([200.5, 1000.5, 3000.5])
    whole = at({"name": "vlb"}, "x0", np.round(t + 0.1), p)
    np.testing.assert_allclose(whole, at({"name": "likelihood"}, "x0", t, p), rtol=0.02)


def test_sd3_weightings():
    p, t = path.flow(), inner(path.flow())
    np.testing.assert_allclose(at({"name": "sigma_sqrt"}, "velocity", t, p), t**-2.0, rtol=1e-12)
    np.testing.assert_allclose(at({"name": "cosmap"}, "velocity", t, p), 2 / (np.pi * (1 - 2 * t + 2 * t**2)), rtol=1e-12)
    logit = np.log(t / (1 - t))
    want = np.exp(-((logit - 0.5) ** 2) / (2 * 0.6**2)) / (0.6 * np.sqrt(2 * np.pi) * t * (1 - t))
    np.testing.assert_allclose(at({"name": "logit_normal", "mean": 0.5, "std": 0.6}, "velocity", t, p), want, rtol=1e-9)
    # velocity and x0 on the flow path: eps - x0 = (x - x0) / t
    np.testing.assert_allclose(at({"name": "sigma_sqrt"}, "x0", t, p), t**-4.0, rtol=1e-9)


REFUSED = [
    ({"name": "minsnr"}, "weighting is 'minsnr'; did you mean 'min_snr'?"),
    ({"name": "min_snr", "gama": 5.0}, "weighting 'min_snr': unknown key 'gama'; did you mean 'gamma'?"),
    ({"name": "min_snr", "gamma": 0.0}, "gamma is 0.0, expected a positive number"),
    ({"name": "vlb", "variance": "learned_range"}, "expected 'fixed_small' or 'fixed_large'"),
]


@pytest.mark.parametrize(("group", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_refused(group, message):
    with pytest.raises(UserError) as caught:
        make(group)
    assert message in str(caught.value)


def test_vlb_of_a_continuous_path_is_refused():
    with pytest.raises(UserError, match="'vp' is continuous: take 'likelihood'"):
        weight(make({"name": "vlb"}), "eps", 0.5, path.vp())
