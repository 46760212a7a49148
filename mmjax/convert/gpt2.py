"""GPT-2 as Hugging Face publishes it, with or without the prefix of the class with a head. Its products are [in, out], as ours."""

from collections.abc import Collection
from typing import Any

from mmjax.convert import hf_config, lm_config, pieces
from mmjax.convert.layout import Model, dropped
from mmjax.convert.lm_config import Json, Kind
from mmjax.convert.rules import Rule, identity, split

CONFIG = {
    **{"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None},
    **{"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "tie_word_embeddings": True},
}


def fields(config: Json, where: str) -> dict[str, Any]:
    """From config.json."""
    c = lm_config.read(config, CONFIG, where)
    return {
        **{"vocab": c["vocab_size"], "length": c["n_positions"], "width": c["n_embd"], "depth": c["n_layer"], "heads": c["n_head"]},
        "mlp": c["n_inner"] or 4 * c["n_embd"],
        "act": hf_config.act(c["activation_function"], where),
        "scale": None if c["scale_attn_weights"] else 1.0,
        "tied": c["tie_word_embeddings"],
        "eps": c["layer_norm_epsilon"],
    }


def out(f: Json) -> dict[str, Any]:
    """config.json of a GPT2LMHeadModel."""
    return {
        **{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"},
        **{"vocab_size": f["vocab"], "n_positions": f["length"], "n_embd": f["width"], "n_layer": f["depth"], "n_head": f["heads"]},
        "n_inner": f["mlp"],
        "activation_function": "gelu_new" if f["act"] == "gelu_tanh" else hf_config.THEIRS.get(f["act"]),
        "scale_attn_weights": f["scale"] is None,
        "tie_word_embeddings": f["tied"],
        "layer_norm_epsilon": f["eps"],
    }


def product(theirs: str, ours: str) -> list[Rule]:
    """A Conv1D."""
    return [Rule(f"{theirs}.weight", f"{ours}/kernel", identity), Rule(f"{theirs}.bias", f"{ours}/bias", identity)]


def rules(model: Model, names: Collection[str]) -> list[Rule]:
    """`GPT2LMHeadModel` or `GPT2Model`; files for export have the prefix."""
    root = "" if "wte.weight" in names else "transformer."
    at, to = f"{root}h.{{i}}", "lm/blocks"
    three = lambda leaf: tuple(f"{to}/attn/{name}/{leaf}" for name in "qkv")
    return [
        *lm_config.tokens(names, f"{root}wte.weight", "lm_head.weight", model["lm"].get("tied", True)),
        *pieces.table(f"{root}wpe.weight", "lm/pos"),
        *pieces.norm(f"{at}.ln_1", f"{to}/norm1"),
        Rule(f"{at}.attn.c_attn.weight", three("kernel"), split(3, axis=1)),
        Rule(f"{at}.attn.c_attn.bias", three("bias"), split(3)),
        *product(f"{at}.attn.c_proj", f"{to}/attn/out"),
        *pieces.norm(f"{at}.ln_2", f"{to}/norm2"),
        *product(f"{at}.mlp.c_fc", f"{to}/mlp/up"),
        *product(f"{at}.mlp.c_proj", f"{to}/mlp/down"),
        *pieces.norm(f"{root}ln_f", "lm/norm"),
        *dropped(names, r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias"),  # the causal mask
    ]


GPT2 = Kind("gpt2", fields, out, rules, (r"(transformer\.)?h\.0\.attn\.c_attn\.weight", r"(transformer\.)?wpe\.weight"))
