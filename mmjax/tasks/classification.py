"""Supervised image classification with a vision transformer (Dosovitskiy et al. 2021).

Config `model`: `size` (pixels), `channels`, `smoothing`, and `vit` with the fields of models.vit.ViT (`classes` > 0).
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmjax.core import rng
from mmjax.core.config import get, kwargs_for
from mmjax.core.errors import UserError
from mmjax.core.types import Task
from mmjax.layers import split_axes
from mmjax.models.vit import ViT
from mmjax.objectives.classification import cross_entropy


def make(config: ConfigDict) -> Task:
    """Batch: `image` float32[B, size, size, channels], `label` int32[B]."""
    m = config.model
    vit = ViT(**kwargs_for(ViT, get(m, "vit", "config.model"), "config.model.vit"), dtype=jnp.dtype(config.dtype))
    if vit.classes < 1:
        raise UserError("config.model.vit.classes is 0; classification needs the number of classes")
    size, channels, smoothing = (get(m, k, "config.model") for k in ("size", "channels", "smoothing"))
    spec = {
        "image": jax.ShapeDtypeStruct((config.batch_size, size, size, channels), jnp.float32),
        "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
    }
    boxed = lambda key: vit.init(key, jnp.zeros((1, size, size, channels)))["params"]
    _, axes = split_axes(jax.eval_shape(boxed, jax.random.key(0)))

    def loss(params, batch, key, step):
        keys = rng.per_example(key, batch["_index"])
        value, metrics = cross_entropy(vit.apply({"params": params}, batch["image"], keys), batch["label"], smoothing)
        return value, {"metrics": metrics}

    return Task(
        init=lambda key: split_axes(boxed(key))[0],
        axes=axes,
        loss=loss,
        batch_spec=spec,
        limits={"label": vit.classes},
        predict={"logits": lambda params, images: vit.apply({"params": params}, images)},
    )
