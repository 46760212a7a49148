"""U-Nets as diffusers, ADM with latent diffusion, EDM and EDM2 publish them: rules between their tensors and our parameters.

The layouts say of a network what `models.unet_blocks.Walk` does with it, in an order and with numbers of their own, so they are written as
a way through the same steps.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mmjax.convert import pieces
from mmjax.convert.rules import Op, Rule, constant, identity, split, transpose, under
from mmjax.models.edm2 import EDM2
from mmjax.models.song_unet import SongUNet
from mmjax.models.unet import UNet
from mmjax.models.unet_classifier import UNetClassifier

Array = np.ndarray


class Step(NamedTuple):
    """A residual block and the attention after it; or, where `kind` is "halve" or "double", what leaves a level.

    Attributes:
      side: "down", "mid" or "up".
      index: of the block on its level.
      ours: path of the block, or of what changes the resolution.
      attention: path of the attention, or "".
      skip: whether the block's shortcut has weights, since it changes the width.
    """

    side: str
    level: int
    index: int
    kind: str
    ours: str
    attention: str
    skip: bool


def steps(net: UNet | UNetClassifier | SongUNet | EDM2) -> Iterator[Step]:
    """The way through a network, down, in the middle and up; a classifier has no way up."""
    channels, last, width = net.channels, len(net.channels) - 1, net.width if isinstance(net, SongUNet) else net.channels[0]
    attention = net.attention or (0,) * len(channels)
    block, attn = ("block", "block") if isinstance(net, EDM2) else ("res", "attn")
    skips = [width]
    for level, features in enumerate(channels):
        for i in range(net.blocks):
            at = f"down{level}_{attn}{i}" if attention[level] else ""
            yield Step("down", level, i, "block", f"down{level}_{block}{i}", at, width != features)
            width = features
            skips.append(width)
        if level < last:
            yield Step("down", level, net.blocks, "halve", f"down{level}_resample", "", False)
            skips.append(width)
    for i in (0, 1):
        at = "mid_block0" if block == "block" else "mid_attn"
        yield Step("mid", last, i, "block", f"mid_{block}{i}", at if i == 0 and getattr(net, "mid_attention", 1) else "", False)
    if isinstance(net, UNetClassifier):
        return
    for level, features in reversed(list(enumerate(channels))):
        for i in range(net.blocks + 1):
            at = f"up{level}_{attn}{i}" if attention[level] else ""
            if isinstance(net, SongUNet):  # which has one after a level's last block alone
                at = f"up{level}_attn" if attention[level] and i == net.blocks else ""
            yield Step("up", level, i, "block", f"up{level}_{block}{i}", at, width + skips.pop() != features)
            width = features
        if level:
            yield Step("up", level, net.blocks + 1, "double", f"up{level}_resample", "", False)


# --- pieces --------------------------------------------------------------------------------------------------------------


def convolution(theirs: str, ours: str, bias: bool = True) -> list[Rule]:
    rules = pieces.convolution(theirs, ours)
    return [*rules, Rule(f"{theirs}.bias", f"{ours}/bias", identity)] if bias else rules


def matrix(places: int) -> Op:
    """A convolution of size 1 over so many axes, [out, in, 1, ...] <-> [in, out]; over none, a Linear."""
    return Op(lambda x: (x.reshape(x.shape[:2]).T,), lambda x: (x.T.reshape(*x.T.shape, *(1,) * places),))


def product(theirs: str, ours: str, places: int = 0, bias: bool = True) -> list[Rule]:
    rules = [Rule(f"{theirs}.weight", f"{ours}/kernel", matrix(places))]
    return [*rules, Rule(f"{theirs}.bias", f"{ours}/bias", identity)] if bias else rules


# How one tensor holds queries, keys and values of all heads (or keys and values): which axis counts those (0), heads (1) and a head's
# channels (2).
JOINED = {"new": (0, 1, 2), "legacy": (1, 0, 2), "interleaved": (1, 2, 0)}


def joined(order: str, heads: int, places: int | None, parts: int = 3) -> Op:
    """q, k and v (or k and v alone) in one tensor [3 D, ...] <-> one each; matrices over `places` axes, or None for biases."""
    axes = JOINED[order]
    part = Op(lambda x: (x,), lambda x: (x,)) if places is None else matrix(places)

    def forward(x: Array) -> tuple[Array, ...]:
        sizes = (parts, heads, x.shape[0] // (parts * heads))
        x = x.reshape(*(sizes[a] for a in axes), *x.shape[1:])
        whole = np.moveaxis(x, [axes.index(a) for a in range(3)], [0, 1, 2])
        return tuple(part.forward(y.reshape(-1, *y.shape[2:]))[0] for y in whole)

    def inverse(*xs: Array) -> tuple[Array, ...]:
        whole = np.stack([part.inverse(x)[0] for x in xs])
        whole = whole.reshape(parts, heads, -1, *whole.shape[2:])
        whole = np.moveaxis(whole, [0, 1, 2], [axes.index(a) for a in range(3)])
        return (whole.reshape(-1, *whole.shape[3:]),)

    return Op(forward, inverse)


def joined_attention(theirs: str, ours: str, order: str, heads: int, places: int, bias: bool = True) -> list[Rule]:
    """`qkv` in one."""
    targets = lambda leaf: tuple(f"{ours}/{name}/{leaf}" for name in "qkv")
    rules = [Rule(f"{theirs}.weight", targets("kernel"), joined(order, heads, places))]
    return [*rules, Rule(f"{theirs}.bias", targets("bias"), joined(order, heads, None))] if bias else rules


def transformer(theirs: str, ours: str, linear: bool) -> list[Rule]:
    """Stable Diffusion's, which has the same names everywhere; `linear`: its first and last product are no convolutions."""
    at, to, places = f"{theirs}.transformer_blocks.{{i}}", f"{ours}/blocks", 0 if linear else 2
    rules = [*pieces.norm(f"{theirs}.norm", f"{ours}/norm"), *product(f"{theirs}.proj_in", f"{ours}/proj_in", places)]
    for i in (1, 2):
        for name in "qkv":
            rules += pieces.dense(f"{at}.attn{i}.to_{name}", f"{to}/attn{i}/{name}", bias=False)
        rules += pieces.dense(f"{at}.attn{i}.to_out.0", f"{to}/attn{i}_out")
    for i in (1, 2, 3):
        rules += pieces.norm(f"{at}.norm{i}", f"{to}/norm{i}")
    rules += [
        Rule(f"{at}.ff.net.0.proj.weight", (f"{to}/mlp/up/kernel", f"{to}/mlp/gate/kernel"), split(2, transpose)),
        Rule(f"{at}.ff.net.0.proj.bias", (f"{to}/mlp/up/bias", f"{to}/mlp/gate/bias"), split(2)),
        *pieces.dense(f"{at}.ff.net.2", f"{to}/mlp/down"),
    ]
    return rules + product(f"{theirs}.proj_out", f"{ours}/proj_out", places)


