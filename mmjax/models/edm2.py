"""EDM2's U-Net, in which weights, activations and updates keep their magnitudes (Karras et al. 2024, arXiv 2312.02696, config G).

Equations are those of the paper. Every weight of a product is used divided by its own norm; `normalised` does that to the parameters
themselves, and a task's `post_update` calls it after every step (forced weight normalisation, section 2.3), so that a learning rate means
the same throughout. B batch, H height, W width, C channels, O channels out, E width of the embedding, N numbers or places.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from mmjax.core import rng, tree
from mmjax.core.config import Group, kwargs_for
from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import constrain, gathered
from mmjax.layers import REMAT, double, dropout, halve
from mmjax.layers.conv import AXES, convolve
from mmjax.layers.dense import normal
from mmjax.layers.time_embedding import FIXED
from mmjax.models.unet_blocks import check_sides

EPS = 1e-4  # beside a norm that something is divided by
TINY = 1e-24  # under a root, so that zeros have a gradient
SILU = 0.596  # root mean square of SiLU of a standard normal number (appendix B.6)
CLIP = 256.0  # of a block's output, for types with few exponents

# --- magnitude-preserving primitives (appendix B) ------------------------------------------------------------------------


def unit(x: Float[Array, "*d"], axes: int | tuple[int, ...] = -1) -> Float[Array, "*d"]:
    """x over its root mean square along `axes` (pixel normalisation, equation 30), which is taken in float32."""
    rms = jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean(axes, keepdims=True) + TINY)
    return x / (rms + EPS).astype(x.dtype)


def mp_silu(x: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """Equation 81."""
    return nn.silu(x) / SILU


def mp_sum(a: Float[Array, "*d"], b: Float[Array, "*d"], share: float) -> Float[Array, "*d"]:
    """`1 - share` of a and `share` of b, scaled to the magnitude that they have if they are uncorrelated (equation 88)."""
    scale = 1 / math.hypot(1 - share, share)
    return a * ((1 - share) * scale) + b * (share * scale)


def mp_concat(a: Float[Array, "*d m"], b: Float[Array, "*d n"], share: float) -> Float[Array, "*d c"]:
    """a and b side by side, contributing as `share` asks however many channels they have (equation 103)."""
    m, n = a.shape[-1], b.shape[-1]
    scale = math.sqrt(m + n) / math.hypot(1 - share, share)
    return jnp.concatenate([a * (scale * (1 - share) / math.sqrt(m)), b * (scale * share / math.sqrt(n))], axis=-1)


class MPFourier(nn.Module):
    """sqrt(2) cos(f t + p) at rates f and phases p, in radians, that stay as they are drawn (equation 75), in float32.

    They are parameters, `rates [width]` and `phases [width]`, since a checkpoint must hold them; nobody trains them.
    """

    width: int

    @nn.compact
    def __call__(self, t: Float[Array, "B"]) -> Float[Array, "B N"]:
        fixed = lambda name, init: jax.lax.stop_gradient(
            self.param(name, nn.with_logical_partitioning(init, ("width",)), (self.width,), jnp.float32)
        )
        rates, phases = fixed("rates", normal(2 * math.pi)), fixed("phases", nn.initializers.uniform(2 * math.pi))
        return math.sqrt(2) * jnp.cos(t.astype(jnp.float32)[:, None] * rates[None] + phases[None])


def _normal_unit(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Gaussian weights as `normalised` leaves them."""
    return _unit_kernel(jax.random.normal(key, shape, dtype))


def _unit_kernel(kernel: Array) -> Array:
    """Every output's weights, those along the last axis, with a root mean square of 1."""
    return unit(kernel, tuple(range(kernel.ndim - 1)))


class MPDense(nn.Module):
    """A product without bias whose weights are of unit norm for every output (equations 47 and 66). Parameter `kernel [in, out]`."""

    features: int
    axes: tuple[str | None, str | None] = ("embed", "width")
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b i"], gain: Float[Array, ""] | float = 1.0) -> Float[Array, "*b o"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.with_logical_partitioning(_normal_unit, self.axes), shape, jnp.float32)
        kernel = _unit_kernel(kernel) * (gain / math.sqrt(shape[0]))
        y = x.reshape(-1, shape[0]).astype(self.dtype) @ gathered(kernel.astype(self.dtype), *self.axes)
        return y.reshape(*x.shape[:-1], self.features)


class MPConv(nn.Module):
    """A convolution of size `size` without bias whose weights are of unit norm for every output. Parameter `kernel [K, K, C, O]`."""

    features: int
    size: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], gain: Float[Array, ""] | float = 1.0) -> Float[Array, "B H W O"]:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.with_logical_partitioning(_normal_unit, AXES), shape, jnp.float32)
        kernel = _unit_kernel(kernel) * (gain / math.sqrt(math.prod(shape[:-1])))
        return convolve(x.astype(self.dtype), gathered(kernel.astype(self.dtype), *AXES), padding="centre")


