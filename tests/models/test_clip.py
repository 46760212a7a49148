"""CLIP against transformers' outputs (tests/golden/clip.py), published sizes, and every way of computing it against every other."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import rng, tree
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


def params_of(golden):
    return tree.unflatten({k.removeprefix("params/"): v for k, v in golden.items() if k.startswith("params/")})


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
        scale = 1.0 if path.endswith("attn/k/bias") else float(jnp.abs(w).max())
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
    grads = tree.flatten(grads)
    wanted = {k.removeprefix(f"{act}/grad/"): v for k, v in golden.items() if k.startswith(f"{act}/grad/")}
    assert len(wanted) == (14 if act == "quick_gelu" else 0)
    assert_gradients_close(tree.unflatten({k: grads[k] for k in wanted}), tree.unflatten(wanted))
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
    assert (jnp.abs(encode(jnp.asarray(before)) - want).max(axis=1) > 1e-3).all()


def test_wrong_text_length_is_refused(golden):
    with pytest.raises(ValueError, match="tokens have length 11, the text tower takes 12"):
        tiny().apply({"params": params_of(golden)}, golden["tokens"][:, :11], method="encode_text")


# Published sizes: OpenAI's released models, as counted from their own code. (total, image tower and projection, the rest)

COUNTS = {
    "ViT-B/32": (151_277_313, 87_849_216, 63_428_097),
    "ViT-B/16": (149_620_737, 86_192_640, 63_428_097),
    "ViT-L/14": (427_616_513, 303_966_208, 123_650_305),
    "ViT-L/14@336": (427_944_193, 304_293_888, 123_650_305),
}


def abstract(variant: dict, **how):
    model = CLIP(ViT(**variant["image"], **how), TextTransformer(**variant["text"], **how), variant["embed"])
    images = jax.ShapeDtypeStruct((1, variant["size"], variant["size"], 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, variant["text"]["length"]), jnp.int32)
    return split_axes(jax.eval_shape(model.init, jax.random.key(0), images, tokens)["params"])


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name):
    assert clip.VARIANTS.keys() == COUNTS.keys()
    params, _ = abstract(clip.VARIANTS[name])
    visual = tree.select(params, lambda path: path.startswith("image"))
    assert (tree.count(params), tree.count(visual), tree.count(params) - tree.count(visual)) == COUNTS[name]


@pytest.mark.parametrize("scan", [True, False])
def test_every_parameter_names_axes_of_the_sharding_table(scan):
    params, axes = abstract(clip.VARIANTS["ViT-B/32"], scan=scan)
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
