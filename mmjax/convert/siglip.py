"""SigLIP and SigLIP 2 as Hugging Face, big_vision and OpenCLIP (through timm) publish them."""

import math
from collections.abc import Collection
from typing import Any

from mmjax.convert import hf_config, pieces
from mmjax.convert.layout import Layout, Model, positions, scalar
from mmjax.convert.rules import Rule, identity, reshape
from mmjax.convert.source import Source
from mmjax.core.errors import UserError

HALF = (0.5, 0.5, 0.5)
PAIR = {"bias": -10.0, "temperature": 0.1, "project_image": False, "text_bias": True}


def timm_trunk(model: Model) -> list[Rule]:
    """timm's vision transformer, under the names that OpenCLIP gives it."""
    image, trunk = model["image"], "visual.trunk"
    width, side = image["width"], model["size"] // image["patch"]
    rules = [
        *pieces.table(f"{trunk}.pos_embed", "image/pos", reshape((1, side * side, width), (side * side, width))),
        *pieces.patch(f"{trunk}.patch_embed.proj", "image/patch", image["patch"], model["channels"], bias=True),
        *pieces.timm_blocks(trunk, "image/blocks"),
        *pieces.norm(f"{trunk}.norm", "image/norm"),
    ]
    if image["pool"] == "map":
        at, to = f"{trunk}.attn_pool", "image/map"
        rules += [
            Rule(f"{at}.latent", f"{to}/probe", reshape((1, 1, width), (width,))),
            *pieces.dense(f"{at}.q", f"{to}/attn/q"),
            *pieces.fused(f"{at}.kv.", f"{to}/attn", "kv", "weight", "bias"),
            *pieces.dense(f"{at}.proj", f"{to}/attn/out"),
            *pieces.norm(f"{at}.norm", f"{to}/norm"),
            *pieces.mlp(f"{at}.mlp", f"{to}/mlp", "fc1", "fc2"),
        ]
    return rules


# --- Hugging Face -------------------------------------------------------------------------------------------------------


