"""The CLIP of the small chain of unCLIP: a ResNet and a short text transformer, on scenes of one or two objects (or of up to six).

    mmjax train --config configs/unclip/clip.py --workdir runs/unclip/clip
    mmjax cache --workdir runs/unclip/clip --predict encode_image:embedding,encode_text:text_embedding --captions 3 --keep image,tokens \\
        --out runs/unclip/pairs

Arguments: `clear`, 32 pixels, the default; `objects`, 64 pixels and up to six objects, for the chain to 64; `smoke`, seconds. Captions are
short or ordinary, and detailed too where there is room. docs/unclip.md has the whole chain.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest

KINDS = {"clear": 32, "objects": 64, "smoke": 32}  # pixels
VOCAB, LENGTH = 1024, 24  # tokens; every short and nearly every ordinary caption fits
NORMALIZE = ("normalize", {"mean": 0.5, "std": 0.5})  # -1..1, as the decoder has its pictures


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: one of KINDS, default clear."""
    kind = arg or "clear"
    if kind not in KINDS:
        raise UserError(f"config argument {kind!r}{suggest(kind, KINDS)}")
    small, pixels = kind == "smoke", KINDS[kind]
    c = base()
    c.task = "clip"
    c.steps, c.batch_size = {"clear": (500, 256), "objects": (1500, 256), "smoke": (4, 16)}[kind]
    c.model = model(pixels, small)
    c.data.source = "scenes"
    c.data.scenes = ConfigDict({"config": "objects" if kind == "objects" else "clear", "pixels": pixels, **_counts(kind)})
    c.data.transforms = (
        ("decode", {"channels": 3}),
        NORMALIZE,  # neither crop nor flip: captions speak of places
        ("pick_caption", {}),
        ("tokenize", {"length": LENGTH}),
        ("keep", {"keys": ("image", "tokens")}),
    )
    c.optim.lr = 2e-3
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.98, "eps": 1e-6})
    c.optim.warmup = min(100, c.steps // 2)
    c.optim.weight_decay = 0.1
    c.optim.wd_rules = ((".*(scale|bias)", 0.0), (".*", 1.0))
    c.optim.clip_norm = 1.0
    c.ema.ema = 0.5 if small else 0.99

    c.log.every = 1 if small else 50
    c.checkpoint.every = 2 if small else 100
    shown = (("decode", {"channels": 3}), NORMALIZE, ("keep", {"keys": ("image",)}))
    common = {"every": c.steps, "split": "validation", "batch_size": c.batch_size, "length": LENGTH, "transforms": shown}
    c.evals.retrieval = ConfigDict({"type": "retrieval", "captions": "own", **common})
    for classes in ("colour", "shape"):  # of one thing, medium or large; `clean_accuracy` is zero-shot accuracy
        c.evals[classes] = ConfigDict({"type": "attacks", "classes": classes, "pixels": pixels, "count": 16 if small else 300, **common})
    return c


def _counts(kind: str) -> dict:
    return {"clear": {"train": 15_000, "evaluation": 500}, "objects": {"train": 50_000, "evaluation": 1_000}}.get(
        kind, {"train": 64, "evaluation": 16}
    )


def model(pixels: int, small: bool) -> ConfigDict:
    """Config `model`."""
    text = {"width": 16 if small else 64, "depth": 2, "heads": 2, "dropout": 0.0, "scan": True, "vocab": VOCAB, "length": LENGTH}
    text["mlp"] = 4 * text["width"]
    out = {"size": pixels, "channels": 3, "embed": 16 if small else 128, "text": text}
    if small:  # a transformer, which compiles in a fraction of the time
        tower = {
            "type": "vit",
            "patch": 8,
            "width": 16,
            "depth": 1,
            "heads": 2,
            "mlp": 32,
            "pre_norm": True,
            "patch_bias": False,
            "eps": 1e-5,
        }
        return ConfigDict({**out, "image": {**tower, "dropout": 0.0, "scan": True}})
    return ConfigDict({**out, "image": {"type": "resnet", "width": 16, "depths": (1, 1, 1, 1), "heads": 8}, "image_bias": True})
