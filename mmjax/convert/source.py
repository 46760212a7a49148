"""A checkpoint folder or file as tensors and the JSON beside them; which model it is comes later."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from mmjax.convert import npz, safetensors, torch_file
from mmjax.convert.tensors import Tensor, some
from mmjax.core.errors import UserError

# In the order in which a folder that holds several is read.
WEIGHTS = (
    *("params.safetensors", "params.safetensors.index.json"),  # our own
    *("model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors", "open_clip_model.safetensors.index.json"),
    *("open_clip_pytorch_model.bin", "pytorch_model.bin", "pytorch_model.bin.index.json"),
)
READERS = {
    ".safetensors": safetensors.read,
    ".npz": npz.read,
    ".pt": torch_file.read,
    ".pth": torch_file.read,
    ".bin": torch_file.read,
}
JSONS = ("config.json", "open_clip_config.json", "preprocessor_config.json", "processor_config.json")


@dataclasses.dataclass(frozen=True)
class Source:
    """What lies in a checkpoint.

    Attributes:
      path: the file of weights, or the index of several.
      folder: where it lies, with configs and tokenizers.
      jsons: file name -> content, of those of `JSONS` that are there.
    """

    path: Path
    folder: Path
    tensors: dict[str, Tensor]
    jsons: dict[str, Any]


def holds_weights(path: str | Path) -> bool:
    """Whether a path is a file, or a folder with one, that `open_source` would try to read."""
    path = Path(path).expanduser()
    return path.is_file() or (path.is_dir() and any(p.name in WEIGHTS or p.suffix in READERS for p in path.iterdir() if p.is_file()))


def open_source(path: str | Path) -> Source:
    """Finds and opens the weights at a path; values are not read yet.

    Raises:
      UserError: nothing there, several files to choose from, an unknown format, or a damaged file.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(
            f"no file or folder {str(path)!r}; weights are not downloaded: fetch them first (hf download NAME --local-dir DIR) and give DIR"
        )
    weights = _weights_of(path) if path.is_dir() else path
    jsons = {name: _json(weights.parent / name) for name in JSONS if (weights.parent / name).is_file()}
    return Source(weights, weights.parent, read(weights), jsons)


def _weights_of(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(p for p in folder.iterdir() if p.suffix in READERS and p.is_file())
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{folder}: holds several files of weights, {some([p.name for p in found])}; give the path of one")
    raise UserError(f"{folder}: no weights in it; expected {', '.join(WEIGHTS)}, or one file {', '.join('*' + s for s in READERS)}")


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, by its ending, or of all an index names."""
    if path.name.endswith(".index.json"):
        return safetensors.read_index(path, read)
    if path.suffix not in READERS:
        raise UserError(f"{path}: the ending says nothing of its format; expected one of {', '.join(READERS)}, or NAME.index.json")
    return READERS[path.suffix](path)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{path}: no JSON: {e}") from None
