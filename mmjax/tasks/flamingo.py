"""Flamingo (Alayrac et al. 2022) and models of its form: pictures and videos between words, read by a language model that stays as it is.

Config `model`: what `models.flamingo.build` takes, the fields of `Options`, and `streams`, the fields of a `Stream` for each part of the
batch: every data set has its own shapes and its weight in the loss, and one step takes the gradients of all of them. Ablations are
fields: `xattn.gate` "none" (no tanh gate), `xattn.form` "vanilla" (plain cross-attention), `attend` "previous" (all images before a
token), `resampler.type` "mlp", `train` with "lm" (the language model learns too), `streams.NAME.p_next`.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmjax.convert.flamingo import predict
from mmjax.core import rng
from mmjax.core.config import get, kwargs_for
from mmjax.core.errors import UserError, suggest
from mmjax.core.types import Array, Batch, Key, Params, Task
from mmjax.layers import split_axes
from mmjax.models import flamingo
from mmjax.models.flamingo import Flamingo, check_images
from mmjax.objectives.next_token import next_token
from mmjax.tasks.weights import reader

TOWERS = ("vision", "lm")  # come from elsewhere and are frozen
ROOTS = {"vision": "image", "lm": "lm"}  # what holds them in other checkpoints


@dataclasses.dataclass(frozen=True)
class Options:
    """Beside the model.

    Attributes:
      weights: path of a workdir or of published weights that a fresh run takes `vision` or `lm` from, names of TOWERS; "" for none.
      train: those of TOWERS that are trained too.
      frozen_dtype: of the parameters of towers that are not.
      z_loss, chunk: see objectives.next_token.
    """

    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    train: tuple[str, ...] = ()
    frozen_dtype: str = "float32"
    z_loss: float | int = 0.0
    chunk: int = 0


@dataclasses.dataclass(frozen=True)
class Stream:
    """A data set's part of the batch.

    Attributes:
      batch: rows a step; those of all streams are config.batch_size.
      length, images, frames: tokens and images of a row, frames of an image, as transform interleave makes them.
      weight: lambda, on its mean negative log-likelihood a token (section 2.4).
      p_next: how probable it is that all of a document's text sees the next image instead of the one before (appendix A.3.2).
      packed: rows hold several documents (data.packing), which do not see each other.
    """

    batch: int
    length: int
    images: int = 1
    frames: int = 1
    weight: float | int = 1.0
    p_next: float | int = 0.0
    packed: bool = False


def make(config: ConfigDict) -> Task:
    """Batch, of every stream: `tokens`, `segments` int32[B, L], `loss_mask` float32[B, L], `pixels` float32[B, N, F, H, W, C], `images`
    int32[B].

    Over microbatches the loss is the mean of theirs, as in published code: each divides by its own number of tokens.
    """
    options, streams, model = parse(config)
    boxed = lambda key: _cast(model.init(key), options)
    _, axes = split_axes(jax.eval_shape(boxed, jax.random.key(0)))

    def loss(params, batch, key, step):
        total, labelled, metrics = jnp.float32(0), jnp.float32(0), {}
        for name, stream in streams.items():
            mean, own, count = part_loss(model, stream, options, params, batch[name], key)
            total, labelled = total + stream.weight * mean, labelled + count
            metrics |= {f"{key}_{name}": value for key, value in {**own, "tokens": count}.items()}
        return total, {"metrics": metrics, "weight": (labelled > 0).astype(jnp.float32)}

    return Task(
        init=lambda key: split_axes(boxed(key))[0],
        axes=axes,
        loss=loss,
        batch_spec={name: _spec(stream, model) for name, stream in streams.items()},
        predict=predict(model),
        frozen=tuple(f"{name}/.*" for name in TOWERS if name not in options.train),
        limits={f"{name}/tokens": model.lm.vocab for name in streams},
        check=lambda batch: _check_batch(batch, model),
        weights=reader(options.weights, ROOTS, lambda: split_axes(boxed(jax.random.key(0)))[0]),
    )


def parse(config: ConfigDict) -> tuple[Options, dict[str, Stream], Flamingo]:
    """Config `model` as what it says.

    Raises:
      UserError: a key that is nobody's, or numbers that do not fit each other.
    """
    m, where = dict(config.model.items()), "config.model"
    own = {f.name for f in dataclasses.fields(Options)}
    given = {"weights": {}} | {k: m.pop(k) for k in own & set(m)}
    options = Options(**{**given, "weights": dict(given["weights"])})
    given = m.pop("streams", {})
    model = flamingo.build(m, jnp.dtype(config.dtype), where)
    for key, names in (("train", options.train), ("weights", options.weights)):
        for name in names:
            if name not in TOWERS:
                raise UserError(f"{where}.{key} names {name!r}{suggest(name, TOWERS)}")
    if options.frozen_dtype not in ("float32", "bfloat16"):
        raise UserError(f"{where}.frozen_dtype is {options.frozen_dtype!r}; expected 'float32' or 'bfloat16'")
    if not len(given):
        raise UserError(f"{where}.streams is empty; name the parts of the batch, {{'pairs': {{'batch': 64, 'length': 32}}}}")
    streams = {}
    for name, fields in given.items():
        for key in ("batch", "length"):
            get(fields, key, f"{where}.streams.{name}")
        streams[name] = _checked(Stream(**kwargs_for(Stream, fields, f"{where}.streams.{name}")), f"{where}.streams.{name}", model)
    rows = sum(stream.batch for stream in streams.values())
    if rows != config.batch_size:
        raise UserError(f"batch_size is {config.batch_size}, and the streams have {rows} rows a step together; set it to {rows}")
    return options, streams, model


def _checked(stream: Stream, where: str, model: Flamingo) -> Stream:
    context = model.lm.length if model.lm.positions == "learned" else None
    if min(stream.batch, stream.images, stream.frames) < 1 or stream.length < 2 or stream.weight <= 0 or not 0 <= stream.p_next <= 1:
        raise UserError(
            f"{where}: batch, images and frames are at least 1, length 2, weight is positive and p_next 0 to 1, got "
            f"{dataclasses.asdict(stream)}"
        )
    if context is not None and stream.length > context:
        raise UserError(f"{where}.length is {stream.length}, and the language model sees {context} tokens")
    return stream


def _spec(stream: Stream, model: Flamingo) -> dict[str, jax.ShapeDtypeStruct]:
    struct = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct((stream.batch, *shape), dtype)
    return {
        "tokens": struct(stream.length),
        "segments": struct(stream.length),
        "loss_mask": struct(stream.length, dtype=jnp.float32),
        "pixels": struct(stream.images, stream.frames, model.size, model.size, model.channels, dtype=jnp.float32),
        "images": struct(),
    }


def _check_batch(batch: Batch, model: Flamingo) -> None:
    """Raises `UserError` if pictures do not stand at tokens: with another id for them text would never see any."""
    for name, part in batch.items():
        names = [f"stream {name!r}, row {row} of the first batch" for row in range(len(part["tokens"]))]
        check_images(part["tokens"], part["pixels"], part["images"], model.image_token, names)


def _cast(boxed: Params, options: Options) -> Params:
    """Towers that are not trained in `frozen_dtype`."""
    cast = lambda t: jax.tree.map(lambda x: x.astype(options.frozen_dtype), t)
    return {name: cast(part) if name in TOWERS and name not in options.train else part for name, part in boxed.items()}


def part_loss(
    model: Flamingo, stream: Stream, options: Options, params: Params, batch: Batch, key: Key
) -> tuple[Array, dict[str, Array], Array]:
    """Of one stream: the mean of -log p over the tokens that `loss_mask` names, metrics, and how many tokens these are."""
    keys = rng.per_example(key, batch["_index"])
    following = None
    if stream.p_next:
        following = jax.vmap(lambda k: jax.random.bernoulli(k, stream.p_next))(rng.fold(keys, 0))
    tokens, segments = batch["tokens"], batch["segments"]
    # Where a model knows documents by their `end_token`, pictures alone are kept apart (IDEFICS).
    packed = {"segments": segments, "positions": within(segments)} if stream.packed and model.end_token is None else {}
    x = model.hidden(params, tokens, batch["pixels"], batch["images"], following=following, keys=rng.fold(keys, 1), **packed)
    same = jnp.pad(segments[:, 1:] == segments[:, :-1], ((0, 0), (1, 0)))  # the first token of a document follows from nothing
    head = lambda x: model.head(params, x)
    return next_token(head, x, tokens, batch["loss_mask"] * same, z_loss=options.z_loss, chunk=options.chunk)


def within(segments: Array) -> Array:
    """The place of each token in its own segment, from 0."""
    places = jnp.arange(segments.shape[1])[None]
    starts = jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1)
    return places - jax.lax.cummax(jnp.where(starts, places, 0), axis=1)
