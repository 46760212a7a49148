"""PatchGAN (Isola et al. 2017), the discriminator of VQGAN and latent diffusion: one logit for every patch of a picture.

B batch, H height, W width in pixels, C channels, h and w of the map of logits.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mmjax.core.errors import UserError, suggest
from mmjax.layers import BatchNorm, Conv, GroupNorm
from mmjax.layers.batch_norm import STATISTICS
from mmjax.layers.dense import normal

NORMS = ("batch", "group", "none")
KERNEL, WIDEST, SLOPE = 4, 8, 0.2


def _around_one(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    return 1 + normal(0.02)(key, shape, dtype)


class PatchGAN(nn.Module):
    """Convolutions of 4, each but the last two halving the picture, with norms between the first and the last and leaky rectifiers.

    Attributes:
      width: channels after the first convolution; they double with each, up to 8 times as many.
      depth: how many convolutions halve the picture. At 3 a logit sees 70 x 70 pixels.
      norm: "batch", as published, with running statistics (layers.batch_norm) and convolutions without a bias; "group", of 32 groups or
        as many as there are channels; or "none".
    """

    width: int = 64
    depth: int = 3
    norm: str = "batch"
    dtype: DTypeLike = jnp.float32

    state_paths = (STATISTICS,)  # regexes of parameters that only the task writes

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w"]:
        """Float32 logits, high for real pictures. In training a batch norm uses the batch's statistics.

        Raises:
          UserError: an unknown norm, no layer that halves, or pictures too small for one logit.
        """
        if self.norm not in NORMS:
            raise UserError(f"PatchGAN norm is {self.norm!r}{suggest(self.norm, NORMS)}")
        if self.depth < 1:
            raise UserError(f"PatchGAN depth is {self.depth}, expected at least 1")
        if min(x.shape[1:3]) < 3 * 2**self.depth:
            least = 3 * 2**self.depth
            raise UserError(f"PatchGAN of depth {self.depth} takes pictures of {least} pixels or more, got {x.shape[1]} x {x.shape[2]}")
        x = nn.leaky_relu(self.conv(x, self.width, 2, True, "conv0"), SLOPE)
        for i in range(1, self.depth + 1):
            x = self.conv(x, self.width * min(2**i, WIDEST), 2 if i < self.depth else 1, self.norm != "batch", f"conv{i}")
            x = nn.leaky_relu(self.normed(x, f"norm{i}", train), SLOPE)
        return self.conv(x, 1, 1, True, f"conv{self.depth + 1}")[..., 0].astype(jnp.float32)

    def conv(self, x: Array, features: int, stride: int, bias: bool, name: str) -> Array:
        """With one row and column of zeros all around."""
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return Conv(features, KERNEL, stride, "valid", use_bias=bias, dtype=self.dtype, kernel_init=normal(0.02), name=name)(x)

    def normed(self, x: Array, name: str, train: bool) -> Array:
        if self.norm == "batch":
            return BatchNorm(scale_init=_around_one, dtype=self.dtype, name=name)(x, train)
        return GroupNorm(min(32, x.shape[-1]), 1e-5, self.dtype, name=name)(x) if self.norm == "group" else x
