"""Every prediction on every path: there and back, by formula, against the reference's steps, and refused where it says nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.diffusion import path, prediction
from mmjax.diffusion.prediction import PREDICTIONS, denoised, denoiser, target

NAMES = ("discrete", "vp", "ve", "edm", "flow", "gvp")


def examples(n=6, seed=0):
    r = np.random.default_rng(seed)
    return 0.5 * r.standard_normal((n, 4, 3)), r.standard_normal((n, 4, 3))


@pytest.mark.parametrize(("name", "kind"), list(itertools.product(NAMES, PREDICTIONS)))
def test_there_and_back(name, kind):
    p = path.make({"name": name})
    t = p.clean + (p.noise - p.clean) * np.linspace(0.05, 0.95, 6)
    with jax.enable_x64(True):
        x0, eps = (jnp.asarray(x) for x in examples())
        x = p.mix(x0, eps, t)
        back = denoised(kind, target(kind, x0, eps, t, p), x, t, p)
        np.testing.assert_allclose(back.x0, x0, rtol=0, atol=1e-9)
        np.testing.assert_allclose(back.eps, eps, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("source", "to"), list(itertools.permutations(PREDICTIONS, 2)))
def test_any_into_any_other(source, to):
    """A network that errs says, read as another prediction, what a network of that prediction would say: both give one (x0, eps)."""
    p, t = path.vp(), np.linspace(0.2, 0.8, 6)
    with jax.enable_x64(True):
        x0, eps = (jnp.asarray(x) for x in examples())
        x, wrong = p.mix(x0, eps, t), jnp.asarray(examples(seed=1)[1])
        first = denoised(source, wrong, x, t, p)
        again = denoised(to, target(to, *first[:2], t, p), x, t, p)
        np.testing.assert_allclose(again.x0, first.x0, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(again.eps, first.eps, rtol=1e-9, atol=1e-9)
        assert abs(np.asarray(first.x0 - x0)).max() > 0.1
        np.testing.assert_allclose(p.mix(first.x0, first.eps, t), x, rtol=1e-9, atol=1e-9)


def test_targets_by_their_formulae():
    with jax.enable_x64(True):
        x0, eps = (jnp.asarray(x) for x in examples())
        t = np.linspace(0.1, 0.9, 6)
        wide = lambda a: np.asarray(a)[:, None, None]
        flow, vp, edm = path.flow(), path.vp(), path.edm()
        np.testing.assert_allclose(target("velocity", x0, eps, t, flow), eps - x0, rtol=1e-12)
        a, s = wide(vp.alpha(t)), wide(vp.sigma(t))
        np.testing.assert_allclose(target("v", x0, eps, t, vp), a * eps - s * x0, rtol=1e-12)
        np.testing.assert_allclose(target("score", x0, eps, t, vp), -(a * x0 + s * eps - a * x0) / s**2, rtol=1e-9)
        # the trigonometric path moves at a right angle to where it is: its velocity is v, but for the speed
        np.testing.assert_allclose(target("velocity", x0, eps, t, path.gvp()), np.pi / 2 * target("v", x0, eps, t, path.gvp()), rtol=1e-9)
        sigma, sd = wide(np.exp(np.linspace(-4, 3, 6))), 0.5
        skip, out = sd**2 / (sigma**2 + sd**2), sigma * sd / np.sqrt(sigma**2 + sd**2)
        got = target("edm", x0, eps, sigma[:, 0, 0], edm)
        np.testing.assert_allclose(got, (x0 - skip * (x0 + sigma * eps)) / out, rtol=1e-9, atol=1e-12)


def test_a_network_whose_time_runs_from_noise_to_data():
    """SiT's convention: x_s = s x0 + (1 - s) eps, and the network gives d x / d s at s = 1 - t."""
    p, t = path.flow(), jnp.linspace(0.1, 0.9, 6)
    x = jnp.asarray(examples()[0], jnp.float32)
    theirs = lambda x, s: jnp.sin(x) * s[:, None, None]
    ours = lambda x, t: -theirs(x, 1 - t)
    got = denoiser(theirs, p, "reverse_velocity", condition="one_minus_time")(x, t)
    want = denoiser(ours, p, "velocity")(x, t)
    np.testing.assert_array_equal(got.x0, want.x0)
    np.testing.assert_array_equal(got.eps, want.eps)
    np.testing.assert_allclose(got.x0 - x, t[:, None, None] * theirs(x, 1 - t), rtol=1e-4, atol=1e-6)


