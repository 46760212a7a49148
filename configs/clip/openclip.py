"""CLIP at OpenCLIP's largest sizes on LAION-2B (Cherti et al. 2023): ViT-H/14, and ViT-bigG/14 with `:ViT-bigG/14`.

    mmjax info --config configs/clip/openclip.py --devices 256
    mmjax train --config configs/clip/openclip.py --workdir runs/h14 data.source=SOURCE data.path=FILES data.tokenizer=FILE

Zero-shot ImageNet accuracy of the released weights, 80 prompts: ViT-H/14 78.0 %, ViT-bigG/14 80.1 %. As published: batch (79 k, 160 k) and
examples seen (32 B, 39 B); the crop; and of bigG the peak rate, b2, warm-up and dropped patches. H/14's rate, b2 and warm-up are CLIP's for
its ViTs, for want of a source. Pairs come from a source of your own. `+imagenet` as in configs/clip/vit_b32.py.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest
from mmjax.evals import imagenet
from mmjax.models.clip import VARIANTS

# batch, examples seen, peak rate, b2, warm-up, share of patches dropped
RECIPES = {
    "ViT-H/14": (79_104, 32_000_000_000, 5e-4, 0.98, 2_000, 0.0),
    "ViT-bigG/14": (160_000, 39_000_000_000, 2e-3, 0.95, 10_000, 0.5),
}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: a key of RECIPES, default ViT-H/14, with or without "+imagenet"."""
    name, _, also = (arg or "ViT-H/14").partition("+")
    if name not in RECIPES or also not in ("", "imagenet"):
        raise UserError(f"config argument {name!r}{suggest(name, RECIPES)}")
    batch, examples, rate, b2, warmup, dropped = RECIPES[name]
    c = base()
    c.task = "clip"
    c.batch_size = batch
    c.steps = examples // batch
    c.dtype = "bfloat16"
    c.model = ConfigDict({**VARIANTS[name], "channels": 3, "form": "ring"})
    c.model.image.patch_dropout = dropped
    for tower in (c.model.image, c.model.text):
        tower.scan, tower.remat = True, "full"

    size, length = c.model.size, c.model.text.length
    c.data.transforms = (
        ("decode", {"channels": 3}),
        ("random_resized_crop", {"size": size, "scale": (0.9, 1.0)}),
        ("normalize", {"mean": MEAN, "std": STD}),
        ("pick_caption", {}),
        ("tokenize", {"length": length}),
        ("keep", {"keys": ("image", "tokens")}),
    )
    c.data.workers = 8

    c.optim.args = ConfigDict({"b1": 0.9, "b2": b2, "eps": 1e-6})
    c.optim.lr = rate
    c.optim.warmup = warmup
    c.optim.weight_decay = 0.2
    c.optim.wd_rules = ((".*(scale|bias)", 0.0), (".*", 1.0))
    c.log.every = 50
    c.checkpoint.every = 5000
    if also:
        c.evals.update(imagenet.groups(size, length, MEAN, STD, every=5000))
    return c
