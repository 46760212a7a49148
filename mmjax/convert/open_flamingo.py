"""OpenFlamingo's checkpoints (Awadalla et al. 2023): the resampler, the cross-attention and the token tables. The language model and the
CLIP that belong to them lie elsewhere, and are told by `open_flamingo.json` beside the checkpoint, or by `variant` of `from_pretrained`:

    {"lm": "../mpt-1b-redpajama-200b", "clip": "../ViT-L-14.pt", "image_token": 50278}

Paths are relative to the folder. `image_token` is needed only where no tokenizer lies beside the language model. The tensors of all
three make one model, those of the others under "lm:" and "clip:".
"""

import dataclasses
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.convert import clip, hf_config, language, lm_config, pieces
from mmjax.convert.family import Target
from mmjax.convert.layout import Layout, Model, dropped
from mmjax.convert.rules import Op, Rule, identity, moved, reshape, split, tied, transpose, under
from mmjax.convert.source import Source
from mmjax.convert.tensors import Tensor
from mmjax.core.errors import UserError
from mmjax.data import tokenizer as tokenizers
from mmjax.models import gated_xattn, perceiver
from mmjax.models.gated_xattn import GatedCrossAttention
from mmjax.models.perceiver import Perceiver

TOLD = "open_flamingo.json"
PARTS = ("lm", "clip")
NEW = ("<|endofchunk|>", "<image>", "<PAD>")  # what its tokenizer is extended by, the last where there is no padding token
HEAD_WIDTH = 64  # of all heads, which no tensor tells
SIZES = ("width", "heads", "head_width", "mlp")
# Where language models of a family have their blocks, their token table and their head, with other names of it.
BLOCKS = {"mpt": "transformer.blocks", "gpt_neox": "gpt_neox.layers", "llama": "model.layers", "opt": "model.decoder.layers"}
TABLES = {
    "mpt": "transformer.wte.weight",
    "gpt_neox": "gpt_neox.embed_in.weight",
    "llama": "model.embed_tokens.weight",
    "opt": "model.decoder.embed_tokens.weight",
}
HEADS = ("embed_out.weight", "lm_head.weight")
OLD = "lang_encoder.gated_cross_attn_layers"  # of the first release, on LLaMA
# What saves of everything hold beside: the frozen parts, and other names of the same tensors.
FROZEN = r"vision_encoder\..*|lang_encoder\.(.*\.decoder_layer|old_decoder_blocks)\..*"
TABLE, HEAD = "lm/token/embedding", "lm/head/kernel"


# --- three checkpoints as one -------------------------------------------------------------------------------------------


def join(source: Source) -> Source:
    """With the tensors of the language model and of the vision tower beside its own, and in `jsons` what is known of them, `opened`.

    Raises:
      UserError: nothing tells where they are, or what lies there is something else.
    """
    from mmjax.convert.pretrained import open_checkpoint  # which opens what this is a part of

    told = source.variant or source.jsons.get(TOLD)
    if not isinstance(told, Mapping) or not set(PARTS) <= set(told):
        example = '{"lm": "FOLDER", "clip": "FILE OR FOLDER"}'
        raise UserError(
            f"{source.path}: an OpenFlamingo checkpoint, which holds neither its language model nor its CLIP: write {TOLD} beside it, "
            f"{example}, or give that as variant"
        )
    tensors = {name.removeprefix("module."): x for name, x in source.tensors.items()}
    opened = {}
    for part, root in (("lm", "lm/"), ("clip", "image/")):
        opened[part] = open_checkpoint(source.folder / str(told[part]))
        rules = moved(root, root, opened[part].rules)
        if not rules:
            raise UserError(f"{source.path}: {part} is '{told[part]}', a {opened[part].config['family']}")
        replaced = {TABLE, HEAD} if _head(tensors) else {TABLE}
        rules = [r for r in rules if not replaced & set(r.targets)]
        tensors |= {f"{part}:{name}": x for name, x in _read_by(rules, opened[part].source.tensors).items()}
    jsons = {**source.jsons, TOLD: dict(told), "opened": opened}
    return dataclasses.replace(source, tensors=tensors, tokenizer=opened["lm"].source.words, jsons=jsons)


