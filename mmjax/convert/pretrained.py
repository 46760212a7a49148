"""A published checkpoint as a model that is ready to use."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.convert import models, workdir
from mmjax.convert.layout import Layout
from mmjax.convert.layouts import recognise
from mmjax.convert.models import Model
from mmjax.convert.rules import Leaf, Rule, leaves, place
from mmjax.convert.source import Source, open_source
from mmjax.core import sharding, tree
from mmjax.core.errors import UserError
from mmjax.data import tokenizer as tokenizers
from mmjax.data.tokenizer import Tokenizer
from mmjax.layers import ACTIVATIONS, resize_positions


@dataclasses.dataclass(frozen=True)
class Opened:
    """A checkpoint that is understood and not read.

    Attributes:
      config: `family`, `layout`, `model` (fields of one of `models.FAMILIES`), and what its `describe` says beside.
    """

    source: Source
    layout: Layout
    config: dict[str, Any]
    rules: list[Rule]

    @property
    def where(self) -> str:
        return str(self.source.path)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A published model.

    Attributes:
      config: `family`, `layout`, and `model`. Of towers `model` has their fields, and `preprocess` what their images need: `size` in
        pixels, `resize` ("short_side", then the middle is cropped, or "squash"), `method`, and `mean` and `std` of
        (x / 255 - mean) / std. Of a diffusion network `model` has `network`, `size`, `channels` and as far as files say it `context`,
        `path`, `prediction`, `variance`, `time_scale` and `sampler`, as config.model of task "diffusion" does; and `reversed` where the
        network's times run from noise (0) to data (1) and it gives x0 - eps: ask it at 1 - t and turn the sign. Of an autoencoder
        `latent`: `autoencoder`, and `scale` and `shift` of the (z - shift) scale that a diffusion network sees.
      params: nested dict of arrays.
      tokenizer: the one whose files lie in the folder; None if there are none.
      predict: pure functions. `encode_image(params, images float[B, H, W, C]) -> [B, E]` and `encode_text(params, tokens int[B, L]) ->
        [B, E]`, projected, not of unit length; `image_features(params, images) -> [B, D]`, before the projection; `logits(params, images,
        tokens) -> [B, N]`, scaled cosines; of a text tower alone `encode_tokens(params, tokens) -> [B, L, D]`. `network(params, x
        float[B, H, W, C], t [B], *, context=None, labels=None)`, what the network itself puts out, further inputs of its module by name;
        `encode(params, x) -> (mean, logvar)` and `decode(params, z)` of an autoencoder, unscaled; `classify(params, x, t) -> [B, K]`, a
        noisy classifier's logits; `logits(params, images) -> [B, K]` of a classifier, a run of ours. Of a language model `logits(params,
        tokens) -> [B, L, V]`, `generate(params, tokens, key, *, max_new_tokens, ...)` and `log_likelihood(params, tokens, answers,
        answer_lengths)`, which with one that sees also take `pixels` float[B, N, F, H, W, 3] and `images` int[B], how many of a row's N
        are real; and `unrolled(params)`, what the last two read, made once for many calls. Those a checkpoint has no weights for are not
        there.
    """

    config: dict[str, Any]
    params: dict[str, Any]
    tokenizer: Tokenizer | None
    predict: Mapping[str, Callable]


def open_checkpoint(
    path: str | Path, *, act: str | None = None, component: str | None = None, variant: str | Mapping[str, Any] | None = None
) -> Opened:
    """What lies at a path, without reading a weight. Arguments and errors as of `from_pretrained`."""
    source = workdir.open_run(path, component) if workdir.is_run(path) else open_source(path, component, variant)
    layout = recognise(source.tensors, source.path)
    if variant is not None and not layout.told:
        raise UserError(
            f"{source.path}: variant is {variant!r}, and weights of layout {layout.name} leave nothing open that it could say; leave it out"
        )
    source = layout.join(source)
    with warnings.catch_warnings():
        if act is not None:
            warnings.simplefilter("ignore")  # of an activation that is not known: it is now
        config = layout.describe(source)
    config = {"family": config.get("family", layout.family), "layout": layout.name, **config}
    if act is not None:
        config["model"] = _activated(config["model"], act)
    rules = layout.forms.get(config["layout"], layout.rules)
    return Opened(source, layout, config, rules(config["model"], source.tensors))


def _activated(model: Mapping[str, Any], act: str) -> dict[str, Any]:
    """Fields with another activation of the towers."""
    if act not in ACTIVATIONS:
        raise UserError(f"act is {act!r}; known: {', '.join(ACTIVATIONS)}")
    towers = {name: model[name] for name in ("image", "text") if name in model}
    if not towers:
        raise UserError(f"act is {act!r}, of towers of images and texts; this is {models.family_of(model).says(model)}: leave it out")
    return {**model, **{name: {**fields, "act": act} for name, fields in towers.items() if "act" in fields}}


def read_leaves(opened: Opened, model: Model, dtype: Any = np.float32) -> dict[str, Leaf]:
    """The parameters, none read yet: path -> `Leaf`."""
    return leaves(opened.rules, opened.source.tensors, model.shapes, opened.where, dtype)


