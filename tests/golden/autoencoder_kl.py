"""Writes autoencoder_kl.npz: what diffusers' AutoencoderKL and the authors' autoencoder compute on weights and inputs made from names.

    pip install -e '.[parity]' && pip install --no-deps diffusers importlib_metadata
    git clone https://github.com/CompVis/taming-transformers
    python tests/golden/autoencoder_kl.py taming-transformers

As `MODEL/...`: `mean`, `logvar` of pictures normal("x"), and `decoded` of latents normal("MODEL/z"). `diffusers` and `no_quant` (Stable
Diffusion 3's form) are diffusers'; `original` is the encoder and decoder that latent diffusion took over from VQGAN, with the
convolutions beside them. The reference runs in float64.
"""

import importlib.util
import sys
from pathlib import Path

import reference
import torch
from weights import normal

SIZES = {"diffusers": {"widths": (8, 16, 16), "groups": 4, "latent": 4}, "no_quant": {"widths": (8, 16), "groups": 8, "latent": 16}}
ORIGINAL = {"width": 32, "mults": (1, 2, 2), "blocks": 1, "latent": 3}
PIXELS = (2, 16, 24, 3)


def diffusers(widths: tuple[int, ...], groups: int, latent: int, quant: bool) -> torch.nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=2,
        latent_channels=latent,
        norm_num_groups=groups,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
    )


class Original(torch.nn.Module):
    """As latent diffusion's AutoencoderKL holds them."""

    def __init__(self, folder: str):
        super().__init__()
        path = Path(folder) / "taming" / "modules" / "diffusionmodules" / "model.py"
        spec = importlib.util.spec_from_file_location("taming_model", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sizes = {"ch": ORIGINAL["width"], "ch_mult": ORIGINAL["mults"], "num_res_blocks": ORIGINAL["blocks"], "attn_resolutions": []}
        sizes |= {"in_channels": 3, "out_ch": 3, "resolution": PIXELS[1], "z_channels": ORIGINAL["latent"]}
        self.encoder, self.decoder = module.Encoder(double_z=True, **sizes), module.Decoder(**sizes)
        self.quant_conv = torch.nn.Conv2d(2 * ORIGINAL["latent"], 2 * ORIGINAL["latent"], 1)
        self.post_quant_conv = torch.nn.Conv2d(ORIGINAL["latent"], ORIGINAL["latent"], 1)


@torch.no_grad()
def outputs(name: str, model: torch.nn.Module, latent: int, levels: int) -> tuple[dict, dict]:
    shapes = reference.fill(model.eval())
    given = lambda key, shape: torch.from_numpy(normal(key, shape)).double().permute(0, 3, 1, 2)
    x = given("x", PIXELS)
    z = given(f"{name}/z", (PIXELS[0], *(side >> (levels - 1) for side in PIXELS[1:3]), latent))
    if isinstance(model, Original):
        mean, logvar = model.quant_conv(model.encoder(x)).chunk(2, dim=1)
        decoded = model.decoder(model.post_quant_conv(z))
    else:
        posterior = model.encode(x).latent_dist
        mean, logvar, decoded = posterior.mean, posterior.logvar, model.decode(z).sample
    values = {"mean": mean, "logvar": logvar, "decoded": decoded}
    return {f"{name}/{k}": reference.numpy(v.permute(0, 2, 3, 1)) for k, v in values.items()}, shapes


def main(folder: str) -> None:
    torch.set_num_threads(1)
    out, shapes = {}, {}
    for name, sizes in SIZES.items():
        found, shapes[name] = outputs(name, diffusers(**sizes, quant=name == "diffusers"), sizes["latent"], len(sizes["widths"]))
        out |= found
    found, shapes["original"] = outputs("original", Original(folder), ORIGINAL["latent"], len(ORIGINAL["mults"]))
    reference.save(__file__, out | found, shapes, ("diffusers",))


if __name__ == "__main__":
    main(sys.argv[1])
