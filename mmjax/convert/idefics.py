"""IDEFICS (Laurençon et al. 2023) as Hugging Face publishes it: a LLaMA that sees through a CLIP, its new tokens in tables of their own."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from mmjax.convert import clip, hf_config, llama, lm_config, pieces
from mmjax.convert.family import Target
from mmjax.convert.layout import Layout, Model
from mmjax.convert.lm_config import Json
from mmjax.convert.rules import Rule, identity, moved, reshape, tied, transpose, under
from mmjax.convert.source import Source
from mmjax.core.errors import UserError
from mmjax.data import tokenizer as tokenizers
from mmjax.models import gated_xattn, lm, perceiver
from mmjax.models.gated_xattn import GatedCrossAttention
from mmjax.models.lm import LanguageModel
from mmjax.models.perceiver import Perceiver
from mmjax.models.vit import ViT

VISION = {
    **{
        "embed_dim": 768,
        "image_size": 224,
        "intermediate_size": 5120,
        "patch_size": 14,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
    },
    **{"num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-5},
}
RESAMPLER = {
    **{"resampler_n_latents": 64, "resampler_depth": 6, "resampler_n_heads": 16, "resampler_head_dim": 96},
    "qk_layer_norms_perceiver": False,
}
OWN = {
    **{"additional_vocab_size": 0, "alpha_type": "float", "cross_layer_interval": 1, "qk_layer_norms": False, "use_resampler": False},
    "eos_token_id": 2,
}
# What its classes have, and its config.json has no words for.
TOWER = {"pre_norm": True, "patch_bias": False}
LM = lm_config.complete({**lm.VARIANTS["llama-7b"]})
UNSAID = ("attention_bias", "mlp_bias", "rope_theta", "rope_scaling", "head_dim", "num_key_value_heads")
GATES = {"float": "scalar", "vector": "vector"}


def rules(model: Model, names: Collection[str]) -> list[Rule]:
    """`IdeficsForVisionText2Text`."""
    seen = {name.removeprefix("model.") for name in names if name.startswith("model.vision_model.")} or {"vision_model."}
    tower = clip.hf_rules({"image": model["vision"], **{key: model[key] for key in ("size", "channels")}}, seen)
    is_tied = lm_config.complete(model["lm"])["tied"]
    return [
        *moved("image/", "vision/", under("model.", tower)),
        *[r for r in under("model.", tower) if not r.targets],
        *llama.rules(model, names),
        *(_new_tokens(names, is_tied) if model.get("new_tokens") else []),
        *_resampler("model.perceiver_resampler", "resampler", gated_norms(model["resampler"], perceiver.FORMS)),
        *_xattn("model.gated_cross_attn_layers.{i}", "xattn/blocks", model),
    ]


def gated_norms(fields: Model, forms: Mapping[str, Model]) -> bool:
    """Whether queries and keys are normed."""
    return {**forms["idefics"], **fields}["qk_norm"] != "none"


def _new_tokens(names: Collection[str], is_tied: bool) -> list[Rule]:
    table, head, ours = "model.embed_tokens.additional_embedding.weight", "lm_head.additional_fc.weight", "new_tokens/embedding"
    if not is_tied:
        return [Rule(table, ours, identity), Rule(head, "new_tokens/kernel", transpose)]
    held = tuple(name for name in (table, head) if name in names) or (table,)
    return [Rule(held, ours, tied(len(held)))]


def _resampler(theirs: str, ours: str, normed: bool) -> list[Rule]:
    attn, mlp, to = f"{theirs}.blocks.{{i}}.0", f"{theirs}.blocks.{{i}}.1", f"{ours}/blocks"
    rules = [
        Rule(f"{theirs}.latents", f"{ours}/latents", identity),
        *pieces.norm(f"{attn}.context_layer_norm", f"{to}/norm_features"),
        *pieces.norm(f"{attn}.latents_layer_norm", f"{to}/norm_latents"),
        *pieces.norm(f"{mlp}.ln", f"{to}/norm_mlp"),
        *pieces.dense(f"{mlp}.fc", f"{to}/mlp/up", bias=False),
        *pieces.dense(f"{mlp}.c_proj", f"{to}/mlp/down", bias=False),
        *pieces.norm(f"{theirs}.layer_norm", f"{ours}/norm"),
    ]
    for name in ("q", "k", "v", "output"):
        rules += pieces.dense(f"{attn}.{name}_proj", f"{to}/attn/{name.removesuffix('put')}", bias=False)
    for name in "qk" if normed else "":
        rules += pieces.norm(f"{attn}.{name}_layer_norm", f"{to}/attn/{name}_norm")
    return rules


def _xattn(theirs: str, ours: str, model: Model) -> list[Rule]:
    fields = {**gated_xattn.FORMS["idefics"], **model["xattn"]}
    width = model["lm"]["width"]
    gate = reshape((1, 1, width), (width,)) if fields.get("gate") == "vector" else reshape((1,), ())
    rules = [
        Rule(f"{theirs}.alpha_cross_attn", f"{ours}/gate_attn", gate),
        Rule(f"{theirs}.alpha_dense", f"{ours}/gate_ffw", gate),
        *pieces.norm(f"{theirs}.input_layernorm", f"{ours}/norm1", bias=False),
        *pieces.norm(f"{theirs}.post_attention_layernorm", f"{ours}/norm2", bias=False),
    ]
    for name in ("q", "k", "v", "o"):
        rules += pieces.dense(f"{theirs}.cross_attn.{name}_proj", f"{ours}/attn/{name.replace('o', 'out')}", bias=False)
    for name in "qk" if fields["qk_norm"] != "none" else "":
        rules += pieces.norm(f"{theirs}.cross_attn.{name}_layer_norm", f"{ours}/attn/{name}_norm", bias=False)
    for name in ("gate", "up", "down"):
        rules += pieces.dense(f"{theirs}.mlp.{name}_proj", f"{ours}/ffw/{name}", bias=False)
    return rules


def describe(source: Source) -> dict[str, Any]:
    """From config.json."""
    config, where = hf_config.of(source)
    v, r, c = _parts(config, where)
    text = lm_config.trimmed(llama.fields({key: value for key, value in config.items() if key in llama.CONFIG}, where))
    model = {
        "vision": {
            **{"type": "vit", "patch": v["patch_size"], "width": v["embed_dim"], "depth": v["num_hidden_layers"]},
            **{"heads": v["num_attention_heads"], "mlp": v["intermediate_size"], "act": hf_config.act(v["hidden_act"], where)},
            **{"eps": v["layer_norm_eps"], "pre_norm": True, "patch_bias": False},
        },
        "resampler": {
            **{"form": "idefics", "width": v["embed_dim"], "depth": r["resampler_depth"], "latents": r["resampler_n_latents"]},
            **{"heads": r["resampler_n_heads"], "head_width": r["resampler_head_dim"], "mlp": 4 * v["embed_dim"]},
            "qk_norm": "layer" if r["qk_layer_norms_perceiver"] else "none",
        },
        "xattn": {
            **{"form": "idefics", "heads": text["heads"], "head_width": text["width"] // text["heads"], "mlp": text["mlp"]},
            **{"act": text["act"], "eps": config.get("rms_norm_eps", llama.CONFIG["rms_norm_eps"]), "gate": GATES[c["alpha_type"]]},
            "qk_norm": "rms" if c["qk_layer_norms"] else "none",
        },
        "lm": text,
        **{"every": c["cross_layer_interval"], "new_tokens": c["additional_vocab_size"], "image_token": _image_token(source, text, c)},
        **{"end_token": c["eos_token_id"], "class_token": True, "size": v["image_size"], "channels": v["num_channels"]},
    }
    return {"model": model, "preprocess": hf_config.preprocess(source.jsons, v["image_size"], clip.MEAN, clip.STD, "squash")}


def _parts(config: Json, where: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What config.json says of the vision tower, of the resampler, and of the rest.

    Raises:
      UserError: a model without resampler, or one that no published model is like.
    """
    flags = {key: value for key, value in OWN.items() if isinstance(value, bool)}
    c = hf_config.fill(config, {key: value for key, value in OWN.items() if key not in flags}, where)
    c |= {key: bool(config.get(key, default)) for key, default in flags.items()}
    c["eos_token_id"] = np.ravel(c["eos_token_id"])[0].item()
    given = config.get("perceiver_config") or {}
    normed = bool(given.get("qk_layer_norms_perceiver", False))
    r = hf_config.fill(given, {k: x for k, x in RESAMPLER.items() if k != "qk_layer_norms_perceiver"}, f"{where}: perceiver_config")
    if not c["use_resampler"]:
        raise UserError(f"{where}: use_resampler is false; IDEFICS without its resampler, which nobody published, is not known here")
    if c["alpha_type"] not in GATES:
        raise UserError(f"{where}: alpha_type is {c['alpha_type']!r}, expected {' or '.join(GATES)}")
    if config.get("num_hidden_layers", 32) % c["cross_layer_interval"]:
        raise UserError(f"{where}: cross_layer_interval {c['cross_layer_interval']} does not divide num_hidden_layers")
    vision = hf_config.fill(config.get("vision_config") or {}, VISION, f"{where}: vision_config")
    return vision, {**r, "qk_layer_norms_perceiver": normed}, c


