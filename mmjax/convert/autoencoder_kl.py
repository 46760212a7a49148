"""AutoencoderKL as diffusers and as latent diffusion publish it."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from mmjax.convert import pieces
from mmjax.convert.layout import Model, dropped
from mmjax.convert.rules import Op, Rule, conv, identity
from mmjax.convert.tensors import Tensors
from mmjax.core.errors import UserError

# A product stored as a 1 x 1 convolution [out, in, 1, 1].
_squeezed = Op(lambda x: (x[:, :, 0, 0].T,), lambda x: (x.T[:, :, None, None],))


def _conv(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}.weight", f"{ours}/kernel", conv), Rule(f"{theirs}.bias", f"{ours}/bias", identity)]


def _residual(theirs: str, ours: str, shortcut: str) -> list[Rule]:
    """`shortcut`: what the projection is called, or "" where there is none."""
    rules = _conv(f"{theirs}.{shortcut}", f"{ours}/shortcut") if shortcut else []
    for i in (1, 2):
        rules += [*pieces.norm(f"{theirs}.norm{i}", f"{ours}/norm{i}"), *_conv(f"{theirs}.conv{i}", f"{ours}/conv{i}")]
    return rules


def _levels(model: Model) -> dict[str, list[tuple[int, list[tuple[str, bool]], str]]]:
    """Of encoder and decoder: (level, (block, whether it changes the width)..., "down", "up" or "")."""
    mults, blocks = model["mults"], model.get("blocks", 2)
    encoder, decoder, width = [], [], 1
    for i, mult in enumerate(mults):
        encoder.append((i, [(f"block{j}", j == 0 and width != mult) for j in range(blocks)], "down" if i < len(mults) - 1 else ""))
        width = mult
    for i, mult in reversed(list(enumerate(mults))):
        decoder.append((i, [(f"block{j}", j == 0 and width != mult) for j in range(blocks + 1)], "up" if i else ""))
        width = mult
    return {"encoder": encoder, "decoder": decoder}


def _quant(model: Model) -> list[Rule]:
    if not model.get("quant", True):
        return []
    return _conv("quant_conv", "quant_conv") + _conv("post_quant_conv", "post_quant_conv")


def ldm_rules(model: Model, names: Collection[str]) -> list[Rule]:
    """CompVis/latent-diffusion's names; the discriminator and perceptual network that were trained beside it are left out."""
    rules = _quant(model)
    for part, levels in _levels(model).items():
        side = "down" if part == "encoder" else "up"
        for i, blocks, to in levels:
            at, ours = f"{part}.{side}.{i}", f"{part}/level{i}"
            for name, changes in blocks:
                rules += _residual(f"{at}.block.{name[5:]}", f"{ours}/{name}", "nin_shortcut" if changes else "")
            rules += _conv(f"{at}.{to}sample.conv", f"{ours}/{to}") if to else []
        middle, ours = f"{part}.mid", f"{part}/mid"
        rules += [*_residual(f"{middle}.block_1", f"{ours}/block1", ""), *_residual(f"{middle}.block_2", f"{ours}/block2", "")]
        rules += pieces.norm(f"{middle}.attn_1.norm", f"{ours}/norm")
        for theirs, name in (("q", "q"), ("k", "k"), ("v", "v"), ("proj_out", "out")):
            rules.append(Rule(f"{middle}.attn_1.{theirs}.weight", f"{ours}/attn/{name}/kernel", _squeezed))
            rules.append(Rule(f"{middle}.attn_1.{theirs}.bias", f"{ours}/attn/{name}/bias", identity))
        rules += [*_conv(f"{part}.conv_in", f"{part}/conv_in"), *pieces.norm(f"{part}.norm_out", f"{part}/norm")]
        rules += _conv(f"{part}.conv_out", f"{part}/conv_out")
    return rules + dropped(names, r"loss\..*|model_ema\..*")


OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # before diffusers 0.17


