"""Transforms: `(example, rng) -> example` over dicts of numpy arrays, bytes and text, composed from a config.

An image is bytes until `decode`, then uint8 [H, W, C], then float32 after `normalize`. Every random draw comes from the generator
that is passed in, which the loader seeds by (seed, position). A transform returns a new dict and leaves its input alone, since
a source may hand out the same record twice. Transforms are plain dataclasses, so that worker processes can be sent them.

What is wrong with one record alone (no image, an empty caption) raises `BadSample`, what is wrong with the config `UserError`.
"""

import dataclasses
import math
import string
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image, ImageEnhance

from mmjax.core.errors import UserError, suggest
from mmjax.data.bad import BadSample
from mmjax.data.degrade import Degrade
from mmjax.data.image import Decode, resampling, resized, to_array, to_pil
from mmjax.data.interleave import Interleave
from mmjax.data.tokenizer import Tokenizer

Example = Mapping[str, Any]
Transform = Callable[[Example, np.random.Generator], Example]
Number = int | float
Size = int | Sequence[int]  # one number for a square, or (height, width)


def _size(size: Size, name: str = "size") -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(s, int) and s > 0 for s in pair):
        raise ValueError(f"{name} is one positive integer or (height, width), got {size!r}")
    return pair


@dataclasses.dataclass(frozen=True)
class Resize:
    """To exactly `size` (height, width), or so that the short side is `size` with the aspect kept; `method` is one of METHODS."""

    size: Size
    short_side: bool = False
    method: str = "bicubic"

    def __post_init__(self):
        _size(self.size)
        resampling(self.method)
        if self.short_side and not isinstance(self.size, int):
            raise ValueError(f"short_side takes one number as size, got {self.size!r}")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        image = example["image"]
        target = _size(self.size)
        if self.short_side:
            short = min(image.shape[:2])
            target = tuple(target[0] if side == short else int(target[0] * side / short) for side in image.shape[:2])
        return {**example, "image": resized(image, target, self.method)}


