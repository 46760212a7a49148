"""A mixture of Gaussians, whose denoiser, scores and densities are known on every path: the truth that solvers are held to.

Three round components of unequal weight and width in the plane. At x_t = alpha x0 + sigma eps component k is N(alpha m_k, alpha^2 s_k^2 +
sigma^2), and E[x0 | x_t], E[eps | x_t] are its members' averages under the components' posterior weights.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.diffusion.prediction import Denoised, denoiser, spread, target


class Mixture(NamedTuple):
    weights: np.ndarray  # [K]
    means: np.ndarray  # [K, D]
    stds: np.ndarray  # [K]


MIXTURE = Mixture(np.array([0.5, 0.3, 0.2]), np.array([[-1.0, 0.3], [0.8, -0.7], [0.3, 1.1]]), np.array([0.2, 0.3, 0.12]))
SMOOTH = Mixture(np.array([0.6, 0.4]), np.array([[-0.6, 0.2], [0.5, -0.3]]), np.array([0.6, 0.8]))  # for orders of convergence


def parts(mixture, x, alpha, sigma):
    """x [B, D], alpha and sigma [B]: log(weight_k N(x)) [B, K], x - alpha m_k [B, K, D], variances [B, K]."""
    variance = alpha[:, None] ** 2 * jnp.asarray(mixture.stds, x.dtype)[None] ** 2 + sigma[:, None] ** 2
    away = x[:, None] - alpha[:, None, None] * jnp.asarray(mixture.means, x.dtype)[None]
    log_normal = -(away**2).sum(-1) / (2 * variance) - x.shape[1] / 2 * jnp.log(2 * math.pi * variance)
    return jnp.log(jnp.asarray(mixture.weights, x.dtype))[None] + log_normal, away, variance


def log_density(mixture, x, alpha=1.0, sigma=0.0):
    """Nats, [B]."""
    full = lambda v: jnp.full(x.shape[:1], v, x.dtype)
    return jax.nn.logsumexp(parts(mixture, x, full(alpha), full(sigma))[0], axis=1)


def exact(mixture, path):
    """The exact denoiser; finite also where there is no noise or no signal."""

    def denoise(x, t):
        alpha, sigma = path.alpha(t).astype(x.dtype), path.sigma(t).astype(x.dtype)
        logs, away, variance = parts(mixture, x, alpha, sigma)
        share = jax.nn.softmax(logs, axis=1)[..., None]
        pull = (alpha[:, None] * jnp.asarray(mixture.stds, x.dtype)[None] ** 2 / variance)[..., None]
        x0 = (share * (jnp.asarray(mixture.means, x.dtype)[None] + pull * away)).sum(1)
        eps = (share * (sigma[:, None] / variance)[..., None] * away).sum(1)
        return Denoised(x0, eps)

    return denoise


def as_network(mixture, path, kind):
    """The exact denoiser as a network of that prediction, and back through `prediction.denoiser` with all its scalings."""
    truth = exact(mixture, path)

    def network(seen, c):
        t = path.at_log_snr(-4 * c) if kind == "edm" else c
        x = seen * spread(path, t)[:, None] if kind == "edm" else seen
        out = truth(x, t)
        return target(kind, out.x0, out.eps, t, path)

    return denoiser(network, path, kind)


def draw(mixture, seed, n):
    """n points, float64 on the host."""
    rng = np.random.default_rng(seed)
    which = rng.choice(len(mixture.weights), n, p=mixture.weights)
    return mixture.means[which] + mixture.stds[which, None] * rng.standard_normal((n, mixture.means.shape[1]))


def sliced_wasserstein(a, b, directions=64):
    """Mean over directions of the distance of order 1 between the projections of two equally large samples."""
    angle = np.arange(directions) * np.pi / directions
    onto = np.stack([np.cos(angle), np.sin(angle)])
    return float(np.abs(np.sort(np.asarray(a, np.float64) @ onto, 0) - np.sort(np.asarray(b, np.float64) @ onto, 0)).mean())


def between_true(mixture, n, pairs=8):
    """What sampling error alone makes of it: the mean over pairs of independent samples."""
    return float(np.mean([sliced_wasserstein(draw(mixture, 2 * i + 1000, n), draw(mixture, 2 * i + 1001, n)) for i in range(pairs)]))
