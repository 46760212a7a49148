"""Cross-entropy against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.objectives.classification import cross_entropy

LOGITS = np.random.default_rng(0).normal(scale=3.0, size=(9, 5)).astype(np.float32)
LABELS = np.array([0, 4, 2, 2, 1, 3, 0, 4, 1], np.int32)


def targets(smoothing):
    """Szegedy et al. 2016, section 7: (1 - e) of the label's distribution and e of the uniform one."""
    return (1 - smoothing) * np.eye(5)[LABELS] + smoothing / 5


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_value_and_gradient_equal_float64(smoothing):
    loss = lambda x: cross_entropy(x, jnp.asarray(LABELS), smoothing)
    (value, metrics), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(LOGITS))
    p, q = softmax(LOGITS.astype(np.float64)), targets(smoothing)
    np.testing.assert_allclose(value, -(q * np.log(p)).sum(1).mean(), rtol=1e-6)
    np.testing.assert_allclose(grad, (p - q) / len(LABELS), rtol=0, atol=1e-7)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(LOGITS.argmax(1) == LABELS), rtol=1e-6)


def test_huge_logits_stay_finite():
    logits = jnp.array([[1e4, 0.0, -1e4]])
    assert float(cross_entropy(logits, jnp.array([0]))[0]) == 0.0
    assert float(cross_entropy(logits, jnp.array([2]))[0]) == pytest.approx(2e4)


def test_bfloat16_logits_are_summed_in_float32():
    """1024 equal logits: ln 1024, where a bfloat16 sum stops at 256."""
    value, _ = cross_entropy(jnp.zeros((2, 1024), jnp.bfloat16), jnp.array([0, 5]))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, np.log(1024), rtol=1e-6)
