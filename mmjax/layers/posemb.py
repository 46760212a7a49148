"""Position embeddings."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from mmjax.core.errors import UserError
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


def sincos_2d(rows: int, columns: int, width: int, temperature: float = 10_000.0) -> Float[np.ndarray, "L D"]:
    """Fixed sines and cosines of column and row (Chen et al. 2021, MoCo v3; in the form of Beyer et al. 2022, plain ViT baselines).

    A quarter of `width` each: sines and cosines of the column, sines and cosines of the row, at rates geometric from 1 to 1 / temperature.

    Raises:
      UserError: a width that is no multiple of 4, or leaves fewer than two rates.
    """
    if width % 4 or width < 8:
        raise UserError(f"sincos2d positions need a width that is a multiple of 4 and at least 8, got {width}; or set posemb to 'learn'")
    y, x = np.mgrid[:rows, :columns]
    omega = 1.0 / temperature ** (np.arange(width // 4) / (width // 4 - 1))
    y, x = y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)
