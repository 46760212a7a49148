"""The likelihood terms of a variational autoencoder (Kingma and Welling 2014), as in Rombach et al. 2022, appendix G.

B examples.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.errors import UserError, suggest

NORMS = ("l1", "l2")


def kl_to_standard(mean: Float[Array, "B *d"], logvar: Float[Array, "B *d"]) -> Float[Array, "B"]:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of each example, in nats, summed over its dimensions."""
    terms = jnp.square(mean) + jnp.expm1(logvar) - logvar
    return 0.5 * terms.reshape(terms.shape[0], -1).sum(1)


def reconstruction(
    x: Float[Array, "B *d"],
    y: Float[Array, "B *d"],
    distance: Float[Array, "B"] | float = 0.0,
    log_scale: Float[Array, ""] | float = 0.0,
    norm: str = "l1",
) -> Float[Array, "B"]:
    """The sum over an example's numbers of (|x - y| + distance) / exp(log_scale) + log_scale.

    Args:
      norm: "l2" for (x - y)^2 in place of |x - y|.
      distance: a perceptual distance times its weight; it counts once for every number, as in latent diffusion's code.
      log_scale: of the Laplace density that the absolute difference stands for, fixed or learnt, less a constant; at "l2" twice
        a Gaussian's, whose variance it is the logarithm of.

    Raises:
      UserError: an unknown norm.
    """
    if norm not in NORMS:
        raise UserError(f"reconstruction norm is {norm!r}{suggest(norm, NORMS)}")
    errors = (jnp.abs if norm == "l1" else jnp.square)(x - y).reshape(x.shape[0], -1)
    count = errors.shape[1]
    return (errors.sum(1) + count * distance) / jnp.exp(log_scale) + count * log_scale
