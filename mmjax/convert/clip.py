"""CLIP as OpenAI, OpenCLIP and Hugging Face publish it, with vision transformers and ResNets; and one of its towers alone."""

import math
import re
import warnings
from collections.abc import Collection
from typing import Any

import numpy as np

from mmjax.convert import hf_config, openclip_config, pieces
from mmjax.convert.layout import Layout, Model, dropped, positions, scalar
from mmjax.convert.rules import Rule, constant, identity, transpose
from mmjax.convert.siglip import HALF, timm_trunk
from mmjax.convert.source import Source
from mmjax.convert.tensors import Tensors
from mmjax.core.errors import UserError
from mmjax.models.clip import VARIANTS

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HEAD = 64  # width of a head in all of OpenAI's models

# --- OpenAI and OpenCLIP ------------------------------------------------------------------------------------------------


def openai_rules(model: Model, names: Collection[str]) -> list[Rule]:
    """OpenAI's names; OpenCLIP's are the same, with the text tower under `text.` where it has a class of its own."""
    text = "text." if "text.positional_embedding" in names else ""
    image = _resnet if model["image"].get("type") == "resnet" else timm_trunk if model["image"].get("pool", "cls") != "cls" else openai_vit
    rules = [
        *image(model),
        *pieces.table(f"{text}token_embedding.weight", "text/token"),
        *pieces.table(f"{text}positional_embedding", "text/pos"),
        *pieces.openai_blocks(f"{text}transformer", "text/blocks"),
        *pieces.norm(f"{text}ln_final", "text/norm"),
        *scalar(names, "logit_scale", "logit_scale", ()),
    ]
    if model.get("bias") is not None:
        rules += scalar(names, "logit_bias", "logit_bias", ())
    if model.get("text_bias"):
        rules += pieces.dense(f"{text}text_projection", "text_proj")
    else:
        rules.append(Rule(f"{text}text_projection", "text_proj/kernel", identity))
    sizes = {"input_resolution": model["size"], "context_length": model["text"]["length"], "vocab_size": model["text"]["vocab"]}
    rules += [Rule(name, (), constant(np.asarray(value))) for name, value in sizes.items() if name in names]
    return rules + dropped(names, r".*\.num_batches_tracked|(.*\.)?attn_mask")


def openai_vit(model: Model) -> list[Rule]:
    """Its vision transformer."""
    return [
        Rule("visual.class_embedding", "image/cls", identity),
        *pieces.table("visual.positional_embedding", "image/pos"),
        *pieces.patch("visual.conv1", "image/patch", model["image"]["patch"], model["channels"], bias=False),
        *pieces.norm("visual.ln_pre", "image/pre_norm"),
        *pieces.openai_blocks("visual.transformer", "image/blocks"),
        *pieces.norm("visual.ln_post", "image/norm"),
        Rule("visual.proj", "image_proj/kernel", identity),
    ]


def _resnet(model: Model) -> list[Rule]:
    rules = []
    for i in (1, 2, 3):
        rules += [*pieces.convolution(f"visual.conv{i}", f"image/stem{i}"), *pieces.batch_norm(f"visual.bn{i}", f"image/stem_norm{i}")]
    for stage, depth in enumerate(model["image"]["depths"], 1):
        at, to = f"visual.layer{stage}", f"image/stage{stage}"
        rules += _bottleneck(f"{at}.0", f"{to}/first")
        rules += pieces.convolution(f"{at}.0.downsample.0", f"{to}/first/shortcut")
        rules += pieces.batch_norm(f"{at}.0.downsample.1", f"{to}/first/shortcut_norm")
        for i in range(1, depth):  # models.resnet unrolls them
            rules += _bottleneck(f"{at}.{i}", f"{to}/blocks_{i - 1}")
    rules += pieces.table("visual.attnpool.positional_embedding", "image/pool/pos")
    for name in "qkv":
        rules += pieces.dense(f"visual.attnpool.{name}_proj", f"image/pool/attn/{name}")
    return rules + pieces.dense("visual.attnpool.c_proj", "image_proj")


def _bottleneck(theirs: str, ours: str) -> list[Rule]:
    rules = []
    for i in (1, 2, 3):
        rules += [*pieces.convolution(f"{theirs}.conv{i}", f"{ours}/conv{i}"), *pieces.batch_norm(f"{theirs}.bn{i}", f"{ours}/norm{i}")]
    return rules


