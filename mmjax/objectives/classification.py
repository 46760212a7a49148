"""Losses on class logits.

B examples, K classes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "B K"], labels: Int[Array, "B"], smoothing: float = 0.0
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean cross-entropy in nats against labels smoothed toward uniform (Szegedy et al. 2016, section 7), and top-1 accuracy."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    target = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    loss = -(1 - smoothing) * target - smoothing * log_p.mean(1)
    return loss.mean(), {"accuracy": (logits.argmax(1) == labels).mean()}
