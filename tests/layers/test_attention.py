"""Attention against a plain softmax in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.layers import Attention, split_axes


def make(width, seed=0):
    r = np.random.default_rng(seed)
    draw = lambda *s: jnp.asarray(r.standard_normal(s), jnp.float32)
    return {n: {"kernel": draw(width, width) * 2 * width**-0.5, "bias": draw(width)} for n in ("q", "k", "v", "out")}


def reference(params, x, heads, causal):
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    q, k, v = (np.asarray(x, np.float64) @ p[n]["kernel"] + p[n]["bias"] for n in "qkv")
    b, l, d = q.shape
    size, out = d // heads, np.zeros((b, l, d))
    for i in range(b):
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            for t in range(l):
                seen = t + 1 if causal else l
                scores = k[i, :seen, part] @ q[i, t, part] / np.sqrt(size)
                weights = np.exp(scores - scores.max())
                out[i, t, part] = weights / weights.sum() @ v[i, :seen, part]
    return out @ p["out"]["kernel"] + p["out"]["bias"]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("length", "width", "heads"), [(1, 8, 2), (7, 8, 1), (9, 24, 3), (33, 16, 4)])
def test_equals_float64(causal, length, width, heads):
    params, x = make(width), jnp.asarray(np.random.default_rng(1).standard_normal((2, length, width)), jnp.float32)
    got = jax.jit(Attention(heads, causal).apply)({"params": params}, x)
    np.testing.assert_allclose(got, reference(params, x, heads, causal), rtol=0, atol=2e-5)


def test_large_scores_do_not_overflow():
    """Scores of +-1e4, whose exponentials no float holds: each token takes the value of the token it scores highest."""
    params, x = make(8), 60 * jnp.asarray(np.random.default_rng(1).standard_normal((1, 5, 8)), jnp.float32)
    got = Attention(2).apply({"params": params}, x)
    np.testing.assert_allclose(got, reference(params, x, 2, False), rtol=1e-4, atol=1e-2)


def test_softmax_stays_float32_in_bfloat16():
    """Over 1024 equal keys a bfloat16 sum would stop at 256; the mean of the values then is far off."""
    params = make(8)
    params["q"] = params["k"] = {"kernel": jnp.zeros((8, 8)), "bias": jnp.zeros(8)}
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 1024, 8)), jnp.bfloat16)
    got = Attention(2, dtype=jnp.bfloat16).apply({"params": params}, x)
    assert got.dtype == jnp.bfloat16
    want = np.asarray(x[0], np.float64).mean(0) @ np.asarray(params["v"]["kernel"]) + np.asarray(params["v"]["bias"])
    want = want @ np.asarray(params["out"]["kernel"]) + np.asarray(params["out"]["bias"])
    np.testing.assert_allclose(got[0, :4].astype(jnp.float32), np.broadcast_to(want, (4, 8)), rtol=0, atol=0.05)


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="^model width 8 does not split into 3 heads"):
        Attention(3).apply({"params": make(8)}, jnp.zeros((1, 2, 8)))


# The other forms, against one written with einsum in float64.


def general(p, x, memory=None, *, heads, size, mask=None, bias=None, scale=None, causal=False):
    wide = lambda a: np.asarray(a, np.float64)
    x, memory = wide(x), wide(x if memory is None else memory)
    product = lambda n, y: y @ wide(p[n]["kernel"]) + (wide(p[n]["bias"]) if "bias" in p[n] else 0)
    q, k, v = (product(n, y).reshape(*y.shape[:2], heads, size) for n, y in (("q", x), ("k", memory), ("v", memory)))
    scores = np.einsum("blhk,bshk->bhls", q, k) * (size**-0.5 if scale is None else scale) + (0 if bias is None else wide(bias))
    if mask is not None:
        scores = np.where(mask, scores, -1e30)
    if causal:
        scores = np.where(np.tri(x.shape[1], memory.shape[1], dtype=bool), scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = np.einsum("bhls,bshk->blhk", weights / weights.sum(-1, keepdims=True), v).reshape(*x.shape[:2], heads * size)
    return product("out", y) if "out" in p else y


def draw(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def random_params(model, *args):
    shapes = split_axes(jax.eval_shape(model.init, jax.random.key(0), *args)["params"])[0]
    return jax.tree.map(lambda s: draw(*s.shape, seed=s.shape[0]) * (s.shape[0] ** -0.5 if len(s.shape) > 1 else 1), shapes)


X, MEMORY = draw(2, 5, 12), draw(2, 7, 10, seed=2)
MASK = np.random.default_rng(3).random((2, 1, 1, 7)) < 0.6
MASK[..., 0] = True


@pytest.mark.parametrize(
    ("fields", "with_memory", "given"),
    [
        ({}, True, {}),
        ({}, True, {"mask": jnp.asarray(MASK)}),
        ({}, False, {"mask": jnp.asarray(MASK[..., :5])}),
        ({}, False, {"mask": jnp.asarray(np.random.default_rng(4).random((2, 3, 5, 5)) < 0.5) | jnp.eye(5, dtype=bool)[None, None]}),
        ({}, False, {"bias": 3 * draw(1, 3, 5, 5, seed=5)}),
        ({}, True, {"mask": jnp.asarray(MASK), "bias": 3 * draw(1, 3, 5, 7, seed=5)}),
        ({"causal": True}, False, {"bias": 3 * draw(1, 3, 5, 5, seed=5)}),
        ({"head_width": 6}, False, {}),
        ({"head_width": 6, "scale": 1.0, "use_bias": False}, True, {"mask": jnp.asarray(MASK), "bias": draw(2, 1, 5, 7, seed=5)}),
        ({"project": False}, True, {}),
    ],
    ids=str,
)
def test_every_form_equals_float64(fields, with_memory, given):
    model = Attention(3, **fields)
    memory = MEMORY if with_memory else None
    params = random_params(model, X, memory)
    assert ("bias" in params["q"]) == fields.get("use_bias", True) and ("out" in params) == fields.get("project", True)
    got = jax.jit(lambda p: model.apply({"params": p}, X, memory, **given))(params)
    how = {"size": fields.get("head_width", 4), "scale": fields.get("scale"), "causal": fields.get("causal", False)}
    np.testing.assert_allclose(got, general(params, X, memory, heads=3, **how, **given), rtol=0, atol=2e-5)


def test_a_token_that_may_look_at_nothing_gets_the_mean():
    """And no NaN, in the gradient neither: rows of padding alone must not spoil a batch."""
    model, mask = Attention(3), jnp.zeros((2, 1, 1, 7), bool)
    params = random_params(model, X, MEMORY)
    loss = lambda p: model.apply({"params": p}, X, MEMORY, mask=mask).sum()
    got = model.apply({"params": params}, X, MEMORY, mask=mask)
    np.testing.assert_allclose(got, general(params, X, MEMORY, heads=3, size=4, scale=0.0), rtol=0, atol=2e-5)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.grad(loss)(params)))


def test_queries_may_start_elsewhere():
    start = lambda **fields: split_axes(Attention(3, **fields).init(jax.random.key(0), X)["params"])[0]
    plain, other = start(), start(q_init=jax.nn.initializers.zeros)
    assert not other["q"]["kernel"].any()
    for name in ("k", "v", "out"):
        np.testing.assert_array_equal(plain[name]["kernel"], other[name]["kernel"])
