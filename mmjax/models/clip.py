"""CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023): an image tower and a text tower projected into one space.

An image tower is a module with `features` (the width of its float32 output), `state_paths` and `__call__(images, keys=None)`;
a text tower one with `width`, `vocab`, `length` and `__call__(tokens, keys=None)` (see models.text).

B batch, N texts, H height, W width, C channels, L tokens, E embedding.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from mmjax.core import rng
from mmjax.core.config import Group, get, kwargs_for
from mmjax.core.errors import UserError, suggest
from mmjax.layers import Dense
from mmjax.layers.dense import normal
from mmjax.models import resnet, vit
from mmjax.models.bert import Bert
from mmjax.models.nfnet import NFNet
from mmjax.models.resnet import ModifiedResNet
from mmjax.models.t5 import T5Encoder
from mmjax.models.text import TextTransformer
from mmjax.models.vit import ViT

# What `type` may be in a group of a tower's fields; the first of each where it is not given.
IMAGE_TOWERS = {"vit": ViT, "resnet": ModifiedResNet, "nfnet": NFNet}
TEXT_TOWERS = {"transformer": TextTransformer, "bert": Bert, "t5": T5Encoder}


class CLIP(nn.Module):
    """Parameters `image`, `text`, `image_proj`, `text_proj`, `logit_scale` (a logarithm) and `logit_bias`.

    Attributes:
      embed: width of the common space, E.
      temperature: cosines start out divided by it.
      bias: what starts out added to the scaled cosines; None for none, SigLIP has -10.
      project_image: without it there is no `image_proj`, and the image tower's features are the embedding, as in SigLIP.
      image_bias, text_bias: whether the projection has a bias: the image's in CLIP's ResNets (whose attention pooling ends in it),
        the text's in SigLIP.
    """

    image: nn.Module
    text: nn.Module
    embed: int
    temperature: float = 0.07
    bias: float | None = None
    project_image: bool = True
    image_bias: bool = False
    text_bias: bool = False

    def setup(self):
        project = lambda width, bias: Dense(self.embed, ("embed", "joint"), use_bias=bias, kernel_init=normal(width**-0.5))
        if self.project_image:
            self.image_proj = project(self.image.features, self.image_bias)
        elif self.image.features != self.embed:
            raise UserError(f"without project_image the image tower's {self.image.features} features must be embed, which is {self.embed}")
        self.text_proj = project(self.text.width, self.text_bias)
        scalar = lambda name, value: self.param(name, nn.with_logical_partitioning(nn.initializers.constant(value), ()), (), jnp.float32)
        self.logit_scale = scalar("logit_scale", math.log(1 / self.temperature))
        if self.bias is not None:
            self.logit_bias = scalar("logit_bias", self.bias)

    def __call__(
        self, images: Float[Array, "B H W C"], tokens: Int[Array, "B L"], keys: Key[Array, "B"] | None = None
    ) -> tuple[Float[Array, "B E"] | Float[Array, ""], ...]:
        """Unit-norm embeddings of images and texts, the logarithm of the scale of their cosines, and with `bias` what is added then."""
        fold = lambda use: None if keys is None else rng.fold(keys, use)
        images, texts = normalise(self.encode_image(images, fold(0))), normalise(self.encode_text(tokens, fold(1)))
        return (images, texts, self.logit_scale) + (() if self.bias is None else (self.logit_bias,))

    def encode_image(self, images: Float[Array, "B H W C"], keys: Key[Array, "B"] | None = None) -> Float[Array, "B E"]:
        """Projected features of images, of any length."""
        x = self.image(images, keys)
        return self.image_proj(x) if self.project_image else x

    def image_features(self, images: Float[Array, "B H W C"]) -> Float[Array, "B D"]:
        """Features of images before the projection."""
        return self.image(images, None)

    def encode_text(self, tokens: Int[Array, "B L"], keys: Key[Array, "B"] | None = None) -> Float[Array, "B E"]:
        """Projected features of texts, of any length."""
        return self.text_proj(self.text(tokens, keys))

    def token_features(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """The text tower's features of every token, before the projection."""
        return self.text.sequence(tokens)

    def token_mask(self, tokens: Int[Array, "B L"]) -> Bool[Array, "B L"]:
        """Whether a token is one of the text's own, and no padding."""
        return self.text.counted(tokens)

    def logits(self, images: Float[Array, "B H W C"], tokens: Int[Array, "N L"]) -> Float[Array, "B N"]:
        """Scaled cosines, plus the bias where there is one, of every image with every text."""
        cosines = normalise(self.encode_image(images)) @ normalise(self.encode_text(tokens)).T
        return jnp.exp(self.logit_scale) * cosines + (0.0 if self.bias is None else self.logit_bias)


