"""Convolutions by loops in float64; standardised weights by their definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.layers import Conv, average_pool
from mmjax.layers.conv import PADDINGS, convolve, one_by_one, standardised

R = np.random.default_rng(0)


def by_loops(x, kernel, stride, padding, groups):
    """Cross-correlation, one output at a time."""
    (b, h, w, c), (k, _, own, o) = x.shape, kernel.shape
    out = [-(-s // stride) if padding == "same" else (s + 2 * (k // 2) * (padding == "centre") - k) // stride + 1 for s in (h, w)]
    need = [max((n - 1) * stride + k - s, 0) for n, s in zip(out, (h, w), strict=True)] if padding == "same" else [0, 0]
    before = [n // 2 for n in need] if padding == "same" else [k // 2 * (padding == "centre")] * 2
    padded = np.zeros((b, h + 4 * k, w + 4 * k, c))
    padded[:, before[0] : before[0] + h, before[1] : before[1] + w] = x
    y = np.zeros((b, *out, o))
    for i, j, f in np.ndindex(*out, o):
        first = f // (o // groups) * own
        patch = padded[:, i * stride : i * stride + k, j * stride : j * stride + k, first : first + own]
        y[:, i, j, f] = (patch * kernel[..., f]).sum((1, 2, 3))
    return y


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("size", "stride", "groups"), [(3, 1, 1), (3, 2, 1), (3, 2, 2), (1, 1, 1), (1, 2, 2)])
def test_convolution_by_loops(padding, size, stride, groups):
    for shape in ((2, 7, 6, 4), (1, 8, 5, 4)):
        x, kernel = R.standard_normal(shape), R.standard_normal((size, size, 4 // groups, 6))
        got = convolve(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), stride, padding, groups)
        np.testing.assert_allclose(got, by_loops(x, kernel, stride, padding, groups), rtol=0, atol=2e-5)


def test_groups_one_by_one_are_the_grouped_convolution():
    """What a CPU runs and what other devices run, with gradients."""
    product = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(2, 2), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x, kernel = (jnp.asarray(R.standard_normal(s), jnp.float32) for s in ((2, 7, 6, 6), (3, 3, 2, 9)))
    apart = lambda x, k: one_by_one(product, 3, x, k)
    whole = lambda x, k: product(x, k, feature_group_count=3)
    np.testing.assert_allclose(apart(x, kernel), whole(x, kernel), rtol=0, atol=1e-5)
    grad = lambda f: jax.grad(lambda x, k: jnp.sin(f(x, k)).sum(), (0, 1))(x, kernel)
    for a, b in zip(grad(apart), grad(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


def test_standardised_weights():
    """Whatever a kernel's offset and scale, every output has weights of mean 0 and sum of squares 1."""
    kernel = jnp.asarray(5 + 3 * R.standard_normal((3, 3, 4, 6)), jnp.float32)
    got = np.asarray(standardised(kernel, 1e-4), np.float64)
    np.testing.assert_allclose(got.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose((got**2).sum((0, 1, 2)), 1, rtol=1e-5)


def test_the_floor_of_standardised_weights():
    """eps is the least value of fan-in x variance, so nearly equal weights are divided by sqrt(eps) and no more."""
    offsets = np.array([1e-3, -1e-3])  # variance 1e-6, fan-in 2: 2e-6, below 1e-4
    kernel = jnp.asarray((offsets + 7)[None, None, :, None], jnp.float64 if jax.config.x64_enabled else jnp.float32)
    np.testing.assert_allclose(standardised(kernel, 1e-4)[0, 0, :, 0], offsets / 1e-2, rtol=1e-3)
    np.testing.assert_allclose(standardised(kernel, 1e-7)[0, 0, :, 0], offsets / np.sqrt(2e-6), rtol=1e-3)


def test_module_has_gain_and_bias():
    x = jnp.asarray(R.standard_normal((2, 5, 5, 3)), jnp.float32)
    conv = Conv(4, use_bias=True, standardise=True)
    params = {
        "kernel": jnp.asarray(R.standard_normal((3, 3, 3, 4)), jnp.float32),
        "gain": jnp.arange(1.0, 5),
        "bias": jnp.arange(4.0),
    }
    want = convolve(x, standardised(params["kernel"], 1e-4)) * params["gain"][None, None, None] + params["bias"][None, None, None]
    np.testing.assert_allclose(conv.apply({"params": params}, x), want, rtol=0, atol=1e-5)
    half = conv.clone(dtype=jnp.bfloat16).apply({"params": params}, x)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), want, rtol=0, atol=0.2)


def test_average_pool():
    """Over an edge, "same" averages what is there and "valid" leaves it out."""
    x = jnp.arange(15.0).reshape(1, 3, 5, 1)
    valid = average_pool(x, 2)
    np.testing.assert_array_equal(valid[0, :, :, 0], [[3, 5]])
    same = average_pool(x, 2, "same")
    np.testing.assert_array_equal(same[0, :, :, 0], [[3, 5, 6.5], [10.5, 12.5, 14]])


def test_bad_options():
    x, kernel = jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 3, 4))
    with pytest.raises(UserError, match=r"^padding is 'center'; did you mean 'centre'\?"):
        convolve(x, kernel, padding="center")
    with pytest.raises(UserError, match="^a convolution of 3 channels to 4 does not fall into 2 groups"):
        Conv(4, groups=2).init(jax.random.key(0), x)