def is_linear(names: Collection[str], name: str) -> bool:
    """Whether a file holds this product as a matrix; no file, no."""
    return isinstance(names, Mapping) and name in names and len(names[name].shape) == 2


# --- diffusers -----------------------------------------------------------------------------------------------------------


def diffusers(net: UNet, names: Collection[str] = (), linear: bool | None = None) -> list[Rule]:
    """UNet2DModel and UNet2DConditionModel.

    Args:
      names: a file's tensors, where there is one: it tells old names and the layout of the transformers' projections.
      linear: that layout where no file tells it (`use_linear_projection`).
    """
    rules = [*convolution("conv_in", "conv_in"), *_mlp("time_embedding", "time")]
    if net.classes:
        rules.append(Rule("class_embedding.weight", "label/embedding", identity))
    if net.vector or net.numbers:
        rules += _mlp("add_embedding" if net.numbers else "class_embedding", "vector")
    for step in steps(net):
        at = _diffusers_block(step, len(net.channels))
        if step.kind != "block":
            at = f"{at}.{'down' if step.kind == 'halve' else 'up'}samplers.0"
            rules += _resnet(at, step.ours, False) if net.resample == "residual" else convolution(f"{at}.conv", step.ours)
            continue
        rules += _resnet(f"{at}.resnets.{step.index}", step.ours, step.skip)
        if step.attention:
            rules += _attention(f"{at}.attentions.{step.index}", step.attention, net.kind, names, linear)
    return [*rules, *pieces.norm("conv_norm_out", "norm_out"), *convolution("conv_out", "conv_out")]


