"""CLIP on `scenes`, pictures of coloured shapes that are drawn as they are needed: what trains here in minutes, with a known truth.

    mmjax train --config configs/clip/scenes.py --workdir runs/scenes
    mmjax train --config configs/clip/scenes.py:siglip --workdir runs/scenes_siglip
    mmjax train --config configs/clip/scenes.py:lit --workdir runs/scenes_lit init_from.path=runs/scenes
    mmjax eval --workdir runs/scenes --split validation

Arguments: `vit`, the default; `resnet`, CLIP's ResNet; `siglip`, the ViT with the sigmoid loss; `lit`, the ViT of another run, locked,
and a new text tower; `smoke`, seconds. Captions are short, ordinary or detailed, one drawn anew each time. No score is stated: no run
of the length set here has been made.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest

KINDS = ("vit", "resnet", "siglip", "lit", "smoke")
VOCAB, LENGTH = 1024, 40  # of the tokenizer beside the set; of captions only half of the detailed ones are cut
PIXELS = 32
NORMALIZE = ("normalize", {"mean": 0.5, "std": 0.25})


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: one of KINDS, default vit."""
    kind = arg or "vit"
    if kind not in KINDS:
        raise UserError(f"config argument {kind!r}{suggest(kind, KINDS)}")
    small = kind == "smoke"
    c = base()
    c.task = "clip"
    c.steps, c.batch_size = (4, 16) if small else (6000, 256)
    c.model = model(kind, small)

    c.data.source = "scenes"
    c.data.scenes = ConfigDict({"config": "objects", "pixels": PIXELS, "train": 64, "evaluation": 16} if small else SCENES)
    c.data.transforms = (
        ("decode", {"channels": 3}),
        NORMALIZE,  # neither crop nor flip: captions speak of places
        ("pick_caption", {}),
        ("tokenize", {"length": LENGTH}),
        ("keep", {"keys": ("image", "tokens")}),
    )

    c.optim.lr = 1e-3
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.98, "eps": 1e-6})
    c.optim.warmup = min(300, c.steps // 2)
    c.optim.weight_decay = 0.1
    c.optim.wd_rules = ((".*(scale|bias)", 0.0), (".*", 1.0))
    c.optim.clip_norm = 1.0
    c.ema.ema = 0.5 if small else 0.999
    if kind == "lit":  # the image tower of a run of kind vit, and its projection
        c.init_from.skip = ("(text|text_proj)/.*", "logit_scale")

    c.log.every = 1 if small else 50
    c.checkpoint.every = 2 if small else 1000
    c.checkpoint.best = "retrieval/text_to_image_r1"
    shown = (("decode", {"channels": 3}), NORMALIZE, ("keep", {"keys": ("image",)}))
    common = {"every": c.checkpoint.every, "batch_size": c.batch_size, "length": LENGTH, "transforms": shown}
    c.evals.retrieval = ConfigDict({"type": "retrieval", "split": "validation", "captions": "own", **common})
    for classes in ("colour", "shape"):  # of one thing, medium or large; `clean_accuracy` is zero-shot accuracy
        picture = {"classes": classes, "pixels": PIXELS, "count": 16 if small else 500}
        c.evals[classes] = ConfigDict({"type": "attacks", "split": "validation", **picture, **common})
    files = {"annotations": "", "images": ""}  # none: the records of the split
    c.evals.swaps = ConfigDict({"type": "winoground", "split": "swaps", **files, **common})
    c.evals.hard_negatives = ConfigDict({"type": "sugarcrepe", "split": "hard_negatives", **files, **common})
    return c


SCENES = {"config": "objects", "pixels": PIXELS, "train": 50_000, "evaluation": 1_000}


def model(kind: str, small: bool) -> ConfigDict:
    """Config `model`."""
    width, depth = (16, 2) if small else (192, 6)
    tower = {"width": width, "depth": depth, "heads": width // (8 if small else 32), "mlp": 4 * width, "dropout": 0.0, "scan": True}
    image = {"patch": 4, "pre_norm": True, "patch_bias": False, "eps": 1e-5, **tower}
    if kind == "resnet":
        image = {"type": "resnet", "width": 16, "depths": (2, 2, 2, 2), "heads": 8}
    out = {"size": PIXELS, "channels": 3, "embed": width, "image": image, "text": {"vocab": VOCAB, "length": LENGTH, **tower}}
    if kind == "resnet":
        out["image_bias"] = True
    if kind == "siglip":
        out |= {"loss": "sigmoid", "temperature": 0.1, "bias": -10.0}
    if kind == "lit":
        out["lock"] = "image"
    return ConfigDict(out)
