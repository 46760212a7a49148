"""Bits per dimension of a split's pictures: by the probability-flow ODE of dequantised pictures, or by the variational bound.

N pictures of D numbers each.
"""

import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from mmjax.core import rng
from mmjax.core.config import Group
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.data import transforms
from mmjax.data.source import open_source
from mmjax.evals import encode

NEEDS = ("bits_per_dimension",)
ARGUMENTS = ("split", "batch_size", "transforms", "seed", "bound")
OPTIONAL = {"options": {}, "labels": False}


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> Callable[[Params], dict[str, float]]:
    """Config: `split`, `batch_size`, `transforms` (to images of -1..1, and `label` where `labels` is set); `seed` of the dequantisation,
    the probes and the bound's noise, which belong to a record's number; `bound`, the variational bound of a discrete path in place of the
    ODE; `options`, keyword arguments of diffusion.likelihood.log_likelihood or of diffusion.vlb.bits_per_dimension.

    The evaluator gives `bits_per_dimension` (or `bits_per_dimension_bound`), the mean over pictures, its standard error `.._se`, and `n`.
    """
    if not isinstance(config["bound"], bool):
        raise UserError(f"likelihood: bound is {config['bound']!r}, expected true (variational bound) or false (probability-flow ODE)")
    source = open_source(data, config["split"])
    transform = transforms.build(config["transforms"], None)
    key = rng.named(rng.wrap(rng.root(config["seed"])), "likelihood")
    options, name = dict(config["options"]), "bits_per_dimension" + "_bound" * config["bound"]
    other = "label" if config["labels"] else "_mask"

    def bits(params: Params, images: Array, labels: Array, numbers: Array) -> Array:
        given = labels.astype(jnp.int32) if config["labels"] else None
        found = predict["bits_per_dimension"](params, images, given, rng.per_example(key, numbers), bound=config["bound"], **options)
        return found.astype(jnp.float32)

    compiled, batch_size = encode.compile_over(mesh, bits), encode.pad_to_mesh(config["batch_size"], mesh)
    whole = encode.compile_over(mesh, lambda params, x: x)

    def evaluate(params: Params) -> dict[str, float]:
        images, labels, places = encode.split(whole, {}, source, transform, ("image", other), batch_size, mesh)
        arrays = (images, labels, places.astype(np.int32))
        found = np.concatenate(list(encode.rows(compiled, params, arrays, batch_size, mesh))).astype(np.float64)
        error = float(found.std(ddof=1) / math.sqrt(len(found))) if len(found) > 1 else float("nan")
        return {name: float(found.mean()), f"{name}_se": error, "n": float(len(found)), **encode.left_out(source, places)}

    return evaluate
