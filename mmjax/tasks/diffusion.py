"""Diffusion and rectified flow: any path, prediction, weighting, density of times and network, in pixels or in latents.

Config `model`: the fields of `Settings`. Images are in -1..1: the transform ("normalize", {"mean": 0.5, "std": 0.5}).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmjax.core import rng
from mmjax.core.config import Group, get, kwargs_for, to_dict, with_variant
from mmjax.core.errors import UserError, suggest
from mmjax.core.types import Array, Batch, Key, Params, PyTree, Task
from mmjax.diffusion import density, objective, prediction, weighting
from mmjax.diffusion import path as paths
from mmjax.diffusion.coupling import COUPLINGS, PAIRS
from mmjax.diffusion.density import Moments
from mmjax.diffusion.path import Path
from mmjax.diffusion.prediction import SIGMA_DATA
from mmjax.layers import Embed, split_axes
from mmjax.models import autoencoder_kl, dit, edm2, song_unet, unclip, unet
from mmjax.models.clip import TEXT_TOWERS, tower
from mmjax.tasks import conditions, diffusion_sampling
from mmjax.tasks.conditions import LowResolution, batch_spec
from mmjax.tasks.diffusion_sampling import Sampler
from mmjax.tasks.weights import reader

# `type` of config.model.network -> the file that has its VARIANTS and `build`.
NETWORKS = {"unet": unet, "song_unet": song_unet, "edm2": edm2, "dit": dit}
LOSSES = ("simple", "hybrid", "bound")
ROOTS = {"text": "text"}  # parts that may come from other weights, and what holds them there
IMPORTANCE = "importance"  # the density that follows the loss; the others are in diffusion.density


@dataclasses.dataclass(frozen=True)
class Latent:
    """The autoencoder between pixels and what is diffused. Its parameters, `first_stage`, are frozen and come by `init_from`.

    Attributes:
      autoencoder: fields of models.autoencoder_kl.AutoencoderKL, or `variant`, a published name.
      scale, shift: the network sees (z - shift) scale; numbers, or one a channel.
      cached: a batch holds `latent`, mean and log-variance side by side as `mmjax cache --predict encode` stores them, in place of `image`.
    """

    autoencoder: Group
    scale: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0
    cached: bool = False

    def scaled(self, z: Array) -> Array:
        """What the network sees of latents."""
        return (z - self._number(self.shift)) * self._number(self.scale)

    def unscaled(self, x: Array) -> Array:
        """Its inverse."""
        return x / self._number(self.scale) + self._number(self.shift)

    def _number(self, x: float | tuple[float, ...]) -> Array:
        return jnp.asarray(x, jnp.float32).reshape(1, 1, 1, -1)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What config.model says.

    Attributes:
      size, channels: of pictures, in pixels.
      network: `type`, a key of NETWORKS, and the fields of that module or `variant`, a published size's name.
      path: `name`, a key of diffusion.path.PATHS, and that path's arguments.
      prediction: what the network predicts, of diffusion.prediction.PREDICTIONS.
      sigma_data, normalised, condition, time_scale: what the network is shown (diffusion.prediction.inputs).
      variance: "learned" or "learned_range" where the network puts out a variance too; "" where it does not.
      loss: "simple", a weighted squared error; "hybrid" (improved DDPM), "bound", the variational bound, where no variance is learnt with
        the posterior's.
      weighting: `name` and arguments of diffusion.weighting; of the squared error.
      density: of training times: `name` and arguments of diffusion.density, or the name "importance".
      uncertainty: the loss is divided by a variance that the network guesses of its time (EDM2).
      coupling: of noise and data, "independent" or "optimal_transport" among `coupling_group` examples (diffusion.coupling); or "pairs",
        a teacher's (reflow): in place of pictures or latents a batch holds `noise` and `sample`, as predict function `pairs` makes them.
      labels: a batch holds `label`, which the network is shown.
      label_context: `classes`, `width` and `dropout`: the label is a learnt word, the one the network looks at (latent diffusion).
      text: fields of a text tower and its `type`; its features of every token are the network's context, and its feature of the whole text
        the network's `vector` where that has a width. A batch then holds `tokens`.
      weights: `text`: the workdir of a CLIP or published weights whose text tower a fresh run starts with; "" for none. It is trained along
        unless `optim.freeze` names it, ("text/.*",).
      context: `length` and `width` of features that a batch holds as `context` in place of `tokens`; `masked`: and `mask` bool[B, S] beside
        them, False for those that are not looked at.
      context_dropout: share of captions that training replaces: tokens by zeros, features by zeros.
      embedding: fields of models.unclip.EmbeddingCondition: a picture's embedding, a batch's `embedding`, is shown (unCLIP's decoder).
      low_resolution: fields of conditions.LowResolution: pictures are enlarged.
      last_until: up to this time a second network of the same form, `last`, is asked in place of the first (Karlo's last step).
      latent: fields of `Latent`; None for pixels.
      sampler: fields of diffusion_sampling.Sampler.
    """

    size: int
    channels: int
    network: Group
    path: Group
    prediction: str = "eps"
    sigma_data: float = SIGMA_DATA
    normalised: bool | None = None
    condition: str | None = None
    time_scale: float = 1.0
    variance: str = ""
    loss: str = "simple"
    weighting: Group = dataclasses.field(default_factory=lambda: {"name": "simple"})
    density: Group = dataclasses.field(default_factory=lambda: {"name": "uniform"})
    uncertainty: bool = False
    coupling: str = "independent"
    coupling_group: int | None = None
    labels: bool = False
    label_context: Group | None = None
    text: Group | None = None
    weights: Group = dataclasses.field(default_factory=dict)
    context: Group | None = None
    context_dropout: float = 0.1
    embedding: Group | None = None
    low_resolution: Group | None = None
    last_until: float | None = None
    latent: Group | None = None
    sampler: Group = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class System:
    """Modules (`network`, `text`, `first_stage`, `condition`) and mathematics of the settings, checked against each other."""

    settings: Settings
    network: Any
    path: Path
    text: Any | None
    first_stage: Any | None
    latent: Latent | None
    condition: Any | None = None
    low: LowResolution | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what is diffused."""
        s = self.settings
        if self.first_stage is None:
            return s.size, s.size, s.channels
        side = s.size // self.first_stage.factor
        return side, side, self.first_stage.latent

    @property
    def pooled(self) -> bool:
        """Whether the network takes the text's own feature beside those of its tokens."""
        return self.text is not None and getattr(self.network, "vector", 0) > 0

    @property
    def has_context(self) -> bool:
        """Whether there are captions."""
        return self.text is not None or self.settings.context is not None

    @property
    def classes(self) -> int:
        """That labels count; 0 where the model is shown none."""
        s = self.settings
        return s.label_context["classes"] if s.label_context is not None else self.network.classes if s.labels else 0

    def drops(self, which: str = "all") -> bool:
        """Whether training leaves out the conditions in `which` (conditions.GUIDED) now and then, as guidance needs."""
        s = self.settings
        if s.label_context is not None:
            return s.label_context.get("dropout", 0) > 0
        caption = self.has_context and s.context_dropout > 0
        if self.condition is not None:
            embedding = self.condition.dropout > 0
            return {"embedding": embedding, "caption": caption, "all": embedding and (caption or not self.has_context)}[which]
        return caption or (s.labels and getattr(self.network, "label_dropout", 0) > 0)

    @property
    def word(self) -> Embed:
        """Of a class, for `label_context`; the last row is of none."""
        given = self.settings.label_context
        return Embed(given["classes"] + 1, given["width"], axis="classes")

    def apply(self, params: Params, x: Array, t: Array, given: Mapping[str, Array], keys: Key | None = None) -> Array:
        """The network's output for what it is shown; `given` as in tasks.conditions."""
        told = self.conditions(params, given, keys)
        ask = lambda name: self.network.apply({"params": params[name]}, x, t, **told, keys=keys)
        if self.settings.last_until is None:
            return ask("network")
        late = t <= self.settings.time_scale * self.settings.last_until
        mixed = lambda: jnp.where(late.reshape(-1, *(1,) * (x.ndim - 1)), ask("last"), ask("network"))
        return jax.lax.switch(late.any().astype(jnp.int32) + late.all(), (lambda: ask("network"), mixed, lambda: ask("last")))

    def conditions(self, params: Params, given: Mapping[str, Array], keys: Key | None = None) -> dict[str, Array]:
        """What the network takes, of what a caller gives."""
        if self.settings.label_context is not None:
            return {"context": self.word.apply({"params": params["label_context"]}, given["labels"])[:, None]}
        context, more = given.get("context"), {"labels": given["labels"]} if given.get("labels") is not None else {}
        if self.text is not None:
            tokens = given["tokens"]
            context = self.text.apply({"params": params["text"]}, tokens, _named(keys, "text"), method="sequence")
            if self.pooled:
                more["vector"] = jnp.take_along_axis(context, self.text.place(tokens)[:, None, None], axis=1)[:, 0]
        return more | conditions.network_inputs(self, params, given, context)

    def denoiser(self, params: Params, given: Mapping[str, Array], times: Any = None) -> prediction.Denoiser:
        """(x, t) -> Denoised under these conditions; with twice the examples of them, the second half is given nothing."""
        s = self.settings
        return prediction.denoiser(
            lambda x, t: self.apply(params, x, t, given),
            self.path,
            s.prediction,
            sigma_data=s.sigma_data,
            normalised=s.normalised,
            condition=s.condition,
            time_scale=s.time_scale,
            variance=s.variance or None,
            times=times,
        )

    def encode(self, params: Params, images: Array) -> tuple[Array, Array]:
        """Mean and log-variance of the latents, unscaled."""
        return self.first_stage.apply({"params": params["first_stage"]}, images, method="encode")

    def decode(self, params: Params, x: Array) -> Array:
        """What was diffused as pictures in 0..1."""
        if self.first_stage is not None:
            z = self.latent.unscaled(x)
            x = self.first_stage.apply({"params": params["first_stage"]}, z, method="decode")
        return jnp.clip(x / 2 + 0.5, 0.0, 1.0)

    def data(self, params: Params, batch: Batch, keys: Key) -> Array:
        """What is diffused, of a batch."""
        if self.settings.coupling == PAIRS:
            return batch["sample"]
        if self.first_stage is None:
            return batch["image"]
        moments = jnp.split(batch["latent"], 2, -1) if self.latent.cached else self.encode(params, batch["image"])
        mean, log_variance = (jax.lax.stop_gradient(x) for x in moments)
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        return self.latent.scaled(mean + jnp.exp(log_variance / 2) * noise)


