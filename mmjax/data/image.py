"""Images: encoded bytes to pixels, and Pillow's resize on arrays. A picture is uint8 [H, W, C] with C = 1 or 3."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from mmjax.core.errors import suggest
from mmjax.data.bad import BadSample


def to_pil(image: UInt8[np.ndarray, "H W C"]) -> Image.Image:
    """The picture as Pillow's."""
    height, width, channels = image.shape
    # The array itself, not its tobytes(): a tenth of the time.
    return Image.frombytes(_raw(channels), (width, height), np.ascontiguousarray(image))


def _raw(channels: int) -> str:
    return "L" if channels == 1 else "RGB"


def to_array(image: Image.Image) -> UInt8[np.ndarray, "H W C"]:
    """Its inverse."""
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)


# Pillow's filters, antialiased when they shrink: bicubic is what published image towers were trained and tested with.
METHODS = {m.name.lower(): m for m in Image.Resampling}


def resampling(name: str) -> Image.Resampling:
    """The filter of that name; ValueError if there is none."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}{suggest(name, METHODS)}")
    return METHODS[name]


def resized(image: UInt8[np.ndarray, "H W C"], size: tuple[int, int], how: str) -> UInt8[np.ndarray, "H2 W2 C"]:
    """As Pillow's `resize` does it, bit for bit."""
    if image.shape[:2] == size:
        return image
    return to_array(to_pil(image).resize((size[1], size[0]), resampling(how)))


FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_UPRIGHT = {  # EXIF orientation -> how to turn the stored picture, as a viewer shows it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


@contextlib.contextmanager
def decoding(data: bytes | np.ndarray) -> Iterator[None]:
    """Turns whatever Pillow raises over these bytes into a BadSample, except that there is no memory."""
    try:
        yield
    except (BadSample, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise BadSample("bomb", str(e)) from e
    except UnidentifiedImageError as e:
        raise BadSample("undecodable", f"not a {', '.join(FORMATS)} image, starts with {bytes(data[:8])!r}") from e
    except Exception as e:  # Pillow's decoders raise whatever their readers trip over
        kind = "truncated" if isinstance(e, OSError | EOFError) and "truncated" in str(e).lower() else "undecodable"
        raise BadSample(kind, f"{type(e).__name__}: {' '.join(str(e).split())[:120]}") from e


@dataclasses.dataclass(frozen=True)
class Decode:
    """Encoded bytes -> uint8 [H, W, channels]; 1 channel is luma (ITU-R 601-2), 3 is RGB. PNG, JPEG, WebP, GIF, BMP; first frame.

    Palettes are looked up and CMYK turned into RGB as Pillow's `convert` does. Transparency is dropped, as `convert` and published
    pipelines drop it, or laid over a grey of `background` 0..255. Sixteen-bit greys become round(x * 255 / 65535). A picture is
    turned upright by its EXIF orientation; published pipelines do not (`upright=False`).

    Attributes:
      max_aspect: an image whose longer side is over so many times the shorter one is bad; from `data.max_aspect` in training.
      min_side: an image whose shorter side is below it is bad; from `data.min_side` in training.

    Raises (when called):
      BadSample: no bytes, no image, one that ends early, one with too many pixels to be honest, or beyond those limits.
    """

    channels: int = 3
    background: int | None = None
    upright: bool = True
    max_aspect: float | int | None = None
    min_side: int | None = None

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        if self.background is not None and not 0 <= self.background <= 255:
            raise ValueError(f"background is a grey 0 to 255, got {self.background}")
        if self.max_aspect is not None and self.max_aspect < 1:
            raise ValueError(f"max_aspect is a ratio of at least 1, got {self.max_aspect}")

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> Mapping[str, Any]:
        data = example["image"]
        if data is None:
            raise BadSample("missing", "no image")
        if not len(data):
            raise BadSample("empty_file", "the image has no bytes")
        with decoding(data):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            self._check(image.size)
            image.load()
            image = self._turned(image)
            return {**example, "image": self._pixels(image)}

    def _check(self, size: tuple[int, int]) -> None:
        """What the file's header says, before anything is unpacked."""
        short, long = min(size), max(size)
        if Image.MAX_IMAGE_PIXELS and short * long > Image.MAX_IMAGE_PIXELS:
            raise BadSample("bomb", f"{size[0]} x {size[1]} pixels")
        if self.max_aspect is not None and long > self.max_aspect * short:
            raise BadSample("aspect", f"{size[0]} x {size[1]} pixels, more than {self.max_aspect:g} to 1")
        if self.min_side is not None and short < self.min_side:
            raise BadSample("small", f"{size[0]} x {size[1]} pixels, a side is below {self.min_side}")

    def _turned(self, image: Image.Image) -> Image.Image:
        orientation = image.getexif().get(_ORIENTATION) if self.upright else None
        return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image

    def _pixels(self, image: Image.Image) -> UInt8[np.ndarray, "H W C"]:
        mode = _raw(self.channels)
        if image.mode == mode:
            return to_array(image)
        if image.mode.startswith("I"):  # sixteen bits, which Pillow's convert cuts off at 255 or shifts
            wide = np.asarray(image).astype(np.int64)
            grey = ((np.clip(wide, 0, 65535) * 255 + 32767) // 65535).astype(np.uint8)
            return np.repeat(grey[..., None], self.channels, -1)
        if self.background is not None and image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (self.background,) * 3 + (255,)), image)
        elif image.mode == "P" and image.has_transparency_data:
            image = image.convert("RGBA")  # else Pillow warns, or picks another palette
        return to_array(image.convert(mode))
