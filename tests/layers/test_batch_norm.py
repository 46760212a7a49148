"""Batch normalisation by hand in float64: values, gradients, running statistics, and how the trainer carries them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.core import sharding, state, step, tree
from mmjax.core.errors import UserError
from mmjax.core.types import Task
from mmjax.layers import BatchNorm, split_axes
from mmjax.layers.batch_norm import STATISTICS

R = np.random.default_rng(0)
X = 2 + R.standard_normal((4, 3, 2, 5)) * np.arange(1, 6)
N = 4 * 3 * 2
AXES = (0, 1, 2)
EPS = 1e-5
PARAMS = {"scale": R.standard_normal(5), "bias": R.standard_normal(5), "mean": R.standard_normal(5), "var": 1 + R.random(5)}
F32 = {k: jnp.asarray(v, jnp.float32) for k, v in PARAMS.items()}


NORM = BatchNorm()


def apply(x, params=F32, norm=NORM, **how):
    return norm.apply({"params": params}, jnp.asarray(x, jnp.float32), **how)


def train(x, params=F32, norm=NORM):
    return apply(x, params, norm, train=True, mutable=["state"])


def test_in_evaluation_running_statistics_are_used():
    want = (X - PARAMS["mean"]) / np.sqrt(PARAMS["var"] + EPS) * PARAMS["scale"] + PARAMS["bias"]
    np.testing.assert_allclose(apply(X), want, rtol=0, atol=2e-5)


def test_in_training_the_batch_is_normalised_and_statistics_move():
    """The batch with its biased variance; the running variance takes the unbiased one, n / (n - 1) as large, at weight 0.1."""
    mean, var = X.mean(AXES), X.var(AXES)
    y, new = train(X)
    np.testing.assert_allclose(y, (X - mean) / np.sqrt(var + EPS) * PARAMS["scale"] + PARAMS["bias"], rtol=0, atol=2e-5)
    assert set(new["state"]) == {"mean", "var"}
    np.testing.assert_allclose(new["state"]["mean"], 0.9 * PARAMS["mean"] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(new["state"]["var"], 0.9 * PARAMS["var"] + 0.1 * var * N / (N - 1), rtol=1e-5)


def test_gradients_through_the_batch_by_hand():
    """dx = scale / sigma (g - mean(g) - z mean(g z)) (Ioffe and Szegedy, section 3); running statistics have no gradient."""
    g = R.standard_normal(X.shape)
    z = (X - X.mean(AXES)) / np.sqrt(X.var(AXES) + EPS)
    want = PARAMS["scale"] / np.sqrt(X.var(AXES) + EPS) * (g - g.mean(AXES) - z * (g * z).mean(AXES))
    loss = lambda x, p: (train(x, p)[0] * jnp.asarray(g, jnp.float32)).sum()
    dx, dp = jax.grad(loss, (0, 1))(jnp.asarray(X, jnp.float32), F32)
    np.testing.assert_allclose(dx, want, rtol=0, atol=2e-5)
    np.testing.assert_allclose(dp["scale"], (g * z).sum(AXES), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dp["bias"], g.sum(AXES), rtol=1e-4, atol=1e-5)
    assert not dp["mean"].any() and not dp["var"].any()


def test_a_small_spread_about_a_large_mean_survives_float32():
    x = 1000 + R.standard_normal((64, 5)) * 0.1
    mean, var = x.astype(np.float32).astype(np.float64).mean(0), x.astype(np.float32).astype(np.float64).var(0)
    _, new = train(x, {**F32, "var": jnp.zeros(5)})
    np.testing.assert_allclose(new["state"]["var"], 0.1 * var * 64 / 63, rtol=1e-3)
    np.testing.assert_allclose(new["state"]["mean"], 0.9 * PARAMS["mean"] + 0.1 * mean, rtol=1e-6)


def test_frozen_statistics():
    y, new = train(X, norm=BatchNorm(frozen=True))
    np.testing.assert_array_equal(y, apply(X))
    assert not new


def test_half_precision_keeps_float32_statistics():
    y, new = train(X, norm=BatchNorm(dtype=jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(new)} == {jnp.dtype(jnp.float32)}


def test_statistics_are_of_the_global_batch():
    """Eight devices hold two examples each."""
    x = jnp.asarray(R.standard_normal((16, 5)) + np.arange(16)[:, None], jnp.float32)
    mesh = sharding.make_mesh({"data": 8})
    with sharding.use(mesh):
        _, new = jax.jit(train)(jax.device_put(x, sharding.batch_sharding(mesh)))
    np.testing.assert_allclose(new["state"]["mean"], 0.9 * PARAMS["mean"] + 0.1 * np.asarray(x, np.float64).mean(0), rtol=1e-5)
    np.testing.assert_allclose(new["state"]["var"], 0.9 * PARAMS["var"] + 0.1 * np.asarray(x, np.float64).var(0) * 16 / 15, rtol=1e-5)


def test_training_without_a_place_for_statistics_or_with_one_value_is_refused():
    with pytest.raises(ValueError, match="mutable="):
        apply(X, train=True)
    with pytest.raises(UserError, match="^batch norm in training needs more than one value a channel"):
        train(X[:1, 0, 0])


@pytest.mark.parametrize("path", ["mean", "var", "image/stage1/blocks/norm1/var", "stem_norm1/mean"])
def test_pattern_of_statistics(path):
    assert tree.matches(path, (STATISTICS,))
    assert not tree.matches(path + "/scale", (STATISTICS,)) and not tree.matches("a/" + path.replace("/", "_") + "iant", (STATISTICS,))


def test_the_trainer_carries_statistics_in_order_through_accumulation():
    """Two microbatches, rows 0 2 4 6 and 1 3 5 7: each is normalised by itself, and the second moves what the first left."""
    batch = {"x": jnp.asarray(R.standard_normal((8, 5)) + np.arange(8)[:, None] ** 2, jnp.float32)}

    def loss(params, batch, key, step):
        y, new = NORM.apply({"params": params}, batch["x"], True, mutable=["state"])
        return (y**2).mean(), new

    task = Task(
        init=lambda key: dict(F32),
        axes=split_axes(NORM.init(jax.random.key(0), batch["x"])["params"])[1],
        loss=loss,
        batch_spec=jax.eval_shape(lambda: batch),
        predict={},
        state=(STATISTICS,),
    )
    tx = optax.with_extra_args_support(optax.sgd(0.1))
    new, _ = jax.jit(step.make_train_step(task, tx, accumulate=2, ema={"e": 0.5}))(state.init(task, tx, {"e": 0.5}, 0), batch)
    mean, var = PARAMS["mean"], PARAMS["var"]
    for part in (np.asarray(batch["x"], np.float64)[i::2] for i in range(2)):
        mean, var = 0.9 * mean + 0.1 * part.mean(0), 0.9 * var + 0.1 * part.var(0, ddof=1)
    np.testing.assert_allclose(new.params["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(new.params["var"], var, rtol=1e-5)
    assert set(new.ema["e"]) == {"scale", "bias"}
    assert not np.allclose(new.params["scale"], F32["scale"])
