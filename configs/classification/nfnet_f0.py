"""NFNet-F0 on ImageNet (Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without Normalization"), 360 epochs.

    mmjax train --config configs/classification/nfnet_f0.py --workdir runs/nfnet_f0 data.dir=DIR
    mmjax eval --workdir runs/nfnet_f0 --split validation
    mmjax train --config configs/classification/nfnet_f0.py:small --workdir runs/nfnet_digits

DIR is TFDS's data_dir with imagenet2012 as array_record (see configs/classification/tfds.py). Batch 4096 at 192 pixels, tested at 256;
SGD with Nesterov momentum and adaptive gradient clipping. The paper's score is 83.6 % top-1. No run at full size has been made with
this code, so neither hardware nor time is known. The paper also uses RandAugment, CutMix and MixUp, which are not here: expect less.

`:small` is a narrow one on scanned digits with nearly the same recipe: a minute of CPU time, 98.1 % on the test split.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError
from mmjax.models.nfnet import SIZES, VARIANTS

TRAIN = 1_281_167
HELD_OUT = "99%"  # the last part of the training split selects the best checkpoint


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: None, or "small" for a narrow network on digits."""
    if arg not in (None, "small"):
        raise UserError(f"config argument {arg!r}; expected none, or small")
    c = base()
    c.task = "classification"
    _recipe(c)
    (_small if arg else _imagenet)(c)
    return c


def _recipe(c: ConfigDict) -> None:
    """What both have: section 4.1 and appendix A of the paper, and its code."""
    c.optim.name = "sgd"
    c.optim.args = ConfigDict({"momentum": 0.9, "nesterov": True})
    c.optim.agc = 0.01
    c.optim.agc_rules = (("head/.*", False), (".*", True))
    # The authors add 2e-5 x weight to the gradient, where momentum makes ten times as much of it; here decay does not pass through it.
    c.optim.weight_decay = 2e-4
    c.optim.wd_rules = ((".*(gain|bias)", 0.0), (".*", 1.0))


def _imagenet(c: ConfigDict) -> None:
    size, test_size = SIZES["F0"]
    c.batch_size = 4096
    epoch = TRAIN * int(HELD_OUT.rstrip("%")) // 100 / c.batch_size
    c.steps = int(360 * epoch)
    c.dtype = "bfloat16"
    c.model = ConfigDict({"size": size, "channels": 3, "smoothing": 0.1, "nfnet": {**VARIANTS["F0"], "classes": 1000, "remat": "none"}})
    c.optim.lr = 0.1 * c.batch_size / 256
    c.optim.warmup = int(5 * epoch)
    # The paper's 0.99999 would, from the first step on, still hold a third of the initial weights at the end.
    c.ema.ema = 0.9999
    c.data.source, c.data.path = "tfds", "imagenet2012"
    c.data.split = f"train[:{HELD_OUT}]"
    c.data.workers = 8
    decode = ("decode", {"channels": 3})
    finish = (
        ("normalize", {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}),
        ("keep", {"keys": ("image", "label")}),
    )
    c.data.transforms = (decode, ("random_resized_crop", {"size": size}), ("flip", {}), *finish)
    shown = (decode, ("resize", {"size": test_size + 32, "short_side": True}), ("center_crop", {"size": test_size}), *finish)
    _held_out(c, f"train[{HELD_OUT}:]", 2000, shown)


def _small(c: ConfigDict) -> None:
    c.batch_size, c.steps = 64, 600
    nfnet = {"depths": (1, 1, 2, 1), "widths": (32, 64, 96, 96), "group": 16, "classes": 10, "dropout": 0.1, "stochastic_depth": 0.1}
    c.model = ConfigDict({"size": 16, "channels": 1, "smoothing": 0.1, "nfnet": nfnet})
    c.optim.lr = 0.1
    c.optim.warmup = 50
    # At 0, a branch's gain may move by 1e-5 of the learning rate a step: hundreds of thousands of steps bear that, hundreds do not.
    c.optim.agc_rules = (("head/.*|.*(first|blocks_.*)/gain", False), (".*", True))
    c.ema.ema = 0.99
    c.data.source = "digits_captions"
    decode, size = ("decode", {"channels": 1}), ("resize", {"size": 16})
    finish = (("normalize", {"mean": (0.3,), "std": (0.35,)}), ("keep", {"keys": ("image", "label")}))
    affine = ("random_affine", {"degrees": 12.0, "shift": 0.1, "scale": (0.85, 1.15)})
    c.data.transforms = (decode, size, affine, *finish)
    _held_out(c, "validation", 200, (decode, size, *finish))


def _held_out(c: ConfigDict, split: str, every: int, shown: tuple) -> None:
    c.log.every = 50
    c.checkpoint.every = every
    c.checkpoint.best = "held_out/accuracy"
    c.evals.held_out = ConfigDict({"type": "classification", "every": every, "split": split, "batch_size": 256, "transforms": shown})
