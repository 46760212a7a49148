"""Checkpoints to checkpoints: into mmjax's own folders, out to the libraries that others use, and the proof that nothing is lost."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.convert import bert, clip, hf_config, models, openclip_config, own, safetensors, siglip, t5
from mmjax.convert.layout import Layout
from mmjax.convert.pretrained import Opened, open_checkpoint, read_leaves
from mmjax.convert.rules import Leaf, export
from mmjax.convert.tensors import Tensor
from mmjax.core.errors import UserError
from mmjax.models import clip as towers

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("spiece.model", "tokenizer.model", "bpe_simple_vocab_16e6.txt.gz"),
)
TO = ("hf", "openclip")


@dataclasses.dataclass(frozen=True)
class Written:
    """What a conversion wrote, and `notes` for whoever asked for it."""

    config: dict[str, Any]
    parameters: int
    files: list[str]
    notes: list[str] = dataclasses.field(default_factory=list)


def load_leaves(path: str | Path, dtype: Any = np.float32, act: str | None = None) -> tuple[Opened, dict[str, Leaf]]:
    """A checkpoint of any layout and its parameters by path, none read yet: a `Leaf` reads what is asked of it."""
    opened = open_checkpoint(path, act=act)
    return opened, read_leaves(opened, models.build(opened.config["model"]), dtype)


def import_to(path: str | Path, out: str | Path, *, dtype: Any = np.float32, act: str | None = None) -> Written:
    """Writes mmjax's own folder from a checkpoint, tensor by tensor.

    Raises:
      UserError: as `from_pretrained`; or `out` holds something already.
    """
    opened, leaves = load_leaves(path, dtype, act)
    out = _empty(out)
    params = {name: Tensor(leaf.shape, leaf.dtype, lambda leaf=leaf: np.asarray(leaf)) for name, leaf in leaves.items()}
    files = own.write(out, opened.config, params)
    return Written(opened.config, _numbers(leaves), files + _copy_tokenizer(opened.source.folder, out))


def export_to(path: str | Path, to: str, out: str | Path, *, dtype: Any = None, act: str | None = None) -> Written:
    """Writes the folder that Hugging Face's `from_pretrained` or OpenCLIP (`local-dir:`) loads, from a checkpoint of any layout.

    Raises:
      UserError: as `from_pretrained`; a model that the library has no class for; or `out` holds something already.
    """
    dtype = None if dtype is None else np.dtype(dtype)
    opened, leaves = load_leaves(path, np.float32 if dtype is None else dtype, act)
    layout, names, jsons, stem = _target(opened.config, to)
    out = _empty(out)
    tensors = export(layout.rules(opened.config["model"], names), leaves, dtype)
    files = safetensors.write_set(out, stem, tensors, {"format": "pt"})
    for name, content in jsons.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    notes = openclip_config.differs(opened.config["model"]) if to == "openclip" else []
    return Written(opened.config, _numbers(leaves), [*files, *jsons, *_copy_tokenizer(opened.source.folder, out)], notes)


def _target(config: Mapping[str, Any], to: str) -> tuple[Layout, tuple[str, ...], dict[str, Any], str]:
    """Layout, names it has beside those it always has, configs by file name, and the stem of the weights' file."""
    model, pre = _complete(config["model"]), config.get("preprocess")
    if to not in TO:
        raise UserError(f"--to is {to!r}; known: {', '.join(TO)}")
    if to == "openclip":
        return _openclip(model, pre)
    if model.get("image", {}).get("type") not in (None, "vit"):
        raise UserError("Hugging Face's CLIP has vision transformers only; export --to openclip")
    kind = _hf_kind(model)
    if kind in ("bert", "t5"):
        layout, write = {"bert": (bert.HF_BERT, hf_config.bert_out), "t5": (t5.HF_T5, hf_config.t5_out)}[kind]
        return layout, (), {"config.json": write(model["text"])}, "model"
    layout = siglip.HF_SIGLIP if kind == "siglip" else clip.HF_CLIP
    jsons = {"config.json": hf_config.pair_out(model, kind)}
    if pre:
        jsons["preprocessor_config.json"] = hf_config.preprocessor_out(pre, kind)
    # With the prefix, which transformers 4 wants of a tower alone and transformers 5 takes.
    return layout, ("text_model.", "vision_model."), jsons, "model"


