"""Position-wise feed-forward networks."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import constrain
from mmjax.layers.dense import Dense, Initializer


def quick_gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """x * sigmoid(1.702 x), of OpenAI's CLIP; up to 0.0203 from GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "squared_relu": lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021, Primer
}


class Mlp(nn.Module):
    """Dense, activation, Dense back to the input's width. Parameters `up` and `down`.

    Attributes:
      gated: the activation is applied to another product, `gate`, and multiplies `up` (Shazeer 2020, equation 6).
      use_bias: whether the products have biases.
    """

    hidden: int
    act: str
    dtype: DTypeLike = jnp.float32
    up_init: Initializer = nn.initializers.lecun_normal()
    down_init: Initializer = nn.initializers.lecun_normal()
    gated: bool = False
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        if self.act not in ACTIVATIONS:
            raise UserError(f"model act is {self.act!r}{suggest(self.act, ACTIVATIONS)}")
        act = ACTIVATIONS[self.act]
        widen = lambda name: Dense(self.hidden, ("embed", "mlp"), self.use_bias, self.dtype, self.up_init, name=name)(x)
        h = act(widen("gate")) * widen("up") if self.gated else act(widen("up"))
        h = constrain(h, "batch", None, "mlp")
        return Dense(x.shape[-1], ("mlp", "embed"), self.use_bias, self.dtype, self.down_init, name="down")(h)
