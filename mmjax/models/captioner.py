"""Networks that predict captions: the words of one, or one word after the other (Radford et al. 2021, section 2.3).

B batch, H height, W width, C channels, L tokens, D width, V vocabulary.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from mmjax.core import rng
from mmjax.core.sharding import constrain
from mmjax.layers import Block, Dense, Embed, LayerNorm, PositionEmbedding, dropout, stack
from mmjax.layers.dense import normal


class WordPredictor(nn.Module):
    """An image tower and a linear layer of one logit a word. Parameters `image`, `words`."""

    image: nn.Module
    vocab: int

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"], keys: Key[Array, "B"] | None = None) -> Float[Array, "B V"]:
        """Float32 logits. With `keys`, dropout is on."""
        return Dense(self.vocab, ("embed", "vocab"), kernel_init=nn.initializers.zeros, name="words")(self.image(images, keys))


class Captioner(nn.Module):
    """A language model whose first input is the image: a causal transformer over the projected image features and the tokens.

    Parameters `image` and, of the language model, `image_proj`, `token`, `pos`, `blocks`, `norm`, `head`.

    Attributes:
      vocab, length: of tokens.
      dropout: after position embeddings and each residual branch.
      scan, remat, backend: how it is computed, not what (see layers.stack, layers.attention).
    """

    image: nn.Module
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

    def setup(self):
        self.image_proj = Dense(self.width, ("embed", "joint"))

    def features(self, images: Float[Array, "B H W C"], keys: Key[Array, "B"] | None = None) -> Float[Array, "B D"]:
        """What the language model sees of images."""
        return self.image_proj(self.image(images, keys))

    @nn.compact
    def decode(
        self, features: Float[Array, "B D"], tokens: Int[Array, "B L"], keys: Key[Array, "B"] | None = None
    ) -> Float[Array, "B L V"]:
        """Float32 logits of every token, from the image and the tokens before it."""
        x = Embed(self.vocab, self.width, self.dtype, normal(0.02), name="token")(tokens[:, :-1])
        x = jnp.concatenate([features[:, None].astype(x.dtype), x], axis=1)
        x = constrain(PositionEmbedding(normal(0.01), name="pos")(x), "batch", None, None)
        x = dropout(x, self.dropout, keys)
        std = self.width**-0.5
        how = {"dropout": self.dropout, "eps": self.eps, "dtype": self.dtype, "backend": self.backend}
        inits = {
            "kernel_init": normal(std),
            "out_init": normal(std * (2 * self.depth) ** -0.5),
            "up_init": normal((2 * self.width) ** -0.5),
        }
        block = lambda name: Block(self.heads, self.mlp, self.act, causal=True, **how, **inits, name=name)
        x = stack(block, self.depth, x, keys=keys, scan=self.scan, remat=self.remat)
        x = LayerNorm(self.eps, self.dtype, name="norm")(x)
        return Dense(self.vocab, ("embed", "vocab"), dtype=self.dtype, kernel_init=normal(std), name="head")(x).astype(jnp.float32)

    def __call__(
        self, images: Float[Array, "B H W C"], tokens: Int[Array, "B L"], keys: Key[Array, "B"] | None = None
    ) -> Float[Array, "B L V"]:
        """`decode` of `features`. With `keys`, dropout is on."""
        fold = lambda use: None if keys is None else rng.fold(keys, use)
        return self.decode(self.features(images, fold(0)), tokens, fold(1))
