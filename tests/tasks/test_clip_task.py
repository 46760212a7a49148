"""The contrastive task: its losses and forms, locked towers, encoding in chunks, batch statistics, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from mmjax import tasks
from mmjax.core import config as config_lib
from mmjax.core import flops, rng, sharding, state, tree
from mmjax.core.errors import UserError
from mmjax.core.step import make_train_step
from mmjax.objectives.contrastive import info_nce
from mmjax.tasks.clip import in_chunks

BATCH, SIZE, VOCAB, LENGTH = 16, 8, 20, 6
BLOCK = {"depth": 1, "heads": 2, "mlp": 32}
VIT = {"patch": 4, "width": 16, **BLOCK, "pre_norm": True, "dropout": 0.2}
TEXT = {"vocab": VOCAB, "length": LENGTH, "width": 16, **BLOCK, "dropout": 0.2}
RESNET = {"type": "resnet", "width": 2, "depths": (1, 1, 1, 1), "heads": 2}


def config(**model):
    c = config_lib.base()
    c.task, c.batch_size = "clip", BATCH
    c.model = ConfigDict({"size": SIZE, "channels": 3, "embed": 12, "image": VIT, "text": TEXT, **model})
    return c


def task_of(**model):
    return tasks.make(config(**model))


def batch_of(task, seed=0):
    r = np.random.default_rng(seed)
    out = {k: r.standard_normal(s.shape).astype(np.float32) for k, s in task.batch_spec.items() if k != "tokens"}
    tokens = r.integers(1, VOCAB - 1, (BATCH, LENGTH)).astype(np.int32)
    tokens[:, -1] = VOCAB - 1
    return {**out, "tokens": tokens}


def value_and_grads(task, params, batch, devices=1):
    """Of all parameters, on so many devices; the batch lies over them."""
    mesh = sharding.make_mesh({"data": -1, "fsdp": min(devices, 2)}, jax.devices()[:devices])
    batch = sharding.put_batch({**batch, "_index": np.arange(BATCH, dtype=np.int32)}, BATCH, mesh)
    f = lambda p, b: task.loss(p, b, jax.random.key(1), jnp.int32(0))
    with sharding.use(mesh):
        (value, aux), grads = jax.jit(jax.value_and_grad(f, has_aux=True))(params, batch)
    return float(value), aux, tree.flatten(jax.device_get(grads))


def assert_same(got, want, tolerance):
    """Relative to a leaf's largest entry, or to 1."""
    np.testing.assert_allclose(got[0], want[0], rtol=0, atol=tolerance * max(1, abs(want[0])))
    assert got[2].keys() == want[2].keys()
    for path, g in want[2].items():
        np.testing.assert_allclose(got[2][path], g, rtol=0, atol=tolerance * max(1, np.abs(g).max()), err_msg=path)


LOSSES = {
    "info_nce": {},
    "sigmoid": {"loss": "sigmoid", "bias": -10.0},
    "distill": {"distill": ConfigDict({"width": 5, "scale": 20.0, "weight": 0.5})},
}


@functools.cache
def dense(loss):
    """Parameters, a batch, and the answer of the dense form on one device with everything encoded at once."""
    task = task_of(**LOSSES[loss])
    params, batch = jax.jit(task.init)(jax.random.key(0)), batch_of(task)
    return params, batch, value_and_grads(task, params, batch)


