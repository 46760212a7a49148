"""GPT-NeoX as Hugging Face publishes it: GPT-NeoX-20B, Pythia, RedPajama-INCITE."""

from collections.abc import Collection
from typing import Any

import numpy as np

from mmjax.convert import hf_config, lm_config, pieces
from mmjax.convert.layout import Model, dropped
from mmjax.convert.lm_config import Json, Kind
from mmjax.convert.rules import Op, Rule

CONFIG = {
    **{"vocab_size": 50432, "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64, "intermediate_size": 24576},
    **{"hidden_act": "gelu", "rotary_pct": 0.25, "rotary_emb_base": 10000.0, "max_position_embeddings": 2048, "layer_norm_eps": 1e-5},
    **{"tie_word_embeddings": False, "use_parallel_residual": True, "attention_bias": True, "rope_scaling": None, "rope_parameters": None},
}


def fields(config: Json, where: str) -> dict[str, Any]:
    """From config.json."""
    c = lm_config.read(config, CONFIG, where)
    return {
        **{"vocab": c["vocab_size"], "length": c["max_position_embeddings"], "width": c["hidden_size"], "depth": c["num_hidden_layers"]},
        **{"heads": c["num_attention_heads"], "mlp": c["intermediate_size"], "act": hf_config.act(c["hidden_act"], where)},
        **dict.fromkeys(("qkv_bias", "out_bias"), c["attention_bias"]),
        "residual": "parallel" if c["use_parallel_residual"] else "pre",
        **{"tied": c["tie_word_embeddings"], "eps": c["layer_norm_eps"]},
        **lm_config.rope({**c, "rope_theta": c["rotary_emb_base"]}, where, c["rotary_pct"]),
    }


def out(f: Json) -> dict[str, Any]:
    """config.json of a GPTNeoXForCausalLM."""
    return {
        **{"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox"},
        **{"vocab_size": f["vocab"], "max_position_embeddings": f["length"], "hidden_size": f["width"], "num_hidden_layers": f["depth"]},
        **{"num_attention_heads": f["heads"], "intermediate_size": f["mlp"], "hidden_act": hf_config.THEIRS.get(f["act"])},
        **{"attention_bias": f["qkv_bias"], "use_parallel_residual": f["residual"] == "parallel"},
        **{"tie_word_embeddings": f["tied"], "layer_norm_eps": f["eps"]},
        **{"rotary_pct": f["rope_fraction"], "rotary_emb_base": f["rope_base"], "rope_scaling": lm_config.rope_out(f)},
    }


def by_heads(heads: int) -> Op:
    """One tensor whose leading axis is (head, q or k or v, width of a head) <-> q, k, v, heads side by side; matrices transposed."""

    def forward(x: np.ndarray) -> tuple[np.ndarray, ...]:
        parts = x.reshape(heads, 3, -1, *x.shape[1:])
        return tuple(parts[:, i].reshape(-1, *x.shape[1:]).T for i in range(3))

    def inverse(*xs: np.ndarray) -> tuple[np.ndarray, ...]:
        parts = np.stack([x.T.reshape(heads, -1, *x.T.shape[1:]) for x in xs], axis=1)
        return (parts.reshape(-1, *xs[0].T.shape[1:]),)

    return Op(forward, inverse)


def rules(model: Model, names: Collection[str]) -> list[Rule]:
    """`GPTNeoXForCausalLM`, whose head transformers 5 calls lm_head in memory and embed_out in files, as 4 does."""
    m = lm_config.complete(model["lm"])
    at, to, bias = "gpt_neox.layers.{i}", "lm/blocks", m["qkv_bias"]
    head = "lm_head.weight" if "lm_head.weight" in names else "embed_out.weight"
    three = lambda leaf: tuple(f"{to}/attn/{name}/{leaf}" for name in "qkv")
    fused = Rule(f"{at}.attention.query_key_value.bias", three("bias"), by_heads(m["heads"]))
    return [
        *lm_config.tokens(names, "gpt_neox.embed_in.weight", head, m["tied"]),
        *pieces.norm(f"{at}.input_layernorm", f"{to}/norm1"),
        Rule(f"{at}.attention.query_key_value.weight", three("kernel"), by_heads(m["heads"])),
        *([fused] if bias else []),
        *pieces.dense(f"{at}.attention.dense", f"{to}/attn/out", bias),
        *pieces.norm(f"{at}.post_attention_layernorm", f"{to}/norm2"),
        *pieces.mlp(f"{at}.mlp", f"{to}/mlp", "dense_h_to_4h", "dense_4h_to_h"),
        *pieces.norm("gpt_neox.final_layer_norm", "lm/norm"),
        *dropped(names, r"gpt_neox\.layers\.\d+\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)"),
    ]


GPT_NEOX = Kind("gpt_neox", fields, out, rules, (r"gpt_neox\.embed_in\.weight",))