def make(config: ConfigDict) -> Task:
    """Batch: `image` float32[B, size, size, channels] in -1..1 (or `latent`; or `noise` and `sample`, float32[B, h, w, c]), and as far as
    the settings say `label` int32[B], `tokens` int32[B, L], `context` float32[B, S, M], `embedding` and `text_embedding` float32[B, E],
    `low` float32[B, h, w, channels].

    Raises:
      UserError: settings that are unknown or do not go together.
    """
    system = parse(config.model, jnp.dtype(config.dtype))
    s, importance = system.settings, _importance(system)
    spec = batch_spec(system, config.batch_size)
    weights = weighting.make(s.weighting)
    times = None if importance else density.make(s.density, system.path)
    boxed = lambda key: _init(system, key)
    _, axes = split_axes(jax.eval_shape(boxed, jax.random.key(0)))
    if importance:
        axes = {**axes, "moments": {"losses": (None, None), "count": (None,)}}

    def init(key: Key) -> Params:
        params = split_axes(boxed(key))[0]
        return {**params, "moments": density.no_moments(system.path.steps)._asdict()} if importance else params

    def loss(params: Params, batch: Batch, key: Key, step: Array) -> tuple[Array, dict]:
        keys = rng.per_example(key, batch["_index"])
        x0 = system.data(params, batch, _named(keys, "posterior"))
        factor = 1.0
        if importance:
            t, factor = density.draw_by_importance(_named(keys, "time"), Moments(**params["moments"]))
        else:
            t = times.draw(_named(keys, "time"))
        if s.coupling == PAIRS:
            example = objective.corrupt(x0, t, system.path, eps=batch["noise"])
        else:
            example = objective.corrupt(x0, t, system.path, _named(keys, "noise"), coupling=s.coupling, group=s.coupling_group)
        values, metrics = losses(system, weights, params, example, batch, keys)
        state = {"moments": density.observe(Moments(**params["moments"]), t, values)._asdict()} if importance else {}
        return (factor * values).mean(), {"metrics": metrics, "state": state}

    limits = {"label": system.classes} if system.classes else {}
    roots = ("network",) if s.last_until is None else ("network", "last")
    frozen = [f"{root}/{p}" for root in roots for p in getattr(system.network, "frozen_paths", ())]
    post = {}
    if s.network["type"] == "edm2":  # forced weight normalisation: Karras et al. 2024, section 2.3
        post["post_update"] = lambda params, aux, step: {**params, **{root: edm2.normalised(params[root]) for root in roots}}
    return Task(
        init=init,
        axes=axes,
        loss=loss,
        batch_spec=spec,
        limits=limits | ({"tokens": system.text.vocab} if system.text is not None else {}),
        predict=diffusion_sampling.predict(system, parse_sampler(system)),
        frozen=(*frozen, "first_stage/.*") if system.first_stage is not None else tuple(frozen),
        state=("moments/.*",) if importance else (),
        weights=reader(s.weights, ROOTS, lambda: split_axes(boxed(jax.random.key(0)))[0]),
        can_accumulate=s.coupling != "optimal_transport" or s.coupling_group is not None,
        **post,
    )


