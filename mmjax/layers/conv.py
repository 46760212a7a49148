"""Convolutions over images.

B batch, H height, W width, C channels, O channels out, K kernel size (and J, where its width is another than its height).
"""

import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import gathered
from mmjax.layers.dense import Initializer

# FSDP splits the channels out, as it splits a dense layer's width.
AXES = ("spatial", "spatial", "width", "embed")
# "same" is TensorFlow's: as many outputs as stride steps in the input, zeros shared between both ends, the odd one last.
# "centre" is PyTorch's padding of K // 2 at both ends.
PADDINGS = ("same", "centre", "valid")


class Conv(nn.Module):
    """Convolution with float32 `kernel [K, J, C / groups, O]` and, if asked for, `bias [O]`; the product is in `dtype`.

    Attributes:
      features: O.
      kernel: K, or (K, J).
      padding: one of PADDINGS.
      groups: channels in and out fall into so many groups, each seeing its own only.
      standardise: Brock et al. 2021 (NFNet), equation 2: before use, the weights of an output have their mean taken off and
        are divided by sqrt(fan-in x variance), which is held at `eps` or more; a learnt `gain [O]` multiplies them.
    """

    features: int
    kernel: int | tuple[int, int] = 3
    stride: int = 1
    padding: str = "same"
    groups: int = 1
    use_bias: bool = False
    standardise: bool = False
    eps: float = 1e-4
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w O"]:
        c = x.shape[-1]
        if c % self.groups or self.features % self.groups:
            raise UserError(f"a convolution of {c} channels to {self.features} does not fall into {self.groups} groups")
        per_output = lambda name, init, axis: self.param(name, nn.with_logical_partitioning(init, (axis,)), (self.features,), jnp.float32)
        size = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        shape = (*size, c // self.groups, self.features)
        kernel = self.param("kernel", nn.with_logical_partitioning(self.kernel_init, AXES), shape, jnp.float32)
        if self.standardise:  # on a device's own outputs, before they are gathered
            kernel = standardised(kernel, self.eps) * per_output("gain", nn.initializers.ones, "width")[None, None, None]
        kernel = gathered(kernel.astype(self.dtype), *AXES)
        y = convolve(x.astype(self.dtype), kernel, self.stride, self.padding, self.groups)
        if self.use_bias:
            bias = per_output("bias", nn.initializers.zeros, "embed")
            y = y + gathered(bias.astype(self.dtype), "embed")[None, None, None]
        return y


def standardised(kernel: Float[Array, "K J C O"], eps: float) -> Float[Array, "K J C O"]:
    """Every output's weights with mean 0 and a sum of squares of 1, less where their variance x fan-in is below `eps`."""
    fan_in = math.prod(kernel.shape[:-1])
    centred = kernel - kernel.mean((0, 1, 2), keepdims=True)
    variance = jnp.square(centred).mean((0, 1, 2), keepdims=True)
    return centred * lax.rsqrt(jnp.maximum(variance * fan_in, eps))


def convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "K J c O"], stride: int = 1, padding: str = "same", groups: int = 1
) -> Float[Array, "B h w O"]:
    """Cross-correlation (no flip) of images with a kernel of C / groups channels; `padding` is one of PADDINGS."""
    if padding not in PADDINGS:
        raise UserError(f"padding is {padding!r}{suggest(padding, PADDINGS)}")
    size = kernel.shape[:2]
    if size == (1, 1) and stride == groups == 1:  # a plain product, which is faster on a CPU
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)
    pad = [(n // 2, n // 2) for n in size] if padding == "centre" else padding.upper()
    product = functools.partial(
        lax.conv_general_dilated, window_strides=(stride, stride), padding=pad, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    if groups == 1:
        return product(x, kernel)
    whole = functools.partial(product, feature_group_count=groups)
    # XLA's CPU backend has no fast path for groups: the gradient is some 25 times slower than group by group.
    return lax.platform_dependent(x, kernel, cpu=functools.partial(one_by_one, product, groups), default=whole)


def one_by_one(product: Callable[[Array, Array], Array], groups: int, x: Array, kernel: Array) -> Array:
    """A grouped convolution as a convolution a group."""
    parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
    return jnp.concatenate([product(a, k) for a, k in parts], -1)


def average_pool(x: Float[Array, "B H W C"], window: int, padding: str = "valid") -> Float[Array, "B h w C"]:
    """Means of windows that do not overlap; with padding "same" those over an edge average what lies inside, else they are left out."""
    return nn.avg_pool(x, (window, window), (window, window), padding.upper(), count_include_pad=False)