def _diffusers_block(step: Step, levels: int) -> str:
    return {"down": f"down_blocks.{step.level}", "mid": "mid_block", "up": f"up_blocks.{levels - 1 - step.level}"}[step.side]


def _mlp(theirs: str, ours: str) -> list[Rule]:
    return pieces.dense(f"{theirs}.linear_1", f"{ours}/dense1") + pieces.dense(f"{theirs}.linear_2", f"{ours}/dense2")


def _resnet(theirs: str, ours: str, skip: bool) -> list[Rule]:
    rules = pieces.dense(f"{theirs}.time_emb_proj", f"{ours}/emb")
    for i in (1, 2):
        rules += [*pieces.norm(f"{theirs}.norm{i}", f"{ours}/norm{i}"), *convolution(f"{theirs}.conv{i}", f"{ours}/conv{i}")]
    return rules + (convolution(f"{theirs}.conv_shortcut", f"{ours}/skip") if skip else [])


def _attention(theirs: str, ours: str, kind: str, names: Collection[str], linear: bool | None) -> list[Rule]:
    if kind == "cross":
        return transformer(theirs, ours, is_linear(names, f"{theirs}.proj_in.weight") if linear is None else linear)
    theirs_names = ("to_q", "to_k", "to_v", "to_out.0")
    if f"{theirs}.query.weight" in names:  # before diffusers 0.15
        theirs_names = ("query", "key", "value", "proj_attn")
    to = ours if kind == "added" else f"{ours}/attn"
    rules = pieces.norm(f"{theirs}.group_norm", f"{ours}/norm")
    for name, own in zip(theirs_names, ("q", "k", "v", "out"), strict=True):
        rules += pieces.dense(f"{theirs}.{name}", f"{to}/{own}")
    if kind == "added":
        for own in "kv":
            rules += pieces.dense(f"{theirs}.add_{own}_proj", f"{to}/added_{own}")
    return rules


# --- ADM and latent diffusion --------------------------------------------------------------------------------------------


def adm(net: UNet | UNetClassifier, names: Collection[str] = (), order: str = "legacy", linear: bool | None = None) -> list[Rule]:
    """improved- and guided-diffusion's UNetModel and EncoderUNetModel, and latent diffusion's UNetModel.

    Args:
      names, linear: as `diffusers`.
      order: of q, k and v in one tensor: "new" for ADM at 64 pixels (`use_new_attention_order`), else "legacy".
    """
    rules = [*convolution("input_blocks.0.0", "conv_in")]
    rules += pieces.dense("time_embed.0", "time/dense1") + pieces.dense("time_embed.2", "time/dense2")
    if not isinstance(net, UNetClassifier):
        rules += [Rule("label_emb.weight", "label/embedding", identity)] if net.classes else []
        if net.vector or net.numbers:
            rules += pieces.dense("label_emb.0.0", "vector/dense1") + pieces.dense("label_emb.0.2", "vector/dense2")
    count = {"down": 0, "up": -1}
    levels = _heads(net)
    for step in steps(net):
        if step.side == "mid":
            blocks, attention = f"middle_block.{step.index * (1 + bool(getattr(net, 'mid_attention', 1)))}", "middle_block.1"
        else:  # what doubles is a part of the block before it, what halves is one by itself
            count[step.side] += step.kind != "double"
            at = f"{'input' if step.side == 'down' else 'output'}_blocks.{count[step.side]}"
            blocks, attention = f"{at}.0", f"{at}.1"
        if step.kind != "block":
            if step.kind == "double":
                blocks = f"{at}.{2 if _has_attention(net, step.level) else 1}"
            conv_name = f"{blocks}.{'op' if step.kind == 'halve' else 'conv'}"
            rules += _adm_block(blocks, step.ours, False) if net.resample == "residual" else convolution(conv_name, step.ours)
            continue
        rules += _adm_block(blocks, step.ours, step.skip)
        if step.attention and getattr(net, "kind", "self") == "cross":
            rules += transformer(attention, step.attention, is_linear(names, f"{attention}.proj_in.weight") if linear is None else linear)
        elif step.attention:
            added = getattr(net, "kind", "self") == "added"
            ours = step.attention if added else f"{step.attention}/attn"
            rules += [
                *pieces.norm(f"{attention}.norm", f"{step.attention}/norm"),
                *joined_attention(f"{attention}.qkv", ours, order, levels(step.level), 1),
                *product(f"{attention}.proj_out", f"{ours}/out", 1),
                *(_added(f"{attention}.encoder_kv", ours, order, levels(step.level)) if added else []),
            ]
    rules += pieces.norm("out.0", "norm_out")
    return rules + (_pooling(levels(len(net.channels) - 1)) if isinstance(net, UNetClassifier) else convolution("out.2", "conv_out"))


