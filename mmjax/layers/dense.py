"""Matrix products with named axes."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mmjax.core.sharding import gathered

Initializer = Callable[..., Array]
Axes = tuple[str | None, str | None]


def normal(std: float) -> Initializer:
    """Gaussian of standard deviation `std`, not truncated."""
    return nn.initializers.normal(std)


class Dense(nn.Module):
    """`x @ kernel + bias` over the last axis; parameters float32 `kernel [in, out]` and `bias [out]`, product in `dtype`.

    Attributes:
      features: width of the output.
      axes: logical names of the kernel's (in, out).
    """

    features: int
    axes: Axes
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        kernel = self.param("kernel", nn.with_logical_partitioning(self.kernel_init, self.axes), (x.shape[-1], self.features), jnp.float32)
        # Flattened to two axes: XLA's CPU backend has a much faster product for plain matrices, others do not mind.
        y = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ gathered(kernel.astype(self.dtype), *self.axes)
        if self.use_bias:
            bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:]), (self.features,), jnp.float32)
            y = y + gathered(bias.astype(self.dtype), self.axes[1])[None]
        return y.reshape(*x.shape[:-1], self.features)


class Embed(nn.Module):
    """Rows of a float32 table `embedding [vocab, width]`, returned in `dtype`.

    Attributes:
      axis: logical name of the table's first axis.
    """

    vocab: int
    width: int
    dtype: DTypeLike = jnp.float32
    table_init: Initializer = normal(0.02)
    axis: str = "vocab"

    def setup(self):
        init = nn.with_logical_partitioning(self.table_init, (self.axis, "embed"))
        self.embedding = self.param("embedding", init, (self.vocab, self.width), jnp.float32)

    def __call__(self, ids: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        return self.table()[ids]

    def attend(self, x: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Products with every row, of logits that share the table (Press and Wolf 2017), in `dtype`."""
        y = x.reshape(-1, self.width).astype(self.dtype) @ self.table().T
        return y.reshape(*x.shape[:-1], self.vocab)

    def table(self) -> Float[Array, "v d"]:
        """The table as products need it."""
        return gathered(self.embedding.astype(self.dtype), self.axis, "embed")
