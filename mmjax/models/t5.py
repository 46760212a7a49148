"""The encoder of T5 (Raffel et al. 2020) and of T5 v1.1.

B batch, L tokens, D width, H heads.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from mmjax.core import rng
from mmjax.core.sharding import constrain, gathered
from mmjax.layers import Attention, Embed, Mlp, RMSNorm, dropout, stack
from mmjax.layers.dense import normal
from mmjax.models.text import mean_of


def _t5(width: int, depth: int, heads: int, mlp: int, head_width: int = 64) -> dict:
    return {
        "vocab": 32128,
        "length": 512,
        "width": width,
        "depth": depth,
        "heads": heads,
        "head_width": head_width,
        "mlp": mlp,
        "act": "relu",
        "gated": False,
    }


def _v1_1(width: int, depth: int, heads: int, mlp: int) -> dict:
    return {**_t5(width, depth, heads, mlp), "act": "gelu_tanh", "gated": True}


VARIANTS = {
    "small": _t5(512, 6, 8, 2048),
    "base": _t5(768, 12, 12, 3072),
    "large": _t5(1024, 24, 16, 4096),
    "3b": _t5(1024, 24, 32, 16384, 128),
    "11b": _t5(1024, 24, 128, 65536, 128),
    "v1.1-small": _v1_1(512, 8, 6, 1024),
    "v1.1-base": _v1_1(768, 12, 12, 2048),
    "v1.1-large": _v1_1(1024, 24, 16, 2816),
    "v1.1-xl": _v1_1(2048, 24, 32, 5120),
    "v1.1-xxl": _v1_1(4096, 24, 64, 10240),
}


def relative_buckets(length: int, buckets: int, farthest: int) -> Int[np.ndarray, "L L"]:
    """Bucket of (asking token, token looked at), section 2.1: half of the buckets for what comes after, half for the rest; in each
    half as many distances as half of it has buckets get one of their own, the others share logarithmically, from `farthest` on one."""
    offset = np.arange(length)[None] - np.arange(length)[:, None]
    distance, half = np.abs(offset), buckets // 2
    exact = half // 2
    # Distances at which the next shared bucket begins; a power of two is one exactly, which the rounding of logarithms must not miss.
    steps = np.log(np.maximum(distance, 1) / exact) / math.log(farthest / exact) * (half - exact)
    shared = np.minimum(exact + np.floor(steps + 1e-9), half - 1)
    return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, shared).astype(np.int64)


class RelativeBias(nn.Module):
    """What is added to each head's scores for a pair of tokens, by how far apart they stand. Parameter `embedding [buckets, H]`."""

    heads: int
    buckets: int
    farthest: int
    table_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, length: int) -> Float[Array, "1 H L L"]:
        init = nn.with_logical_partitioning(self.table_init, ("position", "heads"))
        table = self.param("embedding", init, (self.buckets, self.heads), jnp.float32)
        bias = gathered(table, "position", "heads")[relative_buckets(length, self.buckets, self.farthest)]
        return bias.transpose(2, 0, 1)[None]


