"""What `from_pretrained` computes against the libraries that publish weights (tests/golden/convert.py), in every layout."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mmjax
from mmjax.convert import openclip_config, safetensors
from mmjax.core import sharding, tree
from mmjax.core.errors import UserError
from mmjax.models import clip
from tests.convert.cases import CLOSE, FOLDER, STORED, TIMM, WRITTEN, deviations, golden_case, inputs, weights, write
from tests.golden.weights import normal, tensors

UNMARKED = "ignore:.*nothing tells whose weights these are"


@pytest.fixture(autouse=True)
def small_timm(monkeypatch):
    monkeypatch.setattr(openclip_config, "_TIMM", TIMM)


def assert_close(case, pretrained, close=CLOSE):
    for name, d in deviations(case, pretrained).items():
        assert d < close, (name, d)


# Every layout, against its library.


@pytest.mark.parametrize("name", STORED)
def test_files_their_libraries_wrote(name):
    assert_close(golden_case(name), mmjax.from_pretrained(FOLDER / name))


@pytest.mark.parametrize("case", WRITTEN)
def test_weights_made_from_names(case, tmp_path):
    assert_close(case, mmjax.from_pretrained(write(case, tmp_path)))


@pytest.mark.filterwarnings(UNMARKED)
@pytest.mark.parametrize("case", ["openai_vit", "openai_resnet", "openclip_custom_text"])
def test_openai_needs_no_config(case, tmp_path):
    """Shapes tell the rest: 128 wide is two heads, and the ResNet's 8 are four."""
    safetensors.write(tmp_path / "bare.safetensors", weights(case))
    loaded = mmjax.from_pretrained(tmp_path / "bare.safetensors", act="gelu" if case == "openclip_custom_text" else None)
    assert deviations(case, loaded).keys() == {"image", "text", "logits"}
    assert_close(case, loaded)


def test_weights_of_nobody_are_taken_for_openais_aloud(tmp_path):
    safetensors.write(tmp_path / "bare.safetensors", weights("openai_vit"))
    with pytest.warns(UserWarning, match="taken for OpenAI's, with quick GELU.*open_clip_config.json.*act='gelu'"):
        assert mmjax.from_pretrained(tmp_path).config["model"]["text"]["act"] == "quick_gelu"
    assert mmjax.from_pretrained(tmp_path, act="gelu").config["model"]["text"]["act"] == "gelu"


@pytest.mark.parametrize("name", ["hf_clip_text", "hf_clip_text_projection", "hf_clip_vision", "hf_siglip_text", "hf_siglip_vision"])
@pytest.mark.parametrize("prefix", [True, False])
def test_towers_with_the_names_of_transformers_4_and_5(name, prefix, tmp_path):
    """Release 4 wrote a prefix and a buffer of positions; release 5 writes neither, but for classes WithProjection."""
    folder = tmp_path / name
    shutil.copytree(FOLDER / name, folder)
    old = {name: x.read() for name, x in safetensors.read(folder / "model.safetensors").items()}
    at = "vision_model." if "vision" in name else "text_model."
    bare = {n.removeprefix(at): x for n, x in old.items()}
    new = {(n if not prefix or n.endswith("projection.weight") else at + n): x for n, x in bare.items()}
    if prefix:
        rows = next(x for n, x in bare.items() if n.endswith("position_embedding.weight")).shape[0]
        new[f"{at}embeddings.position_ids"] = np.arange(rows)[None]
    safetensors.write(folder / "model.safetensors", new)
    assert_close(name, mmjax.from_pretrained(folder))


def test_big_vision_scanned(tmp_path):
    """Blocks in one array, and no `params/` before names."""
    flat = {name.removeprefix("params/"): x for name, x in weights("big_vision").items()}
    blocks = sorted({name for name in flat if "/encoderblock_" in name})
    for name in [n for n in blocks if "encoderblock_0" in n]:
        flat[name.replace("encoderblock_0", "encoderblock")] = np.stack([flat[name.replace("block_0", f"block_{i}")] for i in range(2)])
    np.savez(tmp_path / "a.npz", **{name: x for name, x in flat.items() if name not in blocks})
    assert_close("big_vision", mmjax.from_pretrained(tmp_path / "a.npz"))


