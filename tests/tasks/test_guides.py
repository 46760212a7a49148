"""Guides of a diffusion model: a classifier of noisy pictures is trained by its formula; a sample is guided as the equations say."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax import tasks
from mmjax.core import config as config_lib
from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.diffusion import density, guidance, prediction, samplers, walk
from mmjax.diffusion import path as paths
from mmjax.tasks import diffusion, diffusion_sampling, guides

SIZE = 8
DIT = {"type": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2}
CLASSIFIER = {"channels": (8, 16), "blocks": 1, "head_width": 8, "groups": 4, "classes": 3, "scale_shift": False}
DISCRETE = {"name": "discrete", "betas": "cosine", "steps": 50}
DIRECTIONS = jax.random.normal(jax.random.key(8), (3, SIZE, SIZE, 1))


def logits(params, x, t):
    """Linear, and the more so the later."""
    return params * jnp.einsum("bhwc,khwc->bk", x, DIRECTIONS) * (1 + t[:, None] / 50)


@pytest.fixture
def others(monkeypatch):
    """Models by path, without files."""
    found = {}
    monkeypatch.setattr(guides, "_read", found.__getitem__)
    model = {"size": SIZE, "channels": 1, "classifier": {"classes": 3}, "time_scale": 2.0}
    found["judge"] = types.SimpleNamespace(predict={"classify": logits}, params=jnp.float32(0.3), config={"model": model})
    return found


def program(**model):
    c = config_lib.base()
    c.task, c.batch_size = "diffusion", 4
    c.model = ConfigDict({"size": SIZE, "channels": 1, "network": DIT, "path": DISCRETE, **model})
    system = diffusion.parse(c.model, jnp.float32)
    task = tasks.make(c)
    params = task.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    return system, task, params


def sampler(**more):
    return {"solver": "ddim", "steps": 3, **more}


def drawn(system, denoise, given, keys, **options):
    """What the definition gives."""
    chosen = diffusion_sampling.parse(given, system)
    path, walked = diffusion_sampling.solving_path(chosen, system), diffusion_sampling.walk_of(chosen, system)
    x = walk.draw(keys, system.shape, path.prior_std)
    return system.decode({}, samplers.sample(denoise, x, walked, keys, path=path, solver=chosen.solver, **options))


def slope(labels, scale, told=2.0):
    log_p = lambda x, t: jnp.take_along_axis(jax.nn.log_softmax(logits(0.3, x, told * t)), labels[:, None], 1)[:, 0]
    return lambda x, t: scale * jax.grad(lambda x: log_p(x, t).sum())(x)


LABELS, KEYS = jnp.array([0, 2, 1]), jax.vmap(jax.random.key)(jnp.arange(3))


def test_a_classifier_s_score_guides_an_unconditional_model(others):
    plain, _, params = program(sampler=sampler())
    _, task, _ = program(sampler=sampler(classifier={"path": "judge", "scale": 5.0}))
    got = task.predict["class_to_image"](params, LABELS, KEYS)
    denoise = guidance.classifier(plain.denoiser(params, {}), slope(LABELS, 5.0), plain.path)
    np.testing.assert_allclose(got, drawn(plain, denoise, sampler(), KEYS), atol=1e-5)
    unguided = drawn(plain, plain.denoiser(params, {}), sampler(), KEYS)
    gain = jnp.einsum("bhwc,bhwc->b", got - unguided, DIRECTIONS[LABELS])
    assert (gain > 0).all()  # towards the class asked for
    assert guides.classes("judge") == 3


def test_in_mean_form(others):
    plain, _, params = program(sampler=sampler(solver="ddpm"))
    _, task, _ = program(sampler=sampler(solver="ddpm", classifier={"path": "judge", "scale": 5.0, "form": "mean"}))
    want = drawn(plain, plain.denoiser(params, {}), sampler(solver="ddpm"), KEYS, gradient=slope(LABELS, 5.0))
    np.testing.assert_allclose(task.predict["class_to_image"](params, LABELS, KEYS), want, atol=1e-5)


def test_a_gradient_follows_the_chain_rule_to_another_path():
    native, path = paths.discrete(steps=50), paths.edm()
    x, t = jax.random.normal(jax.random.key(1), (2, 3)), jnp.array([0.7, 3.0])
    energy = lambda x, there: jnp.sin(x).sum(-1) * (1 + there)
    there = native.at_log_snr(path.log_snr(t))
    factor = (jnp.hypot(native.alpha(there), native.sigma(there)) / jnp.hypot(path.alpha(t), path.sigma(t)))[:, None]
    want = jax.grad(lambda x: energy(x * factor, there).sum())(x)
    gradient = lambda x, t: jax.grad(lambda x: energy(x, t).sum())(x)
    np.testing.assert_allclose(prediction.gradient_on_path(gradient, native, path)(x, t), want, rtol=1e-5)


def test_guided_on_another_path(others):
    """DDIM walks the same trajectory on every path, guided or not."""
    way = {"path": {"name": "edm"}, "spacing": "linspace"}
    _, task, params = program(sampler=sampler(classifier={"path": "judge", "scale": 5.0}, **way))
    plain, _, _ = program(sampler=sampler(**way))
    path = paths.edm()
    native = guidance.classifier(plain.denoiser(params, {}), slope(LABELS, 5.0), plain.path)
    want = drawn(plain, prediction.on_path(native, plain.path, path), sampler(**way), KEYS)
    np.testing.assert_allclose(task.predict["class_to_image"](params, LABELS, KEYS), want, atol=1e-4)


def test_away_from_a_weaker_model(others):
    labelled = {"labels": True, "network": {**DIT, "classes": 3, "label_dropout": 0.0}}
    plain, _, params = program(**labelled, sampler=sampler())
    _, _, poor = program(**labelled, sampler=sampler())
    poor = jax.tree.map(lambda x: 0.9 * x, poor)
    network = lambda p, x, t, **given: plain.network.apply({"params": p}, x, t, **given)
    model = {"path": DISCRETE, "prediction": "eps"}
    others["poor"] = types.SimpleNamespace(predict={"network": network}, params=poor["network"], config={"model": model})
    _, task, _ = program(**labelled, sampler=sampler(guidance=2.0, rescale=0.5, weaker={"path": "poor"}))
    given = {"labels": LABELS}
    denoise = guidance.autoguidance(plain.denoiser(params, given), plain.denoiser(poor, given), 2.0, path=plain.path, rescale=0.5)
    np.testing.assert_allclose(task.predict["class_to_image"](params, LABELS, KEYS), drawn(plain, denoise, sampler(), KEYS), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classifier": {}}, "sampler.classifier has no key 'path'"),
        ({"classifier": {"path": "judge", "form": "means"}}, "form is 'means'; did you mean 'mean'"),
        ({"classifier": {"path": "judge", "form": "mean"}}, "'ddpm'; the solver is 'ddim': take 'score'"),
        ({"weaker": {"paths": "judge"}}, "has no key 'path'"),
    ],
)
def test_refused_when_configured(given, message):
    with pytest.raises(UserError, match=message):
        program(sampler=sampler(**given))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predict": {}}, "is no classifier of noisy pictures"),
        ({"config": {"model": {"size": 16, "channels": 1}}}, "judges pictures of .16, 16, 1., and what is drawn has .8, 8, 1."),
        ({"config": {"model": {"size": 8, "channels": 1, "path": {**DISCRETE, "betas": "linear"}}}}, "'judge' was trained on path"),
    ],
)
def test_refused_when_drawn(others, change, message):
    vars(others["judge"]).update(change)
    _, task, params = program(sampler=sampler(classifier={"path": "judge"}))
    with pytest.raises(UserError, match=message):
        task.predict["class_to_image"](params, LABELS, KEYS)


@pytest.mark.parametrize("path", [{"name": "flow"}, {**DISCRETE, "betas": "linear"}], ids=["flow", "linear"])
def test_a_weaker_model_of_another_path_is_refused(others, path):
    others["other"] = types.SimpleNamespace(predict={"network": None}, params={}, config={"model": {"path": path}})
    _, task, params = program(sampler=sampler(guidance=2.0, weaker={"path": "other"}))
    with pytest.raises(UserError, match="was trained on path"):
        task.predict["sample"](params, KEYS)


def test_the_noisy_classifier_s_loss_is_the_formula():
    c = config_lib.base()
    c.task, c.batch_size = "noisy_classification", 4
    c.model = ConfigDict({"size": SIZE, "channels": 1, "classifier": CLASSIFIER, "path": DISCRETE, "time_scale": 2.0, "smoothing": 0.1})
    task = tasks.make(c)
    params = task.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    images, labels = jax.random.normal(jax.random.key(1), (4, SIZE, SIZE, 1)), jnp.array([0, 1, 2, 1])
    key, index = jax.random.key(3), jnp.arange(4)
    value, aux = task.loss(params, {"image": images, "label": labels, "_index": index}, key, jnp.int32(0))
    path = paths.make(DISCRETE)
    named = lambda name: jax.vmap(lambda k: rng.named(k, name))(rng.per_example(key, index))
    t = density.make({"name": "uniform"}, path).draw(named("time"))
    eps = jax.vmap(lambda k: jax.random.normal(k, (SIZE, SIZE, 1)))(named("noise"))
    shaped = lambda f: f(t)[:, None, None, None]
    log_p = jax.nn.log_softmax(task.predict["classify"](params, shaped(path.alpha) * images + shaped(path.sigma) * eps, t))
    want = -(0.9 * log_p[jnp.arange(4), labels] + 0.1 * log_p.mean(1)).mean()
    np.testing.assert_allclose(value, want, rtol=1e-5)
    clean = task.predict["classify"](params, images, jnp.zeros(4))  # the least of the times that it was trained at
    np.testing.assert_array_equal(task.predict["logits"](params, images), clean)
    assert set(aux["metrics"]) == {"accuracy"} and task.limits == {"label": 3}
