"""Attention against a plain softmax in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.layers import Attention


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
