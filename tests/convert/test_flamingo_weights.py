"""OpenFlamingo's and IDEFICS' checkpoints against their libraries (tests/golden/open_flamingo.py, idefics.py), in and out."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mmjax
from mmjax.convert import flamingo as family
from mmjax.convert import idefics, open_flamingo, safetensors, transfer, workdir
from mmjax.convert.pretrained import open_checkpoint
from mmjax.convert.rules import moved
from mmjax.convert.source import Source
from mmjax.core import config as config_lib
from mmjax.core import tree
from mmjax.core.errors import UserError
from mmjax.layers import masks
from mmjax.models import flamingo, gated_xattn, perceiver
from mmjax.models.gated_xattn import GatedCrossAttention
from mmjax.models.perceiver import Perceiver
from mmjax.tasks import flamingo as flamingo_task
from tests.convert.by_rules import assert_comes_back, imported, shapes_of
from tests.golden.weights import normal, tensors
from tests.models.torch_layouts import Golden, deviation

OPEN, IDEFICS = Golden("open_flamingo"), Golden("idefics")
CONFIGS = {name: json.loads(str(golden["configs"])) for name, golden in (("open", OPEN), ("idefics", IDEFICS))}
PIXELS = jnp.asarray(normal("pixels", (2, 2, 1, 16, 16, 3)))
IMAGE = 41
PAPERS = Path(__file__).resolve().parents[2] / "configs" / "flamingo" / "papers.py"
CLOSE = 1e-5  # of the largest entry


def written(folder, named, config=None, stem="model"):
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / f"{stem}.safetensors", named)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def idefics_folder(form, folder, **change):
    return written(folder, tensors(IDEFICS.shapes[form]), CONFIGS["idefics"][form] | change)


def open_flamingo_folder(kind, folder, rename=lambda name: name, **told):
    """The checkpoint, with the language model and CLIP beside it."""
    written(folder / "lm", tensors(OPEN.shapes[f"{kind}/lm"]), CONFIGS["open"][f"{kind}/lm"])
    written(folder / "clip", tensors(OPEN.shapes["clip"]), CONFIGS["open"]["clip"])
    told = {"lm": "lm", "clip": "clip", "image_token": IMAGE, **told}
    (folder / "open_flamingo.json").write_text(json.dumps({name: value for name, value in told.items() if value is not None}))
    named = {rename(name): x for name, x in tensors(OPEN.shapes[f"{kind}/checkpoint"]).items()}
    return written(folder, named, stem="checkpoint")


def assert_logits(model, golden, name):
    got = model.predict["logits"](model.params, golden["tokens"], pixels=PIXELS)
    assert deviation(got, golden[f"{name}/logits"]) < CLOSE


# Against their libraries.


def test_open_flamingo_modules():
    """The resampler with learnt times, and the gated block, whose tokens look at the last image or at all before them."""
    resampler = Perceiver(24, 2, 3, 8, 48, latents=5, **perceiver.FORMS["open_flamingo"], frames=3)
    named = {f"r.{name}": x for name, x in tensors(OPEN.shapes["resampler"]).items()}
    rules = moved("r/", "", open_flamingo._resampler("r", "r", timed=True))
    params = imported(rules, named, shapes_of(resampler.init, (2, 3, 4, 24)))
    features = jnp.asarray(normal("features", (2, 2, 3, 4, 24)).reshape(4, 3, 4, 24))
    got = jax.jit(resampler.apply)({"params": params}, features)
    assert deviation(got.reshape(2, 2, 5, 24), OPEN["resampler"]) < CLOSE
    assert_comes_back(rules, named, params)

    block = GatedCrossAttention(32, 3, 8, 64, **gated_xattn.FORMS["open_flamingo"])
    named = {f"b.{name}": x for name, x in tensors(OPEN.shapes["block"]).items()}
    rules = moved("b/", "", open_flamingo._xattn("b", "b"))
    params = imported(rules, named, shapes_of(block.init, (1, 2, 32), (1, 2, 24)))
    is_image = jnp.asarray(OPEN["tokens"] == IMAGE)
    index, run = masks.media_index(is_image), jax.jit(block.apply)
    x, media = jnp.asarray(normal("x", (2, 11, 32))), jnp.asarray(normal("media", (2, 2, 5, 24)).reshape(2, 10, 24))
    assert deviation(run({"params": params}, x, media, masks.cross(index, 2, 5)), OPEN["block"]) < CLOSE
    every = run({"params": params}, x, media, masks.cross(index, 2, 5, jnp.ones_like(index)))
    seen = np.asarray(index) > 0  # without an image before it, a token of theirs looks at all of them then
    assert deviation(every[seen], OPEN["block_all"][seen]) < CLOSE
    assert_comes_back(rules, named, params)


def test_idefics_equals_transformers(tmp_path):
    """With two documents in a row, kept apart by their end."""
    model = mmjax.from_pretrained(idefics_folder("published", tmp_path))
    assert_logits(model, IDEFICS, "published")
    assert model.config["preprocess"]["size"] == 16 and model.config["model"]["image_token"] == IMAGE
    index = model.predict["logits"].args[0].index(jnp.asarray(IDEFICS["tokens"]))[1]
    np.testing.assert_array_equal(index - 1, IDEFICS["seen"])
    for pixels, message in (
        (PIXELS[..., :8, :], r"the vision tower takes \(rows, images, frames, 16, 16, 3\)"),
        (PIXELS > 0, "expected floats"),
    ):
        with pytest.raises(UserError, match=message):
            model.predict["logits"](model.params, IDEFICS["tokens"], pixels=pixels)
    with pytest.raises(UserError, match="row 0: 2 image tokens"):
        model.predict["generate"](model.params, IDEFICS["tokens"], jax.random.key(0), max_new_tokens=2)


def test_open_flamingo_equals_its_code(tmp_path):
    assert_logits(mmjax.from_pretrained(open_flamingo_folder("mpt", tmp_path)), OPEN, "mpt")


@pytest.mark.slow
def test_other_forms_equal_their_libraries(tmp_path):
    """A head of its own; and with gates a vector each, tied tables, and no norms of queries and keys. The old names of blocks."""
    assert_logits(
        mmjax.from_pretrained(open_flamingo_folder("gpt_neox", tmp_path / "a", rename=lambda name: f"module.{name}")), OPEN, "gpt_neox"
    )
    assert_logits(mmjax.from_pretrained(idefics_folder("plain", tmp_path / "b")), IDEFICS, "plain")


# There and back.


@pytest.mark.parametrize("case", ["plain", "gpt_neox"])
def test_every_tensor_comes_back(case, tmp_path):
    folder = idefics_folder(case, tmp_path) if case == "plain" else open_flamingo_folder(case, tmp_path)
    check = transfer.check(folder)
    assert check.equal and not check.differ and not check.dropped
    assert set(check.equal) == set(check.opened.source.tensors)


@pytest.mark.parametrize("form", ["published", "plain"])
def test_a_written_config_says_the_same_model(form, tmp_path):
    opened = open_checkpoint(idefics_folder(form, tmp_path))
    target = idefics.to_hf(opened.config)
    again = idefics.describe(Source(tmp_path, tmp_path, {}, target.jsons))
    assert again == {key: opened.config[key] for key in again}
    ours, theirs = target.jsons["config.json"], CONFIGS["idefics"][form]
    same = lambda a, b: all(same(a[key], b[key]) for key in a) if isinstance(a, dict) else a == b
    ours = {key: value for key, value in ours.items() if key not in ("architectures", "rope_theta", "rope_scaling")}
    assert all(same(value, theirs[key]) for key, value in ours.items())


@pytest.mark.slow
@pytest.mark.parametrize("case", ["published", "gpt_neox"])
def test_an_exported_folder_loads_again(case, tmp_path):
    idefics_ = case == "published"
    folder = idefics_folder(case, tmp_path / "a") if idefics_ else open_flamingo_folder(case, tmp_path / "a")
    transfer.export_to(folder, "hf" if idefics_ else "open_flamingo", tmp_path / "b")
    first, again = (mmjax.from_pretrained(tmp_path / name) for name in "ab")
    assert again.config["model"] == first.config["model"]
    want = tree.flatten(first.params)
    for path, x in tree.flatten(again.params).items():
        np.testing.assert_array_equal(x, want[path], err_msg=path)
    if not idefics_:  # the language model by itself, new tokens and all
        assert mmjax.from_pretrained(tmp_path / "b" / "lm").config["model"]["lm"]["vocab"] == 42


@pytest.mark.slow
def test_text_after_pictures(tmp_path):
    """Greedy, cached, of prompts of 11 and 6 tokens with two images and one: what the whole text's logits choose each time."""
    model = mmjax.from_pretrained(open_flamingo_folder("mpt", tmp_path))
    tokens, images = np.where(np.arange(11) < [[11], [5]], OPEN["tokens"], 7), np.array([2, 1])
    out = model.predict["generate"](
        model.params, tokens, jax.random.key(0), max_new_tokens=4, lengths=[11, 5], pixels=PIXELS, images=images
    )
    for row, n in enumerate((11, 5)):
        text = list(tokens[row, :n])
        for _ in range(4):
            given = {"pixels": PIXELS[row : row + 1], "images": images[row : row + 1]}
            text.append(int(model.predict["logits"](model.params, np.array([text]), **given)[0, -1].argmax()))
        assert list(out.tokens[row]) == text[n:]


