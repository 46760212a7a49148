"""What the names and shapes of a U-Net's state dict tell of its fields: ADM's and latent diffusion's, EDM's and EDM2's."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from mmjax.convert.diffusers_config import POOLED, SIZES
from mmjax.convert.source import Source
from mmjax.convert.tensors import Tensors
from mmjax.core.errors import UserError, suggest
from mmjax.models import unet, unet_classifier
from mmjax.models.unet import NUMBER_WIDTH

Fields = dict[str, Any]
# What shapes tell; the rest of a published network's fields comes with its name.
SHAPED = (
    *("channels", "blocks", "attention", "mid_attention", "kind", "out_channels"),
    *("classes", "vector", "numbers", "scale_shift", "resample"),
)
HEADS = ("heads", "head_width")
_DEFAULTS = {"mid_attention": 1, "kind": "self", "out_channels": 3, "classes": 0, "vector": 0, "numbers": 0, "scale_shift": False}


def highest(names: Any, pattern: str) -> int:
    """The largest number that the pattern's group matches in names; -1 for none."""
    return max((int(m[1]) for m in (re.match(pattern, name) for name in names) if m), default=-1)


def check_name(variant: Any, known: Collection[str]) -> None:
    """Raises `UserError` for a name that is none of a published network's."""
    if isinstance(variant, str) and variant not in known:
        raise UserError(f"variant is {variant!r}{suggest(variant, known)}")


def adm(source: Source) -> tuple[Fields, str]:
    """models.unet.UNet's fields and `context`, the width of words if it looks at any; and the order of q, k and v in one tensor.

    Raises:
      UserError: no published network has these shapes, and nobody says how many heads it has.
    """
    fields = of_adm(source.tensors)
    name, given = (source.variant, {}) if isinstance(source.variant, str) else (None, source.variant or {})
    published = unet.VARIANTS.get(name) if name else _published(fields)
    if published is not None:
        for key in SHAPED:
            if published.get(key, _DEFAULTS.get(key, fields[key])) != fields[key]:
                raise UserError(f"{source.path}: variant {name!r} has {key} {published.get(key)}, and the tensors have {fields[key]}")
        low = published.get("low_res", 0)
        fields = {**published, **fields, "low_res": low, "in_channels": fields["in_channels"] - low}
    elif not any(key in given for key in HEADS) and (any(fields["attention"]) or fields["mid_attention"]):
        raise UserError(
            f"{source.path}: shapes do not tell how many heads a U-Net of widths {fields['channels']} has, which is none of the "
            "published ones; give variant={'heads': N} or variant={'head_width': CHANNELS}"
        )
    if "low_res" in given:
        fields["in_channels"] -= given["low_res"] - fields.get("low_res", 0)
    if any(key in given for key in HEADS):
        fields = {k: v for k, v in fields.items() if k not in HEADS}
    # improved- and guided-diffusion have ADM at 64 pixels alone trained with the later order.
    new = fields["channels"] == unet.VARIANTS["adm-64"]["channels"] and fields.get("head_width") == 64
    return fields, "new" if new else "legacy"


def of_adm(t: Tensors) -> Fields:
    base = t["time_embed.0.weight"].shape[1]
    outputs = 1 + highest(t, r"output_blocks\.(\d+)\.")
    ends = [f"{i}.{leaf}.weight" for i in (1, 2) for leaf in ("conv", "in_layers.0")]  # of what doubles the resolution
    doubled = [n for n in range(outputs) if any(f"output_blocks.{n}.{end}" in t for end in ends)]
    blocks = doubled[0] if doubled else outputs - 1
    levels = outputs // (blocks + 1)
    first = [1 + level * (blocks + 1) for level in range(levels)]
    halving = f"input_blocks.{first[0] + blocks}.0"
    width = t[f"input_blocks.{first[0]}.0.out_layers.3.weight"].shape[0]
    width_of = lambda ending: next((x.shape[1] for name, x in t.items() if name.endswith(ending)), None)
    added, words = width_of("encoder_kv.weight"), width_of("attn2.to_k.weight")
    vector, numbers = 0, 0
    if "label_emb.0.0.weight" in t:
        vector = t["label_emb.0.0.weight"].shape[1]
        numbers = next((n for n in SIZES if vector - n * NUMBER_WIDTH == POOLED), 0)
        vector -= numbers * NUMBER_WIDTH
    fields: Fields = {
        "channels": tuple(t[f"input_blocks.{n}.0.out_layers.3.weight"].shape[0] for n in first),
        "blocks": blocks,
        "attention": tuple(_depth(t, f"input_blocks.{n}.1") for n in first),
        "mid_attention": _depth(t, "middle_block.1"),
        "kind": "added" if added else "cross" if words else "self",
        "in_channels": t["input_blocks.0.0.weight"].shape[1],
        "out_channels": t["out.2.weight"].shape[0],
        "time_width": base,
        "classes": t["label_emb.weight"].shape[0] if "label_emb.weight" in t else 0,
        "vector": vector,
        "numbers": numbers,
        "scale_shift": t[f"input_blocks.{first[0]}.0.emb_layers.1.weight"].shape[0] == 2 * width,
        "resample": "residual" if f"{halving}.in_layers.0.weight" in t and levels > 1 else "conv",
    }
    return fields if added is words is None else {**fields, "context": added or words}


