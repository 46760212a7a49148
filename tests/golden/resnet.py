"""Writes resnet.npz: what OpenCLIP's ModifiedResNet computes on weights and images that tests make again from their names.

    pip install -e '.[parity]' && pip install --no-deps open_clip_torch
    python tests/golden/resnet.py

For the models of MODELS, as `MODEL/...`: `features` (what goes into c_proj) and `embedding` (what comes out of it) with running
statistics; of those in TRAINED also, in training mode, `train/embedding`, the new `train/state/TENSOR` and, of the loss
sum(embedding * normal("cotangent")), the norm of every parameter's gradient, `train/grad_norm/TENSOR`. The reference runs in float64.
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import reference
import torch
from weights import normal

MODELS = {
    "small": {"layers": [1, 1, 3, 2], "output_dim": 24, "heads": 4, "image_size": 64, "width": 8},
    "RN50": {"layers": [3, 4, 6, 3], "output_dim": 1024, "heads": 32, "image_size": 224, "width": 64},
}
TRAINED = ("small",)
BATCH = {"small": 4, "RN50": 2}


def modified_resnet() -> type:
    """The class alone: the package's front door imports far more than the file needs."""
    spec = importlib.util.find_spec("open_clip")
    folder = Path(spec.submodule_search_locations[0])
    package = types.ModuleType("open_clip")
    package.__path__ = [str(folder)]
    sys.modules["open_clip"] = package
    reference.without_torchvision()
    return importlib.import_module("open_clip.modified_resnet").ModifiedResNet


def images(name: str, size: int) -> torch.Tensor:
    """float64[B, C, H, W]; tests hold them as NHWC."""
    x = normal(f"{name}/images", (BATCH[name], size, size, 3))
    return torch.from_numpy(x).double().permute(0, 3, 1, 2)


@torch.no_grad()
def features(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The output with the identity in place of the last projection."""
    pool = model.attnpool
    own, width = pool.c_proj, pool.c_proj.in_features
    pool.c_proj = torch.nn.Linear(width, width).double()
    pool.c_proj.weight.copy_(torch.eye(width))
    pool.c_proj.bias.zero_()
    out = model(pixels)
    pool.c_proj = own
    return out


def trained(model: torch.nn.Module, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    """One pass forward and back in training mode."""
    model.train()
    embedding = model(pixels)
    (embedding * torch.from_numpy(normal("cotangent", tuple(embedding.shape))).double()).sum().backward()
    out = {"train/embedding": reference.numpy(embedding)}
    out |= {f"train/state/{k}": reference.numpy(v) for k, v in model.state_dict().items() if "running" in k}
    return out | {f"train/grad_norm/{k}": reference.numpy(p.grad.norm()) for k, p in model.named_parameters()}


def main() -> None:
    torch.set_num_threads(1)
    cls, out, shapes = modified_resnet(), {}, {}
    for name, sizes in MODELS.items():
        model = cls(**sizes).eval()
        shapes[name] = reference.fill(model)
        pixels = images(name, sizes["image_size"])
        out |= {f"{name}/features": reference.numpy(features(model, pixels)), f"{name}/embedding": reference.numpy(model(pixels))}
        if name in TRAINED:
            out |= {f"{name}/{k}": v for k, v in trained(model, pixels).items()}
    reference.save(__file__, out, shapes, ("open_clip_torch",))


if __name__ == "__main__":
    main()
