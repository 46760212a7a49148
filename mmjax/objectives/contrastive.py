"""Contrastive losses on embeddings.

B pairs over all devices, E embedding.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.sharding import constrain


def info_nce(
    images: Float[Array, "B E"], texts: Float[Array, "B E"], log_scale: Float[Array, ""]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Symmetric InfoNCE over the global batch (Radford et al. 2021, figure 3; van den Oord et al. 2018, equation 4).

    Args:
      images, texts: unit-norm embeddings; pair i is (images[i], texts[i]).
      log_scale: the cosines are multiplied by exp(log_scale).

    Returns:
      Mean of the image-to-text and text-to-image cross-entropies in nats, and in-batch accuracies each way.
    """
    logits = jnp.exp(log_scale) * jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)
    logits = constrain(logits, "batch", None)
    positive = jnp.diagonal(logits)
    rows = jax.nn.logsumexp(logits, axis=1) - positive
    columns = jax.nn.logsumexp(logits, axis=0) - positive
    metrics = {
        "image_to_text": rows.mean(),
        "text_to_image": columns.mean(),
        "batch_accuracy": (positive >= logits.max(1)).mean(),
    }
    return (rows.mean() + columns.mean()) / 2, metrics
