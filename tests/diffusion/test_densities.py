"""Densities of training times against closed-form distributions; shifts; importance sampling's state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.diffusion import density, path

N = 20000
KEYS = rng.per_example(jax.random.key(3), jnp.arange(N))
FLOW = path.flow()


def named(x):
    """A test's name: no addresses of functions, which differ from worker to worker."""
    return getattr(x, "name", None) or ("cdf" if callable(x) else str(x)[:40])


def cosmap_cdf(t):
    """The integral of 2 / (pi - 2 pi t + 2 pi t^2)."""
    return 0.5 + 2 / np.pi * np.arctan(2 * t - 1)


def mode_cdf(scale):
    u = np.linspace(0, 1, 200001)
    t = 1 - u - scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
    return lambda x: np.interp(x, t[::-1], 1 - u[::-1])


CLOSED = [
    ({"name": "uniform"}, FLOW, stats.uniform.cdf),
    ({"name": "uniform", "low": 0.001}, path.vp(), stats.uniform(0.001, 0.999).cdf),
    ({"name": "logit_normal", "mean": -0.5, "std": 0.7}, FLOW, lambda t: stats.norm.cdf((np.log(t / (1 - t)) + 0.5) / 0.7)),
    ({"name": "mode", "scale": 1.29}, FLOW, mode_cdf(1.29)),
    ({"name": "mode", "scale": -0.8}, FLOW, mode_cdf(-0.8)),
    ({"name": "cosmap"}, FLOW, cosmap_cdf),
    ({"name": "log_normal"}, path.edm(), lambda s: stats.norm.cdf((np.log(s) + 1.2) / 1.2)),
    ({"name": "log_normal", "mean": -0.4, "std": 1.0}, FLOW, lambda t: stats.norm.cdf(np.log(t / (1 - t)) + 0.4)),
    ({"name": "logit_normal", "shift": 3.0}, FLOW, lambda t: stats.norm.cdf(np.log(t / (1 - t)) - np.log(3))),
]


@pytest.mark.parametrize(("group", "p", "cdf"), CLOSED, ids=named)
def test_draws_follow_the_closed_form(group, p, cdf):
    """Kolmogorov's distance of 20000 draws: above 1.95 / sqrt(n) once in a thousand; the key is fixed."""
    t = np.asarray(density.make(group, p).draw(KEYS), np.float64)
    assert stats.kstest(t, cdf).statistic < 1.95 / np.sqrt(N)
    assert t.min() >= p.clean and t.max() <= p.noise


def test_uniform_of_a_discrete_path_draws_every_step():
    t = np.asarray(density.make({"name": "uniform"}, path.discrete(betas="cosine", steps=20)).draw(KEYS))
    counts = np.bincount(t.astype(int), minlength=20)
    assert (t == np.round(t)).all() and len(counts) == 20
    assert stats.chisquare(counts).pvalue > 1e-3


def test_other_densities_of_a_discrete_path_draw_whole_steps():
    p = path.discrete()
    for group in ({"name": "logit_normal"}, {"name": "log_normal"}, {"name": "uniform", "shift": 3.0}):
        t = np.asarray(density.make(group, p).draw(KEYS[:2000]))
        assert (t == np.round(t)).all() and t.min() >= 0 and t.max() <= 999, group
    sigma = np.exp(-p.log_snr(density.make({"name": "log_normal"}, p).draw(KEYS)))
    np.testing.assert_allclose(np.median(np.log(sigma)), -1.2, atol=0.05)


def test_a_time_is_its_examples_alone():
    draw = density.make({"name": "logit_normal"}, FLOW).draw
    np.testing.assert_array_equal(draw(KEYS[:8]), draw(KEYS[:64])[:8])
    assert len(np.unique(np.asarray(draw(KEYS[:64])))) == 64


def test_densities_as_weights_integrate_to_one():
    t = np.linspace(0, 1, 100001)[1:-1]
    with jax.enable_x64(True):
        cosmap, logit_normal = density.cosmap_pdf(jnp.asarray(t)), density.logit_normal_pdf(jnp.asarray(t), 0.3, 0.8)
        for pdf in (cosmap, logit_normal):
            np.testing.assert_allclose(np.trapezoid(pdf, t), 1, atol=1e-4)
        np.testing.assert_allclose(cosmap, np.gradient(cosmap_cdf(t), t), rtol=1e-3)


