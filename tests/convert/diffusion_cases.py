"""Checkpoints of diffusion's networks, written from the names and shapes of tests/golden, and what the references compute with them."""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np

import mmjax
from mmjax.convert import safetensors
from mmjax.core import tree
from tests.golden.weights import normal, tensors
from tests.models import unet_golden
from tests.models.torch_layouts import Golden

with np.load(Path(__file__).parents[1] / "golden" / "diffusers_folders.npz") as f:
    FOLDERS = {name: f[name] for name in f.files}
CONFIGS, SCHEDULERS, PIPELINE = (json.loads(str(FOLDERS[name])) for name in ("configs", "schedulers", "pipeline"))
CLOSE = 1e-5  # max |difference| / max |wanted|
STEM = "diffusion_pytorch_model"
AUTOENCODERS, TRANSFORMERS = Golden("autoencoder_kl"), Golden("dit")
UNETS = ("ddpm", "adm", "sd1", "sdxl", "karlo")
# Of the original layouts: what shapes leave open.
ORIGINAL = {
    "guided_legacy": {"heads": 4},
    "guided_new": {"head_width": 16, "order": "new"},
    "guided_upsampler": {"heads": 2, "low_res": 3},
    "ddpmpp": None,
    "ncsnpp": None,
    "dhariwal": None,
    "edm2": {"head_width": 16},
}
WORDS = normal("context", (2, 7, 12))
NUMBERS = np.float32([[64, 48, 0, 5, 64, 64], [32, 32, 3, 0, 16, 64]])
LABELS = np.asarray([4, 1])
# What networks are given beside image and time.
GIVEN = {
    "adm": {"labels": LABELS},
    "sd1": {"context": WORDS},
    "sdxl": {"context": WORDS, "vector": normal("pooled", (2, 20)), "numbers": NUMBERS},
    "karlo": {"context": WORDS, "embedding": normal("embedding", (2, 64))},
    "guided_legacy": {"labels": LABELS},
    "guided_upsampler": {"low_res": normal("low_res", (2, 4, 4, 3))},
    "ddpmpp": {"labels": LABELS, "augment": normal("augment", (2, 9))},
    "ncsnpp": {"labels": LABELS, "augment": normal("augment", (2, 9))},
    "dhariwal": {"labels": LABELS},
    "edm2": {"labels": LABELS},
}
NOISY = ("ddpmpp", "ncsnpp", "dhariwal", "edm2")  # told log sigma / 4
PIXELS = (2, 16, 24, 3)


def weights(case: str) -> dict[str, np.ndarray]:
    """The reference's tensors."""
    if case in unet_golden.SHAPES:
        return {name: np.asarray(x.read()) for name, x in unet_golden.sources(case).items()}
    if case.startswith("autoencoder"):
        return tensors(AUTOENCODERS.shapes[case.removeprefix("autoencoder_")])
    form = {"dit": "diffusers", "dit_original": "original"}[case]
    out = tensors(TRANSFORMERS.shapes[form])
    if "pos_embed" in out:
        out["pos_embed"] = TRANSFORMERS["positions"]
    first = lambda name: "transformer_blocks.0" + name[name.index(".norm1.emb.") :]
    return {name: out[first(name)] if ".norm1.emb." in name else x for name, x in out.items()}


def folder(case: str, path: Path, *, config=None, change=lambda name, x: x, limit: int | None = None) -> Path:
    """diffusers' folder of a case, or the file alone of one that has no config; returns what to open."""
    path.mkdir(parents=True, exist_ok=True)
    named = {name: change(name, x) for name, x in weights(case).items()}
    if case not in CONFIGS:
        safetensors.write(path / "weights.safetensors", named)
        return path / "weights.safetensors"
    if limit:
        safetensors.write_set(
            path, STEM, {name: safetensors.Tensor(x.shape, x.dtype, lambda x=x: x) for name, x in named.items()}, limit=limit
        )
    else:
        safetensors.write(path / f"{STEM}.safetensors", named)
    (path / "config.json").write_text(json.dumps(CONFIGS[case] | (config or {})))
    return path


def pipeline(path: Path, scheduler: str = "ddpm", **components: str) -> Path:
    """A saved pipeline, its components by case."""
    path.mkdir(parents=True)
    index = {k: v for k, v in PIPELINE["model_index.json"].items() if isinstance(v, str)}
    for name, case in components.items():
        folder(case, path / name)
        index[name] = ["diffusers", CONFIGS[case]["_class_name"]]
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULERS[scheduler]))
    index |= {"scheduler": ["diffusers", SCHEDULERS[scheduler]["_class_name"]], "safety_checker": [None, None]}
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def outputs(case: str, pretrained) -> dict[str, tuple]:
    """name -> (what predict computes, what the reference did)."""
    run, params = pretrained.predict, pretrained.params
    if case.startswith("autoencoder"):
        name = case.removeprefix("autoencoder_")
        want = AUTOENCODERS.under(f"{name}/")
        mean, logvar = run["encode"](params, normal("x", PIXELS))
        z = normal(f"{name}/z", want["mean"].shape)
        return {"mean": (mean, want["mean"]), "logvar": (logvar, want["logvar"]), "decoded": (run["decode"](params, z), want["decoded"])}
    if case.startswith("dit"):
        form = "diffusers" if case == "dit" else "original"
        x, t = normal("x", (3, 8, 8, 4)), np.float32([0.0, 17.25, 999.0])
        return {"out": (run["network"](params, x, t, labels=np.asarray([3, 9, 10])), TRANSFORMERS[form])}
    channels = pretrained.config["model"]["channels"]
    side = 8 if case == "dhariwal" else 16
    t = np.float32([-0.7, 0.6]) if case in NOISY else np.float32([3, 977])
    x = normal(f"{case}/x", (2, side, side, channels))
    if case == "guided_classifier":
        return {"out": (run["classify"](params, x, t), unet_golden.GOLDEN[f"{case}/out"])}
    return {"out": (run["network"](params, x, t, **GIVEN.get(case, {})), unet_golden.GOLDEN[f"{case}/out"])}


def assert_close(case: str, pretrained, close: float = CLOSE) -> None:
    for name, (got, want) in outputs(case, pretrained).items():
        assert got.shape == want.shape and got.dtype == np.float32, name
        deviation = float(np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max())
        assert deviation < close, (case, name, deviation)


@functools.cache
def parameters(case: str, variant: tuple = ()) -> dict[str, np.ndarray]:
    """What `from_pretrained` makes of a case's own file, whose outputs are compared elsewhere."""
    with tempfile.TemporaryDirectory() as root:
        loaded = mmjax.from_pretrained(folder(case, Path(root) / "x"), variant=dict(variant) or None)
        return {path: np.array(x) for path, x in tree.flatten(loaded.params).items()}


def assert_same(case: str, pretrained, variant: tuple = ()) -> None:
    """The parameters are those of the case."""
    want, got = parameters(case, variant), tree.flatten(pretrained.params)
    assert got.keys() == want.keys()
    for path, x in want.items():
        np.testing.assert_array_equal(got[path], x, err_msg=path)