def normalised(params: Mapping[str, Any]) -> dict[str, Any]:
    """Forced weight normalisation: every `kernel` over its root mean square, one an output; other leaves as they are. For `post_update`."""
    flat = tree.flatten(params)
    return tree.unflatten({path: _unit_kernel(x) if path.rpartition("/")[2] == "kernel" else x for path, x in flat.items()})


# --- the network ---------------------------------------------------------------------------------------------------------


class EDM2(nn.Module):
    """Noisy images, scaled to unit variance, and times ln(sigma) / 4 to EDM's F.

    Attributes:
      width: channels of the first level; `multiples` of it the levels' widths, the finest first.
      blocks: of a level, going down; going up there is one more.
      attention: of each level, 1 where every block has attention.
      head_width: channels of an attention's head.
      classes: that labels count; the class whose number is `classes`, or no labels, is none of them.
      label_dropout: share of labels that training leaves out.
      uncertainty: numbers that the time is spread over for `log_variance`.
      label_balance, residual_balance, attention_balance, skip_balance: shares of the second part of those sums.
      remat: of blocks, "none", "full" or "dots" (see layers.stack).
    """

    width: int = 192
    multiples: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention: tuple[int, ...] = (0, 0, 1, 1)
    head_width: int = 64
    in_channels: int = 4
    out_channels: int = 4
    classes: int = 0
    label_dropout: float = 0.0
    uncertainty: int = 128
    label_balance: float = 0.5
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    skip_balance: float = 0.5
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    backend: str = "xla"

    state_paths = ()  # regexes of parameters that only the task writes: none
    frozen_paths = (FIXED,)  # regexes of parameters that nobody writes: the Fourier features' rates and phases

    def setup(self):
        self.uncertainty_fourier = MPFourier(self.uncertainty)
        self.uncertainty_out = MPDense(1, ("embed", None))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        t: Float[Array, "B"],
        *,
        context: None = None,
        labels: Int[Array, "B"] | None = None,
        keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B H W O"]:
        """Float32. With `keys`, one an example, dropout is on and labels are dropped.

        Raises:
          UserError: sides that cannot be halved often enough; an input that the network has no place for.
        """
        self.check(x, labels)
        if self.is_initializing():
            self.log_variance(t)
        emb = self.embedded(t, labels, keys)
        # A channel of ones stands in for the biases that no layer has.
        x = jnp.concatenate([x.astype(self.dtype), jnp.ones((*x.shape[:3], 1), self.dtype)], axis=-1)
        h = MPConv(self.channels[0], dtype=self.dtype, name="conv_in")(x)
        h = self.up(*self.down(h, emb, keys), emb, keys)
        gain = self.param("out_gain", nn.with_logical_partitioning(nn.initializers.zeros, ()), (), jnp.float32)
        return MPConv(self.out_channels, dtype=self.dtype, name="conv_out")(h, gain).astype(jnp.float32)

    def log_variance(self, t: Float[Array, "B"]) -> Float[Array, "B"]:
        """u(sigma) of equation 21, what the loss is weighted with; the network's output has no part in it."""
        return self.uncertainty_out(self.uncertainty_fourier(t))[:, 0]

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(self.width * m for m in self.multiples)

    def check(self, x: Array, labels: Array | None) -> None:
        """Raises `UserError` unless fields and inputs go together."""
        check_sides(*x.shape[1:3], len(self.multiples))
        if len(self.attention) != len(self.multiples):
            raise UserError(f"U-Net attention is {self.attention}, expected {len(self.multiples)} numbers, one for each of the levels")
        if self.remat not in REMAT:
            raise UserError(f"U-Net remat is {self.remat!r}{suggest(self.remat, REMAT)}")
        if x.shape[-1] != self.in_channels:
            raise UserError(f"this U-Net takes x with {self.in_channels} channels, got {x.shape[-1]}")
        if labels is not None and not self.classes:
            raise UserError("this U-Net was made without classes, and is given labels; set model.classes")

    def embedded(self, t: Array, labels: Array | None, keys: Array | None) -> Float[Array, "B E"]:
        """Of time and class."""
        dense = lambda name: MPDense(max(self.channels), dtype=self.dtype, name=name)
        emb = dense("time")(MPFourier(self.channels[0], name="fourier")(t))
        if self.classes:
            labels = jnp.full(t.shape, self.classes, jnp.int32) if labels is None else labels
            if keys is not None and self.label_dropout:
                drop = jax.vmap(lambda key: jax.random.bernoulli(rng.named(key, "label"), self.label_dropout))(keys)
                labels = jnp.where(drop, self.classes, labels)
            # One number beyond the classes is a row of zeros.
            one_hot = jax.nn.one_hot(labels, self.classes) * math.sqrt(self.classes)
            emb = mp_sum(emb, dense("label")(one_hot), self.label_balance)
        return mp_silu(emb)

    def block(self, features: int, level: int, name: str, *, down: bool, attend: int | None = None, resample: str = "none") -> "MPBlock":
        heads = 0
        if self.attention[level] if attend is None else attend:
            if features % self.head_width:
                raise UserError(f"U-Net width {features} does not split into heads of {self.head_width}; set head_width to a divisor of it")
            heads = features // self.head_width
        module = MPBlock
        if self.remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.remat == "dots" else None
            module = nn.remat(MPBlock, policy=policy)
        balance = (self.residual_balance, self.attention_balance)
        return module(features, down, heads, resample, self.dropout, *balance, self.dtype, self.backend, name=name)

    def down(self, h: Array, emb: Array, keys: Array | None) -> tuple[Array, list[Array]]:
        """To the coarsest level, and all that the way up will want."""
        skips = [h]
        for level, features in enumerate(self.channels):
            if level:
                name = f"down{level - 1}_resample"
                h = self.block(h.shape[-1], level, name, down=True, attend=0, resample="down")(h, emb, _own(keys, name))
                skips.append(h)
            for i in range(self.blocks):
                name = f"down{level}_block{i}"
                h = self.block(features, level, name, down=True)(h, emb, _own(keys, name))
                skips.append(h)
        return h, skips

    def up(self, h: Array, skips: list[Array], emb: Array, keys: Array | None) -> Array:
        """Two blocks in the middle, the first with attention, and back to the finest level."""
        last = len(self.channels) - 1
        for name, attend in (("mid_block0", 1), ("mid_block1", 0)):
            h = self.block(h.shape[-1], last, name, down=False, attend=attend)(h, emb, _own(keys, name))
        for level, features in reversed(list(enumerate(self.channels))):
            for i in range(self.blocks + 1):
                name = f"up{level}_block{i}"
                h = mp_concat(h, skips.pop(), self.skip_balance)
                h = self.block(features, level, name, down=False)(h, emb, _own(keys, name))
            if level:
                name = f"up{level}_resample"
                h = self.block(h.shape[-1], level, name, down=False, attend=0, resample="up")(h, emb, _own(keys, name))
        return h


