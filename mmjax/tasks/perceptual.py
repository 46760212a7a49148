"""The perceptual term of a reconstruction: LPIPS from published weights, else the features of a network trained here, else nothing.

Published LPIPS was fitted to what people see as alike. Features of a network trained here were not: a distance in them pulls the same
way, and its values compare with no published ones.

B batch, H height, W width in pixels, C channels.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmjax.convert import lpips as convert
from mmjax.core import checkpoint_read, tree
from mmjax.core.config import Group, kwargs_for
from mmjax.core.errors import UserError, suggest
from mmjax.core.types import Key, Params, PyTree
from mmjax.models.clip import IMAGE_TOWERS, tower
from mmjax.models.lpips import LPIPS, distance

TYPES = ("lpips", "features")


@dataclasses.dataclass(frozen=True)
class Perceptual:
    """Attributes:
    told: in words, what judges.
    init: key -> boxed parameters.
    weights: the parameters that are read from files, host arrays.
    distance: (params, pictures, pictures, both of -1..1) -> float32[B].
    """

    told: str
    init: Callable[[Key], PyTree]
    weights: Callable[[], Params]
    distance: Callable[[Params, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Published:
    """Attributes:
    vgg: file of VGG-16's weights, torchvision's `vgg16-397923af.pth` or LPIPS' own.
    heads: file of the learnt weights of its channels, LPIPS' `vgg.pth` of version 0.1; "" where `vgg` holds them too.
    groups: of models.lpips.LPIPS; another network than VGG-16 is for tests.
    """

    vgg: str
    heads: str = ""
    groups: tuple[tuple[int, int], ...] | None = None


@dataclasses.dataclass(frozen=True)
class Trained:
    """Attributes:
    path: workdir of the run.
    tower: the fields of its image tower, as that run's config has them, `type` among them.
    below: where in that run's parameters the tower lies: "image" in a CLIP's, "" in a classifier's.
    ema: the run's average to take; None for the parameters themselves.
    size, mean, std: what its pictures are brought to: pixels, and (x - mean) / std of 0..1.
    """

    path: str
    tower: Group
    size: int
    below: str = "image"
    ema: str | None = None
    mean: float | tuple[float, ...] = 0.5
    std: float | tuple[float, ...] = 0.5


def make(config: Group | None, channels: int, where: str) -> Perceptual | None:
    """By `type`: "lpips" with the fields of `Published`, or "features" with those of `Trained`. None for no perceptual term.

    Raises:
      UserError: an unknown type or field, or pictures of another number of channels than LPIPS takes.
    """
    if config is None:
        return None
    kind, fields = config.get("type"), {k: v for k, v in config.items() if k != "type"}
    if kind not in TYPES:
        raise UserError(f"{where}.type is {kind!r}{suggest(str(kind), TYPES)}")
    if kind == "lpips":
        if channels != 3:
            raise UserError(f"{where}.type is 'lpips', which judges pictures of 3 channels; config.model.channels is {channels}")
        return _published(_filled(Published, fields, where))
    return _trained(_filled(Trained, fields, where), channels, where)


def _filled(cls: type, fields: Mapping[str, Any], where: str) -> Any:
    given = kwargs_for(cls, fields, where)
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.name not in given:
            raise UserError(f"{where} has no key '{field.name}'")
    return cls(**given)


def _published(given: Published) -> Perceptual:
    model = LPIPS() if given.groups is None else LPIPS(given.groups)
    side = 2 ** len(model.groups)
    sample = jnp.zeros((1, side, side, 3))
    files = [path for path in (given.vgg, given.heads) if path]
    return Perceptual(
        told="LPIPS 0.1 with VGG-16, published weights",
        init=lambda key: model.init(key, sample, sample)["params"],
        weights=lambda: convert.load(*files, model=model),
        distance=lambda params, x, y: model.apply({"params": params}, x, y),
    )


def _trained(given: Trained, channels: int, where: str) -> Perceptual:
    model = tower(given.tower, IMAGE_TOWERS, jnp.float32, f"{where}.tower")
    mean, std = (jnp.broadcast_to(jnp.asarray(v, jnp.float32), (channels,)).reshape(1, 1, 1, -1) for v in (given.mean, given.std))

    def maps(params: Params, x: Array) -> list[Array]:
        if x.shape[1:3] != (given.size, given.size):
            x = jax.image.resize(x, (x.shape[0], given.size, given.size, channels), "bilinear", antialias=True)
        return feature_maps(model, params, ((x + 1) / 2 - mean) / std)

    def apart(params: Params, x: Array, y: Array) -> Array:
        both = maps(params, jnp.concatenate([x, y]))
        return distance([m[: x.shape[0]] for m in both], [m[x.shape[0] :] for m in both])

    return Perceptual(
        told=f"features of the image tower of '{given.path}', trained here: no LPIPS, and no value compares with a published one",
        init=lambda key: model.init(key, jnp.zeros((1, given.size, given.size, channels)))["params"],
        weights=lambda: _below(given, where),
        distance=apart,
    )


def feature_maps(model: Any, params: Params, x: Float[Array, "B H W C"]) -> list[Float[Array, "B ..."]]:
    """A residual network's maps after each stage; the tokens after the last block of a vision transformer."""
    if isinstance(model, IMAGE_TOWERS["vit"]):
        return [model.apply({"params": params}, x, tokens=True)]
    stage = lambda module, method: str(module.name).startswith("stage") and method == "__call__"
    _, found = model.apply({"params": params}, x, capture_intermediates=stage, mutable=["intermediates"])
    return [found["intermediates"][name]["__call__"][0] for name in sorted(found["intermediates"])]


def _below(given: Trained, where: str) -> Params:
    """The tower's parameters."""
    trees = ("params", *([f"ema/{given.ema}"] if given.ema else []))
    leaves = tree.flatten(checkpoint_read.read_params(Path(given.path) / "checkpoints", trees)[1])
    prefix = f"{given.below}/" if given.below else ""
    found = {path.removeprefix(prefix): np.asarray(x) for path, x in leaves.items() if path.startswith(prefix)}
    if not found:
        raise UserError(f"{where}.below is '{given.below}', and '{given.path}' has nothing there: {', '.join(sorted(leaves)[:4])}, ...")
    return tree.unflatten(found)
