"""SigLIP (Zhai et al. 2023): pairs judged one by one, each by a sigmoid. B/16 at 224 pixels, and others with an argument.

    mmjax info --config configs/clip/siglip.py --devices 32
    mmjax train --config configs/clip/siglip.py --workdir runs/siglip data.source=SOURCE data.path=FILES data.tokenizer=FILE
    mmjax train --config configs/clip/siglip.py:SigLIP-So400m/14-384 ...

Arguments: `SigLIP-B/16-224`, `-256`, `-384`, `SigLIP-L/16-256`, `SigLIP-So400m/14-224`, `-384`. FILE is the tokenizer of 32,000 pieces.
Zero-shot ImageNet accuracy of the released weights, in % (paper; measured again by OpenCLIP's authors): B/16-224 76.2; 76.0,
So400m/14-224 -; 82.0, So400m/14-384 83.2; 83.1.

As published: 40 B examples in batches of 32 k, b2 0.95, the scale's logarithm starting at ln 10 and the bias at -10. Not as published:
AdamW, where the paper has ScalingViT's Adafactor with that b2. Rate, warm-up and weight decay are ours, for want of a source. Pairs come
from a source of your own. `+imagenet` as in configs/clip/vit_b32.py.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest
from mmjax.evals import imagenet
from mmjax.models.clip import VARIANTS

NAMES = tuple(name for name in VARIANTS if name.startswith("SigLIP-"))
EXAMPLES = 40_000_000_000
HALF = (0.5, 0.5, 0.5)


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: one of NAMES, default SigLIP-B/16-224, with or without "+imagenet"."""
    name, _, also = (arg or "SigLIP-B/16-224").partition("+")
    if name not in NAMES or also not in ("", "imagenet"):
        raise UserError(f"config argument {name!r}{suggest(name, NAMES)}")
    c = base()
    c.task = "clip"
    c.batch_size = 32768
    c.steps = EXAMPLES // c.batch_size
    c.dtype = "bfloat16"
    c.model = ConfigDict({**VARIANTS[name], "channels": 3, "loss": "sigmoid", "form": "ring"})
    for tower in (c.model.image, c.model.text):
        tower.scan, tower.remat = True, "full"

    size, length = c.model.size, c.model.text.length
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
