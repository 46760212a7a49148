"""What a diffusion model is shown beside noise: class, caption, a picture's embedding, a picture of low resolution.

Conditions are a dict `given`, an example a row: `labels`; `tokens`, or `context` and its `mask`; `embedding`, `text_embedding` and
`has_embedding`, False where there is none; `low`, a picture in -1..1, and `level`, the time on the path up to which it is noised.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from mmjax.core import rng
from mmjax.core.config import Group, get, kwargs_for
from mmjax.core.errors import UserError, suggest
from mmjax.core.types import Array, Batch, Key, Params
from mmjax.diffusion import cascade
from mmjax.diffusion.coupling import PAIRS

if TYPE_CHECKING:
    from mmjax.tasks.diffusion import System

DEGRADATIONS = ("none", "blur", "given")
DIFFUSED = ("image", "latent", "noise", "sample")  # what a batch may hold beside conditions
GUIDED = ("all", "embedding", "caption")  # what guidance leaves out


@dataclasses.dataclass(frozen=True)
class LowResolution:
    """Config `model.low_resolution`: the model enlarges pictures. It is shown one of `size`, brought to its own size by a cubic filter.

    Training makes it of the batch's own `image`, or finds it there as `low`, in -1..1, where the host degrades it (data.degrade). What
    training degrades is clean in sampling, but for the noise.

    Attributes:
      size: pixels a side.
      degradation: "none"; "blur", by a Gaussian; "given", a batch holds `low`.
      sigma, kernel: of the blur: from where to where its width in small pixels is drawn, uniform; its pixels.
      crop: training sees windows of this share of a side, in `image` and `low` (unCLIP: 0.25). Pictures are drawn whole.
      noise: (from, to) of the way to noise that the condition is noised by, the level told to the network (`numbers` 1); None for clean.
      level: the same in sampling.
    """

    size: int
    degradation: str = "none"
    sigma: tuple[float, float] = (0.6, 0.6)
    kernel: int = 3
    crop: float = 1.0
    noise: tuple[float, float] | None = None
    level: float = 0.0

    def made(self, images: Array, keys: Key) -> Array:
        """The small pictures of training, of pictures (windows of them) in -1..1."""
        side = self.side(self.size)
        low = cascade.resize(images, (side, side))
        if self.degradation != "blur":
            return low
        draw = lambda key: jax.random.uniform(rng.named(key, "sigma"), minval=self.sigma[0], maxval=self.sigma[1])
        return cascade.blur(low, jax.vmap(draw)(keys), self.kernel)

    def side(self, pixels: int) -> int:
        """Of a window of training, in a picture of so many pixels."""
        return round(pixels * self.crop)


def parse_low(given: Group, size: int, network: Any) -> LowResolution:
    """Raises UserError: an unknown key or name, sizes that do not go together, a network without a place for it."""
    where = "config.model.low_resolution"
    get(given, "size", where)
    low = LowResolution(**kwargs_for(LowResolution, given, where))
    if low.degradation not in DEGRADATIONS:
        raise UserError(f"{where}.degradation is {low.degradation!r}{suggest(low.degradation, DEGRADATIONS)}")
    if not getattr(network, "low_res", 0):
        raise UserError(
            f"{where} is set, and the network takes no such picture: set config.model.network.low_res to its channels, type 'unet'"
        )
    if size % low.size or size == low.size:
        raise UserError(f"{where}.size is {low.size}, expected a part of config.model.size, {size}")
    if not 0 < low.crop <= 1 or not (low.size * low.crop).is_integer():
        raise UserError(f"{where}.crop is {low.crop} of {low.size} pixels, expected a share from 0 to 1 that gives whole pixels")
    if (low.noise is not None) != (getattr(network, "numbers", 0) == 1):
        raise UserError(f"{where}.noise is {low.noise}: the network is told a level with network.numbers 1, and without noise has none")
    if not 0 <= low.sigma[0] <= low.sigma[1] or low.kernel % 2 == 0:
        raise UserError(f"{where}: sigma {low.sigma} of a kernel of {low.kernel}, expected 0 <= from <= to and an odd number of pixels")
    if low.noise is not None and not 0 <= low.noise[0] < low.noise[1] <= 1:
        raise UserError(f"{where}.noise is {low.noise}, expected 0 <= from < to <= 1")
    if low.noise is None and low.level:
        raise UserError(f"{where}.level is {low.level}, and training noises nothing: set {where}.noise")
    return low


# --- in training ---------------------------------------------------------------------------------------------------------


def of_batch(system: "System", batch: Batch, keys: Key) -> dict[str, Array]:
    """The batch's conditions, left out of some examples; labels that the network takes itself, it leaves out itself."""
    s, low = system.settings, system.low
    names = {"labels": "label", **{name: name for name in ("tokens", "context", "mask", "embedding", "text_embedding", "low")}}
    given = {name: batch[key] for name, key in names.items() if key in batch}
    if low is not None:
        own = _named(keys, "low_resolution")
        given["low"] = low.made(batch["image"], own) if low.degradation != "given" else batch["low"]
        if low.noise is not None:
            given |= noised(system, given["low"], cascade.draw_levels(own, path=system.path, low=low.noise[0], high=low.noise[1]), own)
    if system.condition is not None:
        dropped = _drawn(_named(keys, "embedding"), system.condition.dropout)
        given["has_embedding"] = ~dropped
    share = s.context_dropout if system.has_context else (s.label_context or {}).get("dropout", 0)
    if not share:
        return given
    which = "labels" if s.label_context is not None else "caption"
    return where_dropped(_drawn(_named(keys, "context"), share), null(system, given, which), given)


