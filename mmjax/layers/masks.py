"""Who may look at whom: attention masks, True where a token may be looked at, and the numbers they are made of.

Masks have the shape of attention's scores, [B, 1, L, S] with 1 where an axis does not matter, so that `&` and `|` combine them.
B batch, L tokens that ask, S places that are looked at, N images, R latents an image.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int


def causal(length: int) -> Bool[Array, "1 1 L L"]:
    """A token sees itself and what comes before."""
    place = jnp.arange(length)
    return (place[:, None] >= place[None])[None, None]


def written(positions: Int[Array, "B L"], slots: int) -> Bool[Array, "B 1 L S"]:
    """Of a cache whose slot s holds position s: a token at a position sees the slots up to its own."""
    return (positions[:, :, None] >= jnp.arange(slots)[None, None])[:, None]


def blockwise(starts: Int[Array, "B L"] | Bool[Array, "B L"], valid: Bool[Array, "B L"] | None = None) -> Bool[Array, "B 1 L L"]:
    """A token sees its own block whole and all blocks before: big_vision's rule (Beyer et al. 2024, PaliGemma, section 3.2).

    Args:
      starts: 1 where a block begins. All 1 is causal; 0 over a prefix and 1 after it is a prefix language model.
      valid: tokens that are there; the others see nothing and are not seen.
    """
    block = jnp.cumsum(starts.astype(jnp.int32), axis=1)
    mask = (block[:, None] <= block[:, :, None])[:, None]
    return mask if valid is None else mask & (valid[:, :, None] & valid[:, None])[:, None]


def prefix(lengths: Int[Array, "B"], length: int) -> Bool[Array, "B 1 L L"]:
    """Causal, but for the first `lengths[b]` tokens of row b, which all see each other (Raffel et al. 2020, section 3.2.1)."""
    return blockwise(jnp.arange(length)[None] >= lengths[:, None])


def same_segment(asking: Int[Array, "B L"], seen: Int[Array, "B S"] | None = None) -> Bool[Array, "B 1 L S"]:
    """Packed texts: a token sees those of its own segment. Padding is a segment as any other, so that no row is empty."""
    seen = asking if seen is None else seen
    return (asking[:, :, None] == seen[:, None])[:, None]


def documents(ends: Bool[Array, "B L"]) -> Int[Array, "B L"]:
    """Segments of rows in which a document ends where `ends` says: 1, 2, ...; the end belongs to what it ends."""
    ends = ends.astype(jnp.int32)
    return 1 + jnp.cumsum(ends, axis=1) - ends


def media_index(
    is_image: Bool[Array, "B L"], segments: Int[Array, "B L"] | None = None, following: Bool[Array, "B"] | None = None
) -> Int[Array, "B L"]:
    """Which image of its row, from 1, a token looks at: the last one before it, which an image's own token is too; 0 for none.

    Alayrac et al. 2022, section 2.3, phi. Images of all documents of a row are counted through; a token before the first image of its
    own document looks at none (the packing rule of IDEFICS).

    Args:
      is_image: where an image's token stands.
      segments: of packed documents, each in one piece; `documents(ends)` where only their ends are known.
      following: rows whose tokens look at the image that follows instead, if their document has one (section 2.4 and appendix A.3.2);
        an image's own token stays with it.
    """
    count, before, total = _counts(is_image, segments)
    last = jnp.where(count > before, count, 0)
    if following is None:
        return last
    after = jnp.where(count < total, count + 1, 0)
    return jnp.where(following[:, None] & ~is_image, after, last)


def first_image(is_image: Bool[Array, "B L"], segments: Int[Array, "B L"] | None = None) -> Int[Array, "B L"]:
    """The number, from 1, that the first image of a token's document has in the row (or would have, where there is none)."""
    return _counts(is_image, segments)[1] + 1


def _counts(is_image: Bool[Array, "B L"], segments: Int[Array, "B L"] | None) -> tuple[Array, Array, Array]:
    """Images of the row up to a token, before its document, and up to its document's end."""
    count = jnp.cumsum(is_image.astype(jnp.int32), axis=1)
    if segments is None:
        return count, jnp.zeros_like(count), jnp.broadcast_to(count[:, -1:], count.shape)
    change = segments[:, 1:] != segments[:, :-1]
    edge = jnp.ones((len(change), 1), bool)
    starts, ends = jnp.concatenate([edge, change], axis=1), jnp.concatenate([change, edge], axis=1)
    before = lax.cummax(jnp.where(starts, count - is_image, 0), axis=1)
    total = lax.cummin(jnp.where(ends, count, count.shape[1]), axis=1, reverse=True)
    return count, before, total


def cross(index: Int[Array, "B L"], images: int, latents: int = 1, first: Int[Array, "B L"] | None = None) -> Bool[Array, "B 1 L S"]:
    """A token sees the latents of image `index`; with `first`, those of the images from `first` to `index` (all previous ones).

    A token of index 0, or of one past the images, sees none: its row is empty, and what attention makes of such a row is no answer
    (`seeing`).
    """
    number = 1 + jnp.arange(images)[None, None]
    seen = (number >= (index if first is None else first)[:, :, None]) & (number <= index[:, :, None])
    return jnp.repeat(seen, latents, axis=2)[:, None]


def seeing(mask: Bool[Array, "B 1 L S"]) -> Bool[Array, "B L 1"]:
    """Which tokens see anything. A softmax over nothing is uniform, so the output of the others is to be put to 0."""
    return mask.any(-1)[:, 0, :, None]
