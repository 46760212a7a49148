"""unCLIP's priors: from a caption to the CLIP embedding of a picture, on embeddings that `mmjax cache` stored (configs/unclip/clip.py).

    mmjax train --config configs/unclip/prior.py --workdir runs/unclip/prior
    mmjax train --config configs/unclip/prior.py:ar --workdir runs/unclip/prior_ar
    mmjax train --config configs/unclip/prior.py:eps --workdir runs/unclip/prior_eps

data.path is the set, runs/unclip/pairs if not given, whose model.prior.embedding (of the autoregressive prior model.width) is CLIP's;
`karlo` takes token_features:context and token_mask:mask of it too.
Arguments: `diffusion`, the default, small, for scenes; `ar`, the autoregressive one; `eps`, which predicts the noise in place of the
embedding; `paper` and `paper_ar`, of the paper's table 3 (1B each); `karlo`, as Karlo's (1B), words as CLIP's features; `smoke` and
`smoke_ar`, seconds. docs/unclip.md has the whole chain.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest

KINDS = ("diffusion", "ar", "eps", "paper", "paper_ar", "karlo", "smoke", "smoke_ar")
# As configs/unclip/clip.py has them.
VOCAB, LENGTH, WIDTH, TINY_WIDTH = 1024, 24, 128, 16
COSINE = {"name": "discrete", "betas": "cosine", "steps": 1000}
SMALL = {"length": LENGTH, "vocab": VOCAB, "width": 192, "depth": 4, "heads": 6}
TINY = {"length": LENGTH, "vocab": VOCAB, "width": 16, "depth": 1, "heads": 2}
# Table 3: lr, beta2, epsilon, weight decay, batch, steps, EMA.
TRAINED = {
    "paper": (1.1e-4, 0.96, 1e-6, 6e-2, 4096, 600_000, 0.9999),
    "paper_ar": (1.6e-4, 0.91, 1e-10, 4e-2, 4096, 1_000_000, 0.999),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: one of KINDS, default diffusion."""
    kind = arg or "diffusion"
    if kind not in KINDS:
        raise UserError(f"config argument {kind!r}{suggest(kind, KINDS)}")
    small = kind.startswith("smoke")
    c = base()
    c.task = "ar_prior" if kind.endswith("ar") else "diffusion_prior"
    c.model = ConfigDict(autoregressive(kind) if kind.endswith("ar") else diffusion(kind))
    told = ("text_embedding", *(("context", "mask") if kind == "karlo" else ("tokens",)))
    c.data.source, c.data.path = "cached", "runs/unclip/pairs"
    c.data.transforms = (("pick_row", {"keys": told}), ("keep", {"keys": ("embedding", *told)}))

    lr, b2, eps, decay, c.batch_size, c.steps, ema = TRAINED.get(
        "paper" if kind == "karlo" else kind, (5e-4, 0.96, 1e-6, 6e-2, *((16, 4) if small else (256, 3000)), 0.5 if small else 0.995)
    )
    c.optim.lr, c.optim.weight_decay, c.optim.clip_norm = lr, decay, 1.0
    c.optim.wd_rules = ((".*(scale|bias)", 0.0), (".*", 1.0))
    c.optim.args = ConfigDict({"b1": 0.9, "b2": b2, "eps": eps})
    c.optim.warmup = min(200, c.steps // 2)
    c.ema.ema = ema
    c.log.every = 1 if small else 50
    c.checkpoint.every = 2 if small else 1000
    return c


def diffusion(kind: str) -> dict:
    """Config `model` of task diffusion_prior."""
    out = {"path": COSINE, "prediction": "eps" if kind == "eps" else "x0", "dropout": 0.1, "candidates": 2}
    if kind == "karlo":
        words = {"context": {"length": 77, "width": 768}, "masked": True, "unit": False, "statistics": True}
        sampler = {"solver": "ddpm", "spacing": "unclip", "steps": 25, "guidance": 4.0, "clip": "static", "clip_range": 10.0}
        return {**out, **words, "prior": {"variant": "karlo"}, "candidates": 1, "sampler": sampler}
    if kind == "paper":
        # The paper samples 64 steps by Analytic-DPM (Bao et al. 2022), whose variances are not here: DDPM's are the posterior's.
        sampler = {"solver": "ddpm", "spacing": "linspace", "steps": 64}
        return {**out, "prior": {"variant": "unclip"}, "scale": 17.2, "sampler": sampler}
    small = kind == "smoke"
    sampler = {"solver": "ddim", "steps": 2 if small else 64, "guidance": 1.0 if small else 2.0}
    # CLIP's embeddings of pictures lie close together: without their mean and scale taken out there is little to tell them apart.
    return {
        **out,
        "prior": {"embedding": TINY_WIDTH, **TINY} if small else {"embedding": WIDTH, **SMALL},
        "statistics": True,
        "fit_examples": 64 if small else 20_000,
        "sampler": sampler,
    }


def autoregressive(kind: str) -> dict:
    """Config `model` of task ar_prior."""
    if kind == "paper_ar":
        encoder = {"vocab": 49408, "length": 256, "width": 2048, "depth": 24, "heads": 32, "mlp": 8192}
        return {"width": 1024, "prior": {"variant": "unclip"}, "text": encoder, "sampler": {"top_dots": 0.5}}
    small = kind == "smoke_ar"
    network = {"codes": 8, "buckets": 32, "dots": 8, **TINY} if small else {"codes": 48, "buckets": 256, "dots": 32, **SMALL}
    sampler = {"top_dots": 0.5, "top_p": 0.95, "guidance": 1.0 if small else 2.0}
    return {"width": TINY_WIDTH if small else WIDTH, "prior": network, "fit_examples": 64 if small else 20_000, "sampler": sampler}
