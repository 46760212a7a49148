"""Likelihoods by the probability-flow ODE against the mixture's own density, and dequantisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.diffusion import likelihood, vlb
from mmjax.diffusion import path as paths
from mmjax.diffusion.prediction import Denoised
from tests.diffusion.gaussian_mixture import MIXTURE, draw, exact, log_density

pytestmark = pytest.mark.slow  # minutes of compilation in all

PATHS = {
    "discrete": paths.discrete(),
    "vp": paths.vp(),
    "ve": paths.ve(sigma_max=200.0),
    "edm": paths.edm(sigma_max=200.0),
    "flow": paths.flow(),
    "gvp": paths.gvp(),
}
TIGHT = {"rtol": 1e-6, "atol": 1e-6}


def keys(n, seed=0):
    return rng.per_example(jax.random.key(seed), jnp.arange(n))


def analytic(path, x, start):
    """The density of x_start at alpha x, times alpha^2, nats."""
    alpha, sigma = float(path.alpha(start)), float(path.sigma(start))
    return log_density(MIXTURE, alpha * x, alpha, sigma) + 2 * np.log(alpha)


def at_noise(path):
    """The mixture's own density at the noise end, which the Gaussian prior only nears where signal is left."""
    return lambda x: log_density(MIXTURE, x, float(path.alpha(path.noise)), float(path.sigma(path.noise)))


@pytest.mark.parametrize("name", PATHS)
def test_likelihood_equals_the_analytic_density(name):
    """To 1e-3 bits, in float64; with the Gaussian prior, where the path ends without signal."""
    path = PATHS[name]
    with jax.enable_x64(True):
        x = jnp.asarray(draw(MIXTURE, 3, 8))
        start = {"discrete": 0.0, "ve": 0.05}.get(name, float(path.at_log_snr(np.log(100.0))))
        options = {"path": path, "divergence": "exact", "start": start, **TIGHT}
        got, looks = likelihood.log_likelihood(exact(MIXTURE, path), x, None, prior=at_noise(path), **options)
        if name in ("flow", "gvp"):
            plain, _ = likelihood.log_likelihood(exact(MIXTURE, path), x, None, **options)
            np.testing.assert_allclose(plain, got, atol=1e-4)
        np.testing.assert_allclose(got / np.log(2), analytic(path, x, start) / np.log(2), atol=1e-3)
    assert (looks > 10).all() and (looks < 1000).all()


def test_by_default_it_starts_next_to_data():
    with jax.enable_x64(True):
        x = jnp.asarray(draw(MIXTURE, 3, 8))
        got, _ = likelihood.log_likelihood(exact(MIXTURE, PATHS["flow"]), x, None, path=PATHS["flow"], divergence="exact", **TIGHT)
        np.testing.assert_allclose(got / np.log(2), log_density(MIXTURE, x) / np.log(2), atol=1e-3)


def test_a_wrong_sign_is_seen():
    path = PATHS["vp"]

    def wrong(x, t):
        out = exact(MIXTURE, path)(x, t)
        return Denoised(out.x0, 0.98 * out.eps)

    with jax.enable_x64(True):
        x = jnp.asarray(draw(MIXTURE, 3, 8))
        start = float(path.at_log_snr(np.log(100.0)))
        got, _ = likelihood.log_likelihood(wrong, x, None, path=path, divergence="exact", start=start, **TIGHT)
        assert float(jnp.abs(got - analytic(path, x, start)).max()) > 0.02


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_and_one_fixed_probe_an_example(probe):
    path, n = PATHS["gvp"], 256
    x = jnp.broadcast_to(jnp.asarray(draw(MIXTURE, 3, 1), jnp.float32), (n, 2))
    run = lambda x, k: likelihood.log_likelihood(exact(MIXTURE, path), x, k, path=path, probe=probe, rtol=1e-4, atol=1e-4)[0]
    got = np.asarray(jax.jit(run)(x, keys(n)))
    want = float(log_density(MIXTURE, x[:1])[0])
    assert got.std() > 0.001
    assert abs(got.mean() - want) < 4 * got.std() / np.sqrt(n) + 0.01
    np.testing.assert_allclose(jax.jit(run)(x[:4], keys(n)[:4]), got[:4], atol=1e-3)  # its own probe and steps, whatever the batch


