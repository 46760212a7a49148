"""The rules of layers, as the libraries that publish weights name them. A family's file puts them together.

Tensors of PyTorch's Linear are [out, in]; `{i}` counts blocks.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from mmjax.convert.rules import Op, Rule, conv, identity, patches, reshape, split, transpose

HOW = ("form", "type", "parent", "name", "dtype", "scan", "remat", "backend", "dropout")  # fields that say nothing of what is computed


def is_form(fields: Mapping[str, Any], module: type, form: Mapping[str, Any], free: Collection[str]) -> bool:
    """Whether a module of these fields is of a published form but for those that are `free`: what a config.json has no words for."""
    plain = {f.name: f.default for f in dataclasses.fields(module) if f.name not in (*HOW, *free)} | dict(form)
    return all({**plain, **fields}[name] == value for name, value in plain.items() if name not in free)


def dense(theirs: str, ours: str, bias: bool = True) -> list[Rule]:
    """A Linear."""
    rules = [Rule(f"{theirs}.weight", f"{ours}/kernel", transpose)]
    return [*rules, Rule(f"{theirs}.bias", f"{ours}/bias", identity)] if bias else rules


def norm(theirs: str, ours: str, bias: bool = True) -> list[Rule]:
    """A LayerNorm; without bias an RMSNorm."""
    rules = [Rule(f"{theirs}.weight", f"{ours}/scale", identity)]
    return [*rules, Rule(f"{theirs}.bias", f"{ours}/bias", identity)] if bias else rules


def table(theirs: str, ours: str, op: Op = identity) -> list[Rule]:
    """A table of embeddings, tokens or positions."""
    return [Rule(theirs, f"{ours}/embedding", op)]


def patch(theirs: str, ours: str, size: int, channels: int, bias: bool) -> list[Rule]:
    """The convolution that makes patches into tokens."""
    rules = [Rule(f"{theirs}.weight", f"{ours}/kernel", patches(size, channels))]
    return [*rules, Rule(f"{theirs}.bias", f"{ours}/bias", identity)] if bias else rules


def fused(theirs: str, ours: str, names: str = "qkv", weight: str = "in_proj_weight", bias: str = "in_proj_bias") -> list[Rule]:
    """Products on top of each other in one tensor, `q`, `k`, `v` in ours."""
    targets = lambda leaf: tuple(f"{ours}/{name}/{leaf}" for name in names)
    return [
        Rule(f"{theirs}{weight}", targets("kernel"), split(len(names), transpose)),
        Rule(f"{theirs}{bias}", targets("bias"), split(len(names))),
    ]


def openai_attention(theirs: str, ours: str) -> list[Rule]:
    """torch.nn.MultiheadAttention."""
    return fused(f"{theirs}.", ours) + dense(f"{theirs}.out_proj", f"{ours}/out")


def mlp(theirs: str, ours: str, up: str, down: str) -> list[Rule]:
    """Two Linears."""
    return dense(f"{theirs}.{up}", f"{ours}/up") + dense(f"{theirs}.{down}", f"{ours}/down")


def openai_blocks(theirs: str, ours: str) -> list[Rule]:
    """Blocks of OpenAI's CLIP and OpenCLIP: `resblocks`."""
    at = f"{theirs}.resblocks.{{i}}"
    return [
        *norm(f"{at}.ln_1", f"{ours}/norm1"),
        *openai_attention(f"{at}.attn", f"{ours}/attn"),
        *norm(f"{at}.ln_2", f"{ours}/norm2"),
        *mlp(f"{at}.mlp", f"{ours}/mlp", "c_fc", "c_proj"),
    ]


