"""unCLIP's upsamplers as published (Ramesh et al. 2022, table 3; Karlo), and those of the chain on scenes to 256 pixels.

    mmjax info --config configs/unclip/upsampler.py:unclip-1024 --devices 64 mesh.fsdp=8
    mmjax train --config configs/unclip/upsampler.py --workdir runs/up256 data.path=IMAGES
    mmjax train --config configs/unclip/upsampler.py:scenes128 --workdir runs/unclip/up128

IMAGES is a set of TFDS prepared as array_record, imagenet2012 if not given. Arguments:

    unclip-256    64 to 256, the default: 320 channels, depth 3, multiples 1, 2, 3, 4, no attention, dropout 0.1; conditions blurred by a
                  Gaussian of 3 pixels, sigma 0.6; T 1000 on the cosine schedule, 27 steps of DDIM; batch 1024, 1.2e-4, 1M steps.
                  729,710,726 parameters; the paper says 700M
    unclip-1024   256 to 1024: 192 channels, depth 2, multiples 1, 1, 2, 2, 4, 4, no attention; conditions degraded as BSRGAN does; the
                  linear schedule, 15 steps of DDIM; batch 512, 1.0e-4, 1M steps. 282,064,326 parameters; the paper says 300M
    karlo         64 to 256: 320 channels, noise of a fixed variance, 7 steps. 691,579,523 parameters, as the published network for all
                  steps but the last
    scenes128     64 to 128 on scenes of up to six objects, blurred and noised; for an accelerator
    scenes256     128 to 256, degraded as BSRGAN does; for an accelerator. 16 to 32 and 64 are in configs/unclip/chain.py
    smoke         seconds, 16 to 32, degraded and noised

All of the paper's: Adam with b2 0.999 and eps 1e-8, EMA 0.9999; trained on windows of a quarter of a side, run on whole pictures. Whether
its upsamplers learn their variance the paper does not say; here they do, which DDIM leaves aside. No run at full size has been made.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest

COSINE, LINEAR = ({"name": "discrete", "betas": betas, "steps": 1000} for betas in ("cosine", "linear"))
HYBRID = {"prediction": "eps", "variance": "learned_range", "loss": "hybrid"}
BLUR, GIVEN = {"degradation": "blur", "sigma": (0.6, 0.6), "kernel": 3}, {"degradation": "given"}
NETWORK = {"type": "unet", "groups": 16, "scale_shift": True, "resample": "residual", "mid_attention": 0, "low_res": 3}
PUBLISHED = ("unclip-256", "unclip-1024", "karlo")
# Per run: pixels, those of the condition, the network, what else config.model says, steps of DDIM, batch, learning rate, steps.
RUNS: dict[str, tuple] = {
    "unclip-256": (256, 64, {"variant": "unclip-256"}, {**HYBRID, "path": COSINE}, BLUR, 27, 1024, 1.2e-4, 1_000_000),
    "unclip-1024": (1024, 256, {"variant": "unclip-1024"}, {**HYBRID, "path": LINEAR}, GIVEN, 15, 512, 1.0e-4, 1_000_000),
    "karlo": (256, 64, {"variant": "karlo-256"}, {"prediction": "eps", "path": COSINE}, BLUR, 7, 1024, 1.2e-4, 1_000_000),
    "scenes128": (
        *(128, 64, {**NETWORK, "channels": (64, 128, 192), "blocks": 2, "numbers": 1}, {"prediction": "v", "path": COSINE}),
        *({**BLUR, "noise": (0.0, 0.3), "level": 0.05}, 20, 256, 4e-4, 20_000),
    ),
    "scenes256": (
        256,
        128,
        {**NETWORK, "channels": (32, 64, 128), "blocks": 2},
        {"prediction": "v", "path": COSINE},
        GIVEN,
        15,
        128,
        4e-4,
        20_000,
    ),
    "smoke": (
        *(32, 16, {**NETWORK, "channels": (8,), "groups": 4, "blocks": 1, "numbers": 1}, {"prediction": "v", "path": COSINE}),
        *({**GIVEN, "noise": (0.0, 0.5)}, 2, 16, 1e-3, 4),
    ),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: a key of RUNS, default unclip-256."""
    name = arg or "unclip-256"
    if name not in RUNS:
        raise UserError(f"config argument {name!r}{suggest(name, RUNS)}")
    published, small = name in PUBLISHED, name == "smoke"
    size, low, network, model, how, ddim, batch, lr, steps = RUNS[name]
    crop = 0.25 if published else 0.5
    c = base()
    c.task = "diffusion"
    c.dtype = "float32" if small else "bfloat16"
    c.steps, c.batch_size = steps, batch
    sampler = {"solver": "ddim", "steps": ddim, "clip": "static"}
    model = {**model, "size": size, "channels": 3, "network": {"type": "unet", **network}, "sampler": sampler}
    c.model = ConfigDict({**model, "low_resolution": {"size": low, "crop": crop, **how}})

    whole = (("resize", {"size": size, "short_side": True}),) if published else ()
    window = (*whole, ("random_crop", {"size": round(size * crop)}))
    degrade = (("degrade", {"size": round(low * crop)}),) if how["degradation"] == "given" else ()
    keep = ("keep", {"keys": ("image", "low") if degrade else ("image",)})
    c.data.transforms = (("decode", {"channels": 3}), *window, *degrade, ("normalize", {"mean": 0.5, "std": 0.5}), keep)
    c.data.source = "tfds" if published else "scenes"
    if published:
        c.data.path, c.data.workers = "imagenet2012", 8
    else:
        counts = {"train": 64, "evaluation": 16} if small else {"train": 50_000, "evaluation": 1000}
        c.data.scenes = ConfigDict({"config": "objects", "pixels": size, **counts})

    c.optim.lr, c.optim.schedule = lr, "constant"
    c.optim.warmup = 0 if published else min(500, steps // 2)
    c.optim.clip_norm = None if published else 1.0
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.999, "eps": 1e-8})
    c.ema.ema = 0.9999 if published else 0.5 if small else 0.999
    c.log.every, c.checkpoint.every = (1, 2) if small else (100, 5000)
    return c
