"""The sigmoid loss between images and texts (SigLIP): every pair of the global batch is a yes-or-no question of its own.

B pairs over all devices, E embedding.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mmjax.core.errors import UserError
from mmjax.core.sharding import AnyMesh
from mmjax.objectives.contrastive import TILE, as_factors, check_form, logits_of
from mmjax.objectives.ring import NEGATIVE, Reduction, State, matrix_sums

FORMS = ("dense", "ring")


def sigmoid(
    images: Float[Array, "B E"],
    texts: Float[Array, "B E"],
    log_scale: Float[Array, ""],
    bias: Float[Array, ""],
    form: str = "dense",
    tile: int = TILE,
    mesh: AnyMesh | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """-sum_ij log sigmoid(z_ij (exp(log_scale) x_i . y_j + bias)) / B, with z = 1 for right pairs and -1 for wrong ones (Zhai et al. 2023,
    section 3.2). Nothing but a sum crosses rows or columns, so the ring (their figure 1) needs no state of columns.

    Args:
      images, texts: unit-norm embeddings; pair i is (images[i], texts[i]).
      form, tile, mesh: as `contrastive.info_nce`, without "gathered", which saves nothing here.

    Returns:
      The loss in nats an image, and the in-batch accuracy of images.

    Raises:
      UserError: an unknown form, or a tile below 1.
    """
    check_form(form, tile)
    factors = as_factors(images, texts, log_scale, bias)
    if form == "ring":
        rows, _, positive = matrix_sums(SOFTPLUS, factors, tile=tile, mesh=mesh)
        wrong, best = rows["sum"], rows["max"]
    elif form == "dense":
        logits = logits_of(factors)
        wrong, positive, best = jax.nn.softplus(logits).sum(1), jnp.diagonal(logits), lax.stop_gradient(logits.max(1))
    else:
        raise UserError(f"the sigmoid loss has no form {form!r}; take one of {', '.join(FORMS)}")
    # -log sigmoid(-l) = softplus(l) for all pairs; for the right one -log sigmoid(l) = softplus(l) - l.
    return (wrong - positive).mean(), {"batch_accuracy": (positive >= best).mean(dtype=wrong.dtype)}


def _update(logits: Array, _, rows: State, columns: State) -> tuple[State, State]:
    rows = {"max": jnp.maximum(rows["max"], logits.max(1)), "sum": rows["sum"] + jax.nn.softplus(logits).sum(1)}
    return rows, columns


SOFTPLUS = Reduction(
    start=lambda zeros: ({"max": zeros + NEGATIVE, "sum": zeros}, {}),
    update=_update,
    finish=lambda rows, columns: (rows, columns),
    slope=lambda logits, _, results, cotangents: cotangents[0]["sum"][:, None] * jax.nn.sigmoid(logits),
)
