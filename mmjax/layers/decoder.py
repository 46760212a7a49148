"""The block of decoders that write text, with and without a cache.

B batch, L tokens, S slots of a cache (without one S = L), D width, H heads, G heads of keys and values, K head width.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from mmjax.core import rng
from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import constrain
from mmjax.layers.attention import attend, attend_cached
from mmjax.layers.dense import Dense, Initializer
from mmjax.layers.dropout import dropout
from mmjax.layers.mlp import Mlp
from mmjax.layers.norm import LayerNorm, RMSNorm
from mmjax.layers.rope import rotate

Cache = dict[str, Array]  # of a layer: k and v, each [B, G, S, K]
Between = Callable[[Array], Array]

# Where a block's norms stand: before each branch, after each sum (OPT-350M), or both before one sum of both branches (GPT-NeoX).
RESIDUALS = ("pre", "post", "parallel")
NORMS = ("layer", "rms", "rms_plus_one")


def make_norm(kind: str, bias: bool, eps: float, dtype: DTypeLike, **how: Any) -> LayerNorm | RMSNorm:
    """A module of `NORMS`; only "layer" can have a bias.

    Raises:
      UserError: an unknown kind.
    """
    if kind not in NORMS:
        raise UserError(f"model.norm is {kind!r}{suggest(kind, NORMS)}")
    if kind == "layer":
        return LayerNorm(eps, dtype, use_bias=bias, **how)
    return RMSNorm(eps, dtype, plus_one=kind == "rms_plus_one", **how)


def slots(cache: list[Cache]) -> int:
    """S of a model's cache."""
    return cache[0]["k"].shape[2]


def store(cache: Float[Array, "B G S K"], x: Float[Array, "B L G K"], start: Int[Array, "B"]) -> Float[Array, "B G S K"]:
    """Writes `x` of row b into its slots from `start[b]` on; all of them must lie in the cache."""
    put = lambda old, new, at: jax.lax.dynamic_update_slice(old, new, (0, at, 0))
    return jax.vmap(put)(cache, x.swapaxes(1, 2).astype(cache.dtype), start)


