"""The diffusion task: loss by formula, guidance by definition, noise of each example its own, and what does not fit refused."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax import tasks
from mmjax.core import config as config_lib
from mmjax.core import rng, tree
from mmjax.core.errors import UserError
from mmjax.diffusion import density
from mmjax.diffusion import path as paths
from mmjax.diffusion.walk import draw
from mmjax.tasks import diffusion, weights

pytestmark = pytest.mark.slow  # minutes of compilation in all

BATCH, SIZE, LENGTH = 4, 8, 5
DIT = {"type": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2}
FLOW = {"path": {"name": "flow"}, "prediction": "velocity", "time_scale": 1000.0}
EULER = {"solver": "euler", "steps": 1}
TEXT = {"vocab": 20, "length": LENGTH, "width": 12, "depth": 1, "heads": 2, "mlp": 24}
DISCRETE = {"path": {"name": "discrete", "steps": 50}}


def task_of(**model):
    c = config_lib.base()
    c.task, c.batch_size = "diffusion", BATCH
    c.model = ConfigDict({"size": SIZE, "channels": 1, "network": DIT, **model})
    return tasks.make(c)


def moved(params, key=7):
    """Parameters of which none is 0, so that every input has a say."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    shake = lambda k, x: x + 0.1 * jax.random.normal(k, x.shape) if jnp.issubdtype(x.dtype, jnp.floating) else x
    return treedef.unflatten([shake(k, x) for k, x in zip(keys, leaves, strict=True)])


def batch_of(task, start=0, count=BATCH):
    out = {"_index": jnp.arange(start, start + count, dtype=jnp.int32)}
    for name, spec in task.batch_spec.items():
        key = jax.random.key(len(name))
        whole = (8, *spec.shape[1:])
        value = jax.random.randint(key, whole, 0, 3) if spec.dtype == jnp.int32 else jnp.clip(jax.random.normal(key, whole), -1, 1)
        out[name] = value[start : start + count]
    return out


def keys_of(count, start=0):
    return rng.per_example(jax.random.key(3), jnp.arange(start, start + count))


def loss_of(task, params, batch):
    return jax.jit(task.loss)(params, batch, jax.random.key(5), jnp.int32(0))


def test_loss_is_the_formula():
    """Rectified flow by hand: x_t = (1 - t) x0 + t eps, the network told 1000 t, its error against eps - x0."""
    task = task_of(**FLOW, density={"name": "uniform"})
    params, batch = moved(task.init(jax.random.key(0))), batch_of(task)
    keys = rng.per_example(jax.random.key(5), batch["_index"])
    own = lambda name: jax.vmap(lambda k: rng.named(k, name))(keys)
    t = density.make({"name": "uniform"}, paths.flow()).draw(own("time"))
    eps = jax.vmap(lambda k: jax.random.normal(k, (SIZE, SIZE, 1)))(own("noise"))
    x0, u = batch["image"], t[:, None, None, None]
    v = jax.jit(task.predict["network"])(params, (1 - u) * x0 + u * eps, 1000 * t)
    value, aux = loss_of(task, params, batch)
    np.testing.assert_allclose(value, jnp.mean((v - (eps - x0)) ** 2), rtol=1e-5)
    assert aux["state"] == {}


@pytest.mark.parametrize(
    "model",
    [
        {**FLOW, "network": {**DIT, "context": True}, "text": TEXT, "context_dropout": 0.5},
        {**FLOW, "network": {**DIT, "classes": 3, "label_dropout": 0.5}, "labels": True},
        {**DISCRETE, "network": {**DIT, "learn_sigma": True}, "variance": "learned_range", "loss": "hybrid"},
    ],
    ids=["text", "labels", "hybrid"],
)
def test_an_examples_noise_is_its_own(model):
    """The mean over a batch is that over its halves: time, noise, dropout of an example follow from its index alone."""
    task = task_of(**model)
    params = moved(task.init(jax.random.key(0)))
    whole, _ = loss_of(task, params, batch_of(task))
    halves = [loss_of(task, params, batch_of(task, start, 2))[0] for start in (0, 2)]
    np.testing.assert_allclose(whole, np.mean(halves), rtol=1e-5)
    assert abs(halves[0] - halves[1]) > 1e-4


