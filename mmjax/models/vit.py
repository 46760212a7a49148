"""Vision transformer (Dosovitskiy et al. 2021; the CLIP form of Radford et al. 2021, section 2.4).

B batch, H height, W width in pixels, C channels, L patches (+ class token), D width.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import constrain, gathered
from mmjax.layers import Block, Dense, LayerNorm, PositionEmbedding, dropout, patchify, sincos_2d, stack
from mmjax.layers.dense import normal

POOLS = ("cls", "gap")
POSITIONS = ("learn", "sincos2d")

# width, depth, heads, feed-forward width of Dosovitskiy et al., table 1, and DeiT's small and tiny ones.
VARIANTS = {
    "Ti": {"width": 192, "depth": 12, "heads": 3, "mlp": 768},
    "S": {"width": 384, "depth": 12, "heads": 6, "mlp": 1536},
    "B": {"width": 768, "depth": 12, "heads": 12, "mlp": 3072},
    "L": {"width": 1024, "depth": 24, "heads": 16, "mlp": 4096},
    "H": {"width": 1280, "depth": 32, "heads": 16, "mlp": 5120},
}


class ViT(nn.Module):
    """Images to one vector each.

    Attributes:
      patch: pixels on a side.
      pool: "cls", the class token after the last norm; "gap", the mean of all patches.
      posemb: "learn" or "sincos2d" (fixed).
      pre_norm: a norm before the first block, as CLIP has.
      patch_bias: CLIP's patch convolution has none.
      classes: a linear head of so many outputs; 0 for none.
      dropout: after position embeddings and each residual branch.
      scan, remat, backend: how it is computed, not what (see layers.stack, layers.attention).
    """

    patch: int
    width: int
    depth: int
    heads: int
    mlp: int
    act: str = "gelu"
    pool: str = "cls"
    posemb: str = "learn"
    pre_norm: bool = False
    patch_bias: bool = True
    classes: int = 0
    dropout: float = 0.0
    eps: float = 1e-6
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"
    backend: str = "xla"

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"], keys: Key[Array, "B"] | None = None) -> Float[Array, "B D"]:
        """Float32 features of width `width`, or logits of `classes`. With `keys`, dropout is on."""
        for field, value, known in (("pool", self.pool, POOLS), ("posemb", self.posemb, POSITIONS)):
            if value not in known:
                raise UserError(f"ViT {field} is {value!r}{suggest(value, known)}")
        std = self.width**-0.5
        embed = Dense(self.width, ("patch", "embed"), use_bias=self.patch_bias, dtype=self.dtype, name="patch")
        x = embed(patchify(images, self.patch))
        if self.posemb == "sincos2d":
            grid = sincos_2d(images.shape[1] // self.patch, images.shape[2] // self.patch, self.width)
            x = x + jnp.asarray(grid, self.dtype)[None]
        if self.pool == "cls":
            cls = self.param("cls", nn.with_logical_partitioning(normal(std), ("embed",)), (self.width,), jnp.float32)
            cls = gathered(cls.astype(x.dtype), "embed")
            x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.width)), x], axis=1)
        if self.posemb == "learn":
            x = PositionEmbedding(normal(std), name="pos")(x)
        x = constrain(x, "batch", None, None)
        if self.pre_norm:
            x = LayerNorm(self.eps, self.dtype, name="pre_norm")(x)
        if keys is not None:
            x = dropout(x, self.dropout, keys)
        x = stack(self.block, self.depth, x, keys=keys, scan=self.scan, remat=self.remat)
        x = x[:, 0] if self.pool == "cls" else LayerNorm(self.eps, self.dtype, name="norm")(x).mean(1)
        if self.pool == "cls":
            x = LayerNorm(self.eps, self.dtype, name="norm")(x)
        if self.classes:
            x = Dense(self.classes, ("embed", "classes"), dtype=self.dtype, kernel_init=nn.initializers.zeros, name="head")(x)
        return x.astype(jnp.float32)

    def block(self, name: str) -> Block:
        """Initialised as OpenAI's CLIP: residual outputs scaled down with depth."""
        std = self.width**-0.5
        return Block(
            heads=self.heads,
            mlp=self.mlp,
            act=self.act,
            dropout=self.dropout,
            eps=self.eps,
            dtype=self.dtype,
            backend=self.backend,
            kernel_init=normal(std),
            out_init=normal(std * (2 * self.depth) ** -0.5),
            up_init=normal((2 * self.width) ** -0.5),
            name=name,
        )
