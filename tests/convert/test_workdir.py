"""Runs of ours read as published weights are: what comes out computes what the run's task computes, of its averages."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import mmjax
from mmjax.cli.main import main
from mmjax.cli.program import assemble
from mmjax.core import config as config_lib
from mmjax.core import sharding, tree
from mmjax.core.checkpoint import Checkpoints
from mmjax.core.errors import UserError
from mmjax.evals.features import open_features

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
KINDS = (
    *("classification/digits:smoke", "clip/digits:smoke", "diffusion/digits:smoke", "diffusion/digits:classifier"),
    *(pytest.param(f"diffusion/{name}:smoke", marks=pytest.mark.slow) for name in ("autoencoder", "latent_scenes")),
)


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    """Name, workdir, its task and what evaluations are given: averages that are not the parameters."""
    workdir = tmp_path_factory.mktemp("run")
    name, _, kind = request.param.partition(":")
    config = config_lib.load(f"{CONFIGS / name}.py:{kind}")
    with config.unlocked():
        config.ema = ConfigDict({"slow": 0.9})
    program = assemble(config, sharding.make_mesh({"data": 1}, jax.devices()[:1]))
    params = program.init().params
    trained, frozen = program.roles.split(params)
    averaged = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), trained)
    config_lib.save(config, workdir)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(7, {"params": trained, "ema": {"slow": averaged}}, frozen=frozen, wait=True)
    return request.param, workdir, program.task, tree.merge(params, averaged)


def normal(*shape):
    return jax.random.normal(jax.random.key(0), shape)


def test_it_computes_what_the_task_does(run):
    name, workdir, task, params = run
    kind = name.removesuffix(":smoke")
    made = mmjax.from_pretrained(workdir)
    spec = task.batch_spec
    images = normal(2, *spec["image"].shape[1:])
    given, same = {"images": (images,)}, {}
    if kind == "clip/digits":
        given["tokens"] = (jnp.ones((2, spec["tokens"].shape[1]), jnp.int32).at[:, 5].set(task.limits["tokens"] - 1),)
        same = {"encode_image": "images", "encode_text": "tokens", "image_features": "images"}
        assert made.tokenizer.encode(["a seven"], 16).shape == (1, 16)
    if kind == "classification/digits":
        same = {"logits": "images"}
        assert made.predict["image_features"](made.params, images).shape[0] == 2
    if kind == "diffusion/digits:classifier":
        x, t = images, jnp.array([0.0, 700.0])
        np.testing.assert_allclose(
            made.predict["classify"](made.params, x, t), task.predict["classify"](params, x, t), rtol=1e-4, atol=1e-5
        )
    if kind in ("diffusion/digits", "diffusion/latent_scenes"):
        size, channels = (made.config["model"][k] for k in ("size", "channels"))
        context = {"context": normal(2, 96, 16)} if kind == "diffusion/latent_scenes" else {}
        x, t = normal(2, size, size, channels), jnp.full(2, 0.5)
        want = task.predict["network"](params, x, t, **context)
        np.testing.assert_allclose(made.predict["network"](made.params, x, t, **context), want, rtol=1e-5, atol=1e-5)
        assert made.config["model"]["prediction"] in ("eps", "velocity") and "sampler" in made.config["model"]
    for function, takes in same.items():
        want = task.predict[function](params, *given[takes])
        np.testing.assert_allclose(made.predict[function](made.params, *given[takes]), want, rtol=1e-5, atol=1e-6)
    if kind in ("diffusion/autoencoder", "diffusion/latent_scenes"):
        stage = made if kind == "diffusion/autoencoder" else mmjax.from_pretrained(workdir, component="first_stage")
        got = np.concatenate(stage.predict["encode"](stage.params, images), -1)
        np.testing.assert_allclose(got, task.predict["encode"](params, images), rtol=1e-5, atol=1e-5)


def test_it_is_imported_with_its_averages(run, tmp_path):
    _, workdir, *_ = run
    assert main(["convert", "import", str(workdir), "--out", str(tmp_path / "out")]) == 0
    again = mmjax.from_pretrained(tmp_path / "out")
    first = mmjax.from_pretrained(workdir)
    assert jax.tree.structure(again.params) == jax.tree.structure(first.params)
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, first.params))
    assert again.config["model"] == first.config["model"]


@pytest.mark.slow
@pytest.mark.parametrize("run", ["diffusion/latent_scenes:smoke"], indirect=True)
def test_an_unknown_component_is_refused(run):
    with pytest.raises(UserError, match="component is 'vae'.*first_stage"):
        mmjax.from_pretrained(run[1], component="vae")


@pytest.mark.parametrize("run", ["classification/digits:smoke"], indirect=True)
def test_a_classifier_judges(run):
    _, workdir, task, params = run
    judge = open_features({"type": "checkpoint", "path": str(workdir), "name": "digits", "function": "image_features"}, "judge")
    assert judge.classes == 10 and judge.frechet == "frechet_digits_features"
    pictures = jax.random.uniform(jax.random.key(1), (3, 8, 8, 3))
    got = judge.function(judge.params, pictures)
    assert got.shape == (3, judge.size + 10)
    (given,) = (args for name, args in config_lib.open_workdir(workdir).data.transforms if name == "normalize")
    want = task.predict["logits"](params, (pictures.mean(-1, keepdims=True) - given["mean"][0]) / given["std"][0])
    np.testing.assert_allclose(got[:, judge.size :], want, rtol=1e-4, atol=1e-5)


def test_other_tasks_are_refused(tmp_path):
    config = config_lib.load(f"{CONFIGS / 'clip/digits'}.py:words")
    config_lib.save(config, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="can be taken out of a run"):
        mmjax.from_pretrained(tmp_path)
