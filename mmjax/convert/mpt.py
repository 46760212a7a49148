"""MPT as Hugging Face publishes it, and its predecessor of other names (MosaicGPT, MPT-1B), which has norms on queries and keys."""

from collections.abc import Collection
from typing import Any

from mmjax.convert import lm_config, pieces
from mmjax.convert.layout import Model
from mmjax.convert.lm_config import Json, Kind
from mmjax.convert.rules import Rule, split, transpose

ATTENTION = {
    **{"attn_type": "multihead_attention", "clip_qkv": None, "softmax_scale": None, "prefix_lm": False, "qk_ln": False},
    **{"attn_uses_sequence_id": False, "alibi": True, "alibi_bias_max": 8},
}
CONFIG = {
    **{"d_model": 2048, "n_heads": 16, "n_layers": 24, "expansion_ratio": 4, "max_seq_len": 2048, "vocab_size": 50368},
    **{"layer_norm_epsilon": 1e-5, "learned_pos_emb": True, "attn_config": {}, "logit_scale": None, "no_bias": True},
    **{"tie_word_embeddings": True},
}
# The predecessor's names of the same.
OLD = {"mlp_ratio": "expansion_ratio", "attn_clip_qkv": "clip_qkv", "attn_qk_ln": "qk_ln"}
NAMES = {"norm_1": "ln_1", "norm_2": "ln_2", "ffn.up_proj": "mlp.mlp_up", "ffn.down_proj": "mlp.mlp_down", "norm_f": "ln_f"}
MARK = "transformer.blocks.0.ln_1.weight"


def fields(config: Json, where: str) -> dict[str, Any]:
    """From config.json."""
    config = {OLD.get(key, key): value for key, value in config.items()}
    config, flat = {k: v for k, v in config.items() if k not in ATTENTION}, {k: v for k, v in config.items() if k in ATTENTION}
    c = lm_config.read(config, CONFIG, where)
    a = lm_config.read({**flat, **c["attn_config"]}, ATTENTION, f"{where}: attn_config")
    lm_config.only(c, where, no_bias=True, logit_scale=None)
    lm_config.only(a, f"{where}: attn_config", attn_type="multihead_attention", prefix_lm=False, attn_uses_sequence_id=False, alibi=True)
    return {
        **{"vocab": c["vocab_size"], "length": c["max_seq_len"], "width": c["d_model"], "depth": c["n_layers"], "heads": c["n_heads"]},
        **{"mlp": int(c["expansion_ratio"] * c["d_model"]), "act": "gelu", "positions": "alibi", "alibi_max": float(a["alibi_bias_max"])},
        **dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias", "norm_bias"), False),
        **{"qk_norm": a["qk_ln"], "clip": a["clip_qkv"], "scale": a["softmax_scale"]},
        **{"eps": c["layer_norm_epsilon"], "tied": c["tie_word_embeddings"]},
    }


def out(f: Json) -> dict[str, Any]:
    """config.json of an MptForCausalLM, or with norms on queries and keys of the predecessor, whose code comes with its weights."""
    attention = {"clip_qkv": f["clip"], "softmax_scale": f["scale"], "alibi": True, "alibi_bias_max": int(f["alibi_max"])}
    sizes = {
        **{"d_model": f["width"], "n_heads": f["heads"], "n_layers": f["depth"], "max_seq_len": f["length"], "vocab_size": f["vocab"]},
        **{"no_bias": True, "layer_norm_epsilon": f["eps"], "tie_word_embeddings": f["tied"]},
    }
    if f["qk_norm"]:
        old = {"attn_clip_qkv": attention.pop("clip_qkv"), "attn_qk_ln": True, "mlp_ratio": f["mlp"] // f["width"]}
        return {"architectures": ["MosaicGPT"], "model_type": "mosaic_gpt", **sizes, **attention, **old}
    ratio = {"expansion_ratio": f["mlp"] // f["width"]}
    return {"architectures": ["MptForCausalLM"], "model_type": "mpt", **sizes, **ratio, "attn_config": attention}


def rules(model: Model, names: Collection[str]) -> list[Rule]:
    """Both sets of names: the older where `MARK` is one."""
    m = lm_config.complete(model["lm"])
    named = lambda name: NAMES[name] if MARK in names else name
    at, to = "transformer.blocks.{i}", "lm/blocks"
    rules = [
        *lm_config.tokens(names, "transformer.wte.weight", "lm_head.weight", m["tied"]),
        *pieces.norm(f"{at}.{named('norm_1')}", f"{to}/norm1", bias=False),
        Rule(f"{at}.attn.Wqkv.weight", tuple(f"{to}/attn/{name}/kernel" for name in "qkv"), split(3, transpose)),
        *pieces.dense(f"{at}.attn.out_proj", f"{to}/attn/out", bias=False),
        *pieces.norm(f"{at}.{named('norm_2')}", f"{to}/norm2", bias=False),
        *pieces.dense(f"{at}.{named('ffn.up_proj')}", f"{to}/mlp/up", bias=False),
        *pieces.dense(f"{at}.{named('ffn.down_proj')}", f"{to}/mlp/down", bias=False),
        *pieces.norm(f"transformer.{named('norm_f')}", "lm/norm", bias=False),
    ]
    if m["qk_norm"]:
        for name in "qk":
            rules += pieces.norm(f"{at}.attn.{name}_ln", f"{to}/attn/{name}_norm", bias=False)
    return rules


MPT = Kind("mpt", fields, out, rules, (r"transformer\.blocks\.0\.attn\.Wqkv\.weight",), ("mosaic_gpt",))
