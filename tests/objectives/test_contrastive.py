"""InfoNCE against torch's numbers (tests/golden/clip.py), float64, and its known limits."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import sharding
from mmjax.objectives.contrastive import info_nce

GOLDEN = Path(__file__).parents[1] / "golden" / "clip.npz"


def pairs(n=16, width=8, seed=0, noise=0.5):
    r = np.random.default_rng(seed)
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    images = unit(r.standard_normal((n, width)))
    return images, unit(images + noise * r.standard_normal((n, width)))


def reference(images, texts, log_scale):
    """Both directions' losses and the loss's derivative by log_scale, in float64 and one pair at a time.

    With p the softmax of a row of logits, d(-log p_i)/d log_scale = sum_j p_j logit_j - logit_i.
    """
    logits = np.exp(np.float64(log_scale)) * np.asarray(images, np.float64) @ np.asarray(texts, np.float64).T
    n, losses, slopes = len(logits), [0.0, 0.0], [0.0, 0.0]
    for way, matrix in enumerate((logits, logits.T)):
        for i in range(n):
            row = matrix[i]
            p = np.exp(row - row.max())
            p /= p.sum()
            losses[way] -= np.log(p[i]) / n
            slopes[way] += (p @ row - row[i]) / n
    return losses, sum(slopes) / 2


@pytest.mark.parametrize("log_scale", [0.0, 2.659, 4.605])
def test_equals_float64(log_scale):
    images, texts = pairs()
    loss = lambda s: info_nce(jnp.asarray(images), jnp.asarray(texts), s)
    (value, metrics), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.float32(log_scale))
    (to_text, to_image), want_slope = reference(images, texts, np.float32(log_scale))
    assert abs(to_text - to_image) > 1e-5  # else the two could be swapped
    for got, want in ((value, (to_text + to_image) / 2), (metrics["image_to_text"], to_text), (metrics["text_to_image"], to_image)):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope, want_slope, rtol=1e-5, atol=1e-5)


def test_equals_torch():
    with np.load(GOLDEN) as f:
        g = {k.removeprefix("loss/"): jnp.asarray(v) for k, v in f.items() if k.startswith("loss/")}
    f = jax.jit(jax.value_and_grad(lambda *a: info_nce(*a)[0], argnums=(0, 1, 2)))
    value, grads = f(g["images"], g["texts"], g["log_scale"])
    np.testing.assert_allclose(value, g["loss"], rtol=2e-6)
    for got, name in zip(grads, ("images", "texts", "log_scale"), strict=True):
        np.testing.assert_allclose(got, g[f"grad/{name}"], rtol=0, atol=5e-6 * float(jnp.abs(g[f"grad/{name}"]).max()), err_msg=name)


def test_accuracy_counts_rows_whose_own_text_is_nearest():
    images = jnp.eye(4)
    texts = images[jnp.array([0, 1, 3, 2])]
    assert float(info_nce(images, texts, jnp.float32(1.0))[1]["batch_accuracy"]) == 0.5


@pytest.mark.parametrize("n", [2, 8, 64])
def test_uninformed_embeddings_score_the_logarithm_of_the_batch(n):
    """All embeddings equal, or zero, or a scale that vanishes: every text is as likely, ln B."""
    images, texts = (jnp.asarray(x) for x in pairs(n))
    same = jnp.broadcast_to(images[:1], images.shape)
    for a, b, s in ((same, same, 2.0), (jnp.zeros_like(images), jnp.zeros_like(texts), 2.0), (images, texts, -30.0)):
        np.testing.assert_allclose(info_nce(a, b, jnp.float32(s))[0], np.log(n), rtol=1e-6)


def test_perfect_matches():
    """Orthogonal pairs: ln(1 + (B - 1) exp(-scale)), which vanishes as the scale grows, with nothing overflowing on the way."""
    eye = jnp.eye(8)
    for scale in (1.0, 5.0, 10.0):
        want = np.log1p(7 * np.exp(-scale))
        np.testing.assert_allclose(info_nce(eye, eye, jnp.float32(np.log(scale)))[0], want, rtol=1e-5, atol=1e-6)
    value, grads = jax.value_and_grad(lambda a, s: info_nce(a, a, s)[0], argnums=(0, 1))(eye, jnp.float32(np.log(1e4)))
    assert float(value) == 0.0
    assert all(bool(jnp.isfinite(g).all()) for g in grads)


def test_loss_is_blind_to_the_order_of_pairs():
    images, texts = (jnp.asarray(x) for x in pairs())
    order = np.random.default_rng(1).permutation(16)
    a, b = (info_nce(i, t, jnp.float32(2.0))[0] for i, t in ((images, texts), (images[order], texts[order])))
    np.testing.assert_allclose(a, b, rtol=1e-6)
    assert abs(float(info_nce(images, texts[order], jnp.float32(2.0))[0] - a)) > 0.1


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_any_mesh_equals_one_device(sizes):
    """The batch is the global one: negatives on other devices count."""
    images, texts = pairs(32)
    f = lambda i, t, s: jax.value_and_grad(lambda *a: info_nce(*a)[0], argnums=(0, 1, 2))(i, t, s)
    want = jax.jit(f)(jnp.asarray(images), jnp.asarray(texts), jnp.float32(3.0))
    mesh = sharding.make_mesh(sizes)
    batch = sharding.put_batch({"i": images, "t": texts}, 32, mesh)
    assert len(batch["i"].sharding.device_set) == 8
    with sharding.use(mesh):
        got = jax.jit(lambda i, t, s: f(i, t, s))(batch["i"], batch["t"], jnp.float32(3.0))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
