"""Perceiver Resampler (Alayrac et al. 2022, section 2.1): any number of visual features to a fixed number of visual tokens.

B pictures or videos, F frames, S features of a frame, M their width, R latents, D width.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from mmjax.core.sharding import constrain, gathered
from mmjax.layers import Dense, LayerNorm, Mlp, resize_positions, stack
from mmjax.layers.dense import normal
from mmjax.models.gated_xattn import CrossAttention

# What differs between the three published forms. Flamingo's has no norm after the last block: it stands in the cross-attention.
FORMS = {
    "flamingo": {"act": "squared_relu", "joint_norm": True, "frames": 8},
    "open_flamingo": {"act": "gelu", "final_norm": True},
    "idefics": {"act": "relu", "final_norm": True, "qk_norm": "layer"},
}


class FrameEmbedding(nn.Module):
    """Adds to the features of a frame its learnt time, `embedding [T, D]`; other numbers of frames get times between, ends on ends."""

    frames: int

    @nn.compact
    def __call__(self, x: Float[Array, "B F S D"]) -> Float[Array, "B F S D"]:
        init = nn.with_logical_partitioning(normal(0.02), ("position", "embed"))
        table = self.param("embedding", init, (self.frames, x.shape[-1]), jnp.float32)
        if x.shape[1] != self.frames:  # Alayrac et al., appendix B.1.3: trained on 8, tested on 30
            table = resize_positions(table, (self.frames, 1), (x.shape[1], 1), "linear")
        return x + gathered(table.astype(x.dtype), "position", "embed")[None, :, None]


class PerceiverBlock(nn.Module):
    """x + attention of x to [features, x], then x + mlp(x). Parameters `norm_latents`, `norm_features`, `attn`, `norm_mlp`, `mlp`."""

    heads: int
    head_width: int
    mlp: int
    act: str
    joint_norm: bool
    qk_norm: str
    eps: float
    dtype: DTypeLike
    backend: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "B R D"], keys: Key[Array, "B"] | None = None, *, features: Float[Array, "B N D"]
    ) -> Float[Array, "B R D"]:
        norm = lambda name: LayerNorm(self.eps, self.dtype, name=name)
        latents = norm("norm_latents")(x)
        if self.joint_norm:
            memory = norm("norm_features")(jnp.concatenate([features, x], axis=1))
        else:
            memory = jnp.concatenate([norm("norm_features")(features), latents], axis=1)
        attn = CrossAttention(x.shape[-1], self.heads, self.head_width, self.qk_norm, self.eps, self.dtype, self.backend, name="attn")
        x = x + attn(latents, attn.keys_values(memory))
        x = x + Mlp(self.mlp, self.act, self.dtype, use_bias=False, name="mlp")(norm("norm_mlp")(x))
        return constrain(x, "batch", None, None)


class Perceiver(nn.Module):
    """Parameters `latents`, `time`, `blocks`, `norm`, and `proj` where features are of another width than D.

    Attributes:
      width, depth, heads, head_width: D, blocks, and of their attention.
      mlp: hidden width.
      latents: R.
      frames: T, the number of learnt times; 0 for none, and then the order of frames is lost.
      joint_norm: keys and values are of one norm of [features, latents], and queries of another of the latents, as in Flamingo; without
        it features have one and latents the other, whether they ask or are looked at.
      qk_norm: a norm of queries and keys over each head's width: "none", "layer" or "rms".
      final_norm: after the last block.
      scan, remat, backend: how it is computed, not what (see layers.stack, layers.attention).
    """

    width: int
    depth: int
    heads: int
    head_width: int
    mlp: int
    act: str = "squared_relu"
    latents: int = 64
    frames: int = 0
    joint_norm: bool = False
    qk_norm: str = "none"
    final_norm: bool = False
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"
    backend: str = "xla"

    def tokens(self, features: int) -> int:
        """How many visual tokens come of so many features of all frames."""
        return self.latents

    @nn.compact
    def __call__(self, features: Float[Array, "B F S M"]) -> Float[Array, "B R D"]:
        x = embedded(features, self.width, self.frames, self.dtype)
        init = nn.with_logical_partitioning(normal(1.0), ("token", "embed"))
        latents = self.param("latents", init, (self.latents, self.width), jnp.float32)
        latents = gathered(latents.astype(self.dtype), "token", "embed")
        how = (self.act, self.joint_norm, self.qk_norm, self.eps, self.dtype, self.backend)
        block = lambda name: PerceiverBlock(self.heads, self.head_width, self.mlp, *how, name=name)
        y = jnp.broadcast_to(latents, (len(x), *latents.shape))
        y = stack(block, self.depth, y, scan=self.scan, remat=self.remat, features=x)
        return LayerNorm(self.eps, self.dtype, name="norm")(y) if self.final_norm else y


class MlpResampler(nn.Module):
    """The ablation without latents (Alayrac et al. 2022, table 3, which gives no details): x + mlp(norm(x)) on each feature by itself.

    All F * S features stay visual tokens. Parameters `proj`, `time`, `blocks` of `norm` and `mlp`, and `norm`.
    """

    width: int
    depth: int
    mlp: int
    act: str = "squared_relu"
    frames: int = 0
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"

    def tokens(self, features: int) -> int:
        """How many visual tokens come of so many features of all frames."""
        return features

    @nn.compact
    def __call__(self, features: Float[Array, "B F S M"]) -> Float[Array, "B N D"]:
        x = embedded(features, self.width, self.frames, self.dtype)
        block = lambda name: MlpBlock(self.mlp, self.act, self.eps, self.dtype, name=name)
        x = stack(block, self.depth, x, scan=self.scan, remat=self.remat)
        return LayerNorm(self.eps, self.dtype, name="norm")(x)


class MlpBlock(nn.Module):
    """x + mlp(norm(x))."""

    mlp: int
    act: str
    eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], keys: Key[Array, "B"] | None = None) -> Float[Array, "B N D"]:
        hidden = LayerNorm(self.eps, self.dtype, name="norm")(x)
        return x + Mlp(self.mlp, self.act, self.dtype, use_bias=False, name="mlp")(hidden)


def embedded(features: Float[Array, "B F S M"], width: int, frames: int, dtype: DTypeLike) -> Float[Array, "B N D"]:
    """Features of all frames in a row, brought to `width` where they have another, with their times; call it inside a compact method."""
    x = features.astype(dtype)
    if x.shape[-1] != width:
        x = Dense(width, ("embed", "joint"), False, dtype, name="proj")(x)
    if frames:
        x = FrameEmbedding(frames, name="time")(x)
    return x.reshape(len(x), -1, width)


RESAMPLERS = {"perceiver": Perceiver, "mlp": MlpResampler}