def test_bert_with_heads_and_the_names_of_tensorflow(tmp_path):
    shutil.copytree(FOLDER / "hf_bert", tmp_path / "b")
    named = {name: x.read() for name, x in safetensors.read(tmp_path / "b" / "model.safetensors").items()}
    rename = lambda n: "bert." + n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    new = {rename(name): x for name, x in named.items()}
    new |= {"cls.predictions.bias": np.zeros(40, np.float32), "bert.embeddings.position_ids": np.arange(16)[None]}
    safetensors.write(tmp_path / "b" / "model.safetensors", new)
    assert_close("hf_bert", mmjax.from_pretrained(tmp_path / "b"))


def test_t5_with_its_decoder_and_two_names_for_one_table(tmp_path):
    shutil.copytree(FOLDER / "hf_t5", tmp_path / "t")
    named = {name: x.read() for name, x in safetensors.read(tmp_path / "t" / "model.safetensors").items()}
    table = named.pop("shared.weight")
    extra = {"shared.weight": table, "encoder.embed_tokens.weight": table, "decoder.x": table, "lm_head.weight": table}
    safetensors.write(tmp_path / "t" / "model.safetensors", {**named, **extra})
    assert_close("hf_t5", mmjax.from_pretrained(tmp_path / "t"))
    safetensors.write(tmp_path / "t" / "model.safetensors", {**named, **extra, "encoder.embed_tokens.weight": table + 1})
    with pytest.raises(UserError, match="shared.weight, encoder.embed_tokens.weight: the tensors are not equal"):
        mmjax.from_pretrained(tmp_path / "t")


# Parts, halves, devices.


def test_in_parts_named_by_an_index(tmp_path):
    tensors = safetensors.read(FOLDER / "hf_clip" / "model.safetensors")
    shutil.copy(FOLDER / "hf_clip" / "config.json", tmp_path)
    files = safetensors.write_set(tmp_path, "model", tensors, limit=20_000)
    assert len(files) == 4 and files[0] == "model.safetensors.index.json"
    assert_close("hf_clip", mmjax.from_pretrained(tmp_path))


@pytest.mark.parametrize("half, close", [(np.float16, 2e-3), (jnp.bfloat16, 2e-2)])
def test_half_precision_in_float32_parameters_out(half, close, tmp_path):
    loaded = mmjax.from_pretrained(write("openclip_gelu", tmp_path, lambda name, x: x.astype(half)))
    assert {x.dtype for x in jax.tree.leaves(loaded.params)} == {np.dtype(np.float32)}
    assert_close("openclip_gelu", loaded, close)
    exact = weights("openclip_gelu")["visual.proj"].astype(half).astype(np.float32)
    np.testing.assert_array_equal(loaded.params["image_proj"]["kernel"], exact)


def test_dtype_is_of_parameters_and_products():
    loaded = mmjax.from_pretrained(FOLDER / "hf_clip", dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(loaded.params)} == {jnp.dtype(jnp.bfloat16)}
    assert 1e-4 < deviations("hf_clip", loaded)["image"] < 0.03


@pytest.mark.parametrize("shape", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_straight_onto_a_mesh(shape):
    mesh = sharding.make_mesh(shape)
    loaded = mmjax.from_pretrained(FOLDER / "hf_clip", mesh=mesh)
    whole, split = (tree.flatten(mmjax.from_pretrained(FOLDER / "hf_clip", mesh=m).params) for m in (None, mesh))
    for path, x in split.items():
        np.testing.assert_array_equal(x, whole[path], err_msg=path)
    kernel = loaded.params["text"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size * shape["fsdp"] * shape.get("tensor", 1) == kernel.size
    assert_close("hf_clip", loaded)


def test_predict_functions_can_be_compiled_and_differentiated():
    loaded = mmjax.from_pretrained(FOLDER / "hf_clip")
    given = inputs("hf_clip")
    inside = jax.jit(loaded.predict["encode_text"])(loaded.params, given["text"])
    np.testing.assert_allclose(inside, loaded.predict["encode_text"](loaded.params, given["text"]), rtol=1e-6, atol=1e-6)
    grads = jax.grad(lambda p: loaded.predict["logits"](p, given["image"], given["text"]).sum())(loaded.params)
    assert float(jnp.abs(grads["image"]["patch"]["kernel"]).max()) > 0


def test_config_says_what_images_need():
    config = mmjax.from_pretrained(FOLDER / "hf_clip").config
    assert config["family"] == "clip" and config["layout"] == "hf"
    p = config["preprocess"]
    assert (p["size"], p["resize"], p["method"]) == (16, "short_side", "bicubic")
    assert p["mean"] == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4) and p["std"] == pytest.approx((0.2686, 0.2613, 0.2758), abs=1e-4)
    siglip = mmjax.from_pretrained(FOLDER / "hf_siglip").config["preprocess"]
    assert siglip == {"size": 16, "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize": "squash", "method": "bicubic"}


def test_preprocessor_config_is_read(tmp_path):
    shutil.copytree(FOLDER / "hf_clip", tmp_path / "c")
    content = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "do_center_crop": False, "resample": 2}
    (tmp_path / "c" / "preprocessor_config.json").write_text(json.dumps(content))
    p = mmjax.from_pretrained(tmp_path / "c").config["preprocess"]
    assert p == {"size": 16, "mean": (0.1, 0.2, 0.3), "std": (1, 1, 1), "resize": "squash", "method": "bilinear"}


