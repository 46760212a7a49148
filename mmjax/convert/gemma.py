"""Gemma as Hugging Face publishes it: the names of LLaMA, norms that hold what differs from 1, embeddings times the root of the width."""

from typing import Any

from mmjax.convert import hf_config, lm_config
from mmjax.convert.llama import rules, sizes, sizes_out
from mmjax.convert.lm_config import Json, Kind

CONFIG = {
    **{"vocab_size": 256_000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28, "num_attention_heads": 16},
    **{"num_key_value_heads": 16, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": None},
    **{"max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "attention_bias": False},
    **{"rope_theta": 10000.0, "rope_scaling": None, "rope_parameters": None},
}


def fields(config: Json, where: str) -> dict[str, Any]:
    """From config.json."""
    c = lm_config.read(config, CONFIG, where)
    name = c["hidden_activation"] or c["hidden_act"]
    act = "gelu_tanh" if name == "gelu" else hf_config.act(name, where)  # the first configs say gelu, and mean its tanh form
    return {**sizes(c), "act": act, "norm": "rms_plus_one", "embed_scale": True, "mlp_bias": False, **lm_config.rope(c, where)}


def out(f: Json) -> dict[str, Any]:
    """config.json of a GemmaForCausalLM."""
    act = "" if f["act"] == "gelu" else hf_config.THEIRS.get(f["act"])  # which cannot say that form
    return {"architectures": ["GemmaForCausalLM"], "model_type": "gemma", **sizes_out(f), "hidden_act": act}


GEMMA = Kind("gemma", fields, out, rules, ())
