"""The diffusion prior against diffusers' PriorTransformer and Karlo's (tests/golden/prior.py), and both layouts in and out."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import mmjax
from mmjax.convert import models, safetensors, schedulers, transfer
from mmjax.convert import prior as convert
from mmjax.convert.pretrained import open_checkpoint
from mmjax.convert.rules import export
from mmjax.convert.source import open_source
from mmjax.core import tree
from mmjax.core.errors import UserError
from mmjax.diffusion import path as paths
from mmjax.diffusion import spacing
from mmjax.tasks import diffusion_prior, diffusion_sampling
from tests.golden.weights import normal, tensors

GOLDENS = Path(__file__).parents[1] / "golden"
with np.load(GOLDENS / "prior.npz") as f:
    GOLDEN = {name: f[name] for name in f.files}
SHAPES, CONFIG = json.loads(str(GOLDEN["shapes"])), json.loads(str(GOLDEN["config"]))
TIMES, MASK = np.float32([3.0, 977.0]), np.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
X, TEXT, WORDS = (normal(name, shape) for name, shape in (("x", (2, 12)), ("text", (2, 12)), ("words", (2, 5, 12))))
SCHEDULER = {"_class_name": "UnCLIPScheduler", "prediction_type": "sample", "clip_sample_range": 10.0, "variance_type": "fixed_small_log"}
STEM = "diffusion_pytorch_model.safetensors"


def weights(form):
    named = tensors(SHAPES[form])
    return named | ({"clip_std": np.abs(named["clip_std"])} if form == "diffusers" else {})


def folder(form, path, **config):
    """What a prior is published as: the folder of a pipeline's component with its scheduler, or a file."""
    if form == "original":
        safetensors.write(path / "prior.safetensors", weights(form))
        return path / "prior.safetensors"
    (path / "prior").mkdir(parents=True)
    (path / "prior_scheduler").mkdir()
    safetensors.write(path / "prior" / STEM, weights(form))
    (path / "prior" / "config.json").write_text(json.dumps(CONFIG | config))
    (path / "prior_scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (path / "model_index.json").write_text(json.dumps({"_class_name": "UnCLIPPipeline", "prior": ["diffusers", "PriorTransformer"]}))
    return path


TOLD = {"diffusers": {"component": "prior"}, "original": {"variant": {"heads": 4}}}


@pytest.fixture(scope="module", params=["diffusers", "original"])
def loaded(request, tmp_path_factory):
    form = request.param
    path = folder(form, tmp_path_factory.mktemp(form))
    return form, path, mmjax.from_pretrained(path, **TOLD[form])


def assert_close(got, want):
    assert float(np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()) < 1e-5


def test_as_the_reference(loaded):
    form, _, found = loaded
    assert_close(found.predict["network"](found.params, X, TIMES, TEXT, words=WORDS, mask=MASK), GOLDEN[f"{form}/out"])
    system = diffusion_prior.parse(ConfigDict(found.config["model"]), jnp.float32)
    assert system.settings.sampler["clip_range"] == 10.0 and system.settings.sampler["guidance"] == 4.0
    assert diffusion_sampling.parse(system.settings.sampler, system).spacing == "unclip"  # config.model of a run
    want = {"prior", "statistics"} if form == "diffusers" else {"prior"}
    assert {path.split("/")[0] for path in tree.flatten(found.params)} == want
    if form == "diffusers":
        assert_close(system.decode(found.params, jnp.asarray(GOLDEN["diffusers/out"])), GOLDEN["diffusers/scaled"])


def test_every_tensor_comes_back(loaded):
    form, path, _ = loaded
    done = transfer.check(path, **TOLD[form])
    assert not done.differ and not done.dropped and len(done.equal) == len(weights(form))


def test_the_originals_mean_and_deviation_lie_beside_it(tmp_path):
    """Read without running the pickle, told to diffusers, and not taken where they are of something else."""
    path = folder("original", tmp_path)
    stats = tmp_path / "ViT-L-14_stats.th"
    shutil.copy(GOLDENS / "karlo_stats.th", stats)
    found = mmjax.from_pretrained(path, **TOLD["original"])
    assert found.config["model"]["statistics"]
    want = {"mean": normal("clip_mean", (12,)), "std": np.abs(normal("clip_std", (12,)))}
    for name, x in want.items():
        np.testing.assert_array_equal(found.params["statistics"][name], x)
    done = transfer.export_to(path, "hf", tmp_path / "out", **TOLD["original"])
    assert not done.notes and open_source(tmp_path / "out").tensors["clip_std"].shape == (1, 12)
    shutil.copy(stats, tmp_path / "B_stats.th")
    with pytest.raises(UserError, match=r"2 files \*_stats.th"):
        open_checkpoint(path, **TOLD["original"])
    (tmp_path / "B_stats.th").unlink()
    shutil.copy(GOLDENS / "checkpoints" / "openai_state_dict.pt", stats)
    with pytest.raises(UserError, match="expected two tensors of 12 numbers"):
        open_checkpoint(path, **TOLD["original"])


def test_out_to_diffusers(loaded, tmp_path):
    form, path, found = loaded
    done = transfer.export_to(path, "hf", tmp_path / "out", **TOLD[form])
    assert done.files == [STEM, "config.json"]
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {k: v for k, v in written.items() if CONFIG[k] != v} == {}
    assert open_source(tmp_path / "out").tensors.keys() == SHAPES["diffusers"].keys()
    again = tree.flatten(mmjax.from_pretrained(tmp_path / "out").params)
    for name, x in tree.flatten(found.params).items():
        np.testing.assert_array_equal(again[name], x, err_msg=name)
    if form == "original":
        assert len(done.notes) == 1 and "no mean and deviation" in done.notes[0]
        assert (again["statistics/mean"] == 0).all() and (again["statistics/std"] == 1).all()


@pytest.mark.parametrize("form, count", [("diffusers", 1_022_030_080), ("original", 1_022_028_544)])
def test_karlo_has_its_published_size(form, count):
    """As diffusers counts it, and as its authors do; the tensors' own shapes too."""
    model = convert._model({"variant": "karlo", "length": 77, "embedding": 768}, statistics=form == "diffusers")
    shapes = models.build(model).shapes
    assert sum(int(np.prod(x.shape)) for x in shapes.values()) == count
    empty = {k: np.broadcast_to(np.float32(0), x.shape) for k, x in shapes.items()}
    rules = convert.diffusers_rules if form == "diffusers" else convert.karlo_rules
    named = export(rules(model, ()), empty)
    assert sum(int(np.prod(x.shape)) for x in named.values()) == count
    assert named["positional_embedding" if form == "diffusers" else "model.positional_embedding"].shape == (1, 81, 2048)


def test_what_its_scheduler_says():
    """Karlo's times are round(i (T - 1) / (N - 1))."""
    said = schedulers.describe(SCHEDULER, "a file")
    assert (said["path"], said["prediction"]) == ({"name": "discrete", "betas": "cosine", "steps": 1000}, "x0") and "variance" not in said
    walked = spacing.times(paths.make(said["path"]), 25, said["sampler"]["spacing"])
    np.testing.assert_array_equal(walked, [*np.round(np.arange(25) * 999 / 24)[::-1], -1])
    decoder = schedulers.describe({"_class_name": "UnCLIPScheduler", "variance_type": "learned_range"}, "a file")
    assert decoder["sampler"]["options"] == {"variance": "learned_range"} and decoder["sampler"]["clip_range"] == 1.0
    assert (decoder["prediction"], decoder["variance"]) == ("eps", "learned_range")


@pytest.mark.parametrize(
    "config, message",
    [
        ({"norm_in_type": "layer"}, "norm_in_type is 'layer', and the networks here have None"),
        ({"clip_embed_dim": 24}, "clip_embed_dim is 24, and the priors here have 12"),
        ({"additional_embeddings": 3}, "additional_embeddings is 3, expected 4"),
        ({"num_layers": 2}, "left over: transformer_blocks.2"),
        ({"_class_name": "UNet2DModel"}, "is of class 'UNet2DModel', and the tensors beside it are of PriorTransformer"),
    ],
)
def test_configs_that_do_not_go_with_the_tensors(config, message, tmp_path):
    with pytest.raises(UserError, match=message) as e:
        mmjax.from_pretrained(folder("diffusers", tmp_path, **config), component="prior")
    assert "\n" not in str(e.value)


def test_priors_that_diffusers_lacks():
    fields = {"embedding": 12, "width": 8, "depth": 1, "heads": 2, "length": 5}
    context = {"context": {"length": 5, "width": 12}}
    for model, message in (
        ({"prior": {**fields, "vocab": 9}}, "reads a caption as features as wide as embeddings"),
        ({"prior": {**fields, "norm": False}, **context}, "has a last norm"),
    ):
        with pytest.raises(UserError, match=message):
            convert.exported({"model": model})
