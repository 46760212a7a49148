"""A small language model of what is said about scenes: captions, questions and answers, documents and videos, without their pictures.

    mmjax train --config configs/lm/scenes.py --workdir runs/lm
    mmjax train --config configs/lm/scenes.py:captions --workdir runs/lm_captions
    mmjax eval --workdir runs/lm --split validation
    mmjax chat --workdir runs/lm --prompt "Question: Is there a red circle? Answer:"

Arguments: `texts`, the default, all of these, which configs/flamingo/scenes.py builds on; `captions`, captions alone; `smoke`, seconds.
A text is a row. Measured of `captions` with steps=150 batch_size=64, a minute of one CPU core: perplexity 7.0 a token, 0.68 bits a byte,
on captions of split validation (the averages of that run).
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest

KINDS = ("texts", "captions", "smoke")
VOCAB, END = 1024, 1023  # of the tokenizer beside the set
PIXELS = 64  # of the pictures that are stored and not read
QUESTION, OUTPUT = "Question: {question} Answer: {answer}", "Output: {caption}"
SETS = {"objects": 50_000, "qa": 50_000, "interleaved": 20_000, "video": 5_000}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: one of KINDS, default texts."""
    kind = arg or "texts"
    if kind not in KINDS:
        raise UserError(f"config argument {kind!r}{suggest(kind, KINDS)}")
    small = kind == "smoke"
    length = {"texts": 128, "captions": 40, "smoke": 24}[kind]
    c = base()
    c.task = "language_model"
    c.steps, c.batch_size = (4, 8) if small else (2000, 64 if kind == "texts" else 128)
    # Turned queries and keys, not a table: rows here are shorter than what a Flamingo reads.
    lm = {"vocab": VOCAB, "length": 256, "width": 128, "depth": 4, "heads": 4, "mlp": 512, "positions": "rope", "tied": True}
    lm |= {"width": 16, "depth": 2, "heads": 2, "mlp": 32} if small else {}
    c.model = ConfigDict({"lm": lm, "length": length, "packed": False, "loss_mask": False, "end": END, "z_loss": 0.0, "chunk": 0})

    c.data.source = "scenes"
    c.data.scenes = scenes("objects", small)
    rows = lambda *steps: (*steps, ("tokenize", {"length": length}), ("keep", {"keys": ("tokens",)}))
    caption, question = ("pick_caption", {}), ("compose", {"template": QUESTION})
    c.data.transforms = rows(caption)
    if kind == "texts":
        clips = scenes("video", small)
        c.data.mixture = (
            (2.0, {"transforms": rows(caption, ("compose", {"template": OUTPUT}))}),
            (2.0, {"scenes": scenes("qa", small), "transforms": rows(question)}),
            (2.0, {"scenes": scenes("interleaved", small), "transforms": rows(("compose", {"template": "{texts}", "join": True}))}),
            (0.5, {"scenes": clips, "transforms": rows(caption, ("compose", {"template": OUTPUT}))}),
            (0.5, {"scenes": clips, "transforms": rows(("compose", {"template": QUESTION.replace("}", "s}")}))}),
        )

    c.optim.lr = 2e-3
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.95})
    c.optim.warmup = min(100, c.steps // 2)
    c.optim.weight_decay = 0.1
    c.optim.wd_rules = ((".*(scale|bias|embedding)", 0.0), (".*", 1.0))
    c.optim.clip_norm = 1.0
    c.ema.ema = 0.5 if small else 0.99
    c.log.every = 1 if small else 50
    c.checkpoint.every = 2 if small else 500

    # Of captions that begin with nothing, and of all said about one: so kinds compare.
    common = {"type": "perplexity", "split": "validation", "every": c.checkpoint.every, "batch_size": c.batch_size, "length": 128}
    common["count"] = 8 if small else 500
    c.evals.captions = ConfigDict({**common, "text": "captions"})
    if kind == "texts":
        asked = {"data": {"scenes": scenes("qa", small)}, "transforms": (("compose", {"template": QUESTION}),)}
        c.evals.qa = ConfigDict({**common, **asked})
    return c


def scenes(config: str, small: bool) -> dict:
    """Config `data.scenes`."""
    return {"config": config, "pixels": PIXELS, "train": 64 if small else SETS[config], "evaluation": 16 if small else 1000}
