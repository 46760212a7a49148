"""The variational bound: exact for Gaussian data with the exact denoiser, each term by its closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.diffusion import path, vlb
from mmjax.diffusion.posterior import log_variance, posterior
from mmjax.diffusion.prediction import Denoised, following

MEAN, STD = 0.1, 0.2  # of the data; 1 is 4.5 standard deviations away


def levels(a, s):
    """Variance of x0 given x_t."""
    return STD**2 * s**2 / (a**2 * STD**2 + s**2)


def exact_denoiser(p, times, off=0.0):
    """E[x0 | x_t], and the variance of q(x_s | x_t), which is Gaussian where the data are."""

    def denoise(x, t):
        a, s = (path.over(v, x) for v in (p.alpha(t), p.sigma(t)))
        x0 = MEAN + off + a * STD**2 * (x - a * MEAN) / (a**2 * STD**2 + s**2)
        q = posterior(p, t, following(p, t, times))
        spread = q.variance + q.x0**2 * levels(p.alpha(t), p.sigma(t))
        return Denoised(x0, (x - a * x0) / s, jnp.broadcast_to(path.over(jnp.log(spread), x), x.shape))

    return denoise


def data(n=64, width=400):
    x0 = MEAN + STD * np.random.default_rng(0).standard_normal((n, width))
    return jnp.asarray(np.round((x0 + 1) * 127.5) / 127.5 - 1, jnp.float32)


WALKS = {
    "flow": np.append(np.linspace(1, 0.05, 12), 0),
    "gvp": np.append(np.linspace(1, 0.05, 12), 0),
    "edm": np.append(80 * (np.linspace(1, 0.25, 12)) ** 5, 0),
    "vp": np.append(np.linspace(1, 0.02, 12), 0),
    "discrete": np.append(np.linspace(999, 20, 12).round(), -1),
}


@pytest.mark.parametrize("name", WALKS)
def test_the_bound_of_a_gaussian_is_its_entropy(name):
    """Nothing is lost by the exact reverse process: log2(255 / 2) + log2(2 pi e std^2) / 2 bits, whatever the steps."""
    p, times = path.make({"name": name}), WALKS[name]
    x0 = data()
    keys = rng.per_example(jax.random.key(0), jnp.arange(len(x0)))
    run = jax.jit(lambda off: vlb.bits_per_dimension(exact_denoiser(p, times, off), x0, keys, p, "learned", times))
    found = run(0.0)
    want = np.log2(127.5) + np.log2(2 * np.pi * np.e * STD**2) / 2
    np.testing.assert_allclose(found.total.mean(), want, atol=0.02)
    np.testing.assert_allclose(found.total, found.prior + found.terms.sum(0), rtol=1e-6)
    assert found.terms.shape == (12, 64) and float(found.prior.max()) < 1e-3
    mean_snr = lambda t: np.log2(1 + STD**2 * np.exp(2 * np.asarray(p.log_snr(t), np.float64))) / 2
    gained = mean_snr(times[1:-1]) - mean_snr(times[:-2])  # what x_s tells of x0 beyond x_t, in bits
    np.testing.assert_allclose(found.terms[:-1].mean(1), gained, atol=0.02)
    assert float(run(0.1).total.mean()) > want + 0.05


def test_a_term_with_the_posteriors_variance():
    """(SNR_s - SNR_t) / 2 times the variance that is left, by quadrature over x0 and noise in float64."""
    p = path.discrete()
    node, w = np.polynomial.hermite_e.hermegauss(12)
    w = np.outer(w, w).ravel() / (2 * np.pi)
    x0, eps = (v.ravel()[:, None] for v in np.meshgrid(MEAN + STD * node, node, indexing="ij"))
    snr = lambda t: jnp.exp(2 * p.log_snr(t))

    @jax.jit
    def both(t, s):
        x = p.mix(jnp.asarray(x0), jnp.asarray(eps), t)
        said = exact_denoiser(p, None)(x, jnp.full((144,), t))
        got = w @ vlb.term(jnp.asarray(x0), x, t, s, said.x0, log_variance(p, "fixed_small", t, s), p)
        return got, (snr(s) - snr(t)) / 2 * levels(p.alpha(t), p.sigma(t)) / np.log(2)

    with jax.enable_x64(True):
        for t, s in ((999.0, 998.0), (400.0, 399.0), (400.0, 100.0), (1.0, 0.0)):
            np.testing.assert_allclose(*both(t, s), rtol=1e-8)


def test_gaussian_kl_by_quadrature():
    m, v, n, u = 0.3, 0.4, -0.2, 1.3
    node, w = np.polynomial.hermite_e.hermegauss(20)
    x = m + np.sqrt(v) * node
    want = w @ (stats.norm.logpdf(x, m, np.sqrt(v)) - stats.norm.logpdf(x, n, np.sqrt(u))) / np.sqrt(2 * np.pi)
    got = vlb.gaussian_kl(*(jnp.float32(a) for a in (m, np.log(v), n, np.log(u))))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_prior_term():
    x0 = jnp.array([[0.5, -0.5], [1.0, 1.0]])
    p = path.flow()
    np.testing.assert_allclose(vlb.prior_term(x0, p), 0, atol=1e-6)
    a, s = 0.2, 0.8
    want = np.array([(s**2 + a**2 * m - 1 - 2 * np.log(s)) / 2 for m in (0.25, 1.0)]) / np.log(2)
    np.testing.assert_allclose(vlb.prior_term(x0, p, 0.8), want, rtol=1e-5)
    edm = np.array([0.25, 1.0]) / 80**2 / 2 / np.log(2)
    np.testing.assert_allclose(vlb.prior_term(x0, path.edm()), edm, rtol=1e-3)


LEVELS = np.linspace(-1, 1, 256)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.3), (0.99, 0.01), (-1.2, 0.5), (0.3, 0.002), (0.5, 20.0)])
def test_the_decoder_sums_to_one_over_the_levels(mean, std):
    x, scale = jnp.asarray(LEVELS, jnp.float32)[None], jnp.log(jnp.float32(std)) * 2
    log_mass = vlb.discretised_log_likelihood(x, jnp.full_like(x, mean), scale)
    np.testing.assert_allclose(np.exp(np.asarray(log_mass, np.float64)).sum(), 1, rtol=2e-4)
    rough = vlb.discretised_log_likelihood(x, jnp.full_like(x, mean), scale, "tanh")
    np.testing.assert_allclose(np.exp(rough), np.exp(log_mass), atol=2e-3)


def test_the_decoder_keeps_its_digits_in_the_tails():
    """Thirty standard deviations out, on both sides, where the masses themselves vanish in float32."""
    std = 0.02
    x = np.array([[-0.6, -0.1, 0.1, 0.6, -1.0, 1.0]], np.float32)
    got = vlb.discretised_log_likelihood(jnp.asarray(x), jnp.zeros_like(x), jnp.float32(2 * np.log(std)))
    z = np.abs(x.astype(np.float64))
    upper = lambda z: stats.norm.logsf(z / std)
    inner = upper(z - 1 / 255) + np.log1p(-np.exp(upper(z + 1 / 255) - upper(z - 1 / 255)))
    want = np.where(z > 0.999, upper(z - 1 / 255), inner)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    slope = jax.grad(lambda m: vlb.discretised_log_likelihood(jnp.asarray(x), m, jnp.float32(2 * np.log(std))).sum())(jnp.asarray(x * 0))
    assert bool(jnp.isfinite(slope).all())
    floor = vlb.discretised_log_likelihood(jnp.asarray(x), jnp.zeros_like(x), jnp.float32(2 * np.log(std)), "tanh")
    np.testing.assert_allclose(floor[0, 0], np.log(1e-12), rtol=1e-5)


def test_a_walk_that_begins_early_pays_for_it():
    """From t = 0.6 the prior is wrong by KL(N(a mean, a^2 std^2 + s^2), N(0, 1)), and the bound is the entropy and that."""
    p, times, x0 = path.flow(), np.append(np.linspace(0.6, 0.05, 6), 0), data()
    keys = rng.per_example(jax.random.key(0), jnp.arange(len(x0)))
    found = jax.jit(lambda: vlb.bits_per_dimension(exact_denoiser(p, times), x0, keys, p, "learned", times))()
    v = 0.4**2 * STD**2 + 0.6**2
    gap = (v + 0.4**2 * MEAN**2 - 1 - np.log(v)) / 2 / np.log(2)
    assert gap > 0.2
    np.testing.assert_allclose(found.total.mean(), np.log2(127.5) + np.log2(2 * np.pi * np.e * STD**2) / 2 + gap, atol=0.02)


def test_an_examples_bound_is_its_own():
    p, times, x0 = path.flow(), WALKS["flow"], data(6, 20)
    keys = rng.per_example(jax.random.key(0), jnp.arange(6))
    run = lambda x0, keys: vlb.bits_per_dimension(exact_denoiser(p, times), x0, keys, p, "learned", times).total
    np.testing.assert_allclose(run(x0[2:4], keys[2:4]), run(x0, keys)[2:4], rtol=1e-6)


def test_refused():
    x0, keys = data(2, 3), rng.per_example(jax.random.key(0), jnp.arange(2))
    run = lambda p, variance, **kwargs: vlb.bits_per_dimension(lambda x, t: Denoised(x, x), x0, keys, p, variance, **kwargs)
    with pytest.raises(UserError, match="the path 'vp' is continuous: the bound needs the times"):
        run(path.vp(), "fixed_small")
    with pytest.raises(UserError, match="variance is 'small'"):
        run(path.discrete(steps=40), "small")
    with pytest.raises(UserError, match="variance is 'learned_range', and the denoiser gives none"):
        run(path.discrete(steps=40), "learned_range")
    with pytest.raises(UserError, match="cumulative of the decoder is 'erf'"):
        run(path.discrete(steps=40), "fixed_small", cumulative="erf")
