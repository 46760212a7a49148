"""Cascades: a low-resolution picture as the condition of a denoiser at higher resolution, with noise-conditioning augmentation.

The upsampler is trained on conditions that were themselves noised (or blurred), and told how much, so that at sampling it forgives what the
stage below got wrong (Ho et al. 2022, Cascaded Diffusion Models, section 4; Saharia et al. 2022, Imagen, section 2.5; unCLIP, table 3).
B examples, pictures [B, H, W, C].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.diffusion.path import Path

RESIZE = ("nearest", "linear", "cubic")


def augment(low: Float[Array, "B h w C"], level: Float[Array, "B"], keys: Key[Array, "B"], *, path: Path) -> Float[Array, "B h w C"]:
    """The condition at the path's time `level`, which is also what the network is to be told."""
    noise = jax.vmap(lambda key: jax.random.normal(rng.named(key, "augment"), low.shape[1:], low.dtype))(keys)
    return path.mix(low, noise, level)


def draw_levels(keys: Key[Array, "B"], *, path: Path, low: float = 0.0, high: float = 1.0) -> Float[Array, "B"]:
    """A level an example for training: uniform from `low` to `high` of the way from data to noise; whole steps on a discrete path.

    Raises:
      UserError: a range outside 0..1.
    """
    if not 0 <= low < high <= 1:
        raise UserError(f"augmentation levels from {low} to {high} of the way to noise; expected 0 <= low < high <= 1")
    u = jax.vmap(lambda key: jax.random.uniform(rng.named(key, "level"), minval=low, maxval=high))(keys)
    if path.steps is None:
        return path.clean + u * (path.noise - path.clean)
    return jnp.minimum(jnp.floor(u * path.steps), path.steps - 1)


def resize(pictures: Float[Array, "B h w C"], size: tuple[int, int], method: str = "cubic") -> Float[Array, "B H W C"]:
    """To another size; downwards with antialiasing."""
    return jax.image.resize(pictures, (pictures.shape[0], *size, pictures.shape[-1]), method)


def blur(pictures: Float[Array, "B h w C"], sigma: Float[Array, "B"], kernel: int = 3) -> Float[Array, "B h w C"]:
    """A Gaussian blur of `kernel` x `kernel` pixels, edges reflected, sigma in pixels, one an example; sigma 0 leaves a picture alone.

    unCLIP's first upsampler: kernel 3, sigma 0.6.

    Raises:
      UserError: an even kernel.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise UserError(f"a blur kernel of {kernel} pixels; expected an odd number")
    reach = kernel // 2
    offsets = jnp.arange(-reach, reach + 1, dtype=pictures.dtype)
    safe = jnp.where(sigma > 0, sigma, 1.0)[:, None]
    weights = jnp.where((sigma > 0)[:, None], jnp.exp(-((offsets[None] / safe) ** 2) / 2), (offsets == 0)[None].astype(pictures.dtype))
    weights = weights / weights.sum(1, keepdims=True)

    def along(x: Array, axis: int) -> Array:
        pads = [(0, 0)] * 4
        pads[axis] = (reach, reach)
        wide = jnp.pad(x, pads, mode="reflect")
        part = lambda i: jax.lax.slice_in_dim(wide, i, i + x.shape[axis], axis=axis)
        return sum(weights[:, i].reshape(-1, 1, 1, 1) * part(i) for i in range(kernel))

    return along(along(pictures, 1), 2)


def upsampling(
    network: Callable[..., Array], low: Float[Array, "B h w C"], level: Float[Array, "B"], method: str = "cubic"
) -> Callable[[Array, Array], Array]:
    """`network(x, t)` at high resolution of a network that takes `concat([x, condition])` and the augmentation level.

    Args:
      network: (concat [B, H, W, c + C], t [B], level [B]) -> the prediction.
      low: the condition, augmented already; brought to x's size here.
      level: what the network is told of it.
    """

    def conditioned(x: Float[Array, "B H W c"], t: Float[Array, "B"]) -> Array:
        return network(jnp.concatenate([x, resize(low, x.shape[1:3], method).astype(x.dtype)], -1), t, level)

    return conditioned
