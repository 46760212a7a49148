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

from mmjax.convert import models, own, safetensors
from mmjax.convert.family import Target
from mmjax.convert.pretrained import Opened, open_checkpoint, read_leaves
from mmjax.convert.rules import Leaf, export
from mmjax.convert.tensors import Tensor
from mmjax.core.errors import UserError

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("spiece.model", "tokenizer.model", "bpe_simple_vocab_16e6.txt.gz"),
)
TO = ("hf", "openclip", "open_flamingo")


@dataclasses.dataclass(frozen=True)
class Written:
    """What a conversion wrote, and `notes` for whoever asked for it."""

    config: dict[str, Any]
    parameters: int
    files: list[str]
    notes: list[str] = dataclasses.field(default_factory=list)


def load_leaves(path: str | Path, dtype: Any = np.float32, **told: Any) -> tuple[Opened, dict[str, Leaf]]:
    """A checkpoint of any layout and its parameters by path, none read yet: a `Leaf` reads what is asked of it.

    `told`, here and below: keyword arguments of `pretrained.open_checkpoint`.
    """
    opened = open_checkpoint(path, **told)
    return opened, read_leaves(opened, models.build(opened.config["model"]), dtype)


def import_to(path: str | Path, out: str | Path, *, dtype: Any = np.float32, **told: Any) -> Written:
    """Writes mmjax's own folder from a checkpoint, tensor by tensor.

    Raises:
      UserError: as `from_pretrained`; or `out` holds something already.
    """
    opened, leaves = load_leaves(path, dtype, **told)
    out = _empty(out)
    params = {name: Tensor(leaf.shape, leaf.dtype, lambda leaf=leaf: np.asarray(leaf)) for name, leaf in leaves.items()}
    files = own.write(out, opened.config, params)
    return Written(opened.config, _numbers(leaves), files + _copy_tokenizer(opened.source.words, out))


def export_to(path: str | Path, to: str, out: str | Path, *, dtype: Any = None, **told: Any) -> Written:
    """Writes the folder that a `from_pretrained` of Hugging Face's or OpenCLIP (`local-dir:`) loads, from a checkpoint of any layout.

    Raises:
      UserError: as `from_pretrained`; a model that the library has no class for; or `out` holds something already.
    """
    dtype = None if dtype is None else np.dtype(dtype)
    opened, leaves = load_leaves(path, np.float32 if dtype is None else dtype, **told)
    target = target_of(opened.config, to)
    out = _empty(out)
    tensors = export(target.layout.rules(opened.config["model"], target.names), leaves, dtype)
    files = _write_parts(out, tensors, target)
    for name, content in target.jsons.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    written = [*files, *target.jsons, *_copy_tokenizer(opened.source.words, out / target.words)]
    return Written(opened.config, _numbers(leaves), written, target.notes)


def _write_parts(out: Path, tensors: Mapping[str, Tensor], target: Target) -> list[str]:
    """Writes tensors into the files they belong in; returns their names."""
    files = []
    for prefix, stem in {**target.parts, "": target.stem}.items():
        own = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
        tensors = {name: x for name, x in tensors.items() if not name.startswith(prefix)}
        if not own:
            continue
        folder = (out / stem).parent
        folder.mkdir(exist_ok=True)
        files += [str((folder / name).relative_to(out)) for name in safetensors.write_set(folder, Path(stem).name, own, {"format": "pt"})]
    return files


def target_of(config: Mapping[str, Any], to: str) -> Target:
    """How a model is written for a library.

    Raises:
      UserError: an unknown library, or one that has no such model.
    """
    if to not in TO:
        raise UserError(f"--to is {to!r}; known: {', '.join(TO)}")
    family = models.family_of(config["model"])
    if to not in family.targets:
        raise UserError(f"--to is {to!r}, which has no {family.says(config['model'])}; known for it: {', '.join(family.targets) or 'none'}")
    return family.targets[to](config)


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


def check(path: str | Path, *, say: Callable[[str], None] = lambda line: None, **told: Any) -> Check:
    """Imports a checkpoint and exports it again to its own layout, tensor by tensor, and compares bytes."""
    opened = open_checkpoint(path, **told)
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
