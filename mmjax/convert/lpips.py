"""LPIPS with VGG-16, from the two files it is published in: torchvision's network and the learnt weights of its channels."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.convert import source
from mmjax.convert.layout import dropped
from mmjax.convert.rules import Rule, conv, identity, leaves, reshape
from mmjax.core import tree
from mmjax.core.errors import UserError
from mmjax.layers import split_axes
from mmjax.models.lpips import LPIPS

Params = Mapping[str, Any]


def rules(model: LPIPS, names: Collection[str]) -> list[Rule]:
    """The network as torchvision's `features.N` or as LPIPS' own `net.sliceG.N`; of both the classifier's layers are left out."""
    sliced, found, n = "net.slice1.0.weight" in names, [], 0
    for i, (channels, depth) in enumerate(model.groups, 1):
        n += i > 1  # the maximum
        for j in range(1, depth + 1):
            at = f"net.slice{i}.{n}" if sliced else f"features.{n}"
            found += [Rule(f"{at}.weight", f"net/conv{i}_{j}/kernel", conv), Rule(f"{at}.bias", f"net/conv{i}_{j}/bias", identity)]
            n += 2  # and its rectifier
        found.append(Rule(f"lin{i - 1}.model.1.weight", f"head{i}", reshape((1, channels, 1, 1), (channels,))))
    return found + dropped(names, r"classifier\..*|scaling_layer\..*|lins\..*")


def load(*paths: str | Path, model: LPIPS | None = None) -> Params:
    """Parameters of `models.lpips.LPIPS` from one file that holds everything, or from the network's and the channel weights'.

    Raises:
      UserError: no path, a file that cannot be read safely, or other weights.
    """
    if not paths:
        raise UserError("LPIPS needs the path of a file of VGG-16 weights, and of the learnt weights of its channels")
    model = LPIPS() if model is None else model
    tensors = {name: tensor for path in paths for name, tensor in source.open_source(path).tensors.items()}
    images = jax.ShapeDtypeStruct((1, 2 ** len(model.groups), 2 ** len(model.groups), 3), np.float32)
    shapes, _ = split_axes(jax.eval_shape(model.init, jax.random.key(0), images, images)["params"])
    found = leaves(rules(model, tensors), tensors, tree.flatten(shapes), ", ".join(map(str, paths)))
    return tree.unflatten({name: jnp.asarray(np.asarray(leaf)) for name, leaf in found.items()})
