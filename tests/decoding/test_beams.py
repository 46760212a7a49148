"""Beams and penalties against transformers' generate; written by tests/golden/beams.py."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mmjax
from mmjax.convert import safetensors
from mmjax.core import tree
from mmjax.decoding import Prompt, beam_search, options
from mmjax.models import lm
from tests.golden.weights import tensors

with np.load(Path(__file__).parents[1] / "golden" / "beams.npz") as f:
    GOLDEN = {name: f[name] for name in f.files}
SEARCHES, PROMPTS = json.loads(str(GOLDEN["searches"])), json.loads(str(GOLDEN["prompts"]))
SHARPER, PAD = 2.0, 3
LONG = ("plain", "default", "negative", "long")  # to compile, and of what the others are of too
NAMES = {"eos_token_id": "stop", "num_beams": "beams"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    named = dict(tensors(json.loads(str(GOLDEN["shapes"]))["gpt2"]))
    for name in ("transformer.ln_f.weight", "transformer.ln_f.bias"):
        named[name] = named[name] * np.float32(SHARPER)
    safetensors.write(folder / "model.safetensors", named)
    (folder / "config.json").write_text(str(GOLDEN["config"]))
    return mmjax.from_pretrained(folder)


def asked(name):
    """What transformers was asked, in our words."""
    how = {NAMES.get(k, k): v for k, v in SEARCHES[name].items() if k != "num_return_sequences"}
    stop = how.pop("stop")
    return {**how, "stop": tuple((i,) for i in (stop if isinstance(stop, list) else [stop])), "max_new_tokens": 8, "pad": PAD}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in SEARCHES])
def test_the_same_texts_as_transformers(name, model):
    tokens = np.array([p + [0] * (4 - len(p)) for p in PROMPTS], np.int32)
    lengths = np.array([len(p) for p in PROMPTS], np.int32)
    want = GOLDEN[f"{name}/tokens"]
    if name == "greedy":
        got = model.predict["generate"](model.params, tokens, jax.random.key(0), lengths=lengths, **asked(name))
        assert np.asarray(got.tokens).tolist() == want[:, 0].tolist()
        return
    network = lm.build(model.config["model"]["lm"])
    search = lambda params: beam_search(
        Prompt(lm.forward(network, params["lm"]), network.init_cache(3, 12), jnp.asarray(tokens), jnp.asarray(lengths)),
        options(**asked(name)),
    )
    got = jax.device_get(jax.jit(search)(tree.unflatten(tree.flatten(model.params))))
    assert got.tokens.tolist() == want.tolist()
    np.testing.assert_allclose(got.scores, GOLDEN[f"{name}/scores"], rtol=1e-5)
