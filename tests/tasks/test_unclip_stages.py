"""The decoder and the upsamplers of unCLIP as configurations of task diffusion: what they are shown, what is left out, what guides."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax import tasks
from mmjax.core import config as config_lib
from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.diffusion import cascade
from mmjax.diffusion.walk import draw
from mmjax.layers import split_axes
from mmjax.tasks import conditions, diffusion, diffusion_sampling

SIZE, LENGTH, WIDTH, E = 8, 3, 12, 6
FLOW = {"path": {"name": "flow"}, "prediction": "velocity", "time_scale": 1000.0, "sampler": {"solver": "euler", "steps": 1}}
UNET = {"type": "unet", "channels": (8,), "blocks": 1, "groups": 4, "in_channels": 1, "out_channels": 1}
DECODER = {
    "network": {**UNET, "attention": (1,), "kind": "added", "heads": 2},
    "context": {"length": LENGTH, "width": WIDTH},
    "embedding": {"width": E, "tokens": 2, "text": True, "unit": True},
    "context_dropout": 0.5,
}
ENLARGE = {"network": {**UNET, "low_res": 1, "numbers": 1}, "low_resolution": {"size": 4, "degradation": "blur", "noise": (0.0, 0.5)}}


def config_of(**model):
    c = config_lib.base()
    c.task, c.batch_size = "diffusion", 4
    c.model = ConfigDict({"size": SIZE, "channels": 1, **FLOW, **model})
    return c


class Plain:
    """In place of a U-Net, whose compilation takes seconds: looks at everything it is given."""

    def apply(self, variables, x, t, *, context=None, context_mask=None, embedding=None, low_res=None, numbers=None, keys=None):
        total = variables["params"] * jnp.sin(t)
        if context is not None:
            seen = jnp.sin(context).mean(-1)
            total += (seen if context_mask is None else jnp.where(context_mask, seen, 0)).sum(-1)
        total += 0.0 if embedding is None else jnp.sin(embedding).mean(-1)
        total += 0.0 if numbers is None else numbers.mean(-1)
        out = jnp.tanh(0.5 * x + total[:, None, None, None])
        return out if low_res is None else out + low_res


def system_of(**model):
    """The system, its parameters (of which none is 0) and its predict functions, over `Plain`."""
    system = diffusion.parse(config_of(**model).model, jnp.float32)
    params = {"network": jnp.float32(0.1), "last": jnp.float32(-0.9)}
    if system.condition is not None:
        embedding, words = jnp.zeros((1, E)), jnp.zeros((1, LENGTH, WIDTH))
        shapes = jax.eval_shape(
            system.condition.init, jax.random.key(0), embedding, jnp.ones(1, bool), text_embedding=embedding, words=words
        )
        shapes = split_axes(shapes["params"])[0]
        params["condition"] = jax.tree.map(lambda x: normal(str(x.shape), *x.shape) * 0.5, shapes)
    system = dataclasses.replace(system, network=Plain())
    return system, params, diffusion_sampling.predict(system, diffusion.parse_sampler(system))


def keys_of(count):
    return rng.per_example(jax.random.key(3), jnp.arange(count))


normal = lambda name, *shape: jax.random.normal(rng.named(jax.random.key(0), name), shape)


@functools.cache
def decoder():
    """(system, parameters, predict functions, what it is shown, and its network over that and noise)."""
    system, params, predict = system_of(**DECODER)
    told = {"embedding": normal("e", 2, E), "words": normal("w", 2, LENGTH, WIDTH), "text_embedding": normal("t", 2, E)}
    return system, params, predict, told, jax.jit(lambda given, x: system.apply(params, x, jnp.full(x.shape[0], 1000.0), given))


def test_four_guided_ways_are_their_definitions():
    """One Euler step from noise is x0 = x - v: v of what follows, of what is fled from, and of the three of nested guidance."""
    system, params, predict, told, seen = decoder()
    keys, embedding, words, text = keys_of(2), *told.values()
    x = draw(keys, (SIZE, SIZE, 1))
    given = conditions.shown(system, 2, **told)
    v = {which: seen(conditions.null(system, given, which), x) for which in conditions.GUIDED} | {"none": seen(given, x)}
    assert min(float(jnp.abs(v[a] - v[b]).max()) for a in v for b in v if a < b) > 1e-2
    draws = lambda sampler: predict["embedding_to_image"](params, embedding, words, keys, text_embedding=text, sampler=sampler)
    ways = [{"guidance": 3.0, "guided": which} for which in conditions.GUIDED] + [{"guidance": 2.0, "caption_guidance": 3.0}]
    *drawn, nested = jax.jit(lambda: [draws(way) for way in ways])()
    picture = lambda v: jnp.clip((x - v) / 2 + 0.5, 0, 1)
    for which, got in zip(conditions.GUIDED, drawn, strict=True):
        np.testing.assert_allclose(got, picture(v[which] + 3 * (v["none"] - v[which])), atol=1e-5)
    both = v["all"] + 2 * (v["caption"] - v["all"]) + 3 * (v["none"] - v["caption"])
    np.testing.assert_allclose(nested, picture(both), atol=1e-5)
    # A caption alone and an embedding alone, as what is not given; and a null of the caller's own.
    alone = conditions.shown(system, 2, words=words, text_embedding=text)
    np.testing.assert_allclose(seen(alone, x), v["embedding"], atol=1e-6)
    np.testing.assert_allclose(seen(conditions.shown(system, 2, embedding=embedding), x), v["caption"], atol=1e-6)
    own = conditions.null(system, given, "caption", {"context": words, "text_embedding": text})
    np.testing.assert_allclose(seen(own, x), v["none"], atol=1e-6)


def test_unit_embeddings_have_no_length_and_the_mask_hides_words():
    system, _, _, told, seen = decoder()
    x, whole = normal("x", 2, SIZE, SIZE, 1), seen(conditions.shown(system, 2, **told), normal("x", 2, SIZE, SIZE, 1))
    longer = {**told, "embedding": 5 * told["embedding"]}
    np.testing.assert_allclose(seen(conditions.shown(system, 2, **longer), x), whole, atol=1e-5)
    mask = jnp.arange(LENGTH)[None] < jnp.array([[2], [2]])
    other = {**told, "words": told["words"].at[:, 2].set(9.0)}
    masked = [seen(conditions.shown(system, 2, **given, mask=mask), x) for given in (told, other)]
    np.testing.assert_allclose(masked[0], masked[1], atol=1e-6)
    assert float(jnp.abs(seen(conditions.shown(system, 2, **other), x) - whole).max()) > 1e-3
    # In training a batch brings the mask, where the model says so.
    learns = diffusion.parse(config_of(**{**DECODER, "context": {**DECODER["context"], "masked": True}}).model, jnp.float32)
    spec = diffusion.batch_spec(learns, 2)
    assert spec["mask"] == jax.ShapeDtypeStruct((2, LENGTH), jnp.bool_) and "mask" not in diffusion.batch_spec(system, 2)
    batch = {name: jnp.zeros(x.shape, x.dtype) for name, x in spec.items()} | {"mask": mask}
    np.testing.assert_array_equal(conditions.of_batch(learns, batch, keys_of(2))["mask"], mask)


def test_what_training_leaves_out():
    """Embeddings in 10 % and captions in 50 % of examples, independently, each by its own key."""
    system, n = decoder()[0], 3000
    batch = {name: jnp.ones((n, *x.shape[1:])) for name, x in diffusion.batch_spec(system, 1).items()}
    shown = jax.jit(lambda keys: conditions.of_batch(system, batch, keys))
    given = shown(keys_of(n))
    there, captioned = given["has_embedding"], given["context"][:, 0, 0] == 1
    assert abs(float(there.mean()) - 0.9) < 0.02 and abs(float(captioned.mean()) - 0.5) < 0.03
    assert abs(float(there[captioned].mean() - there[~captioned].mean())) < 0.03
    np.testing.assert_array_equal(given["text_embedding"][:, 0] == 1, captioned)
    np.testing.assert_array_equal(shown(keys_of(n)[::-1])["has_embedding"], there[::-1])


def test_inverted_pictures_are_drawn_again():
    _, params, predict, told, _ = decoder()
    embedding, words, text = told.values()
    images = jax.nn.sigmoid(normal("i", 2, SIZE, SIZE, 1))
    sampler = {"solver": "ddim", "steps": 6}

    @jax.jit
    def there_and_back():
        noise = predict["invert"](params, images, embedding, words, text_embedding=text, sampler={**sampler, "guidance": 3.0}, refine=12)
        back = lambda e, x: predict["embedding_to_image"](params, e, words, keys_of(2), text_embedding=text, sampler=sampler, noise=x)
        own = draw(keys_of(2), (SIZE, SIZE, 1))
        return noise, back(embedding, noise), back(embedding[::-1], noise), back(embedding, own), back(embedding, None)

    noise, same, other, given, drawn = there_and_back()
    assert noise.shape == images.shape
    np.testing.assert_allclose(same, images, atol=1e-3)
    assert float(jnp.abs(other - images).max()) > 1e-2
    np.testing.assert_allclose(given, drawn, atol=1e-6)


def test_a_second_network_takes_the_late_times():
    system, params, _ = system_of(network=UNET, last_until=0.25)
    x, t = normal("x", 3, SIZE, SIZE, 1), jnp.array([100.0, 250.0, 251.0])
    ask = jax.jit(lambda t: system.apply(params, x, t, {}))
    alone = jax.jit(lambda: {name: system.network.apply({"params": params[name]}, x, t) for name in ("network", "last")})()
    want = jnp.concatenate([alone["last"][:2], alone["network"][2:]])
    np.testing.assert_allclose(ask(t), want, atol=1e-6)
    assert float(jnp.abs(alone["last"] - alone["network"]).max()) > 1e-2
    for row in (0, 2):
        np.testing.assert_allclose(ask(t[row].repeat(3))[row], want[row], atol=1e-6)


def test_upsampler_is_shown_the_enlarged_picture_and_its_noise():
    system, params, predict = system_of(**ENLARGE)
    small, keys, t = jax.nn.sigmoid(normal("s", 2, 4, 4, 1)), keys_of(2), jnp.full(2, 1000.0)

    @jax.jit
    def both():
        x, large = draw(keys, (SIZE, SIZE, 1)), lambda low: cascade.resize(low, (SIZE, SIZE))
        network = lambda low, level: system.network.apply({"params": params["network"]}, x, t, low_res=low, numbers=level)
        picture = lambda v: jnp.clip((x - v) / 2 + 0.5, 0, 1)
        low, own = 2 * small - 1, jax.vmap(lambda k: rng.named(k, "low_resolution"))(keys)
        noised = cascade.augment(low, jnp.full(2, 0.4), own, path=system.path)
        want = picture(network(large(low), jnp.zeros((2, 1)))), picture(network(large(noised), jnp.full((2, 1), 400.0)))
        return want, (predict["upsample"](params, small, keys), predict["upsample"](params, small, keys, level=0.4))

    want, got = both()
    assert got[0].shape == (2, SIZE, SIZE, 1)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert float(jnp.abs(got[0] - got[1]).max()) > 0.1


def test_training_pictures_of_low_resolution():
    """Cropped: windows of image and condition; blurred by the kernel and width asked for; given by the batch where the host degrades."""
    half, *_ = system_of(network={**UNET, "low_res": 1}, low_resolution={"size": 4, "crop": 0.5, "degradation": "blur"})
    assert diffusion.batch_spec(half, 2)["image"].shape == (2, 4, 4, 1)
    images = normal("i", 2, 4, 4, 1)
    blurred = lambda: cascade.blur(cascade.resize(images, (2, 2)), jnp.full(2, 0.6))
    low, want = jax.jit(lambda: (conditions.of_batch(half, {"image": images}, keys_of(2))["low"], blurred()))()
    np.testing.assert_allclose(low, want, atol=1e-6)
    assert conditions.network_inputs(half, {}, {"low": low}, None)["low_res"].shape == (2, 4, 4, 1)
    given, *_ = system_of(network={**UNET, "low_res": 1}, low_resolution={"size": 4, "crop": 0.5, "degradation": "given"})
    assert diffusion.batch_spec(given, 2)["low"].shape == (2, 2, 2, 1)
    assert conditions.of_batch(given, {"image": images, "low": low}, keys_of(2))["low"] is low


def test_the_whole_task_has_parameters_and_a_loss():
    """With its U-Net, abstractly: what that computes is held to Karlo's."""
    task = tasks.make(config_of(**DECODER))
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert set(params) == {"network", "condition"}
    assert jax.tree.structure(params) == jax.tree.structure(task.axes, is_leaf=lambda x: isinstance(x, tuple))
    batch = {**task.batch_spec, "_index": jax.ShapeDtypeStruct((4,), jnp.int32)}
    value, _ = jax.eval_shape(task.loss, params, batch, jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((), jnp.int32))
    assert value.shape == ()