def openai_describe(source: Source) -> dict[str, Any]:
    """From open_clip_config.json; without it from shapes, as OpenAI's own loader does.

    Shapes tell neither heads nor activation. A file that has the shapes of a published model is taken for it, with quick GELU where
    OpenAI published one of these shapes, and else heads are 64 wide.
    """
    config = source.jsons.get("open_clip_config.json")
    if config is None and "model_cfg" in source.jsons.get("config.json", {}):
        config = source.jsons["config.json"]
    if config is None:
        return _from_shapes(source)
    cfg = config.get("model_cfg", config)
    where = f"{source.folder}: open_clip_config.json"
    if not all(isinstance(cfg.get(key), dict) for key in ("text_cfg", "vision_cfg")):
        raise UserError(f"{where}: expected text_cfg and vision_cfg in it")
    image, text = openclip_config.image(cfg, where), openclip_config.text(cfg, where)
    model = {
        "size": _side(cfg["vision_cfg"].get("image_size", 224), where),
        "channels": 3,
        "embed": cfg["embed_dim"],
        "image": image,
        "text": text,
    }
    siglip = "logit_bias" in source.tensors
    if siglip:
        model |= {"bias": -10.0, "temperature": 0.1}
    if image.get("pool", "cls") != "cls":
        model["project_image"] = False
    if image.get("type") == "resnet":
        model["image_bias"] = True
    if cfg["text_cfg"].get("proj_bias"):
        model["text_bias"] = True
    mean, std, resize = (HALF, HALF, "squash") if siglip else (MEAN, STD, "short_side")
    return {"model": model, "preprocess": openclip_config.preprocess(config, model["size"], mean, std, resize)}


def _side(size: Any, where: str) -> int:
    if isinstance(size, list) and len(set(size)) == 1:
        size = size[0]
    if not isinstance(size, int):
        raise UserError(f"{where}: image_size is {size!r}; images are square here")
    return size


