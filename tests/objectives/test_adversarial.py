"""Losses of an autoencoder and its discriminator, against values by hand, float64 and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.objectives.adversarial import balanced, discriminator_loss, generator_loss, started
from mmjax.objectives.autoencoder import kl_to_standard, reconstruction

REAL, FAKE = jnp.asarray([[0.5, 2.0], [-1.0, 0.0]]), jnp.asarray([[-2.0, 0.25], [1.0, -0.5]])


def test_hinge_by_hand():
    assert float(discriminator_loss("hinge", REAL, FAKE)) == pytest.approx(((0.5 + 0 + 2 + 1) / 4 + (0 + 1.25 + 2 + 0.5) / 4) / 2)
    assert float(generator_loss("hinge", FAKE)) == pytest.approx(1.25 / 4)


def test_non_saturating_in_float64():
    real, fake = np.asarray(REAL, np.float64), np.asarray(FAKE, np.float64)
    want = (-np.log(1 / (1 + np.exp(-real))).mean() - np.log(1 / (1 + np.exp(fake))).mean()) / 2
    assert float(discriminator_loss("non_saturating", REAL, FAKE)) == pytest.approx(want, rel=1e-6)
    assert float(generator_loss("non_saturating", FAKE)) == pytest.approx(-np.log(1 / (1 + np.exp(-fake))).mean(), rel=1e-6)


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_each_player_pulls_its_own_way(kind):
    up, down = jax.grad(lambda r, f: discriminator_loss(kind, r, f), (0, 1))(REAL, FAKE)
    assert (up <= 0).all() and (down >= 0).all() and up.min() < 0 < down.max()
    assert (jax.grad(lambda f: generator_loss(kind, f))(FAKE) < 0).all()


def test_the_factor_makes_both_gradients_equally_long():
    last = jnp.asarray([[1.0, -2.0], [0.5, 3.0]])
    losses = lambda k: (3 * jnp.square(k).sum(), jnp.sin(k).sum())
    factor = balanced(losses, last, small=0.0)
    reconstruction_grad, adversarial_grad = 6 * np.asarray(last), np.cos(np.asarray(last))
    assert float(factor) == pytest.approx(np.linalg.norm(reconstruction_grad) / np.linalg.norm(adversarial_grad), rel=1e-5)
    flat = balanced(lambda k: (jnp.square(k).sum(), 0 * k.sum()), last)
    assert float(flat) == 1e4  # at most
    assert float(balanced(lambda k: (0 * k.sum(), k.sum()), last)) == 0
    assert not jax.grad(lambda k: balanced(losses, k))(last).any()


def test_it_starts_at_its_step():
    assert [float(started(jnp.int32(s), 10)) for s in (0, 9, 10, 11)] == [0, 0, 1, 1]


def test_unknown_losses():
    for call in (lambda: discriminator_loss("wgan", REAL, FAKE), lambda: generator_loss("wgan", FAKE)):
        with pytest.raises(UserError, match="^adversarial loss is 'wgan'; known: hinge, non_saturating"):
            call()


def test_kl_by_quadrature():
    mean, logvar = 0.7, -0.4
    z = np.linspace(-12, 12, 200_001)
    log_q = -((z - mean) ** 2) / (2 * np.exp(logvar)) - logvar / 2
    want = np.trapezoid(np.exp(log_q) / np.sqrt(2 * np.pi) * (log_q + z**2 / 2), z)
    got = kl_to_standard(jnp.full((2, 3, 5), mean), jnp.full((2, 3, 5), logvar))
    np.testing.assert_allclose(got, 15 * want, rtol=1e-5)


def test_reconstruction_by_hand():
    x, y = jnp.zeros((2, 2, 2)), jnp.asarray([[[1.0, -2.0], [0.0, 3.0]], [[0.0] * 2] * 2])
    got = reconstruction(x, y, jnp.asarray([0.5, 0.25]), jnp.log(jnp.float32(2.0)))
    np.testing.assert_allclose(got, [(6 + 4 * 0.5) / 2 + 4 * np.log(2), 4 * 0.25 / 2 + 4 * np.log(2)], rtol=1e-6)
