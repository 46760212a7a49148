"""CLIP against transformers' outputs (tests/golden/clip.py), published sizes, and every way of computing it against every other."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.convert.clip import hf_rules
from mmjax.convert.rules import export, leaves
from mmjax.convert.tensors import of_array
from mmjax.core import rng, tree
from mmjax.core.errors import UserError
from mmjax.core.sharding import RULES
from mmjax.layers import REMAT, split_axes, stack_params, unstack_params
from mmjax.models import clip
from mmjax.models.clip import CLIP
from mmjax.models.text import TextTransformer
from mmjax.models.vit import ViT
from mmjax.objectives.contrastive import info_nce

GOLDEN = Path(__file__).parents[1] / "golden" / "clip.npz"
ACTIVATIONS = ("quick_gelu", "gelu")
END = 98

# Tolerances. The reference ran in float64, so what is left is our float32, whose roundings are 6e-8 each. Measured: 1.3e-7 on embeddings of
# unit norm, 1.2e-6 on logits (up to 9), 2.5e-6 on gradients, relative to each parameter's largest entry. About four times that is allowed,
# for other devices add up in another order.
EMBEDDING, LOGIT, GRADIENT = 5e-7, 5e-6, 1e-5


@pytest.fixture(scope="module")
def golden() -> dict[str, jax.Array]:
    with np.load(GOLDEN) as f:
        return {k: jnp.asarray(v) for k, v in f.items()}


# What the conversion of transformers' tensors needs to know of `tiny`.
BY_TRANSFORMERS = hf_rules({"size": 24, "channels": 3, "embed": 16, "image": {"patch": 8}, "text": {"length": 12}}, ())


def params_of(golden):
    images, tokens = golden["images"], golden["tokens"]
    shapes = split_axes(jax.eval_shape(tiny().init, jax.random.key(0), images, tokens)["params"])[0]
    named = {k.removeprefix("params/"): of_array(np.asarray(v)) for k, v in golden.items() if k.startswith("params/")}
    return tree.unflatten({path: jnp.asarray(x[...]) for path, x in leaves(BY_TRANSFORMERS, named, tree.flatten(shapes), "golden").items()})


def by_their_names(params):
    """Our parameters or gradients as transformers has them."""
    return {name: jnp.asarray(x.read()) for name, x in export(BY_TRANSFORMERS, tree.flatten(params)).items()}


def tiny(act="quick_gelu", dropout=0.0, **how) -> CLIP:
    """The model of tests/golden/clip.py."""
    how = {"act": act, "dropout": dropout, **how}
    image = ViT(patch=8, width=32, depth=2, heads=4, mlp=64, pre_norm=True, patch_bias=False, eps=1e-5, **how)
    return CLIP(image, TextTransformer(vocab=99, length=12, width=24, depth=2, heads=3, mlp=48, **how), 16)


def forward(model, params, golden, keys=None):
    return jax.jit(model.apply)({"params": params}, golden["images"], golden["tokens"], keys)


def loss_and_grad(model, params, golden, keys=None):
    def loss(p):
        return info_nce(*model.apply({"params": p}, golden["images"], golden["tokens"], keys))[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    return value, grads


def example_keys(n=6):
    return rng.per_example(jax.random.key(3), jnp.arange(n))


def assert_gradients_close(got, want):
    """Every leaf within GRADIENT of its own largest entry. Keys' biases have none: softmax does not see what all keys share."""
    got, want = tree.flatten(got), tree.flatten(want)
    assert got.keys() == want.keys()
    for path, w in want.items():
        scale = 1.0 if path.endswith(("attn/k/bias", "k_proj.bias")) else float(jnp.abs(w).max())
        np.testing.assert_allclose(got[path], w, rtol=0, atol=GRADIENT * scale, err_msg=path)


