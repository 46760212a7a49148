"""CLIP's ResNet against OpenCLIP's (tests/golden/resnet.py), published sizes, and its ways of computing against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import sharding, tree
from mmjax.core.errors import UserError
from mmjax.layers import split_axes, stack_params, unstack_params
from mmjax.models import resnet
from mmjax.models.resnet import ModifiedResNet
from tests.golden.weights import normal
from tests.models.torch_layouts import RESNET, Golden, deviation, grad_norms, path_of, same_structure

SMALL = ModifiedResNet(width=8, depths=(1, 1, 3, 2), heads=4)
SIZE = 64
# Measured against the float64 reference: 2e-7 on features, 7e-7 on embeddings (RN50's too), 1e-7 on running statistics.
TOLERANCE = 3e-6


@pytest.fixture(scope="module")
def golden():
    return Golden("resnet")


@functools.cache
def small():
    """(tower's parameters, unrolled, projection, images, keys that stand for training)."""
    params = unstack_params(Golden("resnet").params("small", RESNET))
    return params["tower"], params["proj"], jnp.asarray(normal("small/images", (4, SIZE, SIZE, 3))), jax.random.split(jax.random.key(0), 4)


def train(model, params, images, keys):
    """Features and new running statistics."""
    out, new = jax.jit(lambda p, x, k: model.apply({"params": p}, x, k, mutable=["state"]))(params, images, keys)
    return out, new["state"]


@functools.cache
def evaluated():
    params, _, images, _ = small()
    return jax.jit(SMALL.apply)({"params": params}, images)


@functools.cache
def trained():
    params, _, images, keys = small()
    return train(SMALL, params, images, keys)


def test_features_and_embedding(golden):
    params, proj, _, _ = small()
    same_structure(stack_params(params), SMALL.clone(scan=True), SIZE)
    features = evaluated()
    assert features.dtype == jnp.float32
    assert features.shape == (4, SMALL.features)
    assert deviation(features, golden["small/features"]) < TOLERANCE
    assert deviation(features @ proj["kernel"] + proj["bias"][None], golden["small/embedding"]) < TOLERANCE


@pytest.mark.slow
def test_full_rn50(golden):
    """OpenAI's RN50 itself, on two images of 224 pixels."""
    params, model = unstack_params(golden.params("RN50", RESNET)), ModifiedResNet(**resnet.VARIANTS["RN50"])
    features = jax.jit(model.apply)({"params": params["tower"]}, jnp.asarray(normal("RN50/images", (2, 224, 224, 3))))
    assert deviation(features, golden["RN50/features"]) < TOLERANCE
    assert deviation(features @ params["proj"]["kernel"] + params["proj"]["bias"][None], golden["RN50/embedding"]) < TOLERANCE


def test_training_uses_the_batch_and_returns_running_statistics(golden):
    params, proj, _, _ = small()
    features, state = trained()
    assert deviation(features @ proj["kernel"] + proj["bias"][None], golden["small/train/embedding"]) < TOLERANCE
    flat, wanted = tree.flatten(state), golden.under("small/train/state/")
    paths = {path_of(name, RESNET)[0].removeprefix("tower/"): v for name, v in wanted.items()}
    assert flat.keys() == paths.keys()
    assert {p for p in tree.flatten(params) if tree.matches(p, SMALL.state_paths)} == set(tree.flatten(state))
    for path, want in paths.items():
        assert deviation(flat[path], want) < TOLERANCE, path


def test_gradients_through_batch_statistics(golden):
    params, proj, images, keys = small()

    def loss(p):
        features, _ = SMALL.apply({"params": p["tower"]}, images, keys, mutable=["state"])
        embedding = features @ p["proj"]["kernel"] + p["proj"]["bias"][None]
        return (embedding * jnp.asarray(normal("cotangent", embedding.shape))).sum()

    wanted = golden.under("small/train/grad_norm/")
    got = grad_norms(jax.jit(jax.grad(loss))({"tower": params, "proj": proj}), wanted, RESNET)
    largest = max(wanted.values())
    for name, want in wanted.items():
        assert abs(got[name] - want) < 1e-5 * max(want, 1e-2 * largest), name


@pytest.mark.parametrize(("scan", "remat"), [(True, "none"), (True, "full"), (False, "full")])
def test_scanned_unrolled_and_recomputed_agree(scan, remat):
    params, _, images, keys = small()
    want, state = trained()
    got, new = train(SMALL.clone(scan=scan, remat=remat), stack_params(params) if scan else params, images, keys)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    new = unstack_params(new) if scan else new
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), new, state)


