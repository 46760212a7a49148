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


def stochastic_depth(x: Float[Array, "B *d"], rate: Float[Array, ""] | float, keys: Key[Array, "B"] | None) -> Float[Array, "B *d"]:
    """Zeroes an example's whole residual branch with probability `rate` (Huang et al. 2016); the identity without keys.

    The branches that stay are not scaled up, as in NFNet.
    """
    if keys is None:
        return x
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - rate))(keys)
    return jnp.where(keep.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.zeros_like(x))
