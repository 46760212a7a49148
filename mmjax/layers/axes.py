"""The border between linen's boxed parameters and plain nested dicts."""

from typing import Any

import jax
from flax import linen as nn

PyTree = Any


def split_axes(variables: PyTree) -> tuple[PyTree, PyTree]:
    """Boxed parameters -> (plain arrays, the same tree of tuples of logical axis names).

    Raises:
      ValueError: a parameter that was created without naming its axes.
    """

    def value(path, x):
        if not isinstance(x, nn.LogicallyPartitioned):
            raise ValueError(f"parameter {jax.tree_util.keystr(path)} has no logical axes; create it through mmjax.layers")
        return x.value

    boxed = lambda x: isinstance(x, nn.meta.AxisMetadata)
    params = jax.tree_util.tree_map_with_path(value, variables, is_leaf=boxed)
    axes = jax.tree.map(lambda x: tuple(x.names), variables, is_leaf=boxed)
    return params, axes
