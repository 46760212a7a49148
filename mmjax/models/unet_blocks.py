"""What U-Nets are built of: residual blocks, attention over places, transformers that look at a context, and the walks down and up.

B batch, H height, W width, h and w of what comes out, C channels, O channels out, E width of the embedding of time and conditions,
S words of a context, M their width.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from mmjax.core import rng
from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import constrain
from mmjax.layers import REMAT, Attention, Conv, Dense, GroupNorm, LayerNorm, Mlp, double, dropout, halve, stack
from mmjax.layers.dense import Initializer
from mmjax.layers.resample import BOX

# How blocks start: "fan_in" as PyTorch's layers (improved DDPM, ADM, latent diffusion), "fan_avg" as DDPM's and those of Song et al.
INITS: dict[str, Initializer] = {
    "fan_in": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "fan_avg": nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
}
# What follows residual blocks on a level: attention among places; a transformer whose places also look at words; or attention in which
# the words' keys and values stand before those of the places (Nichol et al. 2021, GLIDE).
ATTENTIONS = ("self", "cross", "added")
# How one level becomes the next: a convolution with stride 2 padded by 1 on every side, the same padded on the far sides only (TensorFlow's
# way, DDPM's), or a residual block with a mean in it. Upwards the first two repeat pixels before a convolution.
RESAMPLES = ("conv", "conv_same", "residual")
_zeros = nn.initializers.zeros


@dataclasses.dataclass(frozen=True)
class Style:
    """What all blocks of a network have in common.

    Attributes:
      groups, group_width: of group norms; of fewer than groups x group_width channels there are fewer groups.
      scale_shift: the embedding scales and shifts what the second norm puts out (Nichol and Dhariwal 2021), else it is added before it.
      taps: of the filter where a block changes the resolution.
      skip_scale: on the sum of a branch and its shortcut.
      project: the shortcut of a block that changes the resolution is a product even where the width stays.
    """

    groups: int = 32
    group_width: int = 1
    eps: float = 1e-5
    scale_shift: bool = False
    dropout: float = 0.0
    taps: tuple[float | int, ...] = BOX
    skip_scale: float = 1.0
    project: bool = False
    initializer: str = "fan_in"
    dtype: DTypeLike = jnp.float32
    scan: bool = False
    remat: str = "none"
    backend: str = "xla"

    def __post_init__(self):
        for field, value, known in (("initializer", self.initializer, INITS), ("remat", self.remat, REMAT)):
            if value not in known:
                raise UserError(f"U-Net {field} is {value!r}{suggest(value, known)}")

    @property
    def kernel_init(self) -> Initializer:
        return INITS[self.initializer]

    def norm(self, x: Float[Array, "B H W C"], name: str, eps: float | None = None) -> Float[Array, "B H W C"]:
        groups = min(self.groups, x.shape[-1] // self.group_width)
        return GroupNorm(groups, self.eps if eps is None else eps, self.dtype, name=name)(x)

    def conv(self, features: int, name: str, kernel: int = 3, stride: int = 1, padding: str = "centre", zero: bool = False) -> Conv:
        init = _zeros if zero else self.kernel_init
        return Conv(features, kernel, stride, padding, use_bias=True, dtype=self.dtype, kernel_init=init, name=name)

    def recomputed(self, module: type[nn.Module]) -> Callable[..., nn.Module]:
        """The class, with what its backward pass finds stored by the `remat` policy."""
        if self.remat == "none":
            return module
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.remat == "dots" else None
        return nn.remat(module, policy=policy)


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, beside a shortcut; the embedding comes in at the second norm. `emb` is given after its SiLU.

    Parameters `norm1`, `conv1`, `emb`, `norm2`, `conv2` (0 to begin with) and, where width or resolution ask for it, `skip`.

    Attributes:
      resample: "none", "down" (half the size) or "up" (twice), before the first convolution and on the shortcut.
    """

    features: int
    style: Style
    resample: str = "none"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], emb: Float[Array, "B E"], keys: Key[Array, "B"] | None = None
    ) -> Float[Array, "B h w O"]:
        style, features = self.style, self.features
        resized = {"none": lambda x: x, "down": halve, "up": double}[self.resample]
        if self.resample != "none":
            resized = functools.partial(resized, taps=style.taps)
        h = style.conv(features, "conv1")(resized(nn.silu(style.norm(x, "norm1"))))
        width = features * (2 if style.scale_shift else 1)
        e = Dense(width, ("embed", "width"), dtype=style.dtype, kernel_init=style.kernel_init, name="emb")(emb)[:, None, None]
        if style.scale_shift:
            scale, shift = jnp.split(e, 2, axis=-1)
            h = style.norm(h, "norm2") * (1 + scale) + shift
        else:
            h = style.norm(h + e, "norm2")
        h = style.conv(features, "conv2", zero=True)(dropout(nn.silu(h), style.dropout, keys))
        x = resized(x)
        if x.shape[-1] != features or (style.project and self.resample != "none"):
            x = style.conv(features, "skip", kernel=1)(x)
        return constrain(_sum(x, h, style.skip_scale), "batch", None, None, None)


