"""The Inception network of Frechet distances, from the file of weights that pytorch-fid loads (`pt_inception-2015-12-05`)."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.convert import pieces, source
from mmjax.convert.layout import dropped
from mmjax.convert.rules import Rule, leaves, transpose
from mmjax.core import tree
from mmjax.core.errors import UserError, suggest
from mmjax.layers import split_axes
from mmjax.models import inception
from mmjax.models.inception import Inception

Params = Mapping[str, Any]


def rules(names: Collection[str]) -> list[Rule]:
    """torchvision's names, with 1008 classes. The bias of the logits is not used, nor are counters and another head."""
    units = [name for name in _names(inception.STEM)]
    units += [f"{block}/{name}" for block, branches in inception.BLOCKS.items() for links in branches for name in _names(links)]
    found = [Rule("fc.weight", "fc/kernel", transpose)]
    for path in units:
        at = path.replace("/", ".")
        found += [*pieces.convolution(f"{at}.conv", f"{path}/conv"), *pieces.batch_norm(f"{at}.bn", f"{path}/bn")]
    return found + dropped(names, r".*\.num_batches_tracked|fc\.bias|AuxLogits\..*")


def _names(links: list) -> list[str]:
    """Of the units of a chain."""
    named = lambda link: [link[0]] if isinstance(link[0], str) else [name for one in link for name in named(one)]
    return [name for link in links if not callable(link) for name in named(link)]


def shapes(model: Inception) -> dict[str, jax.ShapeDtypeStruct]:
    """Path -> shape of every parameter."""
    images = jax.ShapeDtypeStruct((1, inception.LEAST, inception.LEAST, 3), np.float32)
    return tree.flatten(split_axes(jax.eval_shape(model.init, jax.random.key(0), images)["params"])[0])


def load(path: str | Path, resize: str = "pytorch") -> tuple[Params, Callable]:
    """The parameters in a file, and `(params, images float[B, H, W, 3] of 0..1) -> (features [B, 2048], logits [B, 1008])`.

    Args:
      resize: one of models.inception.RESIZES.

    Raises:
      UserError: an unknown resize, a file that cannot be read safely, or other weights.
    """
    if resize not in inception.RESIZES:
        raise UserError(f"resize of pictures for Inception is {resize!r}{suggest(resize, inception.RESIZES)}")
    model = Inception()
    tensors = source.open_source(path).tensors
    found = leaves(rules(tensors), tensors, shapes(model), str(path))
    params = tree.unflatten({name: jnp.asarray(np.asarray(leaf)) for name, leaf in found.items()})
    return params, lambda params, images: model.apply({"params": params}, inception.prepare(images, resize))