def test_the_first_release():
    """Its names of blocks; and its LLaMA, whose head has no rows for the new tokens."""
    names = [f"lang_encoder.gated_cross_attn_layers.{i}.attn_gate" for i in (3, 7)]
    assert open_flamingo._placed(names, "llama", 8, "it") == ("lang_encoder.gated_cross_attn_layers.{i}", 4)
    fields = {"lm": {"width": 8, "depth": 8, "heads": 2, "mlp": 8, "length": 8, "tied": False, "vocab": 42}, "every": 4}
    held = {"lm:lm_head.weight": np.zeros((40, 8)), "lang_encoder.model.embed_tokens.weight": np.zeros((42, 8))}
    _, head = open_flamingo._tables(fields, held, "llama")
    assert head.source == ("lm:lm_head.weight",)
    (kernel,) = head.op.forward(normal("head", (40, 8)))
    np.testing.assert_array_equal(kernel, np.concatenate([normal("head", (40, 8)), np.zeros((2, 8))]).T)
    np.testing.assert_array_equal(head.op.inverse(kernel)[0], normal("head", (40, 8)))


def test_a_run_at_published_size_is_a_model():
    """What its training needs is left out, variants are their fields, and its new tokens keep the ids that its rows had."""
    config = config_lib.load(f"{PAPERS}:open_flamingo-3b")
    part = workdir._flamingo(config)["flamingo"]
    assert flamingo.build(part.model) == flamingo.build(
        flamingo.VARIANTS["open_flamingo-3b"] | {"lm": {"variant": "mpt-1b", "remat": "full"}}
    )
    assert "width 2048, depth 24" in family.says(part.model)
    assert part.further["added_from"] == 50432 == part.model["image_token"] - 1
    assert {f.name for f in dataclasses.fields(flamingo_task.Options)} | {"streams"} == set(workdir.TRAINED_BY)


