"""CLIP as published, ViT-B/32 if nothing else is asked for: Radford et al. 2021, section 2.5 and tables 18 to 20. 151,277,313 parameters.

    mmjax info --config configs/clip/vit_b32.py --devices 64
    mmjax train --config configs/clip/vit_b32.py --workdir runs/b32 data.source=SOURCE data.path=FILES data.tokenizer=FILE
    mmjax train --config configs/clip/vit_b32.py:RN50+imagenet ...  data.classes=FILE

The other models: `:ViT-B/16`, `:ViT-L/14`, `:ViT-L/14@336`, `:RN50`, `:RN101`, `:RN50x4`, `:RN50x16`, `:RN50x64`. `+imagenet` after
any adds zero-shot classification of ImageNet and its kin, prepared by TFDS below data.dir, with the words of file data.classes.

The paper trained on 400 M pairs for 32 epochs; pairs come from a source of your own. Zero-shot ImageNet accuracy of the released weights,
80 prompts, in % (paper; measured again by OpenCLIP's authors):

    ViT-B/32  63.2; 63.3    ViT-B/16  -; 68.3     ViT-L/14  -; 75.5     ViT-L/14@336  76.2; 76.6
    RN50      59.6; 59.8    RN101     -; 62.3     RN50x4    -; 66.3     RN50x16  -; 70.7     RN50x64  -; 73.9

MetaCLIP (Xu et al. 2023) is this recipe for its ViTs on curated pairs: `mmjax data curate` keeps at most 20,000 pairs a query of 400 M,
170,000 of 2.5 B, and `data.subset` names what it kept. On 400 M pairs: B/32 65.6 %, B/16 70.8 %, L/14 76.2 %.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest
from mmjax.evals import imagenet
from mmjax.models.clip import VARIANTS

LR = {"ViT-B/32": 5e-4, "ViT-B/16": 5e-4, "ViT-L/14": 4e-4, "ViT-L/14@336": 2e-5}
LR |= {"RN50": 5e-4, "RN101": 5e-4, "RN50x4": 5e-4, "RN50x16": 4e-4, "RN50x64": 3.6e-4}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PAIRS = 400_000_000


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: a key of LR, default ViT-B/32, with or without "+imagenet"."""
    name, _, also = (arg or "ViT-B/32").partition("+")
    if name not in LR or also not in ("", "imagenet"):
        raise UserError(f"config argument {name!r}{suggest(name, LR)}")
    c = base()
    c.task = "clip"
    c.batch_size = 32768
    c.steps = 32 * PAIRS // c.batch_size
    c.dtype = "bfloat16"
    c.model = ConfigDict({**VARIANTS[name], "channels": 3})
    convolutions = name.startswith("RN")
    for tower in (c.model.image, c.model.text):
        tower.remat = "full"
        tower.scan = not (convolutions and tower is c.model.image)  # see models/resnet.py

    size, length = c.model.size, c.model.text.length
    c.data.transforms = (
        ("decode", {"channels": 3}),
        ("resize", {"size": size, "short_side": True}),
        ("random_crop", {"size": size, "padding": 0}),  # the paper's only augmentation
        ("normalize", {"mean": MEAN, "std": STD}),
        ("pick_caption", {}),
        ("tokenize", {"length": length}),
        ("keep", {"keys": ("image", "tokens")}),
    )
    c.data.workers = 8

    second = {"b2": 0.999, "eps": 1e-8} if convolutions else {"b2": 0.98, "eps": 1e-6}
    c.optim.args = ConfigDict({"b1": 0.9, **second})
    c.optim.lr = LR[name]
    c.optim.warmup = 2000
    c.optim.weight_decay = 0.2
    c.optim.wd_rules = ((".*(scale|bias)", 0.0), (".*", 1.0))  # all weights that are not gains or biases
    c.log.every = 50
    c.checkpoint.every = 5000
    if name == "ViT-L/14@336":  # one more epoch of ViT-L/14 at higher resolution
        c.steps = PAIRS // c.batch_size
        c.optim.warmup = 0
    if also:
        c.evals.update(imagenet.groups(size, length, MEAN, STD, every=5000))
    return c
