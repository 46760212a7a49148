"""Text-conditional rectified flow in the latents of `scenes`, its text tower trained along.

    mmjax train --config configs/diffusion/autoencoder.py --workdir runs/scenes_ae
    mmjax cache --workdir runs/scenes_ae --predict encode --split train --keep captions --out caches/scenes_latents
    mmjax train --config configs/diffusion/latent_scenes.py --workdir runs/scenes_flow init_from.path=runs/scenes_ae \\
        model.latent.scale=SCALE
    mmjax sample --workdir runs/scenes_flow --prompt "a red circle" --prompt "a blue star" --num 16 --guidance 3 --out pictures

SCALE is 1 / `latent_std` of the autoencoder's evaluation, so that the flow sees latents of about unit variance. data.path is the cached
set, caches/scenes_latents if not given. The evaluation draws a picture for each stored prompt and an exact oracle reads it. Arguments:
`flow`, the default; `smoke`, seconds, pictures encoded as they come by a first stage that knows nothing; `smoke_cached`, the same on
cached latents. No score is stated yet.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest

KINDS = ("flow", "smoke", "smoke_cached")
VOCAB, LENGTH = 1024, 96  # of the tokenizer beside the set; every caption fits
# As configs/diffusion/autoencoder.py has them: `scenes`, `smoke`.
FIRST_STAGE = {"latent": 4, "mults": (1, 2, 2), "width": 32, "blocks": 1, "groups": 8}
SMALL_STAGE = {"latent": 2, "mults": (1, 2), "width": 8, "blocks": 1, "groups": 4}
WORDS = (("pick_caption", {}), ("tokenize", {"length": LENGTH}))


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: one of KINDS, default flow."""
    kind = arg or "flow"
    if kind not in KINDS:
        raise UserError(f"config argument {kind!r}{suggest(kind, KINDS)}")
    small, cached = kind != "flow", kind != "smoke"
    c = base()
    c.task = "diffusion"
    c.steps, c.batch_size = (4, 16) if small else (10_000, 128)
    c.model = model(small, cached)
    scenes = {"config": "objects", "pixels": c.model.size}
    c.data.scenes = ConfigDict(scenes | ({"train": 64, "evaluation": 16} if small else {"train": 20_000, "evaluation": 1_000}))
    if cached:
        c.data.source, c.data.path = "cached", "caches/scenes_latents"
        c.data.transforms = (("rename", {"keys": {"value": "latent"}}), *WORDS, ("keep", {"keys": ("latent", "tokens")}))
    else:
        c.data.source = "scenes"
        look = (("decode", {"channels": 3}), ("normalize", {"mean": 0.5, "std": 0.5}))
        c.data.transforms = (*look, *WORDS, ("keep", {"keys": ("image", "tokens")}))

    # Of the autoencoder's run only the autoencoder is taken, and of this one only that starts from it.
    c.init_from.rename = ((r"autoencoder/(.*)", r"first_stage/\1"),)
    c.init_from.skip = ("(discriminator|perceptual|network|text)/.*|log_scale",)

    c.optim.lr, c.optim.clip_norm = 1e-3 if small else 3e-4, 1.0
    c.optim.warmup = min(300, c.steps // 2)
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.99})
    c.ema.ema = 0.5 if small else 0.999
    c.log.every = 1 if small else 50
    c.checkpoint.every = 2 if small else 1000
    if not small:
        c.evals.generated = ConfigDict(evaluation(c))
    return c


def evaluation(c: ConfigDict) -> dict:
    """A picture for each stored prompt, read by the oracle."""
    return {
        "type": "generated",
        "every": c.steps,
        "split": "validation",
        "batch_size": c.batch_size,
        "length": LENGTH,
        "prompts": "",
        "samples": 1,
        "seed": 0,
        "workers": 0,
        "training": "",
        "data": {"source": "scenes"},
    }


def model(small: bool, cached: bool) -> ConfigDict:
    """Config `model`."""
    stage = SMALL_STAGE if small else FIRST_STAGE
    widths = (16, 32) if small else (96, 192)
    network = {
        "type": "unet",
        "channels": widths,
        "blocks": 1 if small else 2,
        "attention": (0, 1) if small else (1, 1),
        "kind": "cross",
        "heads": 4,
        "in_channels": stage["latent"],
        "out_channels": stage["latent"],
        "groups": 8,
        "scale_shift": True,
    }
    tower = {"vocab": VOCAB, "length": LENGTH, "width": 16, "depth": 1, "heads": 2, "mlp": 32}
    return ConfigDict(
        {
            "size": 32 if small else 64,
            "channels": 3,
            "network": network,
            "path": {"name": "flow"},
            "prediction": "velocity",
            "density": {"name": "logit_normal"},
            "time_scale": 1000.0,
            "text": tower if small else {**tower, "width": 192, "depth": 4, "heads": 4, "mlp": 768},
            "latent": {"autoencoder": stage, "scale": 1.0, "cached": cached},
            "sampler": {"solver": "euler", "steps": 2 if small else 50, "guidance": 3.0},
        }
    )
