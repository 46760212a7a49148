"""A prompt is read once; then a text grows a token a step.

B rows, P tokens of the longest prompt, n tokens fed at once, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Cache = Any  # a tree of arrays, rows in front of each

# forward(tokens int32[B, n], start int32[B], cache) -> (logits float[B, n, V], cache). Token j of row b stands at position start[b] + j;
# what is kept of it is kept at that position, and it sees what is kept up to its own. All that belongs to a row lies in the cache, for
# beams move rows.
Forward = Callable[[Array, Array, Cache], tuple[Array, Cache]]
# step(token int32[B], t int32[], cache) -> (logits float32[B, V] of new token t, cache). `token` is new token t - 1; at t = 0 any.
Step = Callable[[Array, Array, Cache], tuple[Array, Cache]]


class Prompt(NamedTuple):
    """What there is to continue: rows of unlike lengths, filled up on the right with anything. The cache is empty, with room for all."""

    forward: Forward
    cache: Cache
    tokens: Int[Array, "B P"]
    lengths: Int[Array, "B"]


def fill(prompt: Prompt) -> tuple[Cache, Int[Array, "B"]]:
    """The cache filled with the prompts, and the last token of each, which is to be fed again.

    To feed it again writes what is there already, and gives the logits of the token after it: so the logits of a prompt, over the whole
    vocabulary at every place, are never computed. What stands behind a prompt is overwritten before a token may see it.
    """
    forward, cache, tokens, lengths = prompt
    if tokens.shape[1] > 1:
        _, cache = forward(tokens, jnp.zeros_like(lengths), cache)
    return cache, jnp.take_along_axis(tokens, lengths[:, None] - 1, axis=1)[:, 0]


def repeat(tree: Any, copies: int) -> Any:
    """Every row followed by its copies."""
    return tree if copies == 1 else jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), tree)


def read(prompt: Prompt, copies: int = 1) -> tuple[Step, Cache]:
    """How to go on from a prompt that was read, and its cache; every row is followed by its `copies`."""
    (cache, last), forward = fill(prompt), prompt.forward
    cache, last, lengths = repeat((cache, last, prompt.lengths), copies)

    def step(token: Int[Array, "B"], t: Int[Array, ""], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        token = jnp.where(t == 0, last, token)
        logits, cache = forward(token[:, None], lengths - 1 + t, cache)
        return logits[:, 0].astype(jnp.float32), cache

    return step, cache


def read_guided(prompt: Prompt, negative: Prompt | None, scale: float, copies: int = 1) -> tuple[Step, Cache]:
    """`read`, of two prompts that are continued by the same text: log-probabilities of the first, moved away from those of the second.

    log p = log p(. | negative) + scale (log p(. | prompt) - log p(. | negative)), up to a constant (Sanchez et al. 2023, equation 4).
    Without a negative prompt, or at scale 1, the logits are the first's.
    """
    if negative is None or scale == 1:
        return read(prompt, copies)
    first, second = read(prompt, copies), read(negative, copies)

    def step(token: Int[Array, "B"], t: Int[Array, ""], caches: Cache) -> tuple[Float[Array, "B V"], Cache]:
        (own, cache), (other, negative_cache) = (s(token, t, c) for (s, _), c in zip((first, second), caches, strict=True))
        own, other = jax.nn.log_softmax(own), jax.nn.log_softmax(other)
        return other + scale * (own - other), (cache, negative_cache)

    return step, (first[1], second[1])
