"""Pairs of an image and a text tower, and one such tower: CLIP, SigLIP, BERT, T5."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.convert import bert, hf_config, openclip_config, siglip, t5
from mmjax.convert import clip as clip_layouts
from mmjax.convert.family import Family, Fields, Model, Target, compiled, finished
from mmjax.core.config import kwargs_for
from mmjax.core.errors import UserError
from mmjax.layers import Dense
from mmjax.models import clip
from mmjax.models.text import check_tokens

_METHODS = {"encode_image": ("images",), "image_features": ("images",), "encode_text": ("tokens",), "logits": ("images", "tokens")}


def build(fields: Fields, dtype: Any = jnp.float32, mesh: jax.sharding.Mesh | None = None) -> Model:
    """Of `models.clip.build`'s fields where there are two towers, else of one, with its projection if `embed` is there.

    Raises:
      UserError: an unknown tower or field.
    """
    boxed, functions, tower = _pair(fields, dtype) if {"image", "text"} <= set(fields) else _tower(fields, dtype)
    run = functools.partial(_checked, fields, tower, mesh)
    return finished(boxed, {name: run(function, takes) for name, (function, takes) in functions.items()})


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
        features = tower
        if tower.classes:  # a classifier: the head's parameters are left out of its features
            features, functions = tower.clone(classes=0), {"logits": (encode, takes)}
        functions["image_features"] = (lambda params, images: features.apply({"params": params[name]}, images), takes)
    else:
        functions["encode_tokens"] = (lambda params, tokens: tower.apply({"params": params[name]}, tokens, method="sequence"), takes)
    return boxed, functions, text


def _checked(fields: Fields, text: Any, mesh: Any, function: Callable, takes: tuple[str, ...]) -> Callable:
    """`function`, compiled, after a look at its inputs; inside another compiled function their values cannot be seen."""
    call = compiled(function, mesh)

    def run(params: Any, *inputs: Any) -> jax.Array:
        if len(inputs) != len(takes):
            raise TypeError(f"takes (params, {', '.join(takes)}), got {len(inputs)} inputs")
        seen = [_images(fields, x) if name == "images" else _tokens(text, x) for name, x in zip(takes, inputs, strict=True)]
        return call(params, *seen)

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


# --- out to other libraries ---------------------------------------------------------------------------------------------


def to_hf(config: Mapping[str, Any]) -> Target:
    """The folder of a class of transformers.

    Raises:
      UserError: it has none.
    """
    model, pre = _complete(config["model"]), config.get("preprocess")
    if model.get("image", {}).get("classes"):
        raise UserError("a classifier of ours has no class at Hugging Face; mmjax convert import keeps it")
    if model.get("image", {}).get("type") not in (None, "vit"):
        raise UserError("Hugging Face's CLIP has vision transformers only; export --to openclip")
    kind = _hf_kind(model)
    if kind in ("bert", "t5"):
        layout, write = {"bert": (bert.HF_BERT, hf_config.bert_out), "t5": (t5.HF_T5, hf_config.t5_out)}[kind]
        return Target(layout, (), {"config.json": write(model["text"])}, "model")
    layout = siglip.HF_SIGLIP if kind == "siglip" else clip_layouts.HF_CLIP
    jsons = {"config.json": hf_config.pair_out(model, kind)}
    if pre:
        jsons["preprocessor_config.json"] = hf_config.preprocessor_out(pre, kind)
    # With the prefix, which transformers 4 wants of a tower alone and transformers 5 takes.
    return Target(layout, ("text_model.", "vision_model."), jsons, "model")


def to_openclip(config: Mapping[str, Any]) -> Target:
    """The folder that OpenCLIP loads.

    Raises:
      UserError: it has no such pair.
    """
    model, pre = _complete(config["model"]), config.get("preprocess")
    if not {"image", "text"} <= set(model) or model["text"]["type"] != "transformer":
        raise UserError("OpenCLIP's files hold an image tower and a text transformer; export --to hf")
    pre = pre or {"size": model["size"], "mean": clip_layouts.MEAN, "std": clip_layouts.STD, "resize": "short_side", "method": "bicubic"}
    names = ("text.positional_embedding",) if model.get("bias") is not None else ()
    jsons = {"open_clip_config.json": openclip_config.out(model, pre)}
    return Target(clip_layouts.OPENAI, names, jsons, "open_clip_model", openclip_config.differs(config["model"]))


def _complete(model: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with the defaults of the towers' modules, which a config may leave out and another library may have others of."""
    out = dict(model)
    for tower, known in (("image", clip.IMAGE_TOWERS), ("text", clip.TEXT_TOWERS)):
        if tower in model:
            kind = model[tower].get("type", next(iter(known)))
            own = {
                f.name: f.default for f in dataclasses.fields(known[kind]) if f.default is not dataclasses.MISSING and f.name != "parent"
            }
            out[tower] = {**own, **model[tower], "type": kind}
    return out


def _hf_kind(model: Mapping[str, Any]) -> str:
    """Which of Hugging Face's models has these towers.

    Raises:
      UserError: none.
    """
    text, image = model.get("text"), model.get("image")
    if image is None and text["type"] in ("bert", "t5"):
        return text["type"]
    if text is not None and text["type"] != "transformer":
        raise UserError(f"Hugging Face has no class for a pair with a text tower of type {text['type']!r}")
    causal = text is None or (text["causal"] and text["pool"] != "last" and not model.get("text_bias"))
    last = text is None or (not text["causal"] and text["pool"] == "last")
    if causal and (image is None or (image["pool"] == "cls" and image["pre_norm"])):
        return "clip"
    if last and (image is None or image["pool"] == "map"):
        return "siglip"
    raise UserError("Hugging Face has no class for these towers: CLIP's are causal with a class token, SigLIP's neither")


def says(fields: Fields) -> str:
    """Its towers."""
    kinds = {"image": "vit", "text": "transformer"}
    towers = {tower: group for tower, group in fields.items() if tower in kinds}
    return " and ".join(f"{tower} tower {g.get('type', kinds[tower])} of width {g['width']}" for tower, g in towers.items())


FAMILY = Family(("image", "text"), ("image", "text", "image_proj", "text_proj"), build, says, {"hf": to_hf, "openclip": to_openclip})