def normalise(x: Float[Array, "*b E"]) -> Float[Array, "*b E"]:
    """x / |x| over the last axis, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def build(model: str | Group, dtype: DTypeLike = jnp.float32, where: str = "config.model") -> CLIP:
    """The module of a published model's name, or of fields such as the values of `VARIANTS`.

    Args:
      model: a key of `VARIANTS`; or fields of `CLIP` with, in `image` and `text`, those of the towers and their `type`. `size` and
        `channels`, which images are to have, may stand beside them.
      dtype: of the towers' products.
      where: what messages call `model`.

    Raises:
      UserError: an unknown name, tower or field, or a field that is needed and not there.
    """
    if isinstance(model, str):
        if model not in VARIANTS:
            raise UserError(f"there is no CLIP model {model!r}{suggest(model, VARIANTS)}")
        model = VARIANTS[model]
    get(model, "embed", where)
    towers = {name: tower(get(model, name, where), known, dtype, f"{where}.{name}") for name, known in _TOWERS.items()}
    fields = {k: v for k, v in model.items() if k not in ("size", "channels", *towers)}
    return CLIP(**towers, **kwargs_for(CLIP, fields, where))


_TOWERS = {"image": IMAGE_TOWERS, "text": TEXT_TOWERS}


def tower(fields: Group, known: Mapping[str, type[nn.Module]], dtype: DTypeLike, where: str) -> nn.Module:
    """The tower of a group's fields, by its `type`; errors as `build`."""
    fields = dict(fields)
    kind = fields.pop("type", next(iter(known)))
    if kind not in known:
        raise UserError(f"{where}.type is {kind!r}{suggest(str(kind), known)}")
    given = kwargs_for(known[kind], fields, where)
    for field in dataclasses.fields(known[kind]):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            get(given, field.name, where)
    return known[kind](**given, dtype=dtype)


# --- published sizes -----------------------------------------------------------------------------------------------------


def _clip_vit(name: str, patch: int, act: str) -> dict:
    return {"patch": patch, **vit.VARIANTS[name], "act": act, "pre_norm": True, "patch_bias": False, "eps": 1e-5}


def _clip_text(width: int, heads: int, depth: int = 12, act: str = "quick_gelu") -> dict:
    return {"vocab": 49408, "length": 77, "width": width, "depth": depth, "heads": heads, "mlp": 4 * width, "act": act}


def _clip(size: int, embed: int, image: dict, text: dict) -> dict:
    return {"size": size, "embed": embed, "image": image, "text": text}


def _resnet(name: str, embed: int, width: int) -> dict:
    image = {"type": "resnet", **resnet.VARIANTS[name]}
    return {**_clip(resnet.SIZES[name], embed, image, _clip_text(width, width // 64)), "image_bias": True}


def _siglip(name: str, patch: int, size: int, length: int = 64, vocab: int = 32_000) -> dict:
    """Both towers are of one size, but for the tables."""
    tower = {**vit.VARIANTS[name], "act": "gelu_tanh", "eps": 1e-6}
    image = {"patch": patch, **tower, "pool": "map"}
    text = {"vocab": vocab, "length": length, **tower, "causal": False, "pool": "last"}
    own = {"temperature": 0.1, "bias": -10.0, "project_image": False, "text_bias": True}
    return {**_clip(size, tower["width"], image, text), **own}


# Image size in pixels, embedding, the two towers' fields. OpenAI's released models (ViT-* to RN50x64) have quick GELU, as have
# MetaCLIP's of the same sizes; OpenCLIP's larger ones GELU, as have LAION-2B's and DataComp's of OpenAI's sizes: set `act` of both
# towers. SigLIP 2 of the sizes not listed are SigLIP's with a vocabulary of 256000.
VARIANTS = {
    "ViT-B/32": _clip(224, 512, _clip_vit("B", 32, "quick_gelu"), _clip_text(512, 8)),
    "ViT-B/16": _clip(224, 512, _clip_vit("B", 16, "quick_gelu"), _clip_text(512, 8)),
    "ViT-L/14": _clip(224, 768, _clip_vit("L", 14, "quick_gelu"), _clip_text(768, 12)),
    "ViT-L/14@336": _clip(336, 768, _clip_vit("L", 14, "quick_gelu"), _clip_text(768, 12)),
    "RN50": _resnet("RN50", 1024, 512),
    "RN101": _resnet("RN101", 512, 512),
    "RN50x4": _resnet("RN50x4", 640, 640),
    "RN50x16": _resnet("RN50x16", 768, 768),
    "RN50x64": _resnet("RN50x64", 1024, 1024),
    "ViT-H/14": _clip(224, 1024, _clip_vit("H", 14, "gelu"), _clip_text(1024, 16, 24, "gelu")),
    "ViT-g/14": _clip(224, 1024, _clip_vit("g", 14, "gelu"), _clip_text(1024, 16, 24, "gelu")),
    "ViT-bigG/14": _clip(224, 1280, _clip_vit("G", 14, "gelu"), _clip_text(1280, 20, 32, "gelu")),
    "SigLIP-B/16-224": _siglip("B", 16, 224),
    "SigLIP-B/16-256": _siglip("B", 16, 256),
    "SigLIP-B/16-384": _siglip("B", 16, 384),
    "SigLIP-L/16-256": _siglip("L", 16, 256),
    "SigLIP-So400m/14-224": _siglip("So400m", 14, 224, length=16),
    "SigLIP-So400m/14-384": _siglip("So400m", 14, 384),
    "SigLIP2-B/16-224": _siglip("B", 16, 224, vocab=256_000),
    "SigLIP2-So400m/14-224": _siglip("So400m", 14, 224, vocab=256_000),
}