def _sum(x: Array, y: Array, scale: float) -> Array:
    return x + y if scale == 1.0 else (x + y) * scale


class PlaceAttention(nn.Module):
    """x + attention of every place to all places. Parameters `norm`, `attn` (`q`, `k`, `v`, `out`, the last 0 to begin with)."""

    heads: int
    style: Style

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        style, (b, h, w, c) = self.style, x.shape
        how = {"dtype": style.dtype, "kernel_init": style.kernel_init, "out_init": _zeros, "backend": style.backend}
        y = Attention(self.heads, **how, name="attn")(style.norm(x, "norm").reshape(b, h * w, c))
        return constrain(_sum(x, y.reshape(x.shape), style.skip_scale), "batch", None, None, None)


class AddedAttention(nn.Module):
    """The same, where places look at the words too: `added_k`, `added_v` of the context stand before the places' own keys and values.

    Nichol et al. 2021, GLIDE, section 3. Parameters `norm`, `q`, `k`, `v`, `added_k`, `added_v`, `out`.
    """

    heads: int
    style: Style

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], context: Float[Array, "B S M"], mask: Bool[Array, "B S"] | None = None
    ) -> Float[Array, "B H W C"]:
        style, (b, h, w, c) = self.style, x.shape
        if c % self.heads:
            raise UserError(f"model width {c} does not split into {self.heads} heads; set heads to a divisor of the width")
        y = style.norm(x, "norm").reshape(b, h * w, c)

        def heads(x: Array, name: str) -> Float[Array, "B N H K"]:
            z = Dense(c, ("embed", "heads"), dtype=style.dtype, kernel_init=style.kernel_init, name=name)(x)
            return z.reshape(b, x.shape[1], self.heads, c // self.heads)

        q = heads(y, "q")
        k = jnp.concatenate([heads(context, "added_k"), heads(y, "k")], axis=1)
        v = jnp.concatenate([heads(context, "added_v"), heads(y, "v")], axis=1)
        if mask is not None:
            mask = jnp.concatenate([mask, jnp.ones((b, h * w), bool)], axis=1)[:, None, None]
        y = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=style.backend).reshape(b, h * w, c)
        y = Dense(c, ("heads", "embed"), dtype=style.dtype, kernel_init=_zeros, name="out")(y)
        return constrain(_sum(x, y.reshape(x.shape), style.skip_scale), "batch", None, None, None)


