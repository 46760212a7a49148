"""Reflow: a teacher's pairs are what its sampler makes of their noise, and what its student learns, which straightens the way."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax import tasks
from mmjax.cli import cache_pairs
from mmjax.cli.main import main
from mmjax.core import config as config_lib
from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.data import loader
from mmjax.diffusion import coupling, density, objective, walk
from mmjax.diffusion import path as paths
from mmjax.tasks import diffusion
from tests.cli.test_sample_verb import CONFIG, TINY, made

SIZE, BATCH = 8, 4
DIT = {"type": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2, "classes": 3, "label_dropout": 0.1}
FLOW = {"path": {"name": "flow"}, "prediction": "velocity", "labels": True, "network": DIT}
EULER = {"solver": "euler", "steps": 2, "guidance": 1.5}


def task_of(**model):
    c = config_lib.base()
    c.task, c.batch_size = "diffusion", BATCH
    c.model = ConfigDict({"size": SIZE, "channels": 1, **FLOW, **model})
    return tasks.make(c)


def filled(task):
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda s: 0.2 * draw.normal(size=s.shape).astype(s.dtype), jax.eval_shape(task.init, jax.random.key(0)))


def test_a_pairs_sample_is_what_the_sampler_makes_of_its_noise():
    task, keys = task_of(sampler=EULER), rng.per_example(jax.random.key(3), jnp.arange(BATCH))
    batch = {"label": jnp.array([0, 1, 2, 0], jnp.int32), "image": jnp.zeros((BATCH, SIZE, SIZE, 1))}

    both = jax.jit(
        lambda params: (task.predict["pairs"](params, batch, keys), task.predict["class_to_image"](params, batch["label"], keys))
    )
    found, picture = both(filled(task))
    assert set(found) == {"noise", "sample", "label"} and float(jnp.abs(found["sample"] - found["noise"]).max()) > 0.1
    np.testing.assert_array_equal(found["noise"], walk.draw(keys, (SIZE, SIZE, 1)))  # what the sampler begins from
    np.testing.assert_allclose(np.clip(found["sample"] / 2 + 0.5, 0, 1), picture, atol=1e-6)
    np.testing.assert_array_equal(found["label"], batch["label"])


def test_the_student_is_trained_on_a_pair_as_it_is(monkeypatch):
    """A network that says its input back, x_t = (1 - t) sample + t noise, against the one direction of the pair, noise - sample."""
    task = task_of(coupling="pairs", density={"name": "uniform"})
    assert {k: v.shape for k, v in task.batch_spec.items()} == {
        "noise": (BATCH, SIZE, SIZE, 1),
        "sample": (BATCH, SIZE, SIZE, 1),
        "label": (BATCH,),
    }
    monkeypatch.setattr(diffusion.System, "apply", lambda self, params, x, t, given, keys=None: x)
    draw = np.random.default_rng(1)
    noise, sample = jnp.asarray(draw.normal(size=(2, BATCH, SIZE, SIZE, 1)), jnp.float32)
    index, key = jnp.arange(BATCH, dtype=jnp.int32), jax.random.key(5)
    batch = {"noise": noise, "sample": sample, "label": jnp.zeros(BATCH, jnp.int32), "_index": index}
    times = jax.vmap(lambda k: rng.named(k, "time"))(rng.per_example(key, index))
    t = np.asarray(density.make({"name": "uniform"}, paths.flow()).draw(times), np.float64)[:, None, None, None]
    value, _ = task.loss({}, batch, key, jnp.int32(0))
    np.testing.assert_allclose(value, (((1 - t) * sample + t * noise - (noise - sample)) ** 2).mean(), rtol=1e-5)


def test_a_gaussians_second_flow_is_straight():
    """Data N(0, s^2), noise N(0, 1): a flow carries z through z sigma(t), sigma^2 = (1 - t)^2 s^2 + t^2, to s z, with
    S = z^2 (int sigma'^2 dt - (1 - s)^2). Its pairs lie on lines, on which the objective's best velocity is (1 - s) z, and S 0."""
    s, path, z = 3.0, paths.flow(), jnp.array([[1.0], [-2.0]])
    walked = np.linspace(1, 0, 201) ** 1.5
    sigma = jnp.asarray(np.sqrt((1 - walked) ** 2 * s**2 + walked**2), jnp.float32)
    states = sigma[:, None, None] * z[None]
    t = (np.arange(20000) + 0.5) / 20000
    rate = (t - (1 - t) * s**2) / np.sqrt((1 - t) ** 2 * s**2 + t**2)
    want = np.asarray(z[:, 0]) ** 2 * ((rate**2).mean() - (1 - s) ** 2)
    np.testing.assert_allclose(coupling.straightness(states, walked), want, rtol=1e-3)

    pair = objective.corrupt(jnp.stack([s * z] * 201), jnp.asarray(walked, jnp.float32), path, eps=jnp.stack([z] * 201))
    np.testing.assert_allclose(coupling.straightness(pair.x, walked), 0, atol=1e-6)
    best = jnp.broadcast_to((1 - s) * z, pair.x.shape)
    np.testing.assert_allclose(objective.regression(best, pair, "velocity", path), 0, atol=1e-6)


REFUSED = {
    "path": ({"path": {"name": "vp"}, "prediction": "eps"}, "'pairs', reflow, whose path is 'flow'; path is 'vp'"),
    "group": ({"coupling_group": 2}, "coupling_group is 2, of coupling 'optimal_transport'; coupling is 'pairs'"),
    "name": ({"coupling": "pair"}, "coupling is 'pair'; did you mean 'pairs'"),
    "picture": (
        {"low_resolution": {"size": 4}, "labels": False, "network": {"type": "unet", "channels": (8,), "groups": 4, "in_channels": 1,
         "out_channels": 1, "low_res": 1}},
        "no pictures to make low_resolution of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_when_configured(name):
    model, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        task_of(**{"coupling": "pairs", **model})


def test_a_batch_without_noise_and_a_teacher_that_draws():
    plain = {"sample": np.zeros((BATCH, SIZE, SIZE, 1), np.float32), "label": np.zeros(BATCH, np.int32)}
    with pytest.raises(UserError, match="the batch has no 'noise', which the task expects as float32"):
        loader.check(plain, task_of(coupling="pairs").batch_spec, "cached")
    task = task_of(sampler={"solver": "ddim", "steps": 2, "options": {"eta": 1.0}})
    keys, params = jax.random.split(jax.random.key(0), BATCH), jax.eval_shape(task.init, jax.random.key(0))
    with pytest.raises(UserError, match="and solver 'ddim' draws more on its way"):
        jax.eval_shape(task.predict["pairs"], params, plain, keys)
    with pytest.raises(UserError, match="pairs: the batch has no 'label'"):
        jax.eval_shape(task.predict["pairs"], params, {}, keys)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"predict": "encode", "seed": 0}, "--seed goes with --predict pairs: encode draws nothing"),
        ({"predict": "encode", "draws": 2}, "--draws goes with --predict pairs"),
        ({"predict": "pairs,encode"}, "stands alone"),
        ({"captions": 2}, "--captions: pairs takes what the model is shown"),
        ({"input": "image"}, "--input: pairs takes"),
        ({"draws": 0}, "--draws is 0, expected at least 1"),
    ],
)
def test_flags_of_the_other_kind_of_function(given, message):
    args = argparse.Namespace(**{"predict": "pairs", "seed": None, "draws": None, "captions": 0, "input": None, **given})
    with pytest.raises(UserError, match=message):
        cache_pairs.check({name: name for name in args.predict.split(",")}, args)


@pytest.mark.slow
def test_teacher_pairs_student_pictures(tmp_path):
    """The commands, one after the other."""
    teacher = made(tmp_path / "teacher", "dit", *TINY)
    split, size = ("--split", "validation"), "batch_size=16"
    assert (
        main(["cache", "--workdir", teacher, "--predict", "pairs", *split, "--out", str(tmp_path / "pairs"), size, "model.sampler.steps=3"])
        == 0
    )
    words = [f"model.network={config_lib.to_dict(config_lib.open_workdir(teacher).model.network)}", "model.time_scale=1.0", "steps=2", size]
    data = [f"data.path={tmp_path / 'pairs'}", "data.split=validation", f"init_from.path={teacher}", "optim.warmup=1", "checkpoint.every=2"]
    student = str(tmp_path / "student")
    assert main(["train", "--config", f"{CONFIG}:reflow", "--workdir", student, *words, *data]) == 0
    assert main(["sample", "--workdir", student, "--num", "2", "--steps", "1", "--out", str(tmp_path / "pictures")]) == 0
    assert (tmp_path / "pictures" / "00001.png").exists()
