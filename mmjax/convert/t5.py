"""The encoder of T5 and T5 v1.1 as Hugging Face publishes them, from a file with or without the decoder."""

from collections.abc import Collection
from typing import Any

from mmjax.convert import hf_config, pieces
from mmjax.convert.layout import Layout, Model, dropped
from mmjax.convert.rules import Rule, identity, tied
from mmjax.convert.source import Source

TOKENS = ("shared.weight", "encoder.embed_tokens.weight")  # one table; files hold either or both


def hf_rules(model: Model, names: Collection[str]) -> list[Rule]:
    """`T5EncoderModel`, and what `T5ForConditionalGeneration` holds of it."""
    tokens = tuple(name for name in TOKENS if name in names) or TOKENS[:1]
    first, attention, mlp = (f"encoder.block.{at}" for at in ("0.layer.0", "{i}.layer.0", "{i}.layer.1"))
    gate = (("wi_0", "gate"), ("wi_1", "up")) if model["text"]["gated"] else (("wi", "up"),)
    rules = [
        Rule(tokens, "text/token/embedding", tied(len(tokens))),
        # Of the first layer, and used by all.
        Rule(f"{first}.SelfAttention.relative_attention_bias.weight", "text/relative/embedding", identity),
        *pieces.norm(f"{attention}.layer_norm", "text/blocks/norm1", bias=False),
        *pieces.norm(f"{mlp}.layer_norm", "text/blocks/norm2", bias=False),
        *pieces.norm("encoder.final_layer_norm", "text/norm", bias=False),
    ]
    for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out")):
        rules += pieces.dense(f"{attention}.SelfAttention.{theirs}", f"text/blocks/attn/{ours}", bias=False)
    for theirs, ours in (*gate, ("wo", "down")):
        rules += pieces.dense(f"{mlp}.DenseReluDense.{theirs}", f"text/blocks/mlp/{ours}", bias=False)
    return rules + dropped(names, r"decoder\..*|lm_head\.weight")


def hf_describe(source: Source) -> dict[str, Any]:
    """From config.json."""
    config, where = hf_config.of(source)
    return {"model": {"text": {"type": "t5", **hf_config.t5(config, where)}}}


HF_T5 = Layout("hf", "t5", (r"encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight",), hf_describe, hf_rules)
