"""BERT against transformers' outputs (tests/golden/bert.py), its published sizes, and its padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import rng, tree
from mmjax.core.errors import UserError
from mmjax.core.sharding import RULES
from mmjax.layers import split_axes, unstack_params
from mmjax.models import bert
from mmjax.models.bert import Bert
from tests.golden.weights import normal
from tests.models.torch_layouts import Golden, deviation, grad_norms, linear, norms

GOLDEN = Golden("bert")
GIVEN = {k: jnp.asarray(GOLDEN[k]) for k in ("tokens", "mask", "segments")}
ACTIVATIONS = ("gelu", "gelu_tanh")

AT, OURS = r"encoder\.layer\.(\d+)", r"blocks_\1"
NAMES = (
    (r"embeddings\.word_embeddings\.weight", "token/embedding", "same"),
    (r"embeddings\.position_embeddings\.weight", "pos/embedding", "same"),
    (r"embeddings\.token_type_embeddings\.weight", "segment/embedding", "same"),
    *norms(r"embeddings\.LayerNorm", "norm"),
    *linear(rf"{AT}\.attention\.self\.query", f"{OURS}/attn/q"),
    *linear(rf"{AT}\.attention\.self\.key", f"{OURS}/attn/k"),
    *linear(rf"{AT}\.attention\.self\.value", f"{OURS}/attn/v"),
    *linear(rf"{AT}\.attention\.output\.dense", f"{OURS}/attn/out"),
    *norms(rf"{AT}\.attention\.output\.LayerNorm", f"{OURS}/norm1"),
    *linear(rf"{AT}\.intermediate\.dense", f"{OURS}/mlp/up"),
    *linear(rf"{AT}\.output\.dense", f"{OURS}/mlp/down"),
    *norms(rf"{AT}\.output\.LayerNorm", f"{OURS}/norm2"),
    *linear(r"pooler\.dense", "pooler"),
)
CLOSE = 1e-5  # of the largest entry


def tiny(act="gelu", **how):
    how = {"pool": "pooler", "length": 17, **how}
    return Bert(vocab=60, width=32, depth=3, heads=4, mlp=72, positions=20, act=act, **how)


@pytest.fixture(scope="module")
def params():
    return GOLDEN.params("gelu", NAMES)


def sequence(model, params, *args):
    return jax.jit(lambda *args: model.apply({"params": params}, *args, method="sequence"))(*args)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_equals_transformers(params, act):
    """Outputs and gradients. The padding's features too: they look at the same tokens."""

    def loss(params):
        model, args = tiny(act), (GIVEN["tokens"], None, GIVEN["mask"], GIVEN["segments"])
        tokens = model.apply({"params": params}, *args, method="sequence")
        pooled = model.apply({"params": params}, *args)
        return (tokens * normal("cotangent", tokens.shape)).sum() + pooled.sum(), (tokens, pooled)

    grads, (tokens, pooled) = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert deviation(tokens, GOLDEN[f"{act}/sequence"]) < CLOSE
    assert deviation(pooled, GOLDEN[f"{act}/pooled"]) < CLOSE
    wanted = GOLDEN.under(f"{act}/grad_norm/")
    for name, got in grad_norms(unstack_params(grads), wanted, NAMES).items():
        # Softmax does not see what all keys share: their biases have no gradient but rounding.
        np.testing.assert_allclose(got, wanted[name], rtol=2e-5, atol=1e-5 if name.endswith("key.bias") else 0, err_msg=name)


def test_the_activations_are_told_apart():
    """Else the test above would pass with either."""
    a, b = (GOLDEN[f"{act}/sequence"] for act in ACTIVATIONS)
    assert deviation(a, b) > 10 * CLOSE


def test_the_mask_is_the_padding_and_the_segment_0_by_default(params):
    given = (GIVEN["tokens"], None, GIVEN["mask"], jnp.zeros_like(GIVEN["tokens"]))
    np.testing.assert_array_equal(sequence(tiny(), params, GIVEN["tokens"]), sequence(tiny(), params, *given))


def test_nothing_looks_at_padding(params):
    """A text has the same features alone and padded. Positions count from the row's start, so padding goes behind."""
    whole = sequence(tiny(), params, GIVEN["tokens"])[2, :9]
    alone = sequence(tiny(), params, GIVEN["tokens"][2:3, :9])[0]
    np.testing.assert_allclose(whole, alone, rtol=0, atol=1e-5)


def test_pooling(params):
    x = np.asarray(sequence(tiny(), params, GIVEN["tokens"]), np.float64)
    pooled = {pool: jax.jit(tiny(pool=pool).apply)({"params": params}, GIVEN["tokens"]) for pool in bert.POOLS}
    np.testing.assert_allclose(pooled["cls"], x[:, 0], rtol=0, atol=1e-6)
    weight, bias = params["pooler"]["kernel"], params["pooler"]["bias"]
    np.testing.assert_allclose(pooled["pooler"], np.tanh(x[:, 0] @ weight + np.asarray(bias)[None]), rtol=0, atol=1e-5)
    mask = np.asarray(GIVEN["mask"])
    mean = np.stack([x[i, mask[i]].mean(0) for i in range(len(x))])
    np.testing.assert_allclose(pooled["mean"], mean, rtol=0, atol=1e-5)


def test_scan_and_remat_and_dropout_by_key(params):
    """The same draws however it is computed, other ones for another key, one example's from its own key alone."""
    keys = rng.per_example(jax.random.key(0), jnp.arange(4))
    want = sequence(tiny(dropout=0.3), params, GIVEN["tokens"], keys)
    for how in ({"scan": False}, {"remat": "full"}):
        p = unstack_params(params) if how.get("scan") is False else params
        assert deviation(sequence(tiny(dropout=0.3, **how), p, GIVEN["tokens"], keys), want) < CLOSE, how
    other = sequence(tiny(dropout=0.3), params, GIVEN["tokens"], keys[jnp.array([3, 1, 2, 0])])
    assert deviation(other[1:3], want[1:3]) < CLOSE and np.abs(other - want)[::3].max() > 0.1


@pytest.mark.parametrize(
    ("name", "pool", "count"),
    [("base", "cls", 108_891_648), ("base", "pooler", 109_482_240), ("large", "pooler", 335_141_888)],
)
def test_published_sizes(name, pool, count):
    model = Bert(**bert.VARIANTS[name], pool=pool)
    shapes, axes = split_axes(jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8), jnp.int32))["params"])
    assert tree.count(shapes) == count
    for path, names in tree.flatten(axes).items():
        assert set(names) <= set(RULES) and (names[:1] == ("layers",)) == ("blocks/" in path), path


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"pool": "first"}, "BERT pool is 'first'"), ({"length": 21}, "BERT length 21 is more than its 20 positions")],
)
def test_bad_fields(params, fields, message):
    with pytest.raises(UserError, match=message):
        tiny(**fields).apply({"params": params}, GIVEN["tokens"])


def test_too_many_tokens(params):
    with pytest.raises(ValueError, match="tokens have length 17, the text tower takes at most 12"):
        tiny(length=12).apply({"params": params}, GIVEN["tokens"])
