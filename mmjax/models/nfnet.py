"""NFNet (Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without Normalization"): Flamingo's image encoder.

B batch, H height, W width in pixels, h and w of a feature map, C channels, D features.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from mmjax.core import rng
from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import constrain
from mmjax.layers import ACTIVATIONS, Conv, Dense, average_pool, dropout, stack, stochastic_depth
from mmjax.layers.dense import normal

# What an activation is multiplied by, so that it keeps the variance of a standard normal (section 2; the authors' constants).
GAMMAS = {"gelu": 1.7015043497085571, "gelu_tanh": 1.7015043497085571, "relu": 1.7139588594436646}
STEM = ((16, 2), (32, 1), (64, 1))  # channels, stride; a fourth convolution of stride 2 has half the first stage's channels
STRIDES = (1, 2, 2, 2)

# Table 1: F_n has n + 1 times F0's depth. SIZES are images' sides in pixels, in training and in testing.
VARIANTS = {
    f"F{n}": {"depths": tuple(d * (n + 1) for d in (1, 2, 6, 3)), "dropout": rate}
    for n, rate in enumerate((0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5))
}
SIZES = {
    "F0": (192, 256),
    "F1": (224, 320),
    "F2": (256, 352),
    "F3": (320, 416),
    "F4": (384, 512),
    "F5": (416, 544),
    "F6": (448, 576),
    "F7": (480, 608),
}


class NFNet(nn.Module):
    """Images to one vector each, the mean over places after the last convolution.

    The first block of a stage changes width and resolution; those after it are equal but for a scale and a drop rate. They are
    unrolled unless `scan` is set, as in models.resnet and for the same reason.

    Attributes:
      depths, widths: blocks and channels of the four stages; a vector has twice the last one's channels.
      group: channels of a group in the bottleneck's convolutions, which have half the stage's channels.
      alpha: what a residual branch is scaled by.
      act: an activation of GAMMAS.
      classes: a linear head of so many outputs; 0 for none.
      dropout: of the features.
      stochastic_depth: chance that a residual branch is left out, of the last block; it rises linearly from 0 at the first.
      scan, remat: how it is computed, not what (see layers.stack).
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (256, 512, 1536, 1536)
    group: int = 128
    alpha: float = 0.2
    act: str = "gelu_tanh"
    classes: int = 0
    dropout: float = 0.0
    stochastic_depth: float = 0.25
    dtype: DTypeLike = jnp.float32
    scan: bool = False
    remat: str = "none"

    state_paths = ()  # regexes of parameters that only the task writes: none

    @property
    def features(self) -> int:
        """Width of what comes out without `classes`."""
        return 2 * self.widths[-1]

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"], keys: Key[Array, "B"] | None = None, tokens: bool = False) -> Float[Array, "B *d"]:
        """Float32 features [B, D], or logits of `classes`. With `keys`, dropout and stochastic depth are on.

        With `tokens`, what the last stage puts out instead, its places in reading order, [B, h * w, the stage's channels].
        """
        self.check()
        act = activation(self.act)
        x = images
        for i, (channels, stride) in enumerate((*STEM, (self.widths[0] // 2, 2)), 1):
            x = convolution(channels, 3, self.dtype, f"stem{i}", stride)(x if i == 1 else act(x))
        for i, (scales, rates) in enumerate(schedule(self.depths, self.alpha, self.stochastic_depth)):
            how = (self.widths[i], self.group, self.alpha, self.act, self.dtype)
            stage = Stage(how, STRIDES[i], scales, rates, self.scan, self.remat, name=f"stage{i + 1}")
            x = stage(x, None if keys is None else rng.fold(keys, i))
        if tokens:
            return x.reshape(len(x), -1, x.shape[-1]).astype(jnp.float32)
        x = act(convolution(self.features, 1, self.dtype, "last")(x)).mean((1, 2))
        x = dropout(x, self.dropout, None if keys is None else rng.fold(keys, len(self.depths)))
        if self.classes:
            x = Dense(self.classes, ("embed", "classes"), dtype=self.dtype, kernel_init=normal(0.01), name="head")(x)
        return x.astype(jnp.float32)

    def check(self) -> None:
        """Raises UserError for sizes that make no network."""
        if len(self.depths) != 4 or len(self.widths) != 4 or min(*self.depths, *self.widths) < 1:
            raise UserError(f"NFNet depths are {self.depths} and widths {self.widths}, expected four numbers each, at least 1")
        for width in self.widths:
            if (width // 2) % self.group:
                raise UserError(f"NFNet width {width}: its half does not fall into groups of {self.group} channels; set another group")


def activation(name: str):
    """The activation of that name, scaled to keep variance."""
    if name not in GAMMAS:
        raise UserError(f"NFNet act is {name!r}{suggest(name, GAMMAS)}")
    return lambda x: ACTIVATIONS[name](x) * GAMMAS[name]


def convolution(features: int, kernel: int, dtype: DTypeLike, name: str, stride: int = 1, groups: int = 1) -> Conv:
    """A scaled weight-standardised convolution."""
    init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    return Conv(features, kernel, stride, "same", groups, use_bias=True, standardise=True, dtype=dtype, kernel_init=init, name=name)


def schedule(depths: tuple[int, ...], alpha: float, rate: float) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """For every stage, for every block: 1 / the standard deviation its input has at initialisation (section 2: every block adds
    alpha^2 to the variance, and a stage's first sets it back to 1 by standardised shortcut), and its rate of stochastic depth."""
    out, variance, index = [], 1.0, 0
    for depth in depths:
        scales, rates = [], []
        for block in range(depth):
            scales.append(1 / math.sqrt(variance))
            rates.append(rate * index / sum(depths))
            variance = (1.0 if block == 0 else variance) + alpha**2
            index += 1
        out.append((tuple(scales), tuple(rates)))
    return out


class Stage(nn.Module):
    """Blocks at one resolution: `first`, which may halve it, and `blocks`. `how` are the first fields of Block."""

    how: tuple
    stride: int
    scales: tuple[float, ...]
    rates: tuple[float, ...]
    scan: bool
    remat: str

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], keys: Key[Array, "B"] | None) -> Float[Array, "B h2 w2 C2"]:
        depth = len(self.scales) - 1
        fold = lambda use: None if keys is None else rng.fold(keys, use)
        each = {name: jnp.asarray(np.array(v, np.float32)) for name, v in (("scale", self.scales), ("rate", self.rates))}
        first, rest = ({name: v[at] for name, v in each.items()} for at in (0, slice(1, None)))
        x = Block(*self.how, self.stride, True, name="first")(x, fold(0), **first)
        make = lambda name: Block(*self.how, name=name)
        return stack(make, depth, x, keys=fold(1), scan=self.scan, remat=self.remat, each=rest) if depth else x


class Block(nn.Module):
    """x + alpha * gain * f(scale * act(x)), f a bottleneck with two grouped convolutions and squeeze-excitation (figure 4).

    `gain`, of the whole branch, starts at 0 (SkipInit, De and Smith 2020). A block that changes the map has a projection, of the mean over
    stride x stride, in place of x.
    """

    width: int
    group: int
    alpha: float
    act: str
    dtype: DTypeLike
    stride: int = 1
    shortcut: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w C"], keys: Key[Array, "B"] | None = None, *, scale: Float[Array, ""], rate: Float[Array, ""]
    ) -> Float[Array, "B h2 w2 C2"]:
        act, inner = activation(self.act), self.width // 2
        conv = lambda features, kernel, name, *how: convolution(features, kernel, self.dtype, name, *how)
        y = act(x) * scale.astype(self.dtype)
        if self.shortcut:
            x = conv(self.width, 1, "shortcut")(average_pool(y, self.stride, "same") if self.stride > 1 else y)
        y = conv(inner, 1, "conv1")(y)
        y = conv(inner, 3, "conv2", self.stride, inner // self.group)(act(y))
        y = conv(inner, 3, "conv3", 1, inner // self.group)(act(y))
        y = conv(self.width, 1, "conv4")(act(y))
        y = 2 * self.excitation(y) * y
        gain = self.param("gain", nn.with_logical_partitioning(nn.initializers.zeros, ()), (), jnp.float32)
        y = stochastic_depth(y, rate, keys) * (self.alpha * gain).astype(self.dtype)
        return constrain(x + y, "batch", None, None, None)

    def excitation(self, x: Float[Array, "B h w C"]) -> Float[Array, "B 1 1 C"]:
        """Hu et al. 2018: a gate for every channel from the mean over places."""
        hidden = nn.relu(Dense(self.width // 2, ("embed", "mlp"), dtype=self.dtype, name="squeeze")(x.mean((1, 2))))
        return nn.sigmoid(Dense(self.width, ("mlp", "embed"), dtype=self.dtype, name="excite")(hidden))[:, None, None]
