"""A published folder of unCLIP as one pipeline: what diffusers' UnCLIPPipeline draws of it (tests/golden/karlo_pipeline.py)."""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmjax.cli import pipeline as pipelines
from mmjax.cli.main import main
from mmjax.cli.pipeline_stage import drop_options, open_stage
from mmjax.cli.sample_pipeline import load, plan
from mmjax.convert import safetensors
from mmjax.core.errors import UserError
from mmjax.diffusion import walk
from mmjax.tasks import conditions, diffusion, diffusion_prior, unclip
from mmjax.tasks.unclip import Given
from tests.golden.weights import normal, tensors

STUB = {
    "encode_image": lambda params, x: x.mean((1, 2)),
    "encode_text": lambda params, tokens: tokens[:, :3].astype(jnp.float32),
    "token_features": lambda params, tokens: tokens[..., None],
}
ROOT = Path(__file__).parents[1] / "golden"
with np.load(ROOT / "karlo_pipeline.npz") as f:
    GOLDEN = {name: f[name] for name in f.files}
SHAPES, CONFIGS = json.loads(str(GOLDEN["shapes"])), json.loads(str(GOLDEN["configs"]))
CLIP = ROOT / "checkpoints" / "hf_clip"
PROMPTS = ["a red circle!", "two blue stars and one more"]
STAGES = {"prior": (12,), "decoder": (4, 4, 3), "super_res": (16, 16, 3)}


def written(root: Path) -> Path:
    """The folder as it is published."""
    for name, shapes in SHAPES.items():
        (root / name).mkdir(parents=True)
        own = {key.removeprefix(f"{name}."): x for key, x in tensors(shapes).items()}
        own |= {"clip_std": np.abs(own["clip_std"])} if name == "prior" else {}
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        safetensors.write(root / name / f"{stem}.safetensors", own)
    for name, config in CONFIGS.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(json.dumps(config))
    shutil.copytree(ROOT / "tokenizers" / "clip", root / "tokenizer")
    return root


@pytest.fixture(scope="module")
def karlo(tmp_path_factory):
    return written(tmp_path_factory.mktemp("published") / "karlo")


@pytest.fixture(scope="module")
def found(karlo):
    """The pipeline; no weight is read."""
    return pipelines.open_pipeline(karlo)


@pytest.fixture(scope="module")
def params(found):
    return load(found, 8, 0)[0].params


def assert_close(got, want, bound=1e-5):
    assert float(np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()) < bound


def start(stage: str) -> jax.Array:
    return jnp.asarray(normal(f"{stage}/start", (2, *STAGES[stage])))


@pytest.mark.slow  # every network is compiled
def test_captions_are_told_as_diffusers_tells_them(found, params):
    """Text encoder, masks, which the end token that pads does not blur, and every network on first look, of nothing and of the captions."""
    chain = found.chain
    tokens, _ = found.tokens(PROMPTS)
    every = np.concatenate([tokens, np.asarray(chain.empty)])
    np.testing.assert_array_equal(every, GOLDEN["tokens"])
    both = jax.jit(lambda t: (chain.clip["encode_text"](params["clip"], t), chain.clip["token_features"](params["clip"], t)))
    for got, name in zip(both(every), ("text", "words"), strict=True):
        assert_close(got, GOLDEN[name])
    stages = {role: found.stages[role] for role in ("prior", "decoder", "upsampler0")}
    prior, decoder, upsampler = (
        module.parse(stage.config.model, jnp.float32)
        for module, stage in zip((diffusion_prior, diffusion, diffusion), stages.values(), strict=True)
    )
    t = jnp.full(4, 999.0)
    twice = lambda x: jnp.concatenate([x, x])

    def first(tokens):
        told = unclip.beside_words(chain, params, tokens, prior=True)
        words, text = (chain.clip[name](params["clip"], tokens) for name in ("token_features", "encode_text"))
        given = prior.captions.shown(words, text, told["mask"])
        stacked = jax.tree.map(lambda *x: jnp.concatenate(x), conditions.null(prior, given, "all", told["null"]), given)
        yield prior.apply(params["prior"], twice(start("prior")), t, stacked)
        told = unclip.beside_words(chain, params, tokens, prior=False)
        null = told.pop("null")
        given = conditions.shown(decoder, 2, embedding=jnp.asarray(GOLDEN["embedding"]), words=words, **told)
        stacked = jax.tree.map(lambda *x: jnp.concatenate(x), conditions.null(decoder, given, "all", null), given)
        yield stacked["mask"]
        yield decoder.apply(params["decoder"], twice(start("decoder")), t, stacked)
        given = conditions.shown(upsampler, 2, images=jnp.asarray(GOLDEN["small"] / 2 + 0.5))
        yield upsampler.apply(params["upsampler0"], start("super_res"), t[:2], given)
        x, low = jnp.split(jnp.asarray(GOLDEN["low"]), 2, -1)
        yield upsampler.network.apply({"params": params["upsampler0"]["last"]}, x, 0 * t[:2], low_res=low)

    said = jax.jit(lambda tokens: tuple(first(tokens)))(tokens)
    empty, full = GOLDEN["mask"][2:], GOLDEN["mask"][:2]
    np.testing.assert_array_equal(said[1], np.concatenate([empty, empty, full]))
    for got, name in zip((said[0], *said[2:]), ("prior", "decoder", "first", "last"), strict=True):
        assert_close(got, GOLDEN[name])


