"""T5's encoders against transformers' outputs (tests/golden/t5.py), their published sizes, and their relative positions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import rng, tree
from mmjax.core.sharding import RULES
from mmjax.layers import split_axes, unstack_params
from mmjax.models import t5
from mmjax.models.t5 import T5Encoder
from tests.golden.weights import normal
from tests.models.torch_layouts import Golden, deviation, grad_norms, linear, norms

GOLDEN = Golden("t5")
TOKENS = jnp.asarray(GOLDEN["tokens"])
FORMS = {"relu": {"act": "relu"}, "gated": {"act": "gelu_tanh", "gated": True}}


AT, OURS = r"encoder\.block\.(\d+)\.layer", r"blocks_\1"
NAMES = (
    (r"encoder\.embed_tokens\.weight", "token/embedding", "same"),
    (r"encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight", "relative/embedding", "same"),
    *linear(rf"{AT}\.0\.SelfAttention\.([qkv])", rf"{OURS}/attn/\2"),
    *linear(rf"{AT}\.0\.SelfAttention\.o", f"{OURS}/attn/out"),
    *norms(rf"{AT}\.0\.layer_norm", f"{OURS}/norm1"),
    *linear(rf"{AT}\.1\.DenseReluDense\.wi_0", f"{OURS}/mlp/gate"),
    *linear(rf"{AT}\.1\.DenseReluDense\.(wi|wi_1)", f"{OURS}/mlp/up"),
    *linear(rf"{AT}\.1\.DenseReluDense\.wo", f"{OURS}/mlp/down"),
    *norms(rf"{AT}\.1\.layer_norm", f"{OURS}/norm2"),
    *norms(r"encoder\.final_layer_norm", "norm"),
)
CLOSE = 1e-5  # of the largest entry


def tiny(form="relu", **how):
    return T5Encoder(vocab=60, length=150, width=24, depth=3, heads=3, head_width=16, mlp=40, **FORMS[form], **how)


@pytest.fixture(scope="module")
def params():
    return {form: GOLDEN.params(form, NAMES) for form in FORMS}


def sequence(model, params, *args):
    return jax.jit(lambda *args: model.apply({"params": params}, *args, method="sequence"))(*args)


@pytest.mark.parametrize("form", FORMS)
def test_equals_transformers(params, form):
    """Outputs and gradients, that of the position table summed over layers among them."""

    def loss(params):
        x = tiny(form).apply({"params": params}, TOKENS, None, jnp.asarray(GOLDEN["mask"]), method="sequence")
        return (x * normal("cotangent", x.shape)).sum(), x

    grads, got = jax.jit(jax.grad(loss, has_aux=True))(params[form])
    assert deviation(got, GOLDEN[f"{form}/sequence"]) < CLOSE
    wanted = GOLDEN.under(f"{form}/grad_norm/")
    for name, norm in grad_norms(unstack_params(grads), wanted, NAMES).items():
        np.testing.assert_allclose(norm, wanted[name], rtol=2e-5, err_msg=name)


def test_buckets_equal_transformers():
    """-300 to 300, both sides of the farthest distance and the powers of two where buckets begin."""
    got = t5.relative_buckets(301, 32, 128)
    want = GOLDEN["buckets"]
    for ask in (0, 100, 300):
        np.testing.assert_array_equal(got[ask], want[300 - ask : 601 - ask])


def test_buckets_by_hand():
    """Raffel et al., section 2.1, in their code's form: 8 distances of their own, 8 that share up to 128, then the same again after."""
    row = t5.relative_buckets(200, 32, 128)[0]
    assert row[:9].tolist() == [0, 17, 18, 19, 20, 21, 22, 23, 24]
    starts = {24: 8, 25: 12, 26: 16, 27: 23, 28: 32, 29: 46, 30: 64, 31: 91}  # 8 times powers of the square root of 2, rounded up
    assert [int(np.flatnonzero(row == bucket)[0]) for bucket in starts] == list(starts.values()) and row[199] == 31
    assert t5.relative_buckets(200, 32, 128)[199, 0] == 15 and t5.relative_buckets(200, 32, 128)[5, 5] == 0