def from_pretrained(
    path: str | Path,
    *,
    component: str | None = None,
    variant: str | Mapping[str, Any] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    dtype: Any = None,
    act: str | None = None,
    size: int | None = None,
) -> Pretrained:
    """Loads weights from a folder or a file, in any of the layouts they are published in.

    CLIP, SigLIP, BERT and T5: OpenAI's `.pt` (TorchScript or a state dict) and OpenCLIP's files, Hugging Face folders written by
    transformers 4 or 5, big_vision's `.npz`. Language models: Hugging Face folders of GPT-2, OPT, MPT, LLaMA, Gemma and GPT-NeoX; those
    that see: IDEFICS' folders, and OpenFlamingo's checkpoints with `open_flamingo.json` beside them. Diffusion: diffusers' folders of a
    U-Net, DiT or KL autoencoder, alone or in a pipeline, and state dicts of guided-diffusion, latent diffusion, DiT, SiT, EDM, EDM2 and
    Karlo. And our own: folders written by `mmjax convert import`, and workdirs of runs, whose newest checkpoint is read. Nothing that is
    stored in a file is executed. Weights go to the devices one at a time, and to each device only what it holds.

    Args:
      component: of a pipeline's folder ("unet", "transformer", "vae", "text_encoder"; unCLIP's "decoder", which is two folders with
        text_proj, and "super_res", which is super_res_first and super_res_last), of a file with all of latent diffusion's weights
        ("unet", "vae") or of a run ("network", "first_stage", "text"); by default the network that denoises.
      variant: a published name, or fields of the network, where a state dict does not say them (heads; DiT or SiT); of an OpenFlamingo
        checkpoint what `open_flamingo.json` would say: the paths `lm` and `clip`, and `image_token` (convert.open_flamingo).
      mesh: devices to place parameters on, by the sharding table; without it all are on the default device.
      dtype: of parameters and products, float32 if not given; whatever the file's own.
      act: the activation, where it is to be another than the files say ("gelu", "quick_gelu", "gelu_tanh", "relu").
      size: pixels a side of the images it is to take, where that is not what the files say. Position embeddings are resized to the new
        grid: linear for big_vision's files, else bicubic and antialiased, as the libraries that wrote them do.

    Raises:
      UserError: nothing there, a damaged or hostile file, an unknown architecture, or tensors that do not make the model that
        the config describes, with a list of them.
    """
    opened = open_checkpoint(path, act=act, component=component, variant=variant)
    dtype = np.dtype(jnp.float32 if dtype is None else dtype)
    model = models.build(opened.config["model"], dtype, mesh)
    found = read_leaves(opened, model, dtype)
    if size is not None and size != opened.config["model"].get("size"):
        opened, model, found = _resized(opened, size, dtype, mesh, found)
    places = dict.fromkeys(found)
    if mesh is not None:
        places = tree.flatten(sharding.params_shardings(tree.unflatten(model.shapes), tree.unflatten(model.axes), mesh))
    params = {name: place(leaf, places[name]) for name, leaf in found.items()}
    words = _tokenizer(opened.source.words, opened.config.get("added_tokens", ()), opened.config.get("added_from"))
    return Pretrained(opened.config, tree.unflatten(params), words, model.predict)


def _resized(opened: Opened, size: int, dtype: np.dtype, mesh: Any, found: dict[str, Any]) -> tuple[Opened, Model, dict[str, Any]]:
    """Checkpoint, model and parameters for images of another size.

    Raises:
      UserError: no image tower, a size its patches do not divide, or one that has no learnt positions to resize.
    """
    config = opened.config
    if "image" not in config["model"]:
        raise UserError(f"size is {size}, but '{opened.where}' has no image tower")
    step = config["model"]["image"].get("patch", 32)  # a ResNet halves five times
    if size % step or size < step:
        raise UserError(f"size is {size}, expected a multiple of {step}: '{opened.where}' sees patches of {step} pixels")
    config = {**config, "model": {**config["model"], "size": size}}
    if "preprocess" in config:
        config["preprocess"] = {**config["preprocess"], "size": size}
    model = models.build(config["model"], dtype, mesh)
    method = "linear" if opened.layout.name == "big_vision" else "bicubic"
    out = dict(found)
    for path, want in model.shapes.items():
        if want.shape != found[path].shape:  # positions are all that depends on the size
            table = np.asarray(found[path], np.float32)
            prefix = math.isqrt(len(table)) ** 2 != len(table)  # the class token's row, or the mean's of attention pooling
            old, new = (math.isqrt(rows - prefix) for rows in (len(table), want.shape[0]))
            out[path] = np.asarray(resize_positions(table, (old, old), (new, new), method, int(prefix))).astype(dtype)
    return dataclasses.replace(opened, config=config), model, out


def _tokenizer(folder: Path, added: Sequence[str], first: int | None) -> Tokenizer | None:
    return tokenizers.load(folder).extended(added, first) if any((folder / name).is_file() for name in tokenizers.FILES) else None
