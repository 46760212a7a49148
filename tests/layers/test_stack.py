"""Stacking layers, and the border between boxed parameters and plain trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax.core import rng, tree
from mmjax.core.errors import UserError
from mmjax.layers import Block, Dense, split_axes, stack, stack_params, unstack_params
from mmjax.layers.dense import normal


class Stack(nn.Module):
    """Three blocks."""

    scan: bool = True
    remat: str = "none"
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, keys=None):
        make = lambda name: Block(2, 8, "gelu", dropout=self.rate, kernel_init=normal(0.5), name=name)
        return stack(make, 3, x, keys=keys, scan=self.scan, remat=self.remat)


X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32)


def random_params(model):
    shapes, axes = split_axes(jax.eval_shape(model.init, jax.random.key(0), X)["params"])
    r = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(0.5 * r.standard_normal(s.shape), s.dtype), shapes), axes


def test_round_trip_and_names():
    params, _ = random_params(Stack())
    unstacked = unstack_params(params)
    assert set(unstacked) == {"blocks_0", "blocks_1", "blocks_2"}
    shapes, _ = random_params(Stack(scan=False))
    assert jax.tree.map(jnp.shape, unstacked) == jax.tree.map(jnp.shape, shapes)
    for path, x in tree.flatten(stack_params(unstacked)).items():
        np.testing.assert_array_equal(x, tree.flatten(params)[path])


def test_stacking_keeps_order_beyond_ten_layers_and_leaves_other_names_alone():
    """Sorted as text, blocks_10 would come before blocks_2."""
    params = {"t": {f"blocks_{i}": {"w": jnp.full(2, i)} for i in range(12)}, "myblocks": {"w": jnp.ones(3)}, "end": jnp.ones(1)}
    stacked = stack_params(params)
    np.testing.assert_array_equal(stacked["t"]["blocks"]["w"][:, 0], np.arange(12))
    assert set(stacked) == {"t", "myblocks", "end"}
    again = unstack_params(stacked)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))


def test_layers_start_out_different():
    params, _ = split_axes(jax.jit(Stack().init)(jax.random.key(0), X)["params"])
    kernel = params["blocks"]["attn"]["q"]["kernel"]
    assert kernel.shape == (3, 4, 4)
    assert len({float(k[0, 0]) for k in kernel}) == 3


def test_axes_of_a_stack_begin_with_layers():
    _, axes = random_params(Stack())
    assert axes["blocks"]["mlp"]["up"] == {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")}
    _, axes = random_params(Stack(scan=False))
    assert axes["blocks_1"]["mlp"]["up"] == {"kernel": ("embed", "mlp"), "bias": ("mlp",)}


def test_dropout_differs_between_layers_branches_and_examples():
    """A block of zero weights but for its branches' output biases adds two dropped constants a layer: their masks can be read off."""

    class Constants(nn.Module):
        @nn.compact
        def __call__(self, x, keys):
            return stack(lambda name: Block(2, 8, "gelu", dropout=0.5, name=name), 3, x, keys=keys)

    x, keys = jnp.zeros((2, 16, 32)), rng.per_example(jax.random.key(0), jnp.arange(2))
    shapes, _ = split_axes(jax.eval_shape(Constants().init, jax.random.key(0), x, keys)["params"])
    params = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes)
    # Powers of two: the sum at an entry spells out which of the six masks kept it.
    for branch, layer, bias in (("attn", "out", [1.0, 4.0, 16.0]), ("mlp", "down", [2.0, 8.0, 32.0])):
        params["blocks"][branch][layer]["bias"] = jnp.broadcast_to(jnp.array(bias)[:, None] / 2, (3, 32))
    total = np.asarray(jax.jit(Constants().apply)({"params": params}, x, keys)).astype(int)
    masks = [(total[i] >> bit) & 1 for i in range(2) for bit in range(6)]
    for a in range(12):
        assert abs(masks[a].mean() - 0.5) < 5 * 0.5 / 512**0.5
        for b in range(a):
            assert abs((masks[a] == masks[b]).mean() - 0.5) < 5 * 0.5 / 512**0.5


def test_unknown_policy_is_refused():
    with pytest.raises(UserError, match="^model.remat is 'dot'; did you mean 'dots'?"):
        random_params(Stack(remat="dot"))


def test_split_axes_of_dense():
    variables = Dense(3, ("embed", "mlp")).init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    params, axes = split_axes(variables)
    assert axes == {"kernel": ("embed", "mlp"), "bias": ("mlp",)}
    assert isinstance(params["kernel"], jax.Array)


@pytest.mark.parametrize("init", [nn.initializers.ones, nn.with_partitioning(nn.initializers.ones, (None,))])
def test_split_axes_refuses_a_parameter_without_logical_names(init):
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.param("gain", init, (1,))

    with pytest.raises(ValueError, match=r"parameter \['gain'\] has no logical axes"):
        split_axes(Plain().init(jax.random.key(0), jnp.ones(1))["params"])


class Scaled(nn.Module):
    """Multiplies by a parameter and by what it is given."""

    @nn.compact
    def __call__(self, x, keys=None, *, factor, shift):
        w = self.param("w", nn.with_logical_partitioning(nn.initializers.ones, ("width",)), (1,), jnp.float32)
        if self.is_mutable_collection("state"):
            self.put_variable("state", "w", w + factor)
        return x * w[0] * factor + shift


class Ramp(nn.Module):
    scan: bool

    @nn.compact
    def __call__(self, x, factors, shift):
        make = lambda name: Scaled(name=name)
        return stack(make, 3, x, scan=self.scan, each={"factor": factors}, shift=shift)


def test_each_block_is_given_its_own_and_all_what_they_share():
    """Of images too, and what blocks put into "state" comes out stacked: ((x 2 + 1) 3 + 1) 5 + 1."""
    x, factors = jnp.ones((2, 3, 3, 1)), jnp.array([2.0, 3.0, 5.0])
    params = {"blocks": {"w": jnp.array([[1.0], [10.0], [100.0]])}}
    for scan in (True, False):
        tree_of = params if scan else unstack_params(params)
        got, new = Ramp(scan).apply({"params": tree_of}, x, factors, jnp.float32(1), mutable=["state"])
        np.testing.assert_array_equal(got, np.full(x.shape, ((1 * 2 + 1) * 30 + 1) * 500 + 1))
        state = new["state"] if scan else stack_params(new["state"])
        np.testing.assert_array_equal(state["blocks"]["w"], [[3], [13], [105]])
