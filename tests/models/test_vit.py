"""The vision transformer's options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import sharding, tree
from mmjax.core.errors import UserError
from mmjax.layers import sincos_2d, split_axes, unstack_params
from mmjax.models import vit
from mmjax.models.vit import ViT
from tests.golden.weights import normal
from tests.models.torch_layouts import SIGLIP, Golden, deviation, grad_norms, same_structure

SMALL = {"patch": 4, "width": 16, "depth": 2, "heads": 2, "mlp": 32}


def make(size=8, **options):
    """The model with parameters of random values, and images."""
    model, draw = ViT(**{**SMALL, **options}), np.random.default_rng(0)
    images = jnp.asarray(draw.standard_normal((3, size, size, 3)), jnp.float32)
    shapes, _ = split_axes(jax.eval_shape(model.init, jax.random.key(0), images)["params"])
    return model, jax.tree.map(lambda s: jnp.asarray(0.4 * draw.standard_normal(s.shape), s.dtype), shapes), images


def run(model, params, images):
    return jax.jit(model.apply)({"params": params}, images)


@pytest.mark.parametrize("pool", vit.POOLS)
@pytest.mark.parametrize("posemb", vit.POSITIONS)
def test_options_decide_the_parameters(pool, posemb):
    model, params, images = make(pool=pool, posemb=posemb)
    tokens = 4 + (pool == "cls")
    assert ("cls" in params) == (pool == "cls")
    assert ("pos" in params) == (posemb == "learn")
    if posemb == "learn":
        assert params["pos"]["embedding"].shape == (tokens, 16)
    assert ("map" in params) == (pool == "map")
    out = run(model, params, images)
    assert out.shape == ((3, 4, model.features) if pool == "none" else (3, model.features))
    assert out.dtype == jnp.float32


@pytest.mark.parametrize("pool", ["cls", "gap", "none"])
def test_without_blocks_the_output_is_computed_by_hand(pool):
    """Patches, position, pool and norm in the order of each pool: CLIP norms the class token, "gap" averages normed patches."""
    model, params, images = make(depth=0, pool=pool, scan=False)
    x = np.asarray(images, np.float64).reshape(3, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 4, 48)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = x @ p["patch"]["kernel"] + p["patch"]["bias"]
    if pool == "cls":
        x = np.concatenate([np.broadcast_to(p["cls"], (3, 1, 16)), x], axis=1)
    x = x + p["pos"]["embedding"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["norm"]["scale"] + p["norm"]["bias"]
    want = {"cls": x[:, 0], "gap": x.mean(1), "none": x}[pool]
    np.testing.assert_allclose(run(model, params, images), want, rtol=0, atol=1e-5)


def test_sincos_positions_are_those_of_the_patches_and_the_class_token_has_none():
    model, params, images = make(posemb="sincos2d")
    learnt, _, _ = make()
    pos = jnp.concatenate([jnp.zeros((1, 16)), jnp.asarray(sincos_2d(2, 2, 16))])
    same = run(learnt, {**params, "pos": {"embedding": pos}}, images)
    np.testing.assert_allclose(run(model, params, images), same, rtol=0, atol=1e-6)


def test_gap_without_positions_does_not_see_the_order_of_patches():
    """With them it does: a mean over patches is otherwise blind to where they stand."""
    model, params, images = make(pool="gap")
    moved = jnp.roll(images, 4, axis=1)
    assert jnp.abs(run(model, params, images) - run(model, params, moved)).max() > 1e-3
    params["pos"]["embedding"] = jnp.zeros((4, 16))
    np.testing.assert_allclose(run(model, params, images), run(model, params, moved), rtol=0, atol=1e-5)


def test_head():
    model, params, images = make(classes=5)
    assert run(model, params, images).shape == (3, 5)
    assert "head" in params


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"pool": "mean"}, "ViT pool is 'mean'; known: cls, gap, map, none"),
        ({"posemb": "learned"}, "ViT posemb is 'learned'; did you mean 'learn'?"),
        ({"remat": "ful"}, "model.remat is 'ful'; did you mean 'full'?"),
    ],
)
def test_unknown_options_are_refused(option, message):
    with pytest.raises(UserError) as e:
        make(**option)
    assert str(e.value) == message


# Dosovitskiy et al. 2021, table 1 (86M, 307M, 632M), DeiT's table 1 (5.7M, 22.1M): with a head of 1000 classes, patch 16 (H: 14).
# The exact numbers follow from the architecture and are those of timm's vit_*_patch16_224.
SIZES = {"Ti": 5_717_416, "S": 22_050_664, "B": 86_567_656, "L": 304_326_632, "H": 632_045_800}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    model = ViT(patch=14 if name == "H" else 16, classes=1000, **vit.VARIANTS[name])
    params, _ = split_axes(jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))["params"])
    assert tree.count(params) == SIZES[name]


def count(model, size):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return tree.count(split_axes(jax.eval_shape(model.init, jax.random.key(0), images)["params"])[0])


# SigLIP's vision towers (transformers' SiglipVisionModel); CLIP's, with their projection, from OpenCLIP's code.
@pytest.mark.parametrize(
    ("name", "patch", "size", "want"),
    [
        ("B", 16, 224, 92_884_224),
        ("L", 16, 256, 315_956_224),
        ("So400m", 14, 224, 427_680_704),
        ("So400m", 14, 384, 428_225_600),
    ],
)
def test_published_sizes_of_siglip(name, patch, size, want):
    assert count(ViT(patch=patch, pool="map", **vit.VARIANTS[name]), size) == want


@pytest.mark.parametrize(
    ("name", "patch", "embed", "want"),
    [
        ("B", 32, 512, 87_849_216),
        ("L", 14, 768, 303_966_208),
        ("H", 14, 1024, 632_076_800),
        ("g", 14, 1024, 1_012_645_632),
        ("G", 14, 1280, 1_844_907_264),
    ],
)
def test_published_sizes_of_clip(name, patch, embed, want):
    model = ViT(patch=patch, pre_norm=True, patch_bias=False, **vit.VARIANTS[name])
    assert count(model, 224) + model.features * embed == want


@pytest.mark.parametrize("name", vit.VARIANTS)
def test_every_size_is_whole_and_counts_by_formula(name):
    """Blocks of 4 d^2 + 2 d m weights and 9 d + m biases, norms and gains; patch, class token, positions, last norm."""
    d, depth, heads, m = (vit.VARIANTS[name][k] for k in ("width", "depth", "heads", "mlp"))
    assert d % heads == 0
    assert count(ViT(patch=16, **vit.VARIANTS[name]), 64) == depth * (4 * d * d + 2 * d * m + 9 * d + m) + (768 + 1 + 1 + 17 + 2) * d


# --- SigLIP's tower against transformers (tests/golden/vit.py) ------------------------------------------------------------

SIGLIP_SIZE = 28  # 3 x 3 patches of 8; what is left over is cut off
# Measured against the float64 reference: 5e-7.
TOLERANCE = 3e-6


def siglip(act, pool="map", **options):
    """The model of the golden file, its parameters and images."""
    model = ViT(patch=8, width=32, depth=3, heads=4, mlp=72, act=act, pool=pool, **options)
    return model, Golden("vit").params(act, SIGLIP), jnp.asarray(normal("images", (3, SIGLIP_SIZE, SIGLIP_SIZE, 3)))


@pytest.mark.parametrize("act", ["gelu_tanh", "gelu"])
def test_siglip_features(act):
    model, params, images = siglip(act)
    same_structure(params, model, SIGLIP_SIZE)
    golden = Golden("vit")
    assert deviation(run(model, params, images), golden[f"{act}/features"]) < TOLERANCE
    other = {"gelu": "gelu_tanh", "gelu_tanh": "gelu"}[act]
    assert deviation(golden[f"{other}/features"], golden[f"{act}/features"]) > 10 * TOLERANCE


def test_siglip_tokens_before_and_after_the_norm():
    model, params, images = siglip("gelu_tanh")
    golden = Golden("vit")
    before = jax.jit(lambda p, x: model.apply({"params": p}, x, tokens=True))(params, images)
    assert before.dtype == jnp.float32
    assert deviation(before, golden["gelu_tanh/before_norm"]) < TOLERANCE
    bare, own, _ = siglip("gelu_tanh", "none")
    after = run(bare, {k: v for k, v in own.items() if k != "map"}, images)
    assert deviation(after, golden["gelu_tanh/tokens"]) < TOLERANCE


def test_siglip_gradients():
    model, params, images = siglip("gelu_tanh", scan=False)

    def loss(p):
        out = model.apply({"params": p}, images)
        return (out * jnp.asarray(normal("cotangent", out.shape))).sum()

    wanted = Golden("vit").under("gelu_tanh/grad_norm/")
    got = grad_norms(jax.jit(jax.grad(loss))(unstack_params(params)), wanted, SIGLIP)
    largest = max(wanted.values())
    for name, want in wanted.items():
        assert abs(got[name] - want) < 1e-5 * max(want, 1e-2 * largest), name


def test_a_mesh_computes_what_one_device_does():
    """The probe and the pooling's products split as those of blocks."""
    model, params, images = siglip("gelu_tanh")
    images = jnp.concatenate([images, images[:1] + 1])
    want = run(model, params, images)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    _, axes = split_axes(jax.eval_shape(model.init, jax.random.key(0), images)["params"])
    placed = jax.device_put(params, sharding.params_shardings(params, axes, mesh))
    with sharding.use(mesh):
        got = run(model, placed, jax.device_put(images, sharding.batch_sharding(mesh)))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


