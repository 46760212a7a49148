"""`mmjax convert`: round trips byte for byte, out to other libraries' layouts and back, and into training."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import mmjax
from mmjax.cli.main import main
from mmjax.cli.program import assemble
from mmjax.cli.train import initialise_from
from mmjax.convert import clip, models, openclip_config, safetensors, siglip, transfer
from mmjax.convert.rules import export
from mmjax.convert.source import Source, open_source
from mmjax.convert.tensors import of_array
from mmjax.core import tree
from mmjax.core.config import base
from mmjax.core.errors import UserError
from mmjax.models.clip import VARIANTS
from mmjax.models.clip import build as clip_build
from tests.convert.cases import CLOSE, FOLDER, STORED, TIMM, WRITTEN, deviations, weights, write


@pytest.fixture(autouse=True)
def small_timm(monkeypatch):
    monkeypatch.setattr(openclip_config, "_TIMM", TIMM)


@pytest.mark.parametrize("name", STORED + WRITTEN)
def test_every_layout_comes_back_byte_for_byte(name, tmp_path, capsys):
    path = FOLDER / name if name in STORED else write(name, tmp_path / "src")
    assert main(["convert", "check", str(path)]) == 0
    out = capsys.readouterr().out
    dropped = {"openai_resnet": 28}.get(name, 0)
    tensors = len(open_source(path).tensors)
    assert f"{tensors - dropped} of {tensors - dropped} tensors come back byte for byte" in out
    assert ("dropped" in out) == (dropped > 0)
    if dropped:
        assert f"{dropped} tensors are no part of the model and are dropped: visual.bn1.num_batches_tracked" in out


@pytest.mark.parametrize("half", [np.float16, "bfloat16", np.float64])
def test_other_types_come_back_too(half, tmp_path):
    write("openclip_gelu", tmp_path, lambda name, x: (x + np.float32(1e-3)).astype(half))
    done = transfer.check(tmp_path)
    assert len(done.equal) == 50 and not done.differ


@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_scale_may_be_a_number_or_an_array_of_one(shape, tmp_path):
    write("openclip_siglip", tmp_path, lambda name, x: x.reshape(shape) if name in ("logit_scale", "logit_bias") else x)
    done = transfer.check(tmp_path)
    assert open_source(tmp_path).tensors["logit_bias"].shape == shape
    assert len(done.equal) == 74 and not done.differ


def test_check_sees_a_difference(tmp_path, monkeypatch, capsys):
    """A rule whose inverse is wrong."""
    write("openclip_gelu", tmp_path)

    def exported(rules, leaves):
        good = export(rules, leaves)
        bad = dataclasses.replace(good["visual.proj"], read=lambda: good["visual.proj"].read() + 1e-3)
        return {**good, "visual.proj": bad}

    monkeypatch.setattr(transfer, "export", exported)
    assert main(["convert", "check", str(tmp_path)]) == 1
    got = capsys.readouterr()
    assert got.err == "differs: visual.proj\n" and "49 of 50 tensors" in got.out


def test_import_then_load(tmp_path, capsys):
    out = tmp_path / "ours"
    assert main(["convert", "import", str(FOLDER / "openai_jit.pt"), "--out", str(out)]) == 0
    assert "10,977 parameters of image tower vit of width 16 and text tower transformer of width 16" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "params.safetensors"]
    loaded, direct = mmjax.from_pretrained(out), mmjax.from_pretrained(FOLDER / "openai_jit.pt")
    assert loaded.config == {**direct.config, "layout": "openai"}
    for path, x in tree.flatten(loaded.params).items():
        np.testing.assert_array_equal(x, tree.flatten(direct.params)[path])
    for name, d in deviations("torch", loaded).items():
        assert d < CLOSE, name
    record = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**record, "mmjax": 99}))
    with pytest.raises(UserError, match="written in format 99, this mmjax reads format 1"):
        mmjax.from_pretrained(out)


def test_import_in_half_precision(tmp_path):
    assert main(["convert", "import", str(FOLDER / "hf_clip"), "--out", str(tmp_path / "o"), "--dtype", "bfloat16"]) == 0
    assert {str(x.dtype) for x in safetensors.read(tmp_path / "o" / "params.safetensors").values()} == {"bfloat16"}
    assert {str(x.dtype) for x in jax.tree.leaves(mmjax.from_pretrained(tmp_path / "o").params)} == {"float32"}


PAIRS = [name for name in STORED if name.endswith(".pt") or name in ("hf_clip",)] + [
    n for n in WRITTEN if "siglip" not in n and n != "big_vision"
]
HF = [name for name in STORED if name.startswith("hf_")] + [name for name in WRITTEN if name != "openai_resnet"]


@pytest.mark.parametrize("name, to", [(n, "hf") for n in HF] + [(n, "openclip") for n in (*PAIRS, "openclip_siglip")])
def test_out_and_in_again(name, to, tmp_path):
    """Through a folder of the other library: the same parameters of the same module."""
    path = FOLDER / name if name in STORED else write(name, tmp_path / "src")
    done = transfer.export_to(path, to, tmp_path / "out")
    assert set(done.files) == {p.name for p in (tmp_path / "out").iterdir()}
    assert done.notes == []
    (a, before), (b, after) = transfer.load_leaves(path), transfer.load_leaves(tmp_path / "out")
    assert before.keys() == after.keys()
    for leaf, x in before.items():
        np.testing.assert_array_equal(after[leaf][...], x[...], err_msg=leaf)
    one, other = a.config["model"], b.config["model"]
    if (name, to) == ("hf_clip", "openclip"):  # which finds the end token, 39, by its being the largest id
        assert (one["text"].pop("pool"), one["text"].pop("eos"), other["text"].pop("pool")) == ("eos", 39, "argmax")
    assert clip_build(one) == clip_build(other) if {"image", "text"} <= set(one) else one == other
    assert a.config.get("preprocess") == b.config.get("preprocess")


def test_exported_names_are_the_librarys(tmp_path):
    """Through both other layouts and back to where it began: the tensors that transformers and OpenCLIP wrote themselves."""
    transfer.export_to(FOLDER / "hf_clip", "openclip", tmp_path / "a")
    transfer.export_to(tmp_path / "a", "hf", tmp_path / "b")
    want, got = (open_source(p).tensors for p in (FOLDER / "hf_clip", tmp_path / "b"))
    assert got.keys() == want.keys()
    for name, x in want.items():
        assert (got[name].shape, got[name].dtype) == (x.shape, x.dtype), name
        np.testing.assert_array_equal(got[name].read(), x.read(), err_msg=name)
    transfer.export_to(write("openai_vit", tmp_path / "src"), "hf", tmp_path / "c")
    transfer.export_to(tmp_path / "c", "openclip", tmp_path / "d")
    back = open_source(tmp_path / "d").tensors
    for name, x in weights("openai_vit").items():
        np.testing.assert_array_equal(back[name].read(), x, err_msg=name)


def test_exported_configs_say_what_transformers_wrote(tmp_path):
    """Every key of ours that transformers' own file has too has its value, for all towers and families."""
    for name in (n for n in STORED if n.startswith("hf_")):
        transfer.export_to(FOLDER / name, "hf", tmp_path / name)
        flat = lambda d: {k: v for k, v in tree.flatten(json.loads((d / "config.json").read_text())).items()}
        ours, theirs = flat(tmp_path / name), flat(FOLDER / name)
        # In the towers' own groups transformers leaves the default, which it does not use.
        same = {key for key in set(ours) & set(theirs) if not key.endswith("_config/projection_dim")}
        assert len(same) > 8, name
        assert {k: ours[k] for k in same} == {k: theirs[k] for k in same}, name


