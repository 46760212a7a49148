"""BERT as Hugging Face publishes it: the encoder, from a file with or without the heads it was pretrained with."""

from collections.abc import Collection
from typing import Any

from mmjax.convert import hf_config, pieces
from mmjax.convert.layout import Layout, Model, dropped, positions
from mmjax.convert.rules import Rule, identity
from mmjax.convert.source import Source


def _root(names: Collection[str]) -> str:
    return "bert." if any(name.startswith("bert.") for name in names) else ""


def _norm(names: Collection[str], theirs: str, ours: str, shown: str) -> list[Rule]:
    """A LayerNorm, whose tensors are `gamma` and `beta` in files that came from TensorFlow; `shown` is one of its names without `{i}`."""
    if f"{shown}.gamma" in names:
        return [Rule(f"{theirs}.gamma", f"{ours}/scale", identity), Rule(f"{theirs}.beta", f"{ours}/bias", identity)]
    return pieces.norm(theirs, ours)


def hf_rules(model: Model, names: Collection[str]) -> list[Rule]:
    """`BertModel`, and what other classes hold under `bert.`."""
    root = _root(names)
    at, embeddings = f"{root}encoder.layer.{{i}}", f"{root}embeddings"
    rules = [
        *pieces.table(f"{embeddings}.word_embeddings.weight", "text/token"),
        *pieces.table(f"{embeddings}.position_embeddings.weight", "text/pos"),
        *pieces.table(f"{embeddings}.token_type_embeddings.weight", "text/segment"),
        *_norm(names, f"{embeddings}.LayerNorm", "text/norm", f"{embeddings}.LayerNorm"),
        *pieces.dense(f"{at}.attention.output.dense", "text/blocks/attn/out"),
        *_norm(names, f"{at}.attention.output.LayerNorm", "text/blocks/norm1", f"{root}encoder.layer.0.attention.output.LayerNorm"),
        *pieces.dense(f"{at}.intermediate.dense", "text/blocks/mlp/up"),
        *pieces.dense(f"{at}.output.dense", "text/blocks/mlp/down"),
        *_norm(names, f"{at}.output.LayerNorm", "text/blocks/norm2", f"{root}encoder.layer.0.output.LayerNorm"),
    ]
    for name, ours in (("query", "q"), ("key", "k"), ("value", "v")):
        rules += pieces.dense(f"{at}.attention.self.{name}", f"text/blocks/attn/{ours}")
    if model["text"].get("pool") == "pooler":
        rules += pieces.dense(f"{root}pooler.dense", "text/pooler")
    rules += positions(names, {r"(bert\.)?embeddings\.position_ids": model["text"]["positions"]})
    return rules + dropped(names, r"cls\..*")  # the heads of pretraining


def hf_describe(source: Source) -> dict[str, Any]:
    """From config.json. Features are the pooler's where there is one."""
    config, where = hf_config.of(source)
    pool = "pooler" if f"{_root(source.tensors)}pooler.dense.weight" in source.tensors else "cls"
    return {"model": {"text": {"type": "bert", **hf_config.bert(config, where), "pool": pool}}}


HF_BERT = Layout("hf", "bert", (r"(bert\.)?embeddings\.word_embeddings\.weight", r"(bert\.)?encoder\.layer\.0\..*"), hf_describe, hf_rules)
