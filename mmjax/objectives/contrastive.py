"""InfoNCE between images and texts: one loss, three ways to compute it.

- "dense": the B x B logits, split over the mesh by rows as the compiler sees fit. For batches whose logits fit easily.
- "gathered": every device gathers all texts and holds its b x B rows; columns are finished by sums over devices.
- "ring": the texts travel, the logits are made tile by tile and never held (objectives/ring.py): O(b E + tile^2) memory a device.

All three give the value and the gradient of the loss over the global batch, log_scale included.

B pairs over all devices, b on one, E embedding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import AnyMesh, constrain, splits
from mmjax.objectives.ring import NEGATIVE, Factors, Reduction, State, matrix_sums, pad_rows, ways

FORMS = ("dense", "gathered", "ring")
TILE = 1024  # pairs on a side of a tile: 4 MiB of float32


class Sums(NamedTuple):
    """What InfoNCE needs of a B x B matrix of logits."""

    rows: Float[Array, "B"]  # log-sum-exp over texts
    columns: Float[Array, "B"]  # and over images
    positive: Float[Array, "B"]  # the logit of the right pair
    best: Float[Array, "B"]  # the largest of a row


def info_nce(
    images: Float[Array, "B E"],
    texts: Float[Array, "B E"],
    log_scale: Float[Array, ""],
    form: str = "dense",
    tile: int = TILE,
    mesh: AnyMesh | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Symmetric InfoNCE over the global batch (Radford et al. 2021, figure 3; van den Oord et al. 2018, equation 4).

    Args:
      images, texts: unit-norm embeddings; pair i is (images[i], texts[i]).
      log_scale: the cosines are multiplied by exp(log_scale).
      form: one of `FORMS`.
      tile: of the ring, the most pairs on a side of a tile.
      mesh: whose axes split the batch; default: the one in use (`core.sharding.use`), without one a single device.

    Returns:
      Mean of the image-to-text and text-to-image cross-entropies in nats, and in-batch accuracies each way.

    Raises:
      UserError: an unknown form, or a tile below 1.
    """
    check_form(form, tile)
    factors = as_factors(images, texts, log_scale)
    if form == "ring":
        rows, columns, positive = matrix_sums(LOG_SUM_EXP, factors, tile=tile, mesh=mesh)
        sums = Sums(rows["lse"], columns["lse"], positive, rows["max"])
    else:
        sums = sums_of(logits_of(factors)) if form == "dense" else _gathered(factors, mesh)
    return info_nce_of(sums)


def info_nce_of(sums: Sums) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss and its metrics from the sums."""
    to_text, to_image = (sums.rows - sums.positive).mean(), (sums.columns - sums.positive).mean()
    metrics = {
        "image_to_text": to_text,
        "text_to_image": to_image,
        "batch_accuracy": (sums.positive >= sums.best).mean(dtype=to_text.dtype),
    }
    return (to_text + to_image) / 2, metrics


def check_form(form: str, tile: int) -> None:
    """Raises `UserError` for what no loss here takes."""
    if form not in FORMS:
        raise UserError(f"form of the contrastive loss is {form!r}{suggest(form, FORMS)}")
    if tile < 1:
        raise UserError(f"tile of the contrastive loss is {tile}; expected a positive number of pairs, for example {TILE}")


def as_factors(images: Array, texts: Array, log_scale: Array, bias: Array | None = None) -> Factors:
    """The logits in factors, in float32 or wider."""
    wide = lambda x: None if x is None else x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return Factors(wide(images), wide(texts), jnp.exp(wide(log_scale)), wide(bias))


def logits_of(factors: Factors) -> Float[Array, "B B"]:
    """The whole matrix, its rows split over the mesh."""
    logits = factors.scale * jnp.matmul(factors.images, factors.texts.T, precision=lax.Precision.HIGHEST)
    return constrain(logits if factors.bias is None else logits + factors.bias, "batch", None)


def sums_of(logits: Float[Array, "B B"]) -> Sums:
    """Of the whole matrix."""
    best = lax.stop_gradient(logits.max(1))
    return Sums(jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0), jnp.diagonal(logits), best)


def _gathered(factors: Factors, mesh: AnyMesh | None) -> Sums:
    """The gather's transpose sends every device its texts' share of the gradient, so that the gradient is exact."""
    mesh, axes = splits("batch", mesh)
    if not axes:
        return sums_of(logits_of(factors))
    total, width = factors.images.shape[0], ways(mesh, axes)
    images, texts = pad_rows(factors.images, width), pad_rows(factors.texts, width)
    split, whole = PartitionSpec(axes), PartitionSpec()

    def local(images, texts, scale):
        b = images.shape[0]
        first = lax.axis_index(axes) * b
        gathered = lax.all_gather(texts, axes, tiled=True)
        logits = scale * jnp.matmul(images, gathered.T, precision=lax.Precision.HIGHEST)
        if b * width != total:
            exists = (first + jnp.arange(b) < total)[:, None] & (jnp.arange(b * width) < total)[None, :]
            logits = jnp.where(exists, logits, NEGATIVE)
        best = lax.stop_gradient(logits)
        ceiling = lax.pmax(best.max(0), axes)
        columns = jnp.log(lax.psum_scatter(jnp.exp(logits - ceiling[None, :]).sum(0), axes, tiled=True))
        columns = columns + lax.dynamic_slice_in_dim(ceiling, first, b)
        positive = jnp.take_along_axis(logits, first + jnp.arange(b)[:, None], axis=1)[:, 0]
        return Sums(jax.nn.logsumexp(logits, axis=1), columns, positive, best.max(1))

    sums = jax.shard_map(local, mesh=mesh, in_specs=(split, split, whole), out_specs=split)(images, texts, factors.scale)
    return jax.tree.map(lambda x: x[:total], sums)


# --- the ring's reduction ------------------------------------------------------------------------------------------------


def grow(state: State, logits: Array, axis: int) -> State:
    """One more tile into a running maximum and the sum of exponentials below it (Milakov & Gimelshein 2018, algorithm 3)."""
    ceiling = jnp.maximum(state["max"], logits.max(axis))
    below = jnp.exp(logits - jnp.expand_dims(ceiling, axis)).sum(axis)
    return {"max": ceiling, "sum": state["sum"] * jnp.exp(state["max"] - ceiling) + below}


def finish(state: State) -> State:
    """The log-sum-exp, and the maximum."""
    return {"lse": state["max"] + jnp.log(state["sum"]), "max": state["max"]}


def soft(logits: Array, rows: State, columns: State, d_rows: State, d_columns: State) -> Array:
    """The derivative of log-sum-exps by their logits, times what they weigh: softmax over rows and over columns."""
    by_row = d_rows["lse"][:, None] * jnp.exp(logits - rows["lse"][:, None])
    return by_row + d_columns["lse"][None, :] * jnp.exp(logits - columns["lse"][None, :])


def _start(zeros: Array) -> tuple[State, State]:
    empty = {"max": zeros + NEGATIVE, "sum": zeros}
    return empty, empty


LOG_SUM_EXP = Reduction(
    start=_start,
    update=lambda logits, _, rows, columns: (grow(rows, logits, 1), grow(columns, logits, 0)),
    finish=lambda rows, columns: (finish(rows), finish(columns)),
    slope=lambda logits, _, results, cotangents: soft(logits, *results, *cotangents),
)
