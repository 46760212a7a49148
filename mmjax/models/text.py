"""Text towers.

B batch, L tokens, D width.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from mmjax.core.sharding import constrain
from mmjax.layers import Block, Embed, LayerNorm, PositionEmbedding, dropout, stack
from mmjax.layers.dense import normal


class TextTransformer(nn.Module):
    """CLIP's causal transformer (Radford et al. 2021, section 2.4): the features of the end token, which has the largest id.

    What stands after the end token cannot reach it through the causal mask, so padding needs none of its own.

    Attributes:
      vocab: size of the token table.
      length: tokens, `L`.
      dropout: after position embeddings and each residual branch.
      scan, remat, backend: how it is computed, not what (see layers.stack, layers.attention).
    """

    vocab: int
    length: int
    width: int
    depth: int
    heads: int
    mlp: int
    act: str = "gelu"
    dropout: float = 0.0
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"
    backend: str = "xla"

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"], keys: Key[Array, "B"] | None = None) -> Float[Array, "B D"]:
        """Float32 features. With `keys`, dropout is on."""
        if tokens.shape[1] != self.length:
            raise ValueError(f"tokens have length {tokens.shape[1]}, the text tower takes {self.length}")
        x = Embed(self.vocab, self.width, self.dtype, normal(0.02), name="token")(tokens)
        x = constrain(PositionEmbedding(normal(0.01), name="pos")(x), "batch", None, None)
        if keys is not None:
            x = dropout(x, self.dropout, keys)
        std = self.width**-0.5
        block = lambda name: Block(
            heads=self.heads,
            mlp=self.mlp,
            act=self.act,
            causal=True,
            dropout=self.dropout,
            eps=self.eps,
            dtype=self.dtype,
            backend=self.backend,
            kernel_init=normal(std),
            out_init=normal(std * (2 * self.depth) ** -0.5),
            up_init=normal((2 * self.width) ** -0.5),
            name=name,
        )
        x = stack(block, self.depth, x, keys=keys, scan=self.scan, remat=self.remat)
        end = jnp.take_along_axis(x, tokens.argmax(-1)[:, None, None], axis=1)[:, 0]
        return LayerNorm(self.eps, self.dtype, name="norm")(end).astype(jnp.float32)
