"""The networks whose features judge pictures: FID's Inception from a file of weights, or else an image tower trained here.

B batch, H height, W width in pixels, D features, K classes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from mmjax.convert import inception
from mmjax.convert.pretrained import Pretrained, from_pretrained
from mmjax.core.config import Group
from mmjax.core.errors import UserError, suggest


@dataclasses.dataclass(frozen=True)
class Features:
    """A network that judges.

    Attributes:
      frechet: what a Frechet distance in them is called: `fid_...` is one in the Inception network's alone.
      label: what follows the names of other scores.
      told: in words, which network, which layer and how pictures are brought to its size.
      size: D.
      classes: K, of its logits; 0 for a network without.
      params: of the network.
      function: `(params, pictures float[B, H, W, 3] of 0..1) -> [B, D + K]`, features and then logits.
    """

    frechet: str
    label: str
    told: str
    size: int
    classes: int
    params: Any
    function: Callable[[Any, Array], Array]


def open_features(config: Group, where: str) -> Features:
    """By `config.type`, one of TYPES; keys and errors as of its function.

    Raises:
      UserError: an unknown type, or a key it lacks or does not take.
    """
    kind = config.get("type")
    if kind not in TYPES:
        raise UserError(f"{where}.type is {kind!r}{suggest(str(kind), TYPES)}")
    make, defaults = TYPES[kind]
    given = {key: value for key, value in config.items() if key != "type"}
    for key in given:
        if key not in defaults:
            raise UserError(f"{where} has an unknown key '{key}'{suggest(key, defaults)}")
    filled = {**defaults, **given}
    for key, value in filled.items():
        if value is None:
            raise UserError(f"{where} lacks '{key}', which features of type '{kind}' need")
    return make(**filled)


def from_inception(weights: str, resize: str) -> Features:
    """`weights`: the file of the network of Frechet Inception distances; `resize`: one of models.inception.RESIZES."""
    params, run = inception.load(weights, resize)
    told = f"FID's Inception of 2015-12-05, pool3; resize as in '{resize}'"
    join = lambda params, x: jnp.concatenate(run(params, x), axis=-1)
    return Features(f"fid_{resize}", resize, told, inception.FEATURES, inception.CLASSES, params, join)


def from_checkpoint(path: str, name: str, function: str) -> Features:
    """What `mmjax.from_pretrained(path)` computes by the predict function `function`, `path` being published weights or a run's workdir;
    a classifier's logits beside it. Distances are called `frechet_NAME_features`."""
    pretrained = from_pretrained(path)
    if function not in pretrained.predict:
        raise UserError(f"features: '{path}' has no function {function!r}{suggest(function, pretrained.predict)}")
    if "preprocess" not in pretrained.config:
        raise UserError(f"features: '{path}' says not how its pictures are normalised, so none can be shown to it")
    judges = [function] + ["logits"] * (pretrained.config["family"] == "classifier")
    run = lambda params, x: [pretrained.predict[name](params, seen(pretrained, x)) for name in judges]
    pictures = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    size, *classes = (x.shape[-1] for x in jax.eval_shape(run, pretrained.params, pictures))
    told = f"{function} of '{path}', not FID's Inception: a distance in these features is no FID, and compares with its own kind alone"
    label = f"{name}_features"
    join = lambda params, x: jnp.concatenate(run(params, x), axis=-1)
    return Features(f"frechet_{label}", label, told, size, sum(classes), pretrained.params, join)


def seen(pretrained: Pretrained, pictures: Float[Array, "B H W 3"]) -> Float[Array, "B S S C"]:
    """Pictures of 0..1 as a published image tower takes them: squashed to its size, its channels, normalised."""
    how, channels = pretrained.config["preprocess"], pretrained.config["model"]["channels"]
    x = jax.image.resize(pictures, (pictures.shape[0], how["size"], how["size"], 3), how["method"], antialias=True)
    x = x.mean(-1, keepdims=True) if channels == 1 else x
    mean, std = (jnp.asarray(how[key], jnp.float32).reshape(1, 1, 1, -1) for key in ("mean", "std"))
    return (x - mean) / std


def as_pictures(images: Num[Array, "B H W C"]) -> Float[Array, "B H W 3"]:
    """Levels 0..255 as 0..1 in three channels."""
    x = images.astype(jnp.float32) / 255
    return jnp.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x


def levels(pictures: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """0..1 as whole levels 0..255, as a file of pictures would hold them; what is no number is black."""
    return jnp.round(jnp.clip(jnp.nan_to_num(pictures.astype(jnp.float32)), 0, 1) * 255)


# type -> (function, its keys with their defaults; None where one is needed)
TYPES: Mapping[str, tuple[Callable[..., Features], Mapping[str, Any]]] = {
    "inception": (from_inception, {"weights": None, "resize": "pytorch"}),
    "checkpoint": (from_checkpoint, {"path": None, "name": "clip", "function": "encode_image"}),
}