def losses(
    system: System, weights: weighting.Weighting, params: Params, example: objective.Corrupted, batch: Batch, keys: Key
) -> tuple[Array, dict[str, Array]]:
    """The loss of every example at its time, and metrics."""
    s, path = system.settings, system.path
    seen, told = prediction.inputs(
        example.x,
        example.t,
        path,
        s.prediction,
        sigma_data=s.sigma_data,
        normalised=s.normalised,
        condition=s.condition,
        time_scale=s.time_scale,
    )
    output = system.apply(params, seen, told, conditions.of_batch(system, batch, keys), _named(keys, "network"))
    if s.loss == "bound":
        return objective.bound(output, example, s.prediction, path, s.variance or "fixed_small", sigma_data=s.sigma_data), {}
    if s.loss == "hybrid":
        return objective.hybrid(output, example, s.prediction, path, s.variance, weights=weights, sigma_data=s.sigma_data), {}
    mean, _ = prediction.split(output, example.x, s.variance or None)
    values = objective.regression(mean, example, s.prediction, path, weights, s.sigma_data)
    if not s.uncertainty:
        return values, {}
    guess = system.network.apply({"params": params["network"]}, told, method="log_variance")
    return objective.uncertain(values, guess), {"weighted_error": values.mean()}


def _named(keys: Key | None, name: str) -> Key | None:
    return None if keys is None else jax.vmap(lambda key: rng.named(key, name))(keys)


