"""ADM's classifiers of noisy images (Dhariwal and Nichol 2021, arXiv 2105.05233, section 4): the U-Net's way down, pooled by attention.

B batch, H height, W width, C channels, K classes.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from mmjax.core.config import Group, kwargs_for
from mmjax.core.errors import UserError, suggest
from mmjax.layers import Dense, EmbeddingMlp, sinusoidal
from mmjax.models.resnet import AttentionPool
from mmjax.models.unet_blocks import Levels, Style, Walk, check_sides


class UNetClassifier(nn.Module):
    """Noisy images and their times to logits. The fields are those of models.unet.UNet.

    The pooling learns a position for every place of the coarsest level, so the image size is that of the parameters.
    """

    channels: tuple[int, ...]
    blocks: int = 2
    attention: tuple[int, ...] = ()
    head_width: int = 64
    classes: int = 1000
    time_width: int | None = None
    scale_shift: bool = True
    resample: str = "residual"
    groups: int = 32
    eps: float = 1e-5
    dropout: float = 0.0
    initializer: str = "fan_in"
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    backend: str = "xla"

    state_paths = ()  # regexes of parameters that only the task writes: none

    @property
    def style(self) -> Style:
        shared = ("groups", "eps", "scale_shift", "dropout", "initializer", "dtype", "remat", "backend")
        return Style(**{name: getattr(self, name) for name in shared})

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], t: Float[Array, "B"], *, keys: Key[Array, "B"] | None = None) -> Float[Array, "B K"]:
        """Float32 logits. With `keys`, one an example, dropout is on.

        Raises:
          UserError: sides that cannot be halved often enough.
        """
        check_sides(*x.shape[1:3], len(self.channels))
        attention = self.attention or (0,) * len(self.channels)
        levels = Levels(self.channels, self.blocks, attention, "self", 1, self.head_width, self.resample)
        style, base = self.style, self.time_width or self.channels[0]
        emb = EmbeddingMlp(4 * base, self.dtype, style.kernel_init, name="time")(sinusoidal(t, base))
        walk = Walk(levels, style, nn.silu(emb), keys)
        h, _ = walk.down(style.conv(self.channels[0], "conv_in")(x))
        h = nn.silu(style.norm(walk.middle(h, 1), "norm_out"))
        pooled = AttentionPool(levels.heads_at(len(self.channels) - 1), self.dtype, self.backend, name="pool")(h)
        axes = ("embed", "classes")
        return Dense(self.classes, axes, dtype=self.dtype, kernel_init=style.kernel_init, name="head")(pooled).astype(jnp.float32)


def build(model: str | Group, dtype: DTypeLike = jnp.float32, where: str = "config.model") -> UNetClassifier:
    """The module of a published classifier's name, or of fields such as the values of `VARIANTS`.

    Raises:
      UserError: an unknown name or field.
    """
    if isinstance(model, str):
        if model not in VARIANTS:
            raise UserError(f"{where}: there is no classifier {model!r}{suggest(model, VARIANTS)}")
        model = VARIANTS[model]
    fields = kwargs_for(UNetClassifier, model, where)
    if not fields.get("channels"):
        raise UserError(f"{where} lacks 'channels', the widths of a U-Net's levels")
    return UNetClassifier(**{"dtype": dtype, **fields})


def _adm(multiples: tuple[float | int, ...], blocks: int, first: int) -> dict:
    """Width 128 times the multiples, attention from level `first` on: at 32, 16 and 8 pixels."""
    attention = tuple(int(i >= first) for i in range(len(multiples)))
    return {"channels": tuple(int(128 * m) for m in multiples), "blocks": blocks, "attention": attention, "time_width": 128}


VARIANTS = {
    "adm-64": _adm((1, 2, 3, 4), 4, 1),
    "adm-128": _adm((1, 1, 2, 3, 4), 2, 2),
    "adm-256": _adm((1, 1, 2, 2, 4, 4), 2, 3),
    "adm-512": _adm((0.5, 1, 1, 2, 2, 4, 4), 2, 4),
}
SIZES = {"adm-64": 64, "adm-128": 128, "adm-256": 256, "adm-512": 512}
