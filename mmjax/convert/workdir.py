"""A run of ours as a checkpoint: what `mmjax train` left in a workdir, read as published weights are.

Weights are those that evaluations take: averages where the run has one. Fields of the model come from the run's config.json, without
what only training needs.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mmjax.convert.networks import MODULES
from mmjax.convert.own import FORMAT
from mmjax.convert.source import Source
from mmjax.convert.tensors import of_array
from mmjax.core import checkpoint_read, tree
from mmjax.core import config as config_lib
from mmjax.core.config import get, to_dict, with_variant
from mmjax.core.errors import UserError, suggest
from mmjax.data.interleave import special
from mmjax.data.source import open_source
from mmjax.data.stream import overlaid
from mmjax.models import autoencoder_kl, clip, flamingo, lm, unet_classifier

CHECKPOINTS = "checkpoints"
# Of config.model of task "diffusion", beside `network`: what there is to know of a network that is sampled from.
SAMPLED = (
    *("path", "prediction", "sigma_data", "normalised", "condition", "time_scale", "variance", "labels", "sampler"),
    *("label_context", "uncertainty", "embedding", "low_resolution", "last_until", "context_dropout"),
)
# Of config.model of task "flamingo", beside the model: what its training needs.
TRAINED_BY = ("streams", "weights", "train", "frozen_dtype", "z_loss", "chunk")


@dataclasses.dataclass(frozen=True)
class Part:
    """A model that lies in a run: its fields, and which of the run's parameters are its own, as (their beginning, ours);
    `more` of them, as far as they are there."""

    model: dict[str, Any]
    root: tuple[str, str]
    further: dict[str, Any] = dataclasses.field(default_factory=dict)
    more: tuple[tuple[str, str], ...] = ()


def is_run(path: str | Path) -> bool:
    """Whether a path is a workdir with checkpoints."""
    path = Path(path).expanduser()
    return (path / "config.json").is_file() and (path / CHECKPOINTS).is_dir()


def open_run(path: str | Path, component: str | None = None) -> Source:
    """The newest checkpoint of a run.

    Args:
      component: of a run with several models: by default the network of diffusion's three, "network", "first_stage" and "text".

    Raises:
      UserError: no checkpoint, a damaged one, a task whose models are in no published form, or no such component.
    """
    path = Path(path).expanduser()
    config = config_lib.open_workdir(path)
    parts = parts_of(config, f"'{path}'")
    if component is not None and component not in parts:
        raise UserError(f"'{path}': component is {component!r}{suggest(component, parts)}")
    part = parts[component or next(iter(parts))]
    average = next(iter(config.ema), None)
    step, params = checkpoint_read.read_params(path / CHECKPOINTS, ("params", *([f"ema/{average}"] if average else ())))
    tensors = {
        ours + name.removeprefix(theirs): of_array(np.asarray(x))
        for theirs, ours in (part.root, *part.more)
        for name, x in tree.flatten(params).items()
        if name.startswith(theirs)
    }
    record = {"mmjax": FORMAT, "model": part.model, **part.further, "run": {"task": config.task, "step": step, "average": average}}
    return Source(path / CHECKPOINTS / str(step), path, tensors, {"config.json": record}, _words(config, part.model))


def parts_of(config: ConfigDict, where: str) -> dict[str, Part]:
    """The models of a config, by component, the first being the one that is taken where none is asked for.

    Raises:
      UserError: a task whose models are in no published form.
    """
    if config.task not in _PARTS:
        raise UserError(f"{where} is a run of task '{config.task}'; models of {', '.join(_PARTS)} can be taken out of a run")
    return _PARTS[config.task](config)


def _words(config: ConfigDict, model: Mapping[str, Any]) -> Path | None:
    """The folder of the run's tokenizer; None where it has none, or its set is not at hand."""
    if not any(key in model for key in ("text", "context", "lm")):
        return None
    try:
        data = _one_set(config.data)
        found = data.tokenizer or open_source(data, data.split).info.tokenizer
    except UserError:
        return None
    return None if found is None else Path(found).parent


def _one_set(data: ConfigDict) -> ConfigDict:
    """Config `data` of the first of several sets: all of a run have one tokenizer, and what stands for none of them need not be there."""
    for name, keys in data.streams.items():
        data = overlaid(data, keys, f"data.streams.{name}", ("mixture",))
        break
    return overlaid(data, data.mixture[0][1], "data.mixture[0]") if data.mixture else data


# --- tasks ---------------------------------------------------------------------------------------------------------------


def _clip(config: ConfigDict) -> dict[str, Part]:
    known = {f.name for f in dataclasses.fields(clip.CLIP)} - {"parent", "name"} | {"size", "channels"}
    model = {key: value for key, value in to_dict(config.model).items() if key in known}
    return {"clip": Part(model, ("", ""), {"family": "clip", **_preprocess(config)})}


def _classification(config: ConfigDict) -> dict[str, Part]:
    model = to_dict(config.model)
    (name,) = (kind for kind in clip.IMAGE_TOWERS if kind in model)
    fields = {"image": {"type": name, **model[name]}, "size": model["size"], "channels": model["channels"]}
    return {"classifier": Part(fields, ("", "image/"), {"family": "classifier", **_preprocess(config)})}


