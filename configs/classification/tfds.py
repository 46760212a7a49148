"""A vision transformer on mnist, cifar10, cifar100 or imagenet2012, prepared by TFDS as array_record.

    mmjax train --config configs/classification/tfds.py:cifar10 --workdir runs/cifar10 data.dir=DIR
    mmjax eval --workdir runs/cifar10 --split test

DIR is TFDS's data_dir: it holds cifar10/<version>. `tfds build cifar10 --file_format=array_record --data_dir=DIR` prepares it (that
needs TensorFlow; training does not); a TFRecord folder is converted once with the command that the error message names. Without an
argument it is mnist. The last part of the training split selects the best checkpoint; the test split (imagenet2012: validation) nothing.

No run on these sets has been made with it yet, so no score is stated. imagenet2012 follows L. Beyer et al. 2022, "Better plain ViT
baselines for ImageNet-1k" (ViT-S/16, 90 epochs, 76.5 %), without its RandAugment and MixUp, so expect less.
"""

import dataclasses

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest
from mmjax.models.vit import VARIANTS


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What differs from set to set. `train` and `held_out` are parts of TFDS's training split of `examples` records."""

    classes: int
    examples: int
    held_out: str
    size: int
    patch: int
    vit: dict
    channels: int
    mean: tuple
    std: tuple
    epochs: int
    batch_size: int
    flip: bool


_CIFAR = {"size": 32, "patch": 4, "vit": VARIANTS["Ti"], "channels": 3, "epochs": 200, "batch_size": 512, "flip": True}
RECIPES = {
    "mnist": Recipe(
        10, 60_000, "90%", 28, 4, {"width": 96, "depth": 6, "heads": 4, "mlp": 384}, 1, (0.1307,), (0.3081,), 20, 256, flip=False
    ),
    "cifar10": Recipe(10, 50_000, "90%", mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616), **_CIFAR),
    "cifar100": Recipe(100, 50_000, "90%", mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762), **_CIFAR),
    "imagenet2012": Recipe(1000, 1_281_167, "99%", 224, 16, VARIANTS["S"], 3, (0.5,) * 3, (0.5,) * 3, 90, 1024, flip=True),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: a key of RECIPES; default mnist."""
    name = arg or "mnist"
    if name not in RECIPES:
        raise UserError(f"config argument {name!r}{suggest(name, RECIPES)}")
    r = RECIPES[name]
    large = r.size > 32
    c = base()
    c.task = "classification"
    c.batch_size = r.batch_size
    kept = r.examples * int(r.held_out.rstrip("%")) // 100
    c.steps = r.epochs * kept // r.batch_size
    shape = {"patch": r.patch, "classes": r.classes, "dropout": 0.0 if large else 0.1, "pool": "gap", "posemb": "sincos2d"}
    vit = {**r.vit, **shape, "scan": True, "remat": "full" if large else "none"}
    c.model = ConfigDict({"size": r.size, "channels": r.channels, "smoothing": 0.0 if large else 0.1, "vit": vit})
    if large:
        c.dtype = "bfloat16"

    decode = ("decode", {"channels": r.channels})
    finish = (("normalize", {"mean": r.mean, "std": r.std}), ("keep", {"keys": ("image", "label")}))
    if large:
        augment = (("random_resized_crop", {"size": r.size, "scale": (0.05, 1.0)}),)
        shown = (("resize", {"size": 256, "short_side": True}), ("center_crop", {"size": r.size}))
    else:
        augment, shown = (("random_crop", {"size": r.size, "padding": r.size // 8}),), ()
    c.data.source, c.data.path = "tfds", name
    c.data.split = f"train[:{r.held_out}]"
    c.data.transforms = (decode, *augment, *((("flip", {}),) if r.flip else ()), *finish)
    c.data.workers = 8 if large else 0

    c.optim.lr = 1e-3
    c.optim.warmup = 10_000 if large else c.steps // 20
    c.optim.weight_decay = 0.1
    c.optim.wd_rules = ((".*(scale|bias)", 0.0), (".*", 1.0))
    c.optim.clip_norm = 1.0
    c.log.every = 50
    c.checkpoint.every = 1000
    c.checkpoint.best = "held_out/accuracy"
    c.evals.held_out = ConfigDict(
        {
            "type": "classification",
            "every": 1000,
            "split": f"train[{r.held_out}:]",
            "batch_size": r.batch_size,
            "transforms": (decode, *shown, *finish),
        }
    )
    return c