@dataclasses.dataclass(frozen=True)
class PadToSquare:
    """Pixels of `fill` on the two short sides, one more on the far side where their number is odd."""

    fill: int | Sequence[int] = 0

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        image = example["image"]
        height, width, channels = image.shape
        side = max(height, width)
        if height == width:
            return example
        fill = np.asarray(self.fill)
        if fill.ndim and fill.shape != (channels,):
            raise UserError(f"pad_to_square: fill is one number or {channels}, one a channel; got {self.fill!r}")
        out = np.empty((side, side, channels), np.uint8)
        out[:] = fill
        top, left = (side - height) // 2, (side - width) // 2
        out[top : top + height, left : left + width] = image
        return {**example, "image": out}


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """The middle `size` (height, width) of the image."""

    size: Size

    def __post_init__(self):
        _size(self.size)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        (h, w), (height, width) = _size(self.size), example["image"].shape[:2]
        _check_fits((h, w), (height, width), "center_crop")
        top, left = round((height - h) / 2), round((width - w) / 2)
        return {**example, "image": example["image"][top : top + h, left : left + w]}


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A uniformly placed window of `size` (height, width), after `padding` pixels of `fill` on every side."""

    size: Size
    padding: int = 0
    fill: int = 0

    def __post_init__(self):
        _size(self.size)
        if self.padding < 0:
            raise ValueError(f"padding must not be negative, got {self.padding}")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        image, p, (h, w) = example["image"], self.padding, _size(self.size)
        height, width, channels = image.shape
        _check_fits((h, w), (height + 2 * p, width + 2 * p), "random_crop")
        if p:
            padded = np.full((height + 2 * p, width + 2 * p, channels), self.fill, image.dtype)
            padded[p : p + height, p : p + width] = image
            image = padded
        top, left = int(rng.integers(image.shape[0] - h + 1)), int(rng.integers(image.shape[1] - w + 1))
        return {**example, "image": image[top : top + h, left : left + w]}


def _check_fits(window: tuple[int, int], image: tuple[int, int], name: str) -> None:
    if window[0] > image[0] or window[1] > image[1]:
        raise BadSample(
            "small", f"{name}: a window of {window} (height, width) does not fit in an image of {tuple(image)}; put a resize before it"
        )


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A window of random area and aspect, resized to `size` (C. Szegedy et al. 2015, "Going deeper with convolutions", section 6).

    `scale` bounds the window's share of the area, `ratio` its width / height (drawn uniformly in the logarithm). If ten draws do
    not fit, the largest centred window within `ratio` is taken.
    """

    size: Size
    scale: Sequence[Number] = (0.08, 1.0)
    ratio: Sequence[Number] = (3 / 4, 4 / 3)
    method: str = "bicubic"

    def __post_init__(self):
        _size(self.size)
        resampling(self.method)
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} is (low, high) with 0 < low <= high, got {(low, high)}")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        image = example["image"]
        top, left, h, w = self._window(image.shape[0], image.shape[1], rng)
        return {**example, "image": resized(image[top : top + h, left : left + w], _size(self.size), self.method)}

    def _window(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirrors left and right with probability `p`."""

    p: Number = 0.5

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        if rng.random() >= self.p:
            return example
        image = example["image"]
        out = np.empty(image.shape, image.dtype)
        for c in range(image.shape[-1]):  # a channel at a time: five times as fast as one copy of the mirrored view
            out[..., c] = image[:, ::-1, c]
        return {**example, "image": out}


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast, saturation and hue, in an order drawn anew for every image.

    Of the first three a number v means a factor uniform in [max(0, 1 - v), 1 + v]: brightness scales the pixels, contrast moves them
    away from the mean luma (or to it, below 1), saturation from their own luma. `hue` (at most 0.5) turns the hue by a uniform share of the
    circle in [-hue, hue], in eight-bit HSV. As torchvision's ColorJitter on Pillow images, with draws of its own. A grey image has
    no saturation and no hue, which then do nothing. The number of draws is always the same.
    """

    brightness: Number = 0.0
    contrast: Number = 0.0
    saturation: Number = 0.0
    hue: Number = 0.0

    def __post_init__(self):
        if min(self.brightness, self.contrast, self.saturation, self.hue) < 0 or self.hue > 0.5:
            raise ValueError(f"brightness, contrast and saturation are at least 0 and hue 0 to 0.5, got {dataclasses.astuple(self)}")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        order, draws = rng.permutation(4).tolist(), rng.random(4).tolist()
        image = to_pil(example["image"])
        for which in order:
            name, enhance = _JITTER[which]
            strength = getattr(self, name)
            if strength:
                low, high = (-strength, strength) if name == "hue" else (max(0.0, 1.0 - strength), 1.0 + strength)
                image = enhance(image, low + (high - low) * draws[which])
        return {**example, "image": to_array(image)}


def _turn_hue(image: Image.Image, share: float) -> Image.Image:
    if image.mode == "L":
        return image
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + round(share * 255)) % 256
    hue = Image.fromarray(turned.astype(np.uint8))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


_JITTER = (
    ("brightness", lambda image, factor: ImageEnhance.Brightness(image).enhance(factor)),
    ("contrast", lambda image, factor: ImageEnhance.Contrast(image).enhance(factor)),
    ("saturation", lambda image, factor: ImageEnhance.Color(image).enhance(factor)),
    ("hue", _turn_hue),
)


@dataclasses.dataclass(frozen=True)
class RandomAffine:
    """Turns by up to `degrees` either way, moves by up to `shift` of the side either way, and zooms by a factor in `scale`.

    About the image's centre, bilinear; pixels from outside are `fill`.
    """

    degrees: Number = 0.0
    shift: Number = 0.0
    scale: Sequence[Number] = (1.0, 1.0)
    fill: int = 0

    def __post_init__(self):
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale is (low, high) with 0 < low <= high, got {(low, high)}")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        turn, right, down, zoom = rng.random(4).tolist()
        angle = math.radians(self.degrees * (2 * turn - 1))
        low, high = self.scale
        image = affine(
            example["image"], angle, self.shift * (2 * right - 1), self.shift * (2 * down - 1), low + (high - low) * zoom, self.fill
        )
        return {**example, "image": image}


