"""Dense and Embed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers import Dense, Embed


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("lead", [(), (5,), (2, 5), (2, 3, 5)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_dense_is_a_matrix_product(lead, use_bias):
    """Roundings of 32 products of size 1 add to about 1e-6."""
    x, kernel, bias = draw(*lead, 32), draw(32, 7, seed=1), draw(7, seed=2)
    params = {"kernel": kernel, **({"bias": bias} if use_bias else {})}
    got = Dense(7, ("embed", "mlp"), use_bias=use_bias).apply({"params": params}, x)
    want = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64) + (np.asarray(bias, np.float64) if use_bias else 0)
    assert got.shape == (*lead, 7)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_compute_type_is_not_the_parameters():
    layer, x = Dense(7, ("embed", "mlp"), dtype=jnp.bfloat16), draw(3, 32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    assert {s.dtype for s in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    params = {"kernel": draw(32, 7, seed=1), "bias": draw(7, seed=2)}
    got = layer.apply({"params": params}, x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), Dense(7, ("embed", "mlp")).apply({"params": params}, x), rtol=0.02, atol=0.1)


def test_axes_name_kernel_and_bias():
    params = jax.eval_shape(Dense(7, ("embed", "mlp")).init, jax.random.key(0), draw(3, 32))["params"]
    assert (params["kernel"].names, params["bias"].names) == (("embed", "mlp"), ("mlp",))


def test_embed_takes_rows():
    table, ids = draw(10, 4), jnp.array([[3, 9], [0, 3]])
    np.testing.assert_array_equal(Embed(10, 4).apply({"params": {"embedding": table}}, ids), np.asarray(table)[np.asarray(ids)])
    assert Embed(10, 4, jnp.bfloat16).apply({"params": {"embedding": table}}, ids).dtype == jnp.bfloat16


@pytest.mark.parametrize("axis", ["vocab", "position"])
def test_embed_names_its_rows(axis):
    boxed = Embed(4, 3, axis=axis).init(jax.random.key(0), jnp.array([0]))["params"]["embedding"]
    assert boxed.names == (axis, "embed")


def test_logits_of_the_table_itself():
    x, table = draw(2, 3, 4), draw(10, 4, seed=1)
    got = Embed(10, 4).apply({"params": {"embedding": table}}, x, method="attend")
    np.testing.assert_allclose(got, np.asarray(x) @ np.asarray(table).T, rtol=0, atol=1e-5)
