"""Times, noise levels and other numbers as vectors, one an example.

B batch, D width of a vector.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mmjax.core.errors import UserError, suggest
from mmjax.layers.dense import Dense, Initializer, normal

ORDERS = ("sin_cos", "cos_sin")


def sinusoidal(
    t: Float[Array, "B"], width: int, *, order: str = "cos_sin", freq_shift: int = 0, period: float = 10_000.0
) -> Float[Array, "B D"]:
    """Sines and cosines of t at `width / 2` rates, period^(-i / (width / 2 - freq_shift)) (Vaswani et al. 2017, section 3.5), in float32.

    Args:
      order: "sin_cos", all sines first, as DDPM; "cos_sin" as ADM, latent diffusion and DiT.
      freq_shift: 1 lets the rates reach 1 / period (DDPM), with 0 they end one step before it (the others).

    Raises:
      UserError: an odd width, one that leaves too few rates, or an unknown order.
    """
    if order not in ORDERS:
        raise UserError(f"the order of time embeddings is {order!r}{suggest(order, ORDERS)}")
    half = width // 2
    if width % 2 or half <= freq_shift:
        raise UserError(f"a time embedding of width {width} is no pairs of sine and cosine; make it even and at least {2 * freq_shift + 2}")
    rates = jnp.exp(-math.log(period) / (half - freq_shift) * jnp.arange(half, dtype=jnp.float32))
    angles = t.astype(jnp.float32)[:, None] * rates[None]
    waves = (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(waves if order == "sin_cos" else waves[::-1], axis=-1)


class FourierFeatures(nn.Module):
    """Sines and cosines of 2 pi f t at random rates f that stay as they are drawn (Tancik et al. 2020; Song et al. 2021), in float32.

    The rates are a parameter, `rates [width / 2]`, since a checkpoint must hold them; nobody trains them (`FIXED`).
    """

    width: int
    scale: float = 16.0
    order: str = "sin_cos"

    @nn.compact
    def __call__(self, t: Float[Array, "B"]) -> Float[Array, "B D"]:
        if self.order not in ORDERS:
            raise UserError(f"the order of time embeddings is {self.order!r}{suggest(self.order, ORDERS)}")
        init = nn.with_logical_partitioning(normal(self.scale), ("width",))
        rates = jax.lax.stop_gradient(self.param("rates", init, (self.width // 2,), jnp.float32))
        angles = 2 * math.pi * t.astype(jnp.float32)[:, None] * rates[None]
        waves = (jnp.sin(angles), jnp.cos(angles))
        return jnp.concatenate(waves if self.order == "sin_cos" else waves[::-1], axis=-1)


FIXED = r"(.*/)?(rates|phases)"  # paths of what Fourier features drew once: for a task's `frozen`


class EmbeddingMlp(nn.Module):
    """Dense, SiLU, Dense, both to `width`. Parameters `dense1`, `dense2`."""

    width: int
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "B i"]) -> Float[Array, "B D"]:
        dense = lambda axes, name: Dense(self.width, axes, dtype=self.dtype, kernel_init=self.kernel_init, name=name)
        return dense(("mlp", "embed"), "dense2")(nn.silu(dense(("embed", "mlp"), "dense1")(x)))
