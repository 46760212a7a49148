"""Vision transformer (Dosovitskiy et al. 2021; the CLIP form of Radford et al. 2021, section 2.4; SigLIP's of Zhai et al. 2023).

B batch, H height, W width in pixels, C channels, L patches (+ class token), D width.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from mmjax.core import rng
from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import constrain, gathered
from mmjax.layers import Attention, Block, Dense, LayerNorm, Mlp, PositionEmbedding, drop_patches, dropout, patchify, sincos_2d, stack
from mmjax.layers.dense import normal

POOLS = ("cls", "gap", "map", "none")
POSITIONS = ("learn", "sincos2d")


def _size(width: int, depth: int, heads: int, mlp: int) -> dict:
    return {"width": width, "depth": depth, "heads": heads, "mlp": mlp}


# Dosovitskiy et al., table 1 (B, L, H); DeiT (Ti, S); Zhai et al. 2022, table 2, and Chen et al. 2023 (g, G, e); Alabdulmohsin et
# al. 2023 (So400m); SigLIP 2 (g-opt). OpenCLIP's g/14 and bigG/14 are g and G.
VARIANTS = {
    "Ti": _size(192, 12, 3, 768),
    "S": _size(384, 12, 6, 1536),
    "B": _size(768, 12, 12, 3072),
    "L": _size(1024, 24, 16, 4096),
    "So400m": _size(1152, 27, 16, 4304),
    "H": _size(1280, 32, 16, 5120),
    "g": _size(1408, 40, 16, 6144),
    "g-opt": _size(1536, 40, 16, 6144),
    "G": _size(1664, 48, 16, 8192),
    "e": _size(1792, 56, 16, 15360),
}


class ViT(nn.Module):
    """Images to one vector each, or one for every token.

    Attributes:
      patch: pixels on a side.
      pool: "cls", the class token after the last norm; "gap", the mean of all normed patches; "map", a learnt query's look at them
        (`MapPool`); "none", all of them, normed, and no class token.
      posemb: "learn" or "sincos2d" (fixed).
      pre_norm: a norm before the first block, as CLIP has.
      patch_bias: CLIP's patch convolution has none.
      classes: a linear head of so many outputs; 0 for none.
      dropout: after position embeddings and each residual branch.
      patch_dropout: share of an image's patches that training leaves out, drawn anew for each; the class token stays.
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
    patch_dropout: float = 0.0
    eps: float = 1e-6
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"
    backend: str = "xla"

    state_paths = ()  # regexes of parameters that only the task writes: none

    @property
    def features(self) -> int:
        """Width of what comes out without `classes`."""
        return self.width

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"], keys: Key[Array, "B"] | None = None, tokens: bool = False) -> Float[Array, "B *d"]:
        """Float32 features [B, D] ([B, L, D] of pool "none"), or logits of `classes`. With `keys`, dropout is on.

        With `tokens`, what the last block puts out instead, [B, L, D], the class token first: before the last norm, as
        Hugging Face's hidden states are. A tower of fewer blocks gives those of an earlier one.
        """
        for field, value, known in (("pool", self.pool, POOLS), ("posemb", self.posemb, POSITIONS)):
            if value not in known:
                raise UserError(f"ViT {field} is {value!r}{suggest(value, known)}")
        x = self.embed(images, keys)
        x = stack(self.block, self.depth, x, keys=keys, scan=self.scan, remat=self.remat)
        if tokens:
            return x.astype(jnp.float32)
        x = LayerNorm(self.eps, self.dtype, name="norm")(x[:, 0] if self.pool == "cls" else x)
        if self.pool == "gap":
            x = x.mean(1)
        if self.pool == "map":
            x = MapPool(self.heads, self.mlp, self.act, self.eps, self.dtype, self.backend, name="map")(x)
        if self.classes:
            x = Dense(self.classes, ("embed", "classes"), dtype=self.dtype, kernel_init=nn.initializers.zeros, name="head")(x)
        return x.astype(jnp.float32)

    def embed(self, images: Float[Array, "B H W C"], keys: Key[Array, "B"] | None) -> Float[Array, "B L D"]:
        """What the first block sees."""
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
        if keys is not None and self.patch_dropout:
            first = int(self.pool == "cls")
            own = jax.vmap(lambda key: rng.named(key, "patch_dropout"))(keys)
            x = jnp.concatenate([x[:, :first], drop_patches(x[:, first:], self.patch_dropout, own)], axis=1)
        x = constrain(x, "batch", None, None)
        if self.pre_norm:
            x = LayerNorm(self.eps, self.dtype, name="pre_norm")(x)
        return x if keys is None else dropout(x, self.dropout, keys)

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


class MapPool(nn.Module):
    """Pooling by attention of Zhai et al. 2022, section 2.2, as SigLIP has it: y = attention of a learnt query, then y + mlp(norm(y)).

    Parameters `probe`, `attn`, `norm`, `mlp`.
    """

    heads: int
    mlp: int
    act: str
    eps: float = 1e-6
    dtype: DTypeLike = jnp.float32
    backend: str = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B D"]:
        b, _, d = x.shape
        std = normal(d**-0.5)
        probe = self.param("probe", nn.with_logical_partitioning(std, ("embed",)), (d,), jnp.float32)
        probe = jnp.broadcast_to(gathered(probe.astype(self.dtype), "embed"), (b, 1, d))
        y = Attention(self.heads, False, self.dtype, std, std, self.backend, name="attn")(probe, x)
        hidden = LayerNorm(self.eps, self.dtype, name="norm")(y)
        return (y + Mlp(self.mlp, self.act, self.dtype, std, std, name="mlp")(hidden))[:, 0]
