"""The small chain of unCLIP on scenes, stage by stage: a prior, a decoder of 16 pixels, an upsampler to 32, beside the CLIP of clip.py.

    bash launch/quickstart.sh runs/unclip                            all of it, in the order of docs/unclip.md
    mmjax train --config configs/unclip/chain.py:decoder --workdir runs/unclip/decoder data.path=runs/unclip/pairs

Arguments, each with `data.path`, the set that `mmjax cache` made with that CLIP: `prior`, by diffusion; `ar_prior`; `decoder`;
`upsampler`, 16 to 32 pixels. Behind a second colon `objects` is the chain of 64 pixels (decoder 16, upsamplers to 32, and to 64 with
`upsampler64`), `smoke` takes seconds. Two cores train the default within the minutes that docs/unclip.md tells.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest

STAGES = ("prior", "ar_prior", "decoder", "upsampler", "upsampler64")
SETS = ("clear", "objects", "smoke")
VOCAB, LENGTH = 1024, 24  # as the CLIP's
WIDTHS = {"clear": 128, "objects": 128, "smoke": 16}  # of its embeddings
PIXELS = {"clear": 32, "objects": 64, "smoke": 32}  # of the set's pictures
SMALL = 16  # pixels of the decoder
COSINE = {"name": "discrete", "betas": "cosine", "steps": 1000}
# Steps with set clear, steps with objects, examples a step, rate.
STEPS = {
    "prior": (500, 2000, 256, 1e-3),
    "ar_prior": (500, 2000, 256, 1e-3),
    "decoder": (1000, 6000, 64, 1.5e-3),
    "upsampler": (300, 1000, 64, 1.5e-3),
    "upsampler64": (200, 1000, 64, 1.5e-3),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: STAGE or STAGE:SET, of STAGES and SETS; default decoder:clear."""
    stage, _, which = (arg or "decoder").partition(":")
    which = which or "clear"
    if stage not in STAGES or which not in SETS:
        wrong, known = (stage, STAGES) if stage not in STAGES else (which, SETS)
        raise UserError(f"config argument {wrong!r}{suggest(wrong, known)}")
    small = which == "smoke"
    c = base()
    c.task = {"prior": "diffusion_prior", "ar_prior": "ar_prior"}.get(stage, "diffusion")
    clear, objects, batch, lr = STEPS[stage]
    c.steps, c.batch_size = (4, 16) if small else (objects if which == "objects" else clear, batch)
    c.model = ConfigDict({"prior": prior, "ar_prior": ar_prior, "decoder": decoder}.get(stage, upsampler)(which, stage))
    c.data.source = "cached"
    c.data.transforms = transforms(stage, which)
    c.optim.lr = lr
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.99})
    c.optim.warmup = min(100, c.steps // 2)
    c.optim.clip_norm = 1.0
    c.ema.ema = 0.5 if small else 0.99
    c.log.every = 1 if small else 25
    c.checkpoint.every = 2 if small else 100
    return c


def transforms(stage: str, which: str) -> tuple:
    """Of a record of the cached set to what the stage is trained on."""
    size = {"decoder": SMALL, "upsampler": 2 * SMALL, "upsampler64": 4 * SMALL}.get(stage)
    picture = (("decode", {"channels": 3}), ("resize", {"size": size}), ("normalize", {"mean": 0.5, "std": 0.5}))
    if stage.startswith("upsampler"):
        crop = (("random_crop", {"size": size // 2}),)
        return (picture[0], *((picture[1],) if size < PIXELS[which] else ()), *crop, picture[2], ("keep", {"keys": ("image",)}))
    if stage == "decoder":
        return (*picture, ("pick_row", {"keys": ("tokens",)}), ("keep", {"keys": ("image", "embedding", "tokens")}))
    return (("pick_row", {"keys": ("text_embedding",)}), ("keep", {"keys": ("embedding", "text_embedding")}))


def prior(which: str, stage: str) -> dict:
    """Config `model`. The caption speaks through its embedding alone, which makes the transformer's row four places long."""
    width, small = WIDTHS[which], which == "smoke"
    network = {"embedding": width, "width": 16 if small else 128, "depth": 1 if small else 4, "heads": 2 if small else 4}
    return {
        "prior": network,
        "path": COSINE,
        "prediction": "x0",
        "scale": width**0.5,  # unit embeddings: a mean square of 1
        "sampler": {"solver": "ddim", "steps": 4 if small else 20, "guidance": 1.5},
    }


def ar_prior(which: str, stage: str) -> dict:
    """Config `model`."""
    width, small = WIDTHS[which], which == "smoke"
    network = {"codes": 4 if small else 48, "buckets": 64, "dots": 16}
    network |= {"width": 16 if small else 128, "depth": 1 if small else 4, "heads": 2 if small else 4}
    return {"width": width, "prior": network, "fit_examples": 64 if small else 20_000}


def decoder(which: str, stage: str) -> dict:
    """Config `model`: a U-Net that is told the picture's embedding, and the caption by a small text tower of its own."""
    small = which == "smoke"
    width = 8 if small else 32
    text = {"vocab": VOCAB, "length": LENGTH, "width": 2 * width, "depth": 1, "heads": 2, "mlp": 4 * width}
    return {
        "size": SMALL,
        "channels": 3,
        "network": {**_unet(width, (1, 2), (0, 1)), "kind": "added", "head_width": width},
        "path": COSINE,
        "prediction": "v",
        "text": text,
        "context_dropout": 0.5,
        "embedding": {"width": WIDTHS[which], "tokens": 2, "dropout": 0.1, "unit": True},
        "sampler": {"solver": "ddim", "steps": 4 if small else 25, "guidance": 2.0, "clip": "static"},
    }


def upsampler(which: str, stage: str) -> dict:
    """Config `model`: no attention, trained on quarters of pictures (half a side) and blurred conditions, drawn in few steps."""
    size = 4 * SMALL if stage == "upsampler64" else 2 * SMALL
    small = which == "smoke"
    return {
        "size": size,
        "channels": 3,
        "network": {**_unet(8 if small else 24, (1, 2), (0, 0)), "mid_attention": 0, "low_res": 3},
        "path": COSINE,
        "prediction": "v",
        "low_resolution": {"size": size // 2, "degradation": "blur", "sigma": (0.0, 0.8), "crop": 0.5},
        "sampler": {"solver": "ddim", "steps": 3 if small else 8, "clip": "static"},
    }


def _unet(width: int, mults: tuple[int, ...], attention: tuple[int, ...]) -> dict:
    channels = tuple(width * m for m in mults)
    return {"type": "unet", "channels": channels, "blocks": 1, "attention": attention, "groups": 8, "scale_shift": True}
