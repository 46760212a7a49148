"""The autoencoders of latent diffusion (Rombach et al. 2022): the paper's kl-f4 and kl-f8 at full size, and one small enough to train here.

    mmjax train --config configs/diffusion/autoencoder.py --workdir runs/scenes_ae
    mmjax eval --workdir runs/scenes_ae --split validation
    mmjax cache --workdir runs/scenes_ae --predict encode --split train --keep captions --out caches/scenes_latents
    mmjax train --config configs/diffusion/autoencoder.py:kl-f8 --workdir runs/kl_f8 data.path='/sets/openimages/{00000..00999}.tar'

Arguments: `scenes`, the default, pictures of 64 pixels to 16 x 16 x 4; `scenes-f8`, to 8 x 8 x 8; `few`, 16 x 16 x 4 of one or two
objects, small enough for two cores; `kl-f4` and `kl-f8`; `smoke`, seconds.

kl-f4 and kl-f8 follow the authors' code: L1 with LPIPS, KL times 1e-6, a patch discriminator of three halvings with batch norm and a hinge
from step 50,001 at weight 0.5 times the adaptive factor, Adam with betas 0.5 and 0.9 for both players, crops of 256 pixels, a rate of
4.5e-6 times the batch and no average of weights. Batch and length are ours. LPIPS' weights are two files that nobody can ship with a
library: torchvision's VGG-16 and LPIPS' own, by `model.perceptual.vgg=FILE model.perceptual.heads=FILE`. The paper's reconstructions on
ImageNet's validation images: FID 0.27 and PSNR 27.5 dB (kl-f4), 0.90 and 24.2 dB (kl-f8). No run of them has been made here.

`few` has neither critic nor perceptual term, `scenes` no perceptual term. With `model.perceptual` the features of a classifier or a CLIP
trained here serve as one (see mmjax/tasks/perceptual.py), which is no LPIPS. `latent_std` of its evaluation is what diffusion in the
latents is scaled by: configs/diffusion/latent_scenes.py, `model.latent.scale`.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest

KINDS = ("scenes", "scenes-f8", "few", "kl-f4", "kl-f8", "smoke")
NORMALIZE = ("normalize", {"mean": 0.5, "std": 0.5})
KEEP = ("keep", {"keys": ("image",)})

# The first stages of small pictures, as configs/diffusion/latent_scenes.py takes them too. A norm of few channels takes a plain colour out
# before anything has seen it; one group of all of them leaves what tells it from the other channels.
FIRST_STAGES = {
    "scenes": {"latent": 4, "mults": (1, 2, 2), "width": 32, "blocks": 1, "groups": 8},
    "scenes-f8": {"latent": 8, "mults": (1, 2, 2, 4), "width": 32, "blocks": 1, "groups": 8},
    "few": {"latent": 4, "mults": (1, 2, 2), "width": 16, "blocks": 1, "groups": 1},
    "smoke": {"latent": 2, "mults": (1, 2), "width": 8, "blocks": 1, "groups": 4},
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: one of KINDS, default scenes."""
    kind = arg or "scenes"
    if kind not in KINDS:
        raise UserError(f"config argument {kind!r}{suggest(kind, KINDS)}")
    c = base()
    c.task = "autoencoder"
    if kind.startswith("kl"):
        published(c, kind)
    else:
        own(c, kind)
    both = {"args": {"b1": 0.5, "b2": 0.9}}  # of both players; what differs for the discriminator goes here
    c.optim.args = ConfigDict({"b1": 0.5, "b2": 0.9})
    if kind == "few":
        return c
    c.optim.groups = (("discriminator", "discriminator/.*", both if kind.startswith("kl") else {**both, "clip_norm": 1.0}),)
    return c


def published(c: ConfigDict, name: str) -> None:
    """The paper's."""
    c.steps, c.batch_size = 250_000, 96
    c.model = ConfigDict(
        {
            "size": 256,
            "channels": 3,
            "autoencoder": {"variant": name},
            "kl": 1e-6,
            "perceptual": {"type": "lpips", "vgg": "vgg16-397923af.pth", "heads": "lpips_vgg.pth"},
            "perceptual_weight": 1.0,
            "discriminator": {"width": 64, "depth": 3},
            "adversarial": "hinge",
            "adversarial_weight": 0.5,
            "start": 50_001,
        }
    )
    c.data.source = "shards"
    look = (("decode", {"channels": 3}), ("resize", {"size": 256}))
    c.data.transforms = (*look, ("random_crop", {"size": (256, 256)}), NORMALIZE, KEEP)
    c.optim.lr, c.optim.schedule = 4.5e-6 * c.batch_size, "constant"
    c.log.every, c.checkpoint.every = 100, 5000


def own(c: ConfigDict, kind: str) -> None:
    """For `scenes`."""
    small, few = kind == "smoke", kind == "few"
    pixels = 32 if small else 64
    c.steps, c.batch_size = (4, 16) if small else (3000, 16) if few else (4000, 32)
    c.model = ConfigDict(
        {
            "size": pixels,
            "channels": 3,
            "autoencoder": FIRST_STAGES[kind],
            "kl": 1e-4,
            "discriminator": None if few else {"width": 8 if small else 32, "depth": 2},
            "adversarial_weight": 0.5,
            "start": 2 if small else 2000,
        }
    )
    c.data.source = "scenes"
    sizes = (64, 16) if small else (15_000, 500) if few else (20_000, 1_000)
    c.data.scenes = ConfigDict({"config": "few" if few else "objects", "pixels": pixels, "train": sizes[0], "evaluation": sizes[1]})
    c.data.transforms = (("decode", {"channels": 3}), NORMALIZE, KEEP)
    c.optim.lr, c.optim.clip_norm = 5e-4, 1.0
    c.optim.warmup = min(100, c.steps // 2)
    c.log.every = 1 if small else 50
    c.checkpoint.every = 2 if small else 500 if few else 1000
    group = {"type": "reconstruction", "every": c.checkpoint.every, "split": "validation", "batch_size": c.batch_size}
    c.evals.reconstruction = ConfigDict({**group, "transforms": c.data.transforms})