def _heads(net: UNet | UNetClassifier) -> Any:
    """level -> heads."""
    if isinstance(net, UNetClassifier):
        return lambda level: net.channels[level] // net.head_width
    return net.levels.heads_at


def _has_attention(net: UNet | UNetClassifier, level: int) -> bool:
    return bool(net.attention and net.attention[level])


def _added(theirs: str, ours: str, order: str, heads: int) -> list[Rule]:
    """GLIDE's keys and values of the words, in one."""
    targets = lambda leaf: tuple(f"{ours}/added_{name}/{leaf}" for name in "kv")
    return [
        Rule(f"{theirs}.weight", targets("kernel"), joined(order, heads, 1, 2)),
        Rule(f"{theirs}.bias", targets("bias"), joined(order, heads, None, 2)),
    ]


def _adm_block(theirs: str, ours: str, skip: bool) -> list[Rule]:
    return [
        *pieces.norm(f"{theirs}.in_layers.0", f"{ours}/norm1"),
        *convolution(f"{theirs}.in_layers.2", f"{ours}/conv1"),
        *pieces.dense(f"{theirs}.emb_layers.1", f"{ours}/emb"),
        *pieces.norm(f"{theirs}.out_layers.0", f"{ours}/norm2"),
        *convolution(f"{theirs}.out_layers.3", f"{ours}/conv2"),
        *(convolution(f"{theirs}.skip_connection", f"{ours}/skip") if skip else []),
    ]


def _pooling(heads: int) -> list[Rule]:
    """The classifier's head, whose positions lie transposed and which always has the new order."""
    return [
        Rule("out.2.positional_embedding", "pool/pos/embedding", transpose),
        *joined_attention("out.2.qkv_proj", "pool/attn", "new", heads, 1),
        *product("out.2.c_proj", "head", 1),
    ]


# --- EDM -----------------------------------------------------------------------------------------------------------------


def edm(net: SongUNet | UNet, size: int, prefix: str = "model.") -> list[Rule]:
    """EDM's SongUNet and DhariwalUNet, whose names count pixels: `size` is the side of an image."""
    song = isinstance(net, SongUNet)
    taps = net.taps if song else (1.0, 1.0)
    rules = [*convolution(f"enc.{size}x{size}_conv", "conv_in")]
    if song:
        rules += [*pieces.dense("map_layer0", "time1"), *pieces.dense("map_layer1", "time2")]
        rules += [Rule("map_noise.freqs", "fourier/rates", identity)] if net.embedding == "fourier" else []
        rules += pieces.dense("map_label", "label") if net.classes else []
        rules += pieces.dense("map_augment", "augment", bias=False) if net.augment else []
    else:
        rules += [*pieces.dense("map_layer0", "time/dense1"), *pieces.dense("map_layer1", "time/dense2")]
        rules += [Rule("map_label.weight", "label/embedding", transpose)] if net.classes else []
    for step in steps(net):
        at = _edm_block(step, size)
        rules += _edm_res(at, step, song, taps if step.kind != "block" else None)
        if step.attention:
            heads = 1 if song else net.levels.heads_at(step.level)
            rules += [
                *pieces.norm(f"{at}.norm2", f"{step.attention}/norm"),
                *joined_attention(f"{at}.qkv", f"{step.attention}/attn", "interleaved", heads, 2),
                *product(f"{at}.proj", f"{step.attention}/attn/out", 2),
            ]
        if song and step.kind == "halve" and net.residual_input:
            at = at.replace("_down", "_aux_residual")
            rules += [*convolution(at, step.ours.replace("_resample", "_input")), _filter(at, taps)]
    norm, out = (f"dec.{size}x{size}_aux_norm", f"dec.{size}x{size}_aux_conv") if song else ("out_norm", "out_conv")
    return under(prefix, [*rules, *pieces.norm(norm, "norm_out"), *convolution(out, "conv_out")])


