"""What the golden scripts of image towers share: loading reference code without the packages it does not need, and the files."""

import importlib.machinery
import importlib.metadata
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
from weights import tensors


class _Stub(types.ModuleType):
    """Stands for a module whose names are imported but not used."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Stub(name)

    def __call__(self, *args, **kwargs):
        return self

    def __mro_entries__(self, bases):
        return ()


def without_torchvision() -> None:
    """timm and open_clip import torchvision for transforms and datasets; models need none of it."""
    parts = ("", ".transforms", ".transforms.functional", ".ops", ".ops.misc", ".datasets", ".models", ".models.feature_extraction")
    for name in (f"torchvision{part}" for part in parts):
        module = _Stub(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []
        sys.modules[name] = module


def fill(model: torch.nn.Module) -> dict[str, list[int]]:
    """Gives a model the weights of tests/golden/weights.py, in float64, and returns their shapes."""
    model.double()
    state = {name: x for name, x in model.state_dict().items() if not name.endswith(("num_batches_tracked", "position_ids"))}
    shapes = {name: list(x.shape) for name, x in state.items()}
    for name, value in tensors(shapes).items():
        state[name].copy_(torch.from_numpy(value))
    return shapes


def numpy(x: torch.Tensor) -> np.ndarray:
    """float32."""
    return x.detach().numpy().astype(np.float32)


def save(script: str, arrays: dict[str, np.ndarray], shapes: dict[str, dict[str, list[int]]], packages: tuple[str, ...]) -> None:
    """Writes `script`'s .npz: arrays, and as JSON `shapes` (model -> tensor -> shape) and `versions` of the packages."""
    assert "mmjax" not in sys.modules, "a reference that imports what it is to judge judges nothing"
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", *packages)}
    path = Path(script).with_suffix(".npz")
    np.savez_compressed(path, **arrays, shapes=np.array(json.dumps(shapes)), versions=np.array(json.dumps(versions)))
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1000:.0f} kB, {versions}")
