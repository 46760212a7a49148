"""Diffusion in the latents of an autoencoder as published: latent diffusion, DiT, SiT, EDM2.

    mmjax info --config configs/diffusion/latents.py:dit-XL/2 --devices 32 mesh.fsdp=4
    mmjax cache --workdir AUTOENCODER --predict encode --out LATENTS --keep label --source tfds data.path=imagenet2012 data.dir=DIR
    mmjax train --config configs/diffusion/latents.py:dit-XL/2 --workdir runs/dit data.path=LATENTS init_from.path=AUTOENCODER
    mmjax sample --workdir runs/dit --labels 207,360 --num 16 --guidance 1.5 --out pictures

AUTOENCODER is a run of configs/diffusion/autoencoder.py, LATENTS the set of mean and log-variance that `mmjax cache` made with it.
Arguments, and what the papers report on ImageNet:

    dit-XL/2, dit-L/2, ...  FID 9.62, with guidance 1.5 of three channels 2.27                 Peebles & Xie 2023
    dit-XL/2@512            the same at 512 pixels: 3.04                                       Peebles & Xie 2023
    sit-XL/2, ...           2.15 by an ODE, 2.06 by an SDE, both guided by 1.5                 Ma et al. 2024
    ldm4                    10.56, guided by 1.5 3.60, 250 DDIM steps                          Rombach et al. 2022
    ldm-txt2img             no FID here: LAION pairs, a text tower of 32 layers trained along  Rombach et al. 2022
    edm2-xs ... edm2-xxl    512 pixels: XS 3.53, S 2.56, M 2.25, L 2.06, XL 1.96, XXL 1.91     Karras et al. 2024

ldm-txt2img trains on latents that were cached with --keep caption.

No run at full size has been made with this code.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest
from mmjax.models import dit

CLASSES = 1000
SD = {"autoencoder": {"variant": "kl-f8"}, "scale": 0.18215, "cached": True}
SD_CHANNELS_MEAN, SD_CHANNELS_STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)  # of EDM2's latents
HYBRID = {"prediction": "eps", "variance": "learned_range", "loss": "hybrid"}
LINEAR = {"name": "discrete", "betas": "linear"}
LDM_PATH = {"name": "discrete", "betas": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}
GUIDED = {"guidance": 1.5, "guided_channels": 3}
# EDM2: peak rate and images, in 2**20, of every size (its training presets)
EDM2 = {
    **{"xxs": (0.0170, 2048), "xs": (0.0120, 2048), "s": (0.0100, 2048), "m": (0.0090, 2048)},
    **{"l": (0.0080, 1792), "xl": (0.0070, 1280), "xxl": (0.0065, 896)},
}
PATCHED = tuple(name.partition("-")[2] for name in dit.VARIANTS if name.startswith("DiT"))
NAMES = (
    *(f"dit-{p}" for p in PATCHED),
    "dit-XL/2@512",
    *(f"sit-{p}" for p in PATCHED),
    "ldm4",
    "ldm-txt2img",
    *(f"edm2-{s}" for s in EDM2),
)


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: one of NAMES, default dit-XL/2."""
    name = arg or "dit-XL/2"
    if name not in NAMES:
        raise UserError(f"config argument {name!r}{suggest(name, NAMES)}")
    c = base()
    c.task = "diffusion"
    c.dtype = "bfloat16"
    c.optim.schedule = "constant"
    c.ema.ema = 0.9999
    c.log.every, c.checkpoint.every = 100, 10_000
    kind = name.partition("-")[0]
    {"dit": _dit, "sit": _dit, "ldm4": _ldm4, "ldm": _txt2img, "edm2": _edm2}[kind](c, name)
    c.data.source = "cached"
    c.data.workers = 8
    words = (("tokenize", {"length": c.model.text.length}),) if "text" in c.model else ()
    keep = ("keep", {"keys": ("latent", "tokens" if words else "label")})
    c.data.transforms = (("rename", {"keys": {"value": "latent"}}), *words, keep)
    # The autoencoder's run gives its parameters; all others start afresh.
    c.init_from.rename = (("(.*)", r"first_stage/\1"),)
    c.init_from.skip = ("(network|text|label_context)/.*", "first_stage/(discriminator|perceptual|log_variance).*")
    return c