def test_tokenizer_comes_with_its_files(tmp_path):
    assert mmjax.from_pretrained(FOLDER / "hf_clip").tokenizer is None
    shutil.copytree(FOLDER / "hf_clip", tmp_path / "c")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(next((FOLDER.parent / "tokenizers").rglob(name)), tmp_path / "c")
    assert mmjax.from_pretrained(tmp_path / "c").tokenizer.encode("a dog", 8).shape == (1, 8)


def test_importing_mmjax_stays_light():
    code = "import sys, mmjax; assert 'from_pretrained' in mmjax.__all__; print([m for m in ('jax', 'numpy', 'flax') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'from_pretraind'"):
        mmjax.from_pretraind  # noqa: B018


# Bad input.


def test_inputs_are_looked_at():
    loaded = mmjax.from_pretrained(FOLDER / "hf_clip")
    call = lambda name, x: loaded.predict[name](loaded.params, x)
    tokens, images = inputs("hf_clip")["text"].copy(), inputs("hf_clip")["image"]
    tokens[2, 3] = 40
    with pytest.raises(UserError, match=r"tokens\[2, 3\] is 40, outside the text tower's vocabulary of 0 to 39"):
        call("encode_text", tokens)
    tokens[2, 3], tokens[1] = 1, np.where(tokens[1] == 39, 5, tokens[1])
    with pytest.raises(UserError, match=r"tokens\[1\] has no end token \(id 39\)"):
        call("encode_text", tokens)
    with pytest.raises(UserError, match=r"tokens: type float32, expected the integers"):
        call("encode_text", tokens.astype(np.float32))
    with pytest.raises(UserError, match=r"images: shape \(2, 16, 12, 3\), the image tower takes \(B, 16, 16, 3\)"):
        call("encode_image", images[:, :, :12])
    with pytest.raises(UserError, match=r"images\[1\] has shape \(16, 12, 3\)"):
        call("encode_image", [images[0], images[1][:, :12]])
    with pytest.raises(UserError, match="images: type uint8, expected floats"):
        call("encode_image", images.astype(np.uint8))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("visual_projection.weight") is None, "1 missing: visual_projection.weight"),
        (
            lambda t: t.update({"text_model.final_layer_norm.weight": np.zeros(8, np.float32)}),
            r"misshapen: .*final_layer_norm.weight float32\[8\]",
        ),
        (lambda t: t.update({"extra.weight": np.zeros(3, np.float32)}), r"1 left over: extra.weight float32\[3\]"),
        (
            lambda t: t.pop("vision_model.encoder.layers.1.mlp.fc1.bias") is None,
            r"1 missing: vision_model.encoder.layers.1.mlp.fc1.bias \[32\]",
        ),
    ],
    ids=["projection", "misshapen", "left over", "missing"],
)
def test_tensors_that_do_not_fit_are_listed(change, message, tmp_path):
    shutil.copytree(FOLDER / "hf_clip", tmp_path / "c")
    named = {name: x.read() for name, x in safetensors.read(tmp_path / "c" / "model.safetensors").items()}
    change(named)
    safetensors.write(tmp_path / "c" / "model.safetensors", named)
    with pytest.raises(UserError, match=message):
        mmjax.from_pretrained(tmp_path / "c")


def test_another_depth_lists_ten_and_counts_the_rest(tmp_path):
    shutil.copytree(FOLDER / "hf_clip", tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"16 missing: vision_model.encoder.layers.2.layer_norm1.weight \[16\], .*, and 6 more$"):
        mmjax.from_pretrained(tmp_path / "c")


