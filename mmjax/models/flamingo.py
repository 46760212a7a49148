"""Flamingo (Alayrac et al. 2022): a language model that sees pictures and videos between its words; OpenFlamingo and IDEFICS.

Its own parameters are `resampler`, `xattn/blocks` (stacked) and `new_tokens`. `vision` and `lm` are trees of models.vit or models.nfnet
and of models.lm as those have them, so that their checkpoints load into it; all published recipes freeze them.

B batch, L tokens, D their width, N images a row, F frames of each, H height, W width in pixels, C channels, S features of a frame, M their
width, R visual tokens an image, V vocabulary, E width that the head takes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from mmjax.core import rng
from mmjax.core.config import Group, get, kwargs_for, with_variant
from mmjax.core.errors import UserError, suggest
from mmjax.layers import dropout, masks, unstack_params
from mmjax.layers.dense import normal
from mmjax.models import gated_xattn, lm, perceiver, vit
from mmjax.models import nfnet as nfnets
from mmjax.models.clip import tower
from mmjax.models.gated_xattn import GatedCrossAttention
from mmjax.models.lm import LanguageModel
from mmjax.models.nfnet import NFNet
from mmjax.models.vit import ViT

VISION = {"vit": ViT, "nfnet": NFNet}
ATTEND = ("last", "previous")
Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Flamingo:
    """The parts and how they are put together. Functions take the parameters first, as a nested dict.

    Attributes:
      xattn: one block of cross-attention; there are `blocks` of them.
      lm: of the whole vocabulary, the new tokens at its end.
      image_token: the id at whose places images stand.
      every, first: a block of cross-attention before the language model's block `first` and every `every`-th after, or within these.
      attend: a token sees the image before it, "last", or all of its document, "previous".
      end_token: the id that ends a document within a row, if rows are packed by it (IDEFICS); until its next image, text sees none.
      class_token: whether the class token of a vision transformer is among its features.
      new_tokens: how many ids at the end of the vocabulary have embeddings of their own, beside the language model's.
      size, channels: of images, in pixels.
    """

    vision: nn.Module
    resampler: nn.Module
    xattn: GatedCrossAttention
    lm: LanguageModel
    image_token: int
    every: int = 1
    first: int = 0
    attend: str = "last"
    end_token: int | None = None
    class_token: bool = False
    new_tokens: int = 0
    size: int = 224
    channels: int = 3

    @property
    def blocks(self) -> int:
        """How many blocks of cross-attention there are."""
        return len(range(self.first, self.lm.depth, self.every))

    def init(self, key: Key[Array, ""], frozen_dtype: DTypeLike = jnp.float32) -> dict[str, Any]:
        """Fresh parameters, boxed with their logical axes (see layers.split_axes): `vision`, `resampler`, `xattn`, `lm`, `new_tokens`.

        Args:
          frozen_dtype: of `vision` and `lm`, which published recipes keep in bfloat16.
        """
        keys = {name: rng.named(key, name) for name in ("vision", "resampler", "xattn", "lm", "new_tokens")}
        images = jnp.zeros((1, self.size, self.size, self.channels), jnp.float32)
        base = self.lm.clone(vocab=self.lm.vocab - self.new_tokens)
        out = {
            "vision": self.vision.init(keys["vision"], images)["params"],
            "lm": base.init(keys["lm"], jnp.zeros((1, 1), jnp.int32))["params"],
        }
        out = jax.tree.map(lambda x: x.astype(frozen_dtype), out)
        features = jax.eval_shape(lambda p, x: self.features(p, x[:, None, None]), nn.meta.unbox(out), images)
        features = jnp.zeros(features.shape, jnp.float32)
        out["resampler"] = self.resampler.init(keys["resampler"], features)["params"]
        media = jnp.zeros((1, 1, self.resampler.width), jnp.float32)
        text = jnp.zeros((1, 1, self.lm.width), jnp.float32)
        stacked = jax.vmap(lambda k: self.xattn.init(k, text, media)["params"])(jax.random.split(keys["xattn"], self.blocks))
        axis = lambda box: box.add_axis(0, {nn.PARTITION_NAME: "layers"})
        out["xattn"] = {"blocks": jax.tree.map(axis, stacked, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))}
        if self.new_tokens:
            out["new_tokens"] = self._new_tokens(keys["new_tokens"])
        return out

    def _new_tokens(self, key: Key[Array, ""]) -> dict[str, Any]:
        """`embedding [n, width]`, and `kernel [width, n]` where the language model's head is a matrix of its own."""
        make = nn.with_logical_partitioning(normal(self.lm.init_std), ("token", "embed"))
        shape = (self.new_tokens, self.lm.embed_width or self.lm.width)
        out = {"embedding": make(rng.named(key, "embedding"), shape, jnp.float32)}
        if not self.lm.tied:
            make = nn.with_logical_partitioning(normal(self.lm.init_std), ("embed", "token"))
            out["kernel"] = make(rng.named(key, "kernel"), shape[::-1], jnp.float32)
        return out

    # --- pictures -----------------------------------------------------------------------------------------------------

    def features(self, params: Params, pixels: Float[Array, "B N F H W C"]) -> Float[Array, "BN F S M"]:
        """What the vision tower makes of every frame: of its last block or stage, before the last norm."""
        if not pixels.shape[2]:
            raise UserError(f"pixels: shape {pixels.shape}: videos of 0 frames; every picture has one frame at least")
        flat = pixels.reshape(-1, *pixels.shape[3:])
        x = self.vision.apply({"params": params["vision"]}, flat, tokens=True)
        if getattr(self.vision, "pool", None) == "cls" and not self.class_token:
            x = x[:, 1:]
        return x.reshape(pixels.shape[0] * pixels.shape[1], pixels.shape[2], *x.shape[1:])

    def media(self, params: Params, pixels: Float[Array, "B N F H W C"]) -> Float[Array, "B NR M"]:
        """Visual tokens of all images of a row, R of each."""
        x = self.resampler.apply({"params": params["resampler"]}, self.features(params, pixels))
        return x.reshape(pixels.shape[0], -1, x.shape[-1])

    def index(
        self, tokens: Int[Array, "B L"], segments: Int[Array, "B L"] | None = None, following: Bool[Array, "B"] | None = None
    ) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
        """The first and the last image of its row, from 1, that a token sees; none where the last is 0 (layers.masks.media_index)."""
        if segments is None and self.end_token is not None:
            segments = masks.documents(tokens == self.end_token)
        is_image = tokens == self.image_token
        last = masks.media_index(is_image, segments, following)
        return (last if self.attend == "last" else masks.first_image(is_image, segments)), last

    def mask(
        self, first: Int[Array, "B L"], last: Int[Array, "B L"], count: int, tokens: int, images: Int[Array, "B"] | None = None
    ) -> Bool[Array, "B 1 L S"]:
        """Which visual tokens, `tokens` of each of `count` images, a token sees; of a row's images only the first `images` are real."""
        mask = masks.cross(last, count, tokens, first)
        if images is None:
            return mask
        return mask & jnp.repeat(jnp.arange(count)[None] < images[:, None], tokens, axis=1)[:, None, None]

    # --- texts --------------------------------------------------------------------------------------------------------

    def __call__(self, params: Params, tokens: Int[Array, "B L"], **how: Any) -> Float[Array, "B L V"]:
        """Float32 logits of the token after each; arguments as of `hidden`."""
        return self.head(params, self.hidden(params, tokens, **how))

    def head(self, params: Params, x: Float[Array, "B L E"]) -> Float[Array, "B L V"]:
        """Float32 logits."""
        return self.lm.apply(self.language(params), x, method="head")

    def hidden(
        self,
        params: Params,
        tokens: Int[Array, "B L"],
        pixels: Float[Array, "B N F H W C"] | None = None,
        images: Int[Array, "B"] | None = None,
        *,
        following: Bool[Array, "B"] | None = None,
        positions: Int[Array, "B L"] | None = None,
        segments: Int[Array, "B L"] | None = None,
        keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B L E"]:
        """What `head` makes logits of.

        Args:
          pixels: image j of a row is that of its j-th image token. None for text alone.
          images: how many of a row's N images are real; all of them without it.
          following: rows whose tokens see the image after them in place of the one before (Alayrac et al. 2022, section 2.4).
          positions, segments, keys: as of models.lm.LanguageModel; a token sees images of its own segment only.
        """
        variables, fold = self.language(params), lambda use: None if keys is None else rng.fold(keys, use)
        places = jnp.arange(tokens.shape[1])[None] if positions is None else positions
        x = dropout(self.lm.apply(variables, tokens, places, method="embed"), self.lm.dropout, fold(0))
        media = mask = None
        if pixels is not None and pixels.shape[1]:
            media = self.media(params, pixels)
            first, last = self.index(tokens, segments, following)
            mask = self.mask(first, last, pixels.shape[1], media.shape[1] // pixels.shape[1], images)
        where = self.lm.where(places, segments=segments)
        x = self.trunk(params, x, media, mask, where, fold(1))
        return self.lm.apply(variables, x, method="finish")

    def language(self, params: Params) -> dict[str, Any]:
        """The language model's variables, new tokens in their tables."""
        own = dict(params["lm"])
        if "new_tokens" in params:  # of those that are unrolled they stand there
            join = lambda old, name, axis: jnp.concatenate([old, params["new_tokens"][name].astype(old.dtype)], axis)
            own["token"] = {"embedding": join(own["token"]["embedding"], "embedding", 0)}
            if not self.lm.tied:
                own["head"] = {"kernel": join(own["head"]["kernel"], "kernel", 1)}
        return {"params": own}

    def trunk(
        self,
        params: Params,
        x: Float[Array, "B L D"],
        media: Float[Array, "B S M"] | None,
        mask: Bool[Array, "B 1 L S"] | None,
        where: Mapping[str, Array | None],
        keys: Key[Array, "B"] | None,
    ) -> Float[Array, "B L D"]:
        """All blocks, those of the language model and those of cross-attention, before or within them."""
        block = self.lm.block()

        def layer(x: Array, own: Params, i: Array | int, xattn: Params | None = None) -> Array:
            x, between = self.crossed(x, xattn, look)
            return block.apply({"params": own}, x, None if keys is None else rng.fold(keys, i), between, **where)

        def look(x: Array, own: Params) -> Array:
            if media is None:
                return self.xattn.apply({"params": own}, x, None, method="attend")
            return self.xattn.apply({"params": own}, x, media, mask)

        if self.lm.remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.lm.remat == "dots" else None
            layer = jax.checkpoint(layer, prevent_cse=not self.lm.scan, policy=policy)
        xattn = params["xattn"]["blocks"]
        if self.lm.scan:
            return self._scanned(params["lm"]["blocks"], xattn, x, layer)
        for i in range(self.lm.depth):
            at = self.at(i)
            x = layer(x, params["lm"][f"blocks_{i}"], i, None if at is None else jax.tree.map(lambda a, at=at: a[at], xattn))
        return x

    def at(self, i: int) -> int | None:
        """Which block of cross-attention belongs to block i of the language model."""
        at, off = divmod(i - self.first, self.every)
        return at if at >= 0 and off == 0 else None

    def crossed(self, x: Array, own: Params | None, look: Callable[[Array, Params], Array]) -> tuple[Array, Callable | None]:
        """What a block of the language model is given, and its `between`, if it has the parameters `own` of a block of cross-attention."""
        if own is None:
            return x, None
        return (look(x, own), None) if self.xattn.place == "before" else (x, lambda x: look(x, own))

    def _scanned(self, blocks: Params, xattn: Params, x: Array, layer: Callable) -> Array:
        """A loop over super-blocks of `every` blocks of the language model and one of cross-attention; the last one may be shorter."""
        cut = lambda tree, *at: jax.tree.map(lambda a: a[slice(*at)], tree)
        one_of = lambda tree, i: jax.tree.map(lambda a: a[i], tree)

        def run(x: Array, blocks: Params, start: Array | int) -> Array:
            count = len(jax.tree.leaves(blocks)[0])
            body = lambda x, own: (layer(x, *own), None)
            return lax.scan(body, x, (blocks, start + jnp.arange(count)))[0] if count else x

        def one(x: Array, blocks: Params, own: Params, start: Array | int) -> Array:
            at = self.first
            x = layer(run(x, cut(blocks, at), start), one_of(blocks, at), start + at, own)
            return run(x, cut(blocks, at + 1, None), start + at + 1)

        whole, rest = divmod(self.lm.depth, self.every)
        if whole:
            grouped = jax.tree.map(lambda a: a[: whole * self.every].reshape(whole, self.every, *a.shape[1:]), blocks)
            each = (grouped, cut(xattn, whole), self.every * jnp.arange(whole))
            x, _ = lax.scan(lambda x, own: (one(x, *own), None), x, each)
        last, start = cut(blocks, whole * self.every, None), whole * self.every
        if rest > self.first:
            return one(x, last, one_of(xattn, whole), start)
        return run(x, last, start)

    # --- with a cache ---------------------------------------------------------------------------------------------------

    def unrolled(self, params: Params) -> Params:
        """Parameters as decoding reads them: blocks one by one, new tokens in the language model's tables. Those that are so already as
        they are."""
        towers = {name: own for name, own in params.items() if name != "new_tokens"}
        return {**towers, **unstack_params({"lm": self.language(params)["params"], "xattn": params["xattn"]})}

    def begin(
        self,
        params: Params,
        tokens: Int[Array, "B P"],
        length: int,
        pixels: Float[Array, "B N F H W C"] | None = None,
        images: Int[Array, "B"] | None = None,
    ) -> tuple[Callable, dict[str, Any]]:
        """What decoding begins with: `forward` and a cache for `length` tokens of every row of `tokens`, that knows their pictures.

        The cache holds, rows in front: of every block of the language model `k` and `v`, in `lm`; of every block of cross-attention those
        of the visual tokens, in `xattn`; the `tokens` that were read, from which follows who sees which image; and how many `images`
        are real. All `k` and `v` have heads in front of slots (layers.attention.attend_cached).

        Args:
          params: those of `unrolled`; of others a copy is made.
        """
        params = self.unrolled(params)
        cache: dict[str, Any] = {"lm": self.lm.init_cache(len(tokens), length)}
        count = 0 if pixels is None else pixels.shape[1]
        if count:
            media = self.media(params, pixels)
            look = lambda own: self.xattn.apply({"params": own}, media, method="keys_values")
            first = lambda kv: jax.tree.map(lambda x: x.swapaxes(1, 2), kv)
            cache["xattn"] = [first(look(params["xattn"][f"blocks_{i}"])) for i in range(self.blocks)]
            cache["tokens"] = jnp.full((len(tokens), length), -1, jnp.int32)
            cache["images"] = jnp.full(len(tokens), count, jnp.int32) if images is None else images
        return self.forward(params, count), cache

    def forward(self, params: Params, count: int) -> Callable[..., tuple[Float[Array, "B _ V"], dict[str, Any]]]:
        """models.lm.forward's function, of rows with `count` images: `(tokens int32[B, n], start int32[B], cache, last=None)` to logits and
        cache."""
        params = self.unrolled(params)
        variables, xattn, block = self.language(params), params["xattn"], self.lm.block()

        def forward(tokens, start, cache, last=None):
            places = start[:, None] + jnp.arange(tokens.shape[1])[None]
            x = self.lm.apply(variables, tokens, places, method="embed")
            where = self.lm.where(places, slots=cache["lm"][0]["k"].shape[2])
            new, seen = {**cache, "lm": []}, [None] * self.blocks
            mask = None
            if count:
                new["tokens"] = jax.vmap(lambda row, own, at: lax.dynamic_update_slice(row, own, (at,)))(cache["tokens"], tokens, start)
                here = (jnp.take_along_axis(i, places, axis=1) for i in self.index(new["tokens"]))
                seen = cache["xattn"]
                mask = self.mask(*here, count, seen[0]["k"].shape[2] // count, cache["images"])
            for i in range(self.lm.depth):
                at = self.at(i)
                look = lambda x, own, at=at: self.xattn.apply({"params": own}, x, seen[at], mask, cached=True, method="attend")
                x, between = self.crossed(x, None if at is None else xattn[f"blocks_{at}"], look)
                own = {"params": params["lm"][f"blocks_{i}"]}
                x, own = block.apply(own, x, cache["lm"][i], start, between, **where, method="cached")
                new["lm"].append(own)
            x = x if last is None else jnp.take_along_axis(x, last[:, None, None], axis=1)
            x = self.lm.apply(variables, x, method="finish")
            return self.lm.apply(variables, x, method="head"), new

        return forward


def check_images(tokens: Any, pixels: Any, images: Any, image_token: int, names: Any = None) -> None:
    """Looks, on the host, at what the device would silently get wrong; arrays inside another compiled function pass unseen.

    Args:
      tokens, pixels, images: as of `Flamingo.hidden`.
      names: what messages call the rows; their numbers without it.

    Raises:
      UserError: pixels of another shape, a video without frames, or a row with another number of image tokens than images.
    """
    if pixels is not None:
        shape = np.shape(pixels)
        if len(shape) != 6:
            raise UserError(f"pixels: shape {shape}, expected (rows, images, frames, height, width, channels); a picture is one frame")
        if shape[2] == 0:
            raise UserError(f"pixels: shape {shape}: videos of 0 frames; every picture has one frame at least")
        if shape[0] != np.shape(tokens)[0]:
            raise UserError(f"pixels: {shape[0]} rows beside {np.shape(tokens)[0]} rows of tokens")
    if any(isinstance(x, jax.core.Tracer) for x in (tokens, images)):
        return
    placed = (np.asarray(tokens) == image_token).sum(1)
    most = 0 if pixels is None else np.shape(pixels)[1]
    given = np.full(len(placed), most) if images is None else np.asarray(images)
    if given.shape != placed.shape:
        raise UserError(f"images: shape {given.shape}, expected one number for each of {len(placed)} rows")
    for row, (places, own) in enumerate(zip(placed, given, strict=True)):
        who = f"row {row}" if names is None else f"{names[row]}"
        if own < 0 or own > most:
            raise UserError(f"{who}: images says {own}, but pixels have room for {most} a row")
        if places != own:
            raise UserError(f"{who}: {places} image tokens (id {image_token}) and {own} images; each image stands at one token")


# --- from fields ---------------------------------------------------------------------------------------------------------


def build(model: Group, dtype: DTypeLike = jnp.float32, where: str = "config.model") -> Flamingo:
    """The model of fields, on top of those of a `variant` of VARIANTS if they name one.

    Groups `vision` (a `type` of VISION), `resampler` (a `type` of perceiver.RESAMPLERS), `xattn` and `lm` hold the fields of their modules.
    `resampler` and `xattn` may begin from a `form` ("flamingo", "open_flamingo", "idefics"; of `xattn` also "vanilla"), `lm` from a
    `variant`; `lm.vocab` is without `new_tokens`.

    Raises:
      UserError: an unknown variant, form or field, a missing one, or numbers that do not fit.
    """
    fields = with_variant(model, VARIANTS, where)
    parts = {name: dict(get(fields, name, where).items()) for name in ("vision", "resampler", "xattn", "lm")}
    rest = kwargs_for(Flamingo, {k: v for k, v in fields.items() if k not in parts}, where)
    get(rest, "image_token", where)
    text = lm.build(parts["lm"], dtype, f"{where}.lm")
    text = text.clone(vocab=text.vocab + rest.get("new_tokens", 0))
    vision = tower(parts["vision"], VISION, dtype, f"{where}.vision")
    kind = parts["resampler"].get("type", "perceiver")
    forms = perceiver.FORMS if kind == "perceiver" else {}
    resampler = tower(formed(parts["resampler"], forms, f"{where}.resampler"), perceiver.RESAMPLERS, dtype, f"{where}.resampler")
    given = kwargs_for(GatedCrossAttention, formed(parts["xattn"], gated_xattn.FORMS, f"{where}.xattn"), f"{where}.xattn")
    for needed in ("heads", "head_width", *(("mlp",) if given.get("dense", True) else ())):
        get(given, needed, f"{where}.xattn")
    out = Flamingo(vision, resampler, GatedCrossAttention(**{"width": text.width, "dtype": dtype, **given}), text, **rest)
    _check(out, where)
    return out


def formed(fields: Group, forms: Mapping[str, Group], where: str) -> dict[str, Any]:
    """Fields over those of the `form` that they name, if they name one."""
    fields = dict(fields)
    form = fields.pop("form", None)
    if form is not None and form not in forms:
        raise UserError(f"{where}.form is {form!r}{suggest(str(form), forms)}")
    return {**(forms[form] if form is not None else {}), **fields}


def _check(model: Flamingo, where: str) -> None:
    if model.xattn.place not in gated_xattn.PLACES:
        raise UserError(f"{where}.xattn.place is {model.xattn.place!r}{suggest(model.xattn.place, gated_xattn.PLACES)}")
    if model.xattn.place == "within" and model.lm.residual == "parallel":
        raise UserError(f"{where}.xattn.place is 'within', and the language model's branches are parallel: between them is no place")
    if model.attend not in ATTEND:
        raise UserError(f"{where}.attend is {model.attend!r}{suggest(model.attend, ATTEND)}")
    if not 0 <= model.first < model.every:
        raise UserError(f"{where}.first is {model.first}, expected 0 to {model.every - 1}: every is {model.every}")
    if not model.blocks:
        raise UserError(f"{where}: no cross-attention: first is {model.first}, and the language model has {model.lm.depth} blocks")
    if not 0 <= model.image_token < model.lm.vocab:
        raise UserError(f"{where}.image_token is {model.image_token}; with new tokens the vocabulary has 0 to {model.lm.vocab - 1}")


# --- published sizes -----------------------------------------------------------------------------------------------------


def _clip(name: str, act: str) -> dict[str, Any]:
    return {"type": "vit", "patch": 14, **vit.VARIANTS[name], "act": act, "eps": 1e-5, "pre_norm": True, "patch_bias": False}


def _flamingo(text: str, every: int) -> dict[str, Any]:
    width, heads = lm.VARIANTS[text]["width"], lm.VARIANTS[text]["heads"]
    vocab = lm.VARIANTS[text]["vocab"]
    return {
        "vision": {"type": "nfnet", **nfnets.VARIANTS["F6"]},
        "resampler": {"form": "flamingo", "width": 1536, "depth": 6, "heads": 16, "head_width": 96, "mlp": 4 * 1536},
        "xattn": {"form": "flamingo", "heads": heads, "head_width": 128, "mlp": 4 * width},
        "lm": {"variant": text},
        **{"every": every, "new_tokens": 2, "image_token": vocab + 1, "size": 320},
    }


def _open_flamingo(text: str, every: int) -> dict[str, Any]:
    width, vocab = lm.VARIANTS[text]["width"], lm.VARIANTS[text]["vocab"]
    return {
        "vision": _clip("L", "quick_gelu"),
        "resampler": {"form": "open_flamingo", "width": 1024, "depth": 6, "heads": 8, "head_width": 64, "mlp": 4 * 1024},
        "xattn": {"form": "open_flamingo", "heads": 8, "head_width": 64, "mlp": 4 * width},
        "lm": {"variant": text},
        **{"every": every, "first": every - 1, "new_tokens": 2, "image_token": vocab + 1},
    }


def _idefics(text: str) -> dict[str, Any]:
    sizes = lm.VARIANTS[text]
    return {
        "vision": _clip("H", "gelu"),
        "resampler": {"form": "idefics", "width": 1280, "depth": 6, "heads": 16, "head_width": 96, "mlp": 4 * 1280},
        "xattn": {"form": "idefics", "heads": sizes["heads"], "head_width": 128, "mlp": sizes["mlp"], "eps": sizes["eps"]},
        "lm": {"variant": text},
        **{"every": 4, "class_token": True, "new_tokens": 2, "image_token": sizes["vocab"] + 1, "end_token": 2},
    }


# Flamingo's by the layers, widths and heads of Alayrac et al. 2022, tables 4 and 5. Their sums do not follow from these: of the resampler
# 169.9 million parameters, where the paper says 194; of cross-attention 1.16, 1.80 and 8.36 billion, where it says 1.2, 1.6 and 10; of the
# 40 layers of 4096 of Chinchilla's 7.1 billion alone 8.05. The new tokens are `<EOC>` (`<|endofchunk|>`) and `<image>`; IDEFICS'
# `<fake_token_around_image>` and `<image>`. OpenFlamingo's own checkpoints number them from the end of their tokenizer on.
VARIANTS: dict[str, dict[str, Any]] = {
    "flamingo-3b": _flamingo("chinchilla-1.4b", 1),
    "flamingo-9b": _flamingo("chinchilla-7b", 4),
    "flamingo-80b": _flamingo("chinchilla-70b", 7),
    "open_flamingo-3b": _open_flamingo("mpt-1b", 1),
    "open_flamingo-4b": _open_flamingo("redpajama-3b", 2),
    "open_flamingo-9b": _open_flamingo("mpt-7b", 4),
    "idefics-9b": _idefics("llama-7b"),
    "idefics-80b": _idefics("llama-65b"),
}