def diffusers_rules(model: Model, names: Collection[str]) -> list[Rule]:
    """diffusers' names, the decoder's levels counted from the smallest map; those of attention as they were before 0.17 as well."""
    rules, last = _quant(model), len(model["mults"]) - 1
    for part, levels in _levels(model).items():
        side = "down" if part == "encoder" else "up"
        for i, blocks, to in levels:
            at, ours = f"{part}.{side}_blocks.{i if part == 'encoder' else last - i}", f"{part}/level{i}"
            for name, changes in blocks:
                rules += _residual(f"{at}.resnets.{name[5:]}", f"{ours}/{name}", "conv_shortcut" if changes else "")
            rules += _conv(f"{at}.{to}samplers.0.conv", f"{ours}/{to}") if to else []
        middle, ours = f"{part}.mid_block", f"{part}/mid"
        rules += [*_residual(f"{middle}.resnets.0", f"{ours}/block1", ""), *_residual(f"{middle}.resnets.1", f"{ours}/block2", "")]
        attention = f"{middle}.attentions.0"
        rules += pieces.norm(f"{attention}.group_norm", f"{ours}/norm")
        old = f"{attention}.query.weight" in names
        for theirs, name in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "out")):
            rules += pieces.dense(f"{attention}.{OLD_ATTENTION[theirs] if old else theirs}", f"{ours}/attn/{name}")
        rules += [*_conv(f"{part}.conv_in", f"{part}/conv_in"), *pieces.norm(f"{part}.conv_norm_out", f"{part}/norm")]
        rules += _conv(f"{part}.conv_out", f"{part}/conv_out")
    return rules


def diffusers_describe(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """models.autoencoder_kl.AutoencoderKL's fields from config.json.

    Raises:
      UserError: a network that differs from it.
    """
    widths = config["block_out_channels"]
    if any(w % widths[0] for w in widths):
        raise UserError(f"{where}: block_out_channels {widths} are no multiples of the first")
    expected = {"in_channels": config.get("out_channels", 3), "act_fn": "silu", "mid_block_add_attention": True}
    expected |= {"down_block_types": ["DownEncoderBlock2D"] * len(widths), "up_block_types": ["UpDecoderBlock2D"] * len(widths)}
    expected |= {"use_post_quant_conv": config.get("use_quant_conv", True)}
    for key, want in expected.items():
        got = config.get(key, want)
        if (list(got) if isinstance(got, tuple) else got) != want:
            raise UserError(f"{where}: {key} is {got!r}, and the autoencoder here has {want!r}")
    return {
        "latent": config["latent_channels"],
        "mults": tuple(w // widths[0] for w in widths),
        "width": widths[0],
        "blocks": config.get("layers_per_block", 1),
        "channels": config.get("in_channels", 3),
        "groups": config.get("norm_num_groups", 32),
        "quant": config.get("use_quant_conv", True),
    }


def latent_scale(config: Mapping[str, Any]) -> dict[str, float]:
    """`scale` and `shift` of (z - shift) * scale, which a diffusion model of these latents sees."""
    return {"scale": config.get("scaling_factor", 0.18215), "shift": config.get("shift_factor") or 0.0}


def ldm_describe(tensors: Tensors, where: str) -> dict[str, Any]:
    """models.autoencoder_kl.AutoencoderKL's fields from shapes; its groups are 32 in all that are published.

    Raises:
      UserError: an autoencoder of another kind: with a codebook, or with attention at other places than the middle.
    """
    for name in tensors:
        if name.startswith("quantize.") or re.fullmatch(r"(encoder\.down|decoder\.up)\.\d+\.attn\..*", name):
            what = "a codebook" if name.startswith("quantize.") else "attention on a level"
            raise UserError(
                f"{where}: {name}: an autoencoder with {what}; read are those of the KL kind with attention in the middle alone"
            )
    levels = 1 + max(int(m[1]) for m in (re.match(r"encoder\.down\.(\d+)\.", name) for name in tensors) if m)
    blocks = len({m[1] for m in (re.match(r"encoder\.down\.0\.block\.(\d+)\.", name) for name in tensors) if m})
    width, channels, *_ = tensors["encoder.conv_in.weight"].shape
    return {
        "latent": tensors["decoder.conv_in.weight"].shape[1],
        "mults": tuple(tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] // width for i in range(levels)),
        "width": width,
        "blocks": blocks,
        "channels": channels,
        "quant": "quant_conv.weight" in tensors,
    }
