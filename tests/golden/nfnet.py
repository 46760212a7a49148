"""Writes nfnet.npz: what timm's dm_nfnet computes on weights and images that tests make again from their names.

    pip install -e '.[parity]' && pip install --no-deps timm
    python tests/golden/nfnet.py

For the models of MODELS, as `MODEL/...`: `features`, `logits` and, of the small ones, of the loss sum(logits * normal("cotangent")),
the norm of every parameter's gradient, `grad_norm/TENSOR`. The reference runs in float64. In two places timm is not the
authors' code, and is made to follow it: weights are standardised without its eps (theirs is a floor that no weight here is near),
and where MODELS says so GELU is the tanh form.
"""

import numpy as np
import reference
import torch
from weights import normal

MODELS = {
    "tanh": {"size": 48, "batch": 4, "depths": (1, 1, 3, 1), "channels": (32, 32, 48, 48), "group_size": 8, "tanh": True},
    "erf": {"size": 39, "batch": 4, "depths": (1, 1, 3, 1), "channels": (32, 32, 48, 48), "group_size": 8, "tanh": False},
    "F0": {"size": 96, "batch": 2, "depths": (1, 2, 6, 3), "channels": (256, 512, 1536, 1536), "group_size": 128, "tanh": True},
}
CLASSES = {"tanh": 10, "erf": 10, "F0": 1000}


def build(name: str) -> torch.nn.Module:
    """timm's model in evaluation, without the two deviations."""
    from timm.layers.std_conv import ScaledStdConv2dSame
    from timm.models import nfnet

    sizes = MODELS[name]
    cfg = nfnet._dm_nfnet_cfg(depths=sizes["depths"], channels=sizes["channels"])
    cfg.group_size, cfg.stem_chs = sizes["group_size"], sizes["channels"][0] // 2
    if name != "F0":
        cfg.ch_div = 1
    model = nfnet.NormFreeNet(cfg, num_classes=CLASSES[name]).eval()
    if cfg.stem_chs != 128:  # the authors' stem has 16, 32 and 64 channels whatever the width, timm's are shares of it
        make = type(model.stem.conv1)
        for i, (a, b, stride) in enumerate([(3, 16, 2), (16, 32, 1), (32, 64, 1), (64, cfg.stem_chs, 2)], 1):
            setattr(model.stem, f"conv{i}", make(a, b, 3, stride=stride))
    for module in model.modules():
        if isinstance(module, ScaledStdConv2dSame):
            module.eps = 1e-30  # F.batch_norm wants one
        if isinstance(module, nfnet.GammaAct) and sizes["tanh"]:
            module.act_fn = lambda x, inplace=False: torch.nn.functional.gelu(x, approximate="tanh")
    return model


def outputs(model: torch.nn.Module, name: str) -> dict[str, np.ndarray]:
    """Pooled features, logits and gradients."""
    size = MODELS[name]["size"]
    pixels = torch.from_numpy(normal(f"{name}/images", (MODELS[name]["batch"], size, size, 3))).double().permute(0, 3, 1, 2)
    features = model.forward_features(pixels).mean((2, 3))
    logits = model.head.fc(features)
    out = {"features": reference.numpy(features), "logits": reference.numpy(logits)}
    if name != "F0":
        (logits * torch.from_numpy(normal("cotangent", tuple(logits.shape))).double()).sum().backward()
        out |= {f"grad_norm/{k}": reference.numpy(p.grad.norm()) for k, p in model.named_parameters()}
    return out


def main() -> None:
    torch.set_num_threads(1)
    reference.without_torchvision()
    out, shapes = {}, {}
    for name in MODELS:
        model = build(name)
        shapes[name] = reference.fill(model)
        out |= {f"{name}/{k}": v for k, v in outputs(model, name).items()}
    reference.save(__file__, out, shapes, ("timm",))


if __name__ == "__main__":
    main()
