"""Supervised image classification with any image tower: a vision transformer, CLIP's ResNet, NFNet.

Config `model`: `size` (pixels), `channels`, `smoothing`, and one group, `vit`, `resnet` or `nfnet`, with the fields of the module
(`classes` > 0).
"""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmjax.core import rng
from mmjax.core.config import get
from mmjax.core.errors import UserError
from mmjax.core.types import Task
from mmjax.layers import split_axes
from mmjax.models.clip import IMAGE_TOWERS, tower
from mmjax.objectives.classification import cross_entropy

# Towers by the name of their config group. Each has `classes`, `state_paths` and `__call__(images, keys=None)`.
MODELS = IMAGE_TOWERS


def make(config: ConfigDict) -> Task:
    """Batch: `image` float32[B, size, size, channels], `label` int32[B]."""
    m = config.model
    model = build(m, config.dtype)
    size, channels, smoothing = (get(m, k, "config.model") for k in ("size", "channels", "smoothing"))
    spec = {
        "image": jax.ShapeDtypeStruct((config.batch_size, size, size, channels), jnp.float32),
        "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
    }
    boxed = lambda key: model.init(key, jnp.zeros((1, size, size, channels)))["params"]
    _, axes = split_axes(jax.eval_shape(boxed, jax.random.key(0)))

    def loss(params, batch, key, step):
        keys = rng.per_example(key, batch["_index"])
        logits, new = model.apply({"params": params}, batch["image"], keys, mutable=["state"])
        value, metrics = cross_entropy(logits, batch["label"], smoothing)
        return value, {"metrics": metrics, "state": new.get("state", {})}

    return Task(
        init=lambda key: split_axes(boxed(key))[0],
        axes=axes,
        loss=loss,
        batch_spec=spec,
        limits={"label": model.classes},
        predict={"logits": lambda params, images: model.apply({"params": params}, images)},
        state=model.state_paths,
    )


def build(model: ConfigDict, dtype: str) -> Any:
    """The linen module of the tower of a config's model group.

    Raises:
      UserError: none or several towers, no classes, or a field the tower does not have.
    """
    named = [name for name in MODELS if name in model]
    if len(named) != 1:
        raise UserError(f"config.model holds {' and '.join(named) or 'no image tower'}; expected one group of {', '.join(MODELS)}")
    (name,) = named
    out = tower(model[name], {name: MODELS[name]}, jnp.dtype(dtype), f"config.model.{name}")
    if out.classes < 1:
        raise UserError(f"config.model.{name}.classes is 0; classification needs the number of classes")
    return out
