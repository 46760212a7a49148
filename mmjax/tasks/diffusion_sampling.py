"""How a trained diffusion model is sampled: from config.model.sampler to the functions of `predict`.

B pictures; everything drawn for a picture comes of its key, so it depends neither on the batch nor on the mesh.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.config import Group, kwargs_for
from mmjax.core.errors import UserError, suggest
from mmjax.core.schedules import keywords
from mmjax.core.types import Array, Key, Params
from mmjax.diffusion import coupling, guidance, likelihood, prediction, samplers, solvers_discrete, spacing, vlb, walk
from mmjax.diffusion import path as paths
from mmjax.diffusion.posterior import VARIANCES
from mmjax.tasks import conditions, guides

if TYPE_CHECKING:
    from mmjax.tasks.diffusion import System

CLIPS = ("", "static", "dynamic")


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Config `model.sampler`.

    Attributes:
      solver: a key of diffusion.samplers.SOLVERS, and `options`, its keyword arguments.
      steps, spacing, times: how many times, how they are spaced (diffusion.spacing.SPACINGS), and that function's further arguments.
      guidance: s of classifier-free guidance; 1 for none (diffusion.guidance says how it compares with a paper's w).
      guided: what the model is not told where guidance flees from: "all", or of an embedding and a caption one alone.
      caption_guidance: of a model of both: `guidance` leads from nothing to the embedding, this from there to both; None for `guided`.
      interval: guided only where low < sigma / alpha <= high.
      rescale: share of the guided prediction brought back to the conditional one's standard deviation.
      guided_channels: so many channels are guided, the others not; None for all.
      clip: what is done to x0 in every step: "", "static" (held to -clip_range..clip_range) or "dynamic" (by its quantile to that range).
      path: another path to solve on than the one trained on; its `name` and arguments.
      classifier: guides by its gradient: fields of guides.Classifier. An unconditional model is then asked for classes too.
      weaker: guided away from, by `guidance`, in place of the unconditional model: fields of guides.Weaker.
    """

    solver: str = "ddim"
    steps: int = 50
    spacing: str = "trailing"
    times: Group = dataclasses.field(default_factory=dict)
    guidance: float = 1.0
    guided: str = "all"
    caption_guidance: float | None = None
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    guided_channels: int | None = None
    clip: str = ""
    clip_range: float = 1.0
    path: Group | None = None
    classifier: Group | None = None
    weaker: Group | None = None
    options: Group = dataclasses.field(default_factory=dict)


def parse(given: Group, system: "System") -> Sampler:
    """The sampler of a config group, checked against the system.

    Raises:
      UserError: an unknown key, name or option; more steps than the path has; guidance without what it needs; a prediction that is
        undefined at a time that would be walked.
    """
    where = "config.model.sampler"
    sampler = Sampler(**kwargs_for(Sampler, given, where))
    samplers.check_options(sampler.solver, dict(sampler.options))
    if sampler.clip not in CLIPS:
        raise UserError(f"{where}.clip is {sampler.clip!r}{suggest(sampler.clip, CLIPS)}")
    if not sampler.clip_range > 0:
        raise UserError(f"{where}.clip_range is {sampler.clip_range}, expected a positive number")
    s = system.settings
    if sampler.classifier is not None:
        guides.parse_classifier(sampler.classifier, sampler.solver)
    if sampler.weaker is not None:
        guides.parse_weaker(sampler.weaker)
    _check_guidance(sampler, system, where)
    _check_variance(sampler, system, where)
    path, walked = solving_path(sampler, system), walk_of(sampler, system)
    samplers.check_times(walked, path)
    samplers.check_start(sampler.solver, sampler.options, path, walked)
    native = native_times(sampler, system, walked)
    prediction.check(s.prediction, system.path, native[:-1], s.sigma_data)
    return sampler