def _complete(model: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with the defaults of the towers' modules, which a config may leave out and another library may have others of."""
    out = dict(model)
    for tower, known in (("image", towers.IMAGE_TOWERS), ("text", towers.TEXT_TOWERS)):
        if tower in model:
            kind = model[tower].get("type", next(iter(known)))
            own = {
                f.name: f.default for f in dataclasses.fields(known[kind]) if f.default is not dataclasses.MISSING and f.name != "parent"
            }
            out[tower] = {**own, **model[tower], "type": kind}
    return out


def _hf_kind(model: Mapping[str, Any]) -> str:
    """Which of Hugging Face's models has these towers.

    Raises:
      UserError: none.
    """
    text, image = model.get("text"), model.get("image")
    if image is None and text["type"] in ("bert", "t5"):
        return text["type"]
    if text is not None and text["type"] != "transformer":
        raise UserError(f"Hugging Face has no class for a pair with a text tower of type {text['type']!r}")
    causal = text is None or (text["causal"] and text["pool"] != "last" and not model.get("text_bias"))
    last = text is None or (not text["causal"] and text["pool"] == "last")
    if causal and (image is None or (image["pool"] == "cls" and image["pre_norm"])):
        return "clip"
    if last and (image is None or image["pool"] == "map"):
        return "siglip"
    raise UserError("Hugging Face has no class for these towers: CLIP's are causal with a class token, SigLIP's neither")


def _openclip(model: Mapping[str, Any], pre: Mapping[str, Any] | None) -> tuple[Layout, tuple[str, ...], dict[str, Any], str]:
    if not {"image", "text"} <= set(model) or model["text"]["type"] != "transformer":
        raise UserError("OpenCLIP's files hold an image tower and a text transformer; export --to hf")
    pre = pre or {"size": model["size"], "mean": clip.MEAN, "std": clip.STD, "resize": "short_side", "method": "bicubic"}
    names = ("text.positional_embedding",) if model.get("bias") is not None else ()
    return clip.OPENAI, names, {"open_clip_config.json": openclip_config.out(model, pre)}, "open_clip_model"


def _numbers(leaves: Mapping[str, Leaf]) -> int:
    return sum(math.prod(leaf.shape) for leaf in leaves.values())


def _empty(out: str | Path) -> Path:
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out '{out}' is there already; choose a new folder")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _copy_tokenizer(folder: Path, out: Path) -> list[str]:
    names = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    for name in names:
        shutil.copyfile(folder / name, out / name)
    return names


@dataclasses.dataclass(frozen=True)
class Check:
    """Of every tensor of a file, what import and export made of it.

    Attributes:
      equal: tensors that came back byte for byte.
      differ: those that did not, which is a fault of the rules.
      dropped: those a model has no place for (counters, heads of pretraining), which do not come back.
    """

    opened: Opened
    parameters: int
    equal: list[str]
    differ: list[str]
    dropped: list[str]


def check(path: str | Path, *, act: str | None = None, say: Callable[[str], None] = lambda line: None) -> Check:
    """Imports a checkpoint and exports it again to its own layout, tensor by tensor, and compares bytes."""
    opened = open_checkpoint(path, act=act)
    tensors = opened.source.tensors
    wide = any(x.dtype == np.float64 for x in tensors.values())
    leaves = read_leaves(opened, models.build(opened.config["model"]), np.float64 if wide else np.float32)
    back = export(opened.rules, leaves)
    equal, differ = [], []
    for name, x in back.items():
        want = np.ascontiguousarray(tensors[name].read())
        got = np.ascontiguousarray(x.read().astype(want.dtype))
        same = got.shape == want.shape and np.array_equal(got.reshape(-1).view(np.uint8), want.reshape(-1).view(np.uint8))
        (equal if same else differ).append(name)
        if not same:
            say(f"differs: {name}")
    dropped = [name for name in tensors if name not in back]
    return Check(opened, _numbers(leaves), equal, differ, dropped)


def dtype_of(name: str) -> np.dtype:
    """float32, bfloat16 or float16."""
    if name not in ("float32", "bfloat16", "float16"):
        raise UserError(f"--dtype is {name!r}; expected float32, bfloat16 or float16")
    return np.dtype(jnp.dtype(name))
