"""LLaMA as Hugging Face publishes it, and what has its names and form: Vicuna, Llama 2. Gemma has its names too (convert.gemma).

Hugging Face reorders Meta's queries and keys so that the pairs that are turned lie half a head apart, as ours do.
"""

from collections.abc import Collection
from typing import Any

from mmjax.convert import hf_config, lm_config, pieces
from mmjax.convert.layout import Model, dropped
from mmjax.convert.lm_config import Json, Kind
from mmjax.convert.rules import Rule

CONFIG = {
    **{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"num_key_value_heads": None, "head_dim": None, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    **{"tie_word_embeddings": False, "rope_theta": 10000.0, "rope_scaling": None, "rope_parameters": None},
    **{"attention_bias": False, "mlp_bias": False},
}


def sizes(c: Json) -> dict[str, Any]:
    """Fields of the keys that LLaMA and Gemma share."""
    width, heads = c["hidden_size"], c["num_attention_heads"]
    groups, size = c["num_key_value_heads"] or heads, c["head_dim"] or width // heads
    return {
        **{"vocab": c["vocab_size"], "length": c["max_position_embeddings"], "width": width, "depth": c["num_hidden_layers"]},
        **{"heads": heads, "mlp": c["intermediate_size"], "gated": True, "norm_bias": False, "eps": c["rms_norm_eps"]},
        **{"kv_heads": groups, "head_width": size},
        **dict.fromkeys(("qkv_bias", "out_bias"), c["attention_bias"]),
        "tied": c["tie_word_embeddings"],
    }


def sizes_out(f: Json) -> dict[str, Any]:
    """Those keys."""
    return {
        **{"vocab_size": f["vocab"], "max_position_embeddings": f["length"], "hidden_size": f["width"], "num_hidden_layers": f["depth"]},
        **{"num_attention_heads": f["heads"], "intermediate_size": f["mlp"], "rms_norm_eps": f["eps"]},
        "num_key_value_heads": f["kv_heads"] or f["heads"],
        "head_dim": f["head_width"] or f["width"] // f["heads"],
        "attention_bias": f["qkv_bias"],
        "tie_word_embeddings": f["tied"],
        "rope_theta": f["rope_base"],
        "rope_scaling": lm_config.rope_out(f),
    }


def fields(config: Json, where: str) -> dict[str, Any]:
    """From config.json."""
    c = lm_config.read(config, CONFIG, where)
    act = {"act": hf_config.act(c["hidden_act"], where), "norm": "rms", "mlp_bias": c["mlp_bias"]}
    return {**sizes(c), **act, **lm_config.rope(c, where)}


def out(f: Json) -> dict[str, Any]:
    """config.json of a LlamaForCausalLM."""
    act = {"hidden_act": hf_config.THEIRS.get(f["act"]), "mlp_bias": f["mlp_bias"]}
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **sizes_out(f), **act}


def rules(model: Model, names: Collection[str]) -> list[Rule]:
    """`LlamaForCausalLM` and `GemmaForCausalLM`."""
    m = lm_config.complete(model["lm"])
    at, to = "model.layers.{i}", "lm/blocks"
    rules = [
        *lm_config.tokens(names, "model.embed_tokens.weight", "lm_head.weight", m["tied"]),
        *pieces.norm(f"{at}.input_layernorm", f"{to}/norm1", bias=False),
        *pieces.norm(f"{at}.post_attention_layernorm", f"{to}/norm2", bias=False),
        *pieces.norm("model.norm", "lm/norm", bias=False),
        *dropped(names, r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
    ]
    for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out")):
        rules += pieces.dense(f"{at}.self_attn.{theirs}_proj", f"{to}/attn/{ours}", m["qkv_bias"])
    for name in ("gate", "up", "down"):
        rules += pieces.dense(f"{at}.mlp.{name}_proj", f"{to}/mlp/{name}", m["mlp_bias"])
    return rules


LLAMA = Kind("llama", fields, out, rules, (r"model\.layers\.0\.mlp\.gate_proj\.weight", r"model\.embed_tokens\.weight"))