def _own(keys: Array | None, name: str) -> Array | None:
    """A block's own keys."""
    return None if keys is None else jax.vmap(lambda key: rng.named(key, name))(keys)


class MPBlock(nn.Module):
    """Figure 21: a residual branch of two convolutions with the embedding as a gain between them, then attention.

    Going down, the width changes first and the main path is normalised pixel by pixel; going up, it changes on the main path alone.
    Parameters `conv1`, `emb`, `emb_gain`, `conv2`, where the width changes `skip`, and with attention `q`, `k`, `v`, `out`.
    """

    features: int
    down: bool
    heads: int = 0
    resample: str = "none"
    dropout: float = 0.0
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    dtype: DTypeLike = jnp.float32
    backend: str = "xla"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], emb: Float[Array, "B E"], keys: Key[Array, "B"] | None = None
    ) -> Float[Array, "B h w O"]:
        conv = lambda name, size: MPConv(self.features, size, self.dtype, name=name)
        x = {"none": lambda x: x, "down": halve, "up": double}[self.resample](x)
        changes = x.shape[-1] != self.features
        if self.down:
            x = unit(conv("skip", 1)(x) if changes else x)
        gain = self.param("emb_gain", nn.with_logical_partitioning(nn.initializers.zeros, ()), (), jnp.float32)
        scale = MPDense(self.features, dtype=self.dtype, name="emb")(emb, gain) + 1
        y = mp_silu(conv("conv1", 3)(mp_silu(x)) * scale[:, None, None])
        y = conv("conv2", 3)(dropout(y, self.dropout, keys))
        if not self.down and changes:
            x = conv("skip", 1)(x)
        x = mp_sum(x, y, self.residual_balance)
        if self.heads:
            x = mp_sum(x, self.attend(x), self.attention_balance)
        return constrain(jnp.clip(x, -CLIP, CLIP), "batch", None, None, None)

    def attend(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Attention with queries, keys and values of unit magnitude (appendix B.3)."""
        b, h, w, c = x.shape
        tokens = x.reshape(b, h * w, c)
        product = lambda name: MPDense(c, ("embed", "heads"), self.dtype, name=name)(tokens)
        q, k, v = (unit(product(name).reshape(b, h * w, self.heads, c // self.heads)) for name in "qkv")
        y = jax.nn.dot_product_attention(q, k, v, implementation=self.backend).reshape(b, h * w, c)
        return MPDense(c, ("heads", "embed"), self.dtype, name="out")(y).reshape(x.shape)


def build(model: str | Group, dtype: DTypeLike = jnp.float32, where: str = "config.model") -> EDM2:
    """The module of a published network's name, or of fields such as the values of `VARIANTS`.

    Raises:
      UserError: an unknown name or field.
    """
    if isinstance(model, str):
        if model not in VARIANTS:
            raise UserError(f"{where}: there is no EDM2 {model!r}{suggest(model, VARIANTS)}")
        model = VARIANTS[model]
    return EDM2(**{"dtype": dtype, **kwargs_for(EDM2, model, where)})


# For ImageNet in latents of 64 x 64 x 4; dropout from M on, as trained (table 6).
VARIANTS = {
    f"edm2-{name}": {"width": width, "classes": 1000, "dropout": 0.0 if width <= 192 else 0.1}
    for name, width in {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}.items()
}