def test_edm_targets_and_inputs_have_unit_variance():
    """What the scalings are made for (Karras et al. 2022, appendix B.6), on every path."""
    r = np.random.default_rng(0)
    x0, eps = (jnp.asarray(s * r.standard_normal((3, 40000)), jnp.float32) for s in (0.7, 1.0))
    for name in NAMES:
        p = path.make({"name": name})
        t = jnp.asarray(p.clean + (p.noise - p.clean) * np.array([0.1, 0.5, 0.9]), jnp.float32)
        seen, _ = prediction.inputs(p.mix(x0, eps, t), t, p, "edm", sigma_data=0.7)
        for x in (seen, target("edm", x0, eps, t, p, 0.7)):
            np.testing.assert_allclose(np.asarray(x).std(1), 1, rtol=0.02, err_msg=name)


@pytest.mark.parametrize(("kind", "want"), [("eps", 1.6807101965), ("v", 0.9885517359)])
def test_one_ddim_step_equals_the_reference(kind, want):
    """diffusers' DDIMScheduler, linear betas, x = 1, a network that says 0.5, from 900 to 800."""
    p = path.discrete()
    with jax.enable_x64(True):
        d = denoised(kind, jnp.full((1, 1), 0.5), jnp.ones((1, 1)), 900.0, p)
        np.testing.assert_allclose(p.mix(d.x0, d.eps, 800.0), [[want]], rtol=1e-6)


def test_denoiser_is_karras_preconditioning():
    sd, sigma = 0.5, np.array([0.1, 1.0, 30.0], np.float32)
    x = jnp.asarray(examples(3)[1], jnp.float32) * sigma[:, None, None]
    network = lambda x, c: jnp.tanh(x) + c[:, None, None]
    got = denoiser(network, path.edm(), "edm")(x, jnp.asarray(sigma)).x0
    s = sigma[:, None, None].astype(np.float64)
    inner = np.tanh(np.asarray(x, np.float64) / np.sqrt(s**2 + sd**2)) + np.log(s) / 4
    want = sd**2 / (s**2 + sd**2) * np.asarray(x) + s * sd / np.sqrt(s**2 + sd**2) * inner
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_denoiser_scales_times():
    told = []
    network = lambda x, c: told.append(np.asarray(c)) or x
    denoiser(network, path.flow(), "velocity", time_scale=1000.0)(jnp.ones((2, 3)), jnp.array([0.25, 0.5]))
    denoiser(network, path.flow(), "velocity", condition="quarter_log_sigma")(jnp.ones((2, 3)), jnp.array([0.25, 0.5]))
    np.testing.assert_allclose(told[0], [250, 500])
    np.testing.assert_allclose(told[1], np.log([1 / 3, 1]) / 4, atol=1e-6)