# The reference's numbers.


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_outputs_equal_transformers(golden, act):
    images, texts, log_scale = forward(tiny(act), params_of(golden), golden)
    np.testing.assert_allclose(images, golden[f"{act}/images"], rtol=0, atol=EMBEDDING)
    np.testing.assert_allclose(texts, golden[f"{act}/texts"], rtol=0, atol=EMBEDDING)
    np.testing.assert_allclose(jnp.exp(log_scale) * images @ texts.T, golden[f"{act}/logits"], rtol=0, atol=LOGIT)
    np.testing.assert_allclose(info_nce(images, texts, log_scale)[0], golden[f"{act}/loss"], rtol=0, atol=LOGIT)


def test_the_two_activations_are_told_apart(golden):
    """Else the test above would pass with either."""
    for output in ("images", "texts"):
        assert np.abs(golden[f"gelu/{output}"] - golden[f"quick_gelu/{output}"]).max() > 100 * EMBEDDING


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_gradients_equal_transformers(golden, act):
    value, grads = loss_and_grad(tiny(act), params_of(golden), golden)
    np.testing.assert_allclose(value, golden[f"{act}/loss"], rtol=0, atol=LOGIT)
    grads = by_their_names(grads)
    wanted = {k.removeprefix(f"{act}/grad/"): v for k, v in golden.items() if k.startswith(f"{act}/grad/")}
    assert len(wanted) == (14 if act == "quick_gelu" else 0)
    assert_gradients_close({k: grads[k] for k in wanted}, wanted)
    for path, g in grads.items():
        np.testing.assert_allclose(np.linalg.norm(g), golden[f"{act}/grad_norm/{path}"], rtol=GRADIENT, atol=1e-6, err_msg=path)


# The ways of computing it.


@pytest.fixture(scope="module")
def with_dropout(golden):
    """Loss and gradients of the scanned model, nothing recomputed."""
    return loss_and_grad(tiny(dropout=0.3), params_of(golden), golden, example_keys())


@pytest.mark.parametrize("how", [(scan, remat) for scan in (True, False) for remat in REMAT][1:], ids=str)
def test_scan_and_remat_change_nothing(golden, with_dropout, how):
    """With dropout on, so that its draws are the same too."""
    scan, remat = how
    params = params_of(golden) if scan else unstack_params(params_of(golden))
    value, grads = loss_and_grad(tiny(dropout=0.3, scan=scan, remat=remat), params, golden, example_keys())
    np.testing.assert_allclose(value, with_dropout[0], rtol=1e-6)
    assert_gradients_close(grads if scan else stack_params(grads), with_dropout[1])


def test_unrolled_outputs_equal_transformers(golden):
    images, texts, _ = forward(tiny(scan=False), unstack_params(params_of(golden)), golden)
    np.testing.assert_allclose(images, golden["quick_gelu/images"], rtol=0, atol=EMBEDDING)
    np.testing.assert_allclose(texts, golden["quick_gelu/texts"], rtol=0, atol=EMBEDDING)


def test_dropout_needs_both_keys_and_a_rate(golden):
    params = params_of(golden)
    plain = forward(tiny(), params, golden)
    np.testing.assert_array_equal(plain[0], forward(tiny(), params, golden, example_keys())[0])
    np.testing.assert_array_equal(plain[0], forward(tiny(dropout=0.3), params, golden)[0])
    dropped = forward(tiny(dropout=0.3), params, golden, example_keys())
    for a, b in zip(plain[:2], dropped[:2], strict=True):
        assert (jnp.abs(a - b).max(axis=1) > 1e-3).all()


def test_dropout_depends_on_each_examples_key_alone(golden):
    params, keys, model = params_of(golden), example_keys(), tiny(dropout=0.3)
    order = np.array([4, 0, 5, 2, 1, 3])
    shuffled = {k: golden[k][order] for k in ("images", "tokens")}
    one = {k: golden[k][2:3] for k in ("images", "tokens")}
    whole, permuted, other = (forward(model, params, *x)[:2] for x in ((golden, keys), (shuffled, keys[order]), (golden, keys[::-1])))
    alone = forward(model, params, one, keys[2:3])[:2]
    for i in (0, 1):
        np.testing.assert_allclose(permuted[i], whole[i][order], rtol=0, atol=EMBEDDING)
        np.testing.assert_allclose(alone[i], whole[i][2:3], rtol=0, atol=EMBEDDING)
        assert jnp.abs(other[i] - whole[i]).max() > 1e-3


