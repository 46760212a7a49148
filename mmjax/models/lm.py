"""Language models that write text: one decoder with the options of GPT-2, OPT, MPT, LLaMA, Gemma, GPT-NeoX and Chinchilla.

Tasks and converted checkpoints hold its parameters under `lm/`; systems built on it (models.flamingo) leave that tree as it is and
use the pieces: `embed`, `block`, `where`, `finish`, `head`. `forward` is what mmjax.decoding writes text with.
B batch, L tokens, S slots of a cache, D width, E width of the embedding, V vocabulary, H heads, G heads of keys, K head width.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from mmjax.core import rng
from mmjax.core.config import Group, kwargs_for, with_variant
from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import constrain
from mmjax.layers import Dense, Embed, dropout, masks, stack, unstack_params
from mmjax.layers.decoder import Cache, DecoderBlock, make_norm, slots
from mmjax.layers.dense import normal
from mmjax.layers.rope import alibi, angles

POSITIONS = ("learned", "rope", "alibi", "none")


class LanguageModel(nn.Module):
    """Tokens to the logits of the token after each. Parameters `token`, `pos`, `project_in`, `blocks`, `norm`, `project_out`, `head`.

    Attributes:
      length: tokens of a text, at most.
      mlp: width of the feed-forward networks.
      kv_heads, head_width: G, by default H; and K, by default D / H.
      gated: SwiGLU with act "silu", GeGLU with "gelu_tanh" (Shazeer 2020).
      positions: one of POSITIONS: a table, turned queries and keys (Su et al. 2021), or biases by distance (Press et al. 2022).
      position_offset: rows at the front of the table that no token has (2 in OPT).
      rope_base, rope_fraction, rope_stretch: the slowest rate is about 1 / base; the share of a head's entries that are turned; what
        positions are divided by.
      alibi_max: the flattest slope is 2^-alibi_max.
      residual, norm, norm_bias, qk_norm, clip, scale: see layers.decoder.
      qkv_bias, out_bias, mlp_bias: which products have biases.
      final_norm: whether a norm follows the last block (OPT-350M has none).
      embed_width: E where it is not D: tokens come and leave through a product without bias.
      embed_scale: embeddings are multiplied by the root of D, as in Gemma.
      tied: logits are products with the token table; otherwise `head` is a matrix of its own.
      init_std: of every matrix at first; those before a sum have it over the root of 2 depth (Radford et al. 2019, section 2.3).
      dropout: after the embedding and each branch.
      scan, remat, backend: how it is computed, not what (see layers.stack, layers.attention).
    """

    vocab: int
    length: int
    width: int
    depth: int
    heads: int
    mlp: int
    act: str = "gelu_tanh"
    gated: bool = False
    kv_heads: int | None = None
    head_width: int | None = None
    positions: str = "learned"
    position_offset: int = 0
    rope_base: float = 10_000.0
    rope_fraction: float = 1.0
    rope_stretch: float = 1.0
    alibi_max: float = 8.0
    residual: str = "pre"
    norm: str = "layer"
    norm_bias: bool = True
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False
    clip: float | None = None
    scale: float | None = None
    final_norm: bool = True
    embed_width: int | None = None
    embed_scale: bool = False
    tied: bool = True
    init_std: float = 0.02
    dropout: float = 0.0
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"
    backend: str = "xla"

    def setup(self):
        table = lambda rows, width, axis, name: Embed(rows, width, self.dtype, normal(self.init_std), axis, name=name)
        dense = lambda width, axes: Dense(width, axes, False, self.dtype, normal(self.init_std))
        self.token = table(self.vocab, self.embed_width or self.width, "vocab", "token")
        if self.positions == "learned":
            self.pos = table(self.length + self.position_offset, self.width, "position", "pos")
        if self.embed_width is not None:
            self.project_in = dense(self.width, ("joint", "embed"))
            self.project_out = dense(self.embed_width, ("embed", "joint"))
        if self.final_norm:
            self.norm_out = make_norm(self.norm, self.norm_bias, self.eps, self.dtype, name="norm")
        if not self.tied:
            self.unembed = Dense(self.vocab, ("embed", "vocab"), False, self.dtype, normal(self.init_std), name="head")

    # --- texts --------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        tokens: Int[Array, "B L"],
        *,
        positions: Int[Array, "B L"] | None = None,
        segments: Int[Array, "B L"] | None = None,
        mask: Bool[Array, "#B #H L L"] | None = None,
        keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B L V"]:
        """Float32 logits. With `keys`, one an example, dropout is on.

        Args:
          positions: of the tokens, 0, 1, ... where not given; in packed rows they begin anew with every text.
          segments: tokens see those of their own segment alone (see data.packing).
          mask: which tokens see which, in place of the causal mask.

        Raises:
          UserError: more tokens than `length`, or a field with a value it does not know.
        """
        return self.head(self.hidden(tokens, positions=positions, segments=segments, mask=mask, keys=keys))

    def hidden(
        self,
        tokens: Int[Array, "B L"],
        *,
        positions: Int[Array, "B L"] | None = None,
        segments: Int[Array, "B L"] | None = None,
        mask: Bool[Array, "#B #H L L"] | None = None,
        keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B L E"]:
        """What `head` makes logits of; arguments as of `__call__`."""
        fold = lambda use: None if keys is None else rng.fold(keys, use)
        places = jnp.arange(tokens.shape[1])[None] if positions is None else positions
        x = dropout(self.embed(tokens, places), self.dropout, fold(0))
        where = self.where(places, segments=segments, mask=mask)
        return self.finish(self.blocks(x, fold(1), causal=mask is None, **where))

    def cached(
        self,
        tokens: Int[Array, "B L"],
        start: Int[Array, "B"],
        cache: list[Cache],
        last: Int[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B _ V"], list[Cache]]:
        """`forward`'s function, of a model with `scan` off."""
        places = start[:, None] + jnp.arange(tokens.shape[1])[None]
        where = self.where(places, slots=slots(cache))
        x, cache = self.blocks(self.embed(tokens, places), None, cache=cache, start=start, **where)
        x = x if last is None else jnp.take_along_axis(x, last[:, None, None], axis=1)
        return self.head(self.finish(x)), cache

    # --- its pieces -----------------------------------------------------------------------------------------------------

    def embed(self, tokens: Int[Array, "B L"], positions: Int[Array, "#B L"]) -> Float[Array, "B L D"]:
        """What enters the first block."""
        if self.positions not in POSITIONS:
            raise UserError(f"model.positions is {self.positions!r}{suggest(self.positions, POSITIONS)}")
        if tokens.shape[1] > self.length:
            raise UserError(f"tokens have length {tokens.shape[1]}, the language model takes at most {self.length}")
        x = self.token(tokens)
        x = x if self.embed_width is None else self.project_in(x)
        if self.embed_scale:
            x = x * jnp.asarray(self.width**0.5, x.dtype)
        if self.positions == "learned":
            x = x + self.pos(positions + self.position_offset)
        return constrain(x, "batch", None, None)

    def where(
        self,
        positions: Int[Array, "#B L"],
        *,
        segments: Int[Array, "B L"] | None = None,
        mask: Bool[Array, "#B #H L S"] | None = None,
        slots: int | None = None,
    ) -> dict[str, Array | None]:
        """What every block is told of places: `mask`, `bias`, `cos` and `sin`. Has no parameters: it may be called on an unbound model.

        Args:
          slots: S of a cache, whose slot s holds position s; the mask is made here then.
        """
        out: dict[str, Array | None] = {"mask": mask}
        if slots is not None:
            out["mask"] = masks.written(positions, slots)
        elif segments is not None:
            own = masks.same_segment(segments)
            out["mask"] = own if mask is None else own & mask
        if self.positions == "rope":
            turned = int((self.head_width or self.width // self.heads) * self.rope_fraction)
            out["cos"], out["sin"] = angles(positions, turned, self.rope_base, self.rope_stretch)
        if self.positions == "alibi":
            seen = positions if slots is None else jnp.arange(slots)[None]
            out["bias"] = alibi(positions, seen, self.heads, self.alibi_max)
        return out

    @nn.compact
    def blocks(
        self,
        x: Float[Array, "B L D"],
        keys: Key[Array, "B"] | None = None,
        *,
        causal: bool = True,
        cache: list[Cache] | None = None,
        start: Int[Array, "B"] | None = None,
        **where: Array | None,
    ) -> Float[Array, "B L D"] | tuple[Float[Array, "B L D"], list[Cache]]:
        """All blocks, and with a cache also the new one."""
        if cache is None:
            make = lambda name: self.block(name, causal)
            return stack(make, self.depth, x, keys=keys, scan=self.scan, remat=self.remat, **where)
        out = []
        for i, layer in enumerate(cache):
            x, layer = self.block(f"blocks_{i}").cached(x, layer, start, **where)
            out.append(layer)
        return x, out

    def block(self, name: str | None = None, causal: bool = True) -> DecoderBlock:
        """One block, a child of that name; without a name a module by itself, for `block.apply({"params": a layer's}, x, keys, **where)`
        and `block.apply(..., x, cache, start, **where, method="cached")`."""
        same = ("heads", "mlp", "act", "gated", "kv_heads", "head_width", "residual", "norm", "norm_bias", "qkv_bias", "out_bias")
        same += ("mlp_bias", "qk_norm", "clip", "scale", "dropout", "eps", "dtype", "backend")
        inits = {"kernel_init": normal(self.init_std), "out_init": normal(self.init_std * (2 * self.depth) ** -0.5)}
        at = {"parent": None} if name is None else {"name": name}
        return DecoderBlock(**{field: getattr(self, field) for field in same}, **inits, causal=causal, **at)

    def finish(self, x: Float[Array, "B L D"]) -> Float[Array, "B L E"]:
        """Float32, from what leaves the last block."""
        x = self.norm_out(x) if self.final_norm else x
        x = x if self.embed_width is None else self.project_out(x)
        return x.astype(jnp.float32)

    def head(self, x: Float[Array, "B L E"]) -> Float[Array, "B L V"]:
        """Float32 logits."""
        return constrain((self.token.attend(x) if self.tied else self.unembed(x)).astype(jnp.float32), "batch", None, "vocab")

    def init_cache(self, batch: int, length: int, dtype: DTypeLike | None = None) -> list[Cache]:
        """An empty cache of `length` slots: of every layer `k` and `v`, each [B, G, S, K], in `dtype` or the model's."""
        shape = batch, self.kv_heads or self.heads, length, self.head_width or self.width // self.heads
        return [{name: jnp.zeros(shape, dtype or self.dtype) for name in ("k", "v")} for _ in range(self.depth)]


def forward(model: LanguageModel, params: Mapping[str, Any]) -> Callable[..., tuple[Float[Array, "B _ V"], list[Cache]]]:
    """The function `(tokens int32[B, n], start int32[B], cache, last=None) -> (logits float32[B, n, V], cache)` of decoding.

    Token j of row b stands at position `start[b] + j`; its keys and values are written into the slot of that number, and it sees the
    slots up to its own. So prompts of unlike lengths are padded on the right and each row goes on from its own end: what a pad wrote
    is written over before it can be seen. `start + n` must not exceed the slots. With `last int32[B]`, only the logits of token
    `last[b]` of each row are made, [B, 1, V].

    Args:
      params: those of `unrolled`. Stacked ones are taken apart here, which copies all of them whenever what this is compiled into runs.
    """
    params, model = unrolled(params), model.clone(scan=False)
    return lambda tokens, start, cache, last=None: model.apply({"params": params}, tokens, start, cache, last, method="cached")


def unrolled(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model's parameters with its blocks one by one; those that are so already as they are."""
    return unstack_params(params) if "blocks" in params else params


def build(model: Group, dtype: DTypeLike = jnp.float32, where: str = "config.model.lm") -> LanguageModel:
    """The module of fields, on top of those of a `variant` if they name one.

    Raises:
      UserError: an unknown variant or field, a missing one, or heads that do not fit.
    """
    fields = kwargs_for(LanguageModel, with_variant(model, VARIANTS, where), where)
    for needed in ("vocab", "length", "width", "depth", "heads", "mlp"):
        if needed not in fields:
            raise UserError(f"{where} lacks '{needed}', which a language model needs; or set variant to one of {', '.join(VARIANTS)}")
    width, heads, groups = fields["width"], fields["heads"], fields.get("kv_heads") or fields["heads"]
    if heads % groups or (fields.get("head_width") is None and width % heads):
        raise UserError(f"{where}: heads is {heads}, which must divide width {width} and be a multiple of kv_heads {groups}")
    return LanguageModel(**{"dtype": dtype, **fields})


# --- published sizes -----------------------------------------------------------------------------------------------------


def _sizes(depth: int, width: int, heads: int, mlp: int | None = None) -> dict[str, Any]:
    return {"depth": depth, "width": width, "heads": heads, "mlp": mlp or 4 * width}


_UNBIASED = {"qkv_bias": False, "out_bias": False, "mlp_bias": False, "norm_bias": False}
_GPT2 = {"vocab": 50257, "length": 1024}
_OPT = {"vocab": 50272, "length": 2048, "act": "relu", "position_offset": 2}
_MPT = {"vocab": 50432, "length": 2048, "act": "gelu", "positions": "alibi", **_UNBIASED}
_ROPE = {"positions": "rope", "eps": 1e-6, "gated": True, **_UNBIASED}
_LLAMA = {"vocab": 32000, "length": 2048, "act": "silu", "norm": "rms", "tied": False, **_ROPE}
_LLAMA2 = {**_LLAMA, "length": 4096, "eps": 1e-5}
_GEMMA = {"vocab": 256_000, "length": 8192, "norm": "rms_plus_one", "embed_scale": True, "head_width": 256, **_ROPE}
_NEOX = {"length": 2048, "act": "gelu", "positions": "rope", "tied": False}
# The L, D and H of Alayrac et al. 2022, table 4, whose sums it rounds. Heads of 128, RMS norms and a vocabulary of 32,000 are Chinchilla's;
# its positions are those of Transformer-XL, which nobody published weights with: here queries and keys are turned.
_CHINCHILLA = {"vocab": 32000, "length": 2048, "act": "gelu_tanh", "norm": "rms", "positions": "rope", **_UNBIASED}

VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {**_GPT2, **_sizes(12, 768, 12)},
    "gpt2-medium": {**_GPT2, **_sizes(24, 1024, 16)},
    "gpt2-large": {**_GPT2, **_sizes(36, 1280, 20)},
    "gpt2-xl": {**_GPT2, **_sizes(48, 1600, 25)},
    "opt-125m": {**_OPT, **_sizes(12, 768, 12)},
    "opt-350m": {**_OPT, **_sizes(24, 1024, 16), "residual": "post", "final_norm": False, "embed_width": 512},
    "opt-1.3b": {**_OPT, **_sizes(24, 2048, 32)},
    "opt-2.7b": {**_OPT, **_sizes(32, 2560, 32)},
    "opt-6.7b": {**_OPT, **_sizes(32, 4096, 32)},
    "mpt-1b": {**_MPT, **_sizes(24, 2048, 16), "qk_norm": True},
    "mpt-7b": {**_MPT, **_sizes(32, 4096, 32)},
    "llama-7b": {**_LLAMA, **_sizes(32, 4096, 32, 11008)},
    "llama-13b": {**_LLAMA, **_sizes(40, 5120, 40, 13824)},
    "llama-65b": {**_LLAMA, **_sizes(80, 8192, 64, 22016), "eps": 1e-5},
    "llama2-7b": {**_LLAMA2, **_sizes(32, 4096, 32, 11008)},
    "llama2-13b": {**_LLAMA2, **_sizes(40, 5120, 40, 13824)},
    "llama2-70b": {**_LLAMA2, **_sizes(80, 8192, 64, 28672), "kv_heads": 8},
    "gemma-2b": {**_GEMMA, **_sizes(18, 2048, 8, 16384), "kv_heads": 1},
    "gemma-7b": {**_GEMMA, **_sizes(28, 3072, 16, 24576)},
    "redpajama-3b": {**_NEOX, "vocab": 50432, **_sizes(32, 2560, 32)},
    "neox-20b": {**_NEOX, "vocab": 50432, **_sizes(44, 6144, 64), "act": "gelu_tanh", "rope_fraction": 0.25, "residual": "parallel"},
    "chinchilla-1.4b": {**_CHINCHILLA, **_sizes(24, 2048, 16)},
    "chinchilla-7b": {**_CHINCHILLA, **_sizes(40, 4096, 32)},
    "chinchilla-70b": {**_CHINCHILLA, **_sizes(80, 8192, 64)},
}