def _edm_block(step: Step, size: int) -> str:
    """What halves is named for the level it leads to, and so is what doubles."""
    level = step.level + {"block": 0, "halve": 1, "double": -1}[step.kind]
    side = size >> level
    name = {"halve": "down", "double": "up"}.get(step.kind, f"in{step.index}" if step.side == "mid" else f"block{step.index}")
    return f"{'enc' if step.side == 'down' else 'dec'}.{side}x{side}_{name}"


def _edm_res(theirs: str, step: Step, song: bool, taps: tuple[float | int, ...] | None) -> list[Rule]:
    """With `taps`, a block that changes the resolution, whose convolutions carry their filter as a constant."""
    ours = step.ours
    rules = pieces.dense(f"{theirs}.affine", f"{ours}/emb")
    for i in (0, 1):
        rules += [*pieces.norm(f"{theirs}.norm{i}", f"{ours}/norm{i + 1}"), *convolution(f"{theirs}.conv{i}", f"{ours}/conv{i + 1}")]
    if step.skip or (taps and song):
        rules += convolution(f"{theirs}.skip", f"{ours}/skip")
    return rules + ([_filter(f"{theirs}.{name}", taps) for name in ("conv0", "skip")] if taps else [])


def _filter(theirs: str, taps: tuple[float | int, ...]) -> Rule:
    values = np.asarray(taps, np.float32) / np.float32(sum(taps))
    return Rule(f"{theirs}.resample_filter", (), constant(np.outer(values, values)[None, None]))


# --- EDM2 ----------------------------------------------------------------------------------------------------------------


def edm2(net: EDM2, size: int) -> list[Rule]:
    """EDM2's network with what is around it (`Precond`); `size` is the side of an image or of its latents."""
    rules = [
        *convolution(f"enc.{size}x{size}_conv", "conv_in", bias=False),
        *_fourier("emb_fourier", "fourier"),
        *pieces.dense("emb_noise", "time", bias=False),
        *(pieces.dense("emb_label", "label", bias=False) if net.classes else []),
        *convolution("out_conv", "conv_out", bias=False),
        Rule("out_gain", "out_gain", identity),
    ]
    for step in steps(net):
        at, ours = _edm_block(step, size), step.ours
        rules += [Rule(f"{at}.emb_gain", f"{ours}/emb_gain", identity), *pieces.dense(f"{at}.emb_linear", f"{ours}/emb", bias=False)]
        rules += convolution(f"{at}.conv_res0", f"{ours}/conv1", bias=False) + convolution(f"{at}.conv_res1", f"{ours}/conv2", bias=False)
        rules += convolution(f"{at}.conv_skip", f"{ours}/skip", bias=False) if step.skip else []
        if step.attention:
            width = net.channels[step.level]
            rules += joined_attention(f"{at}.attn_qkv", ours, "interleaved", width // net.head_width, 2, bias=False)
            rules += product(f"{at}.attn_proj", f"{ours}/out", 2, bias=False)
    head = [*_fourier("logvar_fourier", "uncertainty_fourier"), *pieces.dense("logvar_linear", "uncertainty_out", bias=False)]
    return under("unet.", rules) + head


def _fourier(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}.freqs", f"{ours}/rates", identity), Rule(f"{theirs}.phases", f"{ours}/phases", identity)]
