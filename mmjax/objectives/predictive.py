"""Predicting an image's caption: the two objectives that CLIP was compared with (Radford et al. 2021, section 2.3 and figure 2).

A text is what stands before its end token, the first of its row's largest ids, as in CLIP's vocabulary, and its first token marks its
start. B examples, L tokens, V vocabulary.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def words(tokens: Int[Array, "B L"]) -> Bool[Array, "B L"]:
    """Where a text's own tokens stand: after the first, before the end."""
    place = jnp.arange(tokens.shape[1])[None]
    return (place > 0) & (place < tokens.argmax(1)[:, None])


def bag(tokens: Int[Array, "B L"], vocab: int) -> Float[Array, "B V"]:
    """1 for every word that a text holds, however often."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros((tokens.shape[0], vocab)).at[rows, tokens].max(words(tokens).astype(jnp.float32))


def bag_of_words(logits: Float[Array, "B V"], tokens: Int[Array, "B L"]) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean over images of the mean of -log softmax(logits) over the words of the caption (Joulin et al. 2016, section 3.1), in nats a word.

    A caption without words counts as 0.
    """
    value = -bag_scores(logits, tokens).mean()
    return value, {"perplexity": jnp.exp(value)}


def bag_scores(logits: Float[Array, "B V"], tokens: Int[Array, "B L"]) -> Float[Array, "B"]:
    """Mean log-probability of each text's words, given its image."""
    target = bag(tokens, logits.shape[1])
    return (target * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(1) / jnp.maximum(target.sum(1), 1.0)


def caption(logits: Float[Array, "B L V"], tokens: Int[Array, "B L"]) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean over captions of the cross-entropy of their tokens, in nats a token; `caption_scores` says which count."""
    scores = caption_scores(logits, tokens)
    counted = tokens.argmax(1)
    value = -(scores / jnp.maximum(counted, 1)).mean()
    return value, {"perplexity": jnp.exp(value), "tokens": counted.astype(jnp.float32).mean()}


def caption_scores(logits: Float[Array, "B L V"], tokens: Int[Array, "B L"]) -> Float[Array, "B"]:
    """Log-probability of each text given its image; logits[:, t] are of tokens[:, t]. All but the start token count, up to the end."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(log_p, tokens[..., None], axis=2)[..., 0]
    place = jnp.arange(tokens.shape[1])[None]
    return jnp.where((place > 0) & (place <= tokens.argmax(1)[:, None]), own, 0.0).sum(1)
