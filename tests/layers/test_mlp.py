"""Activations against closed forms, and the feed-forward network."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.layers import ACTIVATIONS, Mlp

X = np.linspace(-8, 8, 16001)
PHI = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in X])
FORMS = {
    "gelu": X * PHI,
    "gelu_tanh": 0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),
    "quick_gelu": X / (1 + np.exp(-1.702 * X)),
    "relu": np.maximum(X, 0),
    "silu": X / (1 + np.exp(-X)),
    "squared_relu": np.maximum(X, 0) ** 2,
}


@pytest.mark.parametrize("name", FORMS)
def test_activations(name):
    assert FORMS.keys() == ACTIVATIONS.keys()
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(X, jnp.float32)), FORMS[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "distance"), [("quick_gelu", 0.0203), ("gelu_tanh", 4.7e-4)])
def test_known_distances_from_gelu(name, distance):
    x = jnp.asarray(X, jnp.float32)
    got = float(jnp.abs(ACTIVATIONS[name](x) - ACTIVATIONS["gelu"](x)).max())
    assert got == pytest.approx(distance, rel=0.01)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_mlp(act):
    r = np.random.default_rng(0)
    shapes = {"up": {"kernel": (6, 10), "bias": (10,)}, "down": {"kernel": (10, 6), "bias": (6,)}}
    p = {k: {n: jnp.asarray(r.standard_normal(s), jnp.float32) for n, s in v.items()} for k, v in shapes.items()}
    x = jnp.asarray(r.standard_normal((2, 3, 6)), jnp.float32)
    want = ACTIVATIONS[act](x @ p["up"]["kernel"] + p["up"]["bias"][None, None]) @ p["down"]["kernel"] + p["down"]["bias"][None, None]
    np.testing.assert_allclose(Mlp(10, act).apply({"params": p}, x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("act", ["gelu_tanh", "relu"])
def test_gated_mlp(act):
    """Shazeer 2020, equation 6: (act(x W) * x V) W2, W being `gate`."""
    r = np.random.default_rng(0)
    shapes = {"gate": (6, 10), "up": (6, 10), "down": (10, 6)}
    p = {k: {"kernel": jnp.asarray(r.standard_normal(s), jnp.float32)} for k, s in shapes.items()}
    x = jnp.asarray(r.standard_normal((2, 3, 6)), jnp.float32)
    want = (ACTIVATIONS[act](x @ p["gate"]["kernel"]) * (x @ p["up"]["kernel"])) @ p["down"]["kernel"]
    got = Mlp(10, act, gated=True, use_bias=False).apply({"params": p}, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_unknown_activation_is_refused():
    with pytest.raises(UserError) as e:
        Mlp(10, "quickgelu").apply({"params": {}}, jnp.zeros((1, 1, 6)))
    assert str(e.value) == "model act is 'quickgelu'; did you mean 'quick_gelu'?"
