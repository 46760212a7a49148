"""OpenCLIP's open_clip_config.json <-> the fields of our models."""

import re
from collections.abc import Mapping
from typing import Any

from mmjax.core.errors import UserError

Json = Mapping[str, Any]

# timm's SigLIP towers with tanh GELU; the others have the exact one, though all were trained with tanh. What the file's own library
# computes is what counts.
_TANH = r"vit_(base_patch32|so400m_patch16|giantopt_patch16)_siglip(_gap)?_\d+|vit_large_patch16_siglip(_gap)?_512"
_TIMM = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096), "so400m": (1152, 27, 16, 4304), "giantopt": (1536, 40, 16, 6144)}


def _act(config: Json, tower: Json) -> str:
    if (tower.get("act_kwargs") or {}).get("approximate") == "tanh":
        return "gelu_tanh"
    return "quick_gelu" if config.get("quick_gelu") else "gelu"


def _eps(tower: Json) -> float:
    return float((tower.get("norm_kwargs") or {}).get("eps", 1e-5))


def text(config: Json, where: str) -> dict[str, Any]:
    """models.text.TextTransformer's fields.

    Raises:
      UserError: a tower from transformers, or an option that ours has no field for.
    """
    c = config["text_cfg"]
    refuse(c, ("hf_model_name", "ls_init_value", "embed_cls"), where)
    width = c.get("width", 512)
    pool = c.get("pool_type", "argmax")
    if pool not in ("argmax", "last"):
        raise UserError(f"{where}: text_cfg.pool_type is {pool!r}, expected 'argmax' or 'last'")
    return {
        "vocab": c.get("vocab_size", 49408),
        "length": c.get("context_length", 77),
        "width": width,
        "depth": c.get("layers", 12),
        "heads": c.get("heads", 8),
        "mlp": int(width * c.get("mlp_ratio", 4.0)),
        "act": _act(config, c),
        "eps": _eps(c),
        "causal": not c.get("no_causal_mask", False),
        "pool": pool,
    }


def refuse(c: Json, keys: tuple[str, ...], where: str) -> None:
    """Raises `UserError` for an option that is on and that we have no field for."""
    for key in keys:
        if c.get(key):
            raise UserError(f"{where}: {key}={c[key]!r} describes a tower that is not one of ours")