def test_bfloat16_is_close_and_parameters_stay_float32(golden):
    """bfloat16 rounds to 2^-9; embeddings of unit norm moved by 0.5% of it when measured, 2% is allowed."""
    params, model = params_of(golden), tiny(dtype=jnp.bfloat16)
    images, texts, _ = forward(model, params, golden)
    assert images.dtype == texts.dtype == jnp.float32
    for got, want in ((images, golden["quick_gelu/images"]), (texts, golden["quick_gelu/texts"])):
        distance = np.linalg.norm(got - want, axis=1)
        assert 1e-5 < distance.max() < 0.02
    _, grads = loss_and_grad(model, params, golden)
    initial = split_axes(jax.eval_shape(model.init, jax.random.key(0), golden["images"], golden["tokens"])["params"])[0]
    assert {x.dtype for x in jax.tree.leaves((initial, grads))} == {jnp.dtype(jnp.float32)}


def test_features_do_not_see_past_the_end_token(golden):
    params, tokens = params_of(golden), np.asarray(golden["tokens"])
    end = tokens.argmax(1)
    noise = np.random.default_rng(0).integers(0, END, tokens.shape)
    after = np.where(np.arange(tokens.shape[1])[None] > end[:, None], noise, tokens).astype(np.int32)
    before = np.where(np.arange(tokens.shape[1])[None] < end[:, None], noise, tokens).astype(np.int32)
    encode = jax.jit(lambda t: tiny().apply({"params": params}, t, method="encode_text"))
    want = encode(jnp.asarray(tokens))
    np.testing.assert_array_equal(encode(jnp.asarray(after)), want)
    own = tiny().apply({"params": params}, jnp.asarray(tokens), method="token_mask")
    np.testing.assert_array_equal(own, np.arange(tokens.shape[1])[None] <= end[:, None])
    assert (jnp.abs(encode(jnp.asarray(before)) - want).max(axis=1) > 1e-3).all()


def test_wrong_text_length_is_refused(golden):
    with pytest.raises(ValueError, match="tokens have length 11, the text tower takes 12"):
        tiny().apply({"params": params_of(golden)}, golden["tokens"][:, :11], method="encode_text")


def test_embeddings_are_the_projected_features_at_unit_norm(golden):
    params = params_of(golden)
    encode = lambda method, x: jax.jit(lambda x: tiny().apply({"params": params}, x, method=method))(x)
    for method, x, want in (("encode_image", "images", golden["quick_gelu/images"]), ("encode_text", "tokens", golden["quick_gelu/texts"])):
        got = encode(method, golden[x])
        length = np.linalg.norm(got, axis=1, keepdims=True)
        assert np.abs(length - 1).min() > 0.05  # as they are, for whoever needs the length
        np.testing.assert_allclose(got / length, want, rtol=0, atol=EMBEDDING)


# Published sizes, as counted from their authors' code: total, image tower and projection, the rest. Running statistics, which nobody
# trains, are not counted.

