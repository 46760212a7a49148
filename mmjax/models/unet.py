"""The U-Net of diffusion models: DDPM, improved DDPM, ADM, latent diffusion and Stable Diffusion are fields of one network.

Ho et al. 2020, arXiv 2006.11239; Nichol and Dhariwal 2021, 2102.09672; Dhariwal and Nichol 2021, 2105.05233; Rombach et al. 2022,
2112.10752; Podell et al. 2023, 2307.01952. B batch, H height, W width, C channels, O channels out, E width of the embedding, S words of a
context, M their width.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from mmjax.core import rng
from mmjax.core.config import Group, kwargs_for
from mmjax.core.errors import UserError, suggest
from mmjax.layers import Embed, EmbeddingMlp, sinusoidal
from mmjax.layers.dense import normal
from mmjax.models.unet_blocks import Levels, Style, Walk, check_sides

NUMBER_WIDTH = 256  # of the sines and cosines of one of SDXL's numbers


class UNet(nn.Module):
    """Noisy images and their times to what the prediction asks for.

    Attributes:
      channels: width of each level, the finest first; each level has half the resolution of the one before.
      blocks: residual blocks of a level, going down; going up there is one more.
      attention: of each level, the transformer blocks (or 1, attention by itself) after every residual block; 0 for none.
      mid_attention: the same between the two blocks in the middle.
      kind: of attention: "self", among places; "cross", a transformer that also looks at the context; "added", the context's keys and
        values before those of the places.
      heads: of attention, one number or one a level; `head_width`, channels of a head, stands in its place where it is given.
      in_channels: of the noisy image; `low_res` channels of a coarser image are put behind it, enlarged to its size (ADM-U).
      time_width: of the sines and cosines of a time, `channels[0]` by default; the embedding has four times as many.
      time_order, freq_shift: of those (layers.time_embedding.sinusoidal).
      classes: that labels count; 0 for a network without labels.
      label_dropout: share of labels that training replaces by the null class, whose number is `classes`. At 0 there is no null class.
      vector: width of a vector, such as a pooled text, that is embedded beside the time; 0 for none.
      numbers: how many numbers, such as SDXL's sizes and crops, are embedded with it, each as 256 sines and cosines.
      scale_shift: the embedding scales and shifts a norm's output, else it is added before the norm.
      resample: "conv", "conv_same" (DDPM's padding) or "residual" (ADM's blocks).
      initializer: "fan_in" (PyTorch's) or "fan_avg" (DDPM's); what ends a branch, and the network, begins at 0.
      scan: whether transformer blocks at one place are scanned; convolutions never are.
      remat: of residual blocks and attention, "none", "full" or "dots" (see layers.stack).
    """

    channels: tuple[int, ...]
    blocks: int = 2
    attention: tuple[int, ...] = ()
    mid_attention: int = 1
    kind: str = "self"
    heads: int | tuple[int, ...] = 1
    head_width: int | None = None
    in_channels: int = 3
    out_channels: int = 3
    low_res: int = 0
    time_width: int | None = None
    time_order: str = "cos_sin"
    freq_shift: int = 0
    classes: int = 0
    label_dropout: float = 0.0
    vector: int = 0
    numbers: int = 0
    scale_shift: bool = False
    resample: str = "conv"
    groups: int = 32
    eps: float = 1e-5
    dropout: float = 0.0
    initializer: str = "fan_in"
    dtype: DTypeLike = jnp.float32
    scan: bool = False
    remat: str = "none"
    backend: str = "xla"

    state_paths = ()  # regexes of parameters that only the task writes: none

    @property
    def levels(self) -> Levels:
        attention = self.attention or (0,) * len(self.channels)
        return Levels(self.channels, self.blocks, attention, self.kind, self.heads, self.head_width, self.resample)

    @property
    def embedding_width(self) -> int:
        """Of the embedding of times, and so of what is added to it."""
        return 4 * (self.time_width or self.channels[0])

    @property
    def style(self) -> Style:
        shared = ("groups", "eps", "scale_shift", "dropout", "initializer", "dtype", "scan", "remat", "backend")
        return Style(**{name: getattr(self, name) for name in shared})

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        t: Float[Array, "B"],
        *,
        context: Float[Array, "B S M"] | None = None,
        labels: Int[Array, "B"] | None = None,
        keys: Key[Array, "B"] | None = None,
        context_mask: Bool[Array, "B S"] | None = None,
        low_res: Float[Array, "B h w D"] | None = None,
        vector: Float[Array, "B P"] | None = None,
        numbers: Float[Array, "B N"] | None = None,
        embedding: Float[Array, "B E"] | None = None,
    ) -> Float[Array, "B H W O"]:
        """Float32. With `keys`, one an example, dropout is on and labels are dropped.

        Args:
          context: words to look at; those where `context_mask` is False are not seen.
          low_res: a coarser image, for a network that enlarges.
          vector, numbers: see the attributes.
          embedding: added to the time's as it is.

        Raises:
          UserError: sides that cannot be halved often enough; an input that the network has no place for, or lacks.
        """
        self.check(x, context, labels, low_res, vector, numbers)
        if low_res is not None:
            x = jnp.concatenate([x, jax.image.resize(low_res, (*x.shape[:3], self.low_res), "bilinear")], axis=-1)
        style, levels = self.style, self.levels
        emb = self.embedded(t, labels, vector, numbers, keys)
        emb = nn.silu(emb if embedding is None else emb + embedding)
        walk = Walk(levels, style, emb, keys, context, context_mask)
        h, skips = walk.down(style.conv(self.channels[0], "conv_in")(x))
        h = walk.up(walk.middle(h, self.mid_attention), skips)
        h = style.conv(self.out_channels, "conv_out", zero=True)(nn.silu(style.norm(h, "norm_out")))
        return h.astype(jnp.float32)

    def check(
        self, x: Array, context: Array | None, labels: Array | None, low_res: Array | None, vector: Array | None, numbers: Array | None
    ) -> None:
        """Raises `UserError` unless the inputs are those of the network's fields."""
        check_sides(*x.shape[1:3], len(self.channels))
        sizes = lambda a: 0 if a is None else a.shape[-1]
        wanted = {"x": self.in_channels, "low_res": self.low_res, "vector": self.vector, "numbers": self.numbers}
        for (name, want), given in zip(wanted.items(), (x, low_res, vector, numbers), strict=True):
            if sizes(given) != want:
                raise UserError(
                    f"this U-Net takes {name} with {want} channels, got {sizes(given)}{'' if want else '; it has no place for it'}"
                )
        if (context is None) != (self.kind == "self"):
            raise UserError(
                f"a U-Net of kind {self.kind!r} takes {'no' if self.kind == 'self' else 'a'} context; 'cross' and 'added' look at one"
            )
        if self.classes == 0 and labels is not None:
            raise UserError("this U-Net was made without classes, and is given labels; set model.classes")
        if self.classes and labels is None and not self.label_dropout:
            raise UserError("a U-Net of classes needs labels: it has no null class; train it with model.label_dropout above 0")

    def embedded(
        self, t: Array, labels: Array | None, vector: Array | None, numbers: Array | None, keys: Array | None
    ) -> Float[Array, "B E"]:
        """The sum of the embeddings of time, class, vector and numbers."""
        base, width = self.time_width or self.channels[0], self.embedding_width
        how = {"order": self.time_order, "freq_shift": self.freq_shift}
        mlp = lambda name: EmbeddingMlp(width, self.dtype, self.style.kernel_init, name=name)
        emb = mlp("time")(sinusoidal(t, base, **how))
        if self.classes:
            null = self.label_dropout > 0
            labels = jnp.full(t.shape, self.classes, jnp.int32) if labels is None else labels
            if keys is not None and null:
                drop = jax.vmap(lambda key: jax.random.bernoulli(rng.named(key, "label"), self.label_dropout))(keys)
                labels = jnp.where(drop, self.classes, labels)
            emb = emb + Embed(self.classes + null, width, self.dtype, normal(1.0), "classes", name="label")(labels)
        if self.vector or self.numbers:
            parts = [] if vector is None else [vector.astype(jnp.float32)]
            if numbers is not None:
                parts.append(sinusoidal(numbers.reshape(-1), NUMBER_WIDTH, **how).reshape(t.shape[0], -1))
            emb = emb + mlp("vector")(jnp.concatenate(parts, axis=-1))
        return emb