def test_tokenizer_goes_along(tmp_path):
    shutil.copytree(FOLDER / "hf_clip", tmp_path / "c")
    (tmp_path / "c" / "vocab.json").write_text("{}")
    assert "vocab.json" in transfer.export_to(tmp_path / "c", "hf", tmp_path / "out").files
    assert (tmp_path / "out" / "vocab.json").read_text() == "{}"


@pytest.mark.parametrize("name", VARIANTS)
def test_published_sizes_through_openclips_config(name, monkeypatch):
    """Fields -> open_clip_config.json -> the same module."""
    monkeypatch.undo()  # the true sizes of timm's towers
    pre = {"size": VARIANTS[name]["size"], "mean": clip.MEAN, "std": clip.STD, "resize": "short_side", "method": "bicubic"}
    config = {"model": {**VARIANTS[name], "channels": 3}, "preprocess": pre}
    target = transfer.target_of(config, "openclip")
    names, jsons = target.names, target.jsons
    stub = {"logit_bias": of_array(np.zeros(()))} if "SigLIP" in name else {}
    back = clip.openai_describe(Source(Path("x"), Path("x"), stub, json.loads(json.dumps(jsons))))
    assert back["preprocess"] == pre and bool(names) == ("SigLIP" in name)
    # Of the sizes here timm has SigLIP with exact GELU alone.
    want = {**config["model"], "image": {**VARIANTS[name]["image"], "act": "gelu"}} if "SigLIP" in name else config["model"]
    assert clip_build(back["model"]) == clip_build(want)


