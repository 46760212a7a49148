"""OPT as Hugging Face publishes it, with or without the prefix of the class with a head."""

from collections.abc import Collection
from typing import Any

from mmjax.convert import hf_config, lm_config, pieces
from mmjax.convert.layout import Model
from mmjax.convert.lm_config import Json, Kind
from mmjax.convert.rules import Rule

CONFIG = {
    **{"vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072},
    **{"max_position_embeddings": 2048, "do_layer_norm_before": True, "_remove_final_layer_norm": False, "word_embed_proj_dim": None},
    **{"activation_function": "relu", "enable_bias": True, "layer_norm_elementwise_affine": True, "tie_word_embeddings": True},
}
OFFSET = 2  # rows of the table of positions that no token has


def fields(config: Json, where: str) -> dict[str, Any]:
    """From config.json."""
    c = lm_config.read(config, CONFIG, where)
    lm_config.only(c, where, layer_norm_elementwise_affine=True)
    pre = c["do_layer_norm_before"]
    return {
        **{"vocab": c["vocab_size"], "length": c["max_position_embeddings"], "width": c["hidden_size"], "depth": c["num_hidden_layers"]},
        **{"heads": c["num_attention_heads"], "mlp": c["ffn_dim"], "act": hf_config.act(c["activation_function"], where)},
        **dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), c["enable_bias"]),
        "position_offset": OFFSET,
        "residual": "pre" if pre else "post",
        "final_norm": pre and not c["_remove_final_layer_norm"],
        "embed_width": c["word_embed_proj_dim"],
        "tied": c["tie_word_embeddings"],
    }


def out(f: Json) -> dict[str, Any]:
    """config.json of an OPTForCausalLM."""
    return {
        **{"architectures": ["OPTForCausalLM"], "model_type": "opt"},
        **{"vocab_size": f["vocab"], "max_position_embeddings": f["length"], "hidden_size": f["width"], "num_hidden_layers": f["depth"]},
        **{"num_attention_heads": f["heads"], "ffn_dim": f["mlp"], "activation_function": hf_config.THEIRS.get(f["act"])},
        "do_layer_norm_before": f["residual"] == "pre",
        "_remove_final_layer_norm": f["residual"] == "pre" and not f["final_norm"],
        "word_embed_proj_dim": f["embed_width"] or f["width"],
        "enable_bias": f["mlp_bias"],
        "tie_word_embeddings": f["tied"],
    }


def rules(model: Model, names: Collection[str]) -> list[Rule]:
    """`OPTForCausalLM` or `OPTModel`."""
    m = lm_config.complete(model["lm"])
    root = "decoder" if "decoder.embed_tokens.weight" in names else "model.decoder"
    at, to, bias = f"{root}.layers.{{i}}", "lm/blocks", m["mlp_bias"]
    rules = [
        *lm_config.tokens(names, f"{root}.embed_tokens.weight", "lm_head.weight", m["tied"]),
        *pieces.table(f"{root}.embed_positions.weight", "lm/pos"),
        *pieces.norm(f"{at}.self_attn_layer_norm", f"{to}/norm1"),
        *pieces.norm(f"{at}.final_layer_norm", f"{to}/norm2"),
        *pieces.dense(f"{at}.fc1", f"{to}/mlp/up", bias),
        *pieces.dense(f"{at}.fc2", f"{to}/mlp/down", bias),
    ]
    for name in ("q", "k", "v", "out"):
        rules += pieces.dense(f"{at}.self_attn.{name}_proj", f"{to}/attn/{name}", bias)
    if m["final_norm"]:
        rules += pieces.norm(f"{root}.final_layer_norm", "lm/norm")
    if m["embed_width"] is not None:
        rules += pieces.dense(f"{root}.project_in", "lm/project_in", False) + pieces.dense(f"{root}.project_out", "lm/project_out", False)
    return rules


OPT = Kind("opt", fields, out, rules, (r"(model\.)?decoder\.embed_positions\.weight", r"(model\.)?decoder\.layers\.0\.fc1\.weight"))