def test_frozen_statistics_train_as_they_evaluate():
    params, _, images, keys = small()
    frozen = SMALL.clone(frozen_statistics=True)

    def loss(p):
        out, new = frozen.apply({"params": p}, images, keys, mutable=["state"])
        assert not new
        return (out**2).sum(), out

    grads, out = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(out, evaluated(), rtol=0, atol=1e-5)
    for path, g in tree.flatten(grads).items():
        if "attn/k/bias" not in path:  # which softmax does not see
            assert (np.abs(g).max() > 0) == (not tree.matches(path, SMALL.state_paths)), path


def test_a_mesh_computes_what_one_device_does():
    """Statistics are those of the whole batch, though each device holds a part of it."""
    params, _, images, keys = small()
    want, state = trained()
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    _, axes = split_axes(jax.eval_shape(SMALL.init, jax.random.key(0), images)["params"])
    placed = jax.device_put(params, sharding.params_shardings(params, axes, mesh))
    assert not placed["stage3"]["first"]["conv2"]["kernel"].sharding.is_fully_replicated
    with sharding.use(mesh):
        got, new = train(SMALL, placed, jax.device_put(images, sharding.batch_sharding(mesh)), keys)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), new, state)


def test_a_residual_branch_starts_at_zero():
    """So a fresh block is its shortcut."""

    @jax.jit
    def gains(key):
        params = tree.flatten(split_axes(SMALL.init(key, jnp.zeros((1, 32, 32, 3)))["params"])[0])
        return {path: x for path, x in params.items() if path.endswith(("/norm2/scale", "/norm3/scale"))}

    start = gains(jax.random.key(0))
    assert len(start) == 2 * 7
    for path, x in start.items():
        assert (x == ("norm2" in path)).all(), path


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (SMALL, 31, "^images of 31 x 31 pixels are too small for a ResNet; make them at least 32"),
        (SMALL.clone(depths=(1, 1, 1)), 32, r"^ResNet depths are \(1, 1, 1\), expected four"),
    ],
)
def test_bad_input(model, size, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


# Visual towers of OpenAI's released models with their projection, as counted from their own code; running statistics, which
# PyTorch keeps as buffers, are not among them. (embedding, count)
COUNTS = {
    "RN50": (1024, 38_316_896),
    "RN101": (512, 56_259_936),
    "RN50x4": (640, 87_137_080),
    "RN50x16": (768, 167_328_912),
    "RN50x64": (1024, 420_380_352),
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name):
    assert resnet.VARIANTS.keys() == resnet.SIZES.keys() == COUNTS.keys()
    model, size, (embed, count) = ModifiedResNet(**resnet.VARIANTS[name]), resnet.SIZES[name], COUNTS[name]
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    params, axes = split_axes(jax.eval_shape(model.clone(scan=True).init, jax.random.key(0), images)["params"])
    weights = tree.select(params, lambda path: not tree.matches(path, model.state_paths))
    assert tree.count(weights) + (model.features + 1) * embed == count
    for path, names in tree.flatten(axes).items():
        assert set(names) <= set(sharding.RULES), path
        assert (names[:1] == ("layers",)) == ("/blocks/" in path), path
