"""Karlo's decoder and upsampler against diffusers and the original (tests/golden/karlo.py), and both layouts in and out."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import mmjax
from mmjax.convert import safetensors, transfer
from mmjax.convert.pretrained import open_checkpoint
from mmjax.core import tree
from mmjax.core.errors import UserError
from mmjax.diffusion import cascade
from mmjax.tasks import conditions, diffusion, diffusion_sampling
from tests.golden.weights import normal, tensors

with np.load(Path(__file__).parents[1] / "golden" / "karlo.npz") as f:
    GOLDEN = {name: f[name] for name in f.files}
SHAPES, CONFIGS = json.loads(str(GOLDEN["shapes"])), json.loads(str(GOLDEN["configs"]))
TIMES = jnp.asarray([3.0, 977.0])
MASK = jnp.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
X, LOW = (jnp.asarray(normal(name, (2, 16, 16, 3))) for name in ("x", "low"))
FOLDERS = {"decoder": ("decoder", "text_proj"), "upsampler": ("super_res_first", "super_res_last")}
CLOSE = 1e-5


def folder(form: str, stage: str, path: Path) -> Path:
    """What a stage is published as."""
    named = tensors(SHAPES[f"{form}_{stage}"])
    if form == "original":
        path.mkdir(parents=True)
        safetensors.write(path / "model.safetensors", named)
        return path / "model.safetensors"
    for name in FOLDERS[stage]:
        (path / name).mkdir(parents=True)
        own = {key.removeprefix(f"{name}."): x for key, x in named.items() if key.startswith(f"{name}.")}
        safetensors.write(path / name / "diffusion_pytorch_model.safetensors", own)
        (path / name / "config.json").write_text(json.dumps(CONFIGS[name]))
    return path


def told(form: str) -> dict | None:
    return {"head_width": 16, "size": 16} if form == "original" else None


@functools.cache
def loaded(form: str, stage: str, root: Path):
    return mmjax.from_pretrained(folder(form, stage, root / form / stage), variant=told(form))


def assert_close(got, want):
    assert float(np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()) < CLOSE


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("karlo")


@pytest.mark.parametrize("form", ["diffusers", "original"])
def test_decoder_as_the_reference(form, root):
    found = loaded(form, "decoder", root)
    system = diffusion.parse(ConfigDict(found.config["model"]), jnp.float32)
    array = lambda name, *shape: jnp.asarray(normal(name, (2, *shape)))
    given = conditions.shown(
        system, 2, embedding=array("embedding", 10), text_embedding=array("text", 10), words=array("words", 5, 10), mask=MASK
    )
    told = lambda: conditions.network_inputs(system, found.params, given, given["context"])
    inputs, out = jax.jit(lambda x: (told(), system.apply(found.params, x, TIMES, given)))(X)
    if form == "diffusers":
        assert_close(inputs["context"], GOLDEN["diffusers/context"])
        assert_close(inputs["embedding"], GOLDEN["diffusers/added"])
    assert_close(out, GOLDEN[f"{form}/decoder"])
    sampler = diffusion.parse_sampler(system)
    assert (sampler.solver, sampler.steps, sampler.guidance, system.settings.variance) == ("ddpm", 25, 8.0, "learned_range")


@pytest.mark.parametrize("form", ["diffusers", "original"])
def test_upsampler_as_the_reference(form, root):
    found = loaded(form, "upsampler", root)
    system = diffusion.parse(ConfigDict(found.config["model"]), jnp.float32)
    network = jax.jit(lambda params: system.network.apply({"params": params}, X, TIMES, low_res=LOW))
    for name, own in (("first", "network"), ("last", "last")):
        assert_close(network(found.params[own]), GOLDEN[f"{form}/{name}"])
    walked = diffusion_sampling.walk_of(diffusion.parse_sampler(system), system)
    assert len(walked) == 8 and walked[-2] == system.settings.last_until and system.low.size == 4  # the last of seven looks
    assert_close(cascade.resize(jnp.asarray(normal("small", (2, 4, 4, 3))), (16, 16)), GOLDEN["enlarged"])


@pytest.mark.parametrize("stage", FOLDERS)
def test_layouts_in_and_out(stage, root):
    """Every tensor comes back byte for byte; the original's model, exported as diffusers' folders, is the same model."""
    for form in ("diffusers", "original"):
        found = loaded(form, stage, root)
        path = root / form / stage / ("model.safetensors" if form == "original" else "")
        check = transfer.check(path, variant=told(form))
        assert not check.differ and not check.dropped and len(check.equal) == len(SHAPES[f"{form}_{stage}"])
        if form == "diffusers":
            ours = transfer.target_of(found.config, "hf").jsons
            for name in FOLDERS[stage]:
                written = {key: list(x) if isinstance(x, tuple) else x for key, x in ours[f"{name}/config.json"].items()}
                assert {key: CONFIGS[name][key] for key in written if key in CONFIGS[name]} == written
    out = root / "out" / stage
    written = transfer.export_to(path, "hf", out, variant=told("original"))
    assert {Path(name).parent.name for name in written.files} == set(FOLDERS[stage])
    want, got = (tree.flatten(x.params) for x in (found, mmjax.from_pretrained(out)))
    assert got.keys() == want.keys()
    assert all(np.array_equal(got[name], x) for name, x in want.items())


def test_one_network_of_two_and_what_does_not_fit(root):
    loaded("diffusers", "upsampler", root)
    path = root / "diffusers" / "upsampler"
    last = mmjax.from_pretrained(path, component="super_res_last", variant={"low_res": 3, "in_channels": 3})
    want = loaded("diffusers", "upsampler", root).params["last"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(last.params["network"]["conv_in"]["kernel"], want)
    assert last.config["model"]["channels"] == 3
    broken = folder("diffusers", "decoder", root / "broken")
    (broken / "decoder_scheduler").mkdir()
    scheduler = broken / "decoder_scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({"_class_name": "UnCLIPScheduler", "variance_type": "learned_range", "clip_sample_range": 2.0}))
    assert open_checkpoint(broken).config["model"]["sampler"]["clip_range"] == 2.0
    (broken / "text_proj" / "config.json").write_text(json.dumps(CONFIGS["text_proj"] | {"cross_attention_dim": 13}))
    with pytest.raises(UserError, match="cross_attention_dim is 13, and the decoder beside it has 12"):
        mmjax.from_pretrained(broken)
    (broken / "text_proj" / "config.json").unlink()
    with pytest.raises(UserError, match="is missing, expected UnCLIPTextProjModel"):
        mmjax.from_pretrained(broken)
