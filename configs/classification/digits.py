"""A small vision transformer that classifies scanned digits: the supervised counterpart of configs/clip/digits.py.

    mmjax train --config configs/classification/digits.py --workdir runs/digits_vit
    mmjax eval --workdir runs/digits_vit --split test

Time and score: docs/reproducing.md.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: None, or "smoke" for a tiny model that trains in seconds."""
    c = base()
    c.task = "classification"
    c.steps = 1500
    c.batch_size = 128
    vit = {
        "patch": 2,
        "width": 64,
        "depth": 4,
        "heads": 4,
        "mlp": 256,
        "classes": 10,
        "dropout": 0.1,
        "pool": "gap",
        "scan": True,
        "remat": "none",
    }
    if arg == "smoke":
        c.steps, c.batch_size = 4, 16
        vit.update(width=16, depth=2, heads=2, mlp=32)
    c.model = ConfigDict({"size": 8, "channels": 1, "smoothing": 0.1, "vit": vit})

    normalize = ("normalize", {"mean": (0.3,), "std": (0.35,)})
    keep = ("keep", {"keys": ("image", "label")})
    c.data.source = "digits_captions"
    c.data.transforms = (
        ("decode", {"channels": 1}),
        ("random_affine", {"degrees": 12.0, "shift": 0.1, "scale": (0.85, 1.15)}),
        normalize,
        keep,
    )

    c.optim.lr = 1e-3
    c.optim.warmup = min(100, c.steps // 2)
    c.optim.weight_decay = 0.1
    c.optim.wd_rules = ((".*(scale|bias)", 0.0), (".*", 1.0))
    c.optim.clip_norm = 1.0
    c.ema.ema = 0.995
    c.checkpoint.every = 250
    c.checkpoint.best = "validation/accuracy"
    shown = (("decode", {"channels": 1}), normalize, keep)
    c.evals.validation = ConfigDict({"type": "classification", "every": 250, "split": "validation", "batch_size": 128, "transforms": shown})
    if arg == "smoke":
        c.log.every, c.checkpoint.every, c.evals.validation.every = 1, 2, 2
    return c