def _depth(t: Tensors, at: str) -> int:
    """1 for attention by itself, else the number of transformer blocks."""
    return 1 if f"{at}.qkv.weight" in t else 1 + highest(t, rf"{re.escape(at)}\.transformer_blocks\.(\d+)\.")


def _published(fields: Fields) -> Mapping[str, Any] | None:
    """The published network with these shapes; of several the heads are the same."""
    for name, known in unet.VARIANTS.items():
        own = {key: known.get(key, _DEFAULTS.get(key, "conv")) for key in SHAPED}
        channels = known.get("in_channels", 3) + known.get("low_res", 0)
        if all(own[key] == fields[key] for key in SHAPED) and channels == fields["in_channels"] and name != "edm-imagenet64":
            return known
    return None


def published_size(fields: Fields, words: int | None = None) -> int | None:
    """The side of what the published network with these fields, and this width of words, is given."""
    for name, known in unet.VARIANTS.items():
        if all(fields.get(k) == v for k, v in known.items()) and unet.CONTEXTS.get(name) == words:
            return unet.SIZES[name]
    return None


def classifier(source: Source) -> tuple[Fields, int]:
    """models.unet_classifier.UNetClassifier's fields, and the side of the images.

    Raises:
      UserError: none of the published ones, and nobody says its channels.
    """
    t, given = source.tensors, source.variant
    count = 1 + highest(t, r"input_blocks\.(\d+)\.")
    matches = {n: v for n, v in unet_classifier.VARIANTS.items() if len(v["channels"]) * (v["blocks"] + 1) == count}
    fields = dict(next(iter(matches.values()), {}))
    if isinstance(given, str):
        fields = dict(unet_classifier.VARIANTS.get(given, {}))
    if isinstance(given, Mapping) and "channels" in given:
        fields = {"attention": (), **given}
    if not fields:
        raise UserError(
            f"{source.path}: a classifier of {count} blocks, none of the published ones; give variant=FIELDS, its channels among them"
        )
    side = round((t["out.2.positional_embedding"].shape[1] - 1) ** 0.5)
    fields |= {"classes": t["out.2.c_proj.weight"].shape[0], "time_width": t["time_embed.0.weight"].shape[1]}
    return fields, side * 2 ** (len(fields["channels"]) - 1)


def edm(source: Source) -> tuple[str, Fields, int, int]:
    """The type of network, its fields, the side of an image and its channels."""
    t, prefix = source.tensors, next(name.split("enc.")[0] for name in source.tensors if "enc." in name)
    at = lambda name: t.get(f"{prefix}{name}.weight")
    size = max(int(m[1]) for m in (re.match(rf"{re.escape(prefix)}enc\.(\d+)x\d+_conv\.weight", name) for name in t) if m)
    sides = sorted({int(m[1]) for m in (re.match(rf"{re.escape(prefix)}enc\.(\d+)x\d+_block0\.", name) for name in t) if m}, reverse=True)
    first = f"enc.{size}x{size}"
    second = prefix.startswith("unet.")
    conv, qkv, label = ("conv_res1", "attn_qkv", "emb_label") if second else ("conv1", "qkv", "map_label")
    channels = tuple(at(f"enc.{side}x{side}_block0.{conv}").shape[0] for side in sides)
    classes = 0 if at(label) is None else at(label).shape[1]
    fields = {
        "blocks": 1 + highest(t, rf"{re.escape(prefix + first)}_block(\d+)\."),
        "attention": tuple(int(at(f"enc.{side}x{side}_block0.{qkv}") is not None) for side in sides),
        "in_channels": at(f"{first}_conv").shape[1] - second,
        "classes": classes,
    }
    if second:
        multiples = tuple(width // channels[0] for width in channels)
        return (
            "edm2",
            {
                **fields,
                "width": channels[0],
                "multiples": multiples,
                "out_channels": at("out_conv").shape[0],
                "uncertainty": t["logvar_fourier.freqs"].shape[0],
            },
            size,
            fields["in_channels"],
        )
    if at("out_conv") is not None:  # ADM in EDM's code: heads of 64 channels
        adm_ = {"head_width": 64, "scale_shift": True, "resample": "residual", "time_width": at("map_layer0").shape[1]}
        return "unet", {**fields, **adm_, "channels": channels, "out_channels": at("out_conv").shape[0]}, size, fields["in_channels"]
    song = {
        "width": at(f"{first}_conv").shape[0],
        "channels": channels,
        "out_channels": at(f"dec.{size}x{size}_aux_conv").shape[0],
        "embedding": "fourier" if f"{prefix}map_noise.freqs" in t else "positional",
        "residual_input": any("_aux_residual." in name for name in t),
        "augment": 0 if at("map_augment") is None else at("map_augment").shape[1],
    }
    filters = {x.shape[-1] for name, x in t.items() if name.endswith("resample_filter")}
    song["taps"] = (1.0, 3.0, 3.0, 1.0) if 4 in filters else (1.0, 1.0)
    return "song_unet", {**fields, **song}, size, fields["in_channels"]
