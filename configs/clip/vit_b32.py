"""CLIP ViT-B/32 as published: Radford et al. 2021, section 2.5 and tables 18 to 20. 151,277,313 parameters.

    mmjax info --config configs/clip/vit_b32.py --devices 64
    mmjax train --config configs/clip/vit_b32.py --workdir runs/b32 data.source=SOURCE data.dir=DIR

The paper trained it on 400 M pairs for 32 epochs; zero-shot ImageNet accuracy of the released weights: 63.2 %.
Pairs come from a source of your own, named on the command line; `:ViT-B/16`, `:ViT-L/14` and `:ViT-L/14@336` give the other sizes.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest
from mmjax.models.clip import VARIANTS

LR = {"ViT-B/32": 5e-4, "ViT-B/16": 5e-4, "ViT-L/14": 4e-4, "ViT-L/14@336": 2e-5}
PAIRS = 400_000_000


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: a key of LR, default ViT-B/32."""
    name = arg or "ViT-B/32"
    if name not in LR:
        raise UserError(f"config argument {name!r}{suggest(name, LR)}")
    c = base()
    c.task = "clip"
    c.batch_size = 32768
    c.steps = 32 * PAIRS // c.batch_size
    c.dtype = "bfloat16"
    c.model = ConfigDict({**VARIANTS[name], "channels": 3})
    for tower in (c.model.image, c.model.text):
        tower.scan, tower.remat = True, "full"

    size, length = c.model.size, c.model.text.length
    c.data.transforms = (
        ("decode", {"channels": 3}),
        ("resize", {"size": size, "short_side": True}),
        ("random_crop", {"size": size, "padding": 0}),  # the paper's only augmentation
        ("normalize", {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}),
        ("pick_caption", {}),
        ("tokenize", {"length": length}),
        ("keep", {"keys": ("image", "tokens")}),
    )
    c.data.workers = 8

    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.98, "eps": 1e-6})
    c.optim.lr = LR[name]
    c.optim.warmup = 2000
    c.optim.weight_decay = 0.2
    c.optim.wd_rules = ((".*(scale|bias)", 0.0), (".*", 1.0))  # all weights that are not gains or biases
    c.log.every = 50
    c.checkpoint.every = 5000
    if name == "ViT-L/14@336":  # one more epoch of ViT-L/14 at higher resolution
        c.steps = PAIRS // c.batch_size
        c.optim.warmup = 0
    return c
