"""Position embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import gathered
from mmjax.layers.dense import Initializer, normal


class PositionEmbedding(nn.Module):
    """Adds a learnt `embedding [L, D]`."""

    table_init: Initializer = normal(0.02)

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        init = nn.with_logical_partitioning(self.table_init, ("position", "embed"))
        table = self.param("embedding", init, x.shape[1:], jnp.float32)
        return x + gathered(table.astype(x.dtype), "position", "embed")[None]


RESIZES = ("bicubic", "linear")


def resize_positions(
    table: Float[Array | np.ndarray, "L D"], old: tuple[int, int], new: tuple[int, int], method: str = "bicubic", prefix: int = 0
) -> Float[Array | np.ndarray, "M D"]:
    """Position embeddings of a grid of patches for another grid: what a checkpoint needs to take images of another size.

    Args:
      table: `prefix` rows that belong to no patch (the class token's), then the grid's in reading order.
      old, new: rows and columns.
      method: "bicubic", antialiased where the grid shrinks (torch's F.interpolate(mode="bicubic", antialias=True), as in OpenCLIP
        and Hugging Face); "linear", corners on corners (scipy.ndimage.zoom of order 1, as in big_vision).

    Returns:
      The prefix rows unchanged, then the new grid's, in float32.

    Raises:
      UserError: a table of another length, or an unknown method.
    """
    if method not in RESIZES:
        raise UserError(f"resize of position embeddings is {method!r}{suggest(method, RESIZES)}")
    if table.shape[0] != prefix + old[0] * old[1]:
        raise UserError(f"position embeddings have {table.shape[0]} rows, expected {prefix} and a grid of {old[0]} x {old[1]}")
    width = table.shape[1]
    grid = jnp.asarray(table[prefix:], jnp.float32).reshape(*old, width)
    if method == "bicubic":
        grid = jax.image.resize(grid, (*new, width), "bicubic", antialias=True)
    else:
        rows, columns = (_linear(a, b) for a, b in zip(old, new, strict=True))
        grid = jnp.einsum("hH,wW,HWd->hwd", rows, columns, grid, precision="highest")
    return jnp.concatenate([jnp.asarray(table[:prefix], jnp.float32), grid.reshape(-1, width)])


def _linear(old: int, new: int) -> Float[np.ndarray, "N O"]:
    """Weights of linear interpolation that keeps the first and the last point."""
    at = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    return np.stack([np.interp(at, np.arange(old), row) for row in np.eye(old)], axis=1).astype(np.float32)


def sincos_2d(rows: int, columns: int, width: int, temperature: float = 10_000.0, last: bool = True) -> Float[np.ndarray, "L D"]:
    """Fixed sines and cosines of column and row (Chen et al. 2021, MoCo v3; in the form of Beyer et al. 2022, plain ViT baselines).

    A quarter of `width` each: sines and cosines of the column, sines and cosines of the row, at rates geometric from 1 to 1 / temperature,
    the last of which is left out without `last` (He et al. 2022, MAE; DiT). Computed in float64.

    Raises:
      UserError: a width that is no multiple of 4, or leaves fewer than two rates.
    """
    if width % 4 or width < 8:
        raise UserError(f"sincos2d positions need a width that is a multiple of 4 and at least 8, got {width}; or set posemb to 'learn'")
    y, x = np.mgrid[:rows, :columns]
    omega = 1.0 / temperature ** (np.arange(width // 4) / (width // 4 - last))
    y, x = y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)