def test_guidance_is_the_definition():
    """One Euler step from noise: x0 = x - v, v the unconditional one and s times the way to the conditional one."""
    model = {**FLOW, "network": {**DIT, "classes": 3, "label_dropout": 0.1}, "labels": True}
    labels, keys = jnp.array([0, 1, 2]), keys_of(3)
    plain, guided = (task_of(**model, sampler={**EULER, "guidance": g}) for g in (1.0, 2.5))
    params = moved(plain.init(jax.random.key(0)))
    x, t = draw(keys, (SIZE, SIZE, 1)), jnp.full(3, 1000.0)
    network = plain.predict["network"]
    conditional, null = (network(params, x, t, labels=k) for k in (labels, jnp.full(3, 3)))
    assert float(jnp.abs(conditional - null).max()) > 1e-3
    picture = lambda v: jnp.clip((x - v) / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(plain.predict["class_to_image"](params, labels, keys), picture(conditional), atol=1e-5)
    want = picture(null + 2.5 * (conditional - null))
    np.testing.assert_allclose(guided.predict["class_to_image"](params, labels, keys), want, atol=1e-5)


def test_a_picture_follows_from_its_key_and_words():
    model = {**FLOW, "network": {**DIT, "context": True}, "text": TEXT}
    task = task_of(**model, sampler={"solver": "heun", "steps": 3, "guidance": 2.0})
    params = moved(task.init(jax.random.key(0)))
    tokens = jax.random.randint(jax.random.key(1), (4, LENGTH), 1, 20)
    together = task.predict["text_to_image"](params, tokens, keys_of(4))
    alone = task.predict["text_to_image"](params, tokens[2:3], keys_of(1, 2))
    assert together.shape == (4, SIZE, SIZE, 3)
    np.testing.assert_allclose(together[2:3], alone, atol=2e-5)
    assert float(jnp.abs(together[0] - together[1]).max()) > 1e-2
    way = task.predict["text_to_image"](params, tokens, keys_of(4), trajectory=True)
    assert way.shape == (4, 4, SIZE, SIZE, 3)
    np.testing.assert_allclose(way[-1], together, atol=2e-5)


def test_a_text_s_own_feature_is_the_network_s_vector():
    """Only the token that ends a text makes its feature: with words that nobody looks at, it alone tells two texts apart."""
    unet = {"type": "unet", "channels": (8,), "groups": 4, "in_channels": 1, "out_channels": 1, "kind": "cross", "vector": 12}
    unet |= {"attention": (0,), "mid_attention": 0, "blocks": 1}
    system = diffusion.parse(ConfigDict({"size": SIZE, "channels": 1, "network": unet, "text": TEXT, **FLOW}), jnp.float32)
    params = moved(task_of(network=unet, text=TEXT, **FLOW).init(jax.random.key(0)))
    tokens = jnp.array([[1, 2, 19, 0, 0], [1, 3, 19, 0, 0], [1, 2, 19, 4, 4]])
    told = jax.jit(lambda tokens: system.conditions(params, {"tokens": tokens}))(tokens)
    np.testing.assert_array_equal(told["vector"], told["context"][:, 2])
    seen = jax.jit(lambda tokens: system.apply(params, jnp.ones((3, SIZE, SIZE, 1)), jnp.full(3, 500.0), {"tokens": tokens}))(tokens)
    assert float(jnp.abs(seen[0] - seen[1]).max()) > 1e-3
    np.testing.assert_allclose(seen[0], seen[2], atol=1e-5)  # what stands behind the end reaches nothing


def test_the_text_tower_of_a_clip_begins_a_run(monkeypatch):
    model = {**FLOW, "network": {**DIT, "context": True}, "text": TEXT}
    like = jax.eval_shape(task_of(**model).init, jax.random.key(0))["text"]
    held = {"image": {}, "text": jax.tree.map(lambda x: np.full(x.shape, 3.0, np.float32), like)}
    monkeypatch.setattr(weights, "from_pretrained", lambda path: SimpleNamespace(params={"CLIP": held, "LM": {"lm": {}}}[path]))
    given = task_of(**model, weights={"text": "CLIP"}).weights()
    assert set(given) == {"text"} and jax.tree.structure(given["text"]) == jax.tree.structure(like)
    assert task_of(**model, weights={"text": ""}).weights is None
    with pytest.raises(UserError, match="'LM' has no 'text', it has lm"):
        task_of(**model, weights={"text": "LM"}).weights()


def test_another_path_is_solved_on():
    """A velocity network of the flow, solved as a variance-preserving process: the same distribution, so with one fixed network and
    many steps nearly the same picture (deterministic ODEs of two paths join the same points)."""
    fine = {"solver": "heun", "steps": 40, "spacing": "log_snr", "times": {"sigma_min": 0.002, "sigma_max": 60.0}}
    own = task_of(**FLOW, sampler=fine)
    other = task_of(**FLOW, sampler={**fine, "path": {"name": "vp"}})
    params, keys = moved(own.init(jax.random.key(0))), keys_of(2)
    np.testing.assert_allclose(own.predict["sample"](params, keys), other.predict["sample"](params, keys), atol=0.03)


def test_importance_sampling_keeps_its_losses():
    task = task_of(**DISCRETE, density={"name": "importance"})
    params, batch = moved(task.init(jax.random.key(0))), batch_of(task)
    assert task.state == ("moments/.*",)
    _, aux = loss_of(task, params, batch)
    before, after = params["moments"]["count"], aux["state"]["moments"]["count"]
    assert int((after - before).sum()) == BATCH
    assert set(tree.flatten(aux["state"])) <= set(tree.flatten(params))


def test_edm2_keeps_its_weights_normalised():
    network = {"type": "edm2", "width": 32, "multiples": (1, 2), "blocks": 1, "attention": (0, 0), "in_channels": 1, "out_channels": 1}
    task = task_of(path={"name": "edm"}, prediction="edm", weighting={"name": "edm"}, network=network, uncertainty=True,
                   density={"name": "log_normal"}, sampler={"solver": "heun", "steps": 2, "spacing": "karras"})  # fmt: skip
    params = task.init(jax.random.key(0))
    value, aux = loss_of(task, params, batch_of(task))
    assert np.isfinite(value) and "weighted_error" in aux["metrics"]
    large = jax.tree.map(lambda x: 3 * x, params)
    after = task.post_update(large, aux, jnp.int32(0))["network"]["conv_in"]["kernel"]
    size = jnp.sqrt(jnp.square(after).sum((0, 1, 2)))
    np.testing.assert_allclose(size, size[0], rtol=1e-4)
    assert not np.allclose(after, large["network"]["conv_in"]["kernel"])
    assert task.frozen and all(p.startswith("network/") for p in task.frozen)


def test_bits_per_dimension_of_both_kinds():
    task = task_of(**DISCRETE)
    params, images = task.init(jax.random.key(0)), jnp.round(batch_of(task)["image"] * 127.5) / 127.5
    bits = task.predict["bits_per_dimension"]
    bound = bits(params, images, None, keys_of(BATCH), bound=True)
    ode = bits(params, images, None, keys_of(BATCH), rtol=1e-3, atol=1e-3)
    assert bound.shape == ode.shape == (BATCH,)
    assert np.isfinite(bound).all() and np.isfinite(ode).all() and (bound > 1).all()


REFUSED = {
    "steps": ({**DISCRETE, "sampler": {"steps": 51}}, "51 sampling steps of a schedule of 50"),
    "undefined": ({"path": {"name": "discrete", "zero_terminal_snr": True}}, "prediction 'eps' is undefined at time 999"),
    "unconditional": ({**FLOW, "sampler": {**EULER, "guidance": 2.0}}, "the model has no condition"),
    "always told": (
        {**FLOW, "network": {**DIT, "classes": 3}, "labels": True, "sampler": {**EULER, "guidance": 2.0}},
        "trained with its condition always there",
    ),
    "halves": (
        {**DISCRETE, "size": 6, "network": {"type": "unet", "channels": (8, 8, 8), "groups": 4, "in_channels": 1, "out_channels": 1}},
        "6",
    ),
    "bound": ({**FLOW, "loss": "bound"}, "loss is 'bound', of a discrete path"),
    "variance": ({**DISCRETE, "loss": "hybrid"}, "set config.model.variance"),
    "classes": ({**FLOW, "labels": True}, "has no classes"),
    "network": ({**FLOW, "network": {"type": "unett"}}, "unet"),
    "key": ({**FLOW, "samplerr": {}}, "sampler"),
    "option": ({**FLOW, "sampler": {"solver": "heun", "options": {"etaa": 1.0}}}, "etaa"),
    "importance": ({**FLOW, "density": {"name": "importance"}}, "discrete path"),
    "uncertainty": ({**FLOW, "uncertainty": True}, "edm2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_when_configured(name):
    model, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        task_of(**model)
