"""The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1, with the KL term): pictures to Gaussians over small maps and back.

B batch, H height, W width in pixels, h and w of a feature map, C channels, Z channels of a latent.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from mmjax.core.config import Group, kwargs_for
from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import constrain
from mmjax.layers import Attention, Conv, GroupNorm

EPS = 1e-6  # of every group norm
LOG_VARIANCE = (-30.0, 20.0)  # what an encoder's answer is clamped to
LAST = "last"  # collection that holds what the decoder's last convolution sees, where it is mutable

# kl-f4: the LDM paper's, 3 channels; kl-f8: Stable Diffusion 1 and 2, and SDXL, whose weights differ; kl-f8-16: Stable Diffusion 3.
VARIANTS = {
    "kl-f4": {"mults": (1, 2, 4), "latent": 3},
    "kl-f8": {"mults": (1, 2, 4, 4), "latent": 4},
    "kl-f8-16": {"mults": (1, 2, 4, 4), "latent": 16, "quant": False},
}
# What diffusion models of published latents see: (z - shift) * scale, of about unit variance.
SCALES = {
    "sd": {"scale": 0.18215, "shift": 0.0},
    "sdxl": {"scale": 0.13025, "shift": 0.0},
    "sd3": {"scale": 1.5305, "shift": 0.0609},
}

# PyTorch's convolutions: uniform within 1 / sqrt(fan-in).
_conv_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class AutoencoderKL(nn.Module):
    """`encode` and `decode`; calling it does one after the other.

    Attributes:
      latent: Z.
      channels: of pictures.
      width: channels at full resolution; `mults` are its multiples, level by level, each half as large as the one before.
      blocks: residual blocks a level of the encoder; the decoder has one more.
      groups: of every group norm.
      quant: a 1 x 1 convolution after the encoder and one before the decoder.
      remat: residual blocks keep their inputs alone for the backward pass.
    """

    latent: int
    mults: tuple[int, ...]
    width: int = 128
    blocks: int = 2
    channels: int = 3
    groups: int = 32
    quant: bool = True
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    state_paths = ()  # regexes of parameters that only the task writes: none

    @property
    def factor(self) -> int:
        """How many pixels on a side a place of a latent stands for."""
        return 2 ** (len(self.mults) - 1)

    def setup(self):
        sizes = self.width, self.mults, self.blocks, self.groups, self.dtype, self.remat
        self.encoder = Encoder(2 * self.latent, *sizes)
        self.decoder = Decoder(self.channels, *sizes)
        if self.quant:
            self.quant_conv = conv(2 * self.latent, 1, self.dtype)
            self.post_quant_conv = conv(self.latent, 1, self.dtype)

    def encode(self, x: Float[Array, "B H W C"]) -> tuple[Float[Array, "B h w Z"], Float[Array, "B h w Z"]]:
        """Mean and log-variance, float32, of the latents of pictures (-1..1 as published), not scaled.

        Raises:
          UserError: sides that cannot be halved often enough.
        """
        if x.shape[1] % self.factor or x.shape[2] % self.factor:
            raise UserError(f"the autoencoder takes pictures whose sides are multiples of {self.factor}, got {x.shape[1]} x {x.shape[2]}")
        y = self.encoder(x)
        y = self.quant_conv(y) if self.quant else y
        mean, logvar = jnp.split(y.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOG_VARIANCE)

    def decode(self, z: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
        """Float32 pictures of latents that are not scaled."""
        if z.shape[-1] != self.latent:
            raise UserError(f"the autoencoder's latents have {self.latent} channels, got {z.shape[-1]}")
        return self.decoder(self.post_quant_conv(z) if self.quant else z).astype(jnp.float32)

    def __call__(
        self, x: Float[Array, "B H W C"], keys: Key[Array, "B"] | None = None
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B h w Z"], Float[Array, "B h w Z"]]:
        """Reconstructions from latents drawn with `keys`, one an example, or from the means; means and log-variances."""
        mean, logvar = self.encode(x)
        return self.decode(mean if keys is None else draw(mean, logvar, keys)), mean, logvar


def last_layer(params: Mapping[str, Any], seen: Float[Array, "B H W C"], kernel: Float[Array, "K K C O"]) -> Float[Array, "B H W O"]:
    """Pictures of a decoder with another last kernel; `seen` is what the collection LAST holds of decoding."""
    last = {**params["decoder"]["conv_out"], "kernel": kernel}
    return conv(kernel.shape[-1], kernel.shape[0], seen.dtype).apply({"params": last}, seen).astype(jnp.float32)


def draw(mean: Float[Array, "B *d"], logvar: Float[Array, "B *d"], keys: Key[Array, "B"]) -> Float[Array, "B *d"]:
    """A latent an example, from its key."""
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
    return mean + jnp.exp(logvar / 2) * noise


def conv(features: int, kernel: int, dtype: DTypeLike, name: str | None = None, stride: int = 1) -> Conv:
    """Padded as TensorFlow does: with a stride of 2 the zeros stand below and to the right alone."""
    return Conv(features, kernel, stride, "same", use_bias=True, dtype=dtype, kernel_init=_conv_init, name=name)


class Encoder(nn.Module):
    """Levels `level0` (full resolution) onwards: `block0`..., `down` but for the last. Then `mid`, `norm`, `conv_out`."""

    out: int
    width: int
    mults: tuple[int, ...]
    blocks: int
    groups: int
    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w Z"]:
        x = conv(self.width, 3, self.dtype, "conv_in")(x)
        for i, mult in enumerate(self.mults):
            down = i < len(self.mults) - 1
            x = Level(self.width * mult, self.blocks, self.groups, self.dtype, self.remat, "down" if down else "", name=f"level{i}")(x)
        x = Middle(self.groups, self.dtype, self.remat, name="mid")(x)
        x = nn.silu(GroupNorm(self.groups, EPS, self.dtype, name="norm")(x))
        return conv(self.out, 3, self.dtype, "conv_out")(x)


class Decoder(nn.Module):
    """`conv_in`, `mid`, then the levels, the smallest map's first, with `up` but for `level0`; `norm`, `conv_out`."""

    out: int
    width: int
    mults: tuple[int, ...]
    blocks: int
    groups: int
    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(self, z: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
        x = conv(self.width * self.mults[-1], 3, self.dtype, "conv_in")(z)
        x = Middle(self.groups, self.dtype, self.remat, name="mid")(x)
        for i, mult in reversed(list(enumerate(self.mults))):
            sizes = self.width * mult, self.blocks + 1, self.groups, self.dtype, self.remat
            x = Level(*sizes, "up" if i else "", name=f"level{i}")(x)
        x = nn.silu(GroupNorm(self.groups, EPS, self.dtype, name="norm")(x))
        if not self.is_initializing():
            self.sow(LAST, "seen", x)  # for whoever asks for it
        return conv(self.out, 3, self.dtype, "conv_out")(x)


class Level(nn.Module):
    """Residual blocks at one resolution, and the way to the next: `down`, `up` or none."""

    width: int
    blocks: int
    groups: int
    dtype: DTypeLike
    remat: bool
    to: str

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C2"]:
        for j in range(self.blocks):
            x = residual(self.width, self.groups, self.dtype, self.remat, f"block{j}")(x)
        if self.to == "down":
            return conv(self.width, 3, self.dtype, "down", stride=2)(x)
        if self.to == "up":
            return conv(self.width, 3, self.dtype, "up")(x.repeat(2, axis=1).repeat(2, axis=2))
        return x


class Middle(nn.Module):
    """`block1`, attention of one head over all places beside the identity (`norm`, `attn`), `block2`."""

    groups: int
    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        b, h, w, c = x.shape
        x = residual(c, self.groups, self.dtype, self.remat, "block1")(x)
        y = GroupNorm(self.groups, EPS, self.dtype, name="norm")(x).reshape(b, h * w, c)
        x = x + Attention(1, dtype=self.dtype, name="attn")(y).reshape(x.shape)
        return residual(c, self.groups, self.dtype, self.remat, "block2")(x)


def residual(width: int, groups: int, dtype: DTypeLike, remat: bool, name: str) -> "Residual":
    return (nn.remat(Residual) if remat else Residual)(width, groups, dtype, name=name)


class Residual(nn.Module):
    """Twice norm, SiLU, convolution, beside the identity, or a projection where the width changes."""

    width: int
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C2"]:
        y = x
        for i in (1, 2):
            y = nn.silu(GroupNorm(self.groups, EPS, self.dtype, name=f"norm{i}")(y))
            y = conv(self.width, 3, self.dtype, f"conv{i}")(y)
        if x.shape[-1] != self.width:
            x = conv(self.width, 1, self.dtype, "shortcut")(x)
        return constrain(x + y, "batch", None, None, None)


def build(model: str | Group, dtype: DTypeLike = jnp.float32, where: str = "config.model") -> AutoencoderKL:
    """The module of a key of `VARIANTS`, or of fields.

    Raises:
      UserError: an unknown name or field, or widths that groups do not fit.
    """
    if isinstance(model, str):
        if model not in VARIANTS:
            raise UserError(f"{where}: there is no autoencoder {model!r}{suggest(model, VARIANTS)}")
        model = VARIANTS[model]
    fields = kwargs_for(AutoencoderKL, model, where)
    for needed in ("latent", "mults"):
        if needed not in fields:
            raise UserError(f"{where} lacks '{needed}', which an autoencoder needs")
    made = AutoencoderKL(**{"dtype": dtype, **fields, "mults": tuple(fields["mults"])})
    if not made.mults or any(made.width * mult % made.groups for mult in made.mults):
        raise UserError(f"{where}: width {made.width} x mults {made.mults} is to fall into {made.groups} groups at every level")
    return made
