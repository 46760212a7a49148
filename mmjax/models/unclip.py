"""What the decoder of unCLIP tells its U-Net of a picture's embedding and of the caption.

Ramesh et al. 2022, arXiv 2204.06125, section 2.1; the fields are also those of Karlo's decoder and of diffusers' UnCLIPTextProjModel.
B batch, E width of an embedding, S words, W width of words, M width of the network's context, T width of its embedding of times.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mmjax.core.config import Group, get, kwargs_for
from mmjax.core.errors import UserError, suggest
from mmjax.layers import Dense, LayerNorm

NULLS = ("learned", "zeros")


class EmbeddingCondition(nn.Module):
    """An embedding as a vector that is added to the time's embedding, and as words before those of the caption.

    Parameters `time`, and as far as fields ask for them `tokens`, `null`, `text`, `words`, `words_norm`, `pooled`.

    Attributes:
      width: E.
      time_width: T, the network's `embedding_width`.
      context_width: M.
      tokens: how many words the embedding is made into; 0 for a network that looks at none.
      dropout: share of examples that training leaves the embedding out of, whether or not it leaves out the caption.
      null: what stands for an embedding that is not there: a "learned" vector, or "zeros".
      unit: embeddings are brought to length sqrt(E), whatever they had.
      text: the caption's embedding is added to the time's too (Karlo).
      project: the caption's words go through a product and a norm (Karlo); else W must be M.
      pooled: the caption's last word is added to the time's embedding too (GLIDE).
    """

    width: int
    time_width: int
    context_width: int
    tokens: int = 4
    dropout: float = 0.1
    null: str = "learned"
    unit: bool = False
    text: bool = False
    project: bool = False
    pooled: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        embedding: Float[Array, "B E"],
        there: Bool[Array, "B"],
        *,
        text_embedding: Float[Array, "B E"] | None = None,
        words: Float[Array, "B S W"] | None = None,
    ) -> tuple[Float[Array, "B N M"] | None, Float[Array, "B T"]]:
        """The network's context, N = tokens + S words (None for none), and what it adds to the embedding of times.

        Args:
          there: False where the null stands in the embedding's place.
        """
        if self.unit:
            length = jnp.linalg.norm(embedding, axis=-1, keepdims=True)
            embedding = embedding * (self.width**0.5 / jnp.maximum(length, 1e-6))
        nothing = jnp.zeros(self.width)
        if self.null == "learned":
            nothing = self.param("null", nn.with_logical_partitioning(nn.initializers.zeros, ("width",)), (self.width,), jnp.float32)
        embedding = jnp.where(there[:, None], embedding, nothing[None])
        dense = lambda features, name: Dense(features, ("embed", "width"), dtype=self.dtype, name=name)
        added = dense(self.time_width, "time")(embedding)
        if self.text:
            added = added + dense(self.time_width, "text")(text_embedding)
        parts = []
        if self.tokens:
            parts.append(dense(self.tokens * self.context_width, "tokens")(embedding).reshape(-1, self.tokens, self.context_width))
        if words is not None:
            if self.pooled:
                added = added + dense(self.time_width, "pooled")(words[:, -1])
            if self.project:
                words = LayerNorm(1e-5, self.dtype, name="words_norm")(dense(self.context_width, "words")(words))
            parts.append(words.astype(self.dtype))
        return (jnp.concatenate(parts, axis=1) if parts else None), added


def build(
    fields: Group, network: nn.Module, words: int | None, dtype: DTypeLike = jnp.float32, where: str = "config.model.embedding"
) -> nn.Module:
    """The module of its fields for a network, and captions whose words have this width, None where there are none.

    `time_width` is the network's; `context_width`, where it is not given, that of the words.

    Raises:
      UserError: an unknown field or name, a network that takes no embedding, or widths that do not meet.
    """
    get(fields, "width", where)
    if not hasattr(network, "embedding_width"):
        raise UserError(f"{where}: the network adds no embedding to that of times: take network.type 'unet'")
    width = fields.get("context_width") or words
    given = {"time_width": network.embedding_width, **fields, "context_width": width or 1, "dtype": dtype}
    made = EmbeddingCondition(**kwargs_for(EmbeddingCondition, given, where))
    if made.null not in NULLS:
        raise UserError(f"{where}.null is {made.null!r}{suggest(made.null, NULLS)}")
    if not 0 <= made.dropout < 1:
        raise UserError(f"{where}.dropout is {made.dropout}, expected a share from 0 to 1")
    if (made.pooled or made.project) and words is None:
        raise UserError(
            f"{where}.{'pooled' if made.pooled else 'project'} is of a caption's words, and there are none: set text or context"
        )
    looks = network.kind != "self"
    if looks != bool(made.tokens or words):
        fix = "set it to 4, or take network.kind 'self'" if looks else "take network.kind 'added'"
        says = f"{where}.tokens is {made.tokens}, and a network of kind {network.kind!r} looks at {'a' if looks else 'no'} context: {fix}"
        raise UserError(says)
    if looks and width is None:
        raise UserError(f"{where}.context_width is not set, and there are no captions that would have one")
    if words not in (None, width) and not made.project:
        raise UserError(f"{where}.context_width is {width}, and captions are {words} wide: set {where}.project, or make them equal")
    return made
