"""DDPM++ and NCSN++ as EDM trains them: the U-Nets of Song et al. with residual blocks throughout.

Song et al. 2021, arXiv 2011.13456, appendix C; Karras et al. 2022, arXiv 2206.00364, table 7 and appendix F. EDM's third network, ADM's, is
models.unet's "edm-imagenet64". B batch, H height, W width, C channels, O channels out, A numbers that tell of an augmentation.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from mmjax.core import rng
from mmjax.core.config import Group, kwargs_for
from mmjax.core.errors import UserError, suggest
from mmjax.layers import Dense, FourierFeatures, low_pass, sinusoidal
from mmjax.layers.time_embedding import FIXED
from mmjax.models.unet_blocks import Levels, Style, Walk, check_sides

EMBEDDINGS = ("positional", "fourier")
HALF = math.sqrt(0.5)  # of a sum of two branches, so that it is no larger than either


class SongUNet(nn.Module):
    """Noisy images and their times to what the prediction asks for.

    Attributes:
      width: channels before the first block, and the unit of the rest.
      channels: width of each level, the finest first.
      blocks: residual blocks of a level, going down; going up there is one more.
      attention: of each level, 1 where there is attention: after every block going down, after the last one going up.
      embedding: of times, "positional" (DDPM++) or "fourier", of twice the width (NCSN++).
      taps: of the filter between levels: (1, 1) or (1, 3, 3, 1).
      residual_input: the image itself, filtered and halved by a convolution a level, is added on the way down (NCSN++).
      classes: that labels count; the class whose number is `classes`, or no labels, is none of them.
      label_dropout: share of labels that training leaves out.
      augment: A; without augmentations of its own a picture has zeros there.
      dropout: between the two convolutions of a block.
      remat: of residual blocks and attention, "none", "full" or "dots" (see layers.stack).
    """

    channels: tuple[int, ...]
    width: int = 128
    blocks: int = 4
    attention: tuple[int, ...] = ()
    embedding: str = "positional"
    taps: tuple[float | int, ...] = (1.0, 1.0)
    residual_input: bool = False
    in_channels: int = 3
    out_channels: int = 3
    classes: int = 0
    label_dropout: float = 0.0
    augment: int = 0
    groups: int = 32
    eps: float = 1e-6
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    backend: str = "xla"

    state_paths = ()  # regexes of parameters that only the task writes: none
    frozen_paths = (FIXED,)  # regexes of parameters that nobody writes: the Fourier features' rates

    @property
    def levels(self) -> Levels:
        attention = self.attention or (0,) * len(self.channels)
        return Levels(self.channels, self.blocks, attention, "self", 1, None, "residual")

    @property
    def style(self) -> Style:
        shared = {name: getattr(self, name) for name in ("groups", "eps", "dropout", "taps", "dtype", "remat", "backend")}
        return Style(group_width=4, skip_scale=HALF, project=True, initializer="fan_avg", **shared)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        t: Float[Array, "B"],
        *,
        context: None = None,
        labels: Int[Array, "B"] | None = None,
        keys: Key[Array, "B"] | None = None,
        augment: Float[Array, "B A"] | None = None,
    ) -> Float[Array, "B H W O"]:
        """Float32. With `keys`, one an example, dropout is on and labels are dropped.

        Raises:
          UserError: sides that cannot be halved often enough; an input that the network has no place for.
        """
        self.check(x, labels, augment)
        style = self.style
        walk = Walk(self.levels, style, self.embedded(t, labels, augment, keys), keys)
        h, skips = self.down(walk, x)
        h = self.up(walk, walk.middle(h, 1), skips)
        h = style.conv(self.out_channels, "conv_out", zero=True)(nn.silu(style.norm(h, "norm_out")))
        return h.astype(jnp.float32)

    def check(self, x: Array, labels: Array | None, augment: Array | None) -> None:
        """Raises `UserError` unless the inputs are those of the network's fields."""
        check_sides(*x.shape[1:3], len(self.channels))
        if self.embedding not in EMBEDDINGS:
            raise UserError(f"U-Net embedding is {self.embedding!r}{suggest(self.embedding, EMBEDDINGS)}")
        if x.shape[-1] != self.in_channels:
            raise UserError(f"this U-Net takes x with {self.in_channels} channels, got {x.shape[-1]}")
        if labels is not None and not self.classes:
            raise UserError("this U-Net was made without classes, and is given labels; set model.classes")
        if augment is not None and augment.shape[-1] != self.augment:
            raise UserError(f"this U-Net takes {self.augment} numbers of an augmentation, got {augment.shape[-1]}; set model.augment")

    def embedded(self, t: Array, labels: Array | None, augment: Array | None, keys: Array | None) -> Float[Array, "B E"]:
        """Time, class and augmentation are summed, then go through two products; SiLU stands after both."""
        dense = lambda features, name, bias=True: Dense(
            features, ("embed", "mlp"), bias, self.dtype, kernel_init=self.style.kernel_init, name=name
        )
        if self.embedding == "fourier":
            emb = FourierFeatures(2 * self.width, name="fourier")(t)
        else:
            emb = sinusoidal(t, self.width, order="sin_cos", freq_shift=1)
        base = emb.shape[-1]
        if self.classes:
            labels = jnp.full(t.shape, self.classes, jnp.int32) if labels is None else labels
            if keys is not None and self.label_dropout:
                drop = jax.vmap(lambda key: jax.random.bernoulli(rng.named(key, "label"), self.label_dropout))(keys)
                labels = jnp.where(drop, self.classes, labels)
            # One number beyond the classes is a row of zeros.
            emb = emb + dense(base, "label")(jax.nn.one_hot(labels, self.classes) * math.sqrt(self.classes))
        if self.augment:
            augment = jnp.zeros((t.shape[0], self.augment)) if augment is None else augment
            emb = emb + dense(base, "augment", bias=False)(augment)
        emb = nn.silu(dense(4 * self.width, "time1")(emb))
        return nn.silu(dense(4 * self.width, "time2")(emb))

    def down(self, walk: Walk, x: Array) -> tuple[Array, list[Array]]:
        """As `Walk.down`; with `residual_input` what begins a coarser level gets the image's share added, and is its next source."""
        source = x
        h = self.style.conv(self.width, "conv_in")(x)
        skips = [h]
        for level, features in enumerate(self.channels):
            if level:
                h = walk.halved(h, f"down{level - 1}_resample")
                if self.residual_input:
                    h = source = (h + self.halved(source, h.shape[-1], f"down{level - 1}_input")) * HALF
                skips.append(h)
            for i in range(self.blocks):
                h = walk.residual(h, features, f"down{level}_res{i}")
                h = walk.attend(h, self.levels.attention[level], level, f"down{level}_attn{i}")
                skips.append(h)
        return h, skips

    def halved(self, x: Array, features: int, name: str) -> Array:
        """A convolution of the low-passed image at every second place; beyond the image's edge both see zeros and nothing else.

        The filter goes first, so that the convolution is made only where it is kept.
        """
        smooth = low_pass(x.astype(self.dtype), self.taps, pad=len(self.taps) // 2)
        return self.style.conv(features, name, stride=2, padding="valid")(smooth)

    def up(self, walk: Walk, h: Array, skips: list[Array]) -> Array:
        """As `Walk.up`, with attention after a level's last block alone."""
        for level, features in reversed(list(enumerate(self.channels))):
            for i in range(self.blocks + 1):
                h = walk.residual(jnp.concatenate([h, skips.pop()], axis=-1), features, f"up{level}_res{i}")
            h = walk.attend(h, self.levels.attention[level], level, f"up{level}_attn")
            if level:
                h = walk.doubled(h, f"up{level}_resample")
        return h


def build(model: str | Group, dtype: DTypeLike = jnp.float32, where: str = "config.model") -> SongUNet:
    """The module of a published network's name, or of fields such as the values of `VARIANTS`.

    Raises:
      UserError: an unknown name or field.
    """
    if isinstance(model, str):
        if model not in VARIANTS:
            raise UserError(f"{where}: there is no U-Net {model!r}{suggest(model, VARIANTS)}")
        model = VARIANTS[model]
    fields = kwargs_for(SongUNet, model, where)
    if not fields.get("channels"):
        raise UserError(f"{where} lacks 'channels', the widths of a U-Net's levels")
    made = SongUNet(**{"dtype": dtype, **fields})
    assert made.levels and made.style
    return made


_DDPMPP = {"augment": 9, "dropout": 0.13}
_NCSNPP = {**_DDPMPP, "embedding": "fourier", "taps": (1.0, 3.0, 3.0, 1.0), "residual_input": True}
_CIFAR = {"channels": (256, 256, 256), "attention": (0, 1, 0)}
_FFHQ = {"channels": (128, 256, 256, 256), "attention": (0, 0, 1, 0), "dropout": 0.05}

# EDM's, for CIFAR-10 at 32 pixels and for FFHQ and AFHQv2 at 64; attention is at 16.
VARIANTS = {
    "ddpmpp-cifar10": {**_DDPMPP, **_CIFAR},
    "ddpmpp-cifar10-cond": {**_DDPMPP, **_CIFAR, "classes": 10},
    "ncsnpp-cifar10": {**_NCSNPP, **_CIFAR},
    "ncsnpp-cifar10-cond": {**_NCSNPP, **_CIFAR, "classes": 10},
    "ddpmpp-64": {**_DDPMPP, **_FFHQ},
    "ncsnpp-64": {**_NCSNPP, **_FFHQ},
}
SIZES = {name: 64 if name.endswith("64") else 32 for name in VARIANTS}
