"""Objectives against their papers' formulae written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.diffusion import objective, path, vlb, weighting
from mmjax.diffusion.posterior import log_variance
from mmjax.diffusion.prediction import denoised, denoiser, following, inputs, target

B = 5


def corrupted(p, t, seed=0, shape=(B, 3, 2)):
    x0 = jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)
    keys = rng.per_example(jax.random.key(seed), jnp.arange(len(x0)))
    return objective.corrupt(x0, jnp.asarray(t, jnp.float32), p, keys)


def wide(*arrays):
    return (np.asarray(a, np.float64) for a in arrays)


def output(like, channels=1, seed=7):
    shape = (*like.shape[:-1], like.shape[-1] * channels)
    return jnp.asarray(0.6 * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def per_example(x):
    return x.reshape(len(x), -1).mean(1)


def test_simple():
    p = path.discrete()
    ex = corrupted(p, [0, 10, 400, 800, 999])
    out = output(ex.x)
    o, eps, x, x0 = wide(out, ex.eps, ex.x, ex.x0)
    np.testing.assert_allclose(objective.regression(out, ex, "eps", p), per_example((o - eps) ** 2), rtol=1e-5)
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[[0, 10, 400, 800, 999]][:, None, None]
    np.testing.assert_allclose(x, np.sqrt(bar) * x0 + np.sqrt(1 - bar) * eps, atol=1e-6)


def test_flow_matching_and_reflow():
    p, t = path.flow(), np.array([0.0, 0.2, 0.5, 0.9, 1.0])
    ex = corrupted(p, t)
    out = output(ex.x)
    o, eps, x0 = wide(out, ex.eps, ex.x0)
    np.testing.assert_allclose(objective.regression(out, ex, "velocity", p), per_example((o - (eps - x0)) ** 2), rtol=1e-5)
    noise = jnp.flip(ex.eps)
    pairs = objective.corrupt(ex.x0, ex.t, p, eps=noise)
    np.testing.assert_array_equal(pairs.eps, noise)
    np.testing.assert_allclose(pairs.x, (1 - t)[:, None, None] * x0 + t[:, None, None] * np.asarray(noise), atol=1e-6)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_denoising_score_matching(name):
    """lambda(t) |s(x_t) - grad log p(x_t | x0)|^2 with lambda = g^2 / 2."""
    p, t = path.make({"name": name}), np.array([0.05, 0.2, 0.5, 0.9, 1.0])
    ex = corrupted(p, t)
    out = output(ex.x)
    o, x, x0 = wide(out, ex.x, ex.x0)
    alpha, sigma, g2 = {
        "vp": (np.exp(-0.05 * t - 4.975 * t**2), np.sqrt(1 - np.exp(-0.1 * t - 9.95 * t**2)), 0.1 + 19.9 * t),
        "ve": (1 + 0 * t, 0.01 * 5000**t, (0.01 * 5000**t) ** 2 * 2 * np.log(5000)),
    }[name]
    a, s = alpha[:, None, None], sigma[:, None, None]
    want = g2 / 2 * per_example((o + (x - a * x0) / s**2) ** 2)
    got = objective.regression(out, ex, "score", p, weighting.make({"name": "likelihood"}))
    np.testing.assert_allclose(got, want, rtol=2e-4)


def test_edm_and_edm2():
    """(s^2 + sd^2) / (s sd)^2 |D(x) - x0|^2 with D through the network's scalings, as the paper states it."""
    p, sigma, sd = path.edm(), np.array([0.01, 0.3, 1.0, 5.0, 60.0]), 0.5
    ex = corrupted(p, sigma)
    network = lambda x, c: jnp.sin(3 * x) + path.over(c, x)
    out = network(*inputs(ex.x, ex.t, p, "edm"))
    x, x0 = wide(ex.x, ex.x0)
    s = sigma[:, None, None]
    scale = np.sqrt(s**2 + sd**2)
    d = sd**2 / scale**2 * x + s * sd / scale * (np.sin(3 * x / scale) + np.log(s) / 4)
    want = (sigma**2 + sd**2) / (sigma * sd) ** 2 * per_example((d - x0) ** 2)
    loss = objective.regression(out, ex, "edm", p, weighting.make({"name": "edm"}))
    np.testing.assert_allclose(loss, want, rtol=1e-3)
    np.testing.assert_allclose(objective.regression(out, ex, "edm", p), loss, rtol=1e-5)  # unit weight on F
    np.testing.assert_allclose(denoiser(network, p, "edm")(ex.x, ex.t).x0, d, rtol=1e-4, atol=1e-4)
    u = np.linspace(-1, 1, B)
    np.testing.assert_allclose(objective.uncertain(loss, jnp.asarray(u, jnp.float32)), want / np.exp(u) + u, rtol=1e-3)


