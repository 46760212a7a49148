"""Multi-head attention.

B batch, L tokens that ask, S tokens that are looked at (or slots of a cache), D width, M width of the latter, H heads, G heads of keys and
values, K head width.
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


def attend(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    *,
    mask: Bool[Array, "#B #H #L S"] | None = None,
    bias: Float[Array, "#B #H #L S"] | None = None,
    scale: float | None = None,
    causal: bool = False,
    backend: str = "xla",
) -> Float[Array, "B L H K"]:
    """What heads make of values; G divides H, and H / G heads share a key and a value. Arguments are `Attention`'s.

    Raises:
      UserError: an unknown backend.
    """
    if backend not in BACKENDS:
        raise UserError(f"attention backend is {backend!r}{suggest(backend, BACKENDS)}")
    if bias is not None and backend == "cudnn":  # which takes no other type; elsewhere scores and bias meet in float32
        bias = bias.astype(q.dtype)
    return jax.nn.dot_product_attention(q, k, v, bias, mask, scale=scale, is_causal=causal, implementation=backend)


def attend_cached(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B G S K"],
    v: Float[Array, "B G S K"],
    *,
    mask: Bool[Array, "#B #H L S"],
    bias: Float[Array, "#B #H L S"] | None = None,
    scale: float | None = None,
) -> Float[Array, "B L H K"]:
    """`attend` where keys and values lie in a cache, heads in front of slots.

    So each head's slots are one matrix, and no product needs the cache in another order: with the slots in front XLA's CPU backend copies
    all of it at every step, which made the blocks of GPT-2 small 1.7 times slower.
    """
    b, l, h, size = q.shape
    groups, slots = k.shape[1:3]
    q = q.reshape(b, l, groups, h // groups, size).transpose(0, 2, 3, 1, 4)
    scores = jnp.einsum("bgrlk,bgsk->bgrls", q, k, preferred_element_type=jnp.float32) * (size**-0.5 if scale is None else scale)
    scores = scores.reshape(b, h, l, slots)
    scores = jnp.where(mask, scores if bias is None else scores + bias, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores).astype(v.dtype).reshape(b, groups, h // groups, l, slots)
    return jnp.einsum("bgrls,bgsk->bgrlk", weights, v).transpose(0, 3, 1, 2, 4).reshape(b, l, h, size)


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
        if self.head_width is None and d % self.heads:
            raise UserError(f"model width {d} does not split into {self.heads} heads; set heads to a divisor of the width")
        size = self.head_width or d // self.heads
        memory = x if memory is None else memory

        def heads(name: str, x: Array, init: Initializer) -> Float[Array, "B N H K"]:
            y = Dense(self.heads * size, ("embed", "heads"), self.use_bias, self.dtype, init, name=name)(x)
            return constrain(y.reshape(*x.shape[:2], self.heads, size), "batch", None, "heads", None)

        q, k, v = heads("q", x, self.q_init or self.kernel_init), heads("k", memory, self.kernel_init), heads("v", memory, self.kernel_init)
        y = attend(q, k, v, mask=mask, bias=bias, scale=self.scale, causal=self.causal, backend=self.backend)
        y = y.reshape(b, l, self.heads * size)
        return Dense(d, ("heads", "embed"), self.use_bias, self.dtype, self.out_init, name="out")(y) if self.project else y