def _check_variance(sampler: Sampler, system: "System", where: str) -> None:
    variance = sampler.options.get("variance", "fixed_small")
    if sampler.solver != "ddpm" or variance == "fixed_small":
        return
    where = f"{where}.options.variance"
    if variance not in VARIANCES:
        raise UserError(f"{where} is {variance!r}{suggest(variance, VARIANCES)}")
    if variance.startswith("learned") and not system.settings.variance:
        raise UserError(f"{where} is {variance!r}, and the model learns none: config.model.variance is ''")
    if variance.startswith("learned") and (sampler.path is not None or sampler.steps < 2):
        raise UserError(f"{where} is {variance!r}, of two steps or more on the path trained on; take 'fixed_small' or 'fixed_large'")


def _check_guidance(sampler: Sampler, system: "System", where: str) -> None:
    if sampler.guided not in conditions.GUIDED:
        raise UserError(f"{where}.guided is {sampler.guided!r}{suggest(sampler.guided, conditions.GUIDED)}")
    both = system.condition is not None and system.has_context
    if (sampler.guided != "all" or sampler.caption_guidance is not None) and not both:
        key = "guided" if sampler.guided != "all" else "caption_guidance"
        raise UserError(f"{where}.{key} is {getattr(sampler, key)!r}, of a model with an embedding and captions; this one has not both")
    guidance.check(system.path, sampler.interval, sampler.rescale)
    if sampler.caption_guidance is not None:
        for key in ("weaker", "interval", "rescale", "guided_channels"):
            if getattr(sampler, key):
                raise UserError(f"{where}.caption_guidance does not go with {key}; leave one of the two out")
    which = "all" if sampler.caption_guidance is not None else sampler.guided
    guided = (sampler.guidance != 1 and sampler.weaker is None) or sampler.caption_guidance is not None
    if guided and not system.drops(which):
        told = system.classes or system.has_context or system.condition is not None
        why = "was trained with its condition always there" if told else "has no condition"
        shares = ("network.label_dropout", "label_context.dropout", "context_dropout", "embedding.dropout")
        fix = f"{', '.join(shares[:-1])} or {shares[-1]} above 0" if told else "guidance to 1"
        raise UserError(f"{where}.guidance is {sampler.guidance}, but the model {why}: set {fix}")


def changed(sampler: Sampler, system: "System", fields: Mapping[str, Any]) -> Sampler:
    """The sampler with other fields, checked again; what is checked are numbers, also while a caller is traced."""
    if not fields:
        return sampler
    with jax.ensure_compile_time_eval():
        return parse({**{f.name: getattr(sampler, f.name) for f in dataclasses.fields(sampler)}, **fields}, system)


def solving_path(sampler: Sampler, system: "System") -> paths.Path:
    """The path that is solved on."""
    return system.path if sampler.path is None else paths.make(sampler.path)


def walk_of(sampler: Sampler, system: "System") -> np.ndarray:
    """The times, falling."""
    more = keywords(spacing.times, dict(sampler.times), "config.model.sampler.times")
    return spacing.times(solving_path(sampler, system), sampler.steps, sampler.spacing, **more)


def native_times(sampler: Sampler, system: "System", walked: np.ndarray) -> np.ndarray:
    """The walk in the time of the path trained on."""
    if sampler.path is None:
        return walked
    other = solving_path(sampler, system)
    return np.asarray(walk.on_host(lambda t: system.path.at_log_snr(other.log_snr(t)), walked))


def draw(
    own: Sampler,
    system: "System",
    params: Params,
    keys: Key,
    given: Mapping[str, Array],
    *,
    labels: Array | None = None,
    trajectory: bool = False,
    noise: Array | None = None,
    null: Mapping[str, Array] | None = None,
    sampler: Mapping[str, Any] | None = None,
) -> Array:
    """Pictures in 0..1, [B, H, W, C]; with `trajectory` what the model takes them for at every time, [N + 1, B, H, W, C].

    Args:
      given: what the model is shown (tasks.conditions).
      labels: what a classifier guides to.
      noise: what sampling starts from, [B, h, w, c], in place of what the keys give: x_T, of standard deviation `path.prior_std`.
      null: conditions that stand for no caption, in place of zeros, as an empty text's features did in training.
      sampler: fields in place of config.model.sampler's, such as {"guidance": 1.0}.
    """
    sampler = changed(own, system, sampler or {})
    if noise is not None and noise.shape != (keys.shape[0], *system.shape):
        raise UserError(f"noise has shape {noise.shape}, expected {(keys.shape[0], *system.shape)}")
    scale = solving_path(sampler, system).prior_std
    x = walk.draw(keys, system.shape, scale) if noise is None else noise.astype(jnp.float32)
    found = solve(sampler, system, params, x, keys, given, labels=labels, trajectory=trajectory, null=null)
    if not trajectory:
        return system.decode(params, found)
    return jax.lax.map(functools.partial(system.decode, params), found)


