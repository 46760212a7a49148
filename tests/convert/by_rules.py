"""Parameters through a family's rules, and back, without a file."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.convert.rules import export, leaves
from mmjax.convert.tensors import of_array
from mmjax.core import tree
from mmjax.layers import split_axes


def shapes_of(init, *inputs, **options):
    """Path -> shape of what `init` makes of inputs of these shapes, or arrays."""
    inputs = [jax.ShapeDtypeStruct(x, jnp.float32) if isinstance(x, tuple) else x for x in inputs]
    made = jax.eval_shape(lambda *x: init(jax.random.key(0), *x, **options), *inputs)
    return tree.flatten(split_axes(made["params"])[0])


def imported(rules, named, shapes):
    """PyTorch's tensors as our parameters."""
    found = leaves(rules, {name: of_array(np.asarray(x)) for name, x in named.items()}, shapes, "the test's tensors")
    return tree.unflatten({path: jnp.asarray(np.asarray(leaf)) for path, leaf in found.items()})


def assert_comes_back(rules, named, params):
    """Export gives the tensors that import was given."""
    back = {name: x.read() for name, x in export(rules, {k: np.asarray(v) for k, v in tree.flatten(params).items()}).items()}
    assert set(back) == set(named)
    for name, x in named.items():
        np.testing.assert_allclose(back[name], x, rtol=0, atol=1e-6, err_msg=name)