def test_learned_uncertainty_is_least_at_the_logarithm_of_the_loss():
    loss = jnp.array([0.2, 3.0])
    slope = jax.grad(lambda u: objective.uncertain(loss, u).sum())
    np.testing.assert_allclose(slope(jnp.log(loss)), 0, atol=1e-6)


def written_out(o, raw, x, x0, t):
    """Improved DDPM's variational term for eps and a variance in a range, in bits, with its approximate cumulative; float64."""
    beta = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - beta)
    before = np.append(1.0, bar[:-1])
    small = (1 - before) / (1 - bar) * beta
    small[0] = small[1]
    clean = (x - np.sqrt(1 - bar[t]) * o) / np.sqrt(bar[t])
    mean = lambda c: np.sqrt(before[t]) * beta[t] / (1 - bar[t]) * c + np.sqrt(1 - beta[t]) * (1 - before[t]) / (1 - bar[t]) * x
    f = (raw + 1) / 2
    log_var = f * np.log(beta[t]) + (1 - f) * np.log(small[t])
    if t > 0:
        kl = 0.5 * (log_var - np.log(small[t]) - 1 + small[t] / np.exp(log_var) + (mean(x0) - mean(clean)) ** 2 / np.exp(log_var))
        return kl.mean() / np.log(2)
    cdf = lambda z: 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    plus, minus = (cdf((x0 - mean(clean) + d) / np.exp(log_var / 2)) for d in (1 / 255, -1 / 255))
    mass = np.where(x0 < -0.999, plus, np.where(x0 > 0.999, 1 - minus, plus - minus))
    return -np.log(np.maximum(mass, 1e-12)).mean() / np.log(2)


T = [0, 1, 30, 500, 999]


def test_bound_and_hybrid_equal_the_published_code_written_out():
    p = path.discrete()
    ex = corrupted(p, T)
    # near the truth, as a trained network is: else the decoder's masses are all at their floor
    out = jnp.concatenate([ex.eps + 0.1 * output(ex.x), output(ex.x, seed=8)], -1)
    o, raw, x, x0 = wide(out[..., :2], out[..., 2:], ex.x, ex.x0)
    want = 1000 * np.array([written_out(o[i], raw[i], x[i], x0[i], t) for i, t in enumerate(T)])
    got = objective.bound(out, ex, "eps", p, cumulative="tanh")
    np.testing.assert_allclose(got, want, rtol=2e-3)
    np.testing.assert_allclose(objective.bound(out, ex, "eps", p)[1:], want[1:], rtol=2e-3)
    np.testing.assert_allclose(objective.bound(out, ex, "eps", p)[0], want[0], rtol=0.02)  # the exact cumulative
    simple = per_example((o - np.asarray(ex.eps)) ** 2)
    np.testing.assert_allclose(objective.hybrid(out, ex, "eps", p, cumulative="tanh"), simple + 0.001 * want, rtol=2e-3)


def test_hybrid_teaches_the_mean_by_simple_alone():
    p = path.discrete()
    ex = corrupted(p, T)
    out = output(ex.x, 2)
    both = jax.grad(lambda o: objective.hybrid(o, ex, "eps", p).sum())(out)
    simple = jax.grad(lambda o: objective.regression(o[..., :2], ex, "eps", p).sum())(out)
    variance = jax.grad(lambda o: 0.001 * objective.bound(o, ex, "eps", p).sum())(out)
    np.testing.assert_allclose(both[..., :2], simple[..., :2], rtol=1e-6)
    np.testing.assert_allclose(both[..., 2:], variance[..., 2:], rtol=1e-5)
    assert float(jnp.abs(variance[..., :2]).max()) > 0 and float(jnp.abs(both[..., 2:]).max()) > 0
    assert bool(jnp.isfinite(both).all() & jnp.isfinite(variance).all())


