"""The autoregressive prior of unCLIP: a causal transformer from what a caption says to the codes of an image embedding, one by one.

Ramesh et al. 2022, arXiv 2204.06125, section 2.2. It reads [encoded text, text embedding, dot product, codes]; the dot product of text and
image embedding is a token of its own, so that a picture can be asked for that its caption describes well.

B batch, L words, N codes, E width of an embedding, M width of words' features, D width, H heads, K head width, S = L + N + 1 places.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from mmjax.core import rng
from mmjax.core.config import Group
from mmjax.core.sharding import constrain, gathered
from mmjax.layers import Dense, Embed, LayerNorm, Mlp, dropout, stack
from mmjax.layers.dense import Initializer, normal
from mmjax.models.prior import built, padded, words

# The paper's table 3: latent decoder 384/1664/24/26 behind a text encoder 256/2048/24/32 (ENCODERS), each a "1B" by itself. That encoder
# is a tower of its own here, and its features are words of the decoder; its vocabulary is not published, and here is CLIP's. The decoder
# has as many places as it needs, 577, where the paper says 384.
VARIANTS: dict[str, dict] = {"unclip": {"codes": 319, "length": 256, "width": 1664, "depth": 24, "heads": 26}}
ENCODERS: dict[str, dict] = {"unclip": {"vocab": 49408, "length": 256, "width": 2048, "depth": 24, "heads": 32, "mlp": 8192}}


class ARPrior(nn.Module):
    """Attributes:
    codes: N, dimensions that are kept.
    buckets: values of a code.
    dots: values of the dot product; one more says that there is none. 0 for a prior that is never told.
    length, vocab, dropout, scan, remat, backend: as of models.prior.Prior.
    """

    codes: int
    width: int
    depth: int
    heads: int
    buckets: int = 1024
    dots: int = 64
    length: int = 0
    vocab: int = 0
    mlp_ratio: float = 4.0
    act: str = "gelu"
    dropout: float = 0.0
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"
    backend: str = "xla"

    @property
    def prefix(self) -> int:
        """Places before the first code."""
        return self.length + 2

    @nn.compact
    def __call__(
        self,
        codes: Int[Array, "B n"],
        text: Float[Array, "B T"] | None = None,
        dot: Int[Array, "B"] | None = None,
        *,
        tokens: Int[Array, "B L"] | None = None,
        context: Float[Array, "B L M"] | None = None,
        mask: Bool[Array, "B L"] | None = None,
        keys: Key[Array, "B"] | None = None,
        at: Int[Array, ""] | None = None,
    ) -> Float[Array, "B k V"]:
        """Float32 logits of the code after each of the `codes`, and with the prefix, `text` and `dot`, of the first one too.

        Args:
          codes: the leading n of N.
          text: the text embedding. Without it there is no prefix: the codes go on behind what the cache holds.
          dot: bucket of the dot product, or `dots` for none.
          tokens, context, mask, keys: as of models.prior.Prior.
          at: place of the first of what is given. With it keys and values of attention are read from and written to the collection
            "state", which begins at place 0.

        Raises:
          UserError: words that are missing, of another number, or of the other kind.
        """
        places = self.length + self.codes + 1
        parts = [Embed(self.buckets, self.width, self.dtype, axis="classes", name="code")(codes)]
        if text is not None:
            said = Dense(self.width, ("patch", "embed"), dtype=self.dtype, name="text")(text)
            own = Embed(self.dots + 1, self.width, self.dtype, axis="classes", name="dot")(dot)
            parts = [*words(self, tokens, context), said[:, None], own[:, None], *parts]
        x = jnp.concatenate(parts, axis=1)
        first = jnp.int32(0) if at is None else at
        x = Positions(places, name="pos")(x, first)
        x = dropout(constrain(x, "batch", None, None), self.dropout, keys)
        seen = jnp.ones((1, places), bool) if mask is None else padded(mask, places)
        x = stack(self.block, self.depth, x, keys=keys, scan=self.scan, remat=self.remat, seen=seen, at=at)
        x = LayerNorm(self.eps, self.dtype, name="norm")(x if text is None else x[:, self.prefix - 1 :])
        return Dense(self.buckets, ("embed", "classes"), dtype=self.dtype, kernel_init=normal(0.02), name="head")(x).astype(jnp.float32)

    def block(self, name: str) -> "CodeBlock":
        """Initialised as the diffusion prior's."""
        how = self.act, self.depth, self.dropout, self.eps, self.dtype
        return CodeBlock(self.heads, round(self.width * self.mlp_ratio), *how, self.backend, name=name)


