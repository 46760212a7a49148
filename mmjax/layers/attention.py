"""Multi-head attention.

B batch, L tokens that ask, S tokens that are looked at, D width, M width of the latter, H heads, K head width.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import constrain
from mmjax.layers.dense import Dense, Initializer

BACKENDS = ("xla", "cudnn")


class Attention(nn.Module):
    """Vaswani et al. 2017, section 3.2. Parameters `q`, `k`, `v`, `out`, each a Dense; softmax in float32.

    Attributes:
      causal: a token sees itself and what comes before.
      backend: "xla" anywhere, "cudnn" for bfloat16 on NVIDIA GPUs.
      head_width: K; None for D / H.
      use_bias: whether the four products have biases.
      scale: what scores are multiplied by; None for 1 / sqrt(K).
      q_init: of `q` where it differs from `k` and `v`.
      project: without it there is no `out`, and the heads side by side are the answer.
    """

    heads: int
    causal: bool = False
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    out_init: Initializer = nn.initializers.lecun_normal()
    backend: str = "xla"
    head_width: int | None = None
    use_bias: bool = True
    scale: float | None = None
    q_init: Initializer | None = None
    project: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        memory: Float[Array, "B S M"] | None = None,
        *,
        mask: Bool[Array, "#B #H #L S"] | None = None,
        bias: Float[Array, "#B #H #L S"] | None = None,
    ) -> Float[Array, "B L D"]:
        """`x` attends to `memory`, to itself if there is none.

        Args:
          mask: True where a token may be looked at. A token that may look at none gets the mean of all values.
          bias: added to the scores after they are scaled.
        """
        b, l, d = x.shape
        if self.backend not in BACKENDS:
            raise UserError(f"attention backend is {self.backend!r}{suggest(self.backend, BACKENDS)}")
        if self.head_width is None and d % self.heads:
            raise UserError(f"model width {d} does not split into {self.heads} heads; set heads to a divisor of the width")
        size = self.head_width or d // self.heads
        memory = x if memory is None else memory

        def heads(name: str, x: Array, init: Initializer) -> Float[Array, "B N H K"]:
            y = Dense(self.heads * size, ("embed", "heads"), self.use_bias, self.dtype, init, name=name)(x)
            return constrain(y.reshape(*x.shape[:2], self.heads, size), "batch", None, "heads", None)

        q, k, v = heads("q", x, self.q_init or self.kernel_init), heads("k", memory, self.kernel_init), heads("v", memory, self.kernel_init)
        if bias is not None and self.backend == "cudnn":  # which takes no other type; elsewhere scores and bias meet in float32
            bias = bias.astype(q.dtype)
        y = jax.nn.dot_product_attention(q, k, v, bias, mask, scale=self.scale, is_causal=self.causal, implementation=self.backend)
        y = y.reshape(b, l, self.heads * size)
        return Dense(d, ("heads", "embed"), self.use_bias, self.dtype, self.out_init, name="out")(y) if self.project else y