def solve(
    sampler: Sampler,
    system: "System",
    params: Params,
    x: Array,
    keys: Key | None,
    given: Mapping[str, Array],
    *,
    labels: Array | None = None,
    trajectory: bool = False,
    null: Mapping[str, Array] | None = None,
) -> Array:
    """What the network diffuses, [B, h, w, c], at the end of the walk from x; with `trajectory` at every time. Arguments as of `draw`.

    `keys` may be None where the solver draws nothing; raises walk.NoKeys where it does.
    """
    path, walked, options = solving_path(sampler, system), walk_of(sampler, system), dict(sampler.options)
    slope = None
    if sampler.classifier is not None:
        guide = guides.parse_classifier(sampler.classifier, sampler.solver)
        slope = guides.gradient(guide, labels, system)
        if guide.form == "mean":
            options["gradient"], slope = slope, None
    denoise = denoiser(sampler, system, params, given, walked, slope, null or {})
    return samplers.sample(denoise, x, walked, keys, path=path, solver=sampler.solver, trajectory=trajectory, **options)


def pairs(sampler: Sampler, system: "System", params: Params, batch: Mapping[str, Array], keys: Key) -> dict[str, Array]:
    """A batch for coupling "pairs" (reflow; Liu et al. 2023, section 2.1): `noise` and `sample` float32[B, h, w, c] and the conditions.

    Raises:
      UserError: as of `from_noise`; a classifier that guides to labels which the model itself is not shown, for then a student would be
        told nothing of them.
    """
    if sampler.classifier is not None and not system.classes:
        raise UserError("pairs of a model that a classifier guides: the model is shown no labels, nor would its student be; leave it out")
    names = conditions.names(conditions.batch_spec(system, 1))
    noise, sample = from_noise("pairs", sampler, system, params, batch, keys)
    return {"noise": noise, "sample": sample, **{name: batch[name] for name in names}}


def straightness(own: Sampler, system: "System", params: Params, batch: Mapping[str, Array], keys: Key, *, steps: int) -> Array:
    """`coupling.straightness` float32[B] of the sampler's way, in so many steps, from each key's noise; errors as of `from_noise`."""
    sampler = changed(own, system, {"steps": steps})
    _, states = from_noise("straightness", sampler, system, params, batch, keys, trajectory=True)
    return coupling.straightness(states, walk_of(sampler, system))


def from_noise(
    what: str, sampler: Sampler, system: "System", params: Params, batch: Mapping[str, Array], keys: Key, trajectory: bool = False
) -> tuple[Array, Array]:
    """Standard normal noise, and what the sampler makes of it and it alone, both [B, h, w, c]; with `trajectory` at every time.

    Args:
      what: it is for, in messages.
      batch: the conditions as a batch of training holds them, `label`, `tokens` and so on: every one that the model is shown.
      keys: one an example, of its noise.

    Raises:
      UserError: a solver that draws noise on its way, for then a sample does not follow from the noise it began from; a condition missing.
    """
    names = (*conditions.names(conditions.batch_spec(system, 1)), *(("label",) if sampler.classifier is not None else ()))
    if missing := [name for name in names if name not in batch]:
        raise UserError(f"{what}: the batch has no {missing[0]!r}, which the model is shown; it has {sorted(batch)}")
    told = {"words": batch.get("tokens", batch.get("context")), "labels": batch.get("label")}
    told |= {name: batch.get(name) for name in ("embedding", "text_embedding")}
    given = conditions.shown(system, keys.shape[0], **told)
    noise = walk.draw(keys, system.shape)
    x = solving_path(sampler, system).prior_std * noise
    try:
        return noise, solve(sampler, system, params, x, None, given, labels=batch.get("label"), trajectory=trajectory)
    except walk.NoKeys as e:
        raise UserError(
            f"{what}: a sample has to follow from the noise it began from, and solver {sampler.solver!r} draws more on its way: "
            "set config.model.sampler.solver to one that draws none, such as 'euler' or 'heun'"
        ) from e


