import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mmjax.core import sharding
from mmjax.core.errors import UserError


def test_mesh_fills_and_refuses():
    assert sharding.mesh_shape({"data": -1, "fsdp": 2, "tensor": 2}, 8) == (2, 2, 2)
    assert dict(sharding.make_mesh({"fsdp": -1}).shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    for sizes, message in [
        ({"data": 3}, r"data=3, fsdp=1, tensor=1\) needs 3 devices, there are 8"),
        ({"data": -1, "fsdp": 3}, "multiply to 3, which does not divide the 8"),
        ({"data": -1, "fsdp": -1}, "at most one is -1"),
        ({"dat": 8}, "did you mean 'data'"),
    ]:
        with pytest.raises(UserError, match=message):
            sharding.mesh_shape(sizes, 8)


def test_spec_follows_the_table_and_leaves_whole_what_does_not_divide():
    mesh = sharding.abstract_mesh({"data": 2, "fsdp": 4, "tensor": 2}, 16)
    assert sharding.spec(("embed", "mlp"), (8, 6), mesh) == P(("fsdp",), ("tensor",))
    assert sharding.spec(("layers", "embed", None), (3, 8, 5), mesh) == P(None, ("fsdp",), None)
    assert sharding.spec(("embed", "mlp"), (6, 7), mesh) == P(None, None)
    assert sharding.spec(("batch", "embed"), (16, 8), mesh) == P(("data", "fsdp"), None)  # an axis is used once
    with pytest.raises(ValueError, match="'embde' is not in the sharding table; did you mean 'embed'"):
        sharding.spec(("embde",), (8,), mesh)
    with pytest.raises(ValueError, match="name 1 dimensions"):
        sharding.spec(("embed",), (8, 8), mesh)


def test_table_overrides():
    assert sharding.make_table((("vocab", None), ("embed", ("fsdp", "tensor"))))["embed"] == ("fsdp", "tensor")
    with pytest.raises(UserError, match="'fdsp', which is no mesh axis; did you mean 'fsdp'"):
        sharding.make_table((("embed", "fdsp"),))


def test_rules_can_replicate_and_must_be_known():
    mesh = sharding.make_mesh({"fsdp": 8})
    params = {"a": jnp.zeros((8, 2)), "b": jnp.zeros((8,))}
    axes = {"a": ("embed", None), "b": ("embed",)}
    placed = sharding.params_shardings(params, axes, mesh, sharding.RULES, (("b", "replicate"), (".*", "logical")))
    assert placed["a"].spec == P(("fsdp",), None) and placed["b"].spec == P()
    with pytest.raises(UserError, match="neither 'logical' nor 'replicate'"):
        sharding.params_shardings(params, axes, mesh, sharding.RULES, ((".*", "fsdp"),))


def test_optimizer_state_lies_with_its_parameter():
    import optax

    mesh = sharding.make_mesh({"fsdp": 8})
    params = {"m": {"w": jnp.zeros((8, 16)), "b": jnp.zeros((16,))}}
    places = sharding.params_shardings(params, {"m": {"w": ("embed", None), "b": (None,)}}, mesh)
    tx = optax.adafactor(min_dim_size_to_factor=4, momentum=0.9)
    got = sharding.like_params(jax.eval_shape(tx.init, params), params, places, mesh)
    for state, place in zip(jax.tree.leaves(jax.eval_shape(tx.init, params)), jax.tree.leaves(got), strict=True):
        assert place.spec == (P(("fsdp",), None) if state.shape == (8, 16) else P(*[None] * len(place.spec)))
    assert sum(place.spec == P(("fsdp",), None) for place in jax.tree.leaves(got)) == 1


def test_batches_that_do_not_split_are_refused_with_a_size_that_does():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
    sharding.check_batch(16, 2, mesh)
    with pytest.raises(UserError, match=r"batch_size 20 does not split over 8 devices .* multiple of 16, for example 16"):
        sharding.check_batch(20, 2, mesh)


def test_put_batch_places_rows_in_order():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    x = np.arange(24, dtype=np.float32).reshape(8, 3)
    rows = sharding.local_rows(8, mesh)
    np.testing.assert_array_equal(rows, np.arange(8))
    placed = sharding.put_batch({"x": x[rows]}, 8, mesh)["x"]
    np.testing.assert_array_equal(placed, x)
    assert placed.sharding.shard_shape(placed.shape) == (2, 3)


def test_constrain_is_the_identity_outside_a_mesh_and_places_inside():
    x = jnp.zeros((8, 4))
    assert sharding.constrain(x, "batch", None) is x and sharding.gathered(x, "embed", "mlp") is x
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    with sharding.use(mesh):
        out = jax.jit(lambda x: (sharding.constrain(x, "batch", "mlp"), sharding.gathered(x, "embed", "mlp")))(x)
    assert out[0].sharding.spec == P("fsdp", "tensor") and out[1].sharding.spec == P(None, "tensor")


def test_splits_are_the_axes_that_split_a_name():
    assert sharding.splits("batch") == (None, ())
    mesh = sharding.make_mesh({"data": 4, "tensor": 2}, jax.devices()[:8])
    assert sharding.splits("batch", mesh) == (mesh, ("data",))
    with sharding.use(mesh, sharding.make_table((("batch", ("data", "tensor")),))):
        assert sharding.splits("batch") == (mesh, ("data", "tensor"))
        assert sharding.splits("layers") == (mesh, ())
