"""The diffusion prior of unCLIP: from a caption and its CLIP embedding to a picture's CLIP embedding, by diffusion.

Ramesh et al. 2022, arXiv 2204.06125, section 2.2. Config `model`: the fields of `Settings`. A batch holds embeddings, as `mmjax cache`
stores them: `embedding` of a picture and `text_embedding` of its caption, and the caption's words.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mmjax.core import rng
from mmjax.core.config import Group, kwargs_for, to_dict, with_variant
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Key, Params, Task
from mmjax.diffusion import density, objective, prediction, weighting
from mmjax.diffusion import path as paths
from mmjax.diffusion.path import Path
from mmjax.diffusion.prediction import SIGMA_DATA
from mmjax.layers import split_axes
from mmjax.models import prior
from mmjax.tasks import diffusion_sampling, prior_inputs
from mmjax.tasks.diffusion_sampling import Sampler
from mmjax.tasks.prior_inputs import Captions


@dataclasses.dataclass(frozen=True)
class Settings:
    """What config.model says.

    Attributes:
      prior: fields of models.prior.Prior, or `variant`, a published size's name.
      path, prediction, sigma_data, normalised, condition, time_scale, weighting, density: as in tasks.diffusion.Settings. The paper
        predicts x0 by its squared error.
      text: fields of a text tower of the prior's own and its `type`, trained along.
      context: `length` and `width` of words' features that a batch holds as `context`, such as CLIP's `token_features`.
      masked, dropout, unit: see prior_inputs.Captions.
      scale: embeddings are multiplied by it (17.2 in the paper). Those of length 1 have a mean square of 1 at sqrt(E).
      statistics: each number less its mean, over its standard deviation, in place of `scale` (Karlo): of the first `fit_examples`
        examples of a run.
      candidates: so many are drawn, and the one nearest to the text embedding is kept (2 in the paper).
      sampler: fields of diffusion_sampling.Sampler.
    """

    prior: Group
    path: Group = dataclasses.field(default_factory=lambda: {"name": "discrete", "betas": "cosine", "steps": 1000})
    prediction: str = "x0"
    sigma_data: float = SIGMA_DATA
    normalised: bool | None = None
    condition: str | None = None
    time_scale: float = 1.0
    weighting: Group = dataclasses.field(default_factory=lambda: {"name": "simple"})
    density: Group = dataclasses.field(default_factory=lambda: {"name": "uniform"})
    text: Group | None = None
    context: Group | None = None
    masked: bool = True
    dropout: float = 0.1
    unit: bool = True
    scale: float = 1.0
    statistics: bool = False
    fit_examples: int = 100_000
    candidates: int = 2
    sampler: Group = dataclasses.field(default_factory=dict)

    variance = ""  # it learns none


@dataclasses.dataclass(frozen=True)
class System:
    """Modules and mathematics of the settings; to tasks.diffusion_sampling what a diffusion system is."""

    settings: Settings
    network: prior.Prior
    path: Path
    captions: Captions

    # What a diffusion system may have beside, and this one has not.
    classes = 0
    embedding = condition = low = first_stage = None
    has_context = True

    @property
    def shape(self) -> tuple[int]:
        """Of what is diffused."""
        return (self.network.embedding,)

    @property
    def seen(self) -> dict[str, Any]:
        """Arguments of diffusion.prediction.inputs."""
        s = self.settings
        return {"sigma_data": s.sigma_data, "normalised": s.normalised, "condition": s.condition, "time_scale": s.time_scale}

    def drops(self, which: str = "all") -> bool:
        """Whether training leaves captions out now and then, as guidance needs."""
        return self.captions.dropout > 0

    def apply(self, params: Params, x: Array, t: Array, given: Mapping[str, Array], keys: Key | None = None) -> Array:
        """The network's output for what it is shown."""
        words = self.captions.words(params, given, keys)
        return self.network.apply({"params": params["prior"]}, x, t, given["text_embedding"], **words, keys=keys)

    def denoiser(self, params: Params, given: Mapping[str, Array], times: Any = None) -> prediction.Denoiser:
        """(x, t) -> Denoised under these conditions."""
        return prediction.denoiser(
            lambda x, t: self.apply(params, x, t, given), self.path, self.settings.prediction, **self.seen, times=times
        )

    def scaled(self, params: Params, x: Array) -> Array:
        """Embeddings as they are diffused."""
        x = self.captions.read(x)
        if not self.settings.statistics:
            return x * self.settings.scale
        return (x - params["statistics"]["mean"][None]) / params["statistics"]["std"][None]

    def decode(self, params: Params, x: Array) -> Array:
        """Its inverse, of length 1 where embeddings are read so."""
        if self.settings.statistics:
            x = x * params["statistics"]["std"][None] + params["statistics"]["mean"][None]
        else:
            x = x / self.settings.scale
        return self.captions.read(x)


