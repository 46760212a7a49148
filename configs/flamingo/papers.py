"""Flamingo, OpenFlamingo and IDEFICS at published sizes.

    mmjax info --config configs/flamingo/papers.py:open_flamingo-9b --devices 64 mesh.fsdp=64
    mmjax train --config configs/flamingo/papers.py --workdir runs/3b model.weights.lm=LM model.weights.vision=VISION data.dir=SETS
    mmjax train --config configs/flamingo/papers.py:vision --workdir runs/nfnet_f6 data.source=shards data.path=FILES data.tokenizer=FILE

Arguments: `flamingo-3b` (the default), `flamingo-9b`, `flamingo-80b` (Alayrac et al. 2022), `open_flamingo-3b`, `-4b`, `-9b` (Awadalla et
al. 2023), `idefics-9b`, `idefics-80b` (Laurencon et al. 2023, and its model card), and `vision`, the NFNet-F6 that Flamingo looks through.
LM and VISION are workdirs or folders of published weights; the sets lie below SETS, or name each: data.streams.m3w.path=FILES. IDEFICS's
rows hold several documents by an index (data.streams.obelics.packing=PACKS), made once: mmjax data pack --form packs --size 900.
VTP's frames are stored at one a second.

To expect, 0 / 4 / 32 shots, as published: COCO CIDEr and VQAv2 accuracy.

| | COCO | VQAv2 |
|---|---|---|
| flamingo-3b | 73.0 / 85.0 / 99.0 | 49.2 / 53.2 / 57.1 |
| flamingo-9b | 79.4 / 93.1 / 106.3 | 51.8 / 56.3 / 60.4 |
| flamingo-80b | 84.3 / 103.2 / 113.8 | 56.3 / 63.1 / 67.6 |
| open_flamingo-3b | 74.9 / 77.3 / 93.0 | 44.6 / 45.8 / 47.0 |
| open_flamingo-9b | 79.5 / 89.0 / 99.5 | 52.7 / 54.8 / 53.3 |
| idefics-9b | 46.0 / 93.0 / 98.0 | 50.9 / 55.4 / 57.9 |
| idefics-80b | 91.8 / 110.3 / 116.6 | 60.0 / 63.6 / 65.9 |

Nothing has been run at these sizes with this code, so hardware and time are not known; Flamingo-80B took 1,536 TPUv4 for 15 days.
As published: weights of the sets, rates, warm-up, decay, clipping, steps, windows, labels, which pictures text sees, and OpenFlamingo's
rows a step (32 and 64 a GPU on 64 of them). Flamingo's rows a step are ours, for want of a source; so are the rate of `vision` and how
many pictures a row of IDEFICS has room for. MMC4's documents of one picture are all kept here, where OpenFlamingo drops half of them,
and so are pictures of a similarity below 0.24: leave these out of the jsonl.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest
from mmjax.models import lm, nfnet
from mmjax.models.flamingo import VARIANTS

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IDEFICS = {"idefics-9b": (1_280, 65_000, 1e-5), "idefics-80b": (3_584, 37_500, 5e-5)}  # rows of 1,024 tokens, steps, peak rate


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: a key of models.flamingo.VARIANTS, default flamingo-3b, or "vision"."""
    name = arg or "flamingo-3b"
    if name not in (*VARIANTS, "vision"):
        raise UserError(f"config argument {name!r}{suggest(name, (*VARIANTS, 'vision'))}")
    if name == "vision":
        return vision()
    c = base()
    c.task = "flamingo"
    c.dtype = "bfloat16"  # of products; what is trained is float32
    text = {**VARIANTS[name]["lm"], "scan": True, "remat": "full"}
    seen = {**VARIANTS[name]["vision"], "scan": True}
    c.model = ConfigDict(
        {"size": 224, "channels": 3, **VARIANTS[name], "vision": seen, "lm": text, "frozen_dtype": "bfloat16", "chunk": 64}
    )
    c.model.weights = ConfigDict({"lm": "", "vision": ""})
    c.data.workers = 8
    c.optim.schedule = "constant"
    c.optim.clip_norm = 1.0
    c.optim.lr = 1e-4
    c.log.every = 50
    c.checkpoint.every = 5000
    {"flamingo": flamingo, "open_flamingo": open_flamingo, "idefics": idefics}[name.rpartition("-")[0]](c, name)
    c.batch_size = sum(stream.batch for stream in c.model.streams.values())
    return c


def add(c: ConfigDict, name: str, row: dict, source: dict, **how) -> None:
    """A stream: its rows and weight (`row`), where it lies, and how its rows are made."""
    if "streams" not in c.model:
        c.model.streams = ConfigDict()
    c.model.streams[name] = ConfigDict(row)
    made = {key: row[key] for key in ("length", "images", "frames") if key in row} | {"size": c.model.size, **how}
    c.data.streams[name] = ConfigDict({**source, "transforms": (("interleave", made),)})