def test_what_is_not_there_or_not_known(tmp_path):
    with pytest.raises(UserError, match=r"no file or folder 'openai/clip'; weights are not downloaded: .*hf download"):
        mmjax.from_pretrained("openai/clip")
    with pytest.raises(UserError, match="no weights in it; expected"):
        mmjax.from_pretrained(tmp_path)
    safetensors.write(tmp_path / "a.safetensors", {"layer1.weight": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="1 tensors of no architecture known here.*Its names: layer1.weight"):
        mmjax.from_pretrained(tmp_path)
    safetensors.write(tmp_path / "b.safetensors", {"layer1.weight": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="several files of weights, a.safetensors, b.safetensors"):
        mmjax.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="act is 'gelo'; known: gelu"):
        mmjax.from_pretrained(FOLDER / "hf_clip", act="gelo")
    (tmp_path / "d").mkdir()
    shutil.copy(FOLDER / "hf_clip" / "model.safetensors", tmp_path / "d")
    with pytest.raises(UserError, match="no config.json, which says what the shapes"):
        mmjax.from_pretrained(tmp_path / "d")


@pytest.mark.slow
def test_full_size_vit_b32(tmp_path):
    """151,277,313 weights made from their names, written, read and compared with transformers' outputs in float64."""
    with np.load(FOLDER.parent / "clip_b32.npz") as golden:
        want = {name: golden[name] for name in ("images", "texts", "logits", "tokens")}
        named = tensors(json.loads(str(golden["shapes"]))["B/32"]) | {"logit_scale": np.asarray(2.5, np.float32)}
    safetensors.write(tmp_path / "model.safetensors", named)
    text = {"model_type": "clip", "text_config": {"eos_token_id": 2}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(text))
    loaded = mmjax.from_pretrained(tmp_path)
    assert tree.count(loaded.params) == 151_277_313
    assert clip.build(loaded.config["model"]) == clip.build("ViT-B/32")
    images = normal("images", (2, 224, 224, 3))
    got = {name: loaded.predict[f"encode_{name}"](loaded.params, x) for name, x in (("image", images), ("text", want["tokens"]))}
    got = {"images": got["image"], "texts": got["text"], "logits": loaded.predict["logits"](loaded.params, images, want["tokens"])}
    for name, x in got.items():
        assert np.abs(x - want[name]).max() < CLOSE * np.abs(want[name]).max(), name


@pytest.mark.parametrize("case", ["openai_vit", "openai_resnet", "big_vision"])
def test_images_of_another_size(case, tmp_path):
    """Position embeddings are resized to the new grid, nothing else changes; at its own size the model is what it was."""
    path = write(case, tmp_path)
    own = mmjax.from_pretrained(path)
    size = own.config["model"]["size"]
    larger = mmjax.from_pretrained(path, size=2 * size)
    assert (larger.config["model"]["size"], larger.config["preprocess"]["size"]) == (2 * size, 2 * size)
    before, after = tree.flatten(own.params), tree.flatten(larger.params)
    changed = [name for name in before if before[name].shape != after[name].shape]
    assert len(changed) == 1 and changed[0].endswith("pos/embedding"), changed
    assert all(np.array_equal(before[name], after[name]) for name in before if name not in changed)
    old, new = np.asarray(before[changed[0]]), np.asarray(after[changed[0]])
    if case != "big_vision":  # the class token's row stays
        np.testing.assert_array_equal(old[0], new[0])
        old, new = old[1:], new[1:]
    assert len(new) == 4 * len(old)
    np.testing.assert_allclose(new.mean(0), old.mean(0), atol=0.2 * np.abs(old).max())
    images = np.asarray(normal("images", (2, 2 * size, 2 * size, 3)), np.float32)
    assert np.isfinite(larger.predict["encode_image"](larger.params, images)).all()
    assert mmjax.from_pretrained(path, size=size).config == own.config


def test_features_before_the_projection(tmp_path):
    loaded = mmjax.from_pretrained(write("openai_vit", tmp_path))
    images = inputs("openai_vit")["image"]
    projected = loaded.predict["image_features"](loaded.params, images) @ loaded.params["image_proj"]["kernel"]
    np.testing.assert_allclose(projected, loaded.predict["encode_image"](loaded.params, images), rtol=1e-5, atol=1e-5)


def test_a_size_that_does_not_fit(tmp_path):
    with pytest.raises(UserError, match="size is 37, expected a multiple of 8: .* patches of 8 pixels"):
        mmjax.from_pretrained(write("openai_vit", tmp_path), size=37)