REFUSED = {
    "width": ({**DECODER, "embedding": {"tokens": 2}}, "width"),
    "words": ({**DECODER, "embedding": {"width": E, "context_width": 5}}, "set config.model.embedding.project"),
    "null": ({**DECODER, "embedding": {"width": E, "null": "zero"}}, "did you mean 'zeros'"),
    "no context": ({"network": UNET, "embedding": {"width": E}}, "take network.kind 'added'"),
    "no width": ({"network": DECODER["network"], "embedding": {"width": E}}, "context_width is not set"),
    "dit": ({"network": {"type": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2}, "embedding": {"width": E}}, "type 'unet'"),
    "always told": ({**DECODER, "embedding": {"width": E, "dropout": 0.0}, "sampler": {"guidance": 2.0}}, "embedding.dropout"),
    "guided": ({**DECODER, "sampler": {"guided": "captions"}}, "caption"),
    "one condition": ({"network": UNET, "embedding": {"width": E, "tokens": 0}, "sampler": {"guided": "caption"}}, "has not both"),
    "low_res": ({"network": UNET, "low_resolution": {"size": 4}}, "network.low_res"),
    "size": ({**ENLARGE, "low_resolution": {"size": 3, "noise": (0.0, 0.5)}}, "a part of config.model.size, 8"),
    "crop": ({**ENLARGE, "low_resolution": {"size": 4, "crop": 0.3, "noise": (0.0, 0.5)}}, "whole pixels"),
    "levels": ({**ENLARGE, "low_resolution": {"size": 4, "noise": (0.5, 0.5)}}, "0 <= from < to <= 1"),
    "noise": ({**ENLARGE, "low_resolution": {"size": 4}}, "network.numbers 1"),
    "degradation": ({**ENLARGE, "low_resolution": {"size": 4, "degradation": "blurr"}}, "blur"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_when_configured(name):
    model, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        tasks.make(config_of(**{**FLOW, **model}))


def test_refused_when_asked():
    system, small = decoder()[0], system_of(**ENLARGE)[0]
    with pytest.raises(UserError, match=r"embedding: shape \(2, 5\) is given, the model takes \(2, 6\)"):
        conditions.shown(system, 2, embedding=jnp.zeros((2, 5)))
    with pytest.raises(UserError, match=r"images: shape \(2, 8, 8, 1\) is given, the model takes \(2, 4, 4, 1\)"):
        conditions.shown(small, 2, images=jnp.zeros((2, 8, 8, 1)))
    with pytest.raises(UserError, match="given a caption, and was trained without"):
        conditions.shown(small, 2, words=jnp.zeros((2, 3), jnp.int32))
