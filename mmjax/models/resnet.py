"""CLIP's ResNet (Radford et al. 2021, section 2.4): ResNet-D stem and anti-aliased strides, with attention for pooling.

B batch, H height, W width in pixels, h and w of a feature map, C channels, D features.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from mmjax.core.errors import UserError
from mmjax.core.sharding import constrain
from mmjax.layers import Attention, BatchNorm, Conv, Dense, PositionEmbedding, average_pool, stack
from mmjax.layers.batch_norm import STATISTICS
from mmjax.layers.dense import normal

EXPANSION = 4
STRIDE = 32  # pixels of an image that a last feature stands for

# OpenAI's models; SIZES are their images' sides in pixels.
VARIANTS = {
    "RN50": {"width": 64, "depths": (3, 4, 6, 3), "heads": 32},
    "RN101": {"width": 64, "depths": (3, 4, 23, 3), "heads": 32},
    "RN50x4": {"width": 80, "depths": (4, 6, 10, 6), "heads": 40},
    "RN50x16": {"width": 96, "depths": (6, 8, 18, 8), "heads": 48},
    "RN50x64": {"width": 128, "depths": (3, 15, 36, 10), "heads": 64},
}
SIZES = {"RN50": 224, "RN101": 224, "RN50x4": 288, "RN50x16": 384, "RN50x64": 448}


class ModifiedResNet(nn.Module):
    """Images to one vector each, what OpenAI's attention pooling computes before its last projection (`c_proj`, which has a bias).

    The first block of a stage changes width and resolution; those after it are equal. They are unrolled unless `scan` is set:
    inside a loop XLA's CPU backend does not bring the convolutions of a gradient into the form it is fast for (some 20 times slower),
    and what scanning saves is compile time alone (RN50x64, 64 blocks: 11 against 18 s).

    Attributes:
      width: channels of the first stage's bottleneck; a vector has 32 times as many.
      depths: blocks of the four stages.
      heads: of the attention pooling.
      classes: a linear head of so many outputs; 0 for none.
      frozen_statistics: batch norm uses its running statistics in training too and leaves them as they are.
      scan, remat, backend: how it is computed, not what (see layers.stack, layers.attention).
    """

    width: int
    depths: tuple[int, ...]
    heads: int
    classes: int = 0
    frozen_statistics: bool = False
    dtype: DTypeLike = jnp.float32
    scan: bool = False
    remat: str = "none"
    backend: str = "xla"

    state_paths = (STATISTICS,)  # regexes of parameters that only the task writes

    @property
    def features(self) -> int:
        """Width of what comes out without `classes`."""
        return self.width * STRIDE

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"], keys: Key[Array, "B"] | None = None) -> Float[Array, "B D"]:
        """Float32 features, or logits of `classes`. With `keys`, batch norm uses the batch's statistics (layers.batch_norm)."""
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise UserError(f"ResNet depths are {self.depths}, expected four numbers of blocks, each at least 1")
        if min(images.shape[1:3]) < STRIDE:
            raise UserError(
                f"images of {images.shape[1]} x {images.shape[2]} pixels are too small for a ResNet; make them at least {STRIDE}"
            )
        train = keys is not None
        x = images
        for i, (channels, stride) in enumerate([(self.width // 2, 2), (self.width // 2, 1), (self.width, 1)], 1):
            x = convolution(channels, 3, self.dtype, f"stem{i}", stride)(x)
            x = nn.relu(BatchNorm(frozen=self.frozen_statistics, dtype=self.dtype, name=f"stem_norm{i}")(x, train))
        x = average_pool(x, 2)
        for i, depth in enumerate(self.depths):
            how = (self.frozen_statistics, self.dtype, self.scan, self.remat)
            x = Stage(self.width * 2**i, depth, 1 if i == 0 else 2, *how, name=f"stage{i + 1}")(x, train)
        x = AttentionPool(self.heads, self.dtype, self.backend, name="pool")(x)
        if self.classes:
            x = Dense(self.classes, ("embed", "classes"), dtype=self.dtype, kernel_init=nn.initializers.zeros, name="head")(x)
        return x.astype(jnp.float32)


def convolution(features: int, kernel: int, dtype: DTypeLike, name: str, stride: int = 1) -> Conv:
    """Padded and initialised as PyTorch's: uniform within 1 / sqrt(fan-in)."""
    init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return Conv(features, kernel, stride, "centre", dtype=dtype, kernel_init=init, name=name)


class Stage(nn.Module):
    """Blocks at one resolution: `first`, which may halve it, and `blocks`."""

    width: int
    depth: int
    stride: int
    frozen: bool
    dtype: DTypeLike
    scan: bool
    remat: str

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], train: bool) -> Float[Array, "B h2 w2 C2"]:
        make = lambda name, stride=1, shortcut=False: Bottleneck(self.width, stride, shortcut, train, self.frozen, self.dtype, name=name)
        x = make("first", self.stride, True)(x)
        return stack(make, self.depth - 1, x, scan=self.scan, remat=self.remat) if self.depth > 1 else x


class Bottleneck(nn.Module):
    """Convolutions of 1, 3 and 1 with batch norms, the last of which starts at gain 0, beside the identity or a projection.

    Where the stride is not 1 a mean over stride x stride takes its place, after the middle convolution and before the projection.
    """

    width: int
    stride: int
    shortcut: bool
    train: bool
    frozen: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], keys: None = None) -> Float[Array, "B h2 w2 C2"]:
        conv = lambda features, kernel, name: convolution(features, kernel, self.dtype, name)
        norm = lambda x, name, **how: BatchNorm(frozen=self.frozen, dtype=self.dtype, **how, name=name)(x, self.train)
        pool = lambda x: average_pool(x, self.stride) if self.stride > 1 else x
        y = nn.relu(norm(conv(self.width, 1, "conv1")(x), "norm1"))
        y = pool(nn.relu(norm(conv(self.width, 3, "conv2")(y), "norm2")))
        y = norm(conv(self.width * EXPANSION, 1, "conv3")(y), "norm3", scale_init=nn.initializers.zeros)
        if self.shortcut:
            x = norm(conv(self.width * EXPANSION, 1, "shortcut")(pool(x)), "shortcut_norm")
        return constrain(nn.relu(x + y), "batch", None, None, None)


class AttentionPool(nn.Module):
    """Attention whose one query is the mean of all places; keys are all places and that mean, each with a learnt position.

    Parameters `pos`, `attn` (`q`, `k`, `v`).
    """

    heads: int
    dtype: DTypeLike = jnp.float32
    backend: str = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B D"]:
        b, h, w, d = x.shape
        x = x.reshape(b, h * w, d)
        x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
        std = normal(d**-0.5)
        x = PositionEmbedding(std, name="pos")(x)
        return Attention(self.heads, dtype=self.dtype, kernel_init=std, backend=self.backend, project=False, name="attn")(x[:, :1], x)[:, 0]
