"""Language models that see pictures: Flamingo, OpenFlamingo, IDEFICS. Fields are those of models.flamingo.build."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import decoding
from mmjax.convert import idefics, language, open_flamingo
from mmjax.convert.family import Family, Fields, Model, compiled, finished
from mmjax.core.errors import UserError
from mmjax.models import flamingo
from mmjax.models.flamingo import Flamingo, check_images

PICTURES = ("pixels", "images")


def build(fields: Fields, dtype: Any = jnp.float32, mesh: jax.sharding.Mesh | None = None) -> Model:
    """Of `vision`, `resampler`, `xattn`, `lm` and what stands beside them.

    Raises:
      UserError: an unknown form or field, or numbers that do not fit.
    """
    model = flamingo.build(fields, dtype, "model")
    return finished(jax.eval_shape(model.init, jax.random.key(0)), predict(model, mesh))


def predict(model: Flamingo, mesh: jax.sharding.Mesh | None = None) -> dict[str, Callable]:
    """`logits`, `generate` and `log_likelihood`, which also take `pixels` and `images`, after a look at their pictures; `unrolled`; and
    `image_features`, the mean of the vision tower's."""
    call = compiled(model, mesh)
    features = lambda params, images: model.features(params, images[:, None, None]).mean((1, 2)).astype(jnp.float32)

    def logits(params: Any, tokens: Any, *, pixels: Any = None, images: Any = None, **more: Any) -> jax.Array:
        given = {"pixels": pixels, "images": images, **more}
        return call(params, language.checked(tokens, model.lm), **{name: x for name, x in given.items() if x is not None})

    sizes = {"context": model.lm.length, "vocab": model.lm.vocab}
    written = decoding.functions(model.begin, unrolled=model.unrolled, inputs=PICTURES, **sizes)
    own = {"unrolled": written.pop("unrolled"), "image_features": compiled(features, mesh)}
    return {name: functools.partial(_looked_at, model, function) for name, function in {"logits": logits, **written}.items()} | own


def _looked_at(model: Flamingo, function: Callable, params: Any, tokens: Any, *args: Any, **more: Any) -> Any:
    """`function` after a look at pictures, those of a negative prompt too.

    Raises:
      UserError: pixels of another type or size, or as of `check_images`.
    """
    _check_pictures(model, tokens, more)
    if more.get("negative") is not None:
        _check_pictures(model, more["negative"]["tokens"], more["negative"])
    return function(params, tokens, *args, **more)


def _check_pictures(model: Flamingo, tokens: Any, given: Any) -> None:
    pixels, images = (given.get(name) for name in PICTURES)
    check_images(tokens, pixels, images, model.image_token)
    if pixels is None:
        return
    want = (model.size, model.size, model.channels)
    if np.shape(pixels)[3:] != want:
        raise UserError(f"pixels: shape {np.shape(pixels)}, the vision tower takes (rows, images, frames, {', '.join(map(str, want))})")
    if not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise UserError(f"pixels: type {pixels.dtype}, expected floats, normalised: (x / 255 - mean) / std of config['preprocess']")


def says(fields: Fields) -> str:
    """Its language model, and what it sees with."""
    return f"{language.says(fields)}, cross-attention to pictures every {fields.get('every', 1)} blocks"


FAMILY = Family(
    ("resampler",),
    ("vision", "resampler", "xattn", "lm", "new_tokens"),
    build,
    says,
    {"hf": idefics.to_hf, "open_flamingo": open_flamingo.target},
)