def test_what_a_library_lacks_is_said(tmp_path, capsys):
    resnet = write("openai_resnet", tmp_path / "src")
    for path, to, message in (
        (resnet, "hf", "Hugging Face's CLIP has vision transformers only; export --to openclip"),
        (FOLDER / "hf_siglip", "openclip", "OpenCLIP takes SigLIP's image towers from timm, which has none of width 16"),
        (FOLDER / "hf_bert", "openclip", "OpenCLIP's files hold an image tower and a text transformer; export --to hf"),
        (FOLDER / "hf_clip", "timm", "--to is 'timm'; known: hf, openclip"),
    ):
        assert main(["convert", "export", str(path), "--to", to, "--out", str(tmp_path / "o")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "o").exists()
    assert main(["convert", "import", str(resnet), "--out", str(tmp_path / "src")]) == 2
    assert "src' is there already; choose a new folder" in capsys.readouterr().err
    assert main(["convert", "import", str(resnet), "--out", str(tmp_path / "o"), "--dtype", "int8"]) == 2
    assert "--dtype is 'int8'; expected float32, bfloat16 or float16" in capsys.readouterr().err
    assert main(["convert", "check", str(resnet), "a=b"]) == 2


def test_openclip_is_said_to_compute_another_activation(tmp_path):
    """timm's tower of this name has exact GELU; with tanh weights the features differ, and the user hears of it."""
    path = write("openclip_siglip", tmp_path / "src")
    done = transfer.export_to(path, "openclip", tmp_path / "a", act="gelu_tanh")
    assert len(done.notes) == 1 and "activation is gelu_tanh, and vit_base_patch8_siglip_16 has gelu" in done.notes[0]


# --- into training ------------------------------------------------------------------------------------------------------


def training_config(path, **model):
    c = base()
    c.task, c.batch_size, c.steps = "clip", 8, 1
    loaded = mmjax.from_pretrained(FOLDER / "hf_clip").config["model"]
    c.model = ConfigDict({**loaded, **model})
    c.init_from.path = str(path)
    return c


@pytest.mark.parametrize("converted", [True, False], ids=["converted", "published"])
def test_training_starts_from_weights(converted, tmp_path):
    path = FOLDER / "hf_clip"
    if converted:
        path = tmp_path / "ours"
        transfer.import_to(FOLDER / "hf_clip", path)
    said = []
    program = assemble(training_config(path))
    params = initialise_from(program, program.abstract.params, said.append)
    want = mmjax.from_pretrained(FOLDER / "hf_clip").params
    assert jax.tree.structure(params) == jax.tree.structure(want)
    for name, x in tree.flatten(params).items():
        np.testing.assert_array_equal(x, tree.flatten(want)[name], err_msg=name)
        assert x.sharding == tree.flatten(program.abstract.params)[name].sharding
    assert said == [f"46 of 46 parameters start from the weights, layout {'mmjax' if converted else 'hf'}, of '{path}'"]


def test_training_from_a_part_of_published_weights():
    """LiT: the image tower of a CLIP; the rest is skipped by rules."""
    c = training_config(FOLDER / "hf_clip")
    c.init_from.skip = ("text.*", "logit_scale")
    program = assemble(c)
    fresh = program.abstract.params
    params = initialise_from(program, fresh, lambda line: None)
    want = mmjax.from_pretrained(FOLDER / "hf_clip").params
    np.testing.assert_array_equal(params["image"]["cls"], want["image"]["cls"])
    assert params["text"]["pos"]["embedding"] is fresh["text"]["pos"]["embedding"]
    c = training_config(FOLDER / "hf_clip")
    c.init_from.step = 3
    with pytest.raises(UserError, match=r"init_from.step=3: '.*hf_clip' holds published weights, which have no steps"):
        initialise_from(assemble(c), fresh, lambda line: None)
    c = training_config(FOLDER / "hf_siglip")
    with pytest.raises(UserError, match="init_from: source and target parameters do not match"):
        initialise_from(assemble(c), fresh, lambda line: None)


# --- published sizes ----------------------------------------------------------------------------------------------------

LAYOUTS = {
    "ViT-B/32": (clip.OPENAI, 302),
    "RN50": (clip.OPENAI, 489),
    "ViT-bigG/14": (clip.OPENAI, None),
    "SigLIP-B/16-224": (siglip.HF_SIGLIP, 408),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_numbers_of_tensors_of_published_models(name):
    """302 of B/32, 489 of RN50 with its 55 counters and 408 of SigLIP: counted from the libraries' own models."""
    layout, count = LAYOUTS[name]
    fields = {**VARIANTS[name], "channels": 3}
    names = export(layout.rules(fields, ()), models.build(fields).shapes).keys()
    if count is not None:
        assert len(names) + 55 * (name == "RN50") == count
    if layout is clip.OPENAI:
        assert {"visual.conv1.weight", "ln_final.bias", "text_projection"} <= names
