"""Norms against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers import LayerNorm, RMSNorm


def reference(x, scale, bias, eps):
    x = np.asarray(x, np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * np.asarray(scale, np.float64) + np.asarray(bias)


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.1])
@pytest.mark.parametrize("shape", [(16,), (3, 16), (2, 3, 16)])
def test_equals_float64(eps, shape):
    r = np.random.default_rng(0)
    x, scale, bias = (jnp.asarray(r.standard_normal(s), jnp.float32) for s in (shape, (16,), (16,)))
    got = LayerNorm(eps).apply({"params": {"scale": scale, "bias": bias}}, x)
    np.testing.assert_allclose(got, reference(x, scale, bias, eps), rtol=0, atol=2e-6)


def test_a_large_mean_costs_no_more_than_its_rounding():
    """The mean is subtracted before squaring: E[x^2] - E[x]^2 would lose everything at 4096 +- 1, whose float32 spacing is 5e-4."""
    x = jnp.asarray(4096 + np.random.default_rng(0).standard_normal((4, 256)), jnp.float32)
    ones, zeros = jnp.ones(256), jnp.zeros(256)
    got = LayerNorm(1e-5).apply({"params": {"scale": ones, "bias": zeros}}, x)
    np.testing.assert_allclose(got, reference(x, ones, zeros, 1e-5), rtol=0, atol=2e-3)


def test_bfloat16_input_is_normalised_in_float32():
    """Then the only error is the rounding of the result, 2^-9 of it."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 64)), jnp.bfloat16)
    ones, zeros = jnp.ones(64), jnp.zeros(64)
    got = LayerNorm(1e-5, jnp.bfloat16).apply({"params": {"scale": ones, "bias": zeros}}, x)
    assert got.dtype == jnp.bfloat16
    want = reference(x.astype(jnp.float32), ones, zeros, 1e-5)
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2.0**-8, atol=1e-6)


def test_constant_input_is_the_bias():
    got = LayerNorm().apply({"params": {"scale": jnp.ones(8), "bias": jnp.arange(8.0)}}, jnp.full((2, 8), 3.0))
    np.testing.assert_array_equal(got, np.broadcast_to(np.arange(8.0), (2, 8)))


@pytest.mark.parametrize("eps", [1e-6, 0.1])
@pytest.mark.parametrize("shape", [(16,), (2, 3, 16)])
def test_rms_equals_float64(eps, shape):
    """The mean stays in, and nothing is added."""
    r = np.random.default_rng(0)
    x, scale = (jnp.asarray(2 + r.standard_normal(s), jnp.float32) for s in (shape, (16,)))
    wide = np.asarray(x, np.float64)
    want = wide / np.sqrt(np.square(wide).mean(-1, keepdims=True) + eps) * np.asarray(scale, np.float64)
    np.testing.assert_allclose(RMSNorm(eps).apply({"params": {"scale": scale}}, x), want, rtol=0, atol=2e-6)


def test_rms_of_bfloat16_is_taken_in_float32():
    """Over 4096 equal squares a bfloat16 sum would stop at 256; the norm would be four times too large."""
    got = RMSNorm(dtype=jnp.bfloat16).apply({"params": {"scale": jnp.ones(4096)}}, jnp.full((1, 4096), 3.0, jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got.astype(jnp.float32), np.ones((1, 4096)))


def test_layer_norm_without_gains_has_no_parameters():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 8)), jnp.float32)
    model = LayerNorm(1e-6, affine=False)
    variables = model.init(jax.random.key(0), x)
    assert "params" not in variables
    want = (np.float64(x) - np.float64(x).mean(-1, keepdims=True)) / np.sqrt(np.float64(x).var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(model.apply(variables, x), want, rtol=0, atol=1e-5)


def test_without_bias_and_around_one():
    """MPT's layer norm has a gain alone; Gemma's RMS norm holds what its gain differs from 1 by, 0 at first."""
    r = np.random.default_rng(0)
    x, scale = (jnp.asarray(r.standard_normal(s), jnp.float32) for s in ((3, 16), (16,)))
    got = LayerNorm(1e-5, use_bias=False).apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(got, reference(x, scale, 0, 1e-5), rtol=0, atol=2e-6)
    wanted = RMSNorm(1e-6).apply({"params": {"scale": 1 + scale}}, x)
    around = RMSNorm(1e-6, plus_one=True)
    np.testing.assert_allclose(around.apply({"params": {"scale": scale}}, x), wanted, rtol=1e-6, atol=1e-7)
    assert not around.init(jax.random.key(0), x)["params"]["scale"].value.any()
