"""A stack of equal transformer blocks: scanned or unrolled, with activations kept or recomputed."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from mmjax.core import rng, tree
from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import constrain
from mmjax.layers.attention import Attention
from mmjax.layers.dense import Initializer
from mmjax.layers.dropout import dropout
from mmjax.layers.mlp import Mlp
from mmjax.layers.norm import LayerNorm

# What the backward pass finds stored of a block: all, nothing but its input, or its products with parameters.
REMAT = ("none", "full", "dots")


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)). B batch, L tokens, D width.

    Parameters `norm1`, `attn`, `norm2`, `mlp`. `keys` (one an example) turn dropout on; `mask` is `Attention`'s.
    """

    heads: int
    mlp: int
    act: str
    causal: bool = False
    dropout: float = 0.0
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32
    backend: str = "xla"
    kernel_init: Initializer = nn.initializers.lecun_normal()
    out_init: Initializer = nn.initializers.lecun_normal()
    up_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], keys: Key[Array, "B"] | None = None, mask: Bool[Array, "#B #H #L S"] | None = None
    ) -> Float[Array, "B L D"]:
        drop = lambda y, use: dropout(y, self.dropout, None if keys is None else rng.fold(keys, use))
        attn = Attention(self.heads, self.causal, self.dtype, self.kernel_init, self.out_init, self.backend, name="attn")
        x = x + drop(attn(LayerNorm(self.eps, self.dtype, name="norm1")(x), mask=mask), 0)
        mlp = Mlp(self.mlp, self.act, self.dtype, self.up_init, self.out_init, name="mlp")
        x = x + drop(mlp(LayerNorm(self.eps, self.dtype, name="norm2")(x)), 1)
        return constrain(x, "batch", None, None)


class PostNormBlock(nn.Module):
    """The transformer block of Vaswani et al. 2017, section 3.1: norm(x + attention(x)), then norm(x + mlp(x)). S tokens looked at.

    Parameters `attn`, `norm1`, `mlp`, `norm2`. `keys` (one an example) turn dropout on; `mask` is `Attention`'s.
    """

    heads: int
    mlp: int
    act: str
    dropout: float = 0.0
    eps: float = 1e-12
    dtype: DTypeLike = jnp.float32
    backend: str = "xla"
    init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], keys: Key[Array, "B"] | None = None, mask: Bool[Array, "#B #H #L S"] | None = None
    ) -> Float[Array, "B L D"]:
        drop = lambda y, use: dropout(y, self.dropout, None if keys is None else rng.fold(keys, use))
        attn = Attention(self.heads, False, self.dtype, self.init, self.init, self.backend, name="attn")
        x = LayerNorm(self.eps, self.dtype, name="norm1")(x + drop(attn(x, mask=mask), 0))
        mlp = Mlp(self.mlp, self.act, self.dtype, self.init, self.init, name="mlp")
        x = LayerNorm(self.eps, self.dtype, name="norm2")(x + drop(mlp(x), 1))
        return constrain(x, "batch", None, None)


def stack(
    make: Callable[[str], nn.Module],
    depth: int,
    x: Float[Array, "B *d"],
    *,
    keys: Key[Array, "B"] | None = None,
    scan: bool = True,
    remat: str = "none",
    each: Mapping[str, Array] | None = None,
    **shared: Array | None,
) -> Float[Array, "B *d"]:
    """Runs `depth` blocks `make(name)(x, keys, **own, **shared)`; call it inside a compact method.

    Scanned, parameters are `blocks/...` with a leading axis "layers"; unrolled they are `blocks_0/...`, `blocks_1/...`
    (`stack_params` and `unstack_params` go between the two). Both draw the same dropout. `shared` is the same for every
    block: a mask, a bias on scores. `each` holds arrays with an entry a block in front, of which a block is given its `own`. New
    values of a collection "state" (BatchNorm's) are stacked as parameters are.

    Raises:
      UserError: an unknown remat policy.
    """
    if remat not in REMAT:
        raise UserError(f"model.remat is {remat!r}{suggest(remat, REMAT)}")

    each = dict(each or {})

    def body(block: nn.Module, x: Array, layer: Array, own: dict[str, Array]) -> tuple[Array, None]:
        return block(x, None if keys is None else rng.fold(keys, layer), **own, **shared), None

    if remat != "none":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
        # Inside a scan the body cannot be merged with its recomputation, so the barrier against that is not needed.
        body = nn.remat(body, prevent_cse=not scan, policy=policy)
    if not scan:
        for i in range(depth):
            x, _ = body(make(f"blocks_{i}"), x, jnp.int32(i), {name: a[i] for name, a in each.items()})
        return x
    axes, names = {"params": 0, "state": 0}, {nn.PARTITION_NAME: "layers"}
    lifted = nn.scan(body, variable_axes=axes, split_rngs={"params": True}, length=depth, metadata_params=names)
    return lifted(make("blocks"), x, jnp.arange(depth), each)[0]


def unstack_params(params: dict[str, Any]) -> dict[str, Any]:
    """The unrolled model's parameters from the scanned one's: `a/blocks/b [layers, ...]` -> `a/blocks_i/b [...]`."""
    flat: dict[str, Any] = {}
    for path, x in tree.flatten(params).items():
        head, found, tail = path.partition("blocks/")
        if found and (not head or head.endswith("/")):
            flat.update({f"{head}blocks_{i}/{tail}": x[i] for i in range(x.shape[0])})
        else:
            flat[path] = x
    return tree.unflatten(flat)


def stack_params(params: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `unstack_params`."""
    flat: dict[str, Any] = {}
    layers: dict[str, dict[int, Any]] = {}
    for path, x in tree.flatten(params).items():
        m = re.fullmatch(r"(|.*/)blocks_(\d+)/(.*)", path)
        if m:
            layers.setdefault(f"{m[1]}blocks/{m[3]}", {})[int(m[2])] = x
        else:
            flat[path] = x
    flat.update({path: jnp.stack([xs[i] for i in range(len(xs))]) for path, xs in layers.items()})
    return tree.unflatten(flat)