def _drawn(keys: Key, share: float) -> Array:
    return jax.vmap(lambda key: jax.random.bernoulli(key, share))(keys)


def where_dropped(drop: Array, nothing: Mapping[str, Array], given: Mapping[str, Array]) -> dict[str, Array]:
    """`nothing`'s rows where `drop`."""
    pick = lambda x, y: jnp.where(drop.reshape(-1, *(1,) * (x.ndim - 1)), y, x)
    return {name: x if nothing[name] is x else pick(x, nothing[name]) for name, x in given.items()}


def noised(system: "System", low: Array, level: Array, keys: Key) -> dict[str, Array]:
    """The condition at times `level` on the path."""
    return {"low": cascade.augment(low, level, keys, path=system.path), "level": level}


def batch_spec(system: "System", size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What a batch of so many examples holds."""
    s, low = system.settings, system.low
    struct = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct((size, *shape), dtype)
    if s.coupling == PAIRS:
        out = {"noise": struct(*system.shape), "sample": struct(*system.shape)}
    elif system.latent is not None and system.latent.cached:
        *side, channels = system.shape
        out = {"latent": struct(*side, 2 * channels)}
    else:
        side = s.size if low is None else low.side(s.size)
        out = {"image": struct(side, side, s.channels)}
    if low is not None and low.degradation == "given":
        out["low"] = struct(low.side(low.size), low.side(low.size), s.channels)
    if system.classes:
        out["label"] = struct(dtype=jnp.int32)
    if system.text is not None:
        out["tokens"] = struct(system.text.length, dtype=jnp.int32)
    elif s.context is not None:
        out["context"] = struct(s.context["length"], s.context["width"])
        if s.context.get("masked", False):
            out["mask"] = struct(s.context["length"], dtype=jnp.bool_)
    if system.condition is not None:
        names = ("embedding", "text_embedding") if system.condition.text else ("embedding",)
        out |= {name: struct(system.condition.width) for name in names}
    return out


def names(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The conditions among what a batch holds."""
    return tuple(name for name in spec if name not in DIFFUSED)


def _named(keys: Key, name: str) -> Key:
    return jax.vmap(lambda key: rng.named(key, name))(keys)


# --- in sampling ---------------------------------------------------------------------------------------------------------


def null(system: "System", given: Mapping[str, Array], which: str = "all", nothing: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """`given` with the conditions in `which` (GUIDED, or "labels") saying nothing: the class beyond the last, no embedding, and of captions
    zeros, or what `nothing` has in their place."""
    out, nothing = dict(given), nothing or {}
    if which in ("all", "caption"):
        out |= {name: jnp.zeros_like(given[name]) for name in ("tokens", "context", "text_embedding") if name in given}
        for name, value in nothing.items():
            _refuse(name not in given, f"a null of {name!r} and no {name!r}", "model.context or model.embedding.text")
            out[name] = jnp.broadcast_to(jnp.asarray(value, given[name].dtype), given[name].shape)
    if which in ("all", "labels") and "labels" in given:
        out["labels"] = jnp.full_like(given["labels"], system.classes)
    if which in ("all", "embedding") and "has_embedding" in given:
        out["has_embedding"] = jnp.zeros_like(given["has_embedding"])
    return out


def shown(
    system: "System",
    count: int,
    *,
    embedding: Array | None = None,
    words: Array | None = None,
    labels: Array | None = None,
    text_embedding: Array | None = None,
    mask: Array | None = None,
    images: Array | None = None,
    keys: Key | None = None,
    level: float | None = None,
) -> dict[str, Array]:
    """What a model is shown, of what a caller of a predict function gives; of conditions that are None, those that say nothing.

    Args:
      words: tokens int32[B, L] or features float[B, S, M], as the model takes them; those where `mask` bool[B, S] is False are not seen.
      images: pictures of low resolution in 0..1.
      keys: one an example, for the noise on those.
      level: share of the way to noise, in place of config.model.low_resolution.level.

    Raises:
      UserError: a condition that the model has no place for, or of another shape than it takes.
    """
    s, given = system.settings, {}
    _refuse(embedding is not None and system.condition is None, "an embedding", "model.embedding")
    _refuse(words is not None and not system.has_context, "a caption", "model.text or model.context")
    _refuse(
        text_embedding is not None and not (system.condition and system.condition.text), "a caption's embedding", "model.embedding.text"
    )
    if system.classes:
        given["labels"] = jnp.full(count, system.classes, jnp.int32) if labels is None else labels
    if system.text is not None:
        given["tokens"] = (
            jnp.zeros((count, system.text.length), jnp.int32) if words is None else _fits(words, (count, system.text.length), "words")
        )
    elif s.context is not None:
        given["context"] = jnp.zeros((count, s.context["length"], s.context["width"])) if words is None else words
        given |= {} if mask is None else {"mask": mask}
    if system.condition is not None:
        shape = (count, system.condition.width)
        nothing = jnp.zeros(shape)
        given["embedding"] = nothing if embedding is None else _fits(embedding, shape, "embedding").astype(jnp.float32)
        given["has_embedding"] = jnp.full(count, embedding is not None)
        if system.condition.text:
            given["text_embedding"] = nothing if text_embedding is None else _fits(text_embedding, shape, "text_embedding")
    if system.low is not None:
        given |= _enlarged(system, count, keys, images, level)
    return given


def _enlarged(system: "System", count: int, keys: Key | None, images: Array | None, level: float | None) -> dict[str, Array]:
    low, path = system.low, system.path
    given = {"low": 2 * _fits(images, (count, low.size, low.size, system.settings.channels), "images") - 1}
    if low.noise is None:
        _refuse(bool(level), "a level of noise", "model.low_resolution.noise")
        return given
    share = low.level if level is None else level
    time = path.clean + share * (path.noise - path.clean)
    time = jnp.full(count, time if path.steps is None else round(min(max(time, 0), path.steps - 1)), jnp.float32)
    return noised(system, given["low"], time, _named(keys, "low_resolution"))


def _refuse(wrong: bool, what: str, key: str) -> None:
    if wrong:
        raise UserError(f"the model is given {what}, and was trained without: config.{key}")


def _fits(x: Array | None, shape: tuple[int, ...], name: str) -> Array:
    if x is None or x.shape != shape:
        raise UserError(f"{name}: {'nothing' if x is None else f'shape {tuple(x.shape)}'} is given, the model takes {shape}")
    return jnp.asarray(x)


def network_inputs(system: "System", params: Params, given: Mapping[str, Array], context: Array | None) -> dict[str, Array]:
    """What the network takes of embedding and low resolution, and the caption's words, the embedding's before them."""
    out = {} if context is None else {"context": context}
    mask = given.get("mask")
    if system.condition is not None:
        told = {"text_embedding": given.get("text_embedding")} if system.condition.text else {}
        apply = lambda *args: system.condition.apply({"params": params["condition"]}, *args, **told, words=context)
        context, out["embedding"] = apply(given["embedding"], given["has_embedding"])
        out |= {} if context is None else {"context": context}
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (system.condition.tokens, 0)), constant_values=True)
    if mask is not None:
        out["context_mask"] = mask
    if system.low is not None:
        low = given["low"]
        factor = system.settings.size // system.low.size
        out["low_res"] = cascade.resize(low, (low.shape[1] * factor, low.shape[2] * factor))
        if system.low.noise is not None:
            out["numbers"] = system.settings.time_scale * given["level"][:, None]
    return out