def affine(
    image: UInt8[np.ndarray, "H W C"], angle: float, right: float, down: float, zoom: float, fill: int
) -> UInt8[np.ndarray, "H W C"]:
    """Turns by `angle` (radians, anticlockwise), zooms, then moves by `right` and `down` (shares of the width and height)."""
    height, width, channels = image.shape
    cx, cy = width / 2, height / 2
    c, s = math.cos(angle) / zoom, math.sin(angle) / zoom
    ox, oy = cx + right * width, cy + down * height  # where the centre goes
    # Pillow asks where an output pixel comes from: undo the move, then the zoom and the turn.
    inverse = (c, -s, cx - c * ox + s * oy, s, c, cy - s * ox - c * oy)
    colour = fill if channels == 1 else (fill,) * channels
    pil = to_pil(image).transform((width, height), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR, fillcolor=colour)
    return to_array(pil)


@dataclasses.dataclass(frozen=True)
class Normalize:
    """uint8 0..255 -> float32 `(x / 255 - mean) / std`; `mean` and `std` are numbers or one number a channel."""

    mean: Number | Sequence[Number] = 0.5
    std: Number | Sequence[Number] = 0.5

    def __post_init__(self):
        if np.min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return {**example, "image": self.batch(example["image"][None])[0]}

    def batch(self, images: UInt8[np.ndarray, "B H W C"] | np.ndarray) -> Float32[np.ndarray, "B H W C"]:
        """The same of several images at once, into one new array."""
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UserError(f"normalize: expected a uint8 image, got {images.dtype}; is it there twice, or before 'decode'?")
        count, height, width, channels = images.shape
        # Row by row, with mean and std repeated along the row: ten times as fast as three channels at a time, and the same bits.
        mean, std = (np.tile(np.broadcast_to(np.float32(x), channels), width) for x in (self.mean, self.std))
        out = np.empty((count, height, width * channels), np.float32)
        for image, to in zip(images, out, strict=True):  # an image at a time stays in the cache
            np.multiply(image.reshape(height, width * channels), np.float32(1 / 255), out=to)
            to -= mean
            to /= std
        return out.reshape(images.shape)


@dataclasses.dataclass(frozen=True)
class PickCaption:
    """One of `captions` as `caption`: a random one, or number `index` (for evaluation)."""

    index: int | None = None

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        captions = example["captions"]
        if not captions:
            raise BadSample("missing", "no caption")
        return {**example, "caption": captions[rng.integers(len(captions)) if self.index is None else self.index]}


@dataclasses.dataclass(frozen=True)
class Compose:
    """`template` with keys of the example in braces -> text `target`: "Question: {question} Answer: {answer}".

    Of lists (questions and their answers) the entries with one number, drawn at random or `index` (for evaluation); with `join`, all of
    them with spaces between.
    """

    template: str
    target: str = "caption"
    join: bool = False
    index: int | None = None

    def __post_init__(self):
        keys = [key for _, key, _, _ in string.Formatter().parse(self.template) if key is not None]
        if not keys or not all(key.isidentifier() for key in keys):
            raise ValueError(f"template is {self.template!r}; expected keys of the example in braces, {{caption}}")
        object.__setattr__(self, "keys", tuple(keys))

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        given = {key: example[key] for key in self.keys}
        counts = {len(value) for value in given.values() if not isinstance(value, str)}
        if counts and (len(counts) > 1 or not min(counts)):
            raise BadSample("missing", f"{self.template!r} of lists of {sorted(counts)} texts")
        k = 0 if self.join or not counts else int(rng.integers(min(counts))) if self.index is None else self.index
        one = lambda value: value if isinstance(value, str) else " ".join(value) if self.join else value[k]
        return {**example, self.target: self.template.format_map({key: one(value) for key, value in given.items()})}


