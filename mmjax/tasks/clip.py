"""Contrastive pretraining of an image and a text tower: CLIP (Radford et al. 2021), SigLIP (Zhai et al. 2023), LiT (Zhai et al. 2022) and
distillation from a teacher CLIP (Vasu et al. 2024).

Config `model`: `size` (pixels), `channels`, what `models.clip.build` takes, and the fields of `Options`; `models.clip.VARIANTS`
has the published models.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from mmjax.core import rng, sharding
from mmjax.core.config import get, kwargs_for
from mmjax.core.errors import UserError, suggest
from mmjax.core.types import Array, Batch, Key, Params, Task
from mmjax.layers import split_axes
from mmjax.models.clip import CLIP, build, normalise
from mmjax.objectives import clip_distillation, contrastive, sigmoid
from mmjax.objectives.ring import ways

MAX_LOG_SCALE = math.log(100.0)  # section 2.5: more is unstable
LOSSES = ("info_nce", "sigmoid")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Distillation:
    """A teacher whose embeddings come with the batch, as `teacher_image` and `teacher_text`, of any length.

    Attributes:
      width: of the teacher's embeddings.
      scale: the factor on the teacher's cosines.
      weight: of the term beside InfoNCE.
    """

    width: int
    scale: float = 100.0
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Options:
    """What is trained and how, beside the model.

    Attributes:
      loss: "info_nce" or "sigmoid", which needs the model's `bias`.
      form: how the batch's pairs are gone through; one of `contrastive.FORMS`. The loss is the same.
      tile: of form "ring", the most pairs on a side of a tile.
      lock: "image" or "text": that tower is not trained and drops nothing out (LiT). Its projection, if it has one, is trained.
      lock_dtype: what the locked tower computes in, if not in config `dtype`.
      encode_chunk: encode so many examples of the batch at a time, over all devices, and again in the backward pass; 0 for all at once.
      distill: fields of `Distillation`; None for none.
    """

    loss: str = "info_nce"
    form: str = "dense"
    tile: int = contrastive.TILE
    lock: str = ""
    lock_dtype: str = ""
    encode_chunk: int = 0
    distill: Distillation | None = None


def make(config: ConfigDict) -> Task:
    """Batch: `image` float32[B, size, size, channels], `tokens` int32[B, length]; with `distill` also the teacher's embeddings.

    A batch's loss compares its examples with each other: the mean over microbatches of their losses is another loss, with fewer negatives.
    So there is no accumulation; `encode_chunk` gives the large batch's own gradient in the memory of a small one.
    """
    m = config.model
    options, model = parse(m, jnp.dtype(config.dtype))
    check(options, model, config.batch_size)
    size, channels = get(m, "size", "config.model"), get(m, "channels", "config.model")
    struct = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)
    spec = {"image": struct(size, size, channels), "tokens": struct(model.text.length, dtype=jnp.int32)}
    if options.distill:
        spec |= {f"teacher_{k}": struct(options.distill.width) for k in ("image", "text")}
    boxed = lambda key: model.init(key, *(jnp.zeros((1, *spec[k].shape[1:]), spec[k].dtype) for k in ("image", "tokens")))["params"]
    _, axes = split_axes(jax.eval_shape(boxed, jax.random.key(0)))

    def apply(params, *args, method):
        return model.apply({"params": params}, *args, method=method)

    def loss(params, batch, key, step):
        images, texts, state = embed(model, options, params, batch, rng.per_example(key, batch["_index"]))
        value, metrics = objective(options, params, images, texts, batch)
        metrics["logit_scale"] = jnp.exp(params["logit_scale"])
        if model.bias is not None:
            metrics["logit_bias"] = params["logit_bias"]
        return value, {"metrics": metrics, "state": state}

    def clamp(params, aux, step):
        return {**params, "logit_scale": jnp.clip(params["logit_scale"], 0.0, MAX_LOG_SCALE)}

    locked = (f"{options.lock}/.*",) if options.lock else ()
    return Task(
        init=lambda key: split_axes(boxed(key))[0],
        axes=axes,
        loss=loss,
        batch_spec=spec,
        predict={
            "encode_image": lambda params, images: apply(params, images, method="encode_image"),
            "encode_text": lambda params, tokens: apply(params, tokens, method="encode_text"),
            "token_features": lambda params, tokens: apply(params, tokens, method="token_features"),
            "token_mask": lambda params, tokens: apply(params, tokens, method="token_mask"),
            "image_features": lambda params, images: apply(params, images, method="image_features"),
            "logit_scale": lambda params: jnp.exp(params["logit_scale"]),
        },
        frozen=locked,
        state=() if options.lock == "image" else model.image.state_paths,
        **({"post_update": clamp} if options.loss == "info_nce" else {}),  # SigLIP's is free
        can_accumulate=False,
        limits={"tokens": model.text.vocab},
    )


def parse(m: ConfigDict, dtype: DTypeLike) -> tuple[Options, CLIP]:
    """Config `model` as what it says of training and of the model.

    Raises:
      UserError: a key that is neither's.
    """
    own = {f.name for f in dataclasses.fields(Options)}
    known = own | {f.name for f in dataclasses.fields(CLIP)} - {"parent", "name"} | {"size", "channels"}
    for key in m:
        if key not in known:
            raise UserError(f"config.model has an unknown key '{key}'{suggest(key, known)}")
    given = {k: m[k] for k in m if k in own}
    if given.get("distill") is not None:
        get(given["distill"], "width", "config.model.distill")
        given["distill"] = Distillation(**kwargs_for(Distillation, given["distill"], "config.model.distill"))
    options, model = Options(**given), build({k: m[k] for k in m if k not in own}, dtype)
    if options.lock in ("image", "text") and options.lock_dtype in DTYPES:
        model = model.clone(**{options.lock: getattr(model, options.lock).clone(dtype=jnp.dtype(options.lock_dtype))})
    return options, model


def check(options: Options, model: CLIP, batch_size: int) -> None:
    """Raises `UserError` for options that do not fit each other, the model or the batch."""
    if options.loss not in LOSSES:
        raise UserError(f"config.model.loss is {options.loss!r}{suggest(options.loss, LOSSES)}")
    if options.loss == "sigmoid" and model.bias is None:
        raise UserError("config.model.loss is 'sigmoid', which needs a bias: set config.model.bias (SigLIP starts at -10)")
    if options.loss == "sigmoid" and options.distill:
        raise UserError("config.model.distill goes with loss 'info_nce' only")
    contrastive.check_form(options.form, options.tile)
    by_loss = {"sigmoid": ("the sigmoid loss", sigmoid.FORMS), "info_nce": ("InfoNCE", contrastive.FORMS)}
    kind, forms = ("distillation", clip_distillation.FORMS) if options.distill else by_loss[options.loss]
    if options.form not in forms:
        raise UserError(f"config.model.form is {options.form!r}, which {kind} does not have; take one of {', '.join(forms)}")
    if options.lock not in ("", "image", "text"):
        raise UserError(f"config.model.lock is {options.lock!r}{suggest(options.lock, ('image', 'text'))}; or '' for neither")
    if options.lock_dtype not in ("", *DTYPES):
        raise UserError(f"config.model.lock_dtype is {options.lock_dtype!r}; expected 'float32', 'bfloat16' or '' for config.dtype")
    if options.encode_chunk < 0 or (options.encode_chunk and batch_size % options.encode_chunk):
        raise UserError(
            f"config.model.encode_chunk is {options.encode_chunk}; expected a divisor of batch_size {batch_size}, or 0 for all at once"
        )
    moving = model.image.state_paths and not getattr(model.image, "frozen_statistics", False) and options.lock != "image"
    if options.encode_chunk and moving:
        raise UserError(
            "config.model.encode_chunk: the image tower's batch statistics would be those of a chunk; "
            "set image.frozen_statistics, lock the tower, or encode_chunk=0"
        )


def objective(options: Options, params: Params, images: Array, texts: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
    """Loss and metrics of unit-norm embeddings."""
    how = {"form": options.form, "tile": options.tile}
    args = (images, texts, params["logit_scale"])
    if options.loss == "sigmoid":
        return sigmoid.sigmoid(*args, params["logit_bias"], **how)
    if options.distill is None:
        return contrastive.info_nce(*args, **how)
    teacher = normalise(batch["teacher_image"]), normalise(batch["teacher_text"]), jnp.log(jnp.float32(options.distill.scale))
    return clip_distillation.distilled_info_nce(*args, *teacher, weight=options.distill.weight, **how)


def embed(model: CLIP, options: Options, params: Params, batch: Batch, keys: Key) -> tuple[Array, Array, Params]:
    """Unit-norm embeddings of the batch's images and texts, and the new batch statistics."""

    def encode(x):
        # What `CLIP.__call__` does, but that a locked tower gets no key: nothing is dropped out, batch statistics are the running ones.
        key = lambda tower, use: None if options.lock == tower else rng.fold(x["keys"], use)
        run = functools.partial(model.apply, {"params": params}, mutable=["state"])
        images, new = run(x["image"], key("image", 0), method="encode_image")
        texts, _ = run(x["tokens"], key("text", 1), method="encode_text")
        return normalise(images), normalise(texts), new.get("state", {})

    x = {"image": batch["image"], "tokens": batch["tokens"], "keys": keys}
    return in_chunks(encode, x, options.encode_chunk) if options.encode_chunk else encode(x)


def in_chunks(encode: Callable, batch: Any, chunk: int) -> Any:
    """`encode(batch)` for a function of each example alone, `chunk` examples at a time; the backward pass encodes every chunk again.

    Memory is that of a chunk's activations, work a third more. The gradient is the whole batch's: what comes out is all there is to be
    compared, and each chunk's share of a parameter's gradient is added up in the backward pass.

    Raises:
      UserError: a chunk that does not split over the devices.
    """
    mesh, axes = sharding.splits("batch")
    if chunk % ways(mesh, axes):
        raise UserError(f"config.model.encode_chunk is {chunk}, which does not split over {ways(mesh, axes)} devices; take a multiple")
    total = jax.tree.leaves(batch)[0].shape[0]
    # Chunk i takes rows i, i + n, ...: every device then holds its share of every chunk and no example moves.
    split = lambda x: x.reshape(chunk, total // chunk, *x.shape[1:]).swapaxes(0, 1)
    join = lambda x: x.swapaxes(0, 1).reshape(total, *x.shape[2:])
    return jax.tree.map(join, lax.map(jax.checkpoint(encode, prevent_cse=False), jax.tree.map(split, batch)))
