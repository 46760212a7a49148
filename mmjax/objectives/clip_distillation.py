"""InfoNCE with a teacher CLIP's opinion of which texts fit which images.

B pairs over all devices, E embedding, T the teacher's embedding.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.errors import UserError
from mmjax.core.sharding import AnyMesh
from mmjax.objectives import contrastive
from mmjax.objectives.contrastive import TILE, as_factors, check_form, finish, grow, logits_of, soft
from mmjax.objectives.ring import NEGATIVE, Factors, Reduction, State, matrix_sums

FORMS = ("dense", "ring")


def distilled_info_nce(
    images: Float[Array, "B E"],
    texts: Float[Array, "B E"],
    log_scale: Float[Array, ""],
    teacher_images: Float[Array, "B T"],
    teacher_texts: Float[Array, "B T"],
    teacher_log_scale: Float[Array, ""],
    weight: float = 1.0,
    form: str = "dense",
    tile: int = TILE,
    mesh: AnyMesh | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """InfoNCE + weight * the mean of the cross-entropies of the student's softmax over texts, and over images, against the teacher's.

    The contrastive relational distillation of Vasu et al. 2024 (MobileCLIP, section 3.2), up to the teacher's entropy, which is constant.

    Args:
      images, texts, log_scale: the student's, as `contrastive.info_nce`.
      teacher_images, teacher_texts: the teacher's unit-norm embeddings of the same pairs; constants.
      form, tile, mesh: as `contrastive.info_nce`, without "gathered".

    Raises:
      UserError: an unknown form, or a tile below 1.
    """
    check_form(form, tile)
    if form not in FORMS:
        raise UserError(f"distillation has no form {form!r}; take one of {', '.join(FORMS)}")
    student = as_factors(images, texts, log_scale)
    teacher = jax.lax.stop_gradient(as_factors(teacher_images, teacher_texts, teacher_log_scale))
    sums, distance = _ring(student, teacher, tile, mesh) if form == "ring" else _dense(student, teacher)
    loss, metrics = contrastive.info_nce_of(sums)
    return loss + weight * distance, {**metrics, "distillation": distance}


def _dense(student: Factors, teacher: Factors) -> tuple[contrastive.Sums, Array]:
    logits, wanted = logits_of(student), logits_of(teacher)
    entropy = lambda axis: -(jax.nn.softmax(wanted, axis) * jax.nn.log_softmax(logits, axis)).sum(axis).mean()
    return contrastive.sums_of(logits), (entropy(1) + entropy(0)) / 2


def _ring(student: Factors, teacher: Factors, tile: int, mesh: AnyMesh | None) -> tuple[contrastive.Sums, Array]:
    rows, columns, positive = matrix_sums(EXPECTED, student, teacher, tile=tile, mesh=mesh)
    entropy = lambda side: (side["lse"] - side["expected"]).mean()
    return contrastive.Sums(rows["lse"], columns["lse"], positive, rows["max"]), (entropy(rows) + entropy(columns)) / 2


# --- the ring's reduction: beside the student's log-sum-exp, the mean of its logits under the teacher's softmax ------------


def _start(zeros: Array) -> tuple[State, State]:
    side = {"max": zeros + NEGATIVE, "sum": zeros}
    side = {"student": side, "teacher": side, "weighted": zeros}
    return side, side


def _grow(state: State, logits: Array, wanted: Array, axis: int) -> State:
    teacher = grow(state["teacher"], wanted, axis)
    p = jnp.exp(wanted - jnp.expand_dims(teacher["max"], axis))
    decay = jnp.exp(state["teacher"]["max"] - teacher["max"])
    weighted = state["weighted"] * decay + (p * logits).sum(axis)
    return {"student": grow(state["student"], logits, axis), "teacher": teacher, "weighted": weighted}


def _finish(state: State) -> State:
    teacher = finish(state["teacher"])["lse"]
    return {**finish(state["student"]), "teacher": teacher, "expected": state["weighted"] / state["teacher"]["sum"]}


def _slope(logits: Array, wanted: Array, results: tuple[State, State], cotangents: tuple[State, State]) -> Array:
    (rows, columns), (d_rows, d_columns) = results, cotangents
    by_row = d_rows["expected"][:, None] * jnp.exp(wanted - rows["teacher"][:, None])
    by_column = d_columns["expected"][None, :] * jnp.exp(wanted - columns["teacher"][None, :])
    return soft(logits, rows, columns, d_rows, d_columns) + by_row + by_column


EXPECTED = Reduction(
    start=_start,
    update=lambda logits, wanted, rows, columns: (_grow(rows, logits, wanted, 1), _grow(columns, logits, wanted, 0)),
    finish=lambda rows, columns: (_finish(rows), _finish(columns)),
    slope=_slope,
)