@dataclasses.dataclass(frozen=True)
class Tokenize:
    """Text `source` -> int32 [length] `target`: special tokens and text, cut so that the end token stays, padded to the full length.

    Unset, the tokenizer's own format decides: CLIP's rows are start, text, end (a text too long ends in the end token, as OpenAI
    truncates), BERT's [CLS], text, [SEP], T5's and SigLIP's text, end.

    Attributes:
      start, end: whether to add these tokens, where that is not to be as the format has it.
      pad: id to pad with in place of the tokenizer's own; CLIP: 0 as OpenAI and open_clip, SigLIP: 1.

    Raises (when called):
      BadSample: no text, none but white space (unless `allow_empty`), or bytes that are not UTF-8.
    """

    tokenizer: Tokenizer
    length: int
    source: str = "caption"
    target: str = "tokens"
    allow_empty: bool = False
    start: bool | None = None
    end: bool | None = None
    pad: int | None = None

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(f"length must be at least 1, got {self.length}")
        try:  # a token it has not, no room, a wrong pad: better said now than in a worker
            self._row("a")
            special = len(self.tokenizer.encode_plain("a", start=self.start, end=self.end)) - len(self.tokenizer.encode_plain("a"))
        except UserError as e:
            raise ValueError(str(e)) from e
        if special >= self.length:
            raise ValueError(f"length {self.length} is all special tokens, of which there are {special}: no text fits in it")

    def _row(self, text: str) -> Int32[np.ndarray, "L"]:
        return self.tokenizer.encode(text, self.length, start=self.start, end=self.end, pad=self.pad)[0]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        text = _text(example[self.source])
        if not self.allow_empty and not text.strip():
            raise BadSample("empty_text", f"{self.source} is {text!r}")
        return {**example, self.target: self._row(text)}


@dataclasses.dataclass(frozen=True)
class TokenizeAll:
    """The first `count` of `captions` as int32[count, length] `tokens`, in turn again where there are fewer."""

    tokenize: Tokenize
    count: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        captions = example["captions"]
        if not captions:
            raise BadSample("missing", "no caption")
        source, target = self.tokenize.source, self.tokenize.target
        rows = [self.tokenize({source: captions[i % len(captions)]}, rng)[target] for i in range(self.count)]
        return {**example, target: np.stack(rows)}


@dataclasses.dataclass(frozen=True)
class PickRow:
    """Of arrays with a row a caption, as `mmjax cache --captions` stores them, one row: a random one, of all `keys` the same, or number
    `index` (for evaluation)."""

    keys: Sequence[str]
    index: int | None = None

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        count = len(example[self.keys[0]])
        row = int(rng.integers(count)) if self.index is None else self.index
        return {**example, **{key: example[key][row] for key in self.keys}}


def _text(value: Any) -> str:
    if value is None:
        raise BadSample("missing", "no text")
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as e:
        raise BadSample("bad_text", f"not UTF-8 at byte {e.start}") from e


@dataclasses.dataclass(frozen=True)
class Keep:
    """Only the named keys; what reaches the device."""

    keys: Sequence[str]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return {key: example[key] for key in self.keys}


@dataclasses.dataclass(frozen=True)
class Rename:
    """Renames keys, `{old: new}`."""

    keys: Mapping[str, str]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return {self.keys.get(key, key): value for key, value in example.items()}


TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "decode": Decode,
    "resize": Resize,
    "pad_to_square": PadToSquare,
    "color_jitter": ColorJitter,
    "center_crop": CenterCrop,
    "random_crop": RandomCrop,
    "random_resized_crop": RandomResizedCrop,
    "flip": Flip,
    "random_affine": RandomAffine,
    "degrade": Degrade,
    "normalize": Normalize,
    "pick_caption": PickCaption,
    "pick_row": PickRow,
    "compose": Compose,
    "tokenize": Tokenize,
    "interleave": Interleave,
    "keep": Keep,
    "rename": Rename,
}


