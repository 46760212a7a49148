"""Checkpoints of tests/golden/convert.py, written here from the names of their tensors."""

import json
from pathlib import Path

import numpy as np

from mmjax.convert import safetensors
from tests.golden.weights import normal, tensors

FOLDER = Path(__file__).parents[1] / "golden" / "checkpoints"
with np.load(FOLDER.parent / "convert.npz") as f:
    GOLDEN = {name: f[name] for name in f.files}
SHAPES = json.loads(str(GOLDEN["shapes"]))
CONFIGS = json.loads(str(GOLDEN["configs"]))
STORED = sorted(p.name for p in FOLDER.iterdir() if p.name != "legacy.pt")
WRITTEN = list(SHAPES)
TIMM = {"base": (32, 2, 4, 64)}  # the size that the reference gave the tower of this name
CLOSE = 1e-5  # max |difference| / max |wanted|


def weights(case: str) -> dict[str, np.ndarray]:
    """The tensors of a case, in the reference's order; with PyTorch's counters of the batches that a norm saw."""
    named = tensors(SHAPES[case])
    counters = {name.replace("running_mean", "num_batches_tracked"): np.asarray(7) for name in named if name.endswith("running_mean")}
    return {**named, **counters}


def write(case: str, folder: Path, change=lambda name, x: x) -> Path:
    """A checkpoint with the case's weights and configs; returns what to open."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {name: change(name, x) for name, x in weights(case).items()}
    if case == "big_vision":
        np.savez(folder / "params.npz", **named)
        return folder / "params.npz"
    safetensors.write(folder / "model.safetensors", named)
    for name, content in CONFIGS[case].items():
        # timm has no such tower: its name says 16 pixels a patch and 224 a side.
        text = json.dumps(content).replace("patch16_siglip_224", "patch8_siglip_16")
        (folder / name).write_text(text)
    return folder


def inputs(case: str) -> dict[str, np.ndarray]:
    """What the reference was given."""
    side = 64 if case == "openai_resnet" else 16
    return {"image": normal(f"pixels{side}", (2, side, side, 3)), "text": GOLDEN["ids40"]}


def deviations(case: str, pretrained) -> dict[str, float]:
    """max |difference| / max |wanted| of every output that the reference has."""
    given, out = inputs(case), {}
    calls = {"image": ("encode_image", "image"), "text": ("encode_text", "text"), "tokens": ("encode_tokens", "text")}
    for name, (function, of) in {**calls, "logits": ("logits", "")}.items():
        if (want := GOLDEN.get(f"{case}/{name}")) is None:
            continue
        args = [given[of]] if of else [given["image"], given["text"]]
        got = np.asarray(pretrained.predict[function](pretrained.params, *args))
        assert got.shape == want.shape, name
        seen = given["text"] != 0 if name == "tokens" else ...  # what stands at padding means nothing
        out[name] = float(np.abs(got[seen] - want[seen]).max() / np.abs(want[seen]).max())
    assert out
    return out


def golden_case(stored: str) -> str:
    """Under which name the outputs of a stored checkpoint are."""
    return "torch" if stored.endswith(".pt") else stored