def _importance(system: System) -> bool:
    given = system.settings.density.get("name") == IMPORTANCE
    if given and system.path.steps is None:
        raise UserError(f"config.model.density is {IMPORTANCE!r}, which counts the steps of a discrete path; path is {system.path.name!r}")
    return given


def _init(system: System, key: Key) -> PyTree:
    """Boxed parameters."""
    keys = dict(zip(("network", "text", "first_stage", "word"), jax.random.split(key, 4), strict=True))
    s, given, out = system.settings, {}, {}
    if s.labels:
        given["labels"] = jnp.zeros(1, jnp.int32)
    if system.text is not None:
        tokens = jnp.zeros((1, system.text.length), jnp.int32)
        out["text"] = system.text.init(keys["text"], tokens, method="sequence")["params"]
        given["context"] = jnp.zeros((1, system.text.length, system.text.width))
        given |= {"vector": jnp.zeros((1, system.text.width))} if system.pooled else {}
    elif s.context is not None:
        given["context"] = jnp.zeros((1, s.context["length"], s.context["width"]))
    elif s.label_context is not None:
        out["label_context"] = system.word.init(keys["word"], jnp.zeros(1, jnp.int32))["params"]
        given["context"] = jnp.zeros((1, 1, s.label_context["width"]))
    if system.condition is not None:
        embedding, there = jnp.zeros((1, system.condition.width)), jnp.ones(1, bool)
        told = {"words": given.pop("context", None), **({"text_embedding": embedding} if system.condition.text else {})}
        (context, given["embedding"]), made = system.condition.init_with_output(rng.named(key, "condition"), embedding, there, **told)
        out["condition"] = made["params"]
        given |= {} if context is None else {"context": context}
    if system.low is not None:
        given["low_res"] = jnp.zeros((1, 1, 1, system.network.low_res))
        given |= {} if system.low.noise is None else {"numbers": jnp.zeros((1, 1))}
    network = lambda key: system.network.init(key, jnp.zeros((1, *system.shape)), jnp.zeros(1), **given)["params"]
    out["network"] = network(keys["network"])
    if s.last_until is not None:
        out["last"] = network(rng.named(key, "last"))
    if system.first_stage is not None:
        out["first_stage"] = system.first_stage.init(keys["first_stage"], jnp.zeros((1, s.size, s.size, s.channels)))["params"]
    return out


