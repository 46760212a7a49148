"""Dropout's statistics, and what its draws depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import rng
from mmjax.layers import dropout, stochastic_depth


def keys(n):
    return rng.per_example(jax.random.key(0), jnp.arange(n))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_statistics(rate):
    """The share of zeros within five standard deviations of the rate, overall and in each example; the rest is scaled to keep the mean."""
    n, size = 8, 4096
    y = np.asarray(dropout(jnp.ones((n, size)), rate, keys(n)))
    dropped = y == 0
    np.testing.assert_allclose(y[~dropped], 1 / (1 - rate), rtol=1e-6)
    deviation = (rate * (1 - rate) / size) ** 0.5
    assert np.abs(dropped.mean(1) - rate).max() < 5 * deviation
    assert abs(dropped.mean() - rate) < 5 * deviation / n**0.5
    # Independent examples: two masks agree as often as chance has it.
    assert abs((dropped[0] == dropped[1]).mean() - (rate**2 + (1 - rate) ** 2)) < 5 * 0.5 / size**0.5


def test_is_the_identity_without_keys_or_rate():
    x = jnp.arange(6.0).reshape(2, 3)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, keys(2)) is x


def test_a_row_depends_on_its_key_alone():
    x, k = jnp.ones((6, 5, 7)), keys(6)
    want = np.asarray(dropout(x, 0.5, k))
    np.testing.assert_array_equal(dropout(x[2:3], 0.5, k[2:3]), want[2:3])
    np.testing.assert_array_equal(dropout(x[:4], 0.5, k[:4]), want[:4])
    np.testing.assert_array_equal(dropout(x, 0.5, k[::-1]), want[::-1])


def test_keeps_the_type():
    assert dropout(jnp.ones((2, 3), jnp.bfloat16), 0.5, keys(2)).dtype == jnp.bfloat16


def test_gradient_passes_where_the_value_did():
    x = jnp.ones((2, 64))
    np.testing.assert_array_equal(jax.grad(lambda x: dropout(x, 0.5, keys(2)).sum())(x), dropout(x, 0.5, keys(2)))


def test_stochastic_depth_takes_whole_examples_and_scales_none():
    """A share of them within five standard deviations of the rate; also with a rate that is traced, as in a scan."""
    n, rate = 4096, 0.3
    x = jnp.ones((n, 2, 3))
    y = np.asarray(jax.jit(stochastic_depth)(x, jnp.float32(rate), keys(n)))
    kept = y[:, 0, 0] != 0
    np.testing.assert_array_equal(y, np.broadcast_to(kept[:, None, None], y.shape))
    assert abs((~kept).mean() - rate) < 5 * (rate * (1 - rate) / n) ** 0.5
    np.testing.assert_array_equal(stochastic_depth(x[2:9], rate, keys(n)[2:9]), y[2:9])
    assert stochastic_depth(x, rate, None) is x
    np.testing.assert_array_equal(stochastic_depth(x, 0.0, keys(n)), x)
