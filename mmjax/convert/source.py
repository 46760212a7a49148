"""A checkpoint folder or file as tensors and the JSON beside them; which model it is comes later."""

import dataclasses
import json
from collections.abc import Mapping
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
    *("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"),
    *("diffusion_pytorch_model.bin", "diffusion_pytorch_model.bin.index.json"),
)
READERS = {
    ".safetensors": safetensors.read,
    ".npz": npz.read,
    ".pt": torch_file.read,
    ".pth": torch_file.read,
    ".ckpt": torch_file.read,
    ".bin": torch_file.read,
}
JSONS = (
    *("config.json", "open_clip_config.json", "preprocessor_config.json", "processor_config.json", "scheduler_config.json"),
    "open_flamingo.json",
)
PIPELINE = "model_index.json"  # of diffusers, beside the folders of its components
DENOISERS = ("unet", "transformer", "decoder")  # the components of which a pipeline has one, taken where none is asked for
# Components of which each is several folders; the first one's name is the scheduler's too.
JOINT = {"decoder": ("decoder", "text_proj"), "super_res": ("super_res_first", "super_res_last")}
# What the components of latent diffusion are called in one file of all their weights.
PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}


@dataclasses.dataclass(frozen=True)
class Source:
    """What lies in a checkpoint.

    Attributes:
      path: the file of weights, or the index of several; of several folders the one they lie in.
      folder: where it lies, with configs.
      jsons: file name -> content, of those of `JSONS` that are there, and the scheduler's config of the pipeline that a component is of;
        of several folders (JOINT) `FOLDER/config.json`, and their tensors' names begin with the folder's.
      tokenizer: the folder of its files, where it is another one.
      variant: what a caller knows of the model and files may not say: a published name, or fields.
    """

    path: Path
    folder: Path
    tensors: dict[str, Tensor]
    jsons: dict[str, Any]
    tokenizer: Path | None = None
    variant: str | Mapping[str, Any] | None = None

    @property
    def words(self) -> Path:
        return self.tokenizer or self.folder


def holds_weights(path: str | Path) -> bool:
    """Whether a path is a file, or a folder with one, that `open_source` would try to read."""
    path = Path(path).expanduser()
    return path.is_file() or (
        path.is_dir() and any(p.name in (*WEIGHTS, PIPELINE) or p.suffix in READERS for p in path.iterdir() if p.is_file())
    )


def open_source(path: str | Path, component: str | None = None, variant: str | Mapping[str, Any] | None = None) -> Source:
    """Finds and opens the weights at a path; values are not read yet.

    Args:
      component: of a pipeline's folder, or a key of PREFIXES in a file that has all weights of one; of a folder by default what denoises.

    Raises:
      UserError: nothing there, several files to choose from, an unknown format, a damaged file, or a component that is not there.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(
            f"no file or folder {str(path)!r}; weights are not downloaded: fetch them first (hf download NAME --local-dir DIR) and give DIR"
        )
    joint = _joint(path, component) if path.is_dir() else None
    if joint is not None:
        return _joined(path, joint, variant)
    folder = _component(path, component) if path.is_dir() else path.parent
    weights = _weights_of(folder) if path.is_dir() else path
    jsons = {name: _json(folder / name) for name in JSONS if (folder / name).is_file()}
    tensors = read(weights)
    if path.is_dir() and (path / PIPELINE).is_file():
        own = path / f"{folder.name}_scheduler"  # where every component has one
        scheduler = (own if own.is_dir() else path / "scheduler") / "scheduler_config.json"
        jsons |= {scheduler.name: _json(scheduler)} if scheduler.is_file() else {}
    elif component is not None and folder == (path if path.is_dir() else path.parent):
        tensors = _part(weights, tensors, component)
    seen = folder.with_name("feature_extractor") / "preprocessor_config.json"  # a pipeline's, beside its image encoder
    if folder.name == "image_encoder" and seen.is_file():
        jsons[seen.name] = _json(seen)
    words = folder.with_name(folder.name.replace("text_encoder", "tokenizer"))  # and its text encoder
    return Source(weights, folder, tensors, jsons, words if words.is_dir() else None, variant)


def _joint(path: Path, component: str | None) -> str | None:
    """The key of JOINT whose folders all lie at a path, where no other component is asked for."""
    own = [name for name, folders in JOINT.items() if component in (None, name) and all((path / f).is_dir() for f in folders)]
    return own[0] if own and not any((path / name).is_dir() for name in DENOISERS[:2] if component is None) else None


def _joined(path: Path, name: str, variant: str | Mapping[str, Any] | None) -> Source:
    tensors, jsons = {}, {}
    for folder in JOINT[name]:
        tensors |= {f"{folder}.{key}": x for key, x in read(_weights_of(path / folder)).items()}
        config = path / folder / "config.json"
        jsons |= {f"{folder}/config.json": _json(config)} if config.is_file() else {}
    scheduler = path / f"{name}_scheduler" / "scheduler_config.json"
    jsons |= {scheduler.name: _json(scheduler)} if scheduler.is_file() else {}
    words = path / "tokenizer"
    return Source(path, path, tensors, jsons, words if words.is_dir() else None, variant)


def _component(path: Path, component: str | None) -> Path:
    """The folder of a pipeline's component, or the path itself where there is no pipeline or all lies in one folder."""
    if not (path / PIPELINE).is_file():
        return path / component if component is not None and (path / component).is_dir() else path
    index = _json(path / PIPELINE)
    named = sorted(k for k, v in index.items() if isinstance(v, list) and v and v[0]) if isinstance(index, dict) else []
    if component is None:
        component = next((name for name in DENOISERS if name in named), None)
    if component not in named:
        raise UserError(f"{path}: the pipeline has no component {component or DENOISERS[0]!r}; component is one of {', '.join(named)}")
    if (path / component).is_dir():
        return path / component
    if (path / "config.json").is_file():  # a pipeline of one network, whose files lie beside the index
        return path
    raise UserError(f"{path}: folder {component!r}, which {PIPELINE} names, is missing")


def _part(weights: Path, tensors: dict[str, Tensor], component: str) -> dict[str, Tensor]:
    """The tensors of one component in a file of all, without its prefix; a file of one component alone is that."""
    prefix = PREFIXES.get(component)
    if prefix is None:
        raise UserError(
            f"{weights}: component {component!r}, but no {PIPELINE} beside it; of one file of weights it is {' or '.join(PREFIXES)}"
        )
    if not any(name.startswith(tuple(PREFIXES.values())) for name in tensors):
        return tensors
    found = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    if not found:
        raise UserError(f"{weights}: no component {component!r}: no tensor's name begins with {prefix!r}")
    return found


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