def image(config: Json, where: str) -> dict[str, Any]:
    """Fields of the image tower: models.vit.ViT, with `timm_model_name` SigLIP's, or models.resnet.ModifiedResNet."""
    c = config["vision_cfg"]
    if c.get("timm_model_name"):
        return timm(c["timm_model_name"], where)
    refuse(c, ("ls_init_value", "attentional_pool", "global_average_pool", "no_ln_pre", "input_patchnorm", "final_ln_after_pool"), where)
    width = c.get("width", 768)
    if isinstance(c.get("layers"), list):
        return {"type": "resnet", "width": width, "depths": tuple(c["layers"]), "heads": width * 32 // c.get("head_width", 64)}
    return {
        "patch": c.get("patch_size", 16),
        "width": width,
        "depth": c.get("layers", 12),
        "heads": width // c.get("head_width", 64),
        "mlp": int(width * c.get("mlp_ratio", 4.0)),
        "act": _act(config, c),
        "eps": _eps(c),
        "pre_norm": True,
        "patch_bias": False,
    }


def timm(name: str, where: str) -> dict[str, Any]:
    """Fields of the SigLIP tower that timm has under a name such as vit_base_patch16_siglip_224."""
    found = re.fullmatch(r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip(_gap)?_\d+", name)
    if not found:
        raise UserError(f"{where}: timm_model_name is {name!r}; of timm's towers SigLIP's are read, vit_SIZE_patchP_siglip_N")
    width, depth, heads, mlp = _TIMM[found[1]]
    sizes = {"patch": int(found[2]), "width": width, "depth": depth, "heads": heads, "mlp": mlp}
    return {**sizes, "act": "gelu_tanh" if re.fullmatch(_TANH, name) else "gelu", "eps": 1e-6, "pool": "gap" if found[3] else "map"}


def timm_name(fields: Json, size: int) -> str | None:
    """The inverse of `timm`, whatever the activation; None for a tower timm has no name for."""
    kind = next((kind for kind, sizes in _TIMM.items() if sizes == tuple(fields[k] for k in ("width", "depth", "heads", "mlp"))), None)
    gap = "_gap" if fields["pool"] == "gap" else ""
    return kind and f"vit_{kind}_patch{fields['patch']}_siglip{gap}_{size}"


def differs(model: Json) -> list[str]:
    """What OpenCLIP will compute otherwise with the files of `out`, for the user to know."""
    image = model["image"]
    name = timm_name(image, model["size"]) if image.get("pool") in ("map", "gap") else None
    if name is None or timm(name, "")["act"] == image["act"]:
        return []
    theirs = timm(name, "")["act"]
    return [f"the image tower's activation is {image['act']}, and {name} has {theirs}: OpenCLIP's features will differ in the third digit"]


def preprocess(config: Json, size: int, mean: tuple[float, ...], std: tuple[float, ...], resize: str) -> dict[str, Any]:
    """What `preprocess_cfg` says, on the defaults given."""
    c = config.get("preprocess_cfg") or {}
    how = {"shortest": "short_side", "squash": "squash"}
    return {
        "size": size,
        "mean": tuple(c.get("mean", mean)),
        "std": tuple(c.get("std", std)),
        "resize": how.get(c.get("resize_mode"), resize),
        "method": c.get("interpolation", "bicubic"),
    }


def out(model: Json, p: Json) -> dict[str, Any]:
    """open_clip_config.json. Of SigLIP's towers only those that timm has a name for can be written.

    Raises:
      UserError: towers whose difference OpenCLIP's config cannot say.
    """
    t = model["text"]
    text_cfg = {"context_length": t["length"], "vocab_size": t["vocab"], "width": t["width"], "heads": t["heads"], "layers": t["depth"]}
    if t["mlp"] != 4 * t["width"]:
        text_cfg["mlp_ratio"] = ratio(t["mlp"], t["width"])
    config: dict[str, Any] = {"embed_dim": model["embed"], "text_cfg": text_cfg}
    if t["pool"] == "eos" and t["eos"] != t["vocab"] - 1:
        raise UserError(f"OpenCLIP takes the largest id for the end token, {t['vocab'] - 1}, and this text tower's is {t['eos']}")
    if t["pool"] == "last":
        text_cfg |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": t["eps"]}}
        if t["act"] == "gelu_tanh":
            text_cfg["act_kwargs"] = {"approximate": "tanh"}
        config |= {"init_logit_bias": -10, "custom_text": True}
    config["vision_cfg"] = _vision_out(model)
    acts = {tower["act"] for tower in (model["image"], t) if "act" in tower}
    if "quick_gelu" in acts:
        if acts != {"quick_gelu"}:
            raise UserError("OpenCLIP has one activation for both towers; these have " + " and ".join(sorted(acts)))
        config["quick_gelu"] = True
    how = {"short_side": "shortest", "squash": "squash"}[p["resize"]]
    pre = {"mean": list(p["mean"]), "std": list(p["std"]), "interpolation": p["method"], "resize_mode": how, "size": [p["size"]] * 2}
    return {"model_cfg": config, "preprocess_cfg": pre}


def _vision_out(model: Json) -> dict[str, Any]:
    v = model["image"]
    if "depths" in v:
        return {"image_size": model["size"], "layers": list(v["depths"]), "width": v["width"], "head_width": v["width"] * 32 // v["heads"]}
    if v["pool"] == "cls":
        sizes = {"image_size": model["size"], "layers": v["depth"], "width": v["width"], "patch_size": v["patch"]}
        sizes["head_width"] = v["width"] // v["heads"]
        return sizes | ({"mlp_ratio": ratio(v["mlp"], v["width"])} if v["mlp"] != 4 * v["width"] else {})
    name = timm_name(v, model["size"])
    if name is None:
        raise UserError(
            f"OpenCLIP takes SigLIP's image towers from timm, which has none of width {v['width']}, depth {v['depth']}, {v['heads']} heads "
            f"and feed-forward width {v['mlp']}; export --to hf"
        )
    pool = "avg" if v["pool"] == "gap" else "map"
    return {"image_size": model["size"], "timm_model_name": name, "timm_model_pretrained": False, "timm_pool": pool, "timm_proj": "none"}


def ratio(mlp: int, width: int) -> float:
    """A number that times `width`, cut to an integer, is `mlp`, with few digits."""
    return next(
        r
        for digits in range(1, 12)
        for r in (round(mlp / width, digits), round(mlp / width + 0.5 * 10**-digits, digits))
        if int(width * r) == mlp
    )
