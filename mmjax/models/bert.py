"""BERT (Devlin et al. 2019).

B batch, L tokens, D width.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import constrain
from mmjax.layers import Dense, Embed, LayerNorm, PostNormBlock, dropout, stack
from mmjax.layers.dense import normal
from mmjax.models.text import mean_of

POOLS = ("cls", "pooler", "mean")

# The uncased English models; the cased ones differ in the vocabulary alone, 28996.
VARIANTS = {
    "base": {"vocab": 30522, "length": 512, "width": 768, "depth": 12, "heads": 12, "mlp": 3072},
    "large": {"vocab": 30522, "length": 512, "width": 1024, "depth": 24, "heads": 16, "mlp": 4096},
}


class Bert(nn.Module):
    """The encoder without its language-modelling head: word, position and segment embeddings, post-norm blocks.

    Attributes:
      vocab: size of the token table.
      length: tokens, `L`, at most.
      pool: a text's features: "cls", those of its first token; "pooler", these through the dense layer and tanh that were trained
        to tell whether two sentences follow each other (section 3.1, task 2); "mean", of its tokens but padding.
      positions: rows of the position table; no fewer than `length`.
      types: segments.
      pad: id of the padding token, which nothing looks at.
      dropout: after the embeddings and each residual branch.
      scan, remat, backend: how it is computed, not what (see layers.stack, layers.attention).
    """

    vocab: int
    length: int
    width: int
    depth: int
    heads: int
    mlp: int
    act: str = "gelu"
    pool: str = "cls"
    positions: int = 512
    types: int = 2
    pad: int = 0
    dropout: float = 0.0
    eps: float = 1e-12
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"
    backend: str = "xla"

    def setup(self):
        if self.pool not in POOLS:
            raise UserError(f"BERT pool is {self.pool!r}{suggest(self.pool, POOLS)}")
        if self.length > self.positions:
            raise UserError(f"BERT length {self.length} is more than its {self.positions} positions; shorten it, or enlarge positions")
        if self.pool == "pooler":
            self.pooler = Dense(self.width, ("embed", "joint"), dtype=self.dtype, kernel_init=normal(0.02))

    def __call__(
        self,
        tokens: Int[Array, "B L"],
        keys: Key[Array, "B"] | None = None,
        mask: Bool[Array, "B L"] | None = None,
        segments: Int[Array, "B L"] | None = None,
    ) -> Float[Array, "B D"]:
        """Float32 features of each text; arguments as of `sequence`."""
        x = self.sequence(tokens, keys, mask, segments)
        if self.pool == "mean":
            return mean_of(x, self.counted(tokens) if mask is None else mask)
        return x[:, 0] if self.pool == "cls" else jnp.tanh(self.pooler(x[:, 0]).astype(jnp.float32))

    def counted(self, tokens: Int[Array, "B L"]) -> Bool[Array, "B L"]:
        """The tokens of each text, all but padding."""
        return tokens != self.pad

    @nn.compact
    def sequence(
        self,
        tokens: Int[Array, "B L"],
        keys: Key[Array, "B"] | None = None,
        mask: Bool[Array, "B L"] | None = None,
        segments: Int[Array, "B L"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Float32 features of every token. With `keys`, dropout is on.

        Args:
          mask: True for a token that may be looked at; all but padding if not given.
          segments: 0 or 1, the sentence a token is of; 0 if not given.
        """
        if tokens.shape[1] > self.length:
            raise ValueError(f"tokens have length {tokens.shape[1]}, the text tower takes at most {self.length}")
        mask = self.counted(tokens) if mask is None else mask
        embed = lambda rows, axis, name: Embed(rows, self.width, self.dtype, normal(0.02), axis, name=name)
        x = embed(self.vocab, "vocab", "token")(tokens)
        x = x + embed(self.types, "token", "segment")(jnp.zeros_like(tokens) if segments is None else segments)
        x = x + embed(self.positions, "position", "pos")(jnp.arange(tokens.shape[1])[None])
        x = LayerNorm(self.eps, self.dtype, name="norm")(constrain(x, "batch", None, None))
        x = dropout(x, self.dropout, keys)
        block = lambda name: PostNormBlock(
            self.heads, self.mlp, self.act, self.dropout, self.eps, self.dtype, self.backend, normal(0.02), name=name
        )
        x = stack(block, self.depth, x, keys=keys, scan=self.scan, remat=self.remat, mask=mask[:, None, None])
        return x.astype(jnp.float32)