def hf_blocks(theirs: str, ours: str) -> list[Rule]:
    """Blocks of Hugging Face's CLIP and SigLIP: `encoder.layers`."""
    at = f"{theirs}encoder.layers.{{i}}"
    rules = [*norm(f"{at}.layer_norm1", f"{ours}/norm1"), *norm(f"{at}.layer_norm2", f"{ours}/norm2")]
    for name in ("q", "k", "v", "out"):
        rules += dense(f"{at}.self_attn.{name}_proj", f"{ours}/attn/{name}")
    return rules + mlp(f"{at}.mlp", f"{ours}/mlp", "fc1", "fc2")


def timm_blocks(theirs: str, ours: str) -> list[Rule]:
    """Blocks of timm's vision transformers."""
    at = f"{theirs}.blocks.{{i}}"
    return [
        *norm(f"{at}.norm1", f"{ours}/norm1"),
        *fused(f"{at}.attn.qkv.", f"{ours}/attn", weight="weight", bias="bias"),
        *dense(f"{at}.attn.proj", f"{ours}/attn/out"),
        *norm(f"{at}.norm2", f"{ours}/norm2"),
        *mlp(f"{at}.mlp", f"{ours}/mlp", "fc1", "fc2"),
    ]


def flax_attention(theirs: str, ours: str, width: int, heads: int, lead: tuple[int, ...] = ()) -> list[Rule]:
    """flax's MultiHeadDotProductAttention, heads on an axis of their own; `lead` axes before all, where blocks are scanned."""
    split_ = (heads, width // heads)
    rules = []
    for name, ours_name in (("query", "q"), ("key", "k"), ("value", "v")):
        at, to = f"{theirs}/{name}", f"{ours}/{ours_name}"
        rules += [
            Rule(f"{at}/kernel", f"{to}/kernel", reshape((*lead, width, *split_), (*lead, width, width))),
            Rule(f"{at}/bias", f"{to}/bias", reshape((*lead, *split_), (*lead, width))),
        ]
    rules += [
        Rule(f"{theirs}/out/kernel", f"{ours}/out/kernel", reshape((*lead, *split_, width), (*lead, width, width))),
        Rule(f"{theirs}/out/bias", f"{ours}/out/bias", identity),
    ]
    return rules


def same(theirs: str, ours: str, leaves: tuple[str, ...]) -> list[Rule]:
    """Leaves of flax's that are ours, under other names of modules."""
    return [Rule(f"{theirs}/{leaf}", f"{ours}/{leaf}", identity) for leaf in leaves]


def flax_mlp(theirs: str, ours: str) -> list[Rule]:
    """big_vision's MlpBlock."""
    leaves = ("kernel", "bias")
    return same(f"{theirs}/Dense_0", f"{ours}/up", leaves) + same(f"{theirs}/Dense_1", f"{ours}/down", leaves)


def flax_blocks(theirs: str, ours: str, width: int, heads: int, scanned: int | None) -> list[Rule]:
    """Blocks of big_vision's encoders: one by one, or `scanned` of them in one array."""
    at, lead = (f"{theirs}/encoderblock_{{i}}", ()) if scanned is None else (f"{theirs}/encoderblock", (scanned,))
    leaves = ("scale", "bias")
    return [
        *same(f"{at}/LayerNorm_0", f"{ours}/norm1", leaves),
        *flax_attention(f"{at}/MultiHeadDotProductAttention_0", f"{ours}/attn", width, heads, lead),
        *same(f"{at}/LayerNorm_1", f"{ours}/norm2", leaves),
        *flax_mlp(f"{at}/MlpBlock_0", f"{ours}/mlp"),
    ]


def convolution(theirs: str, ours: str) -> list[Rule]:
    """A convolution without bias."""
    return [Rule(f"{theirs}.weight", f"{ours}/kernel", conv)]


def batch_norm(theirs: str, ours: str) -> list[Rule]:
    """A BatchNorm2d and its running statistics. The count of batches it saw is no part of the model and is a rule of its own."""
    names = (("weight", "scale"), ("bias", "bias"), ("running_mean", "mean"), ("running_var", "var"))
    return [Rule(f"{theirs}.{a}", f"{ours}/{b}", identity) for a, b in names]
