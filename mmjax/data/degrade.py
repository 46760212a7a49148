"""Pictures of low resolution as upsamplers are trained on them, made by the host: resized, or degraded as BSRGAN does.

Zhang, Liang, Van Gool, Timofte 2021, arXiv 2103.14006, section 3, in the light form that latent diffusion and unCLIP use: weak blurs, no
sensor noise. Two Gaussian blurs, a random resizing, the resizing to the size asked for, Gaussian noise and a JPEG come in a random order;
one more JPEG comes last. Pictures are float32 [H, W, C] in 0..1; every draw comes from the generator that is passed in.
"""

import dataclasses
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image

from mmjax.core.errors import suggest
from mmjax.data.bad import BadSample
from mmjax.data.image import to_array, to_pil

Picture = Float32[np.ndarray, "_ _ C"]  # whose size a step may change
METHODS = ("resize", "bsr")
FILTERS = ("BILINEAR", "BICUBIC", "BOX")  # of the random resizing


def gaussian_kernel(size: int, widths: tuple[float, float], angle: float = 0.0) -> Float[np.ndarray, "k k"]:
    """A Gaussian of standard deviations `widths` along axes turned by `angle` (radians), at whole pixels; it sums to 1."""
    reach = np.arange(size) - (size - 1) / 2
    y, x = np.meshgrid(reach, reach, indexing="ij")
    c, s = math.cos(angle), math.sin(angle)
    weights = np.exp(-(((c * x + s * y) / widths[0]) ** 2 + ((c * y - s * x) / widths[1]) ** 2) / 2)
    return weights / weights.sum()


def filtered(picture: Picture, kernel: Float[np.ndarray, "k k"]) -> Picture:
    """The picture under a kernel of an odd size, edges repeated."""
    size, reach, (height, width) = len(kernel), len(kernel) // 2, picture.shape[:2]
    wide = np.pad(picture, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    out = np.zeros_like(picture)
    for i in range(size):
        for j in range(size):
            out += np.float32(kernel[i, j]) * wide[i : i + height, j : j + width]
    return out


def jpeg(picture: Picture, quality: int) -> Picture:
    """The picture after JPEG of a quality from 1 to 95."""
    memory = io.BytesIO()
    to_pil(np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)).save(memory, format="JPEG", quality=quality)
    memory.seek(0)
    return to_array(Image.open(memory)).astype(np.float32) / np.float32(255)


def scaled(picture: Picture, size: tuple[int, int], method: str) -> Picture:
    """To a size (height, width), in floats; `method` is one of Pillow's filters."""
    how = Image.Resampling[method]
    planes = [Image.fromarray(np.ascontiguousarray(plane)).resize(size[::-1], how) for plane in np.moveaxis(picture, -1, 0)]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


@dataclasses.dataclass(frozen=True)
class Bsr:
    """What degrades a picture to `size` x `size` pixels.

    Attributes:
      strength: factor on the deviations of blurs and noise and on what JPEG loses of quality; at 0 there is the resizing alone.
      blur: largest standard deviation of a blur, in pixels of the small picture.
      noise: largest standard deviation of noise, of 0..1.
      quality: worst of JPEG; the best is 95.
    """

    size: int
    strength: float = 1.0
    blur: float = 0.7
    noise: float = 0.1
    quality: int = 30

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """float32 [size, size, C] in 0..1."""
        steps = [self._blur, self._blur, self._resize, self._to_size, self._noise, self._jpeg]
        for which in rng.permutation(len(steps)):
            picture = np.clip(steps[which](picture, rng), 0, 1)
        return self._jpeg(self._to_size(picture, rng), rng)

    def _blur(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """A kernel that is round in half of all pictures, else long and turned."""
        first, second, angle, round_ = *rng.uniform(0.1, 1, 2), rng.uniform(0, math.pi), rng.random() < 0.5
        widths = self.strength * self.blur * max(picture.shape[0] / self.size, 1) * np.array([first, first if round_ else second])
        if not widths.max() > 0.05:
            return picture
        size = 2 * math.ceil(2.5 * widths.max()) + 1
        return filtered(picture, gaussian_kernel(size, tuple(np.maximum(widths, 0.05).tolist()), angle))

    def _resize(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """By a factor that leaves the picture between half and one and a half times the size asked for, or as it is."""
        share, method, happens = rng.uniform(0.5, 1.5), rng.choice(FILTERS), rng.random() < 0.75
        if not happens or not self.strength:
            return picture
        side = max(1, round(self.size * (1 + min(self.strength, 1.0) * (share - 1))))
        return scaled(picture, (side, side), str(method))

    def _to_size(self, picture: Picture, rng: np.random.Generator) -> Picture:
        size = (self.size, self.size)
        return picture if picture.shape[:2] == size else np.clip(scaled(picture, size, "BICUBIC"), 0, 1)

    def _noise(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Grey in two pictures of five, else a draw a channel."""
        width, grey = self.strength * self.noise * rng.uniform(0, 1), rng.random() < 0.4
        noise = rng.standard_normal((*picture.shape[:2], 1 if grey else picture.shape[2]), dtype=np.float32)
        return picture + np.float32(width) * noise

    def _jpeg(self, picture: Picture, rng: np.random.Generator) -> Picture:
        loss = self.strength * rng.uniform(0, 95 - self.quality)
        return jpeg(picture, max(1, round(95 - loss))) if self.strength else picture


@dataclasses.dataclass(frozen=True)
class Degrade:
    """Adds `low`, the square uint8 `image` at `size` pixels as float32 in -1..1; comes before normalize.

    Attributes:
      method: "resize", bicubic alone, or "bsr".
      options: fields of `Bsr` but its size.
    """

    size: int
    method: str = "bsr"
    options: Mapping[str, Any] | None = None

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}{suggest(self.method, METHODS)}")
        known = {f.name for f in dataclasses.fields(Bsr)} - {"size"}
        for name in self.options or {}:
            if name not in known:
                raise ValueError(f"options has no {name!r}{suggest(name, known)}")
        bsr = self._bsr
        if self.size < 1 or min(bsr.strength, bsr.blur, bsr.noise) < 0 or not 1 <= bsr.quality <= 95:
            raise ValueError(f"expected a positive size, nothing negative and a quality from 1 to 95, got {bsr}")

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> Mapping[str, Any]:
        image = example["image"]
        if image.dtype != np.uint8 or image.shape[0] != image.shape[1] or image.shape[0] < self.size:
            raise BadSample("small", f"degrade takes square uint8 images of at least {self.size} pixels, got {image.dtype} {image.shape}")
        return {**example, "low": 2 * self._bsr(image.astype(np.float32) / np.float32(255), rng) - 1}

    @property
    def _bsr(self) -> Bsr:
        return Bsr(self.size, **(self.options or {})) if self.method == "bsr" else Bsr(self.size, strength=0.0)