def flamingo(c: ConfigDict, name: str) -> None:
    """Section 2.4 and appendix B.1.2: M3W, ALIGN, LTIP and VTP, weighed 1, 0.2, 0.2 and 0.03."""
    augmented = (("flip", {}), ("color_jitter", {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}))
    padded = (("decode", {"channels": 3}), *augmented, ("pad_to_square", {"fill": 0}), ("resize", {"size": c.model.size}))
    picture = (*padded, ("normalize", {"mean": MEAN, "std": STD}))
    documents = {"batch": 256, "length": 256, "images": 5, "weight": 1.0, "p_next": 0.5}
    add(c, "m3w", documents, {"source": "documents", "path": "m3w/*.jsonl"}, picture=picture, form="document", labels="text")
    for pairs in ("align", "ltip"):
        row = {"batch": 512, "length": 32 if pairs == "align" else 64, "weight": 0.2}
        add(c, pairs, row, {"source": "shards", "path": f"{pairs}/*.tar"}, picture=picture, form="pair", space=0.5)
    video = {"batch": 64, "length": 32, "frames": 8, "weight": 0.03}
    add(c, "vtp", video, {"source": "video", "path": "vtp/*"}, picture=picture, form="pair", space=0.5, fps=1.0)
    c.data.streams.vtp.stored_fps = 1.0
    c.model.resampler = ConfigDict({**VARIANTS[name]["resampler"], "frames": 8})
    c.steps, c.optim.warmup = 500_000, 5_000
    c.optim.weight_decay = 0.1
    c.optim.wd_rules = (("resampler/.*", 0.0), (".*", 1.0))


def open_flamingo(c: ConfigDict, name: str) -> None:
    """Section 3.3, and the repository's script: MMC4 and LAION-2B, weighed 1 and 0.2; half as many documents as pairs."""
    picture = (
        ("decode", {"channels": 3}),
        ("random_resized_crop", {"size": c.model.size, "scale": (0.9, 1.0)}),
        ("flip", {}),
        ("normalize", {"mean": MEAN, "std": STD}),
    )
    how = {"picture": picture, "layout": "openflamingo", "first": lm.VARIANTS[c.model.lm.variant]["vocab"]}
    documents = {"batch": 2_048, "length": 256, "images": 6, "weight": 1.0}
    add(c, "mmc4", documents, {"source": "documents", "path": "mmc4/*.jsonl"}, form="document", window=False, **how)
    add(c, "laion", {"batch": 4_096, "length": 32, "weight": 0.2}, {"source": "shards", "path": "laion/*.tar"}, form="pair", **how)
    c.steps, c.optim.warmup = 60_000_000 // 2_048, 1_875
    c.optim.weight_decay = 0.1
    c.optim.wd_rules = (("xattn/.*", 1.0), (".*", 0.0))


def idefics(c: ConfigDict, name: str) -> None:
    """The model card: rows of 1,024 tokens, filled with several documents; z-loss."""
    picture = (("decode", {"channels": 3}), ("resize", {"size": c.model.size}), ("normalize", {"mean": MEAN, "std": STD}))
    rows, steps, rate = IDEFICS[name]
    row = {"batch": rows, "length": 1_024, "images": 16, "packed": True}
    source = {"source": "documents", "path": "obelics/*.jsonl"}
    add(c, "obelics", row, source, picture=picture, form="document", layout="idefics", labels="text")
    c.model.z_loss = 1e-3
    c.steps, c.optim.warmup, c.optim.lr = steps, 2_000, rate
    c.optim.schedule, c.optim.schedule_args = "linear", ConfigDict({"end_factor": 0.6})
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.999})
    c.optim.weight_decay = 0.1


def vision() -> ConfigDict:
    """Appendix B.1.3: an NFNet-F6 and a BERT, their features averaged, by contrast at 288 pixels."""
    c = base()
    c.task = "clip"
    c.dtype = "bfloat16"
    c.steps, c.batch_size = 1_200_000, 16_384
    text = {"type": "bert", "vocab": 30_522, "length": 64, "width": 768, "depth": 12, "heads": 12, "mlp": 3_072, "pool": "mean"}
    image = {"type": "nfnet", **nfnet.VARIANTS["F6"], "scan": True, "remat": "full"}
    c.model = ConfigDict({"size": 288, "channels": 3, "embed": 1_376, "form": "ring", "image": image, "text": text})
    c.data.transforms = (
        ("decode", {"channels": 3}),
        ("random_resized_crop", {"size": 288, "scale": (0.5, 1.0)}),
        ("flip", {}),
        ("normalize", {"mean": MEAN, "std": STD}),
        ("pick_caption", {}),
        ("tokenize", {"length": 64}),
        ("keep", {"keys": ("image", "tokens")}),
    )
    c.data.workers = 8
    c.optim.lr = 1e-3
    c.optim.warmup = 5_000
    c.optim.weight_decay = 0.1
    c.optim.wd_rules = ((".*(scale|bias|gain)", 0.0), (".*", 1.0))
    c.optim.agc = 0.1
    c.log.every = 50
    c.checkpoint.every = 5_000
    return c
