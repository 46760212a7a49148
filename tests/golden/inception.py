"""Writes inception.npz: the features of pytorch-fid's network on weights and pictures made from names.

    pip install -e '.[parity]' && pip install --no-deps timm
    git clone https://github.com/mseitzer/pytorch-fid
    python tests/golden/inception.py pytorch-fid

`features` [B, 2048] and `logits` [B, 1008], the latter without a bias, of pictures sigmoid(normal("pictures")) of 0..1 through
pytorch-fid's resize; `resized`, what it makes of them, every 37th row and column. pytorch-fid changes torchvision's Inception v3, for
which timm's stands here, with the same names, padding and eps. The reference runs in float64.
"""

import importlib
import importlib.util
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import reference
import torch
from weights import normal

PIXELS, STEP = (2, 40, 56, 3), 37


def network(folder: str) -> tuple[types.ModuleType, torch.nn.Module]:
    """pytorch-fid's module and its Inception, not loaded."""
    reference.without_torchvision()
    inception_v3 = importlib.import_module("timm.models.inception_v3")  # its package has a function of this name
    vision = sys.modules["torchvision"]
    vision.__version__, vision.models = "0.0", types.ModuleType("torchvision.models")
    vision.models.inception = inception_v3
    made = {}

    def stand_in(**_):
        made["model"] = inception_v3.InceptionV3(num_classes=1008, aux_logits=False)
        made["model"].load_state_dict = lambda state: None
        return made["model"]

    vision.models.inception_v3 = stand_in
    path = Path(folder) / "src" / "pytorch_fid" / "inception.py"
    spec = importlib.util.spec_from_file_location("pytorch_fid_inception", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.load_state_dict_from_url = lambda *a, **k: {}
    module.fid_inception_v3 = partial(_with_eps, module.fid_inception_v3)
    model = module.InceptionV3()
    return module, model, made["model"]


def _with_eps(make):
    model = make()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eps = 1e-3
    return model


@torch.no_grad()
def main(folder: str) -> None:
    torch.set_num_threads(1)
    _, model, inside = network(folder)
    model.eval()
    inside.eval()
    shapes = {name: shape for name, shape in reference.fill(inside).items()}
    pictures = torch.from_numpy(normal("pictures", PIXELS)).double().sigmoid().permute(0, 3, 1, 2)
    features = model(pictures)[0][:, :, 0, 0]
    logits = features @ inside.fc.weight.T
    resized = 2 * torch.nn.functional.interpolate(pictures, size=(299, 299), mode="bilinear", align_corners=False) - 1
    out = {"features": features, "logits": logits, "resized": resized.permute(0, 2, 3, 1)[:, ::STEP, ::STEP]}
    assert np.std(features.numpy()) > 1e-3
    reference.save(__file__, {k: reference.numpy(v) for k, v in out.items()}, {"inception": shapes}, ("timm",))


if __name__ == "__main__":
    main(sys.argv[1])
