"""Normalisation, computed in float32 whatever the compute type."""

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class LayerNorm(nn.Module):
    """Ba et al. 2016, over the last axis, with `scale` and `bias` unless it is not `affine` or has no bias; result in `dtype`."""

    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32
    affine: bool = True
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        y = centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
        if not self.affine:
            return y.astype(self.dtype)
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("width",)), shape, jnp.float32)
        lead = (1,) * (x.ndim - 1)
        y = y * scale.reshape(*lead, -1)
        if self.use_bias:
            bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("width",)), shape, jnp.float32)
            y = y + bias.reshape(*lead, -1)
        return y.astype(self.dtype)


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019, equation 4: over the last axis, divided by its root mean square, times `scale`; result in `dtype`.

    Attributes:
      plus_one: `scale` holds what the factor differs from 1 by, as in Gemma, so that decay draws it to 1.
    """

    eps: float = 1e-6
    dtype: DTypeLike = jnp.float32
    plus_one: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        init = nn.with_logical_partitioning(nn.initializers.zeros if self.plus_one else nn.initializers.ones, ("width",))
        scale = self.param("scale", init, (x.shape[-1],), jnp.float32)
        scale = 1 + scale.astype(jnp.float32) if self.plus_one else scale
        x32 = x.astype(jnp.float32)
        y = x32 * lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        return (y * scale.reshape(*(1,) * (x.ndim - 1), -1)).astype(self.dtype)
