"""The text tower's options, and the host's look at tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.layers import split_axes
from mmjax.models import text
from mmjax.models.bert import Bert
from mmjax.models.t5 import T5Encoder
from mmjax.models.text import TextTransformer, check_tokens

END = 18  # not the largest id: 19 is a token some tokenizer had added after it
TOKENS = jnp.asarray([[1, 5, END, 0, 0, 0], [1, END, 19, END, 3, 3], [1, 2, 3, 4, 5, END], [1, 2, 3, 4, 19, 5]], jnp.int32)


def make(**fields):
    return TextTransformer(**{"vocab": 20, "length": 6, "width": 16, "depth": 2, "heads": 2, "mlp": 32, **fields})


@pytest.fixture(scope="module")
def params():
    shapes, _ = split_axes(jax.eval_shape(make().init, jax.random.key(0), TOKENS)["params"])
    r = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(0.4 * r.standard_normal(s.shape), s.dtype), shapes)


def run(model, params, tokens=TOKENS, method=None):
    return jax.jit(lambda params, tokens: model.apply({"params": params}, tokens, method=method))(params, tokens)


@pytest.mark.parametrize(
    ("fields", "places"),
    [
        ({"pool": "argmax"}, [2, 2, 5, 4]),  # the largest id, the first of equals
        ({"pool": "eos", "eos": END}, [2, 1, 5, 0]),  # the first end token; the start where there is none
        ({"pool": "last"}, [5, 5, 5, 5]),
    ],
)
def test_pooling_takes_the_features_of_one_token(params, fields, places):
    sequence = run(make(**fields), params, method="sequence")
    want = sequence[np.arange(4), np.array(places)]
    np.testing.assert_array_equal(run(make(**fields), params), want)


@pytest.mark.parametrize("causal", [True, False])
def test_what_a_token_sees(params, causal):
    """Causal, itself and what comes before; else everything, padding included, as SigLIP's was trained."""
    model, other = make(causal=causal), TOKENS.at[:, 3].set(7)
    moved = jnp.abs(run(model, params, method="sequence") - run(model, params, other, "sequence")).max(-1) > 1e-4
    np.testing.assert_array_equal(moved, np.tile([not causal] * 3 + [True] * 3, (4, 1)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"pool": "lst"}, "text tower pool is 'lst'; did you mean 'last'?"), ({"pool": "eos"}, "pool 'eos' needs the id of the end token")],
)
def test_bad_pooling(params, fields, message):
    with pytest.raises(UserError) as e:
        run(make(**fields), params)
    assert message in str(e.value)


GOOD = np.array([[1, 5, 19, 0, 0, 0], [1, 19, 3, 3, 3, 3]])


def test_good_tokens_pass():
    for pool in ({}, {"pool": "eos", "eos": 1}, {"pool": "last"}):
        check_tokens(GOOD, make(**pool))
    check_tokens(np.zeros((0, 6), np.int64), make())
    check_tokens(np.full((2, 6), 7), make(pool="last"))  # no end token is looked for


@pytest.mark.parametrize(
    ("tokens", "fields", "message"),
    [
        ([[1, 5, 20, 0, 0, 0], [1, -1, 3, 3, 3, 3]], {}, "captions[0, 2] is 20, outside the text tower's vocabulary of 0 to 19; "),
        ([[1, 5, 19, 0, 0, 0], [1, -1, 3, 3, 3, 3]], {}, "captions[1, 1] is -1, outside the text tower's vocabulary of 0 to 19; "),
        ([[1, 19, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]], {}, "captions[1] has no end token (id 19), "),
        ([[1, 19, 0, 0, 0, 0]], {"pool": "eos", "eos": END}, "captions[0] has no end token (id 18), "),
        ([[1, 19, 0, 0, 0, 0]], {"eos": END}, "captions[0] has no end token (id 18), "),
        ([[1, 19, 0, 0, 0]], {}, "captions: shape (1, 5), the text tower takes (N, 6)"),
        ([1, 19, 0, 0, 0, 0], {}, "captions: shape (6,), the text tower takes (N, 6)"),
    ],
)
def test_bad_tokens_are_named(tokens, fields, message):
    with pytest.raises(UserError) as e:
        check_tokens(np.array(tokens), make(**fields), "captions")
    assert str(e.value).startswith(message) and "\n" not in str(e.value)


def test_towers_without_an_end_token():
    bert = Bert(vocab=20, length=6, width=16, depth=2, heads=2, mlp=32)
    t5 = T5Encoder(vocab=20, length=6, width=16, depth=2, heads=2, head_width=8, mlp=32)
    for tower in (bert, t5):
        check_tokens(np.array([[1, 2, 3]]), tower)
        with pytest.raises(UserError, match=r"^tokens\[0, 0\] is 20, outside"):
            check_tokens(np.array([[20, 2, 3]]), tower)
        with pytest.raises(UserError, match=r"^tokens: shape \(1, 7\), the text tower takes \(N, at most 6\)"):
            check_tokens(np.ones((1, 7), np.int32), tower)


def test_mean_by_hand():
    x = jnp.arange(12.0).reshape(2, 3, 2)
    mask = jnp.array([[True, False, True], [False, False, False]])
    np.testing.assert_array_equal(text.mean_of(x, mask), [[2.0, 3.0], [0.0, 0.0]])
