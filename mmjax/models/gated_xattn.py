"""Gated cross-attention of a language model to pictures: Flamingo's GATED XATTN-DENSE (Alayrac et al. 2022, section 2.2, figure 4),
OpenFlamingo's (Awadalla et al. 2023) and IDEFICS' (Laurençon et al. 2023); and the plain one that Flamingo's is compared with.

B batch, L tokens, D their width, S visual tokens (latents of all images of a row), M their width, H heads, K head width.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import constrain, gathered
from mmjax.layers import Dense, Mlp
from mmjax.layers.attention import attend, attend_cached
from mmjax.layers.decoder import make_norm
from mmjax.layers.masks import seeing

GATES = ("scalar", "vector", "none")
PLACES = ("before", "within")

# What differs between the three published forms; `heads`, `head_width` and `mlp` are sizes and stand in models.flamingo.VARIANTS.
# The paper's figure draws no norms. Here, as in its resampler, what asks, what is looked at and what the feed-forward network is given
# are each normed before. OpenFlamingo and IDEFICS norm what is looked at once, at the end of their resamplers.
FORMS = {
    "flamingo": {"act": "squared_relu", "media_norm": True},
    "open_flamingo": {"act": "gelu"},
    "idefics": {"act": "silu", "gated_mlp": True, "norm": "rms", "qk_norm": "rms", "eps": 1e-6},
    # Section 3.3 and table 3, row iv: "the vanilla cross-attention from the original Transformer decoder", which stands between a block's
    # self-attention and its feed-forward network (Vaswani et al. 2017, section 3.1). That it has no feed-forward network of its own is also
    # what the table's count says: 2.4 billion parameters in place of 3.2, of which 24 times 8 * 2048^2 are 0.8.
    "vanilla": {"place": "within", "dense": False, "gate": "none", "media_norm": True},
}


class CrossAttention(nn.Module):
    """Attention without biases to keys and values that may be made beforehand. Parameters `q`, `k`, `v`, `out`, and `q_norm`, `k_norm`.

    Attributes:
      width: D.
      qk_norm: a norm of layers.decoder over the width of each head of queries and keys, or "none".
    """

    width: int
    heads: int
    head_width: int
    qk_norm: str = "none"
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32
    backend: str = "xla"

    def setup(self):
        inner = self.heads * self.head_width
        self.q, self.k, self.v = (Dense(inner, ("embed", "heads"), False, self.dtype) for _ in range(3))
        self.out = Dense(self.width, ("heads", "embed"), False, self.dtype)
        if self.qk_norm != "none":
            self.q_norm, self.k_norm = (make_norm(self.qk_norm, True, self.eps, self.dtype) for _ in range(2))

    def keys_values(self, memory: Float[Array, "B S M"]) -> dict[str, Float[Array, "B S H K"]]:
        """`k` and `v` of what is looked at."""
        k, v = self.split(self.k(memory)), self.split(self.v(memory))
        return {"k": k if self.qk_norm == "none" else self.k_norm(k), "v": v}

    def __call__(
        self,
        x: Float[Array, "B L D"],
        kv: dict[str, Float[Array, "B _ _ K"]],
        mask: Bool[Array, "#B 1 #L S"] | None = None,
        cached: bool = False,
    ) -> Float[Array, "B L D"]:
        """What `x` finds there. A token that may look at nothing gets the mean of all values.

        Args:
          cached: keys and values have heads in front, [B, H, S, K], and there is a mask.
        """
        q = self.split(self.q(x))
        q = q if self.qk_norm == "none" else self.q_norm(q)
        y = attend_cached(q, **kv, mask=mask) if cached else attend(q, **kv, mask=mask, backend=self.backend)
        return self.out(y.reshape(*x.shape[:2], self.heads * self.head_width))

    def split(self, x: Float[Array, "B N I"]) -> Float[Array, "B N H K"]:
        return constrain(x.reshape(*x.shape[:2], self.heads, self.head_width), "batch", None, "heads", None)


class GatedCrossAttention(nn.Module):
    """x + tanh(a) attention(norm(x), media), then x + tanh(b) ffw(norm(x)): at a = b = 0, where they start, x itself.

    Parameters `norm1`, `attn`, `gate_attn`, `norm2`, `ffw`, `gate_ffw`, and `norm_media`.

    Attributes:
      width: D.
      place: where it stands: "before" a block of the language model, or "within" it, after self-attention (see models.flamingo).
      dense: whether it has a feed-forward network of its own.
      mlp: hidden width of that, whose activation is `act`, and which is gated as SwiGLU is with `gated_mlp`.
      norm: of layers.decoder.
      media_norm: whether what is looked at is normed here.
      gate: "scalar", "vector" (one for each of D), or "none", for the ablation without: both branches are then added as they are.
    """

    width: int
    heads: int
    head_width: int
    mlp: int | None = None
    place: str = "before"
    dense: bool = True
    act: str = "squared_relu"
    gated_mlp: bool = False
    norm: str = "layer"
    media_norm: bool = False
    qk_norm: str = "none"
    gate: str = "scalar"
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32
    backend: str = "xla"

    def setup(self):
        if self.gate not in GATES:
            raise UserError(f"xattn.gate is {self.gate!r}{suggest(self.gate, GATES)}")
        norm = lambda: make_norm(self.norm, True, self.eps, self.dtype)
        self.norm1 = norm()
        if self.media_norm:
            self.norm_media = norm()
        how = {"qk_norm": self.qk_norm, "eps": self.eps, "dtype": self.dtype, "backend": self.backend}
        self.attn = CrossAttention(self.width, self.heads, self.head_width, **how)
        if self.dense:
            self.norm2, self.ffw = norm(), Mlp(self.mlp, self.act, self.dtype, gated=self.gated_mlp, use_bias=False)
        if self.gate != "none":
            axes, shape = (("embed",), (self.width,)) if self.gate == "vector" else ((), ())
            gate = lambda name: self.param(name, nn.with_logical_partitioning(nn.initializers.zeros, axes), shape, jnp.float32)
            self.gate_attn = gate("gate_attn")
            if self.dense:
                self.gate_ffw = gate("gate_ffw")

    def __call__(
        self, x: Float[Array, "B L D"], media: Float[Array, "B S M"], mask: Bool[Array, "#B 1 #L S"] | None = None
    ) -> Float[Array, "B L D"]:
        """The block on visual tokens; `mask`, True where a token sees one of them."""
        return self.attend(x, self.keys_values(media), mask)

    def keys_values(self, media: Float[Array, "B S M"]) -> dict[str, Float[Array, "B S H K"]]:
        """What a cache holds of visual tokens: they do not change while text is written."""
        return self.attn.keys_values(self.norm_media(media) if self.media_norm else media)

    def attend(
        self,
        x: Float[Array, "B L D"],
        kv: dict[str, Float[Array, "B _ _ K"]] | None,
        mask: Bool[Array, "#B 1 #L S"] | None = None,
        cached: bool = False,
    ) -> Float[Array, "B L D"]:
        """The block on `keys_values`. A token that sees none, and every token where there are none at all, finds 0; its ffw still runs.

        Args:
          cached: keys and values lie in a cache, heads in front, [B, H, S, K]: XLA's CPU backend reads a cache with positions in front
            three times a step and copies it, 6 to 40 times as long for 5 images of 64 tokens.
        """
        if kv is not None:
            y = self.attn(self.norm1(x), kv, mask, cached)
            y = y if mask is None else jnp.where(seeing(mask), y, jnp.zeros_like(y))
            x = x + self.gated(y, "gate_attn")
        if self.dense:
            x = x + self.gated(self.ffw(self.norm2(x)), "gate_ffw")
        return constrain(x, "batch", None, None)

    def gated(self, y: Float[Array, "B L D"], name: str) -> Float[Array, "B L D"]:
        if self.gate == "none":
            return y
        gate = jnp.tanh(getattr(self, name)).astype(y.dtype)
        return y * (gathered(gate, "embed")[None, None] if self.gate == "vector" else gate)
