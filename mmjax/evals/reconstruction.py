"""How near an autoencoder's reconstructions are to held-out pictures: PSNR, SSIM, L1, and a Frechet distance in given features.

B pictures of H x W pixels and C channels, N of a split, D features of a network that judges.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from mmjax.core.config import Group
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.data import transforms
from mmjax.data.source import Source, open_source
from mmjax.evals import encode, frechet
from mmjax.evals.features import Features, as_pictures, levels, open_features

NEEDS = ("encode", "decode")
ARGUMENTS = ("split", "batch_size", "transforms")
OPTIONAL = {"features": None}

WINDOW, SIGMA = 11, 1.5  # of SSIM, in pixels
K1, K2 = 0.01, 0.03
MEASURED = ("psnr", "ssim", "l1")  # of every picture; then mean and mean square of its latent


def psnr(x: Float[Array, "B H W C"], y: Float[Array, "B H W C"]) -> Float[Array, "B"]:
    """10 log10(1 / mean squared error) in dB of pictures of 0..1; at most 100, of equal ones."""
    error = jnp.square(x - y).reshape(x.shape[0], -1).mean(1)
    return -10 * jnp.log10(jnp.maximum(error, 1e-10))


def ssim(x: Float[Array, "B H W C"], y: Float[Array, "B H W C"]) -> Float[Array, "B"]:
    """Structural similarity (Wang et al. 2004, equation 13) of pictures of 0..1, the mean over channels and places where a Gaussian window
    of 11 pixels and deviation 1.5 fits.

    Raises:
      UserError: pictures smaller than the window.
    """
    if min(x.shape[1:3]) < WINDOW:
        raise UserError(f"SSIM has a window of {WINDOW} pixels, and the pictures have {x.shape[1]} x {x.shape[2]}")
    c1, c2 = K1**2, K2**2
    mx, my = _blurred(x), _blurred(y)
    xx, yy, xy = _blurred(x * x) - mx**2, _blurred(y * y) - my**2, _blurred(x * y) - mx * my
    found = ((2 * mx * my + c1) * (2 * xy + c2)) / ((mx**2 + my**2 + c1) * (xx + yy + c2))
    return found.reshape(x.shape[0], -1).mean(1)


def _blurred(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Weighted by the window, wherever it fits."""
    at = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(at**2) / (2 * SIGMA**2))
    weights = jnp.asarray(weights / weights.sum(), x.dtype)
    for axis in (1, 2):
        count = x.shape[axis] - WINDOW + 1
        x = sum(w * jax.lax.slice_in_dim(x, i, i + count, axis=axis) for i, w in enumerate(weights))
    return x


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Encodes, decodes the means, and compares levels 0..255, as files of pictures would hold them."""

    measured: Callable  # ({params, judge}, images of -1..1) -> float32[B, 5 + 2 D]: MEASURED, moments of latents, features of both
    features: Features | None
    source: Source
    transform: Callable
    batch_size: int
    mesh: Mesh

    def __call__(self, params: Params) -> dict[str, float]:
        """MEASURED, means over pictures; the Frechet distance, named by its network; `latent_mean`, `latent_std` over all numbers of
        drawn latents, and `n`. Diffusion takes 1 / latent_std for `latent.scale`."""
        judge = None
        if self.features is not None:
            judge = jax.device_put(self.features.params, NamedSharding(self.mesh, PartitionSpec()))
        both = {"params": params, "judge": judge}
        keys = ("image", "_mask")
        found, _, places = encode.split(self.measured, both, self.source, self.transform, keys, self.batch_size, self.mesh)
        found = found.astype(np.float64)
        out = dict(zip(MEASURED, found[:, : len(MEASURED)].mean(0).tolist(), strict=True))
        if self.features is not None:
            real, drawn = np.split(found[:, len(MEASURED) + 2 :], 2, axis=1)
            out[self.features.frechet] = frechet.distance(frechet.of(drawn), frechet.of(real))
        mean, square = found[:, len(MEASURED) : len(MEASURED) + 2].mean(0)
        out |= {"latent_mean": float(mean), "latent_std": float(np.sqrt(max(square - mean**2, 0.0))), "n": float(len(found))}
        return {**out, **encode.left_out(self.source, places)}

    def told(self) -> str:
        """What the scores are of, in a line."""
        judged = f"; features of {self.features.told}" if self.features else ""
        return f"reconstructions of '{self.source.info.name}' ({self.source.info.split}) from the means of their latents{judged}"


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> Reconstruction:
    """Config: `split`, `batch_size`, `transforms` (to images of -1..1); `features`, as `features.open_features`, for a Frechet distance.

    Raises:
      UserError: as of `open_features`.
    """
    source, given = open_source(data, config["split"]), config["features"]
    features = None if given is None else open_features(given, "reconstruction: features")

    def measured(both: Params, images: Array) -> Array:
        mean, log_variance = jnp.split(predict["encode"](both["params"], images), 2, -1)
        x, y = (levels(v / 2 + 0.5) / 255 for v in (images, predict["decode"](both["params"], mean)))
        own = lambda v: v.reshape(v.shape[0], -1).mean(1)
        moments = (own(mean), own(jnp.square(mean) + jnp.exp(log_variance)))
        columns = [c[:, None] for c in (psnr(x, y), ssim(x, y), own(jnp.abs(x - y)), *moments)]
        if features is not None:
            judged = [features.function(both["judge"], as_pictures(255 * v))[:, : features.size] for v in (x, y)]
            columns += [v.astype(jnp.float32) for v in judged]
        return jnp.concatenate(columns, -1)

    return Reconstruction(
        measured=encode.compile_over(mesh, measured),
        features=features,
        source=source,
        transform=transforms.build(config["transforms"], None),
        batch_size=encode.pad_to_mesh(config["batch_size"], mesh),
        mesh=mesh,
    )
