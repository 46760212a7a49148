"""Perceptual distances: LPIPS (Zhang et al. 2018) on the features of VGG-16, and the same on any network's features.

B batch, H height, W width in pixels, h and w of a feature map, C channels, F maps.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mmjax.core.errors import UserError
from mmjax.layers import Conv

# Convolutions of 3 with ReLU; a 2 x 2 maximum stands before every group but the first, and each group's last answer is a feature map.
VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
# LPIPS takes pictures of -1..1 and brings them to ImageNet's mean and deviation by these.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
SMALL = 1e-10  # added to a feature vector's length


class LPIPS(nn.Module):
    """Version 0.1 with VGG-16. Parameters `net`, and `head1`...`head5`, a weight a channel of each map.

    No weights come with mmjax: convert.lpips reads the published ones from files.

    Attributes:
      groups: (channels, convolutions) of VGG-16's groups; smaller ones for tests.
    """

    groups: tuple[tuple[int, int], ...] = VGG16
    dtype: DTypeLike = jnp.float32

    def setup(self):
        init = nn.with_logical_partitioning(nn.initializers.ones, ("width",))
        self.net = VGG(self.groups, self.dtype)
        self.heads = [self.param(f"head{i}", init, (channels,), jnp.float32) for i, (channels, _) in enumerate(self.groups, 1)]

    def __call__(self, x: Float[Array, "B H W 3"], y: Float[Array, "B H W 3"]) -> Float[Array, "B"]:
        """The distance between pictures of -1..1; errors as of `VGG`."""
        shift, scale = (jnp.asarray(v, jnp.float32)[None, None, None] for v in (SHIFT, SCALE))
        maps = self.net((jnp.concatenate([x, y]) - shift) / scale)
        n = x.shape[0]
        return distance([m[:n] for m in maps], [m[n:] for m in maps], self.heads)


class VGG(nn.Module):
    """The last map of each group, after its rectifier. Parameters `conv1_1`...; `groups` as of `LPIPS`."""

    groups: tuple[tuple[int, int], ...] = VGG16
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> list[Float[Array, "B _ _ _"]]:
        """Raises UserError: pictures that cannot be halved as often as the network does."""
        least = 2 ** (len(self.groups) - 1)
        if min(x.shape[1:3]) < least:
            raise UserError(f"VGG takes pictures of {least} pixels or more, got {x.shape[1]} x {x.shape[2]}")
        out = []
        for i, (channels, depth) in enumerate(self.groups, 1):
            x = nn.max_pool(x, (2, 2), (2, 2)) if i > 1 else x
            for j in range(1, depth + 1):
                x = nn.relu(Conv(channels, 3, 1, "centre", use_bias=True, dtype=self.dtype, name=f"conv{i}_{j}")(x))
            out.append(x)
        return out


def distance(
    x: Sequence[Float[Array, "B ..."]], y: Sequence[Float[Array, "B ..."]], heads: Sequence[Float[Array, "_"]] | None = None
) -> Float[Array, "B"]:
    """The sum over feature maps of the mean over places of the weighted squared difference of unit feature vectors (equation 1).

    Args:
      x, y: maps [B, h, w, C], or tokens [B, L, C] of a vision transformer, of the same network on two pictures.
      heads: a weight a channel for each map; 1 if not given, as for a network that people were not asked about.
    """
    total = jnp.zeros(x[0].shape[:1])
    for i, (a, b) in enumerate(zip(x, y, strict=True)):
        terms = jnp.square(unit(a.astype(jnp.float32)) - unit(b.astype(jnp.float32))).reshape(a.shape[0], -1, a.shape[-1]).mean(1)
        total = total + (terms.sum(-1) if heads is None else terms @ heads[i])
    return total


def unit(x: Float[Array, "B *d"]) -> Float[Array, "B *d"]:
    """Vectors along the last axis divided by their length. Those of length 0 stay, with a gradient of 0 where a root has none."""
    square = jnp.square(x).sum(-1, keepdims=True)
    zero = square == 0
    return x / (jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square))) + SMALL)