class Transformer(nn.Module):
    """x + a stack of transformer blocks over the places between two products (Rombach et al. 2022, appendix E.1).

    Those products are 1 x 1 convolutions in Stable Diffusion 1 and matrices in 2 and XL, which is the same but for the file's layout.
    Parameters `norm` (eps 1e-6), `proj_in`, `blocks`, `proj_out` (0 to begin with).
    """

    depth: int
    heads: int
    style: Style

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], context: Float[Array, "B S M"], mask: Bool[Array, "B S"] | None = None
    ) -> Float[Array, "B H W C"]:
        style, (b, h, w, c) = self.style, x.shape
        dense = lambda init, name: Dense(c, ("embed", "width"), dtype=style.dtype, kernel_init=init, name=name)
        make = lambda name: TransformerBlock(self.heads, style.dtype, style.backend, style.kernel_init, name=name)
        y = dense(style.kernel_init, "proj_in")(style.norm(x, "norm", 1e-6).reshape(b, h * w, c))
        mask = None if mask is None else mask[:, None, None]
        y = stack(make, self.depth, y, scan=style.scan, remat=style.remat, context=context, mask=mask)
        y = dense(_zeros, "proj_out")(y)
        return constrain(x + y.reshape(x.shape), "batch", None, None, None)


class TransformerBlock(nn.Module):
    """Places look at each other, then at the words, then a gated MLP, each after a norm and added to what it was given.

    Parameters `norm1`, `attn1`, `attn1_out`, `norm2`, `attn2`, `attn2_out`, `norm3`, `mlp`; `q`, `k` and `v` have no biases.
    """

    heads: int
    dtype: DTypeLike = jnp.float32
    backend: str = "xla"
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        keys: Key[Array, "B"] | None = None,
        *,
        context: Float[Array, "B S M"],
        mask: Bool[Array, "B #H #L S"] | None = None,
    ) -> Float[Array, "B L D"]:
        init = {"kernel_init": self.kernel_init, "dtype": self.dtype}
        norm = lambda name: LayerNorm(1e-5, self.dtype, name=name)

        def attend(name: str, x: Array, memory: Array | None, mask: Array | None = None) -> Array:
            y = Attention(self.heads, **init, backend=self.backend, use_bias=False, project=False, name=name)(x, memory, mask=mask)
            return Dense(x.shape[-1], ("heads", "embed"), **init, name=f"{name}_out")(y)

        x = x + attend("attn1", norm("norm1")(x), None)
        x = x + attend("attn2", norm("norm2")(x), context, mask)
        mlp = Mlp(4 * x.shape[-1], "gelu", self.dtype, self.kernel_init, self.kernel_init, gated=True, name="mlp")
        return constrain(x + mlp(norm("norm3")(x)), "batch", None, None)


@dataclasses.dataclass(frozen=True)
class Levels:
    """The resolutions of a network, the finest first.

    Attributes:
      channels: width of each level.
      blocks: residual blocks of each, going down; going up there is one more.
      attention: of each, how many transformer blocks (or 1, attention by itself) follow every residual block; 0 for none.
      heads: of attention, one number or one a level; `head_width`, channels of a head, stands in its place where it is given.
      resample: one of RESAMPLES.
    """

    channels: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    kind: str
    heads: int | tuple[int, ...]
    head_width: int | None
    resample: str

    def __post_init__(self):
        for field, value, known in (("kind", self.kind, ATTENTIONS), ("resample", self.resample, RESAMPLES)):
            if value not in known:
                raise UserError(f"U-Net {field} is {value!r}{suggest(value, known)}")
        n, per_level = len(self.channels), {"attention": self.attention}
        if not isinstance(self.heads, int):
            per_level["heads"] = self.heads
        for field, values in per_level.items():
            if len(values) != n:
                raise UserError(f"U-Net {field} is {values}, expected {n} numbers, one for each of the channels {self.channels}")

    def heads_at(self, level: int) -> int:
        width = self.channels[level]
        if self.head_width is None:
            return self.heads if isinstance(self.heads, int) else self.heads[level]
        if width % self.head_width:
            raise UserError(f"U-Net width {width} does not split into heads of {self.head_width}; set head_width to a divisor of it")
        return width // self.head_width


