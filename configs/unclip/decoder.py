"""unCLIP's decoder at 64 pixels as published (Ramesh et al. 2022, table 3; Karlo), and larger ones of the chain on scenes.

    mmjax cache --workdir CLIP --predict encode_image:embedding --keep image,captions --out PAIRS
    mmjax info --config configs/unclip/decoder.py:unclip --devices 64 mesh.fsdp=8
    mmjax train --config configs/unclip/decoder.py:unclip --workdir runs/decoder data.path=PAIRS

PAIRS is what `mmjax cache` made of images with the embeddings of CLIP, a run of task clip. Arguments:

    unclip      the paper's: 512 channels, depth 3, multiples 1, 2, 3, 4, attention at 32, 16 and 8 with heads of 64, dropout 0.1; a text
                encoder of 256 tokens, width 2048, 24 layers, 32 heads, trained along; T 1000 on the cosine schedule, 250 steps with a
                learned variance; Adam with b2 0.999 and eps 1e-8, batch 2048, 1.2e-4, 800K steps, EMA 0.9999. The embedding is left out
                10 % of the time, the caption 50 %, independently. 3,563,172,358 parameters, 2,238,164,486 of them the U-Net's; the paper
                says 3.5B. It does not tell the vocabulary: here CLIP's. FID on COCO 10.39 behind the diffusion prior, guided by 1.25
    karlo       Karlo's: 320 channels; the caption comes as CLIP's embedding and its features of every token, left out 30 % of the time.
                893,318,086 parameters, as many as the published ones. Its schedule of training is not published; here the paper's
    scenes32, scenes64   on scenes of up to six objects, for an accelerator; 16 pixels are in configs/unclip/chain.py

For `karlo` cache encode_image:embedding,encode_text:text_embedding,token_features:context,token_mask:mask with --keep image. For
scenes the set is runs/unclip/pairs of configs/unclip/clip.py:objects. No run at full size has been made with this code.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest

COSINE = {"name": "discrete", "betas": "cosine", "steps": 1000}
HYBRID = {"path": COSINE, "prediction": "eps", "variance": "learned_range", "loss": "hybrid"}
LEARNED = {"solver": "ddpm", "steps": 250, "spacing": "linspace", "clip": "static", "options": {"variance": "learned_range"}}
TEXT = {"vocab": 49_408, "length": 256, "width": 2048, "depth": 24, "heads": 32, "mlp": 8192, "causal": False}
VOCAB, LENGTH = 1024, 24  # of scenes' tokenizer, and its captions
KINDS = ("unclip", "karlo", "scenes32", "scenes64")


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: one of KINDS, default unclip."""
    kind = arg or "unclip"
    if kind not in KINDS:
        raise UserError(f"config argument {kind!r}{suggest(kind, KINDS)}")
    scenes = kind.startswith("scenes")
    c = base()
    c.task = "diffusion"
    c.dtype = "bfloat16"
    c.steps, c.batch_size = (40_000, 512) if scenes else (800_000, 2048)
    c.model = ConfigDict(
        {"channels": 3, **(_scenes(int(kind.removeprefix("scenes"))) if scenes else {"unclip": unclip, "karlo": karlo}[kind]())}
    )
    c.data.source = "cached"
    c.data.workers = 8
    c.data.transforms = transforms(kind, c.model.size)
    c.optim.lr = 4e-4 if scenes else 1.2e-4
    c.optim.schedule = "constant"
    c.optim.warmup = 500 if scenes else 0
    c.optim.clip_norm = 1.0
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.999, "eps": 1e-8})
    c.ema.ema = 0.999 if scenes else 0.9999
    c.log.every, c.checkpoint.every = 100, 5000
    return c


def transforms(kind: str, size: int) -> tuple:
    """Of a record of the cached set to what the decoder is trained on."""
    look = (("decode", {"channels": 3}), ("resize", {"size": size, "short_side": True}), ("center_crop", {"size": size}))
    look += (("normalize", {"mean": 0.5, "std": 0.5}),)
    words = {
        "unclip": (("pick_caption", {}), ("tokenize", {"length": TEXT["length"]})),
        "karlo": (),
    }.get(kind, (("pick_row", {"keys": ("tokens",)}),))
    caption = ("context", "mask", "text_embedding") if kind == "karlo" else ("tokens",)
    return (*look, *words, ("keep", {"keys": ("image", "embedding", *caption)}))


def unclip() -> dict:
    """Config `model` of the paper's, whose CLIP has embeddings of 1,024 numbers (section 2.2)."""
    return {
        "size": 64,
        "network": {"type": "unet", "variant": "unclip-64"},
        **HYBRID,
        "text": TEXT,
        "context_dropout": 0.5,
        "embedding": {"width": 1024, "dropout": 0.1, "pooled": True},
        "sampler": {**LEARNED, "guidance": 1.25},
    }


def karlo() -> dict:
    """Config `model` of Karlo's, over CLIP ViT-L/14."""
    return {
        "size": 64,
        "network": {"type": "unet", "variant": "karlo-64"},
        **HYBRID,
        "context": {"length": 77, "width": 768, "masked": True},
        "context_dropout": 0.3,
        "embedding": {"width": 768, "dropout": 0.1, "text": True, "project": True, "context_width": 1536},
        "sampler": {**LEARNED, "steps": 50, "guidance": 8.0},
    }


def _scenes(size: int) -> dict:
    network = {"type": "unet", "channels": (96, 192, 288) if size == 64 else (96, 192), "blocks": 2, "groups": 16, "scale_shift": True}
    network |= {"attention": (0, 1, 1)[-len(network["channels"]) :], "kind": "added", "head_width": 48, "resample": "residual"}
    return {
        "size": size,
        "network": network,
        "path": COSINE,
        "prediction": "v",
        "text": {"vocab": VOCAB, "length": LENGTH, "width": 192, "depth": 2, "heads": 4, "mlp": 768},
        "context_dropout": 0.5,
        "embedding": {"width": 128, "dropout": 0.1, "unit": True},
        "sampler": {"solver": "ddim", "steps": 50, "guidance": 2.0, "clip": "static"},
    }
