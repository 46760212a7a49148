"""CLIP (Radford et al. 2021): an image tower and a text tower projected into one space.

B batch, H height, W width, C channels, L tokens, E embedding.
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from mmjax.core import rng
from mmjax.layers import Dense
from mmjax.layers.dense import normal
from mmjax.models.text import TextTransformer
from mmjax.models.vit import ViT


def _vit(patch: int, width: int, depth: int, heads: int) -> dict:
    return {
        "patch": patch,
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp": 4 * width,
        "act": "quick_gelu",
        "pre_norm": True,
        "patch_bias": False,
        "eps": 1e-5,
    }


def _text(width: int, heads: int) -> dict:
    return {"vocab": 49408, "length": 77, "width": width, "depth": 12, "heads": heads, "mlp": 4 * width, "act": "quick_gelu"}


# OpenAI's vision-transformer models: image size in pixels, and the two towers' fields.
VARIANTS = {
    "ViT-B/32": {"size": 224, "embed": 512, "image": _vit(32, 768, 12, 12), "text": _text(512, 8)},
    "ViT-B/16": {"size": 224, "embed": 512, "image": _vit(16, 768, 12, 12), "text": _text(512, 8)},
    "ViT-L/14": {"size": 224, "embed": 768, "image": _vit(14, 1024, 24, 16), "text": _text(768, 12)},
    "ViT-L/14@336": {"size": 336, "embed": 768, "image": _vit(14, 1024, 24, 16), "text": _text(768, 12)},
}


class CLIP(nn.Module):
    """Parameters `image`, `text`, `image_proj`, `text_proj` (no bias) and `logit_scale` (a logarithm)."""

    image: ViT
    text: TextTransformer
    embed: int
    temperature: float = 0.07

    def setup(self):
        project = lambda width: Dense(self.embed, ("embed", "joint"), use_bias=False, kernel_init=normal(width**-0.5))
        self.image_proj = project(self.image.width)
        self.text_proj = project(self.text.width)
        init = nn.with_logical_partitioning(nn.initializers.constant(math.log(1 / self.temperature)), ())
        self.logit_scale = self.param("logit_scale", init, (), jnp.float32)

    def __call__(
        self, images: Float[Array, "B H W C"], tokens: Int[Array, "B L"], keys: Key[Array, "B"] | None = None
    ) -> tuple[Float[Array, "B E"], Float[Array, "B E"], Float[Array, ""]]:
        """Unit-norm embeddings of images and texts, and the logarithm of the scale of their cosines."""
        fold = lambda use: None if keys is None else rng.fold(keys, use)
        return self.encode_image(images, fold(0)), self.encode_text(tokens, fold(1)), self.logit_scale

    def encode_image(self, images: Float[Array, "B H W C"], keys: Key[Array, "B"] | None = None) -> Float[Array, "B E"]:
        """Unit-norm embeddings of images."""
        return normalise(self.image_proj(self.image(images, keys)))

    def encode_text(self, tokens: Int[Array, "B L"], keys: Key[Array, "B"] | None = None) -> Float[Array, "B E"]:
        """Unit-norm embeddings of texts."""
        return normalise(self.text_proj(self.text(tokens, keys)))


def normalise(x: Float[Array, "*b E"]) -> Float[Array, "*b E"]:
    """x / |x| over the last axis, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