def build(model: str | Group, dtype: DTypeLike = jnp.float32, where: str = "config.model") -> UNet:
    """The module of a published network's name, or of fields such as the values of `VARIANTS`.

    Raises:
      UserError: an unknown name or field, or fields that do not go together.
    """
    if isinstance(model, str):
        if model not in VARIANTS:
            raise UserError(f"{where}: there is no U-Net {model!r}{suggest(model, VARIANTS)}")
        model = VARIANTS[model]
    fields = kwargs_for(UNet, model, where)
    if not fields.get("channels"):
        raise UserError(f"{where} lacks 'channels', the widths of a U-Net's levels")
    made = UNet(**{"dtype": dtype, **fields})
    for level in range(len(made.channels)):
        made.levels.heads_at(level)
    assert made.style
    return made


# --- published sizes -----------------------------------------------------------------------------------------------------


def _levels(width: int, multiples: tuple[float | int, ...], blocks: int, attention: tuple[int, ...]) -> dict:
    """`attention`: the levels that have it, or, where it is as long as the multiples, what each has."""
    return {"channels": tuple(int(width * m) for m in multiples), "blocks": blocks, "attention": attention, "time_width": width}


def _at(levels: int, first: int, last: int | None = None) -> tuple[int, ...]:
    """1 for the levels first..last, 0 for the others; of so many levels."""
    return tuple(int(first <= i <= (levels - 1 if last is None else last)) for i in range(levels))