def test_divergences_of_a_linear_map():
    a = jnp.asarray(np.random.default_rng(0).standard_normal((6, 6)), jnp.float32)
    slope = lambda y, u: (y.reshape(-1, 6) @ a.T).reshape(y.shape) * u[:, None, None]
    y, u = jnp.ones((3, 2, 3)), jnp.array([1.0, 2.0, 0.0])
    value, divergence = likelihood.exact_divergence(slope)(y, u)
    np.testing.assert_allclose(value, slope(y, u), rtol=1e-6)
    np.testing.assert_allclose(divergence, jnp.trace(a) * u, rtol=1e-5, atol=1e-6)
    probe = jax.random.rademacher(jax.random.key(0), (3, 2, 3), jnp.float32)
    e = np.asarray(probe).reshape(3, 6)
    np.testing.assert_allclose(
        likelihood.hutchinson_divergence(slope, probe)(y, u)[1], np.einsum("bi,ij,bj->b", e, a, e) * u, rtol=1e-4, atol=1e-5
    )


def test_bits_of_a_uniform_density():
    """A density of 1/2 on [-1, 1] says nothing of 256 levels: 8 bits. The offset is 7 there and 8 on [0, 1]."""
    flat = jnp.full((2,), 12 * np.log(0.5))
    np.testing.assert_allclose(likelihood.bits_per_dimension(flat, 12), 8.0, rtol=1e-6)
    np.testing.assert_allclose(likelihood.bits_per_dimension(jnp.zeros(2), 12), 7.0)
    np.testing.assert_allclose(likelihood.bits_per_dimension(jnp.zeros(2), 12, low=0.0), 8.0)


def test_dequantisation_fills_each_bin():
    pictures = jnp.asarray(np.array([0, 127, 255], np.uint8))[None].repeat(2000, 0)
    got = np.asarray(likelihood.dequantise(pictures, keys(2000)))
    low = 2 * np.array([0, 127, 255]) / 256 - 1
    assert (got >= low).all() and (got <= low + 2 / 256 + 1e-7).all()
    np.testing.assert_allclose(got.mean(0), low + 1 / 256, atol=3e-4)


def test_bits_of_integers_bound_their_entropy():
    """Pixels that are independent and uniform over 4 values of 256 carry 2 bits, and the density that says so, 2 bits too."""
    values = jnp.asarray(np.random.default_rng(0).integers(100, 104, (64, 5)), jnp.uint8)
    x = likelihood.dequantise(values, keys(64))
    inside = ((x > 2 * 100 / 256 - 1) & (x < 2 * 104 / 256 - 1)).all(1)
    assert inside.all()
    log_p = jnp.full((64,), 5 * np.log(256 / 2 / 4))
    np.testing.assert_allclose(likelihood.bits_per_dimension(log_p, 5), 2.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "exat"}, "did you mean 'exact'"),
        ({"probe": "rademaker"}, "did you mean 'rademacher'"),
        ({"solver": "heun"}, "known: dopri5, tsit5"),
        ({}, "expected keys"),
        ({"divergence": "exact", "start": 2.0}, "expected 0 to 1"),
    ],
    ids=str,
)
def test_refused(options, message):
    with pytest.raises(UserError, match=message):
        likelihood.log_likelihood(exact(MIXTURE, PATHS["flow"]), jnp.zeros((2, 2)), None, path=PATHS["flow"], **options)


def test_the_variational_bound_bounds_it():
    """Of the exact denoiser and data on 256 levels: above the analytic bits of a bin and the ODE's, on the mean.

    Most of the gap is of the first steps of the linear schedule, which more than double the noise (on CIFAR-10, 3.70 against 3.28).
    """
    path, n = PATHS["discrete"], 2048
    half = MIXTURE._replace(means=MIXTURE.means / 2, stds=MIXTURE.stds / 2)
    integers = np.clip(np.round((draw(half, 5, n) + 1) * 127.5), 0, 255)
    x = jnp.asarray(integers / 127.5 - 1, jnp.float32)
    bound = np.asarray(jax.jit(lambda x, k: vlb.bits_per_dimension(exact(half, path), x, k, path).total)(x, keys(n)))
    levels = lambda log_p: np.asarray(likelihood.bits_per_dimension(log_p, 2, levels=255))  # x stands on -1 + 2 k / 255
    truth = levels(log_density(half, x))
    run = lambda x: likelihood.log_likelihood(exact(half, path), x, None, path=path, divergence="exact", rtol=1e-4, atol=1e-4)[0]
    flow = levels(jax.jit(run)(x))
    error = (bound - truth).std() / np.sqrt(n)
    assert 3 * error < (bound - truth).mean() < 0.9
    assert 3 * error < (bound - flow).mean() < 0.9
    assert abs((flow - truth).mean()) < 0.01
