"""Positions that act on scores instead of tokens: rotated queries and keys, and biases by distance.

B batch, L tokens, S places that are looked at, H heads, K head width, R pairs of entries of it that are turned.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def angles(
    positions: Int[Array, "#B L"], width: int, base: float = 10_000.0, stretch: float = 1.0
) -> tuple[Float[Array, "#B L R"], Float[Array, "#B L R"]]:
    """Cosines and sines of position times base^(-i / R), i from 0 to R - 1 (Su et al. 2021, RoFormer, section 3.2.2), in float32.

    Args:
      width: 2 R, the entries that are turned.
      stretch: what positions are divided by, for contexts longer than the trained one (Chen et al. 2023, position interpolation).
    """
    rates = (base ** (-np.arange(0, width, 2) / width) / stretch).astype(np.float32)
    turned = positions.astype(jnp.float32)[..., None] * rates[None, None]
    return jnp.cos(turned), jnp.sin(turned)


def rotate(x: Float[Array, "B L H K"], cos: Float[Array, "#B L R"], sin: Float[Array, "#B L R"]) -> Float[Array, "B L H K"]:
    """Turns the pairs (i, i + R) of the first 2 R entries of every head by their angles, and leaves the rest."""
    half = cos.shape[-1]
    a, b, rest = jnp.split(x, (half, 2 * half), axis=-1)
    a, b, cos, sin = a.astype(jnp.float32), b.astype(jnp.float32), cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([(a * cos - b * sin).astype(x.dtype), (b * cos + a * sin).astype(x.dtype), rest], axis=-1)


def alibi_slopes(heads: int, largest: float = 8.0) -> Float[np.ndarray, "H"]:
    """2^(-largest h / H) for head h = 1 .. H (Press et al. 2022, section 3); for other than powers of two, those of the next power of
    two, first every second one from the second on, then the others, as many as there are heads (MPT's order)."""
    n = 2 ** math.ceil(math.log2(heads))
    slopes = 2.0 ** (-largest * np.arange(1, n + 1) / n)
    slopes = slopes if n == heads else np.concatenate([slopes[1::2], slopes[::2]])[:heads]
    return slopes.astype(np.float32)


def alibi(asking: Int[Array, "#B L"], seen: Int[Array, "#B S"], heads: int, largest: float = 8.0) -> Float[Array, "#B H L S"]:
    """What is added to scores: slope times the (negative) distance from the asking position to one before it."""
    distance = (seen[:, None] - asking[:, :, None]).astype(jnp.float32)
    return distance[:, None] * alibi_slopes(heads, largest)[None, :, None, None]
