"""Writes perceptual.npz: LPIPS and the patch discriminator of VQGAN's authors, on weights and pictures made from names.

    pip install -e '.[parity]'
    git clone https://github.com/CompVis/taming-transformers
    python tests/golden/perceptual.py taming-transformers

`lpips`: distances of pictures normal("x") and normal("y"); `lpips_grad`, the gradient of their sum by y. `patchgan/eval` and
`patchgan/train`: logits of normal("x") with running and with batch statistics, and `patchgan/TENSOR` the running ones afterwards. LPIPS
takes VGG-16 from torchvision, for whose layers a list stands here. The reference runs in float64.
"""

import importlib.util
import sys
import types
from pathlib import Path

import reference
import torch
from weights import normal

PIXELS = (2, 32, 48, 3)
VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
PATCHGAN = {"width": 8, "depth": 2}


def vgg16(pretrained: bool = False) -> types.SimpleNamespace:
    """torchvision's `features`: convolution, ReLU, ..., maximum."""
    layers, before = [], 3
    for channels, depth in VGG16:
        for _ in range(depth):
            layers += [torch.nn.Conv2d(before, channels, 3, padding=1), torch.nn.ReLU()]
            before = channels
        layers.append(torch.nn.MaxPool2d(2))
    return types.SimpleNamespace(features=torch.nn.Sequential(*layers))


def load(folder: str, name: str) -> types.ModuleType:
    """A file of the clone, without the package around it, which wants what is not needed here."""
    path = Path(folder, *name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepare(folder: str) -> None:
    reference.without_torchvision()
    sys.modules["torchvision"].models.vgg16 = vgg16
    sys.modules["torchvision.models"].vgg16 = vgg16
    sys.modules["torchvision"].models = sys.modules["torchvision.models"]
    for name in ("taming", "taming.modules", "taming.util"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["taming.util"].get_ckpt_path = None
    sys.modules["taming.modules.util"] = load(folder, "taming.modules.util")


def lpips(folder: str) -> tuple[dict, dict]:
    module = load(folder, "taming.modules.losses.lpips")
    module.LPIPS.load_from_pretrained = lambda self: None
    model = module.LPIPS().eval()
    kept = {k: v.clone() for k, v in model.scaling_layer.state_dict().items()}
    with torch.no_grad():
        shapes = reference.fill(model)
        model.scaling_layer.load_state_dict(kept)
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("scaling_layer")}
    x, y = (torch.from_numpy(normal(k, PIXELS)).double().permute(0, 3, 1, 2).requires_grad_() for k in "xy")
    found = model(x, y).reshape(-1)
    found.sum().backward()
    return {"lpips": reference.numpy(found), "lpips_grad": reference.numpy(y.grad.permute(0, 2, 3, 1))}, shapes


@torch.no_grad()
def patchgan(folder: str) -> tuple[dict, dict]:
    module = load(folder, "taming.modules.discriminator.model")
    model = module.NLayerDiscriminator(ndf=PATCHGAN["width"], n_layers=PATCHGAN["depth"]).eval()
    shapes = reference.fill(model)
    x = torch.from_numpy(normal("x", PIXELS)).double().permute(0, 3, 1, 2)
    out = {"patchgan/eval": reference.numpy(model(x)[:, 0]), "patchgan/train": reference.numpy(model.train()(x)[:, 0])}
    return out | {f"patchgan/{k}": reference.numpy(v) for k, v in model.state_dict().items() if "running" in k}, shapes


def main(folder: str) -> None:
    torch.set_num_threads(1)
    prepare(folder)
    out, shapes = {}, {}
    for name, make in {"lpips": lpips, "patchgan": patchgan}.items():
        found, shapes[name] = make(folder)
        out |= found
    reference.save(__file__, out, shapes, ())


if __name__ == "__main__":
    main(sys.argv[1])