COUNTS = {
    "ViT-B/32": (151_277_313, 87_849_216, 63_428_097),
    "ViT-B/16": (149_620_737, 86_192_640, 63_428_097),
    "ViT-L/14": (427_616_513, 303_966_208, 123_650_305),
    "ViT-L/14@336": (427_944_193, 304_293_888, 123_650_305),
    "RN50": (102_007_137, 38_316_896, 63_690_241),
    "RN101": (119_688_033, 56_259_936, 63_428_097),
    "RN50x4": (178_300_601, 87_137_080, 91_163_521),
    "RN50x16": (290_979_217, 167_328_912, 123_650_305),
    "RN50x64": (623_258_305, 420_380_352, 202_877_953),
    "ViT-H/14": (986_109_441, 632_076_800, 354_032_641),
    "ViT-g/14": (1_366_678_273, 1_012_645_632, 354_032_641),
    "ViT-bigG/14": (2_539_567_105, 1_844_907_264, 694_659_841),
    "SigLIP-B/16-224": (203_155_970, 92_884_224, 110_271_746),
    "SigLIP-B/16-256": (203_202_050, 92_930_304, 110_271_746),
    "SigLIP-B/16-384": (203_447_810, 93_176_064, 110_271_746),
    "SigLIP-L/16-256": (652_150_786, 315_956_224, 336_194_562),
    "SigLIP-So400m/14-224": (877_360_306, 427_680_704, 449_679_602),
    "SigLIP-So400m/14-384": (877_960_498, 428_225_600, 449_734_898),
    "SigLIP2-B/16-224": (375_187_970, 92_884_224, 282_303_746),
    "SigLIP2-So400m/14-224": (1_135_463_602, 427_680_704, 707_782_898),
}


def abstract(fields: dict, **how):
    model = clip.build({**fields, **{tower: {**fields[tower], **how} for tower in ("image", "text")}})
    images = jax.ShapeDtypeStruct((1, fields["size"], fields["size"], 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, fields["text"]["length"]), jnp.int32)
    return split_axes(jax.eval_shape(model.init, jax.random.key(0), images, tokens)["params"])


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name):
    assert clip.VARIANTS.keys() == COUNTS.keys()
    params, _ = abstract(clip.VARIANTS[name])
    params = tree.select(params, lambda path: not any(re.fullmatch(p, path) for p in clip.build(name).image.state_paths))
    visual = tree.select(params, lambda path: path.startswith("image"))
    assert (tree.count(params), tree.count(visual), tree.count(params) - tree.count(visual)) == COUNTS[name]


def test_activations_of_published_models():
    """Nothing in the counts tells them apart: OpenAI's have quick GELU, OpenCLIP's own sizes GELU, SigLIP its tanh form."""
    for name, fields in clip.VARIANTS.items():
        want = "gelu_tanh" if "SigLIP" in name else "gelu" if re.search("H/|g/|G/", name) else "quick_gelu"
        assert {fields[tower]["act"] for tower in ("image", "text") if "act" in fields[tower]} == {want}, name


@pytest.mark.parametrize("name", ["ViT-B/32", "RN50", "SigLIP-B/16-224"])
@pytest.mark.parametrize("scan", [True, False])
def test_every_parameter_names_axes_of_the_sharding_table(name, scan):
    params, axes = abstract(clip.VARIANTS[name], scan=scan)
    shapes, names = tree.flatten(params), tree.flatten(axes)
    assert shapes.keys() == names.keys()
    for path, x in shapes.items():
        assert len(names[path]) == len(x.shape), path
        assert set(names[path]) <= set(RULES), path
        assert (names[path][:1] == ("layers",)) == ("/blocks/" in path), path


def test_logit_scale_starts_at_the_published_temperature(golden):
    """ln(1 / 0.07) = 2.6593 (Radford et al. 2021, section 2.5)."""
    start = jax.jit(lambda key: split_axes(tiny().init(key, golden["images"][:1], golden["tokens"][:1])["params"])[0]["logit_scale"])
    assert float(start(jax.random.key(0))) == pytest.approx(2.6593, abs=1e-4)


# Towers of other kinds.

SMALL_IMAGE = {
    "vit": {"patch": 8, "width": 16, "depth": 1, "heads": 2, "mlp": 16},
    "resnet": {"width": 4, "depths": (1, 1, 1, 1), "heads": 2},
}
SMALL_TEXT = {
    "transformer": {"width": 16, "depth": 1, "heads": 2, "mlp": 16},
    "bert": {"width": 16, "depth": 1, "heads": 2, "mlp": 16, "positions": 9},
    "t5": {"width": 16, "depth": 1, "heads": 2, "head_width": 4, "mlp": 16},
}


