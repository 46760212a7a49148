"""A discriminator beside a reconstruction loss (Esser, Rombach, Ommer 2021, VQGAN, section 3.1 and equations 6 and 7).

B examples, h and w of a discriminator's map of logits.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmjax.core.errors import UserError, suggest

LOSSES = ("hinge", "non_saturating")


def discriminator_loss(kind: str, real: Float[Array, "B *d"], fake: Float[Array, "B *d"]) -> Float[Array, ""]:
    """What a discriminator of logits, high for real, minimises: the mean of the losses on real and on fake ones.

    "hinge": max(0, 1 - real) and max(0, 1 + fake) (Lim and Ye 2017); "non_saturating": the cross-entropy (Goodfellow et al. 2014).

    Raises:
      UserError: an unknown kind.
    """
    _check(kind)
    penalty = jax.nn.relu if kind == "hinge" else jax.nn.softplus
    margin = 1.0 if kind == "hinge" else 0.0
    return (penalty(margin - real).mean() + penalty(margin + fake).mean()) / 2


def generator_loss(kind: str, fake: Float[Array, "B *d"]) -> Float[Array, ""]:
    """What a generator minimises: -fake beside a hinge, -log sigmoid(fake) in the non-saturating game; errors as `discriminator_loss`.

    VQGAN's code takes -fake in both.
    """
    _check(kind)
    return -fake.mean() if kind == "hinge" else jax.nn.softplus(-fake).mean()


def _check(kind: str) -> None:
    if kind not in LOSSES:
        raise UserError(f"adversarial loss is {kind!r}{suggest(kind, LOSSES)}")


def balanced(
    losses: Callable[[Float[Array, "*k"]], tuple[Float[Array, ""], Float[Array, ""]]],
    last: Float[Array, "*k"],
    most: float = 1e4,
    small: float = 1e-4,
) -> Float[Array, ""]:
    """The factor of the adversarial term that makes both losses pull at the last layer equally hard (equation 7): a constant.

    Args:
      losses: the last layer's kernel -> (reconstruction loss, generator's loss).
      last: that kernel; what lies below it is not differentiated.
      most: what the factor is at most.
      small: added to the denominator.
    """
    _, pull = jax.vjp(losses, last)
    one, zero = jnp.ones(()), jnp.zeros(())
    (reconstruction,), (adversarial,) = pull((one, zero)), pull((zero, one))
    factor = jnp.linalg.norm(reconstruction.reshape(-1)) / (jnp.linalg.norm(adversarial.reshape(-1)) + small)
    return jax.lax.stop_gradient(jnp.clip(factor, 0.0, most))


def started(step: Int[Array, ""], start: int) -> Float[Array, ""]:
    """1 from step `start` on, 0 before: until then reconstruction alone is trained, and the discriminator not at all."""
    return (step >= start).astype(jnp.float32)