class T5Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), without a bias anywhere and with scores that are not scaled.

    Parameters `norm1`, `attn`, `norm2`, `mlp`. `keys` (one an example) turn dropout on; `mask` and `bias` are `Attention`'s.
    """

    heads: int
    head_width: int
    mlp: int
    act: str
    gated: bool
    dropout: float
    eps: float
    dtype: DTypeLike
    backend: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        keys: Key[Array, "B"] | None = None,
        mask: Bool[Array, "#B #H #L S"] | None = None,
        bias: Float[Array, "#B #H #L S"] | None = None,
    ) -> Float[Array, "B L D"]:
        drop = lambda y, use: dropout(y, self.dropout, None if keys is None else rng.fold(keys, use))
        norm = lambda name: RMSNorm(self.eps, self.dtype, name=name)
        width, inner = x.shape[-1], self.heads * self.head_width
        attn = Attention(
            heads=self.heads,
            head_width=self.head_width,
            scale=1.0,  # the initial values of q make up for it
            use_bias=False,
            q_init=normal((width * self.head_width) ** -0.5),
            kernel_init=normal(width**-0.5),
            out_init=normal(inner**-0.5),
            dtype=self.dtype,
            backend=self.backend,
            name="attn",
        )
        x = x + drop(attn(norm("norm1")(x), mask=mask, bias=bias), 0)
        inits = normal(width**-0.5), normal(self.mlp**-0.5)
        mlp = Mlp(self.mlp, self.act, self.dtype, *inits, self.gated, use_bias=False, name="mlp")
        x = x + drop(mlp(norm("norm2")(x)), 1)
        return constrain(x, "batch", None, None)


class T5Encoder(nn.Module):
    """Token embeddings, pre-norm blocks with one table of relative position biases for all layers, a last norm.

    Attributes:
      vocab: size of the token table.
      length: tokens, `L`, at most. No parameter depends on it.
      head_width: of one head; heads * head_width need not be `width`.
      gated: T5 v1.1's feed-forward network (see layers.Mlp).
      buckets, farthest: of the relative positions (see `relative_buckets`).
      pad: id of the padding token, which nothing looks at.
      dropout: after the embeddings, each residual branch and the last norm.
      scan, remat, backend: how it is computed, not what (see layers.stack, layers.attention).
    """

    vocab: int
    length: int
    width: int
    depth: int
    heads: int
    head_width: int
    mlp: int
    act: str = "relu"
    gated: bool = False
    buckets: int = 32
    farthest: int = 128
    pad: int = 0
    dropout: float = 0.0
    eps: float = 1e-6
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"
    backend: str = "xla"

    def __call__(
        self, tokens: Int[Array, "B L"], keys: Key[Array, "B"] | None = None, mask: Bool[Array, "B L"] | None = None
    ) -> Float[Array, "B D"]:
        """Float32 features of each text, the mean over its tokens but padding; arguments as of `sequence`."""
        return mean_of(self.sequence(tokens, keys, mask), self.counted(tokens) if mask is None else mask)

    def counted(self, tokens: Int[Array, "B L"]) -> Bool[Array, "B L"]:
        """The tokens of each text, all but padding."""
        return tokens != self.pad

    @nn.compact
    def sequence(
        self, tokens: Int[Array, "B L"], keys: Key[Array, "B"] | None = None, mask: Bool[Array, "B L"] | None = None
    ) -> Float[Array, "B L D"]:
        """Float32 features of every token. With `keys`, dropout is on.

        Args:
          mask: True for a token that may be looked at; all but padding if not given.
        """
        if tokens.shape[1] > self.length:
            raise ValueError(f"tokens have length {tokens.shape[1]}, the text tower takes at most {self.length}")
        mask = self.counted(tokens) if mask is None else mask
        x = Embed(self.vocab, self.width, self.dtype, normal(1.0), name="token")(tokens)
        fold = lambda use: None if keys is None else rng.fold(keys, use)
        x = dropout(constrain(x, "batch", None, None), self.dropout, fold(0))
        bias = RelativeBias(self.heads, self.buckets, self.farthest, normal(self.width**-0.5), name="relative")(tokens.shape[1])
        block = lambda name: T5Block(
            heads=self.heads,
            head_width=self.head_width,
            mlp=self.mlp,
            act=self.act,
            gated=self.gated,
            dropout=self.dropout,
            eps=self.eps,
            dtype=self.dtype,
            backend=self.backend,
            name=name,
        )
        x = stack(block, self.depth, x, keys=fold(1), scan=self.scan, remat=self.remat, mask=mask[:, None, None], bias=bias)
        x = RMSNorm(self.eps, self.dtype, name="norm")(x)
        return dropout(x, self.dropout, fold(2)).astype(jnp.float32)