def _dit(c: ConfigDict, name: str) -> None:
    """AdamW at a constant 1e-4 without decay or warm-up, batch 256, labels dropped one time in ten."""
    family, _, rest = name.partition("-")
    patch, _, size = rest.partition("@")
    flow = family == "sit"
    network = {"type": "dit", "variant": f"{'SiT' if flow else 'DiT'}-{patch}", "remat": "dots"}
    model = {"size": int(size or 256), "channels": 3, "network": network, "labels": True, "latent": SD}
    if flow:
        # As the authors have it, so that their weights load here: 8 channels put out, 4 of them trained, and time from noise to data.
        model |= {"path": {"name": "flow"}, "prediction": "reverse_velocity", "condition": "one_minus_time"}
        model["sampler"] = {"solver": "heun", "steps": 125, "guidance": 1.5}
    else:
        model |= {**HYBRID, "path": LINEAR}
        model["sampler"] = {"solver": "ddpm", "steps": 250, "spacing": "linspace", "options": {"variance": "learned_range"}, **GUIDED}
    c.model = ConfigDict(model)
    c.batch_size, c.steps = 256, 3_000_000 if size else 7_000_000
    c.optim.lr = 1e-4


def _ldm4(c: ConfigDict, name: str) -> None:
    """The class is a word that the U-Net looks at."""
    c.model = ConfigDict(
        {
            "size": 256,
            "channels": 3,
            "network": {"type": "unet", "variant": "ldm4-imagenet256", "remat": "full"},
            "path": LDM_PATH,
            "label_context": {"classes": CLASSES, "width": 512, "dropout": 0.1},
            # The paper's first stage is a VQ-GAN of the same shape; here the KL-regularised one of its table 8, 3 channels.
            "latent": {"autoencoder": {"variant": "kl-f4"}, "cached": True},
            "sampler": {"solver": "ddim", "steps": 250, "spacing": "leading", "guidance": 1.5},
        }
    )
    c.batch_size, c.steps = 1200, 178_000
    c.optim.lr = 1e-4


def _txt2img(c: ConfigDict, name: str) -> None:
    tower = {"type": "transformer", "vocab": 30522, "length": 77, "width": 1280, "depth": 32, "heads": 20, "mlp": 5120}
    c.model = ConfigDict(
        {
            "size": 256,
            "channels": 3,
            "network": {"type": "unet", "variant": "ldm-txt2img", "remat": "full"},
            "path": {**LDM_PATH, "beta_start": 0.00085, "beta_end": 0.012},
            "text": {**tower, "causal": False, "pool": "last", "remat": "full"},
            "latent": SD,
            "sampler": {"solver": "ddim", "steps": 250, "spacing": "leading", "guidance": 5.0},
        }
    )
    c.batch_size, c.steps = 680, 390_000
    c.optim.lr = 1e-4


def _edm2(c: ConfigDict, name: str) -> None:
    """Adam with b2 0.99, a rate that falls as 1 / sqrt(step) from 70,000 steps on, weights kept at unit norm, and the two averages of which
    `--ema_std` makes any other, stored every 8 Mi images."""
    lr, images = EDM2[name.partition("-")[2]]
    c.model = ConfigDict(
        {
            "size": 512,
            "channels": 3,
            "network": {"type": "edm2", "variant": name, "label_dropout": 0.1, "remat": "full"},
            "path": {"name": "edm"},
            "prediction": "edm",
            "weighting": {"name": "edm"},
            "density": {"name": "log_normal", "mean": -0.4, "std": 1.0},
            "uncertainty": True,
            "labels": True,
            "latent": {**SD, "shift": SD_CHANNELS_MEAN, "scale": tuple(0.5 / s for s in SD_CHANNELS_STD)},
            "sampler": {"solver": "heun", "steps": 32, "spacing": "karras", "times": {"sigma_min": 0.002, "sigma_max": 80.0}},
        }
    )
    c.batch_size = 2048
    c.steps = images * 2**20 // c.batch_size
    del c.ema.ema
    c.ema.a, c.ema.b = ConfigDict({"power": 0.05}), ConfigDict({"power": 0.1})
    c.checkpoint.snapshot_every = 8 * 2**20 // c.batch_size
    c.optim.name, c.optim.args = "adamw", ConfigDict({"b1": 0.9, "b2": 0.99})
    c.optim.lr, c.optim.warmup = lr, 10_000_000 // c.batch_size
    c.optim.schedule, c.optim.schedule_args = "rsqrt", ConfigDict({"timescale": 70_000})
