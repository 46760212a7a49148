"""Guidance against densities that are known, and its parts by their formulae."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.diffusion import guidance, walk
from mmjax.diffusion import path as paths
from mmjax.diffusion.prediction import Denoised
from mmjax.diffusion.samplers import sample
from mmjax.diffusion.spacing import times
from tests.diffusion.gaussian_mixture import MIXTURE, Mixture, exact, parts, sliced_wasserstein

pytestmark = pytest.mark.slow  # minutes of compilation in all

FLOW, VP, DDPM = paths.flow(), paths.vp(), paths.discrete()
N = 4096
# One Gaussian each in one dimension: under guidance the ODE stays linear, so samples are Gaussian with a mean and width that follow from
# two ordinary differential equations.
CONDITIONAL = Mixture(np.array([1.0]), np.array([[0.7]]), np.array([0.5]))
UNCONDITIONAL = Mixture(np.array([1.0]), np.array([[-0.2]]), np.array([0.9]))


def guided_moments(path, scale, begin, end, interval=None):
    """Mean and standard deviation at `end` of what starts as N(0, 1) at `begin`, in float64 and by another integrator."""
    with jax.enable_x64(True):

        def slope(t, y):
            alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
            d_alpha, d_sigma = (float(r) for r in path.rates(t))
            s = scale if interval is None or interval[0] < sigma / alpha <= interval[1] else 1.0
            gain, shift = 0.0, 0.0
            for weight, m in ((s, CONDITIONAL), (1 - s, UNCONDITIONAL)):
                v, mean = alpha**2 * m.stds[0] ** 2 + sigma**2, m.means[0, 0]
                a = (d_alpha * alpha * m.stds[0] ** 2 + d_sigma * sigma) / v  # velocity = a (x - alpha mean) + d_alpha mean
                gain, shift = gain + weight * a, shift + weight * (d_alpha - a * alpha) * mean
            return [gain * y[0] + shift, gain * y[1]]

        edges = [begin, end]
        if interval is not None:
            edges = sorted({begin, end, *(float(path.at_log_snr(-np.log(e))) for e in interval if e > 0)}, reverse=True)
        y = [0.0, 1.0]
        for a, b in itertools.pairwise(edges):
            y = solve_ivp(slope, (a, b), y, rtol=1e-9, atol=1e-11).y[:, -1]
    return y


@pytest.mark.parametrize("path", [FLOW, VP], ids=lambda p: p.name)
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guided_samples_follow_the_guided_density(path, scale):
    """Also a check of the convention: 0 is the unconditional model, 1 the conditional one."""
    begin, end = path.noise - 1e-3, path.clean + 1e-3
    x = jax.random.normal(jax.random.key(0), (N, 1))
    x = (x - x.mean()) / x.std()
    denoise = guidance.classifier_free(guidance.apart(exact(CONDITIONAL, path), exact(UNCONDITIONAL, path)), scale)
    got = sample(denoise, x, np.linspace(begin, end, 65), None, path=path, solver="rk4")
    mean, std = guided_moments(path, scale, begin, end)
    np.testing.assert_allclose([got.mean(), got.std()], [mean, std], atol=2e-3)
    if scale in (0.0, 1.0):
        m = CONDITIONAL if scale else UNCONDITIONAL
        np.testing.assert_allclose([mean, std], [m.means[0, 0], m.stds[0]], atol=0.02)
    # the other convention, w = s - 1, or the two parts exchanged, is far off
    wrong = guided_moments(path, scale + 1, begin, end), guided_moments(path, 1 - scale, begin, end)
    assert min(np.abs(np.subtract(w, (mean, std))).max() for w in wrong) > 0.05


def test_interval_guides_only_inside():
    """Against the ODE whose scale is s for 0.3 < sigma / alpha <= 2 and 1 elsewhere; and looks outside cost one evaluation."""
    interval, begin, end = (0.3, 2.0), 0.999, 1e-3
    looks = []

    def counted(m, name):
        def denoise(x, t):
            jax.debug.callback(lambda t: looks.append((name, float(t[0]))), t)
            return exact(m, FLOW)(x, t)

        return denoise

    alone, other = counted(CONDITIONAL, "c"), counted(UNCONDITIONAL, "u")
    denoise = guidance.classifier_free(guidance.apart(alone, other), 2.5, path=FLOW, interval=interval, alone=alone)
    x = jax.random.normal(jax.random.key(0), (512, 1))
    x = (x - x.mean()) / x.std()
    got = sample(denoise, x, np.linspace(begin, end, 257), None, path=FLOW, solver="midpoint")
    jax.block_until_ready(got)
    jax.effects_barrier()
    np.testing.assert_allclose([got.mean(), got.std()], guided_moments(FLOW, 2.5, begin, end, interval), atol=0.01)
    inside = [t for name, t in looks if name == "u"]
    assert len([1 for name, _ in looks if name == "c"]) == 512
    assert min(inside) > 0.3 / 1.3 - 1e-6 and max(inside) <= 2 / 3 + 1e-6  # t = sigma / alpha / (1 + sigma / alpha)


def log_class(path, k):
    """log p(component k | x_t), exact."""

    def log_probability(x, t):
        logs = parts(MIXTURE, x, path.alpha(t), path.sigma(t))[0]
        return jax.nn.log_softmax(logs, axis=1)[:, k]

    return log_probability


@pytest.mark.parametrize("form", ["score", "mean"])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_exact_classifier_gives_the_conditional_density(form, sign):
    """At scale 1 the guided score is that of the class; with the sign wrong samples flee from it."""
    k, path = 2, DDPM
    gradient = guidance.log_probability_gradient(log_class(path, k), float(sign))
    keys = rng.per_example(jax.random.key(1), jnp.arange(N))
    x = walk.draw(keys, (2,))
    if form == "score":
        denoise = guidance.classifier(exact(MIXTURE, path), gradient, path)
        got = sample(denoise, x, times(path, 200), keys, path=path, solver="dpmpp_2m")
    else:
        got = sample(exact(MIXTURE, path), x, times(path, 1000), keys, path=path, solver="ddpm", gradient=gradient)
    gen = np.random.default_rng(0)
    component = lambda: MIXTURE.means[k] + MIXTURE.stds[k] * gen.standard_normal((N, 2))
    ratio = sliced_wasserstein(got, component()) / np.mean([sliced_wasserstein(component(), component()) for _ in range(6)])
    assert (ratio < 3) == (sign == 1), ratio


def random_pair(seed=0, shape=(3, 4, 4, 2), path=VP):
    a, b, c, d, e = jax.random.normal(jax.random.key(seed), (5, *shape))
    t = jnp.array([0.2, 0.5, 0.9])[: shape[0]]
    x = path.mix(a, b, t)
    second = guidance.with_x0(Denoised(c, c), d, x, t, path)
    return x, t, Denoised(a, b, e), second


def fixed(out):
    return lambda x, t: out


def test_scale_is_one_plus_w():
    x, t, c, u = random_pair()
    got = guidance.classifier_free(guidance.apart(fixed(c), fixed(u)), 3.0)(x, t)
    w = 2.0
    np.testing.assert_allclose(got.eps, (1 + w) * c.eps - w * u.eps, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(VP.mix(got.x0, got.eps, t), x, atol=1e-4)  # still consistent
    np.testing.assert_array_equal(got.log_variance, c.log_variance)
    each = guidance.classifier_free(guidance.apart(fixed(c), fixed(u)), jnp.array([0.0, 1.0, 3.0]))(x, t)
    for i, want in enumerate((u, c, got)):
        np.testing.assert_allclose(each.x0[i], want.x0[i], rtol=1e-5, atol=1e-5)


def test_stacked_is_two_looks_in_one():
    x, t, c, u = random_pair()
    both = lambda x, t: Denoised(jnp.concatenate([c.x0, u.x0]), jnp.concatenate([c.eps, u.eps]), jnp.concatenate([c.log_variance] * 2))
    a = guidance.classifier_free(guidance.stacked(both), 2.0)(x, t)
    b = guidance.classifier_free(guidance.apart(fixed(c), fixed(u)), 2.0)(x, t)
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


def test_autoguidance_moves_away_from_the_weaker_model():
    x, t, c, u = random_pair()
    got = guidance.autoguidance(fixed(c), fixed(u), 1.7)(x, t)
    np.testing.assert_allclose(got.x0, u.x0 + 1.7 * (c.x0 - u.x0), rtol=1e-5, atol=1e-5)
    outside = guidance.autoguidance(fixed(c), fixed(u), 1.7, path=VP, interval=(1e5, 1e6))(x, t)
    np.testing.assert_array_equal(outside.x0, c.x0)


def test_independent_and_nested_conditions():
    x, t, a, b = random_pair(0)
    u = random_pair(1)[2]
    got = guidance.independent(fixed(u), [fixed(a), fixed(b)], [2.0, 0.5])(x, t)
    np.testing.assert_allclose(got.eps, u.eps + 2 * (a.eps - u.eps) + 0.5 * (b.eps - u.eps), rtol=1e-5, atol=1e-5)
    got = guidance.nested([fixed(u), fixed(a), fixed(b)], [1.5, 7.5])(x, t)
    np.testing.assert_allclose(got.eps, u.eps + 1.5 * (a.eps - u.eps) + 7.5 * (b.eps - a.eps), rtol=1e-5, atol=1e-4)
    with pytest.raises(UserError, match="expected 2"):
        guidance.nested([fixed(u), fixed(a), fixed(b)], [1.0])


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_rescale_brings_back_the_standard_deviation(kind):
    from mmjax.diffusion.prediction import target

    x, t, c, u = random_pair()
    pair = guidance.apart(fixed(c), fixed(u))
    of = lambda out: np.asarray(target(kind, out.x0, out.eps, t, VP), np.float64)
    plain, whole, part = (of(guidance.classifier_free(pair, 4.0, path=VP, rescale=r, rescale_kind=kind)(x, t)) for r in (0.0, 1.0, 0.7))
    std = lambda a: a.std((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(std(whole), std(of(c)), rtol=1e-4)
    np.testing.assert_allclose(part, plain * (0.7 * std(of(c)) / std(plain) + 0.3), rtol=1e-3, atol=1e-4)


def test_dits_three_channels():
    x, t, c, u = random_pair(shape=(3, 2, 2, 4))
    got = guidance.classifier_free(guidance.apart(fixed(c), fixed(u)), 4.0, channels=3)(x, t)
    np.testing.assert_allclose(got.eps[..., :3], (u.eps + 4 * (c.eps - u.eps))[..., :3], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got.eps[..., 3], c.eps[..., 3])


def test_thresholds():
    x, t, c, _ = random_pair()
    wide = c._replace(x0=3 * c.x0)
    clipped = guidance.clip(fixed(wide), VP)(x, t)
    np.testing.assert_allclose(clipped.x0, np.clip(wide.x0, -1, 1), rtol=1e-6)
    np.testing.assert_allclose(VP.mix(clipped.x0, clipped.eps, t), x, atol=1e-5)
    np.testing.assert_array_equal(guidance.clip(fixed(wide), VP, rederive=False)(x, t).eps, wide.eps)
    held = guidance.dynamic_threshold(fixed(wide), VP, quantile=0.9)(x, t)
    for i in range(3):
        q = max(np.quantile(np.abs(np.asarray(wide.x0[i], np.float64)), 0.9), 1.0)
        np.testing.assert_allclose(held.x0[i], np.clip(wide.x0[i], -q, q) / q, rtol=1e-5, atol=1e-6)
    small = c._replace(x0=0.1 * c.x0)
    np.testing.assert_allclose(guidance.dynamic_threshold(fixed(small), VP)(x, t).x0, small.x0, rtol=1e-6)  # never stretched
    at_end = guidance.clip(fixed(c), VP)(x, jnp.zeros(3))  # no noise: eps cannot be made again
    assert np.isfinite(at_end.eps).all()


def test_a_classifier_adds_nothing_where_there_is_no_signal():
    x, _, c, _ = random_pair(path=FLOW)
    got = guidance.classifier(fixed(c), lambda x, t: jnp.ones_like(x), FLOW)(x, jnp.array([1.0, 0.5, 0.5]))
    np.testing.assert_array_equal(got.x0[0], c.x0[0])
    np.testing.assert_allclose(got.x0[1], c.x0[1] + 0.5, rtol=1e-5)  # sigma^2 / alpha
    np.testing.assert_allclose(got.eps[1], c.eps[1] - 0.5, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": (0.0, 1.0)}, "needs the path"),
        ({"interval": (2.0, 1.0), "path": VP}, "low < high"),
        ({"rescale": 1.5, "path": VP}, "from 0 to 1"),
    ],
    ids=["no path", "interval", "rescale"],
)
def test_refused(options, message):
    with pytest.raises(UserError, match=message):
        guidance.classifier_free(guidance.apart(fixed(None), fixed(None)), 2.0, **options)
