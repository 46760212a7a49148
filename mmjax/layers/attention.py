"""Multi-head self-attention.

B batch, L tokens, D width, H heads, K head width.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import constrain
from mmjax.layers.dense import Dense, Initializer

BACKENDS = ("xla", "cudnn")


class Attention(nn.Module):
    """Vaswani et al. 2017, section 3.2. Parameters `q`, `k`, `v`, `out`, each a Dense with bias; softmax in float32.

    Attributes:
      causal: a token sees itself and what comes before.
      backend: "xla" anywhere, "cudnn" for bfloat16 on NVIDIA GPUs.
    """

    heads: int
    causal: bool = False
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    out_init: Initializer = nn.initializers.lecun_normal()
    backend: str = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        b, l, d = x.shape
        if self.backend not in BACKENDS:
            raise UserError(f"attention backend is {self.backend!r}{suggest(self.backend, BACKENDS)}")
        if d % self.heads:
            raise UserError(f"model width {d} does not split into {self.heads} heads; set heads to a divisor of the width")

        def heads(name: str) -> Float[Array, "B L H K"]:
            y = Dense(d, ("embed", "heads"), dtype=self.dtype, kernel_init=self.kernel_init, name=name)(x)
            return constrain(y.reshape(b, l, self.heads, d // self.heads), "batch", None, "heads", None)

        y = jax.nn.dot_product_attention(heads("q"), heads("k"), heads("v"), is_causal=self.causal, implementation=self.backend)
        return Dense(d, ("heads", "embed"), dtype=self.dtype, kernel_init=self.out_init, name="out")(y.reshape(b, l, d))