# --- patch dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_patch_dropout_leaves_tokens_with_their_positions(pool):
    """Kept tokens are, before any block, some of the whole image's; the class token is always the first."""
    options = {"pool": pool, "depth": 0, "scan": False}
    whole, params, images = make(16, **options)
    model, keys = whole.clone(patch_dropout=0.5), jax.random.split(jax.random.key(0), 3)
    every = np.asarray(whole.apply({"params": params}, images, tokens=True))
    kept = np.asarray(model.apply({"params": params}, images, keys, tokens=True))
    first = int(pool == "cls")
    assert kept.shape == (3, first + 8, 16)
    np.testing.assert_array_equal(kept[:, :first], every[:, :first])
    subsets = []
    for own, rows in zip(kept[:, first:], every[:, first:], strict=True):
        at = [int(np.flatnonzero((rows == token).all(1))[0]) for token in own]
        assert at == sorted(set(at))
        subsets.append(tuple(at))
    assert len(set(subsets)) == 3
    np.testing.assert_array_equal(model.apply({"params": params}, images, tokens=True), every)  # evaluation sees all
    np.testing.assert_array_equal(model.apply({"params": params}, images[1:2], keys[1:2], tokens=True), kept[1:2])


def test_patch_dropout_draws_the_same_scanned():
    model, params, images = make(16, patch_dropout=0.25, dropout=0.1)
    keys = jax.random.split(jax.random.key(0), 3)
    want = jax.jit(model.apply)({"params": params}, images, keys)
    unrolled = model.clone(scan=False)
    got = jax.jit(unrolled.apply)({"params": unstack_params(params)}, images, keys)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