def _from_shapes(source: Source) -> dict[str, Any]:
    t, where = source.tensors, str(source.path)
    if "visual.conv1.weight" not in t:
        raise UserError(f"{where}: OpenCLIP weights whose towers are not told by shapes alone; put open_clip_config.json beside them")
    text = "text." if "text.positional_embedding" in t else ""
    width, vocab = t[f"{text}ln_final.weight"].shape[0], t[f"{text}token_embedding.weight"].shape[0]
    depth = count(t, rf"{re.escape(text)}transformer\.resblocks\.(\d+)\..*")
    fields = {"vocab": vocab, "length": t[f"{text}positional_embedding"].shape[0], "width": width, "depth": depth}
    fields |= {"heads": max(1, width // HEAD), "mlp": t[f"{text}transformer.resblocks.0.mlp.c_fc.weight"].shape[0], "act": "quick_gelu"}
    image, size = _resnet_shapes(t) if "visual.layer1.0.conv1.weight" in t else _vit_shapes(t)
    model = {"size": size, "channels": t["visual.conv1.weight"].shape[1], "embed": t[f"{text}text_projection"].shape[1]}
    model |= {"image": image, "text": fields}
    if image.get("type") == "resnet":
        model["image_bias"] = True
    known = _published(model)
    marked = "input_resolution" in t or t["visual.conv1.weight"].dtype == np.float16
    if known is not None:
        model = {**model, "image": {**image, **known["image"]}, "text": {**fields, **known["text"]}}
    if not marked and model["text"]["act"] == "quick_gelu":
        warnings.warn(
            f"{where}: nothing tells whose weights these are; taken for OpenAI's, with quick GELU. For OpenCLIP's put "
            "open_clip_config.json beside them, or give act='gelu'",
            stacklevel=2,
        )
    return {"model": model, "preprocess": {"size": size, "mean": MEAN, "std": STD, "resize": "short_side", "method": "bicubic"}}


def count(tensors: Tensors, pattern: str) -> int:
    """How many different numbers the pattern's group matches in the names."""
    return len({m[1] for m in (re.fullmatch(pattern, name) for name in tensors) if m})


def _vit_shapes(t: Tensors) -> tuple[dict[str, Any], int]:
    width, _, patch, _ = t["visual.conv1.weight"].shape
    fields = {
        "patch": patch,
        "width": width,
        "depth": count(t, r"visual\.transformer\.resblocks\.(\d+)\..*"),
        "heads": max(1, width // HEAD),
    }
    fields |= {"mlp": t["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0], "act": "quick_gelu", "eps": 1e-5}
    fields |= {"pre_norm": True, "patch_bias": False}
    return fields, patch * math.isqrt(t["visual.positional_embedding"].shape[0] - 1)


def _resnet_shapes(t: Tensors) -> tuple[dict[str, Any], int]:
    width = t["visual.layer1.0.conv1.weight"].shape[0]
    depths = tuple(count(t, rf"visual\.layer{stage}\.(\d+)\..*") for stage in (1, 2, 3, 4))
    fields = {"type": "resnet", "width": width, "depths": depths, "heads": max(1, width * 32 // HEAD)}
    return fields, 32 * math.isqrt(t["visual.attnpool.positional_embedding"].shape[0] - 1)


def _published(model: Model) -> Model | None:
    """The published model with the shapes of this one."""
    tells = ("width", "depth", "depths", "patch", "mlp", "vocab", "length")
    sizes = lambda m: {(tower, k): m[tower].get(k) for tower in ("image", "text") for k in tells} | {"embed": m["embed"]}
    return next((v for v in VARIANTS.values() if sizes(v) == sizes(model)), None)


# --- Hugging Face -------------------------------------------------------------------------------------------------------


def hf_rules(model: Model, names: Collection[str]) -> list[Rule]:
    """`CLIPModel`; `CLIPTextModel` and `CLIPVisionModel`, in transformers 5 without a prefix; and the same `WithProjection`."""
    rules, both = [], "image" in model and "text" in model
    if "text" in model:
        at = "text_model." if both or any(name.startswith("text_model.") for name in names) else ""
        rules += [
            *pieces.table(f"{at}embeddings.token_embedding.weight", "text/token"),
            *pieces.table(f"{at}embeddings.position_embedding.weight", "text/pos"),
            *pieces.hf_blocks(at, "text/blocks"),
            *pieces.norm(f"{at}final_layer_norm", "text/norm"),
        ]
        rules += [Rule("text_projection.weight", "text_proj/kernel", transpose)] if "embed" in model else []
        rules += positions(names, {rf"{re.escape(at)}embeddings\.position_ids": model["text"]["length"]})
    if "image" in model:
        at = "vision_model." if both or any(name.startswith("vision_model.") for name in names) else ""
        patch = model["image"]["patch"]
        rules += [
            Rule(f"{at}embeddings.class_embedding", "image/cls", identity),
            *pieces.patch(f"{at}embeddings.patch_embedding", "image/patch", patch, model["channels"], bias=False),
            *pieces.table(f"{at}embeddings.position_embedding.weight", "image/pos"),
            *pieces.norm(f"{at}pre_layrnorm", "image/pre_norm"),
            *pieces.hf_blocks(at, "image/blocks"),
            *pieces.norm(f"{at}post_layernorm", "image/norm"),
        ]
        rules += [Rule("visual_projection.weight", "image_proj/kernel", transpose)] if "embed" in model else []
        rules += positions(names, {rf"{re.escape(at)}embeddings\.position_ids": (model["size"] // patch) ** 2 + 1})
    return rules + (scalar(names, "logit_scale", "logit_scale", ()) if both else [])


def hf_describe(source: Source) -> dict[str, Any]:
    """From config.json, which Hugging Face's weights cannot do without: shapes tell neither heads nor activation."""
    config, where = hf_config.of(source)
    model: dict[str, Any] = {}
    if any("token_embedding" in name for name in source.tensors):
        model["text"] = hf_config.clip_text(config, where)
    if any("patch_embedding" in name for name in source.tensors):
        model |= {**hf_config.images(config, where), "image": hf_config.clip_image(config, where)}
    for name in ("text_projection.weight", "visual_projection.weight"):
        if name in source.tensors:
            model["embed"] = source.tensors[name].shape[0]
    out = {"model": model}
    if "image" in model:
        out["preprocess"] = hf_config.preprocess(source.jsons, model["size"], MEAN, STD, "short_side")
    return out


OPENAI = Layout(
    "openai", "clip", (r"visual\.(conv1|trunk\.patch_embed\.proj)\.weight", r"(text\.)?ln_final\.weight"), openai_describe, openai_rules
)
HF_CLIP = Layout("hf", "clip", (r"(.*\.)?(pre_layrnorm|final_layer_norm)\.weight", r"(.*\.)?encoder\.layers\.0\..*"), hf_describe, hf_rules)
