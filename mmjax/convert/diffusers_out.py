"""Fields of diffusion's networks -> the config.json with which diffusers loads them, and the layout of its tensors."""

from collections.abc import Mapping
from typing import Any

from mmjax.convert import diffusion, unclip
from mmjax.convert.family import Target
from mmjax.core.errors import UserError
from mmjax.models import autoencoder_kl, dit, unet

Json = dict[str, Any]
STEM = "diffusion_pytorch_model"
UNTOLD = (
    "diffusers' DiT spreads times over other frequencies than this network was trained with (freq_shift 1 in place of 0), so it computes "
    "something near, not the same; load the exported folder here with variant={'freq_shift': 0, 'eps': 1e-6}"
)


def network(config: Mapping[str, Any]) -> Target:
    """The folder of UNet2DModel, UNet2DConditionModel or DiTTransformer2DModel; of unCLIP's stages the two folders of each.

    Raises:
      UserError: a network that diffusers has no class for.
    """
    model = config["model"]
    if "embedding" in model:
        return _decoder(model)
    if model.get("last_until") is not None:
        return _upsampler(model)
    kinds = {"unet": _unet, "dit": _dit}
    kind = model["network"]["type"]
    if kind not in kinds:
        raise UserError(f"diffusers has no class for networks of type {kind!r}; known: {', '.join(kinds)}")
    return kinds[kind](model)


def autoencoder(config: Mapping[str, Any]) -> Target:
    """The folder of AutoencoderKL."""
    latent = config["model"]["latent"]
    net = autoencoder_kl.build(latent["autoencoder"])
    levels = len(net.mults)
    written = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [net.width * mult for mult in net.mults],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": net.blocks,
        "in_channels": net.channels,
        "out_channels": net.channels,
        "latent_channels": net.latent,
        "norm_num_groups": net.groups,
        "use_quant_conv": net.quant,
        "use_post_quant_conv": net.quant,
        "scaling_factor": latent.get("scale", 1.0),
        "shift_factor": latent.get("shift", 0.0) or None,
    }
    written |= {"sample_size": config["model"]["size"]} if "size" in config["model"] else {}
    return Target(diffusion.AUTOENCODER, (), {"config.json": written}, STEM)


def _dit(model: Mapping[str, Any]) -> Target:
    net = dit.build({k: v for k, v in model["network"].items() if k != "type"})
    if not (net.classes and net.label_dropout) or net.context or net.time_scale != 1 or net.mlp_ratio != 4:
        raise UserError("diffusers' DiT has classes with a null class, no context, times as they are and an mlp of 4 times its width")
    written = {
        "_class_name": "DiTTransformer2DModel",
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "norm_eps": net.eps,
        "attention_bias": True,
        "attention_head_dim": net.width // net.heads,
        "num_attention_heads": net.heads,
        "num_layers": net.depth,
        "num_embeds_ada_norm": net.classes,
        "patch_size": net.patch,
        "sample_size": model["size"],
        "in_channels": model["channels"],
        "out_channels": model["channels"] * (2 if net.learn_sigma else 1),
    }
    return Target(diffusion.DIFFUSERS_DIT, (), {"config.json": written}, STEM, [] if net.freq_shift == 1 else [UNTOLD])


def _unet(model: Mapping[str, Any]) -> Target:
    net = unet.build({k: v for k, v in model["network"].items() if k != "type"})
    if net.low_res:
        raise UserError("diffusers' U-Nets take a coarser image as channels of x; this one enlarges it itself")
    if net.time_width not in (None, net.channels[0]):
        raise UserError(f"diffusers' U-Nets spread times over as many numbers as the first level has channels, not {net.time_width}")
    written = {**_shared(net), **(_plain(net) if net.kind == "self" else _conditioned(net, model))}
    written |= {"sample_size": model["size"]} if "size" in model else {}
    return Target(diffusion.DIFFUSERS_UNET, (), {"config.json": written}, STEM)


def _decoder(model: Mapping[str, Any]) -> Target:
    embedding, net = model["embedding"], unclip.network(model)
    plain = embedding.get("null", "learned") == "learned" and not embedding.get("unit") and not embedding.get("pooled")
    if not (plain and embedding.get("text") and embedding.get("project") and embedding.get("tokens", 4)):
        raise UserError(
            "diffusers' UnCLIPTextProjModel has a learned null, projects words, adds the caption's embedding and none of another form; "
            "config.model.embedding is not of that kind"
        )
    text = {
        "_class_name": "UnCLIPTextProjModel",
        "clip_embeddings_dim": embedding["width"],
        "clip_extra_context_tokens": embedding.get("tokens", 4),
        "cross_attention_dim": embedding["context_width"],
        "time_embed_dim": net.embedding_width,
    }
    inner = _unet({**model, "context": {**model["context"], "width": embedding["context_width"]}}).jsons["config.json"]
    jsons = {"decoder/config.json": inner, "text_proj/config.json": text}
    return Target(unclip.DECODER, (), jsons, STEM, parts=_parts("decoder", "text_proj"))


