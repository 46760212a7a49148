"""Guidance: wrappers that turn denoisers into a denoiser, for any solver.

Conventions. `scale` s is the factor on the conditional part: guided = unconditional + s (conditional - unconditional). s = 1 is the plain
conditional model, s = 0 the unconditional one. Ho & Salimans 2022 write (1 + w) conditional - w unconditional, so s = 1 + w; the numbers of
Stable Diffusion, GLIDE, DiT, SiT and EDM2 are s.

x0 and eps are guided alike: on x = alpha x0 + sigma eps they stay consistent under any weights that sum to 1, and eps, v, velocity, score
or x0 guidance are the same thing. B examples; x [B, ...], t [B].
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from mmjax.core.errors import UserError
from mmjax.diffusion.path import Path, over
from mmjax.diffusion.prediction import Denoised, Denoiser, denoised, target

Pair = Callable[[Array, Array], tuple[Denoised, Denoised]]  # (x, t) -> what is followed, what is fled from
Gradient = Callable[[Array, Array], Array]  # (x, t) -> of a log-probability with regard to x, [B, ...]


def combine(parts: Sequence[Denoised], weights: Sequence[ArrayLike]) -> Denoised:
    """sum_i weights[i] parts[i], where the weights (numbers, or [B]) sum to 1. The first part's variance is kept."""
    shaped = [jnp.asarray(w, parts[0].x0.dtype) for w in weights]
    add = lambda name: sum(over(w, getattr(p, name)) * getattr(p, name) for w, p in zip(shaped, parts, strict=True))
    return Denoised(add("x0"), add("eps"), parts[0].log_variance)


def apart(follow: Denoiser, flee: Denoiser) -> Pair:
    """Two denoisers, asked one after the other: two networks, or one under two conditions."""
    return lambda x, t: (follow(x, t), flee(x, t))


def stacked(denoise: Denoiser) -> Pair:
    """One denoiser of 2 B examples, of which the first B are conditional and the last B not: one look of twice the batch."""

    def both(x: Array, t: Array) -> tuple[Denoised, Denoised]:
        out = denoise(jnp.concatenate([x, x]), jnp.concatenate([t, t]))
        halves = [jax.tree.map(lambda a, i=i: a[i * x.shape[0] : (i + 1) * x.shape[0]], out) for i in (0, 1)]
        return halves[0], halves[1]

    return both


def classifier_free(
    pair: Pair,
    scale: ArrayLike,
    *,
    path: Path | None = None,
    interval: tuple[float, float] | None = None,
    alone: Denoiser | None = None,
    rescale: float = 0.0,
    rescale_kind: str = "eps",
    channels: int | None = None,
) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022), and autoguidance where the second of the pair is a weaker model (Karras et al. 2024).

    Args:
      pair: `apart(conditional, unconditional)` or `stacked(...)`.
      scale: s = 1 + w (above), a number or one an example, [B].
      path: needed by `interval` and `rescale`.
      interval: (low, high): guided where low < sigma / alpha <= high, elsewhere s = 1 (Kynkaanniemi et al. 2024).
      alone: the first of the pair by itself; with it, steps outside the interval look once instead of twice.
      rescale: phi of Lin et al. 2023, section 3.4: the share of the guided prediction that is brought back to the standard deviation, over
        all but the batch, of the conditional one. 0 leaves it.
      rescale_kind: which prediction that is measured and scaled in, of `prediction.PREDICTIONS`: the network's own in the paper.
      channels: guide the first so many channels only. DiT's published samples have 3 of 4.

    Raises:
      UserError: an interval or rescaling without a path, an empty interval, a share outside 0..1.
    """
    check(path, interval, rescale)

    def guided(x: Float[Array, "B *x"], t: Float[Array, "B"]) -> Denoised:
        follow, flee = pair(x, t)
        factor = jnp.asarray(scale, x.dtype)
        if interval is not None:
            factor = jnp.where(_inside(path, t, interval), factor, jnp.ones_like(factor))
        out = combine([follow, flee], [factor, 1 - factor])
        if rescale:
            out = _rescaled(out, follow, x, t, path, rescale, rescale_kind)
        if channels is not None:
            keep = jnp.arange(x.shape[-1]) < channels
            pick = lambda a, b: jnp.where(keep.reshape((1,) * (x.ndim - 1) + (-1,)), a, b)
            out = Denoised(pick(out.x0, follow.x0), pick(out.eps, follow.eps), follow.log_variance)
        return out

    if interval is None or alone is None:
        return guided
    return lambda x, t: jax.lax.cond(_inside(path, t, interval).any(), guided, alone, x, t)


def autoguidance(denoise: Denoiser, weaker: Denoiser, scale: ArrayLike, **how: Any) -> Denoiser:
    """weaker + s (denoise - weaker): guided by a smaller or less trained model of the same condition (Karras et al. 2024, equation 3).

    `how`: `path`, `interval` and so on, as of `classifier_free`.
    """
    return classifier_free(apart(denoise, weaker), scale, alone=denoise, **how)


def independent(unconditional: Denoiser, conditions: Sequence[Denoiser], scales: Sequence[ArrayLike]) -> Denoiser:
    """u + sum_i s_i (c_i - u): conditions that are independent given x, each with a scale (Liu et al. 2022, composable diffusion)."""
    total = sum(jnp.asarray(s) for s in scales)
    return lambda x, t: combine([*(c(x, t) for c in conditions), unconditional(x, t)], [*scales, 1 - total])


def nested(chain: Sequence[Denoiser], scales: Sequence[ArrayLike]) -> Denoiser:
    """d_0 + sum_i s_i (d_i - d_(i-1)): each knows what the one before does and more (Brooks et al. 2023, equation 3). One scale less than
    denoisers; the last one's variance is kept."""
    if len(scales) != len(chain) - 1:
        raise UserError(f"nested guidance of {len(chain)} denoisers has {len(scales)} scales, expected {len(chain) - 1}")
    factors = [jnp.asarray(s) for s in scales]
    weights = [a - b for a, b in zip([jnp.ones(()), *factors], [*factors, jnp.zeros(())], strict=True)]
    return lambda x, t: combine([d(x, t) for d in reversed(chain)], list(reversed(weights)))