def check_sides(height: int, width: int, levels: int) -> None:
    """Raises `UserError` for an image that cannot be halved as often as a network of so many levels does."""
    multiple = 2 ** (levels - 1)
    if height % multiple or width % multiple:
        raise UserError(
            f"images of {height} x {width} cannot be halved {levels - 1} times, as a U-Net of {levels} levels does; "
            f"make both sides multiples of {multiple}"
        )


class Walk:
    """The way through a network inside its compact method: calls its blocks by name, each with dropout of its own."""

    def __init__(
        self,
        levels: Levels,
        style: Style,
        emb: Float[Array, "B E"],
        keys: Key[Array, "B"] | None = None,
        context: Float[Array, "B S M"] | None = None,
        mask: Bool[Array, "B S"] | None = None,
    ):
        self.levels, self.style, self.emb, self.keys, self.context, self.mask = levels, style, emb, keys, context, mask
        self._blocks = 0

    def residual(self, x: Array, features: int, name: str, resample: str = "none") -> Array:
        keys = None if self.keys is None else rng.fold(self.keys, self._blocks)
        self._blocks += 1
        return self.style.recomputed(ResBlock)(features, self.style, resample, name=name)(x, self.emb, keys)

    def attend(self, x: Array, depth: int, level: int, name: str) -> Array:
        """Attention of the network's kind, or nothing where depth is 0."""
        if not depth:
            return x
        heads, kind = self.levels.heads_at(level), self.levels.kind
        if kind == "cross":  # which recomputes block by block
            return Transformer(depth, heads, self.style, name=name)(x, self.context, self.mask)
        if kind == "added":
            return self.style.recomputed(AddedAttention)(heads, self.style, name=name)(x, self.context, self.mask)
        return self.style.recomputed(PlaceAttention)(heads, self.style, name=name)(x)

    def halved(self, x: Array, name: str) -> Array:
        features = x.shape[-1]
        if self.levels.resample == "residual":
            return self.residual(x, features, name, "down")
        return self.style.conv(features, name, stride=2, padding="same" if self.levels.resample == "conv_same" else "centre")(x)

    def doubled(self, x: Array, name: str) -> Array:
        features = x.shape[-1]
        if self.levels.resample == "residual":
            return self.residual(x, features, name, "up")
        return self.style.conv(features, name)(double(x))

    def down(self, x: Array) -> tuple[Array, list[Array]]:
        """From the finest level to the coarsest, and all that the way up will want: what went in and what every step put out."""
        skips, last = [x], len(self.levels.channels) - 1
        for level, features in enumerate(self.levels.channels):
            for i in range(self.levels.blocks):
                x = self.residual(x, features, f"down{level}_res{i}")
                x = self.attend(x, self.levels.attention[level], level, f"down{level}_attn{i}")
                skips.append(x)
            if level < last:
                x = self.halved(x, f"down{level}_resample")
                skips.append(x)
        return x, skips

    def middle(self, x: Array, depth: int) -> Array:
        features = x.shape[-1]
        x = self.residual(x, features, "mid_res0")
        x = self.attend(x, depth, len(self.levels.channels) - 1, "mid_attn")
        return self.residual(x, features, "mid_res1")

    def up(self, x: Array, skips: list[Array]) -> Array:
        """Back, each block given what it gets beside what `down` kept."""
        skips = list(skips)
        for level, features in reversed(list(enumerate(self.levels.channels))):
            for i in range(self.levels.blocks + 1):
                x = self.residual(jnp.concatenate([x, skips.pop()], axis=-1), features, f"up{level}_res{i}")
                x = self.attend(x, self.levels.attention[level], level, f"up{level}_attn{i}")
            if level:
                x = self.doubled(x, f"up{level}_resample")
        return x
