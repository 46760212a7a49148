"""Writes dit.npz: what the authors' DiT and diffusers' DiTTransformer2DModel compute on weights and inputs made from names.

    pip install -e '.[parity]' && pip install --no-deps timm diffusers importlib_metadata
    git clone https://github.com/facebookresearch/DiT
    python tests/golden/dit.py DiT

`original`: DiT(); `diffusers`: the same network with its time embedding's frequencies and its second norms as diffusers has them. Labels
hold the null class. In diffusers' every block has a copy of the embeddings of time and class, and is given the first block's. The
reference runs in float64, but for the sines and cosines of times, which both compute in float32.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import reference
import torch
from weights import normal

SIZES = {"size": 8, "patch": 2, "channels": 4, "width": 32, "depth": 3, "heads": 4, "classes": 10}
TIMES, LABELS = (0.0, 17.25, 999.0), (3, 9, 10)
EMBEDDED = ".norm1.emb."


def original(folder: str) -> torch.nn.Module:
    """From a clone of facebookresearch/DiT."""
    spec = importlib.util.spec_from_file_location("dit_models", Path(folder) / "models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DiT(
        input_size=SIZES["size"],
        patch_size=SIZES["patch"],
        in_channels=SIZES["channels"],
        hidden_size=SIZES["width"],
        depth=SIZES["depth"],
        num_heads=SIZES["heads"],
        num_classes=SIZES["classes"],
    )


def diffusers() -> torch.nn.Module:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=SIZES["heads"],
        attention_head_dim=SIZES["width"] // SIZES["heads"],
        in_channels=SIZES["channels"],
        out_channels=2 * SIZES["channels"],
        num_layers=SIZES["depth"],
        sample_size=SIZES["size"],
        patch_size=SIZES["patch"],
        num_embeds_ada_norm=SIZES["classes"],
    )


def filled(model: torch.nn.Module) -> tuple[torch.nn.Module, dict[str, list[int]]]:
    """With random weights, positions as they were, and one embedding of time and class for all blocks."""
    kept = {name: x.double().clone() for name, x in model.state_dict().items() if name == "pos_embed"}
    shapes = reference.fill(model.eval())
    state = model.state_dict()
    for name, x in state.items():
        if name in kept:
            x.copy_(kept[name])
        elif EMBEDDED in name:
            x.copy_(state["transformer_blocks.0" + name[name.index(EMBEDDED) :]])
    return model, shapes


@torch.no_grad()
def main(folder: str) -> None:
    torch.set_num_threads(1)
    theirs = diffusers()  # before the stubs, with which transformers would not be imported
    reference.without_torchvision()
    out, shapes = {}, {}
    x = torch.from_numpy(normal("x", (3, SIZES["size"], SIZES["size"], SIZES["channels"]))).double().permute(0, 3, 1, 2)
    t, labels = torch.tensor(TIMES, dtype=torch.float64), torch.tensor(LABELS)
    model, shapes["original"] = filled(original(folder))
    # Its first Linear follows the float32 of the time embedding.
    model.t_embedder.mlp[0].register_forward_pre_hook(lambda module, given: (given[0].double(),))
    out["original"] = reference.numpy(model(x, t, labels).permute(0, 2, 3, 1))
    out["positions"] = reference.numpy(model.pos_embed)
    model, shapes["diffusers"] = filled(theirs)
    out["diffusers"] = reference.numpy(model(x, timestep=t, class_labels=labels).sample.permute(0, 2, 3, 1))
    assert np.abs(out["original"]).max() > 0.1
    reference.save(__file__, out, shapes, ("diffusers", "timm"))


if __name__ == "__main__":
    main(sys.argv[1])
