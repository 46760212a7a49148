"""Inception v3 (Szegedy et al. 2016) as the Frechet Inception distance has it: TensorFlow's network of 2015-12-05, not the later ones.

Heusel et al. 2017, whose pooled features it is. Where it differs from the network that libraries call Inception v3: 1008 classes, mean
pooling that leaves out what lies beyond an edge, and in the last block a maximum where the others have a mean.
B batch, H height, W width in pixels, h and w of a feature map, C channels.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mmjax.core.errors import UserError, suggest
from mmjax.layers import BatchNorm, Conv, Dense
from mmjax.layers.batch_norm import STATISTICS

SIDE, LEAST, FEATURES, CLASSES = 299, 75, 2048, 1008
EPS = 1e-3  # of batch norms

# How pictures of 0..1 become what the network sees. "pytorch": pytorch-fid's, bilinear between pixels' centres without antialiasing, and
# 2 x - 1. "tf1": the original's, bilinear between pixels' corners, and (255 x - 128) / 128. "clean": clean-fid's (Parmar et al. 2022),
# antialiased bicubic without rounding, and (255 x - 128) / 128. A score is comparable with scores of its own kind alone.
RESIZES = ("pytorch", "tf1", "clean")


def prepare(images: Float[Array, "B H W 3"], resize: str = "pytorch", side: int = SIDE) -> Float[Array, "B S S 3"]:
    """Pictures of 0..1 as the network takes them; `resize` is one of RESIZES.

    Raises:
      UserError: an unknown resize.
    """
    if resize not in RESIZES:
        raise UserError(f"resize of pictures for Inception is {resize!r}{suggest(resize, RESIZES)}")
    if resize == "clean":
        x = jax.image.resize(images, (images.shape[0], side, side, images.shape[3]), "cubic", antialias=True)
    else:
        x = images
        for axis in (1, 2):
            x = _between(x, axis, side, centres=resize == "pytorch")
    return 2 * x - 1 if resize == "pytorch" else (255 * x - 128) / 128


def _between(x: Array, axis: int, side: int, centres: bool) -> Array:
    """Linear along an axis: pixel i of the new ones lies at i * old / new, counted from the first one's corner or its centre."""
    n, half = x.shape[axis], 0.5 if centres else 0.0
    at = np.clip((np.arange(side) + half) * (n / side) - half, 0, n - 1)
    low = np.floor(at).astype(np.int32)
    share = jnp.asarray(at - low, x.dtype).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return jnp.take(x, low, axis=axis) * (1 - share) + jnp.take(x, np.minimum(low + 1, n - 1), axis=axis) * share


# --- layers as tables ----------------------------------------------------------------------------------------------------


def thin(x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C"]:
    """The maximum of 3 x 3 at every second place inside."""
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


def mean3(x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
    """The mean of 3 x 3, of as many as lie inside."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def max3(x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
    """The maximum of 3 x 3."""
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


# A branch is a chain of links: a function, (name, channels, kernel[, stride[, padding]]) of a `Unit`, or a list of such, which all see the
# same and are put side by side.
Branch = list
WIDE, TALL = (1, 7), (7, 1)

STEM: Branch = [
    ("Conv2d_1a_3x3", 32, 3, 2, "valid"),
    ("Conv2d_2a_3x3", 32, 3, 1, "valid"),
    ("Conv2d_2b_3x3", 64, 3),
    thin,
    ("Conv2d_3b_1x1", 80, 1),
    ("Conv2d_4a_3x3", 192, 3, 1, "valid"),
    thin,
]


def _a(pool: int) -> list[Branch]:
    return [
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        [mean3, ("branch_pool", pool, 1)],
    ]


def _c(c: int) -> list[Branch]:
    dbl = [("branch7x7dbl_1", c, 1), ("branch7x7dbl_2", c, TALL), ("branch7x7dbl_3", c, WIDE), ("branch7x7dbl_4", c, TALL)]
    return [
        [("branch1x1", 192, 1)],
        [("branch7x7_1", c, 1), ("branch7x7_2", c, WIDE), ("branch7x7_3", 192, TALL)],
        [*dbl, ("branch7x7dbl_5", 192, WIDE)],
        [mean3, ("branch_pool", 192, 1)],
    ]


def _e(pool: object) -> list[Branch]:
    fork = lambda name: [(f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))]
    return [
        [("branch1x1", 320, 1)],
        [("branch3x3_1", 384, 1), fork("branch3x3_2")],
        [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), fork("branch3x3dbl_3")],
        [pool, ("branch_pool", 192, 1)],
    ]


BLOCKS: dict[str, list[Branch]] = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": [
        [("branch3x3", 384, 3, 2, "valid")],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2, "valid")],
        [thin],
    ],
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": [
        [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2, "valid")],
        [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, WIDE), ("branch7x7x3_3", 192, TALL), ("branch7x7x3_4", 192, 3, 2, "valid")],
        [thin],
    ],
    "Mixed_7b": _e(mean3),
    "Mixed_7c": _e(max3),
}


# --- modules -------------------------------------------------------------------------------------------------------------


class Inception(nn.Module):
    """Prepared pictures to pooled features and logits. Parameters have the names of the published PyTorch weights.

    Attributes:
      share: of every layer's channels that there are, for small tests; 1 for the network.
      classes: of the logits.
    """

    share: float = 1.0
    classes: int = CLASSES
    dtype: DTypeLike = jnp.float32

    state_paths = (STATISTICS,)  # regexes of parameters that only the task writes

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> tuple[Float[Array, "B C"], Float[Array, "B K"]]:
        """Float32 features ("pool3") and logits: those without the layer's bias that Inception scores are computed of."""
        if min(x.shape[1:3]) < LEAST:
            raise UserError(f"Inception takes pictures of {LEAST} pixels or more, got {x.shape[1]} x {x.shape[2]}; they are to be resized")
        x = chain(x, STEM, self.share, self.dtype)
        for name, branches in BLOCKS.items():
            x = Mixed(tuple(map(tuple, branches)), self.share, self.dtype, name=name)(x)
        features = x.astype(jnp.float32).mean((1, 2))
        return features, Dense(self.classes, ("embed", "classes"), use_bias=False, name="fc")(features)


class Mixed(nn.Module):
    """Branches side by side."""

    branches: tuple
    share: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C2"]:
        return jnp.concatenate([chain(x, branch, self.share, self.dtype) for branch in self.branches], axis=-1)


class Unit(nn.Module):
    """Convolution, batch norm with running statistics, ReLU. Parameters `conv`, `bn`."""

    features: int
    kernel: int | tuple[int, int]
    stride: int = 1
    padding: str = "centre"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C2"]:
        x = Conv(self.features, self.kernel, self.stride, self.padding, dtype=self.dtype, name="conv")(x)
        return nn.relu(BatchNorm(EPS, frozen=True, dtype=self.dtype, name="bn")(x))


def chain(x: Array, links: Iterable, share: float, dtype: DTypeLike) -> Array:
    """Link after link; call it inside a compact method."""

    def unit(name: str, features: int, *rest: Any) -> Array:
        return Unit(round(features * share), *rest, dtype=dtype, name=name)(x)

    for link in links:
        x = link(x) if callable(link) else unit(*link) if isinstance(link[0], str) else jnp.concatenate([unit(*a) for a in link], axis=-1)
    return x
