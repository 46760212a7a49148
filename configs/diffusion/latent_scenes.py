"""Text-conditional rectified flow in the latents of `scenes`.

    mmjax train --config configs/diffusion/autoencoder.py --workdir runs/scenes_ae
    mmjax cache --workdir runs/scenes_ae --predict encode --split train --keep captions --out caches/scenes_latents
    mmjax train --config configs/diffusion/latent_scenes.py --workdir runs/scenes_flow init_from.path=runs/scenes_ae \\
        model.latent.scale=SCALE
    mmjax sample --workdir runs/scenes_flow --prompt "a red circle" --prompt "a blue star" --num 16 --guidance 3 --out pictures

SCALE is 1 / `latent_std` of the autoencoder's evaluation, so that the flow sees latents of about unit variance. data.path is the cached
set, caches/scenes_latents if not given. The evaluation draws a picture for each stored prompt and an exact oracle reads it. The text tower
is trained along; with model.weights.text=CLIP it begins as that run's, and optim.freeze='("text/.*",)' leaves it there. Arguments:
`flow`, the default; `clear`, one or two things on a plain ground in the latents of autoencoder.py:few, on two cores, told by the text
tower of configs/unclip/clip.py:clear as it is (model.weights.text, runs/unclip/clip), judged by prompts of one and of two objects; `smoke`,
seconds, pictures encoded as they come by a first stage that knows nothing; `smoke_cached`, the same on cached latents.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest

KINDS = ("flow", "clear", "smoke", "smoke_cached")
VOCAB, LENGTH = 1024, 96  # of the tokenizer beside the set; every caption fits
# As configs/diffusion/autoencoder.py has them: `scenes`, `few`, `smoke`.
FIRST_STAGES = {
    "flow": {"latent": 4, "mults": (1, 2, 2), "width": 32, "blocks": 1, "groups": 8},
    "clear": {"latent": 4, "mults": (1, 2, 2), "width": 16, "blocks": 1, "groups": 1},
    "smoke": {"latent": 2, "mults": (1, 2), "width": 8, "blocks": 1, "groups": 4},
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: one of KINDS, default flow."""
    kind = arg or "flow"
    if kind not in KINDS:
        raise UserError(f"config argument {kind!r}{suggest(kind, KINDS)}")
    small, clear, cached = kind.startswith("smoke"), kind == "clear", kind != "smoke"
    length = 24 if clear else LENGTH
    c = base()
    c.task = "diffusion"
    c.steps, c.batch_size = (4, 16) if small else (5400, 64) if clear else (10_000, 128)
    c.model = model(kind.removesuffix("_cached"), length, cached)
    sizes = (64, 16) if small else (15_000, 500) if clear else (20_000, 1_000)
    scenes = {"config": "clear" if clear else "objects", "pixels": c.model.size, "train": sizes[0], "evaluation": sizes[1]}
    c.data.scenes = ConfigDict(scenes)
    words = (("pick_caption", {}), ("tokenize", {"length": length}))
    if clear:
        c.model.weights.text, c.optim.freeze = "runs/unclip/clip", ("text/.*",)
    if cached:
        c.data.source, c.data.path = "cached", "caches/scenes_latents"
        c.data.transforms = (("rename", {"keys": {"value": "latent"}}), *words, ("keep", {"keys": ("latent", "tokens")}))
    else:
        c.data.source = "scenes"
        look = (("decode", {"channels": 3}), ("normalize", {"mean": 0.5, "std": 0.5}))
        c.data.transforms = (*look, *words, ("keep", {"keys": ("image", "tokens")}))

    # Of the autoencoder's run only the autoencoder is taken, and of this one only that starts from it.
    c.init_from.rename = ((r"autoencoder/(.*)", r"first_stage/\1"),)
    c.init_from.skip = ("(discriminator|perceptual|network|text)/.*|log_scale",)

    c.optim.lr, c.optim.clip_norm = 3e-4 if kind == "flow" else 1e-3, 1.0
    c.optim.warmup = min(200 if clear else 300, c.steps // 2)
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.99})
    c.ema.ema = 0.5 if small else 0.995 if clear else 0.999
    c.log.every = 1 if small else 50
    c.checkpoint.every = 2 if small else 1000
    common = {
        "every": c.steps,
        "split": "validation",
        "batch_size": c.batch_size,
        "length": length,
        "seed": 0,
        "data": {"source": "scenes"},
    }
    if clear:
        c.evals.attributes = ConfigDict({"type": "attributes", "count": 200, **common})
    elif not small:  # a picture for each stored prompt, read by the oracle
        c.evals.generated = ConfigDict({"type": "generated", "prompts": "", "samples": 1, "workers": 0, "training": "", **common})
    return c


def model(kind: str, length: int, cached: bool) -> ConfigDict:
    """Config `model`. `kind`: of FIRST_STAGES."""
    small, clear, stage = kind == "smoke", kind == "clear", FIRST_STAGES[kind]
    widths = {"smoke": (16, 32), "clear": (32, 64), "flow": (96, 192)}[kind]
    width, depth, heads = {"smoke": (16, 1, 2), "clear": (64, 2, 2), "flow": (192, 4, 4)}[kind]
    network = {
        "type": "unet",
        "channels": widths,
        "blocks": 2 if kind == "flow" else 1,
        "attention": (1, 1) if kind == "flow" else (0, 1),
        "kind": "cross",
        "heads": 4,
        "in_channels": stage["latent"],
        "out_channels": stage["latent"],
        "groups": 8,
        "scale_shift": True,
        "vector": width,
    }
    return ConfigDict(
        {
            "size": 32 if small else 64,
            "channels": 3,
            "network": network,
            "path": {"name": "flow"},
            "prediction": "velocity",
            "density": {"name": "logit_normal"},
            "time_scale": 1000.0,
            "text": {"vocab": VOCAB, "length": length, "width": width, "depth": depth, "heads": heads, "mlp": 4 * width},
            "weights": {"text": ""},
            "latent": {"autoencoder": stage, "scale": 1.0, "cached": cached},
            "sampler": {"solver": "euler", "steps": 2 if small else 25 if clear else 50, "guidance": 3.0},
        }
    )
