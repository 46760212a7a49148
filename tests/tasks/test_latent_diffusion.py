"""Latent diffusion end to end at tiny sizes: an autoencoder's run, its latents cached, a text-conditional flow on them, pictures drawn."""

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from mmjax.cli.program import assemble
from mmjax.core import checkpoint_read, tree
from mmjax.core import config as config_lib
from mmjax.data.source import open_source
from tests.runs import ROOT, finish, start

pytestmark = pytest.mark.slow  # processes that compile, one after the other

AE, FLOW = (f"{ROOT}/configs/diffusion/{name}.py" for name in ("autoencoder", "latent_scenes"))
POWERS = ["ema.b={'power':0.05}", "ema.c={'power':0.1}", "checkpoint.snapshot_every=1"]


def run(*words):
    """(exit status, what a process with one device printed)."""
    return finish(start(*map(str, words)), timeout=1200)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """Trained for two steps, the second of them with the game."""
    workdir = tmp_path_factory.mktemp("runs") / "ae"
    words = ["steps=2", "batch_size=8", "model.start=1", "optim.warmup=0"]
    code, said = run("train", "--config", f"{AE}:smoke", "--workdir", workdir, *words)
    assert code == 0, said
    return workdir


@pytest.fixture(scope="module")
def latents(autoencoder):
    """The set's folder."""
    out = autoencoder.parent / "latents"
    words = ["--split", "train", "--keep", "captions", "--out", out, "batch_size=16"]
    code, said = run("cache", "--workdir", autoencoder, "--predict", "encode", *words)
    assert code == 0, said
    return out


@pytest.fixture(scope="module")
def flow(autoencoder, latents):
    workdir = autoencoder.parent / "flow"
    given = [f"data.path={latents}", f"init_from.path={autoencoder}", "model.latent.scale=1.5", "steps=2", "batch_size=8", "optim.warmup=1"]
    code, said = run("train", "--config", f"{FLOW}:smoke_cached", "--workdir", workdir, *given, *POWERS)
    assert code == 0, said
    return workdir


def params(workdir):
    return tree.flatten(checkpoint_read.read_params(workdir / "checkpoints")[1])


def test_the_autoencoder_s_evaluation_is_logged(autoencoder):
    lines = [json.loads(line) for line in (autoencoder / "metrics.jsonl").read_text().splitlines()]
    found = next(line for line in lines if "reconstruction/psnr" in line)
    assert np.isfinite(found["reconstruction/ssim"]) and found["reconstruction/latent_std"] > 0 and found["reconstruction/n"] == 16
    trained = [line for line in lines if "loss" in line]
    assert {"learning_rate", "learning_rate_discriminator", "adversarial_factor", "logits_fake"} <= set(trained[-1])


def test_cached_latents_are_the_moments_of_the_pictures(autoencoder, latents):
    config = config_lib.open_workdir(autoencoder)
    source = open_source(config_lib.override(config_lib.base(), ["data.source=cached", f"data.path={latents}"]).data, "train")
    assert len(source) == 64 and source[3]["value"].shape == (16, 16, 4) and source[3]["captions"]
    program = assemble(config)
    picture = np.asarray(Image.open(io.BytesIO(open_source(config.data, "train")[3]["image"])).convert("RGB"), np.float32)
    held = checkpoint_read.read_params(autoencoder / "checkpoints")[1]
    want = jax.jit(program.task.predict["encode"])(held, (picture[None] / 255 - 0.5) / 0.5)
    np.testing.assert_allclose(source[3]["value"], want[0], atol=1e-4)


def test_the_flow_starts_from_the_autoencoder_and_leaves_it(autoencoder, flow):
    first, second = params(autoencoder), params(flow)
    held = {p.removeprefix("first_stage/"): x for p, x in second.items() if p.startswith("first_stage/")}
    assert held.keys() == {p.removeprefix("autoencoder/") for p in first if p.startswith("autoencoder/")}
    for path, x in held.items():
        np.testing.assert_array_equal(x, first[f"autoencoder/{path}"])
    assert any(p.startswith("text/") for p in second)


def test_a_prompt_draws_pictures(flow, tmp_path):
    code, said = run("sample", "--workdir", flow, "--prompt", "a red circle", "--num", 2, "--batch_size", 2, "--out", tmp_path / "a")
    assert code == 0, said
    assert Image.open(tmp_path / "a" / "00000.png").size == (32, 32)
    told = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert told["pictures"][1]["prompt"] == "a red circle" and told["weights"] == "ema/b"


def test_an_average_of_any_width_draws_too(flow, tmp_path):
    draw = ("sample", "--workdir", flow, "--prompt", "a star", "--num", 1)
    code, said = run(*draw, "--ema_std", 0.07, "--out", tmp_path / "a")
    assert code == 0, said
    told = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert told["weights"] == "average of std 0.07 at step 2, made of 4 snapshots"


def test_an_evaluation_says_what_it_is_of(autoencoder):
    code, said = run("eval", "--workdir", autoencoder, "--split", "validation")
    assert code == 0, said
    told = json.loads(said[said.index("{") :])
    assert told["weights"] == "params" and told["reconstruction/psnr"] > 0
    assert told["reconstruction/of"].startswith("reconstructions of 'scenes/objects_32_64_16' (validation)")
    code, said = run("eval", "--workdir", autoencoder, "--ema_std", 0.1)
    assert code == 2 and "keeps no power-function average" in said