def refused(capsys, *words) -> str:
    assert main(["sample", *map(str, words)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmjax: error: ")]
    return line


def test_what_asks_for_an_image_tower(found, karlo, tmp_path, capsys):
    """A folder without one draws captions; the rest is refused before a weight is read, and so is a tower that does not fit."""
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    names = ("prompts", "num", "candidates", "embedding", "no_words", "variations_of", "interpolate", "text_diff", "pca_of", "pipeline")
    asks = lambda **given: plan(found, argparse.Namespace(**{**dict.fromkeys(names), **given}))
    assert len(asks(prompts=PROMPTS, num=3).told) == 3
    picture = str(tmp_path / "a.png")
    for flag, given in (
        ("--candidates", {"prompts": PROMPTS, "candidates": 2}),
        ("--variations-of", {"variations_of": picture}),
        ("--interpolate", {"interpolate": [picture] * 2}),
        ("--text-diff", {"text_diff": [picture, "a", "b"]}),
        ("--pca-of", {"pca_of": picture}),
    ):
        with pytest.raises(UserError, match=f"{flag} asks CLIP about pictures, and '.*' holds its text encoder alone"):
            asks(**given)
    file = tmp_path / "pipeline.json"
    towers = {"path": str(karlo), "component": "text_encoder", "image": str(CLIP)}
    file.write_text(json.dumps({"clip": towers, "decoder": {"path": str(karlo), "component": "decoder"}}))
    assert "'image' is for a text encoder that is published alone" in refused(capsys, "--pipeline", file, "--prompt", "a", "--out", "o")


def test_an_image_tower_beside_the_text_encoder(found, karlo, tmp_path):
    """It sees as the folder's feature extractor says."""
    beside = shutil.copytree(karlo, tmp_path / "karlo")
    shutil.copytree(CLIP.with_name("hf_clip_vision_projection"), beside / "image_encoder")
    (beside / "feature_extractor").mkdir()
    seen = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    (beside / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(seen))
    clip = open_stage("clip", beside, pipelines.read(beside)["clip"], (), None)
    both = dataclasses.replace(found, stages={**found.stages, "clip": clip})
    assert both.sees and both.chain.judged == 1 and clip.size == 16
    np.testing.assert_allclose(both.chain.prepare(jnp.full((1, 16, 16, 3), 0.75)), 1.0)
    weights = clip.load()[2]
    assert {"text", "text_proj", "image", "image_proj"} == set(weights)
    assert jax.eval_shape(both.chain.clip["encode_image"], weights, jnp.zeros((2, 16, 16, 3))).shape == (2, 12)


def test_another_solver_leaves_options_behind(found):
    config = found.stages["decoder"].config.copy_and_resolve_references()
    for solver, left in (("ddpm", {"variance": "learned_range"}), ("ddim", {})):
        drop_options(config, [f"model.sampler.solver={solver}"])
        assert config.model.sampler.options.to_dict() == left


def test_folders_that_are_none(karlo, tmp_path, capsys):
    base = ("--prompt", "a", "--out", tmp_path / "out", "--pipeline")
    (karlo / "text_proj").rename(tmp_path / "text_proj")
    try:
        assert "lacks the folder 'text_proj'" in refused(capsys, *base, karlo)
    finally:
        (tmp_path / "text_proj").rename(karlo / "text_proj")
    for name in ("ViT-L-14.pt", "prior-ckpt-step=01000000-of-01000000.ckpt", "improved-sr-ckpt-step=1.2M.ckpt"):
        (tmp_path / name).touch()
    assert "of decoder-ckpt*, its decoder, it has none" in refused(capsys, *base, tmp_path)
    (tmp_path / "decoder-ckpt-step=01000000-of-01000000.ckpt").touch()
    stages = pipelines.read(tmp_path)
    assert list(stages) == ["clip", "prior", "decoder", "upsampler0"]
    assert stages["upsampler0"]["path"] == f"{tmp_path.name}/improved-sr-ckpt-step=1.2M.ckpt"
    with np.load(ROOT / "prior.npz") as f:
        shapes = json.loads(str(f["shapes"]))["original"]
    safetensors.write(tmp_path / "prior.safetensors", tensors(shapes))
    with pytest.raises(UserError, match="neither is there: put ViT-L-14_stats.th beside it"):
        open_stage("prior", tmp_path / "p.json", {"path": "prior.safetensors"}, (), None)


def test_a_picture_without_a_caption_has_the_empty_one(found):
    """In inversion as in drawing: features of nothing are no zeros where others trained."""
    chain, params, seen = found.chain, {"clip": {}, "decoder": {}}, []
    stub = lambda *args, **told: seen.append((args[1:], told)) or jnp.zeros((2, 4, 4, 3))
    blind = dataclasses.replace(chain, clip=STUB, decoder={"embedding_to_image": stub, "invert": stub}, prepare=lambda x: x)
    given = unclip.of_pictures(blind, params, jnp.zeros((2, 4, 4, 3)))
    unclip.decode(blind, params, Given(given.embedding), jax.random.split(jax.random.key(0), 2), eta=0.0)
    (_, inverting), ((_, words, _), drawing) = seen
    want = np.broadcast_to(np.asarray(chain.empty)[..., None], (2, 77, 1))
    np.testing.assert_array_equal(inverting["words"], want)
    np.testing.assert_array_equal(words, want)
    assert inverting["mask"].sum() == drawing["mask"].sum() == 4 and set(inverting) == {"words", "mask", "text_embedding"}


@pytest.mark.slow  # every stage is compiled
def test_pictures_are_those_of_diffusers(found, params, monkeypatch):
    """All of 25, 25 and 7 steps, given the same noise."""
    chain = found.chain
    tables = {shape: np.stack([normal(f"{name}/noise/{i}", (2, *shape)) for i in range(25)]) for name, shape in STAGES.items()}
    starts = {shape: start(name) for name, shape in STAGES.items()}
    monkeypatch.setattr(walk, "gaussian", lambda keys, step, x: jnp.asarray(tables[x.shape[1:]])[step])
    monkeypatch.setattr(walk, "draw", lambda keys, shape, scale=1.0: scale * starts[shape])
    tokens, keys = found.tokens(PROMPTS)[0], jax.random.split(jax.random.key(0), 2)
    draw = jax.jit(lambda tokens: unclip.of_caption(chain, params, tokens, keys))
    given = draw(tokens)
    assert_close(given.embedding, GOLDEN["embedding"], 1e-4)
    small = jax.jit(lambda given: unclip.decode(chain, params, given, keys))(given)
    assert_close(2 * small - 1, GOLDEN["small"], 1e-4)
    assert_close(jax.jit(lambda x: unclip.enlarge(chain, params, x, keys))(small), GOLDEN["pictures"], 1e-4)
