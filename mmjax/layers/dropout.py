"""Dropout with one key an example, so that a mask depends on neither batch size, accumulation nor mesh."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def dropout(x: Float[Array, "B *d"], rate: float, keys: Key[Array, "B"] | None) -> Float[Array, "B *d"]:
    """Zeroes entries with probability `rate` and scales the rest by 1 / (1 - rate); the identity without keys or at rate 0."""
    if keys is None or rate == 0.0:
        return x
    mask = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(mask, x / (1.0 - rate), jnp.zeros_like(x))
