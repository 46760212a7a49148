"""Language models of text alone: the next token, over rows of one text or of several.

Config `model`: `lm`, a published `variant` of models.lm and fields that differ, and the fields of `Rows`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmjax.convert.language import predict
from mmjax.core import rng
from mmjax.core.config import get, kwargs_for
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Task
from mmjax.layers import split_axes
from mmjax.models import lm
from mmjax.models.lm import LanguageModel
from mmjax.objectives.next_token import next_token


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a row of a batch holds, and what of it is learnt.

    Attributes:
      length: tokens of a row.
      packed: rows of several texts (data.packing), which do not see each other: a batch also holds `segments` and `positions`.
      loss_mask: a batch also holds `loss_mask`, 1 for the tokens that are to be said.
      end: id of the token that ends a text: what stands after the first one that is not the row's first token is filling. None where
        rows are full, packed, or have a loss mask.
      z_loss: factor on log(Z)^2.
      chunk: places whose logits are made at a time; 0 for all. See objectives.next_token.
    """

    length: int
    packed: bool = False
    loss_mask: bool = False
    end: int | None = None
    z_loss: float = 0.0
    chunk: int = 0


def make(config: ConfigDict) -> Task:
    """Batch: `tokens` int32[B, length]; and as `Rows` says `segments` and `positions` int32[B, length], `loss_mask` float32[B, length]."""
    rows, model = parse(config)
    names = {"tokens": jnp.int32, **(dict.fromkeys(("segments", "positions"), jnp.int32) if rows.packed else {})}
    names |= {"loss_mask": jnp.float32} if rows.loss_mask else {}
    boxed = lambda key: {"lm": model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]}
    _, axes = split_axes(jax.eval_shape(boxed, jax.random.key(0)))

    def loss(params, batch, key, step):
        own = {"params": params["lm"]}
        where = {name: batch[name] for name in ("segments", "positions") if rows.packed}
        keys = rng.per_example(key, batch["_index"]) if model.dropout else None
        x = model.apply(own, batch["tokens"], **where, keys=keys, method="hidden")
        head = lambda x: model.apply(own, x, method="head")
        value, metrics, weight = next_token(head, x, batch["tokens"], said(batch, rows), z_loss=rows.z_loss, chunk=rows.chunk)
        return value, {"metrics": metrics, "weight": weight}

    return Task(
        init=lambda key: split_axes(boxed(key))[0],
        axes=axes,
        loss=loss,
        batch_spec={name: jax.ShapeDtypeStruct((config.batch_size, rows.length), dtype) for name, dtype in names.items()},
        predict=predict(model),
        limits={"tokens": model.vocab} | ({"positions": model.length} if rows.packed else {}),
    )


def parse(config: ConfigDict) -> tuple[Rows, LanguageModel]:
    """Config `model` as what it says.

    Raises:
      UserError: a key that is nobody's, or numbers that do not fit each other.
    """
    where = "config.model"
    model = lm.build(get(config.model, "lm", where), jnp.dtype(config.dtype), f"{where}.lm")
    given = {key: value for key, value in config.model.items() if key != "lm"}
    get(given, "length", where)
    rows = Rows(**kwargs_for(Rows, given, where))
    if not 2 <= rows.length <= model.length:
        raise UserError(f"{where}.length is {rows.length}, expected 2 to the {model.length} tokens that the language model sees")
    if rows.end is not None and (rows.packed or rows.loss_mask or not 0 <= rows.end < model.vocab):
        raise UserError(
            f"{where}.end is {rows.end}, expected an id of the vocabulary of {model.vocab}, of rows without packed and loss_mask"
        )
    if rows.z_loss < 0 or rows.chunk < 0:
        raise UserError(f"{where}: z_loss and chunk are 0 or more, got {rows.z_loss} and {rows.chunk}")
    return rows, model


def said(batch: Batch, rows: Rows) -> Array:
    """float32[B, L]: which tokens are to be predicted from those before them."""
    tokens = batch["tokens"]
    out = jnp.ones(tokens.shape, jnp.float32)
    if rows.loss_mask:
        out = out * batch["loss_mask"]
    if rows.packed:  # the first token of a text follows from nothing
        segments = batch["segments"]
        same = segments == jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
        out = out * (same & (segments > 0))
    if rows.end is not None:
        ends = (tokens == rows.end).at[:, 0].set(False).astype(jnp.int32)
        out = out * (jnp.cumsum(ends, axis=1) == ends)  # none before
    return out