def test_mean_of_the_bound_over_times_is_the_sum_of_its_terms():
    p = path.discrete(betas="cosine", steps=6)
    t = np.arange(6.0)
    ex = corrupted(p, t, shape=(6, 3, 2))
    x0, eps = jnp.broadcast_to(ex.x0[:1], ex.x0.shape), jnp.broadcast_to(ex.eps[:1], ex.eps.shape)
    same = objective.corrupt(x0, ex.t, p, eps=eps)
    out = jnp.broadcast_to(output(ex.x)[:1], ex.x.shape)

    @jax.jit
    def both():
        clean = denoised("v", out, same.x, t, p).x0
        terms = vlb.term(x0, same.x, t, t - 1, clean, log_variance(p, "fixed_large", t, t - 1), p)
        return objective.bound(out, same, "v", p, "fixed_large").mean(), terms.sum()

    np.testing.assert_allclose(*both(), rtol=1e-5)


def test_bound_with_fixed_variance_is_the_weighted_simple_loss():
    """But for constants: equation 12 of Ho et al. 2020 is L_simple with weighting vlb, in nats."""
    p = path.discrete()
    ex = corrupted(p, [5, 30, 200, 500, 999])
    one, other = output(ex.x), output(ex.x, seed=9)
    weights = weighting.make({"name": "vlb", "variance": "fixed_large"})
    by_bound = lambda o: np.asarray(objective.bound(o, ex, "eps", p, "fixed_large"), np.float64) * np.log(2) / 1000
    by_weight = lambda o: np.asarray(objective.regression(o, ex, "eps", p, weights), np.float64)
    np.testing.assert_allclose(by_bound(one) - by_bound(other), by_weight(one) - by_weight(other), rtol=2e-3, atol=1e-6)


def test_noise_is_an_examples_own():
    p = path.flow()
    x0, t = jnp.zeros((8, 3)), jnp.full((8,), 0.5)
    keys = rng.per_example(jax.random.key(0), jnp.arange(8))
    whole, part = objective.corrupt(x0, t, p, keys), objective.corrupt(x0[2:4], t[2:4], p, keys[2:4])
    np.testing.assert_array_equal(whole.x[2:4], part.x)
    assert len(np.unique(np.asarray(whole.eps))) == 24


def test_optimal_transport_goes_through():
    p = path.flow()
    x0 = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)), jnp.float32)
    keys = rng.per_example(jax.random.key(0), jnp.arange(8))
    make = jax.jit(lambda kind: objective.corrupt(x0, jnp.full((8,), 0.5), p, keys, coupling=kind, group=4), static_argnums=0)
    plain, near = make("independent"), make("optimal_transport")
    length = lambda ex: float(((ex.x0 - ex.eps) ** 2).sum())
    assert length(near) < length(plain)
    np.testing.assert_allclose(near.x, (near.x0 + near.eps) / 2, rtol=1e-6)
    np.testing.assert_allclose(target("velocity", *near[:3], p), near.eps - near.x0, atol=1e-6)


def test_edms_scalings_reach_the_bound():
    """A network that is right is right whatever its prediction is scaled by."""
    p = path.discrete()
    ex = corrupted(p, [0, 10, 100, 300, 500])
    right = target("edm", ex.x0, ex.eps, ex.t, p, 0.75)
    got = objective.hybrid(right, ex, "edm", p, "fixed_large", sigma_data=0.75)
    np.testing.assert_allclose(got, 0.001 * objective.bound(ex.eps, ex, "eps", p, "fixed_large"), rtol=1e-3, atol=1e-6)


def test_refused():
    p = path.discrete()
    ex = corrupted(p, T)
    with pytest.raises(UserError, match="variance is 'learned_range': the network gives 2 channels, expected 4"):
        objective.hybrid(output(ex.x), ex, "eps", p)
    with pytest.raises(UserError, match="the path 'flow' is continuous"):
        objective.bound(output(ex.x, 2), corrupted(path.flow(), [0.1] * B), "velocity", path.flow())
    with pytest.raises(UserError, match="variance is 'range'"):
        objective.bound(output(ex.x), ex, "eps", p, "range")
    assert float(following(p, 0.0)) == -1