def _read_by(rules: Sequence[Rule], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that rules read."""
    out = {}
    for rule in rules:
        for layer in itertools.count() if rule.stacked else (0,):
            names = [name for name in rule.sources_of(layer) if name in tensors]
            out |= {name: tensors[name] for name in names}
            if not names:
                break
    return out


def describe(source: Source) -> dict[str, Any]:
    """From the shapes of its tensors, and what is known of the other two."""
    opened, t, where = source.jsons["opened"], source.tensors, str(source.path)
    text, seen, told = opened["lm"].config["model"]["lm"], opened["clip"].config, source.jsons[TOLD]
    family = opened["lm"].config["family"]
    if family not in BLOCKS or f"lang_encoder.{TABLES[family]}" not in t:
        raise UserError(f"{where}: lm is '{told['lm']}', a {family}, and no table of one is in the checkpoint")
    if seen["model"]["image"].get("type", "vit") != "vit" or seen["model"]["image"].get("pool", "cls") != "cls":
        raise UserError(f"{where}: clip is '{told['clip']}', whose image tower is no vision transformer with a class token")
    blocks, every = _placed(t, family, text["depth"], where)
    rows = t[f"lang_encoder.{TABLES[family]}"].shape[0]
    if not lm_config.complete(text)["tied"] and rows < text["vocab"] and not _head(t):
        raise UserError(f"{where}: its table has {rows} tokens and the head of lm, '{told['lm']}', {text['vocab']}; lm is another model")
    added = _added(source, rows)
    at = blocks.replace("{i}", str(every - 1))
    model = {
        "vision": {"type": "vit", **seen["model"]["image"]},
        "resampler": {
            **{"form": "open_flamingo", "width": t["perceiver.latents"].shape[1], "latents": t["perceiver.latents"].shape[0]},
            **{"depth": clip.count(t, r"perceiver\.layers\.(\d+)\..*"), "mlp": t["perceiver.layers.0.1.1.weight"].shape[0]},
            **{"heads": t["perceiver.layers.0.0.to_q.weight"].shape[0] // HEAD_WIDTH, "head_width": HEAD_WIDTH},
            "frames": t["perceiver.frame_embs"].shape[0] if "perceiver.frame_embs" in t else 0,
        },
        "xattn": {
            **{"form": "open_flamingo", "heads": t[f"{at}.attn.to_q.weight"].shape[0] // HEAD_WIDTH, "head_width": HEAD_WIDTH},
            "mlp": t[f"{at}.ff.1.weight"].shape[0],
        },
        "lm": {**text, "vocab": rows},
        **{"every": every, "first": every - 1, "image_token": _image_token(source, told, added)},
        **{"size": seen["model"]["size"], "channels": seen["model"]["channels"]},
    }
    return {"model": model, "preprocess": seen["preprocess"], "language_model": family, "added_tokens": added}


def _placed(tensors: Collection[str], family: str, depth: int, where: str) -> tuple[str, int]:
    """How the blocks of cross-attention are called, with {i} for their number; and before every which block of the language model they
    stand.

    Raises:
      UserError: there are none, or elsewhere.
    """
    for pattern in (f"lang_encoder.{BLOCKS[family]}.{{i}}.gated_cross_attn_layer", f"{OLD}.{{i}}"):
        known = re.escape(f"{pattern}.attn_gate").replace(r"\{i\}", r"(\d+)")
        places = sorted(int(m[1]) for m in (re.fullmatch(known, name) for name in tensors) if m)
        if places and places == list(range(places[0], depth, places[0] + 1)):
            return pattern, places[0] + 1
        if places:
            raise UserError(f"{where}: cross-attention before blocks {places} of {depth}; expected every n-th of all of lm's")
    raise UserError(f"{where}: no cross-attention in lang_encoder.{BLOCKS[family]}, where a {family} has its blocks")


def _head(tensors: Collection[str]) -> str | None:
    """What a matrix of logits of its own is called, if the checkpoint holds one."""
    return next((f"lang_encoder.{name}" for name in HEADS if f"lang_encoder.{name}" in tensors), None)


def _has_words(source: Source) -> bool:
    return any((source.words / name).is_file() for name in tokenizers.FILES)


def _added(source: Source, rows: int) -> list[str]:
    """The tokens after those of the language model's tokenizer; none where it is not there."""
    return list(NEW[: max(0, rows - tokenizers.load(source.words).vocab_size)]) if _has_words(source) else []


def _image_token(source: Source, told: Mapping[str, Any], added: list[str]) -> int:
    if "image_token" in told:
        return int(told["image_token"])
    found = tokenizers.load(source.words).extended(added).find("<image>") if _has_words(source) else None
    if found is None:
        raise UserError(f"{source.path}: the tokenizer of lm, in {source.words}, does not tell which id <image> has: say it by image_token")
    return found


# --- rules --------------------------------------------------------------------------------------------------------------


def rules(model: Model, names: Collection[str]) -> list[Rule]:
    """Of the three, whose layouts the names tell."""
    text, seen = ([name.removeprefix(part) for name in names if name.startswith(part)] for part in ("lm:", "clip:"))
    family = next((f for f, at in BLOCKS.items() if any(name.startswith(f"lang_encoder.{at}.") for name in names)), "llama")
    layout = next(x for x in language.LAYOUTS if x.family == family)
    tower = {"image": model["vision"], "size": model["size"], "channels": model["channels"]}
    openai = any(name.startswith("visual.") for name in seen)
    return [
        *_tables(model, names, family),
        *_resampler("perceiver", "resampler", bool(model["resampler"].get("frames"))),
        *_xattn(_pattern(model, names, family), "xattn/blocks"),
        *under("lm:", [r for r in moved("lm/", "lm/", layout.rules(model, text)) if not {TABLE, HEAD} & set(r.targets)]),
        *under("clip:", moved("image/", "vision/", clip.openai_vit(tower) if openai else clip.hf_rules(tower, seen))),
        *dropped(names, FROZEN),
    ]


def _pattern(model: Model, names: Collection[str], family: str) -> str:
    number = f"{{{model['every']}i+{model['every'] - 1}}}"
    old = any(name.startswith(OLD) for name in names)
    return f"{OLD}.{number}" if old else f"lang_encoder.{BLOCKS[family]}.{number}.gated_cross_attn_layer"


def _tables(model: Model, names: Collection[str], family: str) -> list[Rule]:
    """Of tokens and of logits; an exported language model has them again. Where a checkpoint holds no head, it is the language model's,
    and the logits of new tokens are 0."""
    both = lambda name: tuple(n for n in (f"lang_encoder.{name}", f"lm:{name}") if n in names) or (f"lang_encoder.{name}",)
    table, rows = both(TABLES[family]), model["lm"]["vocab"]
    if lm_config.complete(model["lm"])["tied"]:
        table += tuple(name for name in (f"lang_encoder.{HEADS[1]}",) if name in names)
        return [Rule(table, TABLE, tied(len(table)))]
    head = next((both(name) for name in HEADS if both(name)[0] in names), both(HEADS[0]))
    old = names[head[0]].shape[0] if isinstance(names, Mapping) and head[0].startswith("lm:") else rows
    return [Rule(table, TABLE, tied(len(table))), Rule(head, HEAD, tied(len(head), transpose) if old == rows else grown(old, rows))]


def grown(old: int, rows: int) -> Op:
    """A Linear of `old` outputs <-> a matrix of `rows`, the others 0."""

    def forward(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.concatenate([x, np.zeros((rows - old, x.shape[1]), x.dtype)]).T,)

    return Op(forward, lambda x: (x.T[:old],))


def _two(theirs: str, ours: str) -> list[Rule]:
    """Keys and values on top of each other."""
    return [Rule(f"{theirs}.weight", (f"{ours}/k/kernel", f"{ours}/v/kernel"), split(2, transpose))]


def _attention(theirs: str, ours: str) -> list[Rule]:
    plain = lambda a, b: pieces.dense(f"{theirs}.{a}", f"{ours}/{b}", bias=False)
    return [*plain("to_q", "q"), *_two(f"{theirs}.to_kv", ours), *plain("to_out", "out")]


def _feed_forward(theirs: str, norm: str, ours: str) -> list[Rule]:
    plain = lambda a, b: pieces.dense(f"{theirs}.{a}", f"{ours}/{b}", bias=False)
    return [*pieces.norm(f"{theirs}.0", norm), *plain("1", "up"), *plain("3", "down")]


def _resampler(theirs: str, ours: str, timed: bool) -> list[Rule]:
    at, to = f"{theirs}.layers.{{i}}", f"{ours}/blocks"
    return [
        Rule(f"{theirs}.latents", f"{ours}/latents", identity),
        *(pieces.table(f"{theirs}.frame_embs", f"{ours}/time") if timed else []),
        *pieces.norm(f"{at}.0.norm_media", f"{to}/norm_features"),
        *pieces.norm(f"{at}.0.norm_latents", f"{to}/norm_latents"),
        *_attention(f"{at}.0", f"{to}/attn"),
        *_feed_forward(f"{at}.1", f"{to}/norm_mlp", f"{to}/mlp"),
        *pieces.norm(f"{theirs}.norm", f"{ours}/norm"),
    ]


def _xattn(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{theirs}.attn_gate", f"{ours}/gate_attn", reshape((1,), ())),
        Rule(f"{theirs}.ff_gate", f"{ours}/gate_ffw", reshape((1,), ())),
        *pieces.norm(f"{theirs}.attn.norm", f"{ours}/norm1"),
        *_attention(f"{theirs}.attn", f"{ours}/attn"),
        *_feed_forward(f"{theirs}.ff", f"{ours}/norm2", f"{ours}/ffw"),
    ]


# --- out ----------------------------------------------------------------------------------------------------------------


def _has_form(fields: Mapping[str, Any], module: type, form: Mapping[str, Any], free: Collection[str]) -> bool:
    return (fields.get("form"), fields.get("head_width")) == ("open_flamingo", HEAD_WIDTH) and pieces.is_form(fields, module, form, free)


def target(config: Mapping[str, Any]) -> Target:
    """A folder with the checkpoint, `lm` and `clip` as Hugging Face's, and `open_flamingo.json`.

    Raises:
      UserError: a model of another form.
    """
    model, pre = config["model"], config.get("preprocess")
    text, vision = lm_config.complete(model["lm"]), {"eps": 1e-6, **model["vision"]}
    as_told = {
        "xattn": _has_form(model["xattn"], GatedCrossAttention, gated_xattn.FORMS["open_flamingo"], SIZES),
        "resampler": _has_form(model["resampler"], Perceiver, perceiver.FORMS["open_flamingo"], ("depth", "latents", "frames", *SIZES)),
        "first": model.get("first", 0) == model["every"] - 1,
        "vision": vision.get("type", "vit") == "vit" and vision.get("pre_norm", False) and not model.get("class_token", False),
        "new_tokens": not model.get("new_tokens"),
        "attend": model.get("attend", "last") == "last",
    }
    for name, right in as_told.items():
        if not right:
            raise UserError(f"model.{name} is not OpenFlamingo's; mmjax convert import keeps it")
    lm = language.to_hf({"model": {"lm": text}, "family": config.get("language_model")})
    family = lm.layout.family
    if family not in BLOCKS:
        raise UserError(f"a language model of the family {family}; OpenFlamingo takes {', '.join(BLOCKS)}")
    held = [TABLES[family]] if text["tied"] else [TABLES[family], HEADS[family != "gpt_neox"]]
    names = [f"{part}{name}" for name in held for part in ("lang_encoder.", "lm:")]
    names += [f"lang_encoder.{BLOCKS[family]}.", "clip:vision_model.", *(f"lm:{name}" for name in lm.names)]
    seen = {"image": vision, "size": model["size"], "channels": model["channels"]}
    jsons = {TOLD: {"lm": "lm", "clip": "clip", "image_token": model["image_token"]}}
    jsons |= {"lm/config.json": lm.jsons["config.json"], "clip/config.json": hf_config.pair_out(seen, "clip")}
    jsons |= {"clip/preprocessor_config.json": hf_config.preprocessor_out(pre, "clip")} if pre else {}
    parts = {"lm:": "lm/model", "clip:": "clip/model"}
    return Target(OPEN_FLAMINGO, names, jsons, "checkpoint", lm.notes, parts, "lm")


OPEN_FLAMINGO = Layout(
    "open_flamingo",
    "flamingo",
    (r"(module\.)?perceiver\.latents", r"(module\.)?lang_encoder\..*gated_cross_attn_layer.*"),
    describe,
    rules,
    told=True,
    join=join,
)