def log_probability_gradient(log_probability: Callable[[Array, Array], Array], scale: float = 1.0) -> Gradient:
    """scale * the gradient of log p(y | x_t) with regard to x_t, `log_probability(x, t) -> [B]` of the class asked for."""
    return lambda x, t: scale * jax.grad(lambda x: log_probability(x, t).sum())(x)


def classifier(denoise: Denoiser, gradient: Gradient, path: Path) -> Denoiser:
    """Classifier guidance in score form: the score gains the gradient, eps loses sigma times it (Dhariwal & Nichol 2021, algorithm 2).

    Its mean form, algorithm 1, is `sample(..., solver="ddpm", gradient=gradient)`. At no signal, where x_t says nothing, nothing is added.
    """

    def guided(x: Float[Array, "B *x"], t: Float[Array, "B"]) -> Denoised:
        out, slope = denoise(x, t), gradient(x, t)
        alpha, sigma = path.alpha(t), path.sigma(t)
        signal = alpha > 0
        shift = jnp.where(signal, sigma**2 / jnp.where(signal, alpha, 1.0), 0.0)
        return out._replace(x0=out.x0 + over(shift, x) * slope, eps=out.eps - over(jnp.where(signal, sigma, 0.0), x) * slope)

    return guided


def with_x0(out: Denoised, x0: Float[Array, "B *x"], x: Float[Array, "B *x"], t: Float[Array, "B"], path: Path) -> Denoised:
    """Another x0, and the eps that goes with it on x; at no noise the old eps."""
    sigma = over(path.sigma(t), x)
    eps = (x - over(path.alpha(t), x) * x0) / jnp.where(sigma > 0, sigma, 1.0)
    return out._replace(x0=x0, eps=jnp.where(sigma > 0, eps, out.eps))


def clip(denoise: Denoiser, path: Path, *, low: float = -1.0, high: float = 1.0, rederive: bool = True) -> Denoiser:
    """Static thresholding: x0 held to [low, high].

    Args:
      rederive: eps follows x0 (guided-diffusion, GLIDE, diffusers' `use_clipped_model_output`). False leaves eps as the network has it,
        which no x0 goes with any more: diffusers' DDIM by default.
    """
    if not low < high:
        raise UserError(f"clipping from {low} to {high}; expected low < high")

    def clipped(x: Float[Array, "B *x"], t: Float[Array, "B"]) -> Denoised:
        out = denoise(x, t)
        x0 = jnp.clip(out.x0, low, high)
        return with_x0(out, x0, x, t, path) if rederive else out._replace(x0=x0)

    return clipped


def dynamic_threshold(
    denoise: Denoiser, path: Path, *, quantile: float = 0.995, limit: float = 1.0, highest: float | None = None, rederive: bool = True
) -> Denoiser:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): x0 held to [-q, q] and divided by q / limit, q the quantile of an example's
    |x0|, at least `limit` and at most `highest`."""
    if not 0 < quantile <= 1 or not limit > 0:
        raise UserError(f"dynamic thresholding with quantile {quantile} and limit {limit}; expected 0 < quantile <= 1 and a positive limit")

    def held(x: Float[Array, "B *x"], t: Float[Array, "B"]) -> Denoised:
        out = denoise(x, t)
        q = jnp.quantile(jnp.abs(out.x0).reshape(x.shape[0], -1), quantile, axis=1)
        q = over(jnp.clip(q, limit, highest), x)
        x0 = jnp.clip(out.x0, -q, q) * (limit / q)
        return with_x0(out, x0, x, t, path) if rederive else out._replace(x0=x0)

    return held


def _inside(path: Path, t: Float[Array, "B"], interval: tuple[float, float]) -> Array:
    """low < sigma / alpha <= high, without a division."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    return (sigma > interval[0] * alpha) & (sigma <= interval[1] * alpha)


def _rescaled(out: Denoised, follow: Denoised, x: Array, t: Array, path: Path, share: float, kind: str) -> Denoised:
    axes = tuple(range(1, x.ndim))
    of = lambda d: target(kind, d.x0, d.eps, t, path)
    guided = of(out)
    wide, narrow = guided.std(axes, keepdims=True), of(follow).std(axes, keepdims=True)
    factor = share * jnp.where(wide > 0, narrow / jnp.where(wide > 0, wide, 1.0), 1.0) + (1 - share)
    return denoised(kind, guided * factor, x, t, path)._replace(log_variance=out.log_variance)


def check(path: Path | None, interval: tuple[float, float] | None, rescale: float) -> None:
    """Raises `UserError` for what `classifier_free` refuses."""
    if path is None and (interval is not None or rescale):
        raise UserError("guidance with an interval or a rescaling needs the path: pass path=")
    if interval is not None and not (len(interval) == 2 and 0 <= interval[0] < interval[1]):
        raise UserError(f"guidance interval is {interval}, expected 0 <= low < high, in units of sigma / alpha")
    if not 0 <= rescale <= 1:
        raise UserError(f"guidance rescale is {rescale}, expected a share from 0 to 1 (0.7 in the paper)")
