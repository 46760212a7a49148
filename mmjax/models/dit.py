"""DiT and SiT: a vision transformer for diffusion whose blocks are modulated by time and class.

Peebles and Xie 2023, arXiv 2212.09748, with adaLN-Zero; Ma et al. 2024, arXiv 2401.08740, which trains the same network for flows.
B batch, H height, W width, C channels, O channels out, L patches, D width, S words of a context, M their width.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from mmjax.core import rng
from mmjax.core.config import Group, kwargs_for
from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import constrain
from mmjax.layers import Attention, Dense, Embed, EmbeddingMlp, LayerNorm, Mlp, patchify, sincos_2d, sinusoidal, stack
from mmjax.layers.dense import normal

FREQUENCIES = 256  # numbers that the time is spread over before the first product
IMAGENET = {"classes": 1000, "label_dropout": 0.1, "learn_sigma": True}

_SIZES = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}
# Peebles and Xie, table 1, for latents of 4 channels. SiT is the same network, trained and asked with other times: DiT's are 0..999,
# SiT's 0 (noise) to 1 (data). Both published checkpoints of SiT put out 8 channels, the last 4 of which nobody uses.
VARIANTS = {
    f"{name}-{size}/{patch}": {"patch": patch, **fields, **IMAGENET}
    for name in ("DiT", "SiT")
    for size, fields in _SIZES.items()
    for patch in (2, 4, 8)
}

_xavier = nn.initializers.xavier_uniform()
# q, k and v start as one matrix [D, 3 D] would: uniform within sqrt(6 / (4 D)).
_xavier_joined = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
_zeros = nn.initializers.zeros


class DiT(nn.Module):
    """Noisy images and their times to what the prediction asks for.

    Attributes:
      patch: pixels on a side.
      classes: that labels count; 0 for a network without labels.
      label_dropout: share of labels that training replaces by the null class, whose number is `classes`. At 0 there is no null class.
      learn_sigma: twice as many channels out as in, the second half of them for the variance.
      context: whether every block also looks at words between its attention and its mlp (Chen et al. 2023, PixArt-alpha, section 2.2).
      freq_shift: what the number of frequencies is lessened by where their exponents are divided by it: 0 as published, 1 in diffusers.
      time_scale: what times are multiplied by: 1 for the published networks, 1000 where a flow's times are to be as far apart as DiT's.
      eps: of the second norm of a block; the others have 1e-6 (diffusers' has 1e-5).
      scan, remat, backend: how it is computed, not what (see layers.stack, layers.attention).
    """

    patch: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    classes: int = 0
    label_dropout: float = 0.0
    learn_sigma: bool = False
    context: bool = False
    freq_shift: int = 0
    time_scale: float = 1.0
    eps: float = 1e-6
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"
    backend: str = "xla"

    state_paths = ()  # regexes of parameters that only the task writes: none

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        t: Float[Array, "B"],
        *,
        context: Float[Array, "B S M"] | None = None,
        labels: Int[Array, "B"] | None = None,
        keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B H W O"]:
        """Float32. Without labels a network of classes takes the null class; with `keys`, one an example, labels are dropped.

        Raises:
          UserError: sides that are no multiples of the patch; labels or a context that the network has no place for, or lacks.
        """
        _, h, w, c = x.shape
        if h % self.patch or w % self.patch:
            raise UserError(f"DiT takes images whose sides are multiples of its patch of {self.patch}, got {h} x {w}")
        if (context is None) == self.context:
            raise UserError(
                f"DiT was made {'with' if self.context else 'without'} context, and is given {'none' if self.context else 'one'}"
            )
        out = c * (2 if self.learn_sigma else 1)
        rows, columns = h // self.patch, w // self.patch
        y = Dense(self.width, ("patch", "embed"), dtype=self.dtype, kernel_init=_xavier, name="patch")(patchify(x, self.patch))
        y = y + jnp.asarray(sincos_2d(rows, columns, self.width, last=False), self.dtype)[None]
        condition = nn.silu(self.embedded(t, labels, keys))
        y = stack(
            self.block,
            self.depth,
            constrain(y, "batch", None, None),
            scan=self.scan,
            remat=self.remat,
            condition=condition,
            context=context,
        )
        shift, scale = jnp.split(modulation(2, self.width, self.dtype)(condition), 2, axis=-1)
        y = modulate(LayerNorm(1e-6, self.dtype, affine=False)(y), shift, scale)
        y = Dense(self.patch**2 * out, ("embed", "patch"), dtype=self.dtype, kernel_init=_zeros, name="head")(y)
        return unpatchify(y, rows, columns, self.patch).astype(jnp.float32)

    def embedded(self, t: Float[Array, "B"], labels: Int[Array, "B"] | None, keys: Key[Array, "B"] | None) -> Float[Array, "B D"]:
        """The sum of the embeddings of time and class."""
        y = sinusoidal(t * self.time_scale, FREQUENCIES, freq_shift=self.freq_shift)
        y = EmbeddingMlp(self.width, self.dtype, normal(0.02), name="time")(y)
        if not self.classes:
            if labels is not None:
                raise UserError("DiT was made without classes, and is given labels; set model.classes")
            return y
        null = self.label_dropout > 0
        if labels is None:
            if not null:
                raise UserError("DiT of classes needs labels: it has no null class; train it with model.label_dropout above 0")
            labels = jnp.full(t.shape, self.classes, jnp.int32)
        if keys is not None and null:
            drop = jax.vmap(lambda key: jax.random.bernoulli(rng.named(key, "label"), self.label_dropout))(keys)
            labels = jnp.where(drop, self.classes, labels)
        return y + Embed(self.classes + null, self.width, self.dtype, normal(0.02), "classes", name="label")(labels)

    def block(self, name: str) -> "DiTBlock":
        sizes = self.heads, round(self.width * self.mlp_ratio)
        return DiTBlock(*sizes, self.context, self.eps, self.dtype, self.backend, name=name)


class DiTBlock(nn.Module):
    """x + gate * attention(modulated norm(x)), then x + attention to the context, then x + gate * mlp(modulated norm(x)).

    Parameters `modulation` (at 0 to begin with, so that the block is the identity), `attn`, `cross` if there is a context, and `mlp`.
    """

    heads: int
    mlp: int
    context: bool = False
    eps: float = 1e-6
    dtype: DTypeLike = jnp.float32
    backend: str = "xla"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        keys: Key[Array, "B"] | None = None,
        condition: Float[Array, "B D"] | None = None,
        context: Float[Array, "B S M"] | None = None,
    ) -> Float[Array, "B L D"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation(6, x.shape[-1], self.dtype)(condition), 6, axis=-1)
        norm = lambda eps: LayerNorm(eps, self.dtype, affine=False)
        attn = lambda name, init: Attention(self.heads, False, self.dtype, _xavier_joined, init, self.backend, name=name)
        x = x + gate1[:, None] * attn("attn", _xavier)(modulate(norm(1e-6)(x), shift1, scale1))
        if self.context:
            x = x + attn("cross", _zeros)(x, context.astype(self.dtype))
        mlp = Mlp(self.mlp, "gelu_tanh", self.dtype, _xavier, _xavier, name="mlp")
        x = x + gate2[:, None] * mlp(modulate(norm(self.eps)(x), shift2, scale2))
        return constrain(x, "batch", None, None)


def modulation(parts: int, width: int, dtype: DTypeLike) -> Dense:
    """From what the network is conditioned on to `parts` vectors side by side; all 0 at first."""
    return Dense(parts * width, ("embed", "mlp"), dtype=dtype, kernel_init=_zeros, name="modulation")


def modulate(x: Float[Array, "B L D"], shift: Float[Array, "B D"], scale: Float[Array, "B D"]) -> Float[Array, "B L D"]:
    """x * (1 + scale) + shift, the same for all tokens of an example."""
    return x * (1 + scale[:, None]) + shift[:, None]


def unpatchify(x: Float[Array, "B L P"], rows: int, columns: int, patch: int) -> Float[Array, "B H W O"]:
    """The inverse of layers.patchify: P = patch * patch * O."""
    b = x.shape[0]
    x = x.reshape(b, rows, columns, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, rows * patch, columns * patch, -1)


def build(model: str | Group, dtype: DTypeLike = jnp.float32, where: str = "config.model") -> DiT:
    """The module of a key of `VARIANTS`, or of fields.

    Raises:
      UserError: an unknown name or field, or a width that no heads or positions fit.
    """
    if isinstance(model, str):
        if model not in VARIANTS:
            raise UserError(f"{where}: there is no DiT {model!r}{suggest(model, VARIANTS)}")
        model = VARIANTS[model]
    fields = kwargs_for(DiT, model, where)
    for needed in ("patch", "width", "depth", "heads"):
        if needed not in fields:
            raise UserError(f"{where} lacks '{needed}', which a DiT needs")
    if fields["width"] % fields["heads"] or fields["width"] % 4:
        raise UserError(f"{where}: width {fields['width']} is to be a multiple of 4 and of its {fields['heads']} heads")
    return DiT(**{"dtype": dtype, **fields})