def invert(
    own: Sampler,
    system: "System",
    params: Params,
    images: Array,
    given: Mapping[str, Array],
    *,
    refine: int = 0,
    sampler: Mapping[str, Any] | None = None,
) -> Array:
    """The noise that pictures in 0..1 are drawn from by DDIM without guidance and clipping, at the sampler's times: [B, h, w, c].

    `refine`: as of diffusion.solvers_discrete.invert; a few make the round trip exact.
    """
    plain = {"solver": "ddim", "options": {}, "guidance": 1.0, "guided": "all", "caption_guidance": None, "clip": ""}
    sampler = changed(own, system, {**(sampler or {}), **plain})
    walked = walk_of(sampler, system)
    x = 2 * images - 1
    if system.first_stage is not None:
        x = system.latent.scaled(system.encode(params, x)[0])
    denoise = denoiser(sampler, system, params, given, walked)
    return solvers_discrete.invert(denoise, x.astype(jnp.float32), walked[::-1], path=solving_path(sampler, system), refine=refine)


def denoiser(
    sampler: Sampler,
    system: "System",
    params: Params,
    given: Mapping[str, Array],
    walked: np.ndarray,
    slope: guidance.Gradient | None = None,
    null: Mapping[str, Array] | None = None,
) -> prediction.Denoiser:
    """The model under its conditions, guided and clipped, on the path that is solved on. `slope`: a classifier's, in the times of the path
    trained on. `null`: as in `draw`."""
    path = solving_path(sampler, system)
    times = native_times(sampler, system, walked)
    on = lambda d: d if sampler.path is None else prediction.on_path(d, system.path, path)
    under = lambda given: on(system.denoiser(params, given, times))
    out = alone = under(given)
    how = {"path": path, "interval": sampler.interval, "rescale": sampler.rescale, "rescale_kind": system.settings.prediction}
    how["channels"] = sampler.guided_channels
    if sampler.caption_guidance is not None:
        less = [conditions.null(system, given, which, null or {}) for which in ("all", "caption")]
        out = guidance.nested([*(under(g) for g in less), alone], [sampler.guidance, sampler.caption_guidance])
    elif sampler.guidance != 1 and sampler.weaker is not None:
        weaker = on(guides.weaker_denoiser(guides.parse_weaker(sampler.weaker), system, given, params, times))
        out = guidance.autoguidance(alone, weaker, sampler.guidance, **how)
    elif sampler.guidance != 1:
        nothing = conditions.null(system, given, sampler.guided, null or {})
        out = guidance.classifier_free(
            guidance.stacked(under(jax.tree.map(lambda a, b: jnp.concatenate([a, b]), dict(given), nothing))),
            sampler.guidance,
            alone=alone,
            **how,
        )
    if slope is not None:
        there = slope if sampler.path is None else prediction.gradient_on_path(slope, system.path, path)
        out = guidance.classifier(out, there, path)
    if sampler.clip == "static":
        out = guidance.clip(out, path, low=-sampler.clip_range, high=sampler.clip_range)
    if sampler.clip == "dynamic":
        out = guidance.dynamic_threshold(out, path, limit=sampler.clip_range)
    return out