@pytest.mark.parametrize(("native", "other"), list(itertools.permutations(NAMES, 2)))
def test_a_denoiser_serves_every_path(native, other):
    """The denoiser of a Gaussian is known on every path: x0 = m + alpha c^2 (x - alpha m) / (alpha^2 c^2 + sigma^2)."""
    m, c = 0.3, 0.6

    def exact(p):
        def denoise(x, t):
            a, s = (path.over(v, x) for v in (p.alpha(t), p.sigma(t)))
            x0 = m + a * c**2 * (x - a * m) / (a**2 * c**2 + s**2)
            return prediction.Denoised(x0, (x - a * x0) / s)

        return denoise

    with jax.enable_x64(True):
        p, q = path.make({"name": native}), path.make({"name": other})
        lam = np.array([1.5, 0.1, -2.0])  # levels that all of them reach
        x, t = jnp.asarray(examples(3)[1]), q.at_log_snr(lam)
        got, want = prediction.on_path(exact(p), p, q)(x, t), exact(q)(x, t)
        np.testing.assert_allclose(got.x0, want.x0, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(got.eps, want.eps, rtol=1e-6, atol=1e-8)


def test_a_denoiser_of_another_path_survives_the_noise_end():
    """alpha is 0 there on both, and the ratio of the two states' sizes is not 0 / 0."""
    p, q = path.flow(), path.gvp()
    denoise = prediction.on_path(denoiser(lambda x, c: x, p, "velocity"), p, q)
    assert bool(jnp.isfinite(denoise(jnp.ones((1, 2)), jnp.ones((1,))).x0).all())


def test_learned_variance_follows_the_walk():
    """The second half of the channels, read between the variances of the step that is really taken."""
    p, x = path.discrete(), jnp.ones((2, 5, 3))
    network = lambda x, c: jnp.concatenate([x, jnp.full_like(x, -1.0).at[1].set(1.0)], -1)
    walk = np.array([900.0, 600.0, 300.0, 0.0, -1.0])
    log_var = denoiser(network, p, "eps", variance="learned_range", times=walk)(x, jnp.array([600.0, 600.0])).log_variance
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    beta = 1 - bar[600] / bar[300]
    want = np.log([(1 - bar[300]) / (1 - bar[600]) * beta, beta])
    np.testing.assert_allclose(log_var[:, 0, 0], want, rtol=1e-5)
    assert denoiser(network, p, "eps")(x, jnp.array([600.0, 600.0])).log_variance is None
    direct = denoiser(network, p, "eps", variance="learned")(x, jnp.array([600.0, 600.0])).log_variance
    np.testing.assert_array_equal(direct[:, 0, 0], [-1, 1])


def test_following():
    times = np.array([900.0, 600.0, 300.0, 0.0, -1.0])
    np.testing.assert_array_equal(prediction.following(path.discrete(), jnp.array([900.0, 600.0, 300.0, 0.0]), times), times[1:])
    np.testing.assert_array_equal(prediction.following(path.discrete(), jnp.array([7.0, 0.0])), [6.0, -1.0])


ZERO_SNR = path.discrete(betas="scaled_linear", zero_terminal_snr=True)
BAD_ENDS = [
    ("eps", ZERO_SNR, 999.0),
    ("score", ZERO_SNR, 999.0),
    ("eps", path.flow(), 1.0),
    ("score", path.gvp(), 1.0),
    ("x0", path.flow(), 0.0),
    ("score", path.edm(), 0.0),
    ("edm", path.ve(), np.inf),
]
GOOD_ENDS = [(kind, ZERO_SNR, 999.0) for kind in ("v", "x0", "edm")] + [
    ("velocity", path.flow(), 1.0),
    ("v", path.gvp(), 1.0),
    ("eps", path.discrete(), 999.0),
    ("eps", path.vp(), 1.0),
    ("velocity", path.edm(), 80.0),
    ("edm", path.flow(), 1.0),
]


@pytest.mark.parametrize(("kind", "p", "t"), BAD_ENDS, ids=lambda x: getattr(x, "name", str(x)))
def test_refused_where_it_says_nothing(kind, p, t):
    with pytest.raises(UserError, match=f"prediction '{kind}' is undefined at time .* of the path '{p.name}'") as caught:
        prediction.check(kind, p, [t])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "p", "t"), GOOD_ENDS, ids=lambda x: getattr(x, "name", str(x)))
def test_accepted_where_it_says_something(kind, p, t):
    prediction.check(kind, p, [t, (p.noise + p.clean) / 2])
    x = jnp.ones((1, 3))
    d = denoised(kind, 0.5 * x, x, jnp.array([t]), p)
    assert bool(jnp.isfinite(d.x0).all() & jnp.isfinite(d.eps).all())


def test_names_are_refused_at_once():
    for kwargs, message in (
        ({"kind": "epsilon"}, "prediction of a denoiser is 'epsilon'"),
        ({"kind": "eps", "condition": "tiem"}, "condition of a denoiser is 'tiem'; did you mean 'time'?"),
        ({"kind": "eps", "variance": "fixed"}, "variance of a denoiser is 'fixed'"),
    ):
        with pytest.raises(UserError, match=message.replace("?", r"\?")):
            denoiser(lambda x, c: x, path.vp(), **kwargs)
    with pytest.raises(UserError, match="the network gives 3 channels, expected 6"):
        denoiser(lambda x, c: x, path.discrete(), "eps", variance="learned_range")(jnp.ones((1, 2, 3)), jnp.array([5.0]))
    with pytest.raises(UserError, match="prediction is 'z'"):
        target("z", jnp.ones((1, 3)), jnp.ones((1, 3)), jnp.ones((1,)), path.vp())