def parse(model: Group, dtype: Any) -> System:
    """Config `model`, understood and checked.

    Raises:
      UserError: an unknown key or name, or settings that do not go together.
    """
    where = "config.model"
    s = Settings(**kwargs_for(Settings, to_dict(model), where))
    path = paths.make(s.path)
    network = build_network(s.network, dtype, f"{where}.network")
    words = [key for key in ("text", "context", "label_context") if getattr(s, key) is not None]
    if len(words) > 1:
        raise UserError(f"{where} has both {words[0]} and {words[1]}; the network looks at one kind of words")
    text = None if s.text is None else tower(s.text, TEXT_TOWERS, dtype, f"{where}.text")
    for group, keys, more in (("context", ("length", "width"), ("masked",)), ("label_context", ("classes", "width"), ("dropout",))):
        given = getattr(s, group) or {}
        for key in keys if given else ():
            get(given, key, f"{where}.{group}")
        for key in given:
            if key not in (*keys, *more):
                raise UserError(f"{where}.{group} has an unknown key '{key}'{suggest(key, (*keys, *more))}")
    latent = None if s.latent is None else Latent(**kwargs_for(Latent, s.latent, f"{where}.latent"))
    first = None
    if latent is not None:
        fields = with_variant(latent.autoencoder, autoencoder_kl.VARIANTS, f"{where}.latent.autoencoder")
        first = autoencoder_kl.build(fields, dtype, f"{where}.latent.autoencoder")
        if s.size % first.factor:
            raise UserError(f"{where}.size is {s.size}, which the autoencoder cannot divide by {first.factor}")
    width = text.width if text is not None else s.context["width"] if s.context is not None else None
    condition = None if s.embedding is None else unclip.build(s.embedding, network, width, dtype)
    low = None if s.low_resolution is None else conditions.parse_low(s.low_resolution, s.size, network)
    system = System(s, network, path, text, first, latent, condition, low)
    _check(system)
    return system


def build_network(given: Group, dtype: Any, where: str) -> Any:
    """The module of a network's group: of `type`, a key of NETWORKS, with the fields given, over those of `variant` where it is there.

    Raises:
      UserError: an unknown type, variant or field.
    """
    kind = get(given, "type", where)
    if kind not in NETWORKS:
        raise UserError(f"{where}.type is {kind!r}{suggest(str(kind), NETWORKS)}")
    fields = {k: v for k, v in given.items() if k != "type"}
    return NETWORKS[kind].build(with_variant(fields, NETWORKS[kind].VARIANTS, where), dtype, where)