def predict(system: "System", sampler: Sampler) -> dict[str, Callable]:
    """The task's named functions; signatures in core.types.PREDICT."""
    s = system.settings
    made = functools.partial(draw, sampler, system)

    def network(params: Params, x: Array, t: Array, *, context: Any = None, labels: Any = None) -> Array:
        given = {k: v for k, v in (("context", context), ("labels", labels)) if v is not None}
        return system.network.apply({"params": params["network"]}, x, t, **given)

    out: dict[str, Callable] = {"network": network}
    if system.low is not None:
        out["upsample"] = functools.partial(_upsample, made, system)
    elif system.condition is not None:
        out["embedding_to_image"] = functools.partial(_embedding_to_image, made, system)
        out["invert"] = functools.partial(_invert, sampler, system)
    elif system.classes:
        guide = (lambda labels: {"labels": labels}) if sampler.classifier is not None else lambda labels: {}
        out["class_to_image"] = lambda params, labels, keys, **how: made(params, keys, {"labels": labels}, **guide(labels), **how)
    elif sampler.classifier is not None and not system.has_context:
        out["class_to_image"] = lambda params, labels, keys, **how: made(params, keys, {}, labels=labels, **how)
    elif system.text is not None:

        def text_to_image(params: Params, tokens: Array, keys: Key, **how: Any) -> Array:
            x = made(params, keys, {"tokens": tokens}, **how)
            return jnp.repeat(x, 3, axis=-1) if s.channels == 1 else x

        out["text_to_image"] = text_to_image
    elif s.context is not None:
        out["features_to_image"] = lambda params, context, keys, **how: made(params, keys, {"context": context}, **how)
    else:
        out["sample"] = lambda params, keys, **how: made(params, keys, {}, **how)
    if system.low is None:
        out["pairs"] = functools.partial(pairs, sampler, system)
        if solving_path(sampler, system).name == "flow":
            out["straightness"] = functools.partial(straightness, sampler, system)
    if system.first_stage is not None:
        out["encode"] = lambda params, images: jnp.concatenate(system.encode(params, images), -1)
    elif not system.has_context and system.condition is None and system.low is None:
        out["bits_per_dimension"] = functools.partial(bits_per_dimension, system)
    return out


TOLD = ("labels", "text_embedding", "mask")  # further conditions, by name


def _embedding_to_image(
    made: Callable, system: "System", params: Params, embedding: Array | None, words: Array | None, keys: Key, **how: Any
) -> Array:
    told = {name: how.pop(name) for name in TOLD if name in how}
    return made(params, keys, conditions.shown(system, keys.shape[0], embedding=embedding, words=words, **told), **how)


def _invert(
    own: Sampler, system: "System", params: Params, images: Array, embedding: Array | None, words: Array | None = None, **how: Any
) -> Array:
    told = {name: how.pop(name) for name in TOLD if name in how}
    given = conditions.shown(system, images.shape[0], embedding=embedding, words=words, **told)
    return invert(own, system, params, images, given, **how)


def _upsample(made: Callable, system: "System", params: Params, images: Array, keys: Key, **how: Any) -> Array:
    told = {name: how.pop(name) for name in ("embedding", "words", "level", *TOLD) if name in how}
    return made(params, keys, conditions.shown(system, images.shape[0], images=images, keys=keys, **told), **how)


def bits_per_dimension(
    system: "System", params: Params, images: Array, labels: Array | None, keys: Key, *, bound: bool = False, **how: Any
) -> Array:
    """float32[B]: of pictures on the 256 levels of -1..1; by the probability-flow ODE of dequantised pictures, or by the variational bound.

    `how`: keyword arguments of diffusion.likelihood.log_likelihood, or of diffusion.vlb.bits_per_dimension.
    """
    s = system.settings
    given = {"labels": labels} if system.classes else {}
    if bound:
        how = {"variance": s.variance or "fixed_small", **how}
        return vlb.bits_per_dimension(system.denoiser(params, given, how.get("times")), images, keys, system.path, **how).total
    levels = jnp.round((images + 1) * 127.5).astype(jnp.uint8)
    x = likelihood.dequantise(levels, keys)
    density, _ = likelihood.log_likelihood(system.denoiser(params, given), x, keys, path=system.path, **how)
    return likelihood.bits_per_dimension(density, int(np.prod(images.shape[1:])))
