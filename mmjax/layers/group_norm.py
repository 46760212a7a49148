"""Group normalisation, computed in float32 whatever the compute type."""

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mmjax.core.errors import UserError


class GroupNorm(nn.Module):
    """Wu and He 2018: over places and over each of `groups` runs of neighbouring channels, with `scale` and `bias`; result in `dtype`.

    B batch, C channels; between them any number of places. The statistics of a group are put together from those of its channels, so
    that the image itself is never laid out anew for them.
    """

    groups: int = 32
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B *d C"]) -> Float[Array, "B *d C"]:
        b, c = x.shape[0], x.shape[-1]
        if c % self.groups:
            raise UserError(f"group norm: {c} channels do not fall into {self.groups} groups; set groups to a divisor of the widths")
        shape, places = (c,), tuple(range(1, x.ndim - 1))
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("width",)), shape, jnp.float32)
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("width",)), shape, jnp.float32)

        def over_groups(x: Array) -> Float[Array, "B C"]:
            means = x.mean(places).reshape(b, self.groups, c // self.groups).mean(-1)
            return jnp.repeat(means, c // self.groups, axis=-1)

        spread = lambda a: a.reshape(a.shape[0], *(1,) * len(places), c)
        centred = x.astype(jnp.float32)
        # The mean first: a single pass over x and x^2 would lose the variance where it is small beside the mean.
        centred = centred - spread(over_groups(centred))
        factor = lax.rsqrt(over_groups(jnp.square(centred)) + self.eps) * scale[None]
        return (centred * spread(factor) + spread(bias[None])).astype(self.dtype)
