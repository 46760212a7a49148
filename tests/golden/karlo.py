"""Writes karlo.npz: what Karlo's decoder and super-resolution networks compute, diffusers' and the original's, at tiny widths.

    pip install -e '.[parity]' && pip install --no-deps diffusers==0.42.1 importlib_metadata
    python tests/golden/karlo.py KARLO

The argument is a clone of kakaobrain/karlo, which is run and not copied. Weights and inputs are made again by tests from their names. Per
form ("diffusers", "original") `FORM/decoder`, `FORM/first`, `FORM/last`, pictures as NHWC; of diffusers also `context` and `added`, what
text_proj puts out, and `enlarged`, a small picture at four times the size; `configs`, folder -> config.json.

    python tests/golden/karlo.py --load FOLDER

Loads the folders of a decoder and an upsampler that `mmjax convert export --to hf` wrote there.
"""

import json
import sys
from pathlib import Path

import numpy as np
import reference
import torch
from unets import fill, image, nhwc
from weights import normal

TIMES = np.array([3.0, 977.0])
SIDE, WORDS, WIDTH, CONTEXT, TOKENS = 16, 5, 10, 12, 3
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
SIZES = {"sample_size": SIDE, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
DECODER = {
    **{"down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), "mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
    **{"up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), "resnet_time_scale_shift": "scale_shift"},
    **{"attention_head_dim": 8, "class_embed_type": "identity", "in_channels": 3, "out_channels": 6, "cross_attention_dim": CONTEXT},
}
SUPER = {
    **{"down_block_types": ("ResnetDownsampleBlock2D",) * 2, "up_block_types": ("ResnetUpsampleBlock2D",) * 2, "add_attention": False},
    **{"downsample_type": "resnet", "upsample_type": "resnet", "in_channels": 6, "out_channels": 3},
}
PROJECTION = {"clip_extra_context_tokens": TOKENS, "clip_embeddings_dim": WIDTH, "time_embed_dim": 64, "cross_attention_dim": CONTEXT}
ORIGINAL = {"model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2), "resblock_updown": True}


def array(name: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(normal(name, shape)).double()


def inputs() -> dict[str, torch.Tensor]:
    """Of the decoder: the picture's embedding, the caption's, its words."""
    return {"image": array("embedding", 2, WIDTH), "text": array("text", 2, WIDTH), "words": array("words", 2, WORDS, WIDTH)}


def networks() -> dict[str, torch.nn.Module]:
    from diffusers import UNet2DConditionModel, UNet2DModel
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    return {
        "decoder": UNet2DConditionModel(**SIZES, **DECODER),
        "text_proj": UnCLIPTextProjModel(**PROJECTION),
        "super_res_first": UNet2DModel(**SIZES, **SUPER),
        "super_res_last": UNet2DModel(**SIZES, **SUPER),
    }


@torch.no_grad()
def named(prefix: str, model: torch.nn.Module, shapes: dict) -> torch.nn.Module:
    """Filled by names that begin with the prefix, which are added to `shapes`."""
    outer = torch.nn.Module()
    outer.add_module(prefix, model.double())
    shapes |= fill(outer)
    return model


@torch.no_grad()
def diffusers_models(out: dict, shapes: dict) -> dict:
    models, given, times = networks(), inputs(), torch.from_numpy(TIMES)
    shapes["diffusers_decoder"], shapes["diffusers_upsampler"] = {}, {}
    for name, model in models.items():
        named(name, model, shapes["diffusers_upsampler" if name.startswith("super") else "diffusers_decoder"])
    context, added = models["text_proj"](
        image_embeddings=given["image"],
        prompt_embeds=given["text"],
        text_encoder_hidden_states=given["words"],
        do_classifier_free_guidance=False,
    )
    mask = torch.nn.functional.pad(torch.from_numpy(MASK), (TOKENS, 0), value=True)
    decoded = models["decoder"](image("x", 3), times, context, class_labels=added, attention_mask=mask).sample
    out |= {"diffusers/context": reference.numpy(context), "diffusers/added": reference.numpy(added), "diffusers/decoder": nhwc(decoded)}
    for name in ("first", "last"):
        x = torch.cat([image("x", 3), image("low", 3)], dim=1)
        out[f"diffusers/{name}"] = nhwc(models[f"super_res_{name}"](x, times).sample)
    small = image("small", 3, 4)
    out["enlarged"] = nhwc(torch.nn.functional.interpolate(small, size=[SIDE] * 2, mode="bicubic", align_corners=False, antialias=True))
    return {name: json.loads(model.to_json_string()) for name, model in models.items()}


@torch.no_grad()
def original_models(folder: str, out: dict, shapes: dict) -> None:
    sys.path.insert(0, folder)
    from karlo.modules.unet import PLMImUNet, SuperResUNetModel

    given, times = inputs(), torch.from_numpy(TIMES)
    decoder = PLMImUNet(
        **{"text_ctx": WORDS, "xf_width": CONTEXT, "in_channels": 3, "out_channels": 6, "attention_resolutions": (2,), "clip_dim": WIDTH},
        **{"clip_emb_mult": TOKENS, "clip_emb_drop": 0.1, "use_scale_shift_norm": True, "num_head_channels": 16, **ORIGINAL},
    )
    shapes["original_decoder"], shapes["original_upsampler"] = {}, {}
    named("model", decoder, shapes["original_decoder"]).float()
    single = {name: x.float() for name, x in given.items()}
    told = {"txt_feat": single["text"], "txt_feat_seq": single["words"], "mask": torch.from_numpy(MASK), "y": single["image"]}
    out["original/decoder"] = nhwc(decoder(image("x", 3).float(), times.float(), **told))
    plain = {"in_channels": 3, "out_channels": 3, "attention_resolutions": (), "use_middle_attention": False, **ORIGINAL}
    for name, prefix in (("first", "model_first_steps"), ("last", "model_last_step")):
        model = named(prefix, SuperResUNetModel(**plain), shapes["original_upsampler"]).float()
        out[f"original/{name}"] = nhwc(model(image("x", 3).float(), times.float(), low_res=image("low", 3).float()))


def main(karlo: str) -> None:
    out, shapes = {}, {}
    configs = diffusers_models(out, shapes)
    original_models(karlo, out, shapes)
    out["configs"] = np.array(json.dumps({k: {n: v for n, v in c.items() if n != "_name_or_path"} for k, c in configs.items()}))
    print({name: float(np.abs(x).max()) for name, x in out.items() if name != "configs"})
    reference.save(__file__, out, shapes, ("diffusers",))


def load(folder: Path) -> None:
    """Every folder loads in diffusers, each with all of its tensors."""
    for name, model in networks().items():
        loaded, report = type(model).from_pretrained(folder / name, output_loading_info=True)
        assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), (name, report)
        plain = lambda config: {k: list(v) if isinstance(v, tuple) else v for k, v in dict(config).items() if not k.startswith("_")}
        mine, theirs = plain(loaded.config), plain(model.config)
        print(name, "loads; settings written otherwise:", {k: (theirs[k], mine[k]) for k in theirs if theirs[k] != mine[k]})


if __name__ == "__main__":
    torch.set_num_threads(1)
    load(Path(sys.argv[2])) if sys.argv[1] == "--load" else main(str(Path(sys.argv[1]).resolve()))
