"""Hugging Face's config.json <-> the fields of our models. What a config leaves out has the default that transformers gives it."""

from collections.abc import Mapping
from typing import Any

from mmjax.convert.source import Source
from mmjax.core.errors import UserError, suggest

Json = Mapping[str, Any]

ACTIVATIONS = {
    **{"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "relu": "relu"},
    **{"silu": "silu", "swish": "silu"},
}
THEIRS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "silu": "silu"}
MODEL_TYPES = {
    "clip": "clip",
    "clip_text_model": "clip",
    "clip_vision_model": "clip",
    "siglip": "siglip",
    "siglip_text_model": "siglip",
    "siglip_vision_model": "siglip",
    "bert": "bert",
    "t5": "t5",
}
_TOWER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_VISION = {**_TOWER, "image_size": 224, "patch_size": 32, "num_channels": 3, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
CLIP_TEXT = {
    **{"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8, "hidden_act": "quick_gelu"},
    **{"vocab_size": 49408, "max_position_embeddings": 77, "layer_norm_eps": 1e-5, "eos_token_id": 49407},
}
SIGLIP_VISION = {**CLIP_VISION, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
SIGLIP_TEXT = {
    **{**_TOWER, "vocab_size": 32000, "max_position_embeddings": 64},
    **{"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "projection_size": None},
}
BERT = {
    **{**_TOWER, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2},
    **{"hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0, "position_embedding_type": "absolute"},
}
T5 = {
    **{"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    **{"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6},
    **{"feed_forward_proj": "relu", "pad_token_id": 0},
}


def of(source: Source) -> tuple[Json, str]:
    """config.json and what messages call it.

    Raises:
      UserError: there is none.
    """
    config = source.jsons.get("config.json")
    if not isinstance(config, dict):
        raise UserError(f"{source.folder}: no config.json, which says what the shapes of Hugging Face's weights do not (heads, activation)")
    return config, f"{source.folder}: config.json"


def fill(config: Json, defaults: Json, where: str) -> dict[str, Any]:
    """The values of `defaults`' keys, each of its default's type.

    Raises:
      UserError: a value of another type: the config is not what it says it is.
    """
    out = {}
    for key, default in defaults.items():
        value = config.get(key, default)
        value = default if value is None else value
        kinds = (int, float) if isinstance(default, float) else (int, list) if key == "eos_token_id" else type(default)
        if default is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise UserError(f"{where}: {key} is {value!r}, expected {type(default).__name__}")
        out[key] = value
    return out


def act(name: str, where: str) -> str:
    """Our name of an activation."""
    if name not in ACTIVATIONS:
        raise UserError(f"{where}: activation {name!r}{suggest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _tower(c: Json, where: str) -> dict[str, Any]:
    return {
        "width": c["hidden_size"],
        "depth": c["num_hidden_layers"],
        "heads": c["num_attention_heads"],
        "mlp": c["intermediate_size"],
        "act": act(c["hidden_act"], where),
        "eps": c["layer_norm_eps"],
    }


def _tower_out(t: Json) -> dict[str, Any]:
    return {
        "hidden_size": t["width"],
        "num_hidden_layers": t["depth"],
        "num_attention_heads": t["heads"],
        "intermediate_size": t["mlp"],
        "hidden_act": THEIRS[t["act"]],
        "layer_norm_eps": t["eps"],
    }


def sub(config: Json, name: str) -> Json:
    """`text_config` or `vision_config`; a config of one tower alone is its own. Old files carry overrides in `NAME_dict`."""
    return {**(config.get(name) or {}), **(config.get(f"{name}_dict") or {})} if name in config or f"{name}_dict" in config else config


def clip_text(config: Json, where: str) -> dict[str, Any]:
    """models.text.TextTransformer's fields, CLIP's form."""
    c = fill(sub(config, "text_config"), CLIP_TEXT, where)
    # The published configs say 2, which is no end token: transformers then takes the largest id, and so do we.
    pool = {"pool": "argmax"} if c["eos_token_id"] == 2 else {"pool": "eos", "eos": c["eos_token_id"]}
    return {"vocab": c["vocab_size"], "length": c["max_position_embeddings"], **_tower(c, where), **pool}


def clip_image(config: Json, where: str) -> dict[str, Any]:
    """models.vit.ViT's fields, CLIP's form."""
    c = fill(sub(config, "vision_config"), CLIP_VISION, where)
    return {"patch": c["patch_size"], **_tower(c, where), "pre_norm": True, "patch_bias": False}


def siglip_text(config: Json, where: str) -> dict[str, Any]:
    """models.text.TextTransformer's fields, SigLIP's form."""
    c = fill(sub(config, "text_config"), SIGLIP_TEXT, where)
    return {"vocab": c["vocab_size"], "length": c["max_position_embeddings"], **_tower(c, where), "causal": False, "pool": "last"}


def siglip_image(config: Json, where: str) -> dict[str, Any]:
    """models.vit.ViT's fields, SigLIP's form."""
    c = fill(sub(config, "vision_config"), SIGLIP_VISION, where)
    return {"patch": c["patch_size"], **_tower(c, where), "pool": "map"}


def images(config: Json, where: str) -> dict[str, Any]:
    """Side of the images in pixels, and their channels."""
    c = fill(sub(config, "vision_config"), CLIP_VISION, where)
    return {"size": c["image_size"], "channels": c["num_channels"]}


def bert(config: Json, where: str) -> dict[str, Any]:
    """models.bert.Bert's fields."""
    c = fill(config, BERT, where)
    if c["position_embedding_type"] != "absolute":
        raise UserError(f"{where}: position_embedding_type is {c['position_embedding_type']!r}; BERT here has absolute positions only")
    length = c["max_position_embeddings"]
    sizes = {"vocab": c["vocab_size"], "length": length, "positions": length, "types": c["type_vocab_size"], "pad": c["pad_token_id"]}
    return {**sizes, **_tower(c, where)}


def t5(config: Json, where: str) -> dict[str, Any]:
    """models.t5.T5Encoder's fields. `length` is what it was trained with; no weight depends on it."""
    c = fill(config, T5, where)
    gated, _, name = c["feed_forward_proj"].rpartition("-")
    if gated not in ("", "gated"):
        raise UserError(f"{where}: feed_forward_proj is {c['feed_forward_proj']!r}; expected ACTIVATION or gated-ACTIVATION")
    return {
        "vocab": c["vocab_size"],
        "length": config.get("n_positions") or 512,
        "width": c["d_model"],
        "depth": c["num_layers"],
        "heads": c["num_heads"],
        "head_width": c["d_kv"],
        "mlp": c["d_ff"],
        # transformers turns "gated-gelu" into the tanh form, and leaves a plain "gelu" the exact one.
        "act": "gelu_tanh" if gated and name == "gelu" else act(name, where),
        "gated": bool(gated),
        "buckets": c["relative_attention_num_buckets"],
        "farthest": c["relative_attention_max_distance"],
        "pad": c["pad_token_id"],
        "eps": c["layer_norm_epsilon"],
    }


def preprocess(jsons: Json, size: int, mean: tuple[float, ...], std: tuple[float, ...], resize: str) -> dict[str, Any]:
    """What preprocessor_config.json (or processor_config.json's part on images) says, on the defaults given."""
    c = jsons.get("preprocessor_config.json") or (jsons.get("processor_config.json") or {}).get("image_processor") or {}
    filters = {0: "nearest", 2: "bilinear", 3: "bicubic"}
    return {
        "size": size,
        "mean": tuple(c.get("image_mean", mean)),
        "std": tuple(c.get("image_std", std)),
        "resize": ("short_side" if c["do_center_crop"] else "squash") if "do_center_crop" in c else resize,
        "method": filters.get(c.get("resample", 3), "bicubic"),
    }


def pair_out(model: Json, kind: str) -> dict[str, Any]:
    """config.json of a CLIPModel or SiglipModel (`kind`), or of the class of one of its towers with its projection."""
    title, parts = {"clip": "CLIP", "siglip": "Siglip"}[kind], {}
    projected = kind == "clip" and "embed" in model
    if "text" in model:
        parts["text"] = _text_out(model["text"], kind) | {"model_type": f"{kind}_text_model"}
        parts["text"] |= {"projection_size": model["embed"]} if kind == "siglip" else {}
    if "image" in model:
        parts["vision"] = _image_out(model) | {"model_type": f"{kind}_vision_model"}
    for part in parts.values():
        part |= {"projection_dim": model["embed"]} if projected else {}
    if len(parts) == 1:
        ((name, part),) = parts.items()
        return {"architectures": [f"{title}{name.title()}Model{'WithProjection' if projected else ''}"], **part}
    both = {"architectures": [f"{title}Model"], "model_type": kind, **{f"{name}_config": part for name, part in parts.items()}}
    return both | ({"projection_dim": model["embed"]} if projected else {})


def _text_out(t: Json, kind: str) -> dict[str, Any]:
    out = {**_tower_out(t), "vocab_size": t["vocab"], "max_position_embeddings": t["length"]}
    if kind == "clip":
        out["eos_token_id"] = 2 if t["pool"] == "argmax" else t["eos"]
    return out


def _image_out(model: Json) -> dict[str, Any]:
    sizes = {"image_size": model["size"], "patch_size": model["image"]["patch"], "num_channels": model["channels"]}
    return {**_tower_out(model["image"]), **sizes}


def bert_out(t: Json) -> dict[str, Any]:
    """config.json of a BertModel."""
    sizes = {"vocab_size": t["vocab"], "max_position_embeddings": t["positions"], "type_vocab_size": t["types"], "pad_token_id": t["pad"]}
    return {"architectures": ["BertModel"], "model_type": "bert", **_tower_out(t), **sizes}


def t5_out(t: Json) -> dict[str, Any]:
    """config.json of a T5EncoderModel."""
    name = {"gelu_tanh": "gelu", "gelu": "gelu", "relu": "relu"}[t["act"]]
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": t["vocab"],
        "n_positions": t["length"],
        "d_model": t["width"],
        "d_kv": t["head_width"],
        "d_ff": t["mlp"],
        "num_layers": t["depth"],
        "num_heads": t["heads"],
        "relative_attention_num_buckets": t["buckets"],
        "relative_attention_max_distance": t["farthest"],
        "layer_norm_epsilon": t["eps"],
        "feed_forward_proj": f"gated-{name}" if t["gated"] else name,
        "pad_token_id": t["pad"],
        "eos_token_id": 1,
        "is_encoder_decoder": False,
    }


def preprocessor_out(p: Json, kind: str) -> dict[str, Any]:
    """preprocessor_config.json of CLIP (resize the short side, crop the middle) or SigLIP (squash to a square)."""
    size, crop = p["size"], p["resize"] == "short_side"
    square = {"height": size, "width": size}
    return {
        "image_processor_type": {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}[kind],
        "do_resize": True,
        "size": {"shortest_edge": size} if crop else square,
        "do_center_crop": crop,
        "crop_size": square,
        "resample": {"nearest": 0, "bilinear": 2, "bicubic": 3}[p["method"]],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(p["mean"]),
        "image_std": list(p["std"]),
        "do_convert_rgb": True,
    }