# Bad input.


VANILLA = {"form": "vanilla", "heads": 8, "head_width": 64}
NEITHER = {  # as `with_` changes a model
    "xattn": ({"xattn": VANILLA}, {"xattn/gate": "none"}, {"xattn/media_norm": True}),
    "resampler": ({"resampler": {"type": "mlp", "width": 24, "depth": 2, "mlp": 96}}, {"resampler/joint_norm": True}),
    "vision": ({"vision": {"type": "nfnet", "depths": (1, 1, 1, 1)}},),
    "attend": ({"attend": "previous"},),
    "lm": ({"lm/rope_base": 500.0}, {"lm/kv_heads": 1}),  # of OpenFlamingo's, families of language models say what they can write
}


def with_(model, change):
    """A copy; a key "a/b" is one field of a group."""
    out = {name: dict(x) if isinstance(x, dict) else x for name, x in model.items()}
    for name, value in change.items():
        group, _, field = name.partition("/")
        out |= {group: {**out[group], field: value} if field else value}
    return out


@pytest.mark.parametrize(
    ("target", "folder", "form"), [(idefics.to_hf, idefics_folder, "published"), (open_flamingo.target, open_flamingo_folder, "mpt")]
)
def test_what_no_published_form_has_is_refused_by_name(target, folder, form, tmp_path):
    """The ablations, and fields that a published config.json has no words for."""
    config = open_checkpoint(folder(form, tmp_path)).config
    target(config)
    for named, changes in NEITHER.items():
        for change in changes if named != "lm" or form == "published" else ():
            with pytest.raises(UserError, match=rf"^model\.{named}\S* is not (IDEFICS'|OpenFlamingo's)"):
                target({**config, "model": with_(config["model"], change)})


def test_a_checkpoint_alone_says_what_it_lacks(tmp_path):
    folder = open_flamingo_folder("mpt", tmp_path)
    (folder / "open_flamingo.json").unlink()
    with pytest.raises(UserError, match="holds neither its language model nor its CLIP: write open_flamingo.json beside it"):
        open_checkpoint(folder)
    told = {"lm": folder / "lm", "clip": "clip", "image_token": IMAGE}
    assert open_checkpoint(folder / "checkpoint.safetensors", variant=told).config["model"]["image_token"] == IMAGE


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"clip": "lm"}, "clip is 'lm', a mpt"),
        ({"lm": "clip"}, "lm is 'clip', a clip"),
        ({"image_token": None}, "does not tell which id <image> has: say it by image_token"),
        ({"lm": "none"}, "no file or folder"),
    ],
)
def test_parts_that_are_something_else(told, message, tmp_path):
    with pytest.raises(UserError, match=message):
        open_checkpoint(open_flamingo_folder("mpt", tmp_path, **told))


def test_blocks_that_are_elsewhere(tmp_path):
    moved_ = lambda name: name.replace("blocks.3.", "blocks.4.")
    with pytest.raises(UserError, match=r"cross-attention before blocks \[1, 4\] of 5"):
        open_checkpoint(open_flamingo_folder("mpt", tmp_path, rename=moved_))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_resampler": False}, "use_resampler is false"),
        ({"alpha_type": "matrix"}, "alpha_type is 'matrix', expected float or vector"),
        ({"cross_layer_interval": 3}, "cross_layer_interval 3 does not divide num_hidden_layers"),
    ],
)
def test_an_idefics_that_nobody_published(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        open_checkpoint(idefics_folder("plain", tmp_path, **change))