def test_shift():
    t = jnp.array([0.0, 0.2, 0.5, 1.0])
    np.testing.assert_allclose(density.shifted(FLOW, t, 3.0), [0, 0.6 / 1.4, 0.75, 1], rtol=1e-6)
    p = path.vp()
    inner = jnp.array([0.2, 0.5])
    np.testing.assert_allclose(p.log_snr(inner) - p.log_snr(density.shifted(p, inner, 3.0)), np.log(3), rtol=1e-4)
    assert density.shift_of_size(1024**2, 256**2) == 4.0
    np.testing.assert_allclose([density.dynamic_shift(256), density.dynamic_shift(4096)], np.exp([0.5, 1.15]), rtol=1e-12)


# --- importance sampling -----------------------------------------------------------------------------------------------------


def by_hand(steps, history, batches):
    """The published sampler's bookkeeping, one example at a time."""
    losses, counts = [[] for _ in range(steps)], np.zeros(steps, int)
    for t, values in batches:
        for i, v in zip(t, values, strict=True):
            losses[i] = [*losses[i], v][-history:]
            counts[i] += 1
    return losses, counts


def test_moments_equal_one_by_one():
    r = np.random.default_rng(0)
    state, batches = density.no_moments(5, 4), []
    for size in (7, 64, 3, 30):  # more of one time in a batch than the history holds, too
        batches.append((r.integers(0, 5, size), r.random(size).astype(np.float32)))
        state = jax.jit(density.observe)(state, jnp.asarray(batches[-1][0], jnp.float32), jnp.asarray(batches[-1][1]))
    losses, counts = by_hand(5, 4, batches)
    np.testing.assert_array_equal(state.count, counts)
    for kept, want in zip(np.asarray(state.losses), losses, strict=True):
        np.testing.assert_array_equal(np.sort(kept), np.sort(np.float32(want)))
    root = np.array([np.sqrt(np.mean(np.square(w))) for w in losses])
    np.testing.assert_allclose(density.probabilities(state), root / root.sum() * 0.999 + 0.001 / 5, rtol=1e-5)


def test_uniform_until_every_step_was_seen_often_enough():
    state = density.no_moments(3, 2)
    state = density.observe(state, jnp.array([0.0, 0.0, 1.0, 1.0, 2.0]), jnp.array([1.0, 1.0, 9.0, 9.0, 1.0]))
    np.testing.assert_allclose(density.probabilities(state), 1 / 3, rtol=1e-6)
    state = density.observe(state, jnp.array([2.0]), jnp.array([1.0]))
    np.testing.assert_allclose(density.probabilities(state, uniform=0.0), np.array([1, 9, 1]) / 11, rtol=1e-6)


def test_importance_weights_undo_the_density():
    """The weighted mean of any function of t is its mean over uniform t, and steps of large loss come up in proportion."""
    state = density.observe(density.no_moments(4, 1), jnp.arange(4.0), jnp.array([1.0, 2.0, 3.0, 4.0]))
    t, weight = density.draw_by_importance(KEYS, state, uniform=0.0)
    np.testing.assert_allclose(np.bincount(np.asarray(t, int)) / N, np.arange(1, 5) / 10, atol=0.012)
    np.testing.assert_allclose(weight, 2.5 / (np.asarray(t) + 1), rtol=1e-5)
    np.testing.assert_allclose(np.mean(np.asarray(weight) * np.asarray(t) ** 2), (0 + 1 + 4 + 9) / 4, rtol=0.02)
    np.testing.assert_array_equal(density.draw_by_importance(KEYS[:9], state, uniform=0.0).t, t[:9])


REFUSED = [
    ({"name": "logitnormal"}, FLOW, "density of times is 'logitnormal'; did you mean 'logit_normal'?"),
    ({"name": "logit_normal", "sdt": 1.0}, FLOW, "unknown key 'sdt'; did you mean 'std'?"),
    ({"name": "logit_normal", "std": 0.0}, FLOW, "std is 0.0"),
    ({"name": "mode", "scale": 2.0}, FLOW, "expected -1 to 1.7519"),
    ({"name": "uniform", "low": 0.5, "high": 0.2}, FLOW, "density 'uniform' from 0.5 to 0.2"),
    ({"name": "uniform", "low": 5.0}, path.discrete(), "takes no low and high"),
    ({"name": "uniform", "shift": -1.0}, FLOW, "shift is -1.0"),
]


@pytest.mark.parametrize(("group", "p", "message"), REFUSED, ids=named)
def test_refused(group, p, message):
    with pytest.raises(UserError) as caught:
        density.make(group, p)
    assert message in str(caught.value) and "\n" not in str(caught.value)