def _check(system: System) -> None:
    s, where = system.settings, "config.model"
    if s.loss not in LOSSES:
        raise UserError(f"{where}.loss is {s.loss!r}{suggest(s.loss, LOSSES)}")
    prediction.check_names(s.prediction, s.condition, s.variance or None)
    if s.loss != "simple" and system.path.steps is None:
        raise UserError(f"{where}.loss is {s.loss!r}, of a discrete path; path is {system.path.name!r}: take 'simple'")
    if s.loss == "hybrid" and not s.variance:
        raise UserError(f"{where}.loss is 'hybrid', which trains a learned variance: set {where}.variance to 'learned_range'")
    if s.loss == "bound" and s.weighting.get("name") != "simple":
        raise UserError(f"{where}.weighting is of a squared error, and loss 'bound' has none: leave it out, or take 'hybrid'")
    if s.labels and not getattr(system.network, "classes", 0):
        raise UserError(f"{where}.labels is set, and the network has no classes: set {where}.network.classes")
    if s.uncertainty and not hasattr(system.network, "log_variance"):
        raise UserError(f"{where}.uncertainty needs a network that guesses it: type 'edm2'")
    if s.uncertainty and s.loss != "simple":
        raise UserError(f"{where}.uncertainty divides a squared error, loss 'simple'; loss is {s.loss!r}")
    _check_channels(system, where)
    _check_text(system, where)
    if not 0 <= s.context_dropout < 1:
        raise UserError(f"{where}.context_dropout is {s.context_dropout}, expected a share from 0 to 1")
    for one, other in (("embedding", "label_context"), ("low_resolution", "latent")):
        if getattr(s, one) is not None and getattr(s, other) is not None:
            raise UserError(f"{where} has both {one} and {other}, which nothing here goes together with")
    for other in ("text", "context", "label_context") if s.labels and s.embedding is None else ():
        if getattr(s, other) is not None:
            raise UserError(f"{where} has both labels and {other}, and no function draws pictures of both: leave one of them out")
    _check_coupling(system, where)


def _check_text(system: System, where: str) -> None:
    s, width = system.settings, getattr(system.network, "vector", 0)
    for name, path in s.weights.items():
        if name not in ROOTS:
            raise UserError(f"{where}.weights names {name!r}{suggest(name, ROOTS)}")
        if path and system.text is None:
            raise UserError(f"{where}.weights.{name} is '{path}', and there is no {where}.{name} to take it")
    if not width:
        return
    if system.text is None or not hasattr(system.text, "place"):
        raise UserError(
            f"{where}.network.vector is {width}, a text's own feature: set {where}.text to a tower that has one, type 'transformer'"
        )
    if width != system.text.width:
        raise UserError(f"{where}.network.vector is {width}, the width of {where}.text is {system.text.width}: make them equal")


def _check_channels(system: System, where: str) -> None:
    s, channels = system.settings, system.shape[-1]
    own = getattr(system.network, "out_channels", None) or channels * (1 + system.network.learn_sigma)
    if own != 2 * channels and (s.variance or own != channels):
        wanted = f"{2 * channels}, as variance {s.variance!r} needs" if s.variance else f"{channels}, or twice as many"
        raise UserError(f"{where}.network puts out {own} channels, expected {wanted}: {channels} channels are diffused")


def _check_coupling(system: System, where: str) -> None:
    s, known = system.settings, (*COUPLINGS, PAIRS)
    if s.coupling not in known:
        raise UserError(f"{where}.coupling is {s.coupling!r}{suggest(s.coupling, known)}")
    if s.coupling_group is not None and s.coupling != "optimal_transport":
        raise UserError(f"{where}.coupling_group is {s.coupling_group}, of coupling 'optimal_transport'; coupling is {s.coupling!r}")
    if s.coupling == PAIRS and system.path.name != "flow":
        raise UserError(f"{where}.coupling is {PAIRS!r}, reflow, whose path is 'flow'; path is {system.path.name!r}")
    if s.coupling == PAIRS and system.low is not None:
        raise UserError(f"{where}.coupling is {PAIRS!r}, in which there are no pictures to make low_resolution of: leave that out")


def parse_sampler(system: System) -> Sampler:
    """Config `model.sampler`."""
    return diffusion_sampling.parse(system.settings.sampler, system)