@pytest.mark.parametrize(
    ("loss", "devices", "how"),
    [
        pytest.param("info_nce", 1, {"encode_chunk": 8}, marks=pytest.mark.slow),
        pytest.param("info_nce", 8, {"form": "gathered"}, marks=pytest.mark.slow),
        ("sigmoid", 8, {"form": "ring", "tile": 3}),
        pytest.param("distill", 8, {"encode_chunk": 8, "form": "ring", "tile": 3}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_chunks_and_forms_change_nothing(loss, devices, how):
    """With dropout on: an example's draws are its own. Logit scale and bias are among the parameters compared."""
    params, batch, want = dense(loss)
    assert np.abs(want[2]["logit_scale"]) > 1e-3
    tolerance = 1e-6 if devices == 1 else 3e-6  # over devices float32 is added up in another order
    assert_same(value_and_grads(task_of(**LOSSES[loss], **how), params, batch, devices), want, tolerance)


def test_dropout_is_on_in_training():
    params, batch, want = dense("info_nce")
    still = task_of(image={**VIT, "dropout": 0.0}, text={**TEXT, "dropout": 0.0})
    assert abs(value_of(still, params, batch)[0] - want[0]) > 1e-4


@pytest.mark.parametrize("devices", [1, 8])
def test_chunks_in_float64(devices):
    """Towers compute partly in float32 whatever they are told, so a plain encoder with dropout stands in for them."""
    r = np.random.default_rng(0)
    mesh = sharding.make_mesh({"data": devices}, jax.devices()[:devices])
    with jax.enable_x64(True), sharding.use(mesh):
        x = {"a": jnp.asarray(r.standard_normal((24, 10))), "b": jnp.asarray(r.standard_normal((24, 7)))}
        x["keys"] = rng.per_example(jax.random.key(0), jnp.arange(24))
        params = {"a": jnp.asarray(r.standard_normal((10, 6))), "b": jnp.asarray(r.standard_normal((7, 6))), "s": jnp.asarray(2.0)}

        def loss(params, chunk):
            def encode(x):
                keep = jax.vmap(lambda k: jax.random.bernoulli(k, 0.7, (6,)))(x["keys"])
                both = [jnp.tanh(x[k] @ params[k]) * keep for k in "ab"]
                return [e / jnp.sqrt((e**2).sum(1, keepdims=True) + 1e-3) for e in both]

            return info_nce(*(in_chunks(encode, x, chunk) if chunk else encode(x)), params["s"])[0]

        f = jax.jit(jax.value_and_grad(loss), static_argnums=1)
        want, got = f(params, 0), f(params, 8)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=1e-10)


def test_chunks_keep_the_order():
    """Which a loss over pairs alone would not notice, for it is blind to it; a teacher's embeddings are not."""
    x = {"a": jnp.arange(24.0), "b": jnp.arange(48).reshape(24, 2)}
    seen = in_chunks(lambda x: {**x, "chunk": jnp.full(x["a"].shape, x["a"].min())}, x, 8)
    for k in x:
        np.testing.assert_array_equal(seen[k], x[k])
    assert len(np.unique(seen["chunk"])) == 3


def test_chunks_need_less_memory():
    def bytes_of(chunk):
        task = task_of(encode_chunk=chunk, image={**VIT, "depth": 4})
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        batch = {**task.batch_spec, "_index": jax.ShapeDtypeStruct((BATCH,), jnp.int32)}
        f = jax.jit(jax.grad(lambda p, b: task.loss(p, b, jax.random.key(1), jnp.int32(0))[0]))
        return f.lower(shapes, batch).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(2) < bytes_of(0) / 2


# Locked towers.


def value_of(task, params, batch):
    value, aux = jax.jit(task.loss)(params, {**batch, "_index": jnp.arange(BATCH)}, jax.random.key(1), jnp.int32(0))
    return float(value), aux


@pytest.mark.parametrize("lock", ["image", "text"])
def test_a_locked_tower_is_not_trained(lock):
    """Nothing of it is, and no work is done for its gradient; both projections are trained."""
    work = {}
    for options in ({}, {"lock": lock}):
        task = task_of(**options)
        params = jax.eval_shape(task.init, jax.random.key(0))
        who = state.roles(task, params)
        train = make_train_step(task, optax.with_extra_args_support(optax.sgd(0.1)))
        start = jax.eval_shape(lambda: state.init(task, optax.with_extra_args_support(optax.sgd(0.1)), {}, 0))  # noqa: B023
        work[bool(options)] = flops.count(train, start, task.batch_spec).by_primitive["dot_general"]
    assert {p for p in tree.flatten(params) if p.startswith(f"{lock}/")} == who.frozen
    assert {"logit_scale", "image_proj/kernel", "text_proj/kernel"} <= who.trained
    assert work[True] < 0.8 * work[False]


def test_a_locked_tower_drops_nothing_and_may_compute_in_bfloat16():
    params, batch, _ = dense("info_nce")
    plain = task_of(lock="image", text={**TEXT, "dropout": 0.0})
    encode = lambda task: (
        task.predict["encode_image"](params, jnp.asarray(batch["image"])),
        task.predict["encode_text"](params, jnp.asarray(batch["tokens"])),
    )
    images, texts = encode(plain)
    unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
    want = float(info_nce(unit(images), unit(texts), params["logit_scale"])[0])
    assert value_of(plain, params, batch)[0] == pytest.approx(want, rel=1e-6)
    low = task_of(lock="image", lock_dtype="bfloat16", text={**TEXT, "dropout": 0.0})
    low_images, low_texts = encode(low)
    assert 1e-6 < np.abs(low_images - images).max() < 0.05
    np.testing.assert_array_equal(low_texts, texts)


# Batch statistics.


def shapes_of(task):
    """Shapes of the parameters, their roles, and paths of the new state that the loss returns."""
    params = jax.eval_shape(task.init, jax.random.key(0))
    batch = {**task.batch_spec, "_index": jax.ShapeDtypeStruct((BATCH,), jnp.int32)}
    _, aux = jax.eval_shape(task.loss, params, batch, jax.random.key(1), jnp.int32(0))
    return tree.flatten(params), state.roles(task, params), tree.flatten(aux["state"])


def test_batch_statistics_are_new_values_of_state():
    params, who, new = shapes_of(task_of(image=RESNET, size=32))
    assert len(who.state) > 10 and all(p.startswith("image/") and p.endswith(("/mean", "/var")) for p in who.state)
    assert new.keys() == who.state
    assert all(new[p].shape == params[p].shape for p in new)


@pytest.mark.parametrize("how", [{"lock": "image", "image": RESNET}, {"image": {**RESNET, "frozen_statistics": True}}], ids=str)
def test_frozen_batch_statistics_stay_and_allow_chunks(how):
    _, who, new = shapes_of(task_of(**how, size=32, encode_chunk=4))
    assert not new
    assert not [p for p in who.trained if p.endswith(("/mean", "/var"))]


# What it refuses, each in a line.

BAD = {
    "config.model has an unknown key 'encode_chunks'; did you mean 'encode_chunk'?": {"encode_chunks": 4},
    "config.model.loss is 'infonce'; did you mean 'info_nce'?": {"loss": "infonce"},
    "config.model.loss is 'sigmoid', which needs a bias": {"loss": "sigmoid"},
    "distill goes with loss 'info_nce' only": {"loss": "sigmoid", "bias": -10.0, "distill": {"width": 4}},
    "config.model.distill: Distillation has no field 'scal'; did you mean 'scale'?": {"distill": {"width": 4, "scal": 9.0}},
    "config.model.distill has no key 'width'": {"distill": {"weight": 1.0}},
    "form of the contrastive loss is 'tiled'": {"form": "tiled"},
    "config.model.form is 'gathered', which the sigmoid loss does not have": {"form": "gathered", "loss": "sigmoid", "bias": -10.0},
    "config.model.form is 'gathered', which distillation does not have": {"form": "gathered", "distill": {"width": 4}},
    "tile of the contrastive loss is 0": {"tile": 0},
    "config.model.lock is 'images'; did you mean 'image'?": {"lock": "images"},
    "config.model.lock_dtype is 'float16'": {"lock": "image", "lock_dtype": "float16"},
    "config.model.encode_chunk is 5; expected a divisor of batch_size 16": {"encode_chunk": 5},
    "batch statistics would be those of a chunk": {"encode_chunk": 4, "image": RESNET, "size": 32},
}


@pytest.mark.parametrize("message", BAD)
def test_refusals(message):
    with pytest.raises(UserError) as e:
        task_of(**BAD[message])
    assert message in str(e.value) and "\n" not in str(e.value)


def test_a_chunk_must_split_over_the_devices():
    task = task_of(encode_chunk=4)
    with pytest.raises(UserError, match="encode_chunk is 4, which does not split over 8 devices"):
        value_and_grads(task, dense("info_nce")[0], batch_of(task), 8)


def test_accumulation_is_refused():
    with pytest.raises(ValueError, match="not a mean over examples"):
        make_train_step(task_of(), optax.sgd(0.1), accumulate=2)


def test_the_scale_is_clamped_for_info_nce_only():
    params = {"logit_scale": jnp.float32(9.0)}
    assert float(task_of().post_update(params, {}, 0)["logit_scale"]) == pytest.approx(np.log(100))
    assert float(task_of(**LOSSES["sigmoid"]).post_update(params, {}, 0)["logit_scale"]) == 9.0
