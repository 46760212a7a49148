"""Diffusion and rectified flow in pixels as published: DDPM, improved DDPM, ADM, EDM, rectified flow.

    mmjax info --config configs/diffusion/pixels.py:adm-256 --devices 64 mesh.fsdp=8
    mmjax train --config configs/diffusion/pixels.py:ddpm-cifar10 --workdir runs/ddpm data.dir=DIR
    mmjax sample --workdir runs/ddpm --num 64 --out pictures

DIR is TFDS's data_dir with the set as array_record: cifar10, celeb_a_hq/256, imagenet_resized/64x64 or imagenet2012. Arguments, and
what the papers report for the run:

    ddpm-cifar10            FID 3.17, Inception score 9.46, at most 3.75 bits a dimension       Ho et al. 2020
    ddpm-celebahq256        no FID in the paper; its number of steps is ours
    iddpm-cifar10           L_hybrid: FID 3.19, 3.17 bits                                       Nichol & Dhariwal 2021
    iddpm-cifar10-vlb       L_vlb with importance sampling: FID 11.47, 2.94 bits
    adm-64                  FID 2.07                                                            Dhariwal & Nichol 2021
    adm-128, -256, -512     without guidance FID 10.94 at 256; 2.97, 4.59, 7.72 with a classifier's
    adm-128-classifier, ... which guides it: model.sampler.classifier="{'path': RUN, 'scale': 0.5}" (1 at 64 and 256, 4 at 512)
    edm-cifar10, -cond      FID 1.97 and 1.79 (least of three) in 35 looks, with augmentation   Karras et al. 2022
    edm-imagenet64          FID 1.36 with the stochastic sampler in 511 looks
    rf-cifar10              one rectified flow: FID 2.58, Inception score 9.60, by an adaptive solver  Liu et al. 2023

No run at full size has been made with this code. EDM's augmentations are not built: expect more than its 1.97. The
classifiers' recipe is the one the authors give for 128 pixels, at every size.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest

CIFAR, CELEBA = ("cifar10", 32), ("celeb_a_hq/256", 256)
IMAGENET64, IMAGENET = ("imagenet_resized/64x64", 64), "imagenet2012"
LINEAR, COSINE = {"name": "discrete", "betas": "linear"}, {"name": "discrete", "betas": "cosine"}
HYBRID = {"variance": "learned_range", "loss": "hybrid", "prediction": "eps"}
EDM = {
    "path": {"name": "edm"},
    "prediction": "edm",
    "weighting": {"name": "edm"},
    "density": {"name": "log_normal", "mean": -1.2, "std": 1.2},
    "sampler": {"solver": "heun", "steps": 18, "spacing": "karras", "times": {"sigma_min": 0.002, "sigma_max": 80.0}},
}
ANCESTRAL = {"solver": "ddpm", "steps": 1000, "clip": "static", "options": {"variance": "fixed_large"}}
LEARNED = {"solver": "ddpm", "steps": 250, "spacing": "linspace", "clip": "static", "options": {"variance": "learned_range"}}


def _adm(name: str, size: int, path: dict, batch: int, lr: float, steps: int) -> dict:
    data = IMAGENET64 if size == 64 else (IMAGENET, size)
    model = {**HYBRID, "path": path, "labels": True, "sampler": LEARNED}
    return {"data": data, "network": ("unet", name), "model": model, "batch": batch, "lr": lr, "steps": steps, "ema": 0.9999}


def _edm(name: str, data: tuple, batch: int, lr: float, images: int, half_life: int, dropout: float, **more: bool) -> dict:
    kind = "unet" if name.startswith("edm") else "song_unet"
    run = {"data": data, "network": (kind, name), "fields": {"dropout": dropout}, "model": {**EDM, **more}, "batch": batch, "lr": lr}
    # The learning rate climbs over the first 10 million pictures; early on the average's half-life is a twentieth of those seen.
    return {**run, "steps": images // batch, "warmup": 10_000_000 // batch, "ema": {"half_life": half_life, "ramp": 0.05}}


# Per run: the set and its pixels, the network, config.model beside it, and the recipe of the paper's appendix.
RUNS: dict[str, dict] = {
    "ddpm-cifar10": {
        **{"data": CIFAR, "network": ("unet", "ddpm-cifar10"), "model": {"path": LINEAR, "sampler": ANCESTRAL}, "flip": True},
        **{"batch": 128, "lr": 2e-4, "warmup": 5000, "clip": 1.0, "steps": 800_000, "ema": 0.9999},
    },
    "ddpm-celebahq256": {
        **{"data": CELEBA, "network": ("unet", "ddpm-256"), "model": {"path": LINEAR, "sampler": ANCESTRAL}, "flip": True},
        **{"batch": 64, "lr": 2e-5, "warmup": 5000, "clip": 1.0, "steps": 500_000, "ema": 0.9999},
    },
    "iddpm-cifar10": {
        "data": CIFAR,
        "network": ("unet", "iddpm-cifar10"),
        "model": {**HYBRID, "path": {**COSINE, "steps": 4000}, "sampler": {**LEARNED, "steps": 4000}},
        **{"batch": 128, "lr": 1e-4, "steps": 500_000, "ema": 0.9999},
    },
    "adm-64": _adm("adm-64", 64, COSINE, 2048, 3e-4, 540_000),
    "adm-128": _adm("adm-128", 128, LINEAR, 256, 1e-4, 4_360_000),
    "adm-256": _adm("adm-256", 256, LINEAR, 256, 1e-4, 1_980_000),
    "adm-512": _adm("adm-512", 512, LINEAR, 256, 1e-4, 1_940_000),
    "edm-cifar10": _edm("ddpmpp-cifar10", CIFAR, 512, 1e-3, 200_000_000, 500_000, 0.13),
    "edm-cifar10-cond": _edm("ddpmpp-cifar10-cond", CIFAR, 512, 1e-3, 200_000_000, 500_000, 0.13, labels=True),
    "edm-imagenet64": _edm("edm-imagenet64", IMAGENET64, 4096, 1e-4, 2_500_000_000, 50_000_000, 0.1, labels=True),
    "rf-cifar10": {
        "data": CIFAR,
        "network": ("song_unet", "ddpmpp-64"),  # DDPM++ of 1, 2, 2, 2 with 4 blocks a level, here at 32 pixels
        "fields": {"augment": 0, "dropout": 0.15},
        "model": {"path": {"name": "flow"}, "prediction": "velocity", "time_scale": 999.0, "sampler": {"solver": "dopri5", "steps": 1}},
        **{"flip": True, "batch": 128, "lr": 2e-4, "warmup": 5000, "clip": 1.0, "steps": 800_000, "ema": 0.999999},
    },
}
RUNS["iddpm-cifar10-vlb"] = {
    **RUNS["iddpm-cifar10"],
    "model": {**RUNS["iddpm-cifar10"]["model"], "loss": "bound", "density": {"name": "importance"}},
}


CLASSIFIERS = tuple(f"adm-{size}-classifier" for size in (64, 128, 256, 512))


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: a key of RUNS or one of CLASSIFIERS, default ddpm-cifar10."""
    name = arg or "ddpm-cifar10"
    if name in CLASSIFIERS:
        return classifier(name.removesuffix("-classifier"))
    if name not in RUNS:
        raise UserError(f"config argument {name!r}{suggest(name, [*RUNS, *CLASSIFIERS])}")
    run = RUNS[name]
    path, size = run["data"]
    kind, variant = run["network"]
    c = base()
    c.task = "diffusion"
    c.batch_size, c.steps = run["batch"], run["steps"]
    network = {"type": kind, "variant": variant, **run.get("fields", {})}
    c.model = ConfigDict({"size": size, "channels": 3, "network": network, **run["model"]})
    labels = bool(run["model"].get("labels"))

    c.data.source, c.data.path = "tfds", path
    c.data.workers = 8
    crop = (("resize", {"size": size, "short_side": True}), ("center_crop", {"size": size})) if path in (IMAGENET, CELEBA[0]) else ()
    flip = (("flip", {}),) if run.get("flip") or path == IMAGENET else ()
    keep = ("keep", {"keys": ("image", "label") if labels else ("image",)})
    c.data.transforms = (("decode", {"channels": 3}), *crop, *flip, ("normalize", {"mean": 0.5, "std": 0.5}), keep)

    c.optim.lr = run["lr"]
    c.optim.schedule = "constant"
    c.optim.warmup = run.get("warmup", 0)
    c.optim.clip_norm = run.get("clip")
    c.ema.ema = run["ema"]
    c.log.every, c.checkpoint.every = 100, 10_000
    return c


def classifier(name: str) -> ConfigDict:
    """Of noisy pictures, for the diffusion model `name`."""
    run = RUNS[name]
    path, size = run["data"]
    c = base()
    c.task = "noisy_classification"
    c.batch_size, c.steps = 256, 300_000
    c.model = ConfigDict({"size": size, "channels": 3, "classifier": {"variant": name}, "path": run["model"]["path"]})
    c.data.source, c.data.path = "tfds", path
    c.data.workers = 8
    crop = (("resize", {"size": size * 9 // 8, "short_side": True}), ("random_crop", {"size": size}), ("flip", {}))
    c.data.transforms = (
        *(("decode", {"channels": 3}), *crop, ("normalize", {"mean": 0.5, "std": 0.5})),
        ("keep", {"keys": ("image", "label")}),
    )
    c.optim.lr = 3e-4
    c.optim.schedule = "linear"
    c.optim.weight_decay = 0.05
    c.log.every, c.checkpoint.every = 100, 10_000
    return c
