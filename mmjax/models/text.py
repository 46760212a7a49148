"""Text towers of CLIP and SigLIP, and what all text towers share.

A text tower is a module with fields `width`, `vocab` and `length` (tokens, at most) and
`__call__(tokens, keys=None) -> float32[B, D]`, features of each text, and `sequence`, features of each token.

B batch, L tokens, D width.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import constrain
from mmjax.layers import Block, Embed, LayerNorm, PositionEmbedding, dropout, stack
from mmjax.layers.dense import normal

POOLS = ("argmax", "eos", "last")


class TextTransformer(nn.Module):
    """The causal transformer of CLIP (Radford et al. 2021, section 2.4), and with `causal=False` that of SigLIP.

    What stands after the end token cannot reach it through the causal mask, so CLIP's padding needs no mask of its own. SigLIP's
    (Zhai et al. 2023) was trained to look at its padding: texts must be padded to `length` as the tokenizer does.

    Attributes:
      vocab: size of the token table.
      length: tokens, `L`.
      causal: a token sees itself and what comes before.
      pool: whose features are a text's: "argmax", the first token of the largest id, which in CLIP's vocabulary is the end
        token; "eos", the first token that equals `eos` (the first of all in a text without one); "last", the last place.
      eos: id of the end token; needed by "eos".
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
    causal: bool = True
    pool: str = "argmax"
    eos: int | None = None

    def __call__(self, tokens: Int[Array, "B L"], keys: Key[Array, "B"] | None = None) -> Float[Array, "B D"]:
        """Float32 features. With `keys`, dropout is on."""
        x = self.sequence(tokens, keys)
        return jnp.take_along_axis(x, self.place(tokens)[:, None, None], axis=1)[:, 0]

    @nn.compact
    def sequence(self, tokens: Int[Array, "B L"], keys: Key[Array, "B"] | None = None) -> Float[Array, "B L D"]:
        """Float32 features of every token, after the last norm."""
        if tokens.shape[1] != self.length:
            raise ValueError(f"tokens have length {tokens.shape[1]}, the text tower takes {self.length}")
        x = Embed(self.vocab, self.width, self.dtype, normal(0.02), name="token")(tokens)
        x = constrain(PositionEmbedding(normal(0.01), name="pos")(x), "batch", None, None)
        x = dropout(x, self.dropout, keys)
        std = self.width**-0.5
        block = lambda name: Block(
            heads=self.heads,
            mlp=self.mlp,
            act=self.act,
            causal=self.causal,
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
        return LayerNorm(self.eps, self.dtype, name="norm")(x).astype(jnp.float32)

    def place(self, tokens: Int[Array, "B L"]) -> Int[Array, "B"]:
        """Where in each text its features are taken."""
        if self.pool not in POOLS:
            raise UserError(f"text tower pool is {self.pool!r}{suggest(self.pool, POOLS)}")
        if self.pool == "last":
            return jnp.full(tokens.shape[0], tokens.shape[1] - 1)
        if self.pool == "argmax":
            return tokens.argmax(-1)
        if self.eos is None:
            raise UserError("text tower pool 'eos' needs the id of the end token; set eos, or pool='argmax' if it is the largest id")
        return (tokens == self.eos).argmax(-1)

    def counted(self, tokens: Int[Array, "B L"]) -> Bool[Array, "B L"]:
        """The tokens of each text: up to that whose features are taken, behind which there is only padding."""
        return jnp.arange(tokens.shape[1])[None] <= self.place(tokens)[:, None]

    @property
    def end(self) -> int | None:
        """The id a text must hold for its features to mean anything; None where any text does."""
        return {"argmax": self.vocab - 1 if self.eos is None else self.eos, "eos": self.eos, "last": None}.get(self.pool)


def mean_of(x: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B D"]:
    """Mean over the tokens that count, in float32; zero for a text without any."""
    weights = mask.astype(jnp.float32)
    total = jnp.einsum("bld,bl->bd", x.astype(jnp.float32), weights)
    return total / jnp.maximum(weights.sum(1, keepdims=True), 1.0)


def check_tokens(tokens: Int[np.ndarray, "*n"], text: nn.Module, where: str = "tokens") -> None:
    """Holds token rows on the host against a text tower, for on a device a bad one gives wrong features without a word.

    Raises:
      UserError: naming the first place where an id is outside the tower's vocabulary, or the first row without the end token that
        the tower's pooling looks for; or another number of tokens than it takes.
    """
    tokens = np.asarray(tokens)
    fixed = isinstance(text, TextTransformer)
    if tokens.ndim != 2 or (tokens.shape[1] != text.length if fixed else tokens.shape[1] > text.length):
        raise UserError(f"{where}: shape {tokens.shape}, the text tower takes (N, {'' if fixed else 'at most '}{text.length})")
    outside = np.argwhere((tokens < 0) | (tokens >= text.vocab))
    if len(outside):
        row, column = outside[0]
        raise UserError(
            f"{where}[{row}, {column}] is {tokens[row, column]}, outside the text tower's vocabulary of 0 to {text.vocab - 1}; "
            "use the tokenizer that belongs to these weights"
        )
    end = getattr(text, "end", None)
    without = [] if end is None else np.flatnonzero(~(tokens == end).any(1))
    if len(without):
        raise UserError(f"{where}[{without[0]}] has no end token (id {end}), whose features are the text's; encode it with its end token")
