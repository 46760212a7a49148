"""How likely given texts are after a prompt: what ranks the answers of a closed question.

B rows, A answers, N tokens of the longest answer.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmjax.decoding.prompt import Prompt, fill, repeat

TOGETHER = 16  # answers of a row that go through the model at once


def log_likelihood(
    prompt: Prompt, answers: Int[Array, "B A N"], lengths: Int[Array, "B A"], *, together: int = TOGETHER
) -> Float[Array, "B A"]:
    """log p(answer | prompt), summed over the answer's tokens, in nats. The prompt is read once for all its answers.

    Args:
      lengths: of the answers, which are filled up on the right with any tokens. An answer of none has -inf: so rows may have fewer.
      together: this many of a row's answers at once, each with its copy of the cache.
    """
    rows, count, width = answers.shape
    together = min(together, count)
    cache, last = fill(prompt)
    start = prompt.lengths - 1

    def some(given: tuple[Array, Array]) -> Float[Array, "B t"]:
        texts, lengths = (x.reshape(rows * together, *x.shape[2:]) for x in given)
        fed = jnp.concatenate([repeat(last, together)[:, None], texts[:, :-1]], axis=1)
        logits, _ = prompt.forward(fed, repeat(start, together), repeat(cache, together))
        logits = logits.astype(jnp.float32)
        own = jnp.take_along_axis(logits, texts[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)
        real = jnp.arange(width)[None] < lengths[:, None]
        return jnp.where(lengths > 0, jnp.where(real, own, 0.0).sum(1), -jnp.inf).reshape(rows, together)

    parts = -(-count // together)
    split = lambda x: jnp.pad(x, [(0, 0), (0, parts * together - count), *[(0, 0)] * (x.ndim - 2)])
    split_up = lambda x: jnp.moveaxis(split(x).reshape(rows, parts, together, *x.shape[2:]), 1, 0)
    found = jax.lax.map(some, (split_up(answers), split_up(lengths)))
    return jnp.moveaxis(found, 0, 1).reshape(rows, -1)[:, :count]