_HIGH, _64, _128 = (1, 1, 2, 2, 4, 4), (1, 2, 3, 4), (1, 1, 2, 3, 4)
_DDPM = {"eps": 1e-6, "time_order": "sin_cos", "freq_shift": 1, "resample": "conv_same", "initializer": "fan_avg"}
_IDDPM = {"heads": 4, "scale_shift": True, "out_channels": 6}
_ADM = {"head_width": 64, "scale_shift": True, "resample": "residual", "out_channels": 6, "classes": 1000}
_ADM128 = {**_ADM, "head_width": None, "heads": 4}
_ADM64 = {**_levels(192, _64, 3, _at(4, 1)), **_ADM, "dropout": 0.1}
_UNCLIP = {**_ADM, "classes": 0, "kind": "added"}
_UPSAMPLER = {**_ADM, "classes": 0, "low_res": 3, "mid_attention": 0}
_LATENT = {"kind": "cross", "in_channels": 4, "out_channels": 4}
_SD = _levels(320, (1, 2, 4, 4), 2, _at(4, 0, 2))

# Names, widths and counts as the authors publish them; SIZES are the sides of what each is given, in pixels or latents.
VARIANTS = {
    "ddpm-cifar10": {**_levels(128, (1, 2, 2, 2), 2, _at(4, 1, 1)), **_DDPM, "dropout": 0.1},
    "ddpm-256": {**_levels(128, _HIGH, 2, _at(6, 4, 4)), **_DDPM},
    "iddpm-cifar10": {**_levels(128, (1, 2, 2, 2), 3, _at(4, 1, 2)), **_IDDPM, "dropout": 0.3},
    "iddpm-imagenet64": {**_levels(128, _64, 3, _at(4, 2)), **_IDDPM},
    "iddpm-imagenet64-cond": {**_levels(192, _64, 3, _at(4, 2)), **_IDDPM, "classes": 1000},
    "iddpm-upsampler-256": {**_levels(192, _HIGH, 2, _at(6, 4)), **_IDDPM, "classes": 1000, "low_res": 3},
    "iddpm-lsun256": {**_levels(128, _HIGH, 2, _at(6, 4, 4)), "out_channels": 6},
    "adm-64": _ADM64,
    "adm-128": {**_levels(256, _128, 2, _at(5, 2)), **_ADM128},
    "adm-256": {**_levels(256, _HIGH, 2, _at(6, 3)), **_ADM},
    "adm-256-uncond": {**_levels(256, _HIGH, 2, _at(6, 3)), **_ADM, "classes": 0},
    "adm-512": {**_levels(256, (0.5, *_HIGH), 2, _at(7, 4)), **_ADM},
    "adm-u-256": {**_levels(192, _HIGH, 2, _at(6, 3)), **_ADM128, "low_res": 3},
    "adm-u-512": {**_levels(192, _HIGH, 2, _at(6, 4)), **_ADM, "low_res": 3},
    "edm-imagenet64": {**_ADM64, "out_channels": 3},
    "ldm4-imagenet256": {**_levels(192, (1, 2, 3, 5), 2, _at(4, 1)), **_LATENT, "in_channels": 3, "out_channels": 3, "heads": 1},
    "ldm8-imagenet256": {**_levels(256, (1, 2, 4), 2, _at(3, 0)), **_LATENT, "head_width": 32},
    "ldm-txt2img": {**_SD, **_LATENT, "heads": 8},
    "sd1": {**_SD, **_LATENT, "heads": 8},
    "sd2": {**_SD, **_LATENT, "head_width": 64},
    # The decoder and upsamplers of unCLIP (Ramesh et al. 2022, table 3, 3.5B, 700M and 300M) and of Karlo.
    "unclip-64": {**_levels(512, _64, 3, _at(4, 1)), **_UNCLIP, "dropout": 0.1},
    "unclip-256": {**_levels(320, _64, 3, ()), **_UPSAMPLER, "dropout": 0.1},
    "unclip-1024": {**_levels(192, _HIGH, 2, ()), **_UPSAMPLER},
    "karlo-64": {**_levels(320, _64, 3, _at(4, 1)), **_UNCLIP, "dropout": 0.1},
    "karlo-256": {**_levels(320, _64, 3, ()), **_UPSAMPLER, "scale_shift": False, "out_channels": 3},
    "sdxl": {**_levels(320, (1, 2, 4), 2, (0, 2, 10)), **_LATENT, "mid_attention": 10, "head_width": 64, "vector": 1280, "numbers": 6},
}
_BY_SIZE = {
    32: ("ddpm-cifar10", "iddpm-cifar10", "ldm8-imagenet256", "ldm-txt2img"),
    64: ("iddpm-imagenet64", "iddpm-imagenet64-cond", "adm-64", "edm-imagenet64", "ldm4-imagenet256", "sd1", "unclip-64", "karlo-64"),
    96: ("sd2",),
    128: ("adm-128", "sdxl"),
    256: ("ddpm-256", "iddpm-upsampler-256", "iddpm-lsun256", "adm-256", "adm-256-uncond", "adm-u-256", "unclip-256", "karlo-256"),
    512: ("adm-512", "adm-u-512"),
    1024: ("unclip-1024",),
}
SIZES = {name: size for size, names in _BY_SIZE.items() for name in names}
# Width of the words that the published networks look at.
CONTEXTS = {"ldm4-imagenet256": 512, "ldm8-imagenet256": 512, "ldm-txt2img": 1280, "sd1": 768, "sd2": 1024, "sdxl": 2048}
CONTEXTS |= {"unclip-64": 2048, "karlo-64": 1536}
