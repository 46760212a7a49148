"""Images to patch tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mmjax.core.errors import UserError


def patchify(images: Float[Array, "B H W C"], patch: int) -> Float[Array, "B L P"]:
    """Non-overlapping patches in reading order, each flattened as (row, column, channel): P = patch * patch * C.

    A Dense over the last axis is then the convolution whose stride is its size. Pixels right of and below the last
    whole patch are dropped, as a VALID convolution does.

    Raises:
      UserError: an image smaller than a patch.
    """
    b, h, w, c = images.shape
    rows, columns = h // patch, w // patch
    if not rows or not columns:
        raise UserError(f"images of {h} x {w} pixels hold no patch of {patch}; make the images larger or the patch smaller")
    x = images[:, : rows * patch, : columns * patch].reshape(b, rows, patch, columns, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, patch * patch * c)


def drop_patches(x: Float[Array, "B L D"], rate: float, keys: Key[Array, "B"]) -> Float[Array, "B l D"]:
    """A random subset of every example's patches, in their order: l = (1 - rate) L rounded down, but at least 1 (Li et al. 2023, FLIP).

    Raises:
      UserError: a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise UserError(f"patch_dropout is {rate}, expected at least 0 and below 1")
    length = x.shape[1]
    kept = max(1, int(length * (1 - rate)))
    draw = lambda key: jnp.sort(jax.random.permutation(key, length)[:kept])
    return jnp.take_along_axis(x, jax.vmap(draw)(keys)[:, :, None], axis=1)
