"""Classifiers of noisy pictures, whose gradient guides a diffusion model (Dhariwal & Nichol 2021, section 4).

Config `model`: the fields of `Settings`. Images are in -1..1: the transform ("normalize", {"mean": 0.5, "std": 0.5}). A diffusion run is
sampled with a run of this task by `model.sampler.classifier.path=WORKDIR` (tasks.guides).
"""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmjax.core import rng
from mmjax.core.config import Group, kwargs_for, to_dict, with_variant
from mmjax.core.types import Array, Batch, Key, Params, Task
from mmjax.diffusion import density, objective
from mmjax.diffusion import path as paths
from mmjax.layers import split_axes
from mmjax.models import unet_classifier
from mmjax.objectives.classification import cross_entropy


@dataclasses.dataclass(frozen=True)
class Settings:
    """What config.model says.

    Attributes:
      size, channels: of pictures, in pixels.
      classifier: fields of models.unet_classifier.UNetClassifier, or `variant`, a published name.
      path: as the diffusion model's: `name`, a key of diffusion.path.PATHS, and that path's arguments.
      density: of training times: `name` and arguments of diffusion.density.
      time_scale: the network is told t times it, as of task "diffusion".
      smoothing: of labels.
    """

    size: int
    channels: int
    classifier: Group
    path: Group
    density: Group = dataclasses.field(default_factory=lambda: {"name": "uniform"})
    time_scale: float = 1.0
    smoothing: float = 0.0


def make(config: ConfigDict) -> Task:
    """Batch: `image` float32[B, size, size, channels] in -1..1, `label` int32[B]."""
    s = Settings(**kwargs_for(Settings, to_dict(config.model), "config.model"))
    where = "config.model.classifier"
    model = unet_classifier.build(with_variant(s.classifier, unet_classifier.VARIANTS, where), jnp.dtype(config.dtype), where)
    path = paths.make(s.path)
    times = density.make(s.density, path)
    struct = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)
    boxed = lambda key: model.init(key, jnp.zeros((1, s.size, s.size, s.channels)), jnp.zeros(1))["params"]
    _, axes = split_axes(jax.eval_shape(boxed, jax.random.key(0)))

    def classify(params: Params, x: Array, t: Array, keys: Key | None = None) -> Array:
        return model.apply({"params": params["classifier"]}, x, s.time_scale * t, keys=keys)

    def loss(params: Params, batch: Batch, key: Key, step: Array) -> tuple[Array, dict]:
        keys = rng.per_example(key, batch["_index"])
        named = lambda name: jax.vmap(lambda k: rng.named(k, name))(keys)
        t = times.draw(named("time"))
        example = objective.corrupt(batch["image"], t, path, named("noise"))
        logits = classify(params, example.x, t, named("network"))
        value, metrics = cross_entropy(logits, batch["label"], s.smoothing)
        return value, {"metrics": metrics}

    def logits(params: Params, images: Array) -> Array:
        clean = max(path.clean, 0.0)  # a discrete path's first step: training draws none before it
        return classify(params, images, jnp.full(images.shape[0], clean, jnp.float32))

    return Task(
        init=lambda key: {"classifier": split_axes(boxed(key))[0]},
        axes={"classifier": axes},
        loss=loss,
        batch_spec={"image": struct(s.size, s.size, s.channels), "label": struct(dtype=jnp.int32)},
        predict={"classify": classify, "logits": logits},
        limits={"label": model.classes},
    )
