"""A family's fields as a model: the shapes of its parameters, their logical axes, and the functions of `predict`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core import sharding, tree
from mmjax.core.config import kwargs_for
from mmjax.core.errors import UserError
from mmjax.layers import Dense, split_axes
from mmjax.models import clip
from mmjax.models.text import check_tokens

Fields = Mapping[str, Any]
_METHODS = {"encode_image": ("images",), "image_features": ("images",), "encode_text": ("tokens",), "logits": ("images", "tokens")}


@dataclasses.dataclass(frozen=True)
class Model:
    """What is known before a weight is read.

    Attributes:
      shapes: path -> ShapeDtypeStruct, float32.
      axes: path -> logical axes.
      predict: pure functions of (params, inputs); what the host sees of inputs is checked first.
    """

    shapes: dict[str, jax.ShapeDtypeStruct]
    axes: dict[str, tuple]
    predict: dict[str, Callable]


def build(fields: Fields, dtype: Any = jnp.float32, mesh: jax.sharding.Mesh | None = None) -> Model:
    """The model of `fields`: of `models.clip.build`'s where there are two towers, else of one, with its projection if `embed` is there.

    Args:
      dtype: of products.
      mesh: on which predict functions compute.

    Raises:
      UserError: an unknown tower or field.
    """
    made = _pair(fields, dtype) if {"image", "text"} <= set(fields) else _tower(fields, dtype)
    boxed, functions, tower = made
    shapes, axes = split_axes(boxed)
    run = functools.partial(_checked, fields, tower, mesh)
    predict = {name: run(function, takes) for name, (function, takes) in functions.items()}
    return Model(tree.flatten(shapes), tree.flatten(axes), predict)


def _samples(fields: Fields, text: Any) -> dict[str, jax.ShapeDtypeStruct]:
    out = {}
    if "image" in fields:
        out["images"] = jax.ShapeDtypeStruct((1, fields["size"], fields["size"], fields["channels"]), jnp.float32)
    if text is not None:
        out["tokens"] = jax.ShapeDtypeStruct((1, text.length), jnp.int32)
    return out


def _pair(fields: Fields, dtype: Any) -> tuple[Any, dict, Any]:
    model = clip.build(fields, dtype, "model")
    inputs = _samples(fields, model.text)
    boxed = jax.eval_shape(model.init, jax.random.key(0), *inputs.values())["params"]
    functions = {name: (functools.partial(_apply, model, name), takes) for name, takes in _METHODS.items()}
    return boxed, functions, model.text


def _apply(model: Any, method: str, params: Any, *inputs: Any) -> jax.Array:
    return model.apply({"params": params}, *inputs, method=method)


def _tower(fields: Fields, dtype: Any) -> tuple[Any, dict, Any]:
    """One tower under its name in a pair, with the pair's projection."""
    name = "image" if "image" in fields else "text"
    group = dict(fields[name])
    known = clip.IMAGE_TOWERS if name == "image" else clip.TEXT_TOWERS
    kind = known[group.pop("type", next(iter(known)))]
    tower = kind(**kwargs_for(kind, group, f"model.{name}"), dtype=dtype)
    text = tower if name == "text" else None
    sample = next(iter(_samples(fields, text).values()))
    key = jax.random.key(0)
    boxed = {name: jax.eval_shape(tower.init, key, sample)["params"]}
    project = None
    if "embed" in fields:
        project = Dense(fields["embed"], ("embed", "joint"), use_bias=bool(fields.get(f"{name}_bias")))
        width = tower.width if text is not None else tower.features
        features = jax.ShapeDtypeStruct((1, width), jnp.float32)
        boxed[f"{name}_proj"] = jax.eval_shape(project.init, key, features)["params"]

    def encode(params: Any, inputs: Any) -> jax.Array:
        x = tower.apply({"params": params[name]}, inputs)
        return x if project is None else project.apply({"params": params[f"{name}_proj"]}, x)

    takes = ("tokens",) if text is not None else ("images",)
    functions = {f"encode_{name}": (encode, takes)}
    if text is None:
        functions["image_features"] = (lambda params, images: tower.apply({"params": params[name]}, images), takes)
    else:
        functions["encode_tokens"] = (lambda params, tokens: tower.apply({"params": params[name]}, tokens, method="sequence"), takes)
    return boxed, functions, text


def _checked(fields: Fields, text: Any, mesh: Any, function: Callable, takes: tuple[str, ...]) -> Callable:
    """`function`, compiled, after a look at its inputs; inside another compiled function their values cannot be seen."""

    def traced(params: Any, *inputs: Any) -> jax.Array:
        if mesh is None:
            return function(params, *inputs)
        with sharding.use(mesh):
            return function(params, *inputs)

    compiled = jax.jit(traced)

    def run(params: Any, *inputs: Any) -> jax.Array:
        if len(inputs) != len(takes):
            raise TypeError(f"takes (params, {', '.join(takes)}), got {len(inputs)} inputs")
        seen = [_images(fields, x) if name == "images" else _tokens(text, x) for name, x in zip(takes, inputs, strict=True)]
        return compiled(params, *seen)

    return run


def _images(fields: Fields, images: Any) -> Any:
    """float[B, size, size, C], or a list of images of this shape."""
    want = (fields["size"], fields["size"], fields["channels"])
    what = "images are [B, H, W, C]" if fields["channels"] != 1 else "images are [B, H, W, 1]"
    if isinstance(images, list | tuple):
        for i, image in enumerate(images):
            if np.shape(image) != want:
                raise UserError(f"images[{i}] has shape {np.shape(image)}, the image tower takes square images of {want}")
        images = np.stack([np.asarray(image) for image in images])
    shape = np.shape(images)
    if len(shape) != 4 or shape[1:] != want:
        raise UserError(f"images: shape {shape}, the image tower takes (B, {', '.join(map(str, want))}): {what}, square and normalised")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"images: type {images.dtype}, expected floats, normalised: (x / 255 - mean) / std of config['preprocess']")
    return images


def _tokens(text: Any, tokens: Any) -> Any:
    if isinstance(tokens, jax.core.Tracer):
        return tokens
    tokens = np.asarray(tokens)
    if not np.issubdtype(tokens.dtype, np.integer):
        raise UserError(f"tokens: type {tokens.dtype}, expected the integers of the tokenizer's encode(texts, {text.length})")
    check_tokens(tokens, text)
    return tokens.astype(np.int32)
