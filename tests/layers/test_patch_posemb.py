"""Patches against a convolution; position embeddings against their formula."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from mmjax.core.errors import UserError
from mmjax.layers import PositionEmbedding, drop_patches, patchify, resize_positions, sincos_2d
from tests.golden.weights import normal


@pytest.mark.parametrize(("height", "width"), [(8, 12), (11, 9), (4, 4)])
def test_patchify_and_a_product_are_a_strided_convolution(height, width):
    r = np.random.default_rng(0)
    images = jnp.asarray(r.standard_normal((2, height, width, 3)), jnp.float32)
    kernel = jnp.asarray(r.standard_normal((4, 4, 3, 5)), jnp.float32)
    conv = jax.lax.conv_general_dilated(images, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    got = patchify(images, 4) @ kernel.reshape(-1, 5)
    assert got.shape == (2, (height // 4) * (width // 4), 5)
    np.testing.assert_allclose(got, conv.reshape(2, -1, 5), rtol=0, atol=2e-5)


def test_patchify_order_by_hand():
    """Pixel (row, column, channel) holds 100 row + 10 column + channel."""
    image = 100 * jnp.arange(4)[:, None, None] + 10 * jnp.arange(4)[None, :, None] + jnp.arange(2)[None, None]
    want = [0, 1, 10, 11, 100, 101, 110, 111]
    tokens = patchify(image[None].astype(jnp.float32), 2)[0]
    np.testing.assert_array_equal(tokens, np.array(want)[None] + np.array([0, 20, 200, 220])[:, None])


def test_an_image_smaller_than_a_patch_is_refused():
    with pytest.raises(UserError, match="^images of 8 x 8 pixels hold no patch of 16"):
        patchify(jnp.zeros((1, 8, 8, 3)), 16)


def test_sincos_2d_by_hand():
    """Two frequencies, 1 and 1/100; first of the column, then of the row."""
    got = sincos_2d(2, 3, 8, temperature=100.0)
    assert got.shape == (6, 8)
    for row in range(2):
        for column in range(3):
            x, y = column, row
            want = [math.sin(x), math.sin(x / 100), math.cos(x), math.cos(x / 100)]
            want += [math.sin(y), math.sin(y / 100), math.cos(y), math.cos(y / 100)]
            np.testing.assert_allclose(got[row * 3 + column], want, rtol=0, atol=1e-7)


def test_sincos_2d_frequencies_are_geometric_down_to_the_temperature():
    """The rates at which the sines leave 0, read off one step along a column and a row."""
    omega = 10_000.0 ** -np.linspace(0, 1, 16)
    got = sincos_2d(2, 2, 64).astype(np.float64)
    np.testing.assert_allclose(np.arcsin(got[1, :16]), omega, rtol=1e-6)
    np.testing.assert_allclose(np.arcsin(got[2, 32:48]), omega, rtol=1e-6)


@pytest.mark.parametrize("width", [6, 4])
def test_sincos_2d_refuses_widths_it_cannot_fill(width):
    with pytest.raises(UserError, match=f"sincos2d positions need a width that is a multiple of 4 and at least 8, got {width}"):
        sincos_2d(2, 2, width)


def test_position_embedding_adds_a_row_to_each_token():
    table = jnp.arange(6.0).reshape(3, 2)
    got = PositionEmbedding().apply({"params": {"embedding": table}}, jnp.ones((4, 3, 2)))
    np.testing.assert_array_equal(got, np.broadcast_to(1 + np.asarray(table), (4, 3, 2)))


@pytest.mark.parametrize(("length", "rate", "kept"), [(16, 0.5, 8), (9, 0.5, 4), (7, 0.0, 7), (5, 0.99, 1)])
def test_drop_patches_keeps_a_subset_in_order(length, rate, kept):
    x = jnp.broadcast_to(jnp.arange(1.0, length + 1)[None, :, None], (6, length, 2))
    got = np.asarray(drop_patches(x, rate, jax.random.split(jax.random.key(0), 6)))
    assert got.shape == (6, kept, 2)
    assert (np.diff(got[:, :, 0], axis=1) > 0).all()  # distinct, in order
    np.testing.assert_array_equal(got[..., 0], got[..., 1])


def test_drop_patches_draws_every_patch_alike_and_by_an_examples_key_alone():
    n, length = 4000, 6
    x = jnp.broadcast_to(jnp.arange(length, dtype=jnp.float32)[None, :, None], (n, length, 1))
    keys = jax.random.split(jax.random.key(1), n)
    got = np.asarray(jax.jit(lambda x, k: drop_patches(x, 0.5, k))(x, keys))
    share = np.bincount(got.reshape(-1).astype(int), minlength=length) / n
    np.testing.assert_allclose(share, 0.5, atol=5 * 0.5 / n**0.5)
    np.testing.assert_array_equal(drop_patches(x[7:9], 0.5, keys[7:9]), got[7:9])


def test_drop_patches_refuses_to_drop_all():
    with pytest.raises(UserError, match=r"^patch_dropout is 1.0, expected at least 0 and below 1"):
        drop_patches(jnp.zeros((1, 4, 2)), 1.0, jax.random.split(jax.random.key(0), 1))


GRIDS = (((4, 4), (7, 7)), ((14, 14), (16, 16)), ((16, 16), (7, 9)), ((5, 8), (8, 3)), ((7, 7), (24, 24)))


@pytest.mark.parametrize(("old", "new"), GRIDS, ids=str)
def test_bicubic_resize_is_torchs(old, new):
    """tests/golden/vit.py; grids grow, shrink, and change shape."""
    with np.load(Path(__file__).parents[1] / "golden" / "vit.npz") as f:
        want = f[f"resize/{old[0]}x{old[1]}/{new[0]}x{new[1]}"]
    table = normal("positions", (old[0] * old[1], want.shape[1]))
    prefix = np.ones((2, want.shape[1]), np.float32)
    got = resize_positions(np.concatenate([prefix, table]), old, new, prefix=2)
    np.testing.assert_array_equal(got[:2], prefix)
    np.testing.assert_allclose(got[2:], want, rtol=0, atol=3e-6)


@pytest.mark.parametrize(("old", "new"), [*GRIDS, ((3, 3), (1, 1))], ids=str)
def test_linear_resize_is_scipys_zoom(old, new):
    """As big_vision calls it."""
    table = normal("positions", (old[0] * old[1], 5))
    want = ndimage.zoom(table.reshape(*old, 5).astype(np.float64), (new[0] / old[0], new[1] / old[1], 1), order=1)
    assert want.shape == (*new, 5)
    np.testing.assert_allclose(resize_positions(table, old, new, "linear"), want.reshape(-1, 5), rtol=0, atol=3e-6)


def test_resize_to_the_same_grid_changes_nothing():
    table = normal("positions", (13, 5))
    for method in ("bicubic", "linear"):
        np.testing.assert_allclose(resize_positions(table, (3, 4), (3, 4), method, prefix=1), table, rtol=0, atol=1e-6)


def test_resize_refuses():
    with pytest.raises(UserError, match="^position embeddings have 12 rows, expected 1 and a grid of 3 x 4"):
        resize_positions(np.zeros((12, 2), np.float32), (3, 4), (5, 5), prefix=1)
    with pytest.raises(UserError, match=r"^resize of position embeddings is 'cubic'; did you mean 'bicubic'\?"):
        resize_positions(np.zeros((12, 2), np.float32), (3, 4), (5, 5), "cubic")
