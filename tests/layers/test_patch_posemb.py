"""Patches against a convolution; position embeddings against their formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.layers import PositionEmbedding, patchify, sincos_2d


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
