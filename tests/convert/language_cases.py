"""Checkpoints of language models of tests/golden/lm.py, written here from the names of their tensors."""

import json
from pathlib import Path

import numpy as np

from mmjax.convert import safetensors
from tests.golden.weights import tensors

with np.load(Path(__file__).parents[1] / "golden" / "lm.npz") as f:
    GOLDEN = {name: f[name] for name in f.files}
SHAPES, CONFIGS = json.loads(str(GOLDEN["shapes"])), json.loads(str(GOLDEN["configs"]))
CASES, TOKENS = list(SHAPES), GOLDEN["tokens"]
CLOSE = 1e-5  # max |difference| / max |wanted|


def write(case: str, folder: Path, change=lambda config: config, rename=lambda name: name, more=()) -> Path:
    """A folder as `save_pretrained` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {rename(name): x for name, x in tensors(SHAPES[case]).items()}
    safetensors.write(folder / "model.safetensors", {**named, **dict(more)})
    (folder / "config.json").write_text(json.dumps(change(dict(CONFIGS[case]))))
    return folder


def deviation(got, want) -> float:
    """max |difference| / max |wanted|."""
    got = np.asarray(got)
    assert got.shape == want.shape and got.dtype == np.float32
    return float(np.abs(got - want).max() / np.abs(want).max())