def _noisy_classification(config: ConfigDict) -> dict[str, Part]:
    model = to_dict(config.model)
    fields = {
        "classifier": with_variant(model["classifier"], unet_classifier.VARIANTS, "config.model.classifier"),
        "size": model["size"],
        "channels": model["channels"],
    }
    fields |= {key: model[key] for key in ("path", "time_scale") if key in model}
    return {"classifier": Part(fields, ("classifier/", "classifier/"), {"family": "noisy_classifier"})}


def _autoencoder(config: ConfigDict) -> dict[str, Part]:
    model = to_dict(config.model)
    fields = {
        "latent": {
            "autoencoder": with_variant(model["autoencoder"], autoencoder_kl.VARIANTS, "config.model.autoencoder"),
            "scale": 1.0,
            "shift": 0.0,
        }
    }
    return {"autoencoder": Part({**fields, "channels": model["channels"]}, ("autoencoder/", "first_stage/"), {"family": "autoencoder_kl"})}


def _diffusion(config: ConfigDict) -> dict[str, Part]:
    model = to_dict(config.model)
    kind = get(model["network"], "type", "config.model.network")
    given = {key: value for key, value in model["network"].items() if key != "type"}
    fields = {"network": {"type": kind, **with_variant(given, MODULES[kind].VARIANTS, "config.model.network")}}
    size, channels, out = model["size"], model["channels"], {}
    if model.get("latent") is not None:
        stage = with_variant(model["latent"]["autoencoder"], autoencoder_kl.VARIANTS, "config.model.latent.autoencoder")
        latent = {**model["latent"], "autoencoder": stage}
        latent.pop("cached", None)
        out["first_stage"] = Part({"latent": latent, "channels": channels}, ("first_stage/", "first_stage/"), {"family": "autoencoder_kl"})
        size, channels = size // 2 ** (len(latent["autoencoder"]["mults"]) - 1), latent["autoencoder"]["latent"]
    fields |= {"size": size, "channels": channels, **{key: model[key] for key in SAMPLED if model.get(key) is not None}}
    for name, length in (("text", "length"), ("context", "length"), ("label_context", None)):
        if model.get(name) is not None:
            fields["context"] = {"length": 1 if length is None else model[name][length], "width": model[name]["width"]}
    if model.get("text") is not None:
        out["text"] = Part({"text": {"type": "transformer", **model["text"]}}, ("text/", "text/"), {"family": "clip"})
    more = tuple((f"{name}/", f"{name}/") for name in ("condition", "last"))
    return {"network": Part(fields, ("network/", "network/"), {"family": kind}, more), **out}


def _diffusion_prior(config: ConfigDict) -> dict[str, Part]:
    return {"prior": Part(to_dict(config.model), ("", ""), {"family": "prior"})}


def _language_model(config: ConfigDict) -> dict[str, Part]:
    fields = with_variant(to_dict(config.model)["lm"], lm.VARIANTS, "config.model.lm")
    return {"lm": Part({"lm": fields}, ("", ""), {"family": "language_model"})}


def _flamingo(config: ConfigDict) -> dict[str, Part]:
    fields = with_variant(to_dict(config.model), flamingo.VARIANTS, "config.model")
    model = {key: value for key, value in fields.items() if key not in TRAINED_BY}
    model["lm"] = with_variant(model["lm"], lm.VARIANTS, "config.model.lm")
    steps = [group.get("transforms", ()) for group in (config.data, *config.data.streams.values())]
    rows = next((dict(args) for chain in steps for name, args in chain if name == "interleave"), {})
    layout = rows.get("layout", "flamingo")
    seen = _normalised(rows.get("picture", ()), config.model.size, config.model.channels)
    added = {"added_tokens": special(layout)} | ({"added_from": rows["first"]} if rows.get("first") is not None else {})
    return {"flamingo": Part(model, ("", ""), {"family": "flamingo", "written": layout, **added, **seen})}


_PARTS: dict[str, Callable[[ConfigDict], dict[str, Part]]] = {
    "clip": _clip,
    "classification": _classification,
    "noisy_classification": _noisy_classification,
    "autoencoder": _autoencoder,
    "diffusion": _diffusion,
    "diffusion_prior": _diffusion_prior,
    "flamingo": _flamingo,
    "language_model": _language_model,
}


def _preprocess(config: ConfigDict) -> dict[str, Any]:
    """What the run did to its pictures, as published models say it."""
    return _normalised(config.data.transforms, config.model.size, config.model.channels)


def _normalised(transforms: Sequence[Any], size: int, channels: int) -> dict[str, Any]:
    found = next((dict(args) for name, args in transforms if name == "normalize"), None)
    if found is None:
        return {}
    spread = lambda x: tuple(float(v) for v in np.broadcast_to(x, channels))
    mean, std = spread(found.get("mean", 0.5)), spread(found.get("std", 0.5))
    return {"preprocess": {"size": size, "resize": "squash", "method": "bilinear", "mean": mean, "std": std}}
