"""Flamingo on scenes: captions, questions, documents and videos of coloured shapes, and a language model that stays as it is.

    mmjax train --config configs/lm/scenes.py --workdir runs/lm
    mmjax train --config configs/flamingo/scenes.py:vision --workdir runs/vision
    mmjax train --config configs/flamingo/scenes.py --workdir runs/flamingo model.weights.lm=runs/lm model.weights.vision=runs/vision
    mmjax eval --workdir runs/flamingo --split validation

Arguments: `flamingo`, the default; `vision`, its vision tower, a small NFNet trained with a BERT by contrast; the paper's ablations
`ungated` (no tanh gates), `vanilla` (plain cross-attention within the language model's blocks), `previous` (text sees all images before
it), `mlp` (in place of the resampler), `unfrozen` (the language model learns too); `frame`, videos by one frame; `smoke`, seconds. A table
of all: tests/benchmarks/flamingo_scenes.py. The vision tower goes on learning here, as in no published recipe: what contrast taught it of
such small pictures does not say which thing has which colour.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest

KINDS = ("flamingo", "vision", "ungated", "vanilla", "previous", "mlp", "unfrozen", "frame", "smoke")
PIXELS, VOCAB = 64, 1024  # of the tokenizer beside the set
PICTURE = (("decode", {"channels": 3}), ("normalize", {"mean": 0.5, "std": 0.25}))  # neither crop nor flip: texts speak of places
SAID = {"prompt": "Output: "}
FPS, FRAMES = 2.0, 4  # of two seconds of video
VISION = {"type": "nfnet", "depths": (1, 1, 2, 1), "widths": (32, 64, 128, 128), "group": 16, "stochastic_depth": 0.0}
# configs/lm/scenes.py, for texts of twice the length: positions that are turned have no table
LM = {"vocab": VOCAB, "length": 512, "width": 128, "depth": 4, "heads": 4, "mlp": 512, "positions": "rope", "tied": True}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: one of KINDS, default flamingo."""
    kind = arg or "flamingo"
    if kind not in KINDS:
        raise UserError(f"config argument {kind!r}{suggest(kind, KINDS)}")
    if kind == "vision":
        return vision()
    small = kind == "smoke"
    c = base()
    c.task = "flamingo"
    frames = 1 if kind == "frame" else FRAMES
    streams = {
        "captions": {"batch": 16, "length": 64, "weight": 0.5},
        "qa": {"batch": 48, "length": 40},
        "documents": {"batch": 8, "length": 160, "images": 5, "p_next": 0.5},
        "video": {"batch": 8, "length": 40, "frames": frames},
    }
    if small:
        streams = {name: {**streams[name], "batch": 4, "length": 32, "images": 1} for name in ("qa", "documents")}
    c.steps, c.batch_size = 4 if small else 1500, sum(fields["batch"] for fields in streams.values())
    c.model = model(kind, small)
    c.model.streams = ConfigDict(streams)

    c.data.source = "scenes"
    row = lambda name, **more: {k: v for k, v in streams[name].items() if k in ("length", "images", "frames")} | more
    steps = lambda name, form, **more: (("interleave", {**row(name), "size": PIXELS, "picture": PICTURE, "form": form, **more}),)
    seen = FPS if frames > 1 else 0.5  # a frame a second or less of two is the first
    video = (
        tuple((1.0, {"transforms": steps("video", form, fps=seen, **how)}) for form, how in (("question", {}), ("pair", SAID)))
        if not small
        else ()
    )
    sources = {
        "captions": ("objects", 50_000, lambda: {"transforms": steps("captions", "pair", **SAID)}),
        "qa": ("qa", 50_000, lambda: {"transforms": steps("qa", "question")}),
        "documents": ("interleaved", 20_000, lambda: {"transforms": steps("documents", "document", labels="text")}),
        "video": ("video", 5_000, lambda: {"mixture": video}),
    }
    for name in streams:
        config, train, more = sources[name]
        c.data.streams[name] = ConfigDict({"scenes": scenes(config, train, small), **more()})

    c.optim.lr = 1e-3
    c.optim.warmup = min(200, c.steps // 2)
    c.optim.weight_decay = 0.1
    c.optim.wd_rules = ((".*(scale|bias|embedding|latents|gate_.*)", 0.0), ("resampler/.*", 0.0), (".*", 1.0))
    c.optim.clip_norm = 1.0
    c.ema.ema = 0.5 if small else 0.995
    c.log.every = 1 if small else 50
    c.checkpoint.every = 2 if small else 500
    evaluations(c, small)
    return c


def scenes(config: str, train: int, small: bool) -> dict:
    """A stream's `data.scenes`."""
    return {"config": config, "pixels": PIXELS, "train": 64 if small else train, "evaluation": 16 if small else 1000}


def model(kind: str, small: bool) -> ConfigDict:
    """Config `model`."""
    lm, heads = (LM, 4) if not small else ({**LM, "width": 16, "depth": 2, "heads": 2, "mlp": 32}, 2)
    width = lm["width"]
    resampler = {
        "form": "flamingo",
        "width": width,
        "depth": 2,
        "heads": heads,
        "head_width": width // heads,
        "mlp": 4 * width,
        "latents": 16,
    }
    resampler["frames"] = FRAMES
    if kind == "mlp":
        resampler = {"type": "mlp", "width": width, "depth": 2, "mlp": 4 * width, "frames": FRAMES}
    xattn = {"form": "flamingo", "heads": heads, "head_width": width // heads, "mlp": 4 * width}
    if kind == "vanilla":
        xattn = {"form": "vanilla", "heads": heads, "head_width": width // heads}
    if kind == "ungated":
        xattn["gate"] = "none"
    vision = {"type": "vit", "patch": 16, "width": 16, "depth": 1, "heads": 2, "mlp": 32} if small else VISION
    out = {"vision": vision, "resampler": resampler, "xattn": xattn, "lm": lm, "every": 1, "new_tokens": 2, "image_token": VOCAB + 1}
    out |= {"size": PIXELS, "channels": 3, "attend": "previous" if kind == "previous" else "last"}
    out |= {"weights": {"lm": "", "vision": ""}, "train": ("vision", "lm") if kind == "unfrozen" else ("vision",)}
    return ConfigDict(out)


def evaluations(c: ConfigDict, small: bool) -> None:
    """What is asked of split validation: with pictures, with another's and with none, and with solved examples before."""
    common = {"type": "few_shot", "every": c.steps, "split": "validation", "support": "train", "size": PIXELS, "picture": PICTURE}
    common |= {"batch_size": 4 if small else 64, "length": 256, "count": 4 if small else 500, "beams": 1 if small else 3, "text_only": 0}
    group = lambda config, **more: ConfigDict({**common, "data": {"scenes": scenes(config, 64 if small else 50_000, small)}, **more})
    words = {"max_new_tokens": 4 if small else 10}
    c.evals.qa = group("qa", task="qa", shots=(0,), **words)
    c.evals.captions = group("objects", task="captions", shots=(0,), template="Output: {answer}", max_new_tokens=4 if small else 40)
    if small:
        return
    for seen in ("shuffled", "none"):
        c.evals[f"qa_{seen}"] = group("qa", task="qa", shots=(0,), pictures=seen, **words)
    clip = {"frames": c.model.streams.video.frames, "fps": FPS if c.model.streams.video.frames > 1 else 0.5}
    video = lambda **more: ConfigDict(
        {**common, "data": {"scenes": scenes("video", 5_000, small)}, "task": "qa", "shots": (0,), **clip, **more}
    )
    c.evals.video = video(**words)
    c.evals.video_none = video(pictures="none", **words)
    c.evals.prompts = group("few_shot", task="prompts", shots=(0,), **words)
    c.evals.prompts.update({"length": 400})


def vision() -> ConfigDict:
    """The vision tower's own training: an NFNet and a BERT by contrast, both means over places and words (Flamingo, appendix B.1.3)."""
    c = base()
    c.task = "clip"
    c.steps, c.batch_size = 1500, 256
    text = {"type": "bert", "vocab": VOCAB, "length": 40, "width": 64, "depth": 2, "heads": 2, "mlp": 256, "pool": "mean"}
    c.model = ConfigDict({"size": PIXELS, "channels": 3, "embed": 128, "image": VISION, "text": text})
    c.data.source = "scenes"
    c.data.scenes = ConfigDict(scenes("objects", 50_000, False))
    c.data.transforms = (*PICTURE, ("pick_caption", {}), ("tokenize", {"length": 40}), ("keep", {"keys": ("image", "tokens")}))
    c.optim.lr = 2e-3
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.98, "eps": 1e-6})
    c.optim.warmup = 200
    c.optim.weight_decay = 0.1
    c.optim.wd_rules = ((".*(scale|bias|gain)", 0.0), (".*", 1.0))
    c.optim.clip_norm = 1.0
    c.ema.ema = 0.99
    c.log.every = 50
    c.checkpoint.every = 500
    common = {"every": 500, "batch_size": 256, "length": 40, "transforms": (*PICTURE, ("keep", {"keys": ("image",)}))}
    c.evals.retrieval = ConfigDict({"type": "retrieval", "split": "validation", "captions": "own", **common})
    return c
