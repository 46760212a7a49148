"""Batch normalisation whose running statistics are parameters that only the task writes.

B batch, C channels.
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mmjax.core.errors import UserError
from mmjax.layers.dense import Initializer

# Regex of the paths of running statistics, for `Task.state`.
STATISTICS = r"(.*/)?(mean|var)"


class BatchNorm(nn.Module):
    """Ioffe and Szegedy 2015, over all axes but the last, in float32; result in `dtype`. Parameters `scale`, `bias`, `mean`, `var`.

    `mean` and `var` are the running statistics. In training, the batch's own statistics are used, and the new running ones are put
    into the collection "state", whose tree is that of the parameters: `apply(..., mutable=["state"])`. Under jit an array is the whole
    batch wherever it lies, so the statistics are those of the global batch.

    Attributes:
      eps: added to the variance.
      momentum: weight of a new batch in the running statistics (PyTorch's convention); their variance is the unbiased one.
      frozen: the running statistics are used in training too and never change.
    """

    eps: float = 1e-5
    momentum: float = 0.1
    frozen: bool = False
    dtype: DTypeLike = jnp.float32
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "B *d C"], train: bool = False) -> Float[Array, "B *d C"]:
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        inits = {"scale": self.scale_init, "bias": zeros, "mean": zeros, "var": ones}
        p = {
            name: self.param(name, nn.with_logical_partitioning(init, ("width",)), (x.shape[-1],), jnp.float32)
            for name, init in inits.items()
        }
        x32 = x.astype(jnp.float32)
        if train and not self.frozen:
            mean, var = self.batch_statistics(x32, p["mean"], p["var"])
        else:
            mean, var = lax.stop_gradient((p["mean"], p["var"]))
        factor = lax.rsqrt(var + self.eps) * p["scale"]
        lead = (1,) * (x.ndim - 1)
        return ((x32 - mean.reshape(*lead, -1)) * factor.reshape(*lead, -1) + p["bias"].reshape(*lead, -1)).astype(self.dtype)

    def batch_statistics(self, x: Array, mean: Array, var: Array) -> tuple[Array, Array]:
        """Mean and (biased) variance of the batch; what they make of the running `mean` and `var` goes into "state"."""
        if not self.is_mutable_collection("state"):
            raise ValueError("batch norm in training needs somewhere to put its running statistics: apply(..., mutable=['state'])")
        n = math.prod(x.shape[:-1])
        if n < 2:
            raise UserError("batch norm in training needs more than one value a channel; make the batch or the images larger")
        axes = tuple(range(x.ndim - 1))
        # The mean first: a single pass over x and x^2 would lose the variance where it is small beside the mean.
        now = x.mean(axes)
        spread = jnp.square(x - now.reshape(*(1,) * len(axes), -1)).mean(axes)
        running = lambda old, new: lax.stop_gradient((1 - self.momentum) * old + self.momentum * new)
        self.put_variable("state", "mean", running(mean, now))
        self.put_variable("state", "var", running(var, spread * (n / (n - 1))))
        return now, spread