def make(config: ConfigDict) -> Task:
    """Batch: `embedding` and `text_embedding` float32[B, E], and `tokens` int32[B, L], or `context` float32[B, L, M] and where padding is
    masked `mask` bool[B, L].

    Raises:
      UserError: settings that are unknown or do not go together.
    """
    system = parse(config.model, jnp.dtype(config.dtype))
    s, captions = system.settings, system.captions
    sampler = diffusion_sampling.parse(s.sampler, system)
    weights, times = weighting.make(s.weighting), density.make(s.density, system.path)
    boxed = lambda key: captions.init(key, lambda key, words: _network(system, key, words))
    still = {"mean": jnp.zeros, "std": jnp.ones} if s.statistics else {}
    axes = prior_inputs.axes_of(boxed) | ({"statistics": dict.fromkeys(still, ("width",))} if still else {})

    def init(key: Key) -> Params:
        params = split_axes(boxed(key))[0]
        return {**params, "statistics": {name: fill(system.shape) for name, fill in still.items()}} if still else params

    def loss(params: Params, batch: Batch, key: Key, step: Array) -> tuple[Array, dict]:
        keys = rng.per_example(key, batch["_index"])
        own = lambda name: jax.vmap(lambda key: rng.named(key, name))(keys)
        example = objective.corrupt(system.scaled(params, batch["embedding"]), times.draw(own("time")), system.path, own("noise"))
        given, _ = captions.of_batch(batch, keys)
        seen, told = prediction.inputs(example.x, example.t, system.path, s.prediction, **system.seen)
        output = system.apply(params, seen, told, given, own("network"))
        values = objective.regression(output, example, s.prediction, system.path, weights, s.sigma_data)
        return values.mean(), {"metrics": {}, "state": {}}

    return Task(
        init=init,
        axes=axes,
        loss=loss,
        batch_spec=captions.batch_spec(config.batch_size),
        limits=captions.limits,
        predict={"image_embedding": _image_embedding(system, sampler)},
        state=("statistics/.*",) if still else (),
        fit=(lambda batches: {"statistics": statistics(system, batches)}) if still else None,
    )


def _network(system: System, key: Key, words: dict[str, Array]) -> Any:
    width = system.network.embedding
    return system.network.init(key, jnp.zeros((1, width)), jnp.zeros(1), jnp.zeros((1, system.captions.width)), **words)


def statistics(system: System, batches: Iterable[Batch]) -> dict[str, np.ndarray]:
    """Mean and standard deviation of every number of an image embedding."""
    s = system.settings
    x, _ = prior_inputs.gathered(batches, s.fit_examples, s.unit)
    return {"mean": x.mean(0), "std": np.maximum(x.std(0), 1e-6)}


def parse(model: Group, dtype: Any) -> System:
    """Config `model`, understood and checked.

    Raises:
      UserError: an unknown key or name, or settings that do not go together.
    """
    where = "config.model"
    s = Settings(**kwargs_for(Settings, to_dict(model) if isinstance(model, ConfigDict) else dict(model), where))
    network = prior.build(with_variant(s.prior, prior.VARIANTS, f"{where}.prior"), dtype, f"{where}.prior")
    prediction.check_names(s.prediction, s.condition, None)
    if s.candidates < 1 or s.fit_examples < 2:
        raise UserError(f"{where}: candidates is {s.candidates} and fit_examples {s.fit_examples}; expected at least 1 and 2")
    if not s.scale > 0 or (s.statistics and s.scale != 1):
        raise UserError(f"{where}.scale is {s.scale}; expected a positive number, and 1 where statistics stand in its place")
    return System(s, network, paths.make(s.path), prior_inputs.parse(network, network.embedding, s, dtype))


def _image_embedding(system: System, sampler: Sampler) -> Callable:
    def image_embedding(
        params: Params,
        words: Array | None,
        text: Array,
        keys: Key,
        *,
        mask: Array | None = None,
        null: Mapping[str, Array] | None = None,
        candidates: int | None = None,
        **how: Any,
    ) -> Array:
        """`mask`: words that count; `null`: what stands for no caption in guidance, by the names of conditions, in place of zeros, one row
        for all or one an example; `how`: as of diffusion_sampling.draw."""
        count = candidates or system.settings.candidates
        own, given = prior_inputs.of_candidates(count, keys, system.captions.shown(words, text, mask))
        rows = lambda x: jnp.repeat(jnp.broadcast_to(x, (keys.shape[0], *x.shape[1:])), count, axis=0)
        x = diffusion_sampling.draw(sampler, system, params, own, given, null=jax.tree.map(rows, dict(null or {})), **how)
        return prior_inputs.nearest(x.reshape(-1, count, x.shape[-1]), given["text_embedding"][::count])

    return image_embedding
