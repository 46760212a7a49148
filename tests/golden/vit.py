"""Writes vit.npz: SigLIP's vision tower in transformers and torch's resize of position embeddings, on inputs made from their names.

    pip install -e '.[parity]'
    python tests/golden/vit.py

For the activations of ACTIVATIONS, as `ACT/...`: `tokens` (after the last norm), `before_norm` (before it), `features` (of the MAP
head) and, of the loss sum(features * normal("cotangent")), the norm of every parameter's gradient, `grad_norm/TENSOR`. For the
grids of GRIDS `resize/OLD/NEW`, [rows x columns, WIDTH]. The reference runs in float64.
"""

import numpy as np
import reference
import torch
from weights import normal

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 72, "image_size": 28, "patch_size": 8}
ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu"}
BATCH, WIDTH = 3, 5
GRIDS = (((4, 4), (7, 7)), ((14, 14), (16, 16)), ((16, 16), (7, 9)), ((5, 8), (8, 3)), ((7, 7), (24, 24)))


def siglip(act: str) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Outputs and shapes of the weights. 28 pixels hold 3 x 3 patches of 8: the rest is cut off, as in So400m/14 at 384."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(**SIZES, hidden_act=ACTIVATIONS[act], layer_norm_eps=1e-6)
    config._attn_implementation = "sdpa"  # the eager one has a float32 softmax inside
    model = SiglipVisionModel(config).eval()
    shapes = reference.fill(model)
    size = SIZES["image_size"]
    pixels = torch.from_numpy(normal("images", (BATCH, size, size, 3))).double().permute(0, 3, 1, 2)
    out = model(pixels, output_hidden_states=True)
    (out.pooler_output * torch.from_numpy(normal("cotangent", tuple(out.pooler_output.shape))).double()).sum().backward()
    values = {"tokens": out.last_hidden_state, "before_norm": out.hidden_states[-1], "features": out.pooler_output}
    arrays = {k: reference.numpy(v) for k, v in values.items()}
    return arrays | {f"grad_norm/{k}": reference.numpy(p.grad.norm()) for k, p in model.named_parameters()}, shapes


def resized(old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """What OpenCLIP and transformers do to a grid of position embeddings."""
    grid = torch.from_numpy(normal("positions", (old[0] * old[1], WIDTH))).double().reshape(1, *old, WIDTH).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=new, mode="bicubic", antialias=True, align_corners=False)
    return reference.numpy(grid.permute(0, 2, 3, 1).reshape(-1, WIDTH))


def main() -> None:
    torch.set_num_threads(1)
    reference.without_torchvision()
    out, shapes = {}, {}
    for act in ACTIVATIONS:
        arrays, shapes[act] = siglip(act)
        out |= {f"{act}/{k}": v for k, v in arrays.items()}
    name = lambda grid: "x".join(map(str, grid))
    out |= {f"resize/{name(old)}/{name(new)}": resized(old, new) for old, new in GRIDS}
    reference.save(__file__, out, shapes, ("transformers",))


if __name__ == "__main__":
    main()
