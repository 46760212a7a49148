"""Writes unets.npz: what the reference U-Nets compute on weights and inputs that tests make again from their names.

    pip install -e '.[parity]' && pip install --no-deps diffusers==0.42.1 importlib_metadata zipp requests
    python tests/golden/unets.py GUIDED_DIFFUSION EDM EDM2

The arguments are clones of openai/guided-diffusion, NVlabs/edm and NVlabs/edm2, which are run and not copied. For every model, `MODEL/out`
(and `edm2/log_variance`), images as NHWC. References run in float64 where their code does not set float32 itself, as guided-diffusion and
EDM2 do.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import reference
import torch
from weights import normal, tensors

TIMES = np.array([3.0, 977.0])
NOISE = np.array([-0.7, 0.6])  # ln(sigma) / 4
LABELS = np.array([4, 1])
CLASSES, WORDS, CONTEXT, SIDE = 5, 7, 12, 16

UNETS = {"sample_size": SIDE, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
DIFFUSERS = {
    "ddpm": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
    "adm": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 8,
        "attention_head_dim": 8,
        "num_class_embeds": CLASSES,
        "out_channels": 6,
    },
}
CONDITIONED = {
    "sd1": {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
    },
    "sdxl": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 20 + 6 * 256,
    },
    "karlo": {
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": 8,
        "class_embed_type": "identity",
        "out_channels": 8,
    },
}
GUIDED = {"image_size": SIDE, "model_channels": 32, "num_res_blocks": 1, "attention_resolutions": (2,), "channel_mult": (1, 2)}
ADM = {
    "guided_legacy": {"num_classes": CLASSES, "num_heads": 4, "use_scale_shift_norm": True, "resblock_updown": True, "out_channels": 6},
    "guided_new": {"num_head_channels": 16, "use_new_attention_order": True, "out_channels": 3},
    "guided_upsampler": {"num_heads": 2, "use_scale_shift_norm": True, "resblock_updown": True, "out_channels": 6},
    "guided_classifier": {
        "num_head_channels": 16,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "out_channels": CLASSES,
        "pool": "attention",
    },
}
SONG = {
    "ddpmpp": {"channel_mult": [1, 2], "augment_dim": 9, "label_dim": CLASSES},
    "ncsnpp": {
        "channel_mult": [1, 2],
        "augment_dim": 9,
        "label_dim": CLASSES,
        "embedding_type": "fourier",
        "channel_mult_noise": 2,
        "encoder_type": "residual",
        "resample_filter": [1, 3, 3, 1],
    },
}


def image(name: str, channels: int, side: int = SIDE) -> torch.Tensor:
    """float64[B, C, H, W]."""
    return torch.from_numpy(normal(name, (2, side, side, channels))).double().permute(0, 3, 1, 2)


def nhwc(x: torch.Tensor) -> np.ndarray:
    return reference.numpy(x.permute(0, 2, 3, 1) if x.ndim == 4 else x)


@torch.no_grad()
def fill(model: torch.nn.Module) -> dict[str, list[int]]:
    """Weights of tests/golden/weights.py, filters as they are; returns the shapes of all."""
    state = model.eval().state_dict()
    shapes = {name: list(x.shape) for name, x in state.items()}
    for name, value in tensors({k: v for k, v in shapes.items() if not k.endswith("resample_filter")}).items():
        state[name].copy_(torch.from_numpy(value))
    return shapes


@torch.no_grad()
def diffusers_models(out: dict, shapes: dict) -> None:
    from diffusers import UNet2DConditionModel, UNet2DModel

    times, labels = torch.from_numpy(TIMES), torch.from_numpy(LABELS)
    for name, fields in DIFFUSERS.items():
        model = UNet2DModel(**UNETS, **fields).double()
        shapes[name] = fill(model)
        out[f"{name}/out"] = nhwc(model(image(f"{name}/x", 3), times, class_labels=labels if name == "adm" else None).sample)
    words = torch.from_numpy(normal("context", (2, WORDS, CONTEXT))).double()
    for name, fields in CONDITIONED.items():
        model = UNet2DConditionModel(**UNETS, cross_attention_dim=CONTEXT, **fields).double()
        shapes[name] = fill(model)
        extra = {}
        if name == "sdxl":
            sizes = torch.tensor([[64.0, 48, 0, 5, 64, 64], [32, 32, 3, 0, 16, 64]]).double()
            extra["added_cond_kwargs"] = {"text_embeds": torch.from_numpy(normal("pooled", (2, 20))).double(), "time_ids": sizes}
        if name == "karlo":
            extra["class_labels"] = torch.from_numpy(normal("embedding", (2, 64))).double()
        out[f"{name}/out"] = nhwc(model(image(f"{name}/x", 4), times, words, **extra).sample)


@torch.no_grad()
def guided_models(folder: str, out: dict, shapes: dict) -> None:
    sys.path.insert(0, folder)
    unet = importlib.import_module("guided_diffusion.unet")
    times, labels = torch.from_numpy(TIMES).float(), torch.from_numpy(LABELS)
    classes = {"guided_upsampler": unet.SuperResModel, "guided_classifier": unet.EncoderUNetModel}
    for name, fields in ADM.items():
        model = classes.get(name, unet.UNetModel)(in_channels=3, **GUIDED, **fields)
        shapes[name] = fill(model)
        extra = {"y": labels} if "num_classes" in fields else {}
        if name == "guided_upsampler":
            extra["low_res"] = image("low_res", 3, 4).float()
        out[f"{name}/out"] = nhwc(model(image(f"{name}/x", 3).float(), times, **extra))
    sys.path.remove(folder)


def without(*packages: str) -> None:
    """Forgets the packages of one clone, for another has some of the same names."""
    for name in [n for n in sys.modules if n.split(".")[0] in packages]:
        del sys.modules[name]


@torch.no_grad()
def edm_models(folder: str, out: dict, shapes: dict) -> None:
    sys.path.insert(0, folder)
    networks = importlib.import_module("training.networks")
    noise, one_hot = torch.from_numpy(NOISE), torch.eye(CLASSES).double()[LABELS]
    augment = torch.from_numpy(normal("augment", (2, 9))).double()
    for name, fields in SONG.items():
        model = networks.SongUNet(SIDE, 3, 3, model_channels=16, num_blocks=1, attn_resolutions=[SIDE // 2], **fields).double()
        shapes[name] = fill(model)
        out[f"{name}/out"] = nhwc(model(image(f"{name}/x", 3), noise, one_hot, augment))
    # As wide as this, for its group norms have fewer groups where they are narrower and those of ADM do not.
    model = networks.DhariwalUNet(8, 3, 3, CLASSES, model_channels=128, channel_mult=[1, 1], num_blocks=1, attn_resolutions=[4]).double()
    shapes["dhariwal"] = fill(model)
    out["dhariwal/out"] = nhwc(model(image("dhariwal/x", 3, 8), noise, one_hot))
    sys.path.remove(folder)
    without("training", "torch_utils", "dnnlib")


@torch.no_grad()
def edm2_model(folder: str, out: dict, shapes: dict) -> None:
    sys.path.insert(0, folder)
    networks = importlib.import_module("training.networks_edm2")
    sizes = {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [SIDE // 2], "channels_per_head": 16}
    model = networks.Precond(SIDE, 4, CLASSES, use_fp16=False, **sizes)
    shapes["edm2"] = fill(model)
    noise, one_hot = torch.from_numpy(NOISE).float(), torch.eye(CLASSES)[LABELS]
    out["edm2/out"] = nhwc(model.unet(image("edm2/x", 4).float(), noise, one_hot))
    out["edm2/log_variance"] = nhwc(model.logvar_linear(model.logvar_fourier(noise)).flatten())
    weight = normal("forced", (6, 4, 3, 3))
    out["edm2/forced"] = reference.numpy(networks.normalize(torch.from_numpy(weight))).transpose(2, 3, 1, 0)
    sys.path.remove(folder)


def main(guided: str, edm: str, edm2: str) -> None:
    torch.set_num_threads(1)
    out, shapes = {}, {}
    diffusers_models(out, shapes)
    guided_models(guided, out, shapes)
    edm_models(edm, out, shapes)
    edm2_model(edm2, out, shapes)
    print(json.dumps({name: float(np.abs(x).max()) for name, x in out.items()}, indent=1))
    reference.save(__file__, out, shapes, ("diffusers",))


if __name__ == "__main__":
    main(*(str(Path(p).resolve()) for p in sys.argv[1:]))
