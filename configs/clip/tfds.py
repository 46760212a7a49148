"""CLIP on coco_captions or flickr30k, prepared by TFDS as array_record: retrieval both ways, from scratch.

    mmjax train --config configs/clip/tfds.py:coco_captions --workdir runs/coco data.dir=DIR data.tokenizer=FILE
    mmjax eval --workdir runs/coco --split test

DIR is TFDS's data_dir: it holds coco_captions/2014/<version>, or flickr30k/<version>: a set of that name with the features `image` and
`caption` (a sequence of texts), as the copies on the Hugging Face hub have, and the splits train, validation and test. FILE is CLIP's
tokenizer (tokenizer.json, or the folder with vocab.json and merges.txt); another one needs model.text.vocab to follow. Without an
argument it is coco_captions.

No run has been made with it yet, so no score is stated; a hundred thousand pictures teach far less than CLIP's 400 million.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest
from mmjax.models.vit import VARIANTS

LENGTH, VOCAB = 77, 49408
# path, training split and its pictures, the split that selects the best checkpoint (COCO by A. Karpathy's and L. Fei-Fei's division)
SETS = {
    "coco_captions": ("coco_captions/2014", "train+restval", 113_287, "val"),
    "flickr30k": ("flickr30k", "train", 29_000, "validation"),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: a key of SETS; default coco_captions."""
    name = arg or "coco_captions"
    if name not in SETS:
        raise UserError(f"config argument {name!r}{suggest(name, SETS)}")
    path, split, pictures, held_out = SETS[name]
    c = base()
    c.task = "clip"
    c.dtype = "bfloat16"
    c.batch_size = 1024
    c.steps = 60 * pictures // c.batch_size
    tower = {"scan": True, "remat": "full"}
    image = {**VARIANTS["S"], "patch": 16, "pre_norm": True, "patch_bias": False, "eps": 1e-5, "dropout": 0.1, **tower}
    text = {"vocab": VOCAB, "length": LENGTH, "width": 384, "depth": 6, "heads": 6, "mlp": 1536, "dropout": 0.1, **tower}
    c.model = ConfigDict({"size": 224, "channels": 3, "embed": 384, "image": image, "text": text})

    normalize = ("normalize", {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)})
    c.data.source, c.data.path, c.data.split = "tfds", path, split
    c.data.transforms = (
        ("decode", {"channels": 3}),
        ("random_resized_crop", {"size": 224, "scale": (0.5, 1.0)}),
        normalize,  # no flip: captions speak of left and right
        ("pick_caption", {}),
        ("tokenize", {"length": LENGTH}),
        ("keep", {"keys": ("image", "tokens")}),
    )
    c.data.workers = 8

    c.optim.lr = 5e-4
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.98, "eps": 1e-6})
    c.optim.warmup = c.steps // 20
    c.optim.weight_decay = 0.2
    c.optim.wd_rules = ((".*(scale|bias)", 0.0), (".*", 1.0))
    c.log.every = 50
    c.checkpoint.every = 500
    c.checkpoint.best = "retrieval/text_to_image_r1"
    shown = (
        ("decode", {"channels": 3}),
        ("resize", {"size": 224, "short_side": True}),
        ("center_crop", {"size": 224}),
        normalize,
        ("keep", {"keys": ("image",)}),
    )
    common = {"every": 500, "split": held_out, "batch_size": 512, "length": LENGTH, "transforms": shown}
    c.evals.retrieval = ConfigDict({"type": "retrieval", "captions": "own", **common})
    return c