def small(image="vit", text="transformer", **fields):
    own = {"type": text, "vocab": 30, "length": 7, **SMALL_TEXT[text]}
    return {"embed": 12, "image": {"type": image, **SMALL_IMAGE[image]}, "text": own, **fields}


@pytest.mark.parametrize(("image", "text"), [("vit", "bert"), ("vit", "t5"), ("resnet", "transformer")])
def test_any_two_towers_make_a_model(image, text):
    """Batch statistics come out where their parameters lie."""
    model, keys = clip.build(small(image, text)), example_keys(3)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((3, 32, 32, 3)), jnp.float32)
    tokens = jnp.asarray(np.random.default_rng(1).integers(1, 30, (3, 7)), jnp.int32)
    params = random_params(model, images, tokens)
    out, state = jax.jit(lambda p: model.apply({"params": p}, images, tokens, keys, mutable=["state"]))(params)
    for x in out[:2]:
        assert x.shape == (3, 12) and x.dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    assert len(out) == 3 and bool(state) == (image == "resnet")
    for path in tree.flatten(state.get("state", {})):
        assert path in tree.flatten(params) and any(re.fullmatch(p, path) for p in model.image.state_paths)


def random_params(model, images, tokens):
    shapes, _ = split_axes(jax.eval_shape(model.init, jax.random.key(0), images, tokens)["params"])
    r = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(0.3 * r.random(s.shape), s.dtype), shapes)


def test_towers_do_not_share_their_draws():
    """With one key each the two towers of an example would drop alike."""
    same = {"dropout": 0.5, "width": 16, "depth": 1, "heads": 2, "mlp": 16}
    model = clip.build(small() | {"image": {"patch": 8, **same}, "text": {"vocab": 30, "length": 7, **same}})
    images, tokens, keys = jnp.ones((2, 16, 16, 3)), jnp.ones((2, 7), jnp.int32), example_keys(2)

    @jax.jit
    def run(params):
        apply = lambda *args, method=None: model.apply({"params": params}, *args, method=method)
        one = lambda method, x: [clip.normalise(apply(x, rng.fold(keys, i), method=method)) for i in (0, 1)]
        return apply(images, tokens, keys), one("encode_image", images), one("encode_text", tokens)

    whole, image, text = run(random_params(model, images, tokens))
    for got, own, other in ((whole[0], image[0], image[1]), (whole[1], text[1], text[0])):
        np.testing.assert_allclose(got, own, atol=1e-6)
        assert jnp.abs(got - other).max() > 1e-3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ViT-B/23", "there is no CLIP model 'ViT-B/23'; did you mean 'ViT-B/32'?"),
        (small(temprature=0.1), "config.model: CLIP has no field 'temprature'; did you mean 'temperature'?"),
        (small() | {"image": {"type": "resnett"}}, "config.model.image.type is 'resnett'; did you mean 'resnet'?"),
        (small() | {"text": {"vocabulary": 3}}, "config.model.text: TextTransformer has no field 'vocabulary'; did you mean 'vocab'?"),
        (small() | {"image": {"patch": 8}}, "config.model.image has no key 'width'"),
        ({"image": {}, "text": {}, "embde": 3}, "config.model has no key 'embed'; did you mean 'embde'?"),
    ],
)
def test_bad_fields_are_named(model, message):
    with pytest.raises(UserError) as e:
        clip.build(model)
    assert str(e.value).startswith(message.removesuffix("?"))


def test_without_a_projection_the_widths_must_agree():
    model = clip.build(small(project_image=False))
    with pytest.raises(UserError, match="the image tower's 16 features must be embed, which is 12"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 7), jnp.int32))
