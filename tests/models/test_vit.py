"""The vision transformer's options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import tree
from mmjax.core.errors import UserError
from mmjax.layers import sincos_2d, split_axes
from mmjax.models import vit
from mmjax.models.vit import ViT

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
    out = run(model, params, images)
    assert out.shape == (3, 16)
    assert out.dtype == jnp.float32


@pytest.mark.parametrize("pool", vit.POOLS)
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
    np.testing.assert_allclose(run(model, params, images), x[:, 0] if pool == "cls" else x.mean(1), rtol=0, atol=1e-5)


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
        ({"pool": "mean"}, "ViT pool is 'mean'; known: cls, gap"),
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
    assert vit.VARIANTS.keys() == SIZES.keys()
    model = ViT(patch=14 if name == "H" else 16, classes=1000, **vit.VARIANTS[name])
    params, _ = split_axes(jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))["params"])
    assert tree.count(params) == SIZES[name]
