"""CLIP: symmetric InfoNCE between images and captions (Radford et al. 2021).

Config `model`: `size` (pixels), `channels`, `embed`, and the fields of the two towers in `image` (models.vit.ViT) and
`text` (models.text.TextTransformer); `models.clip.VARIANTS` has the published ones.
"""

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmjax.core import rng
from mmjax.core.config import get, kwargs_for
from mmjax.core.types import Task
from mmjax.layers import split_axes
from mmjax.models.clip import CLIP
from mmjax.models.text import TextTransformer
from mmjax.models.vit import ViT
from mmjax.objectives.contrastive import info_nce

MAX_LOG_SCALE = math.log(100.0)  # section 2.5: more is unstable


def make(config: ConfigDict) -> Task:
    """Batch: `image` float32[B, size, size, channels], `tokens` int32[B, length]."""
    m = config.model
    size, channels = get(m, "size", "config.model"), get(m, "channels", "config.model")
    dtype = jnp.dtype(config.dtype)
    image = ViT(**kwargs_for(ViT, get(m, "image", "config.model"), "config.model.image"), dtype=dtype)
    text = TextTransformer(**kwargs_for(TextTransformer, get(m, "text", "config.model"), "config.model.text"), dtype=dtype)
    model = CLIP(image, text, get(m, "embed", "config.model"))
    spec = {
        "image": jax.ShapeDtypeStruct((config.batch_size, size, size, channels), jnp.float32),
        "tokens": jax.ShapeDtypeStruct((config.batch_size, text.length), jnp.int32),
    }
    sample = [jax.ShapeDtypeStruct((1, *s.shape[1:]), s.dtype) for s in (spec["image"], spec["tokens"])]
    boxed = lambda key: model.init(key, *(jnp.zeros(s.shape, s.dtype) for s in sample))["params"]
    _, axes = split_axes(jax.eval_shape(boxed, jax.random.key(0)))

    def apply(params, *args, method=None):
        return model.apply({"params": params}, *args, method=method)

    def loss(params, batch, key, step):
        keys = rng.per_example(key, batch["_index"])
        images, texts, log_scale = apply(params, batch["image"], batch["tokens"], keys)
        value, metrics = info_nce(images, texts, log_scale)
        return value, {"metrics": {**metrics, "logit_scale": jnp.exp(log_scale)}}

    def clamp(params, aux, step):
        return {**params, "logit_scale": jnp.clip(params["logit_scale"], 0.0, MAX_LOG_SCALE)}

    return Task(
        init=lambda key: split_axes(boxed(key))[0],
        axes=axes,
        loss=loss,
        batch_spec=spec,
        predict={
            "encode_image": lambda params, images: apply(params, images, method="encode_image"),
            "encode_text": lambda params, tokens: apply(params, tokens, method="encode_text"),
            "logit_scale": lambda params: jnp.exp(params["logit_scale"]),
        },
        post_update=clamp,
        can_accumulate=False,
        limits={"tokens": text.vocab},
    )
