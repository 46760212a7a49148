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
from mmjax.diffusion import guidance, likelihood, prediction, samplers, spacing, vlb, walk
from mmjax.diffusion import path as paths
from mmjax.tasks import guides

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
      interval: guided only where low < sigma / alpha <= high.
      rescale: share of the guided prediction brought back to the conditional one's standard deviation.
      guided_channels: so many channels are guided, the others not; None for all.
      clip: what is done to x0 in every step: "", "static" (held to -1..1) or "dynamic" (its quantile).
      path: another path to solve on than the one trained on; its `name` and arguments.
      classifier: guides by its gradient: fields of guides.Classifier. An unconditional model is then asked for classes too.
      weaker: guided away from, by `guidance`, in place of the unconditional model: fields of guides.Weaker.
    """

    solver: str = "ddim"
    steps: int = 50
    spacing: str = "trailing"
    times: Group = dataclasses.field(default_factory=dict)
    guidance: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    guided_channels: int | None = None
    clip: str = ""
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
    s = system.settings
    if sampler.classifier is not None:
        guides.parse_classifier(sampler.classifier, sampler.solver)
    if sampler.weaker is not None:
        guides.parse_weaker(sampler.weaker)
    if sampler.guidance != 1 and sampler.weaker is None and not system.drops_condition:
        told = system.classes or system.has_context
        why = "was trained with its condition always there" if told else "has no condition"
        fix = "network.label_dropout, label_context.dropout or context_dropout above 0" if told else "guidance to 1"
        raise UserError(f"{where}.guidance is {sampler.guidance}, but the model {why}: set {fix}")
    if sampler.solver == "ddpm" and str(sampler.options.get("variance", "")).startswith("learned") and not s.variance:
        raise UserError(
            f"{where}.options.variance is {sampler.options['variance']!r}, and the model learns none: config.model.variance is ''"
        )
    walked = walk_of(sampler, system)
    native = native_times(sampler, system, walked)
    prediction.check(s.prediction, system.path, native[:-1], s.sigma_data)
    return sampler


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
    sampler: Sampler,
    system: "System",
    params: Params,
    keys: Key,
    given: Mapping[str, Array],
    *,
    labels: Array | None = None,
    trajectory: bool = False,
) -> Array:
    """Pictures in 0..1, [B, H, W, C]; with `trajectory` what the model takes them for at every time, [N + 1, B, H, W, C]. `labels`: what a
    classifier guides to."""
    path, walked, options = solving_path(sampler, system), walk_of(sampler, system), dict(sampler.options)
    slope = None
    if sampler.classifier is not None:
        guide = guides.parse_classifier(sampler.classifier, sampler.solver)
        slope = guides.gradient(guide, labels, system.shape)
        if guide.form == "mean":
            options["gradient"], slope = slope, None
    denoise = denoiser(sampler, system, params, given, walked, slope)
    x = walk.draw(keys, system.shape, path.prior_std)
    found = samplers.sample(denoise, x, walked, keys, path=path, solver=sampler.solver, trajectory=trajectory, **options)
    if not trajectory:
        return system.decode(params, found)
    return jax.lax.map(functools.partial(system.decode, params), found)


def denoiser(
    sampler: Sampler,
    system: "System",
    params: Params,
    given: Mapping[str, Array],
    walked: np.ndarray,
    slope: guidance.Gradient | None = None,
) -> prediction.Denoiser:
    """The model under its conditions, guided and clipped, on the path that is solved on. `slope`: a classifier's, in the times of the path
    trained on."""
    path = solving_path(sampler, system)
    times = native_times(sampler, system, walked)
    on = lambda d: d if sampler.path is None else prediction.on_path(d, system.path, path)
    alone = on(system.denoiser(params, given, times))
    out = alone
    if sampler.guidance != 1 and sampler.weaker is not None:
        weaker = on(guides.weaker_denoiser(guides.parse_weaker(sampler.weaker), system, given, params, times))
        out = guidance.autoguidance(alone, weaker, sampler.guidance, path=path, interval=sampler.interval)
    elif sampler.guidance != 1:
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), dict(given), system.null(given))
        out = guidance.classifier_free(
            guidance.stacked(on(system.denoiser(params, both, times))),
            sampler.guidance,
            path=path,
            interval=sampler.interval,
            alone=alone,
            rescale=sampler.rescale,
            rescale_kind=system.settings.prediction,
            channels=sampler.guided_channels,
        )
    if slope is not None:
        there = slope if sampler.path is None else prediction.gradient_on_path(slope, system.path, path)
        out = guidance.classifier(out, there, path)
    if sampler.clip == "static":
        out = guidance.clip(out, path)
    if sampler.clip == "dynamic":
        out = guidance.dynamic_threshold(out, path)
    return out


def predict(system: "System", sampler: Sampler) -> dict[str, Callable]:
    """The task's named functions; signatures in core.types.PREDICT."""
    s = system.settings
    made = functools.partial(draw, sampler, system)

    def network(params: Params, x: Array, t: Array, *, context: Any = None, labels: Any = None) -> Array:
        given = {k: v for k, v in (("context", context), ("labels", labels)) if v is not None}
        return system.network.apply({"params": params["network"]}, x, t, **given)

    out: dict[str, Callable] = {"network": network}
    if system.classes:
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
    if system.first_stage is not None:
        out["encode"] = lambda params, images: jnp.concatenate(system.encode(params, images), -1)
    elif not system.has_context:
        out["bits_per_dimension"] = functools.partial(bits_per_dimension, system)
    return out


def bits_per_dimension(
    system: "System", params: Params, images: Array, labels: Array | None, keys: Key, *, bound: bool = False, **how: Any
) -> Array:
    """float32[B]: of pictures on the 256 levels of -1..1; by the probability-flow ODE of dequantised pictures, or by the variational bound.

    `how`: keyword arguments of diffusion.likelihood.log_likelihood, or of diffusion.vlb.bits_per_dimension.
    """
    s = system.settings
    given = {"labels": labels} if system.classes else {}
    if bound:
        variance = s.variance or how.pop("variance", "fixed_small")
        return vlb.bits_per_dimension(system.denoiser(params, given), images, keys, system.path, variance, **how).total
    levels = jnp.round((images + 1) * 127.5).astype(jnp.uint8)
    x = likelihood.dequantise(levels, keys)
    density, _ = likelihood.log_likelihood(system.denoiser(params, given), x, keys, path=system.path, **how)
    return likelihood.bits_per_dimension(density, int(np.prod(images.shape[1:])))
