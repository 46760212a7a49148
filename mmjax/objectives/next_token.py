"""The loss of language models: the cross-entropy of the token after each, with logits made a part at a time where they are large.

B rows, L tokens, E width of what logits are made of, V vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_log_p(logits: Float[Array, "B L V"], tokens: Int[Array, "B L"]) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
    """log p of each token under the logits at its own place, and log Z of these. Sums rather than gathers: V may be split over devices."""
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    own = jnp.where(jnp.arange(logits.shape[-1])[None, None] == tokens[..., None], logits, 0.0).sum(-1)
    return own - log_z, log_z


def next_token(
    head: Callable[[Array], Array],
    x: Float[Array, "B L E"],
    tokens: Int[Array, "B L"],
    weights: Float[Array, "B L"],
    *,
    z_loss: float = 0.0,
    chunk: int = 0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]], Float[Array, ""]]:
    """Mean over tokens of -log p, in nats: what stands at place i predicts token i + 1.

    Args:
      head: makes logits [B, n, V] of `x` [B, n, E].
      weights: of the tokens as predicted ones; 0 of those that do not count. The first of a row never does.
      z_loss: adds this times the mean of log(Z)^2, which keeps logits from drifting (Chowdhery et al. 2023, section 5; de Brebisson and
        Vincent 2016).
      chunk: makes the logits of so many places at a time, forwards and again backwards: memory for [B, chunk, V] in place of
        [B, L, V], which for a large vocabulary is most of a step's. 0: all at once.

    Returns:
      The loss, metrics `cross_entropy`, `token_accuracy` and, of a z-loss, `log_z_squared`; and the sum of the weights, by which
      the sums were divided. Without any weight all of these are 0.
    """
    x, targets, weights = x[:, :-1], tokens[:, 1:], weights[:, 1:].astype(jnp.float32)

    def sums(part: tuple[Array, Array, Array]) -> Float[Array, "B 4"]:
        x, targets, weights = part
        logits = head(x)
        log_p, log_z = token_log_p(logits, targets)
        right = logits.argmax(-1) == targets
        return jnp.stack([-weights * log_p, weights * log_z**2, weights * right, weights], axis=-1).sum(1)

    count = targets.shape[1]
    if chunk and chunk < count:
        parts = -(-count // chunk)
        padded = lambda a: jnp.pad(a, [(0, 0), (0, parts * chunk - count), *[(0, 0)] * (a.ndim - 2)])
        split = lambda a: jnp.moveaxis(padded(a).reshape(len(a), parts, chunk, *a.shape[2:]), 1, 0)
        each = jax.lax.map(jax.checkpoint(sums), (split(x), split(targets), split(weights))).sum(0)
    else:
        each = sums((x, targets, weights))
    # All four in one sum over the rows, which are spread over devices: a sum of the weights by itself would wait for nothing, and
    # the CPU's collectives deadlock where some devices come to one first and some to another.
    *total, weight = each.sum(0)
    entropy, squared, right = (x / jnp.where(weight > 0, weight, 1.0) for x in total)
    metrics = {"cross_entropy": entropy, "token_accuracy": right}
    if not z_loss:
        return entropy, metrics, weight
    return entropy + z_loss * squared, {**metrics, "log_z_squared": squared}, weight