class DecoderAttention(nn.Module):
    """Self-attention of a decoder: fewer heads of keys than of queries, rotated, normed, clipped, cached, each where it is asked for.

    Parameters `q`, `k`, `v`, `out`, and with `qk_norm` `q_norm` and `k_norm`. Softmax in float32.

    Attributes:
      kv_heads: G, a divisor of H (Ainslie et al. 2023); None for H.
      head_width: K; None for D / H.
      qk_norm: queries and keys are normed, all heads together (Dehghani et al. 2023; MPT's form), by a norm of kind `norm`.
      clip: what queries, keys and values are held within.
      scale: what scores are multiplied by; None for 1 / sqrt(K).
      causal: without a cache, a token sees itself and what comes before.
    """

    heads: int
    kv_heads: int | None = None
    head_width: int | None = None
    qkv_bias: bool = True
    out_bias: bool = True
    qk_norm: bool = False
    clip: float | None = None
    scale: float | None = None
    causal: bool = True
    norm: str = "layer"
    norm_bias: bool = True
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32
    backend: str = "xla"
    kernel_init: Initializer = nn.initializers.lecun_normal()
    out_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        *,
        mask: Bool[Array, "#B #H #L S"] | None = None,
        bias: Float[Array, "#B #H #L S"] | None = None,
        cos: Float[Array, "#B L R"] | None = None,
        sin: Float[Array, "#B L R"] | None = None,
        cache: Cache | None = None,
        start: Int[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B L D"], Cache | None]:
        """What the tokens become, and the cache with their keys and values at slots `start` and on.

        Args:
          mask, bias: as `Attention`'s; S is the cache's length where there is one.
          cos, sin: of `rope.angles`, by which queries and keys are turned.
        """
        b, l, d = x.shape
        groups = self.kv_heads or self.heads
        if self.head_width is None and d % self.heads:
            raise UserError(f"model width {d} does not split into {self.heads} heads; set heads to a divisor of the width")
        if self.heads % groups:
            raise UserError(f"{self.heads} heads do not share {groups} heads of keys; set kv_heads to a divisor of heads")
        size = self.head_width or d // self.heads

        def heads(name: str, count: int) -> Float[Array, "B L N K"]:
            y = Dense(count * size, ("embed", "heads"), self.qkv_bias, self.dtype, self.kernel_init, name=name)(x)
            y = y if self.clip is None else jnp.clip(y, -self.clip, self.clip)
            if self.qk_norm and name != "v":
                y = make_norm(self.norm, self.norm_bias, self.eps, self.dtype, name=f"{name}_norm")(y)
            y = constrain(y.reshape(b, l, count, size), "batch", None, "heads", None)
            return y if cos is None or name == "v" else rotate(y, cos, sin)

        q, k, v = heads("q", self.heads), heads("k", groups), heads("v", groups)
        if cache is None:
            y = attend(q, k, v, mask=mask, bias=bias, scale=self.scale, causal=self.causal, backend=self.backend)
        else:
            cache = {"k": store(cache["k"], k, start), "v": store(cache["v"], v, start)}
            k, v = cache["k"].astype(self.dtype), cache["v"].astype(self.dtype)
            y = attend_cached(q, k, v, mask=mask, bias=bias, scale=self.scale)
        y = y.reshape(b, l, self.heads * size)
        return Dense(d, ("heads", "embed"), self.out_bias, self.dtype, self.out_init, name="out")(y), cache


class DecoderBlock(nn.Module):
    """Attention and a feed-forward network, each beside a sum, with norms where `residual` says.

    A function `between`, [B, L, D] to [B, L, D], stands between the two where one is given: cross-attention, as in the decoder of Vaswani
    et al. 2017. Branches that are parallel have no place for it.

    Parameters `norm1`, `attn`, `norm2`, `mlp`. Attributes not told here are `DecoderAttention`'s and `Mlp`'s.

    Attributes:
      mlp: width of the feed-forward network.
      residual: one of RESIDUALS.
    """

    heads: int
    mlp: int
    act: str
    gated: bool = False
    kv_heads: int | None = None
    head_width: int | None = None
    residual: str = "pre"
    norm: str = "layer"
    norm_bias: bool = True
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False
    clip: float | None = None
    scale: float | None = None
    causal: bool = True
    dropout: float = 0.0
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32
    backend: str = "xla"
    kernel_init: Initializer = nn.initializers.lecun_normal()
    out_init: Initializer = nn.initializers.lecun_normal()

    def __call__(
        self, x: Float[Array, "B L D"], keys: Key[Array, "B"] | None = None, between: Between | None = None, **where: Array | None
    ) -> Float[Array, "B L D"]:
        """`keys` (one an example) turn dropout on; `where` is `DecoderAttention`'s `mask`, `bias`, `cos` and `sin`."""
        return self.run(x, keys, None, None, between, **where)[0]

    def cached(
        self, x: Float[Array, "B L D"], cache: Cache, start: Int[Array, "B"], between: Between | None = None, **where: Array | None
    ) -> tuple[Float[Array, "B L D"], Cache]:
        """The same with a cache of the layer's keys and values, and that cache with those of `x` in it."""
        return self.run(x, None, cache, start, between, **where)

    @nn.compact
    def run(
        self,
        x: Float[Array, "B L D"],
        keys: Key[Array, "B"] | None,
        cache: Cache | None,
        start: Int[Array, "B"] | None,
        between: Between | None,
        **where: Array | None,
    ) -> tuple[Float[Array, "B L D"], Cache | None]:
        if self.residual not in RESIDUALS:
            raise UserError(f"model.residual is {self.residual!r}{suggest(self.residual, RESIDUALS)}")
        drop = lambda y, use: dropout(y, self.dropout, None if keys is None else rng.fold(keys, use))
        norm = lambda name: make_norm(self.norm, self.norm_bias, self.eps, self.dtype, name=name)
        shared = ("kv_heads", "head_width", "qkv_bias", "out_bias", "qk_norm", "clip", "scale", "causal", "norm", "norm_bias", "eps")
        how = {name: getattr(self, name) for name in (*shared, "dtype", "backend", "kernel_init", "out_init")}
        attn = DecoderAttention(self.heads, **how, name="attn")
        inits = self.kernel_init, self.out_init
        mlp = Mlp(self.mlp, self.act, self.dtype, *inits, self.gated, self.mlp_bias, name="mlp")
        post, between = self.residual == "post", between or (lambda y: y)
        y, cache = attn(x if post else norm("norm1")(x), cache=cache, start=start, **where)
        if self.residual == "parallel":
            y = x + drop(y, 0) + drop(mlp(norm("norm2")(x)), 1)
        elif post:
            y = between(norm("norm1")(x + drop(y, 0)))
            y = norm("norm2")(y + drop(mlp(y), 1))
        else:
            y = between(x + drop(y, 0))
            y = y + drop(mlp(norm("norm2")(y)), 1)
        return constrain(y, "batch", None, None), cache