def _image_token(source: Source, text: Model, c: Model) -> int:
    """As the tokenizer has it; the second new token, as in published models, where there is none."""
    found = None
    if any((source.words / name).is_file() for name in tokenizers.FILES):
        found = tokenizers.load(source.words).find("<image>")
    return text["vocab"] + min(1, c["additional_vocab_size"] - 1) if found is None else found


def to_hf(config: Mapping[str, Any]) -> Target:
    """The folder of IdeficsForVisionText2Text.

    Raises:
      UserError: a model that it cannot say: another form, placement or tower.
    """
    model = config["model"]
    vision, seen = {"eps": 1e-6, **model["vision"]}, {**perceiver.FORMS["idefics"], **model["resampler"]}
    block, text = {**gated_xattn.FORMS["idefics"], **model["xattn"]}, lm_config.complete(model["lm"])
    gate = {ours: theirs for theirs, ours in GATES.items()}.get(block.get("gate", "scalar"))
    sizes = ("width", "heads", "head_width", "mlp", "eps")
    as_told = {
        "vision.type": vision.get("type", "vit") == "vit" and model.get("class_token", False),
        "vision": pieces.is_form(vision, ViT, TOWER, ("patch", "act", "depth", *sizes)),
        "resampler.form": model["resampler"].get("form") == "idefics" and seen["mlp"] == 4 * vision.get("width", 0) == 4 * seen["width"],
        "resampler": pieces.is_form(seen, Perceiver, perceiver.FORMS["idefics"], ("latents", "depth", "qk_norm", *sizes[:-1])),
        "xattn.form": model["xattn"].get("form") == "idefics" and gate is not None,
        "xattn": pieces.is_form(block, GatedCrossAttention, gated_xattn.FORMS["idefics"], ("gate", "qk_norm", "act", *sizes))
        and all(block.get(name) == text[name] for name in ("mlp", "heads", "act", "eps"))
        and block["head_width"] == text["width"] // text["heads"],
        "first": model.get("first", 0) == 0 and text["depth"] % model["every"] == 0,
        "attend": model.get("attend", "last") == "last",
        "lm": pieces.is_form(text, LanguageModel, LM, ("vocab", "length", "width", "depth", "heads", "mlp", "act", "tied", "eps")),
    }
    for name, right in as_told.items():
        if not right:
            raise UserError(f"model.{name} is not IDEFICS', and Hugging Face has no other class for it; mmjax convert import keeps it")
    written = {
        **{key: value for key, value in llama.out(text).items() if key not in UNSAID},
        **{"architectures": ["IdeficsForVisionText2Text"], "model_type": "idefics", "additional_vocab_size": model.get("new_tokens", 0)},
        **{"alpha_type": gate, "cross_layer_interval": model["every"], "qk_layer_norms": block["qk_norm"] != "none"},
        **{"use_resampler": True, "eos_token_id": model.get("end_token", 2)},
        "perceiver_config": {
            **{"use_resampler": True, "resampler_n_latents": seen.get("latents", 64), "resampler_depth": seen["depth"]},
            **{"resampler_n_heads": seen["heads"], "resampler_head_dim": seen["head_width"]},
            "qk_layer_norms_perceiver": seen["qk_norm"] != "none",
        },
        "vision_config": {
            **{
                "embed_dim": vision["width"],
                "image_size": model["size"],
                "intermediate_size": vision["mlp"],
                "patch_size": vision["patch"],
            },
            **{"num_hidden_layers": vision["depth"], "num_attention_heads": vision["heads"], "num_channels": model.get("channels", 3)},
            **{"hidden_act": hf_config.THEIRS[vision["act"]], "layer_norm_eps": vision["eps"]},
        },
    }
    return Target(HF_IDEFICS, (), {"config.json": written, **_preprocessor(config.get("preprocess"))}, "model")


def _preprocessor(pre: Json | None) -> dict[str, Any]:
    """preprocessor_config.json."""
    if pre is None:
        return {}
    says = {"image_processor_type": "IdeficsImageProcessor", "image_size": pre["size"]}
    return {"preprocessor_config.json": {**says, "image_mean": list(pre["mean"]), "image_std": list(pre["std"])}}


HF_IDEFICS = Layout("hf", "idefics", (r"model\.perceiver_resampler\.latents", r"model\.gated_cross_attn_layers\.0\..*"), describe, rules)
