"""CLIP on `scenes`, pictures of coloured shapes that are drawn as they are needed: what trains here in minutes, with a known truth.

    mmjax train --config configs/clip/scenes.py --workdir runs/scenes
    mmjax train --config configs/clip/scenes.py:siglip --workdir runs/scenes_siglip
    mmjax train --config configs/clip/scenes.py:lit --workdir runs/scenes_lit init_from.path=runs/scenes
    mmjax eval --workdir runs/scenes --split validation

Arguments: `resnet`, CLIP's ResNet, the default; `siglip`, the same towers with the sigmoid loss; `lit`, the image tower of another run,
locked, and a new text tower; `vit`, CLIP with a vision transformer; `smoke`, seconds. Captions are short, ordinary or detailed, one drawn
anew each time. Scores, and the command that compares the kinds: docs/reproducing.md.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest

KINDS = ("resnet", "siglip", "lit", "vit", "smoke")
VOCAB, LENGTH = 1024, 40  # of the tokenizer beside the set; of captions only half of the detailed ones are cut
PIXELS = 64
NORMALIZE = ("normalize", {"mean": 0.5, "std": 0.25})


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: one of KINDS, default resnet."""
    kind = arg or "resnet"
    if kind not in KINDS:
        raise UserError(f"config argument {kind!r}{suggest(kind, KINDS)}")
    small = kind == "smoke"
    c = base()
    c.task = "clip"
    c.steps, c.batch_size = (4, 16) if small else (1500, 256)
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

    c.optim.lr = 2e-3
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.98, "eps": 1e-6})
    c.optim.warmup = min(200, c.steps // 2)
    c.optim.weight_decay = 0.1
    c.optim.wd_rules = ((".*(scale|bias)", 0.0), (".*", 1.0))
    c.optim.clip_norm = 1.0
    c.ema.ema = 0.5 if small else 0.99
    if kind == "lit":  # the image tower of a run of kind resnet, and its projection
        c.init_from.skip = ("(text|text_proj)/.*", "logit_scale")

    c.log.every = 1 if small else 50
    c.checkpoint.every = 2 if small else 500
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
    text = {"width": 16 if small else 64, "depth": 2, "heads": 2, "dropout": 0.0, "scan": True}
    text |= {"vocab": VOCAB, "length": LENGTH, "mlp": 4 * text["width"]}
    out = {"size": PIXELS, "channels": 3, "embed": 16 if small else 128, "image": image(kind), "text": text}
    if out["image"]["type"] == "resnet":
        out["image_bias"] = True  # of attention pooling
    if kind == "siglip":
        out |= {"loss": "sigmoid", "temperature": 0.1, "bias": -10.0}
    if kind == "lit":
        out["lock"] = "image"
    return ConfigDict(out)


def image(kind: str) -> dict:
    """Config `model.image`."""
    if kind in ("vit", "smoke"):
        width, depth = (128, 6) if kind == "vit" else (16, 2)
        tower = {"type": "vit", "patch": 8, "pre_norm": True, "patch_bias": False, "eps": 1e-5, "dropout": 0.0, "scan": True}
        return {**tower, "width": width, "depth": depth, "heads": max(width // 32, 2), "mlp": 4 * width}
    return {"type": "resnet", "width": 16, "depths": (1, 1, 1, 1), "heads": 8}
