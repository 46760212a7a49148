"""DiT and SiT as their authors publish them, and as diffusers does."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from mmjax.convert import pieces
from mmjax.convert.layout import Model
from mmjax.convert.rules import Array, Op, Rule, tied, transpose
from mmjax.convert.tensors import Tensors
from mmjax.core.errors import UserError
from mmjax.layers import sincos_2d
from mmjax.models.dit import VARIANTS

ATOL = 1e-6  # between positions computed here and in a file


def _positions(rows: int, width: int) -> Op:
    """A buffer [1, L, D] of fixed positions, which is no weight: compared, and computed again on export."""
    value = sincos_2d(rows, rows, width, last=False)[None]

    def forward(x: Array) -> tuple[Array, ...]:
        if x.shape != value.shape or np.abs(np.asarray(x, np.float32) - value).max() > ATOL:
            raise ValueError("it is not the table of sines and cosines expected there")
        return ()

    return Op(forward, lambda: (value,))


def _buffer(model: Model, names: Collection[str], name: str) -> list[Rule]:
    if name not in names:
        return []
    length = names[name].shape[1] if isinstance(names, Mapping) else (model["size"] // model["patch"]) ** 2
    return [Rule(name, (), _positions(math.isqrt(length), model["width"]))]


def original_rules(model: Model, names: Collection[str]) -> list[Rule]:
    """facebookresearch/DiT's and willisma/SiT's names."""
    at, to = "blocks.{i}", "blocks"
    return [
        *pieces.patch("x_embedder.proj", "patch", model["patch"], model["channels"], bias=True),
        *pieces.dense("t_embedder.mlp.0", "time/dense1"),
        *pieces.dense("t_embedder.mlp.2", "time/dense2"),
        *(pieces.table("y_embedder.embedding_table.weight", "label") if model["classes"] else []),
        *pieces.fused(f"{at}.attn.qkv.", f"{to}/attn", weight="weight", bias="bias"),
        *pieces.dense(f"{at}.attn.proj", f"{to}/attn/out"),
        *pieces.mlp(f"{at}.mlp", f"{to}/mlp", "fc1", "fc2"),
        *pieces.dense(f"{at}.adaLN_modulation.1", f"{to}/modulation"),
        *pieces.dense("final_layer.adaLN_modulation.1", "modulation"),
        *pieces.dense("final_layer.linear", "head"),
        *_buffer(model, names, "pos_embed"),
    ]


def original_describe(tensors: Tensors, where: str) -> dict[str, Any]:
    """models.dit.DiT's fields and `channels`, from shapes; heads are those of the published model of this width, else 64 wide."""
    width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    known = {v["width"]: v["heads"] for v in VARIANTS.values()}
    out = tensors["final_layer.linear.weight"].shape[0]
    if out not in (patch**2 * channels, 2 * patch**2 * channels):
        raise UserError(f"{where}: {out} outputs a patch of {patch} x {patch} x {channels}; expected as many, or twice as many")
    label = tensors.get("y_embedder.embedding_table.weight")
    return {
        "patch": patch,
        "channels": channels,
        "width": width,
        "depth": depth,
        "heads": known.get(width, max(1, width // 64)),
        "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "learn_sigma": out == 2 * patch**2 * channels,
        # The last row is the null class's: a model that was trained without one cannot be told from one of a class less.
        **({"classes": label.shape[0] - 1, "label_dropout": 0.1} if label is not None else {"classes": 0}),
    }


def diffusers_rules(model: Model, names: Collection[str]) -> list[Rule]:
    """DiTTransformer2DModel, whose every block has a copy of the embeddings of time and class."""
    at, to = "transformer_blocks.{i}", "blocks"
    depth = model["depth"]

    def copies(theirs: str, ours: str, op: Op | None = None) -> Rule:
        sources = tuple(f"transformer_blocks.{i}.norm1.emb.{theirs}" for i in range(depth))
        return Rule(sources, ours, tied(depth) if op is None else tied(depth, op))

    rules = [
        *pieces.patch("pos_embed.proj", "patch", model["patch"], model["channels"], bias=True),
        copies("class_embedder.embedding_table.weight", "label/embedding"),
        *pieces.dense(f"{at}.norm1.linear", f"{to}/modulation"),
        *pieces.dense(f"{at}.attn1.to_out.0", f"{to}/attn/out"),
        *pieces.mlp(f"{at}.ff.net", f"{to}/mlp", "0.proj", "2"),
        *pieces.dense("proj_out_1", "modulation"),
        *pieces.dense("proj_out_2", "head"),
        *_buffer(model, names, "pos_embed.pos_embed"),
    ]
    for i in (1, 2):
        name = f"timestep_embedder.linear_{i}"
        rules += [copies(f"{name}.weight", f"time/dense{i}/kernel", transpose), copies(f"{name}.bias", f"time/dense{i}/bias")]
    for name in "qkv":
        rules += pieces.dense(f"{at}.attn1.to_{name}", f"{to}/attn/{name}")
    return rules


def diffusers_describe(config: Mapping[str, Any], where: str, compatible: bool = False) -> dict[str, Any]:
    """models.dit.DiT's fields, `channels` and `size`, from config.json.

    Args:
      compatible: compute what diffusers does of the same weights. It spreads the time over frequencies that reach 1 / 10000, and its
        second norms add 1e-5, where the published networks were trained with neither: its pictures are of other times than were asked.

    Raises:
      UserError: a network of another kind.
    """
    if config.get("norm_type", "ada_norm_zero") != "ada_norm_zero" or config.get("activation_fn", "gelu-approximate") != "gelu-approximate":
        raise UserError(f"{where}: expected norm_type 'ada_norm_zero' and activation_fn 'gelu-approximate', as DiT has")
    heads = config["num_attention_heads"]
    channels, out = config["in_channels"], config.get("out_channels")
    return {
        "patch": config["patch_size"],
        "channels": channels,
        "size": config["sample_size"],
        "width": heads * config["attention_head_dim"],
        "depth": config["num_layers"],
        "heads": heads,
        "learn_sigma": out == 2 * channels,
        "classes": config["num_embeds_ada_norm"],
        "label_dropout": 0.1,
        "freq_shift": int(compatible),
        "eps": config.get("norm_eps", 1e-5) if compatible else 1e-6,
    }