@pytest.mark.parametrize("form", FORMS)
def test_nothing_looks_at_padding_and_the_mask_is_it_by_default(params, form):
    given = sequence(tiny(form), params[form], TOKENS, None, jnp.asarray(GOLDEN["mask"]))
    np.testing.assert_array_equal(sequence(tiny(form), params[form], TOKENS), given)
    alone = sequence(tiny(form), params[form], TOKENS[2:, :3])
    np.testing.assert_allclose(given[2:, :3], alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def test_features_are_the_mean_of_the_text(params):
    x = np.asarray(sequence(tiny(), params["relu"], TOKENS), np.float64)
    want = np.stack([x[i, np.asarray(GOLDEN["mask"][i])].mean(0) for i in range(3)])
    assert deviation(jax.jit(tiny().apply)({"params": params["relu"]}, TOKENS), want) < CLOSE


def test_scan_and_remat_and_dropout_by_key(params):
    """The same draws and gradients however it is computed; one example's draws from its own key alone."""
    tokens, keys = TOKENS[:, :20], rng.per_example(jax.random.key(0), jnp.arange(3))

    def outputs(params, **how):
        def loss(params):
            x = tiny("gated", dropout=0.3, **how).apply({"params": params}, tokens, keys, method="sequence")
            return (x * normal("cotangent", x.shape)).sum(), x

        grads, x = jax.jit(jax.grad(loss, has_aux=True))(params)
        return x, grads["relative"]["embedding"]

    want, want_grad = outputs(params["gated"])
    for how in ({"scan": False}, {"remat": "full"}):
        got, grad = outputs(unstack_params(params["gated"]) if how.get("scan") is False else params["gated"], **how)
        assert max(deviation(got, want), deviation(grad, want_grad)) < CLOSE, how
    reversed_keys = sequence(tiny("gated", dropout=0.3), params["gated"], tokens, keys[::-1])
    assert deviation(reversed_keys[1], want[1]) < CLOSE and np.abs(reversed_keys - want)[::2].max() > 0.1


def test_dropout_reaches_the_branches(params):
    """What the second block adds is zero where both its branches are dropped, and the branch that is left, scaled up, where one is."""
    model, keys = tiny("gated", dropout=0.3, scan=False), rng.per_example(jax.random.key(0), jnp.arange(3))
    run = lambda p: model.apply(
        {"params": p}, TOKENS[:, :20], keys, method="sequence", capture_intermediates=True, mutable=["intermediates"]
    )
    _, found = jax.jit(run)(unstack_params(params["gated"]))
    out = lambda *path: np.asarray(functools.reduce(lambda x, name: x[name], path, found["intermediates"])["__call__"][0])
    added, attn, mlp = out("blocks_1") - out("blocks_0"), out("blocks_1", "attn"), out("blocks_1", "mlp")
    for want, share in ((0 * attn, 0.09), (attn / 0.7, 0.21), (mlp / 0.7, 0.21), ((attn + mlp) / 0.7, 0.49)):
        assert np.isclose(added, want, rtol=0, atol=1e-5).mean() == pytest.approx(share, abs=0.06)


def test_bfloat16_is_close(params):
    """Rounding the weights alone to 2^-9 moves these features by 3 % in the mean square, for nothing scales scores down."""
    got, want = sequence(tiny("gated", dtype=jnp.bfloat16), params["gated"], TOKENS), GOLDEN["gated/sequence"]
    assert got.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(got - want) / np.linalg.norm(want) < 0.05


COUNTS = {
    "small": 35_330_816,
    "base": 109_628_544,
    "large": 334_939_648,
    "3b": 1_240_909_824,
    "11b": 4_864_791_552,
    "v1.1-small": 35_332_800,
    "v1.1-base": 109_628_544,
    "v1.1-large": 341_231_104,
    "v1.1-xl": 1_223_527_424,
    "v1.1-xxl": 4_762_310_656,
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name):
    assert t5.VARIANTS.keys() == COUNTS.keys()
    model = T5Encoder(**t5.VARIANTS[name])
    shapes, axes = split_axes(jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8), jnp.int32))["params"])
    assert tree.count(shapes) == COUNTS[name]
    for path, names in tree.flatten(axes).items():
        assert set(names) <= set(RULES) and (names[:1] == ("layers",)) == ("blocks/" in path), path


def test_fresh_scores_are_of_order_one():
    """Unscaled products of unit-variance tokens: `q` is initialised smaller for it, or a fresh softmax would be saturated."""
    model = T5Encoder(vocab=60, length=16, width=256, depth=1, heads=4, head_width=64, mlp=64)
    params, _ = split_axes(jax.jit(model.init)(jax.random.key(0), TOKENS[:1, :16])["params"])
    attn = jax.tree.map(lambda x: np.asarray(x[0], np.float64), params["blocks"]["attn"])
    x = np.random.default_rng(0).standard_normal((64, 256))
    q, k = ((x @ attn[n]["kernel"]).reshape(64, 4, 64) for n in "qk")
    assert np.einsum("lhk,shk->hls", q, k).std() == pytest.approx(1.0, rel=0.15)


def test_too_many_tokens(params):
    with pytest.raises(ValueError, match="tokens have length 151, the text tower takes at most 150"):
        tiny().apply({"params": params["relu"]}, jnp.ones((1, 151), jnp.int32))
