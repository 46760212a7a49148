"""DDIM inversion, inpainting, image-to-image, interpolation and the conditions of cascades."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.diffusion import cascade, embeddings, inpaint, walk
from mmjax.diffusion import path as paths
from mmjax.diffusion.prediction import Denoised
from mmjax.diffusion.samplers import sample
from mmjax.diffusion.solvers_discrete import invert
from mmjax.diffusion.spacing import times
from tests.diffusion.gaussian_mixture import MIXTURE, Mixture, draw, exact, sliced_wasserstein

pytestmark = pytest.mark.slow  # minutes of compilation in all

DDPM, FLOW, EDM = paths.discrete(), paths.flow(), paths.edm()


def keys(n, seed=0):
    return rng.per_example(jax.random.key(seed), jnp.arange(n))


# --- inversion ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [DDPM, FLOW, EDM], ids=lambda p: p.name)
def test_inversion_round_trips(path):
    """Better with more steps, as first order has it, and with refinements exactly."""
    with jax.enable_x64(True):
        x = jnp.asarray(draw(MIXTURE, 1, 16))
        denoise = exact(MIXTURE, path)

        def off(steps, refine=0):
            up = times(path, steps, "karras" if path.name == "edm" else "trailing")[::-1]
            noise = invert(denoise, x, up, path=path, refine=refine)
            back = sample(denoise, noise, up[::-1], None, path=path, solver="ddim")
            return float(jnp.median(jnp.abs(back - x)))

        coarse, fine = off(50), off(200)
        assert fine < 0.05 and coarse / fine > 2
        assert off(100, refine=30) < (1e-6 if path.name != "edm" else 1e-4)


def test_inverted_noise_is_noise():
    x = jnp.asarray(draw(MIXTURE, 1, 4096), jnp.float32)
    z = invert(exact(MIXTURE, DDPM), x, times(DDPM, 200)[::-1], path=DDPM)
    want = np.random.default_rng(0).standard_normal((2, 4096, 2))
    assert sliced_wasserstein(z, want[0]) < 3 * sliced_wasserstein(want[1], want[0]) + 0.02


def test_inversion_wants_rising_times():
    with pytest.raises(UserError, match="expected rising times"):
        invert(exact(MIXTURE, DDPM), jnp.zeros((2, 2)), [999.0, 0.0], path=DDPM)
    states = invert(exact(MIXTURE, DDPM), jnp.zeros((2, 2)), [-1.0, 10.0, 20.0], path=DDPM, trajectory=True)
    assert states.shape == (3, 2, 2)


# --- inpainting --------------------------------------------------------------------------------------------------------------

# One correlated Gaussian in the plane: given the first coordinate the second is Gaussian too, of known mean and width.
RHO, KNOWN = 0.8, 1.2


def correlated(path):
    """The exact denoiser of N(0, [[1, rho], [rho, 1]])."""
    cov = jnp.array([[1.0, RHO], [RHO, 1.0]])

    def denoise(x, t):
        alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
        inverse = jnp.linalg.inv(alpha[..., None] ** 2 * cov[None] + sigma[..., None] ** 2 * jnp.eye(2)[None])
        score = -jnp.einsum("bij,bj->bi", inverse, x)
        return Denoised(alpha * jnp.einsum("ij,bj->bi", cov, -score), -sigma * score)

    return denoise


@pytest.mark.parametrize("how", ["replacement", "repaint"])
def test_inpainting_follows_the_conditional(how):
    """Replacement alone stays half way to the unconditional mean, as it is known to; RePaint comes near the conditional."""
    n, grid = 4096, times(DDPM, 50)
    known, mask = jnp.full((n, 2), KNOWN), jnp.array([[1.0, 0.0]])
    x, k = walk.draw(keys(n), (2,)), keys(n)
    if how == "repaint":
        got = jax.jit(lambda x, k: inpaint.repaint(correlated(DDPM), x, grid, k, path=DDPM, known=known, mask=mask, jump=5, resample=8))(
            x, k
        )
    else:
        got = sample(correlated(DDPM), x, grid, k, path=DDPM, solver="ddpm", after=inpaint.replacement(known, mask, DDPM))
    np.testing.assert_allclose(got[:, 0], KNOWN, atol=1e-5)
    mean, std = float(got[:, 1].mean()), float(got[:, 1].std())
    want_mean, want_std = RHO * KNOWN, np.sqrt(1 - RHO**2)
    if how == "repaint":
        assert abs(mean - want_mean) < 0.12 and abs(std - want_std) < 0.1, (mean, std)
    else:
        assert 0.3 * want_mean < mean < want_mean - 0.25, (mean, std)


def test_replacement_under_every_kind_of_solver():
    known, mask = jnp.full((4, 2), KNOWN), jnp.array([[1.0, 0.0]])
    for solver in ("heun", "edm", "dpmpp_2m", "predictor_corrector"):
        after = inpaint.replacement(known, mask, FLOW)
        grid = np.array([0.9, 0.6, 0.3, 0.0])
        got = sample(correlated(FLOW), walk.draw(keys(4), (2,)), grid, keys(4), path=FLOW, solver=solver, after=after, trajectory=True)
        np.testing.assert_allclose(got[-1, :, 0], KNOWN, atol=1e-5)
        # at t = 0.6 the known part is its own noising
        assert float(jnp.abs(got[1, :, 0] - 0.4 * KNOWN).max()) < 0.6 * 4
    with pytest.raises(UserError, match="cannot be interrupted"):
        sample(correlated(FLOW), jnp.zeros((4, 2)), grid, keys(4), path=FLOW, solver="dopri5", after=after)


def test_repaints_plan():
    plan = inpaint.repaint_plan(4, 2, 2)
    assert plan == [(0, 1), (1, 2), (2, 0), (0, 1), (1, 2), (2, 3), (3, 4), (4, 2), (2, 3), (3, 4)]
    assert inpaint.repaint_plan(3, 1, 1) == [(0, 1), (1, 2), (2, 3)]
    with pytest.raises(UserError, match="1 <= jump <= steps"):
        inpaint.repaint(
            exact(MIXTURE, DDPM),
            jnp.zeros((1, 2)),
            [999.0, -1.0],
            keys(1),
            path=DDPM,
            known=jnp.zeros((1, 2)),
            mask=jnp.ones((1, 2)),
            jump=2,
        )


def test_going_back_to_noise_has_the_paths_variance():
    grid = np.array([700.0, 300.0])
    up = inpaint._noising(DDPM, grid[1:], grid[:1])
    a, b = walk.levels(DDPM, grid[1:]), walk.levels(DDPM, grid[:1])
    np.testing.assert_allclose((up.x * a.sigma) ** 2 + up.noise**2, b.sigma**2, rtol=1e-12)
    np.testing.assert_allclose(up.x * a.alpha, b.alpha, rtol=1e-12)


# --- image-to-image and interpolation ----------------------------------------------------------------------------------------


def test_image_to_image_stays_near_for_little_noise():
    grid = times(FLOW, 50)
    x0 = jnp.asarray(draw(MIXTURE, 4, 2048), jnp.float32)
    moved = {}
    for strength in (0.1, 0.5, 1.0):
        tail = inpaint.from_level(grid, strength)
        assert len(tail) == round(50 * strength) + 1
        start = inpaint.noised(x0, float(tail[0]), keys(2048), path=FLOW)
        out = sample(exact(MIXTURE, FLOW), start, tail, keys(2048), path=FLOW, solver="heun")
        moved[strength] = float(jnp.linalg.norm(out - x0, axis=1).mean())
        assert sliced_wasserstein(out, draw(MIXTURE, 8, 2048)) < 0.1  # and always a sample
    assert moved[0.1] < 0.3 < moved[0.5] < moved[1.0]
    with pytest.raises(UserError, match="leaves none"):
        inpaint.from_level(grid, 0.001)


def test_interpolation():
    a, b = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2))
    np.testing.assert_allclose(inpaint.lerp(a, b, 0.25), 0.75 * a + 0.25 * b, rtol=1e-6)
    np.testing.assert_allclose(embeddings.slerp(a, b, jnp.array([0.0, 1.0, 0.0])), jnp.stack([a[0], b[1], a[2]]), rtol=1e-5, atol=1e-6)
    unit = lambda x: x / jnp.linalg.norm(x.reshape(3, -1), axis=1).reshape(3, 1, 1, 1)
    middle = embeddings.slerp(unit(a), unit(b), 0.3)
    np.testing.assert_allclose(jnp.linalg.norm(middle.reshape(3, -1), axis=1), 1.0, rtol=1e-5)
    cos = lambda x, y: (unit(x) * unit(y)).sum((1, 2, 3))
    np.testing.assert_allclose(jnp.arccos(cos(a, middle)), 0.3 * jnp.arccos(cos(a, b)), rtol=1e-4)
    np.testing.assert_allclose(embeddings.slerp(a, a, 0.4), a, rtol=1e-4, atol=1e-5)
    assert np.isfinite(embeddings.slerp(a, -a, 0.4)).all() and np.isfinite(embeddings.slerp(a, jnp.zeros_like(a), 0.4)).all()


# --- cascades ----------------------------------------------------------------------------------------------------------------


def test_augmentation_is_the_paths_own_noise():
    low = jnp.full((2000, 2, 2, 1), 0.7)
    level = jnp.full((2000,), 250.0)
    got = np.asarray(cascade.augment(low, level, keys(2000), path=DDPM), np.float64)
    at = walk.levels(DDPM, np.array([250.0]))
    np.testing.assert_allclose([got.mean(), got.std()], [0.7 * at.alpha[0], at.sigma[0]], atol=0.03)
    np.testing.assert_array_equal(cascade.augment(low[:3], level[:3], keys(2000)[:3], path=DDPM), got[:3].astype(np.float32))


def test_levels():
    drawn = np.asarray(cascade.draw_levels(keys(4000), path=DDPM, high=0.5))
    assert drawn.min() == 0 and drawn.max() in (498, 499) and (drawn == np.round(drawn)).all()
    drawn = np.asarray(cascade.draw_levels(keys(4000), path=FLOW, low=0.2, high=0.4))
    assert drawn.min() >= 0.2 and drawn.max() <= 0.4 and abs(drawn.mean() - 0.3) < 0.01
    with pytest.raises(UserError, match="low < high"):
        cascade.draw_levels(keys(2), path=FLOW, low=0.5, high=0.5)


@pytest.mark.parametrize("sigma", [0.0, 0.6, 1.4])
def test_blur_is_scipys(sigma):
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 7, 9, 3)))
    got = cascade.blur(jnp.asarray(x), jnp.full((2,), sigma), kernel=5)
    want = ndimage.gaussian_filter(x.astype(np.float64), sigma, axes=(1, 2), mode="mirror", radius=2) if sigma else x
    np.testing.assert_allclose(got, want, atol=1e-5)
    with pytest.raises(UserError, match="odd"):
        cascade.blur(jnp.asarray(x), jnp.full((2,), sigma), kernel=4)


def test_upsampling_gives_the_network_both():
    low, level = jax.random.normal(jax.random.key(0), (2, 4, 4, 3)), jnp.array([0.1, 0.2])
    seen = {}

    def network(x, t, level):
        seen.update(shape=x.shape, level=level)
        return x[..., 3:]

    out = cascade.upsampling(network, low, level)(jnp.zeros((2, 8, 8, 3)), jnp.ones(2))
    assert seen["shape"] == (2, 8, 8, 6) and seen["level"] is level
    np.testing.assert_array_equal(out, cascade.resize(low, (8, 8)))


def test_one_gaussian_is_enough_for_the_helpers():
    """The mixture's module against a closed form: one component's denoiser is linear."""
    one = Mixture(np.array([1.0]), np.array([[0.5, -0.5]]), np.array([0.4]))
    x, t = jnp.array([[1.0, 2.0]]), jnp.array([0.3])
    out = exact(one, FLOW)(x, t)
    a, s, v = 0.7, 0.3, 0.49 * 0.16 + 0.09
    np.testing.assert_allclose(out.x0, one.means + a * 0.16 / v * (np.asarray(x) - a * one.means), rtol=1e-5)
    np.testing.assert_allclose(out.eps, s / v * (np.asarray(x) - a * one.means), rtol=1e-5)