def _parts(*folders: str) -> dict[str, str]:
    """Of tensors whose names begin with a folder's."""
    return {f"{name}.": f"{name}/{STEM}" for name in folders}


def _upsampler(model: Mapping[str, Any]) -> Target:
    net = dict(model["network"])
    both = {**net, "in_channels": net["in_channels"] + net.pop("low_res"), "low_res": 0}
    config = _unet({**model, "network": both}).jsons["config.json"]
    folders = ("super_res_first", "super_res_last")
    return Target(unclip.UPSAMPLER, (), {f"{name}/config.json": config for name in folders}, STEM, parts=_parts(*folders))


def _shared(net: unet.UNet) -> Json:
    rows = net.classes + (net.label_dropout > 0) if net.classes else 0
    return {
        "act_fn": "silu",
        "block_out_channels": list(net.channels),
        "layers_per_block": net.blocks,
        "in_channels": net.in_channels,
        "out_channels": net.out_channels,
        "flip_sin_to_cos": net.time_order == "cos_sin",
        "freq_shift": net.freq_shift,
        "num_class_embeds": rows or None,
        "norm_eps": net.eps,
        "norm_num_groups": net.groups,
        "downsample_padding": 0 if net.resample == "conv_same" else 1,
        "resnet_time_scale_shift": "scale_shift" if net.scale_shift else "default",
        "dropout": net.dropout,
    }


def _types(net: unet.UNet, without: str, with_: str) -> Json:
    down = [with_ if depth else without for depth in net.levels.attention]
    up = [name.replace("Downsample", "Upsample").replace("Down", "Up") for name in reversed(down)]
    return {"down_block_types": down, "up_block_types": up}


def _plain(net: unet.UNet) -> Json:
    widths = {net.channels[i] // net.levels.heads_at(i) for i, depth in enumerate(net.levels.attention) if depth}
    widths |= {net.channels[-1] // net.levels.heads_at(len(net.channels) - 1)}
    one = all(net.levels.heads_at(i) == 1 for i in range(len(net.channels)))
    if net.vector or net.numbers or net.mid_attention > 1 or any(depth > 1 for depth in net.levels.attention):
        raise UserError("diffusers' UNet2DModel has attention of one layer and no vector beside the time")
    if len(widths) > 1 and not one:
        raise UserError(f"diffusers' UNet2DModel has heads of one width; this one's are {', '.join(map(str, sorted(widths)))} wide")
    how = "resnet" if net.resample == "residual" else "conv"
    return {
        "_class_name": "UNet2DModel",
        **_types(net, "ResnetDownsampleBlock2D" if how == "resnet" else "DownBlock2D", "AttnDownBlock2D"),
        "attention_head_dim": None if one else widths.pop(),
        "attn_norm_num_groups": net.groups if net.mid_attention else None,
        "downsample_type": how,
        "upsample_type": how,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "add_attention": bool(net.mid_attention),
    }


def _conditioned(net: unet.UNet, model: Mapping[str, Any]) -> Json:
    added, levels = net.kind == "added", range(len(net.channels))
    if added != (net.resample == "residual") or not net.mid_attention:
        raise UserError(
            "diffusers' UNet2DConditionModel has residual blocks between levels where keys are added, and attention in the middle"
        )
    heads = [net.channels[i] // net.levels.heads_at(i) if added else net.levels.heads_at(i) for i in levels]
    if added and len(set(heads)) > 1:
        raise UserError(f"diffusers' U-Nets with added keys have heads of one width; this one's are {heads} wide")
    depths = [depth or 1 for depth in net.levels.attention]
    if depths[-1] != net.mid_attention and net.levels.attention[-1]:
        raise UserError(f"diffusers' U-Nets have as many transformer blocks in the middle as on the coarsest level, {depths[-1]}")
    depths[-1] = net.mid_attention
    without, with_ = ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D") if added else ("DownBlock2D", "CrossAttnDownBlock2D")
    out = {
        "_class_name": "UNet2DConditionModel",
        **_types(net, without, with_),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn" if added else "UNetMidBlock2DCrossAttn",
        "cross_attention_dim": model["context"]["width"],
        # The number of heads, but where keys and values are added.
        "attention_head_dim": heads[0] if len(set(heads)) == 1 else heads,
        "transformer_layers_per_block": depths[0] if len(set(depths)) == 1 else depths,
        "use_linear_projection": diffusion.is_linear(net),
    }
    if added:
        out["class_embed_type"] = "identity"
    if net.numbers:
        out |= {"addition_embed_type": "text_time", "addition_time_embed_dim": unet.NUMBER_WIDTH}
    elif net.vector:
        out |= {"class_embed_type": "projection"}
    if net.vector:
        out["projection_class_embeddings_input_dim"] = net.vector + net.numbers * unet.NUMBER_WIDTH
    return out