@dataclasses.dataclass(frozen=True)
class Chain:
    """Transforms one after another. A key that is missing is reported by the step that wanted it."""

    names: tuple[str, ...]
    steps: tuple[Transform, ...]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        for name, step in zip(self.names, self.steps, strict=True):
            try:
                example = step(example, rng)
            except KeyError as e:
                raise UserError(f"transform {name!r}: the example has no {e}{suggest(str(e.args[0]), example)}") from e
        return example

    def deferred(self) -> "tuple[Chain, Normalize | None]":
        """(this without its normalising, that), where it may as well be done for a whole batch at once: no later step sees the image.

        Between the two a batch is a quarter of the size, which is what goes from process to process.
        """
        at = [i for i, step in enumerate(self.steps) if isinstance(step, Normalize)]
        if len(at) != 1 or not all(self._leaves_images(step) for step in self.steps[at[0] + 1 :]):
            return self, None
        cut = lambda items: (*items[: at[0]], *items[at[0] + 1 :])
        return Chain(cut(self.names), cut(self.steps)), self.steps[at[0]]

    def _leaves_images(self, step: Transform) -> bool:
        tokens = isinstance(step, Tokenize) and step.target != "image"
        return tokens or isinstance(step, PickCaption) or (isinstance(step, Keep) and "image" in step.keys)


def build(
    specs: Sequence[Sequence[Any]],
    tokenizer: Tokenizer | None = None,
    where: str = "data.transforms",
    limits: Mapping[str, Any] | None = None,
) -> Chain:
    """The transform that a config describes: `(("decode", {"channels": 1}), ("flip", {}), ...)`.

    `limits` are arguments of `decode` (`max_aspect`, `min_side`) where its own do not name them.

    Raises:
      UserError: an unknown name or argument, a missing or wrong argument, or `tokenize` without a tokenizer; `where` names the
        config key.
    """
    steps = [_step(spec, tokenizer, f"{where}[{i}]") for i, spec in enumerate(specs)]
    given = {k: v for k, v in (limits or {}).items() if v is not None}
    steps = [_limited(s, given) if isinstance(s, Decode) and given else s for s in steps]
    return Chain(tuple(spec[0] for spec in specs), tuple(steps))


def _limited(decode: Decode, limits: Mapping[str, Any]) -> Decode:
    free = {k: v for k, v in limits.items() if getattr(decode, k) is None}
    try:
        return dataclasses.replace(decode, **free)
    except ValueError as e:
        raise UserError(f"data: {e}") from e


def _step(spec: Any, tokenizer: Tokenizer | None, where: str) -> Transform:
    well_formed = isinstance(spec, Sequence) and len(spec) == 2 and isinstance(spec[0], str) and isinstance(spec[1], Mapping)
    if not well_formed or isinstance(spec, str):
        raise UserError(f'{where}: expected ("name", {{arguments}}), got {spec!r}')
    name, args = spec[0], dict(spec[1])
    if name not in TRANSFORMS:
        raise UserError(f"{where}: unknown transform {name!r}{suggest(name, TRANSFORMS)}")
    factory = TRANSFORMS[name]
    fields = {f.name: f for f in dataclasses.fields(factory)}
    wants_tokenizer = fields.pop("tokenizer", None) is not None
    if wants_tokenizer and tokenizer is None:
        raise UserError(f"{where}: {name!r} needs a tokenizer, and the source has none")
    _check_arguments(args, fields, f"{where}: {name!r}")
    if wants_tokenizer:
        args["tokenizer"] = tokenizer
    try:
        return factory(**args)
    except (TypeError, ValueError) as e:
        raise UserError(f"{where}: {name!r}: {e}") from e


_PLAIN = {int, float, str, bool, type(None)}  # looked at here; of other arguments the transform itself says what it takes


def _check_arguments(args: dict[str, Any], fields: Mapping[str, dataclasses.Field], where: str) -> None:
    for key, value in args.items():
        if key not in fields:
            raise UserError(f"{where} has no argument {key!r}{suggest(key, fields)}")
        kind = fields[key].type
        members = set(kind.__args__) if isinstance(kind, types.UnionType) else {kind}
        fits = isinstance(value, tuple(members)) if members <= _PLAIN else True
        if not fits or (members <= _PLAIN and isinstance(value, bool) and bool not in members):
            raise UserError(f"{where}: {key} is of type {getattr(kind, '__name__', kind)}, got {value!r}")
    for key, field in fields.items():
        if key not in args and field.default is dataclasses.MISSING:
            raise UserError(f"{where} needs the argument {key!r}")
