"""LiT (Zhai et al. 2022): a text tower learns to match an image tower that is trained already and locked.

    mmjax info --config configs/clip/lit.py --devices 32
    mmjax train --config configs/clip/lit.py --workdir runs/lit init_from.path=RUN data.source=SOURCE data.path=FILES data.tokenizer=FILE

RUN is the workdir of a classifier with this ViT (task `classification`); its head is left out. `:L/16`, the default, has a ViT-L/16 and a
text tower of the same size, `:B/16` and `:g/14` theirs. The paper's best, a ViT-g/14 on 4 B pairs of its own, has 85.2 % on ImageNet
zero-shot. As published: the lock, no projection of the image, the contrastive loss. Rate, batch and steps are ours, for want of a
source. Pairs come from a source of your own. `+imagenet` as in configs/clip/vit_b32.py.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest
from mmjax.evals import imagenet
from mmjax.models import vit

# image tower's size and patch, text tower's size
SIZES = {"B/16": ("B", 16, "B"), "L/16": ("L", 16, "L"), "g/14": ("g", 14, "L")}
EXAMPLES = 900_000_000
HALF = (0.5, 0.5, 0.5)


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: a key of SIZES, default L/16, with or without "+imagenet"."""
    name, _, also = (arg or "L/16").partition("+")
    if name not in SIZES or also not in ("", "imagenet"):
        raise UserError(f"config argument {name!r}{suggest(name, SIZES)}")
    image, patch, text = SIZES[name]
    size, length, how = 224, 64, {"scan": True, "remat": "full"}
    c = base()
    c.task = "clip"
    c.batch_size = 16384
    c.steps = EXAMPLES // c.batch_size
    c.dtype = "bfloat16"
    c.model = ConfigDict(
        {
            "size": size,
            "channels": 3,
            "embed": vit.VARIANTS[image]["width"],
            "image": {"patch": patch, **vit.VARIANTS[image], "scan": True},
            "text": {"vocab": 32_000, "length": length, **vit.VARIANTS[text], "causal": False, "pool": "last", **how},
            "project_image": False,
            "lock": "image",
            "form": "ring",
        }
    )
    # A classifier's parameters are those of the image tower.
    c.init_from.rename = ((r"(.*)", r"image/\1"),)
    c.init_from.skip = ("head/.*", "(text|text_proj)/.*", "logit_scale")

    c.data.transforms = (
        ("decode", {"channels": 3}),
        ("resize", {"size": size}),
        ("normalize", {"mean": HALF, "std": HALF}),
        ("pick_caption", {}),
        ("tokenize", {"length": length}),
        ("keep", {"keys": ("image", "tokens")}),
    )
    c.data.workers = 8

    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.95})
    c.optim.lr = 1e-3
    c.optim.warmup = 10_000
    c.optim.weight_decay = 1e-4
    c.optim.wd_rules = ((".*(scale|bias)", 0.0), (".*", 1.0))
    c.optim.clip_norm = 1.0
    c.log.every = 50
    c.checkpoint.every = 5000
    if also:
        c.evals.update(imagenet.groups(size, length, HALF, HALF, every=5000, squash=True))
    return c