def hf_rules(model: Model, names: Collection[str]) -> list[Rule]:
    """`SiglipModel`; `SiglipTextModel` and `SiglipVisionModel`, in transformers 5 without a prefix."""
    rules, both = [], "image" in model and "text" in model
    if "text" in model:
        at = "text_model." if both or any(name.startswith("text_model.") for name in names) else ""
        rules += [
            *pieces.table(f"{at}embeddings.token_embedding.weight", "text/token"),
            *pieces.table(f"{at}embeddings.position_embedding.weight", "text/pos"),
            *pieces.hf_blocks(at, "text/blocks"),
            *pieces.norm(f"{at}final_layer_norm", "text/norm"),
            *pieces.dense(f"{at}head", "text_proj"),
            *positions(names, {rf"{at}embeddings\.position_ids": model["text"]["length"]}),
        ]
    if "image" in model:
        at = "vision_model." if both or any(name.startswith("vision_model.") for name in names) else ""
        patch, width = model["image"]["patch"], model["image"]["width"]
        rules += [
            *pieces.patch(f"{at}embeddings.patch_embedding", "image/patch", patch, model["channels"], bias=True),
            *pieces.table(f"{at}embeddings.position_embedding.weight", "image/pos"),
            *pieces.hf_blocks(at, "image/blocks"),
            *pieces.norm(f"{at}post_layernorm", "image/norm"),
            *positions(names, {rf"{at}embeddings\.position_ids": (model["size"] // patch) ** 2}),
        ]
        if model["image"]["pool"] == "map":
            rules += [
                Rule(f"{at}head.probe", "image/map/probe", reshape((1, 1, width), (width,))),
                *pieces.openai_attention(f"{at}head.attention", "image/map/attn"),
                *pieces.norm(f"{at}head.layernorm", "image/map/norm"),
                *pieces.mlp(f"{at}head.mlp", "image/map/mlp", "fc1", "fc2"),
            ]
    return rules + ([r for name in ("logit_scale", "logit_bias") for r in scalar(names, name, name, (1,))] if both else [])


def hf_describe(source: Source) -> dict[str, Any]:
    """From config.json."""
    (config, where), model = hf_config.of(source), {}
    if any("token_embedding" in name for name in source.tensors):
        model["text"] = hf_config.siglip_text(config, where)
        head = next((x for name, x in source.tensors.items() if name in ("text_model.head.weight", "head.weight")), None)
        model |= {"embed": head.shape[0] if head else model["text"]["width"], "text_bias": True}
    if any("patch_embedding" in name for name in source.tensors):
        model |= {**hf_config.images(config, where), "image": hf_config.siglip_image(config, where)}
        model["project_image"] = False
        if not any(name.endswith("head.probe") for name in source.tensors):
            raise UserError(
                f"{source.path}: a SigLIP image tower without the pooling head; its features of patches alone are not supported"
            )
    out: dict[str, Any] = {"model": {**model, **PAIR} if len({"text", "image"} & set(model)) == 2 else model}
    if "image" in model:
        out["preprocess"] = hf_config.preprocess(source.jsons, model["size"], HALF, HALF, "squash")
    return out


# --- big_vision ---------------------------------------------------------------------------------------------------------


def _root(names: Collection[str]) -> str:
    return "params/" if any(name.startswith("params/img/") for name in names) else ""


def big_vision_rules(model: Model, names: Collection[str]) -> list[Rule]:
    """big_vision's two_towers model, its blocks one by one or scanned."""
    root, image, text = _root(names), model["image"], model["text"]
    img, txt = f"{root}img", f"{root}txt"
    scanned = lambda at, tower: tower["depth"] if any(name.startswith(f"{at}/encoderblock/") for name in names) else None
    patches, width = (model["size"] // image["patch"]) ** 2, image["width"]
    kernel = (image["patch"], image["patch"], model["channels"], width)
    return [
        Rule(f"{img}/embedding/kernel", "image/patch/kernel", reshape(kernel, (math.prod(kernel[:3]), width))),
        Rule(f"{img}/embedding/bias", "image/patch/bias", identity),
        *pieces.table(f"{img}/pos_embedding", "image/pos", reshape((1, patches, width), (patches, width))),
        *pieces.flax_blocks(f"{img}/Transformer", "image/blocks", width, image["heads"], scanned(f"{img}/Transformer", image)),
        *pieces.same(f"{img}/Transformer/encoder_norm", "image/norm", ("scale", "bias")),
        *_map_head(f"{img}/MAPHead_0", "image/map", width, image["heads"]),
        *pieces.table(f"{txt}/Embed_0/embedding", "text/token"),
        *pieces.table(f"{txt}/pos_embedding", "text/pos", reshape((1, text["length"], text["width"]), (text["length"], text["width"]))),
        *pieces.flax_blocks(f"{txt}/Encoder_0", "text/blocks", text["width"], text["heads"], scanned(f"{txt}/Encoder_0", text)),
        *pieces.same(f"{txt}/Encoder_0/encoder_norm", "text/norm", ("scale", "bias")),
        *pieces.same(f"{txt}/head", "text_proj", ("kernel", "bias")),
        *scalar(names, f"{root}t", "logit_scale", (1,)),
        *scalar(names, f"{root}b", "logit_bias", (1,)),
    ]


def _map_head(theirs: str, ours: str, width: int, heads: int) -> list[Rule]:
    return [
        Rule(f"{theirs}/probe", f"{ours}/probe", reshape((1, 1, width), (width,))),
        *pieces.flax_attention(f"{theirs}/MultiHeadDotProductAttention_0", f"{ours}/attn", width, heads),
        *pieces.same(f"{theirs}/LayerNorm_0", f"{ours}/norm", ("scale", "bias")),
        *pieces.flax_mlp(f"{theirs}/MlpBlock_0", f"{ours}/mlp"),
    ]


def big_vision_describe(source: Source) -> dict[str, Any]:
    """From shapes, which tell all: the heads are an axis, and the activation is tanh GELU always."""
    t, root = source.tensors, _root(source.tensors)
    try:
        patch, _, channels, _ = t[f"{root}img/embedding/kernel"].shape
        side = math.isqrt(t[f"{root}img/pos_embedding"].shape[1])
        vocab, length = t[f"{root}txt/Embed_0/embedding"].shape[0], t[f"{root}txt/pos_embedding"].shape[1]
        image = {"patch": patch, **_encoder(source, f"{root}img/Transformer"), "pool": "map"}
        text = {"vocab": vocab, "length": length, **_encoder(source, f"{root}txt/Encoder_0"), "causal": False, "pool": "last"}
        embed = t[f"{root}txt/head/bias"].shape[0]
    except (KeyError, ValueError, IndexError) as e:
        raise UserError(f"{source.path}: big_vision's names, but not SigLIP's two towers ({e} is missing or misshapen)") from None
    size = side * patch
    if (side, patch) == (27, 14):  # the one size whose images are not a whole number of patches
        size = 384
    model = {"size": size, "channels": channels, "embed": embed, "image": image, "text": text, **PAIR}
    return {"model": model, "preprocess": {"size": size, "mean": HALF, "std": HALF, "resize": "squash", "method": "bicubic"}}


def _encoder(source: Source, at: str) -> dict[str, Any]:
    t = source.tensors
    scanned = any(name.startswith(f"{at}/encoderblock/") for name in t)
    block = f"{at}/encoderblock" if scanned else f"{at}/encoderblock_0"
    lead, width, heads, _ = (1, *t[f"{block}/MultiHeadDotProductAttention_0/query/kernel"].shape)[-4:]
    depth = (
        lead if scanned else len({name.split("/encoderblock_")[1].split("/")[0] for name in t if name.startswith(f"{at}/encoderblock_")})
    )
    mlp = t[f"{block}/MlpBlock_0/Dense_0/bias"].shape[-1]
    return {"width": width, "depth": depth, "heads": heads, "mlp": mlp, "act": "gelu_tanh", "eps": 1e-6}


HF_SIGLIP = Layout("hf", "clip", (r"(.*\.)?head\.(probe|weight)", r"(.*\.)?encoder\.layers\.0\..*"), hf_describe, hf_rules)
BIG_VISION = Layout("big_vision", "clip", (r"(params/)?img/embedding/kernel", r"(params/)?txt/.*"), big_vision_describe, big_vision_rules)
