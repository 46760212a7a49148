"""The diffusion prior of unCLIP: a causal transformer from what a caption says, and a noisy image embedding, to the clean one.

Ramesh et al. 2022, arXiv 2204.06125, section 2.2; Karlo's (kakaobrain/karlo) and diffusers' PriorTransformer are this network. It reads
[encoded text, text embedding, time, noised image embedding, query], and what it says of the image embedding stands at the query's place.

B batch, L words, E width of an embedding, M width of words' features, D width, S = L + 4 places.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from mmjax.core.config import Group, get, kwargs_for
from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import constrain, gathered
from mmjax.layers import Block, Dense, Embed, EmbeddingMlp, LayerNorm, PositionEmbedding, dropout, sinusoidal, stack
from mmjax.layers.dense import normal

# `karlo`: 77 words of CLIP's text tower, its padding masked. `unclip`: the paper's table 3, "1B", where text encoder 256/2048/24/32 is read
# as this transformer, into which tokens go themselves; its vocabulary is not published, and here is CLIP's. Another encoder in front
# would make 2.6B.
VARIANTS: dict[str, dict] = {
    "karlo": {"embedding": 768, "length": 77, "width": 2048, "depth": 20, "heads": 32},
    "unclip": {"embedding": 1024, "length": 256, "vocab": 49408, "width": 2048, "depth": 24, "heads": 32},
}


class Prior(nn.Module):
    """Attributes:
    embedding: E, of image embeddings.
    length: L, words; 0 for none, then only the text embedding speaks of the caption.
    vocab: of tokens that are looked up here; 0 where words come as features, from a text tower.
    query: whether a last, learnt token is what the answer is read from; without it that is the noised embedding's own.
    norm: whether there is one after the last block.
    dropout: after positions and each residual branch.
    scan, remat, backend: how it is computed, not what (see layers.stack, layers.attention).
    """

    embedding: int
    width: int
    depth: int
    heads: int
    length: int = 0
    vocab: int = 0
    mlp_ratio: float = 4.0
    act: str = "gelu"
    query: bool = True
    norm: bool = True
    dropout: float = 0.0
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"
    backend: str = "xla"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B E"],
        t: Float[Array, "B"],
        text: Float[Array, "B T"],
        *,
        tokens: Int[Array, "B L"] | None = None,
        context: Float[Array, "B L M"] | None = None,
        mask: Bool[Array, "B L"] | None = None,
        keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B E"]:
        """Float32.

        Args:
          x: the noised image embedding.
          text: the text embedding, of any width.
          tokens, context: the caption's words, by number where there is a `vocab`, as features where there is none.
          mask: words that may be looked at; all without it.
          keys: one an example; with them dropout is on.

        Raises:
          UserError: words that are missing, of another number, or of the other kind.
        """
        one = lambda x, name: Dense(self.width, ("patch", "embed"), dtype=self.dtype, name=name)(x)[:, None]
        time = EmbeddingMlp(self.width, self.dtype, name="time")(sinusoidal(t, self.width))
        parts = [*words(self, tokens, context), one(text, "text"), time[:, None], one(x, "image")]
        if self.query:
            init = nn.with_logical_partitioning(normal(0.01), ("embed",))
            query = gathered(self.param("query", init, (self.width,), jnp.float32).astype(self.dtype), "embed")
            parts.append(jnp.broadcast_to(query, (x.shape[0], 1, self.width)))
        y = PositionEmbedding(normal(0.01), name="pos")(jnp.concatenate(parts, axis=1))
        y = dropout(constrain(y, "batch", None, None), self.dropout, keys)
        seen = None if mask is None else padded(mask, y.shape[1])[:, None, None]
        y = stack(lambda name: block(self, name), self.depth, y, keys=keys, scan=self.scan, remat=self.remat, mask=seen)[:, -1]
        if self.norm:
            y = LayerNorm(self.eps, self.dtype, name="norm")(y)
        return Dense(self.embedding, ("embed", "patch"), dtype=self.dtype, kernel_init=normal(0.02), name="head")(y).astype(jnp.float32)


def words(module: nn.Module, tokens: Array | None, context: Array | None) -> list[Float[Array, "B L D"]]:
    """The caption's words in the module's width, in a list; an empty one where its `length` is 0. To be called in a compact method.

    Raises:
      UserError: words that are missing, of another number, or of the other kind.
    """
    given = tokens if module.vocab else context
    if not module.length:
        return []
    if given is None or given.shape[1] != module.length:
        kind, other = ("tokens", "features") if module.vocab else ("features", "tokens")
        got = f"{given.shape[1]} of them" if given is not None else f"{other} alone" if (tokens, context) != (None, None) else "none"
        raise UserError(f"the prior takes a caption as {module.length} {kind}, got {got}")
    if module.vocab:
        return [Embed(module.vocab, module.width, module.dtype, normal(0.02), name="token")(given)]
    return [Dense(module.width, ("patch", "embed"), dtype=module.dtype, name="context")(given)]


def padded(mask: Bool[Array, "B L"], places: int) -> Bool[Array, "B S"]:
    """The mask of words with the places behind them, which may all be looked at."""
    return jnp.pad(mask, ((0, 0), (0, places - mask.shape[1])), constant_values=True)


def block(module: Prior, name: str) -> Block:
    """Initialised as OpenAI's CLIP: residual outputs scaled down with depth."""
    std = module.width**-0.5
    return Block(
        heads=module.heads,
        mlp=round(module.width * module.mlp_ratio),
        act=module.act,
        causal=True,
        dropout=module.dropout,
        eps=module.eps,
        dtype=module.dtype,
        backend=module.backend,
        kernel_init=normal(std),
        out_init=normal(std * (2 * module.depth) ** -0.5),
        up_init=normal((2 * module.width) ** -0.5),
        name=name,
    )


def build(model: str | Group, dtype: DTypeLike = jnp.float32, where: str = "config.model.prior") -> Prior:
    """The module of a key of `VARIANTS`, or of fields.

    Raises:
      UserError: an unknown name or field, one that is missing, or a width that the heads do not divide.
    """
    return built(Prior, VARIANTS, ("embedding", "width", "depth", "heads"), model, dtype, where)


def built(cls: type, variants: dict, needed: tuple[str, ...], model: str | Group, dtype: DTypeLike, where: str) -> nn.Module:
    """A prior of either kind, of a name or of fields; errors as `build`."""
    if isinstance(model, str):
        if model not in variants:
            raise UserError(f"{where}: there is no prior {model!r}{suggest(model, variants)}")
        model = variants[model]
    fields = kwargs_for(cls, model, where)
    for key in needed:
        get(fields, key, where)
    if fields["width"] % fields["heads"] or fields["width"] % 2:
        raise UserError(f"{where}: width {fields['width']} is to be even and a multiple of its {fields['heads']} heads")
    if fields.get("vocab") and not fields.get("length"):
        raise UserError(f"{where}.vocab is {fields['vocab']} and length 0: set length to the number of tokens")
    return cls(**{"dtype": dtype, **fields})
