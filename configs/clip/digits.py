"""CLIP from scratch on 1,797 scanned handwritten digits, captioned in words; classified zero-shot with prompts it never saw.

    mmjax train --config configs/clip/digits.py --workdir runs/digits
    mmjax eval --workdir runs/digits --split test --report

Arguments: `words` and `language`, the objectives that CLIP's authors compare with contrast (section 2.3), on the same image tower; `smoke`,
seconds. Time and score: docs/reproducing.md.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest

KINDS = ("contrast", "words", "language", "smoke")
LENGTH = 16  # tokens; every caption and prompt fits


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: one of KINDS, default contrast."""
    kind = arg or "contrast"
    if kind not in KINDS:
        raise UserError(f"config argument {kind!r}{suggest(kind, KINDS)}")
    c = base()
    c.task = "clip"
    c.steps = 1000
    c.batch_size = 128

    tower = {"width": 64, "depth": 4, "heads": 4, "mlp": 256, "dropout": 0.0}
    if kind == "smoke":
        c.steps, c.batch_size = 4, 16
        tower = {"width": 16, "depth": 2, "heads": 2, "mlp": 32, "dropout": 0.1}
    c.model = ConfigDict(
        {
            "size": 8,
            "channels": 1,
            "embed": tower["width"],
            "image": {"patch": 2, "pre_norm": True, "patch_bias": False, "eps": 1e-5, "scan": True, "remat": "none", **tower},
            "text": {"vocab": 640, "length": LENGTH, "scan": True, "remat": "none", **tower, "depth": tower["depth"] // 2},
        }
    )

    if kind in ("words", "language"):
        predict_captions(c, kind)

    c.data.source = "digits_captions"
    c.data.transforms = (
        ("decode", {"channels": 1}),
        ("random_affine", {"degrees": 12.0, "shift": 0.1, "scale": (0.85, 1.15)}),
        ("normalize", {"mean": (0.3,), "std": (0.35,)}),
        ("pick_caption", {}),
        ("tokenize", {"length": LENGTH}),
        ("keep", {"keys": ("image", "tokens")}),
    )

    c.optim.lr = 2e-3
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.98, "eps": 1e-6})
    c.optim.warmup = min(100, c.steps // 2)
    c.optim.weight_decay = 0.1
    # As CLIP: decay on weights, none on gains and biases.
    c.optim.wd_rules = ((".*(scale|bias|cls)", 0.0), (".*", 1.0))
    c.optim.clip_norm = 1.0
    c.ema.ema = 0.995

    c.log.every = 10
    c.checkpoint.every = 250
    c.checkpoint.best = "zero_shot/accuracy"  # on the validation split; the test split selects nothing
    shown = (("decode", {"channels": 1}), ("normalize", {"mean": (0.3,), "std": (0.35,)}), ("keep", {"keys": ("image", "label")}))
    common = {"every": 250, "split": "validation", "batch_size": 128, "length": LENGTH, "transforms": shown}
    c.evals.zero_shot = ConfigDict({"type": "zero_shot" if c.task == "clip" else "prompt_scores", **common})
    if c.task == "clip":
        c.evals.retrieval = ConfigDict({"type": "retrieval", "captions": "prompts", **common})
    if kind == "smoke":
        c.log.every, c.checkpoint.every = 1, 2
        c.evals.zero_shot.every = c.evals.retrieval.every = 2
    return c


def predict_captions(c: ConfigDict, objective: str) -> None:
    """Makes the config one of task `caption_baselines`, its towers as they are."""
    c.task = "caption_baselines"
    text = c.model.text if objective == "language" else {k: c.model.text[k] for k in ("vocab", "length")}
    c.model = ConfigDict({"size": c.model.size, "channels": c.model.channels, "objective": objective, "image": c.model.image, "text": text})