class Positions(nn.Module):
    """Adds the rows of a learnt `embedding [S, D]` from place `at` on."""

    places: int

    @nn.compact
    def __call__(self, x: Float[Array, "B n D"], at: Int[Array, ""]) -> Float[Array, "B n D"]:
        init = nn.with_logical_partitioning(normal(0.01), ("position", "embed"))
        table = self.param("embedding", init, (self.places, x.shape[2]), jnp.float32)
        table = gathered(table.astype(x.dtype), "position", "embed")
        return x + jax.lax.dynamic_slice_in_dim(table, at, x.shape[1])[None]


class CodeBlock(nn.Module):
    """layers.Block with a cache; the same parameters."""

    heads: int
    mlp: int
    act: str
    depth: int
    dropout: float = 0.0
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32
    backend: str = "xla"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B n D"],
        keys: Key[Array, "B"] | None = None,
        seen: Bool[Array, "#B S"] | None = None,
        at: Int[Array, ""] | None = None,
    ) -> Float[Array, "B n D"]:
        std = x.shape[-1] ** -0.5
        out = normal(std * (2 * self.depth) ** -0.5)
        drop = lambda y, use: dropout(y, self.dropout, None if keys is None else rng.fold(keys, use))
        attn = CachedAttention(self.heads, self.dtype, normal(std), out, self.backend, name="attn")
        x = x + drop(attn(LayerNorm(self.eps, self.dtype, name="norm1")(x), seen, at), 0)
        mlp = Mlp(self.mlp, self.act, self.dtype, normal((2 * x.shape[-1]) ** -0.5), out, name="mlp")
        x = x + drop(mlp(LayerNorm(self.eps, self.dtype, name="norm2")(x)), 1)
        return constrain(x, "batch", None, None)


class CachedAttention(nn.Module):
    """Causal attention over all S places; with `at` those before it are in the variables `keys` and `values` [B, S, H, K] of "state"."""

    heads: int
    dtype: DTypeLike
    kernel_init: Initializer
    out_init: Initializer
    backend: str = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "B n D"], seen: Bool[Array, "#B S"], at: Int[Array, ""] | None) -> Float[Array, "B n D"]:
        (b, n, width), places = x.shape, seen.shape[1]
        product = lambda name: Dense(width, ("embed", "heads"), dtype=self.dtype, kernel_init=self.kernel_init, name=name)(x)
        q, k, v = (constrain(product(c).reshape(b, n, self.heads, -1), "batch", None, "heads", None) for c in "qkv")
        if at is None:
            mask = jnp.tril(jnp.ones((n, n), bool))[None] & seen[:, None, :n]
        else:
            empty = lambda: jnp.zeros((b, places, *k.shape[2:]), k.dtype)
            held = [self.variable("state", name, empty) for name in ("keys", "values")]
            for cache, new in zip(held, (k, v), strict=True):
                cache.value = jax.lax.dynamic_update_slice_in_dim(cache.value, new, at, axis=1)
            k, v = (cache.value for cache in held)
            mask = (jnp.arange(places)[None] <= at + jnp.arange(n)[:, None])[None] & seen[:, None]
        y = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation=self.backend).reshape(b, n, width)
        return Dense(width, ("heads", "embed"), dtype=self.dtype, kernel_init=self.out_init, name="out")(y)


def build(model: str | Group, dtype: DTypeLike = jnp.float32, where: str = "config.model.prior") -> ARPrior:
    """The module of a key of `VARIANTS`, or of fields.

    Raises:
      UserError: an unknown name or field, one that is missing, or a width that the heads do not divide.
    """
    return built(ARPrior, VARIANTS, ("codes", "width", "depth", "heads"), model, dtype, where)
