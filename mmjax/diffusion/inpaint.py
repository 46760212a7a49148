"""Editing with an unconditional model: inpainting, image-to-image, and interpolation.

B examples, x [B, ...]. A mask is 1 where the picture is known and 0 where it is to be made, and broadcasts over x.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.diffusion.path import Path, over
from mmjax.diffusion.prediction import Denoiser
from mmjax.diffusion.samplers import check_times
from mmjax.diffusion.solvers_discrete import ancestral
from mmjax.diffusion.walk import Problem, Steps, levels, walk


def replacement(known: Float[Array, "B *x"], mask: Float[Array, "..."], path: Path) -> Callable[[Array, Array, Array], Array]:
    """For `sample(..., after=...)`: after every step the known part is that of noised data (Song et al. 2021, appendix I.2).

    Cheap, and only nearly right: what is made sees the known part through the noise. `repaint` harmonises the two.
    """

    def replace(x: Float[Array, "B *x"], t: Float[Array, "B"], keys: Key[Array, "B"]) -> Float[Array, "B *x"]:
        return mask * noised(known, t, keys, path=path) + (1 - mask) * x

    return replace


def noised(x0: Float[Array, "B *x"], t: Float[Array, "B"] | float, keys: Key[Array, "B"], *, path: Path) -> Float[Array, "B *x"]:
    """Data brought to time t: where image-to-image starts from, with `from_level`'s times (Meng et al. 2022, SDEdit)."""
    eps = jax.vmap(lambda key: jax.random.normal(rng.named(key, "noised"), x0.shape[1:], x0.dtype))(keys)
    return path.mix(x0, eps, jnp.broadcast_to(jnp.asarray(t, x0.dtype), x0.shape[:1]))


def from_level(times: Any, strength: float) -> Float[np.ndarray, "n"]:
    """The last `strength` of a sampler's times: 1 is all of them, from pure noise; 0.3 the last three tenths of the steps.

    Raises:
      UserError: a strength that leaves no step.
    """
    grid = np.asarray(times, np.float64)
    steps = round(strength * (len(grid) - 1))
    if not 0 < strength <= 1 or steps < 1:
        raise UserError(
            f"strength {strength} of {len(grid) - 1} steps leaves none; expected more than {1 / (len(grid) - 1):.3g}, at most 1"
        )
    return grid[len(grid) - 1 - steps :]


def repaint_plan(steps: int, jump: int, resample: int) -> list[tuple[int, int]]:
    """RePaint's walk over places in the falling times, as moves (from, to): each stretch of `jump` steps is walked `resample` times,
    noise being added back in between (Lugmayr et al. 2022, section 4.2)."""
    moves, place, left = [], 0, {begin: resample - 1 for begin in range(0, steps - jump + 1, jump)}
    while place < steps:
        moves.append((place, place + 1))
        place += 1
        begin = place - jump
        if left.get(begin, 0) > 0:
            left[begin] -= 1
            moves.append((place, begin))
            place = begin
    return moves


def repaint(
    denoise: Denoiser,
    x_init: Float[Array, "B *x"],
    times: Any,
    keys: Key[Array, "B"],
    *,
    path: Path,
    known: Float[Array, "B *x"],
    mask: Float[Array, "..."],
    jump: int = 10,
    resample: int = 10,
    variance: str = "fixed_small",
    trajectory: bool = False,
) -> Array:
    """Inpainting by RePaint: ancestral steps with the known part replaced, going back up to noise `resample` - 1 times every `jump` steps.

    Args:
      times: float[N + 1], falling (250 steps in the paper).
      known: data of which the masked part counts.
      variance: of a step down, `fixed_small` or `fixed_large`.
      trajectory: return x after every move instead, [moves + 1, B, ...].

    Raises:
      UserError: times that do not fall, a jump longer than the walk, a way back up that would start where no signal may follow.
    """
    grid = check_times(times, path)
    if not 1 <= jump <= len(grid) - 1 or resample < 1:
        raise UserError(
            f"RePaint with jump {jump} and resample {resample} over {len(grid) - 1} steps; expected 1 <= jump <= steps, resample >= 1"
        )
    if variance not in ("fixed_small", "fixed_large"):
        raise UserError(f"RePaint's variance is {variance!r}, expected 'fixed_small' or 'fixed_large'")
    moves = np.array(repaint_plan(len(grid) - 1, jump, resample))
    begin, end = grid[moves[:, 0]], grid[moves[:, 1]]
    down = begin > end
    steps = ancestral(path, np.where(down, begin, end), np.where(down, end, begin), variance)
    up = _noising(path, begin, end)
    pick = lambda a, b: np.where(down, a, b)
    table = Steps(t=begin, to=end, x=pick(steps.x, up.x), x0=pick(steps.x0, 0.0), noise=pick(steps.noise, up.noise), looks=down)
    found = walk(Problem(denoise, x_init, grid, keys, path, replacement(known, mask, path), trajectory), table)
    return found.states if trajectory else found.x


def _noising(path: Path, begin: np.ndarray, end: np.ndarray) -> Steps:
    """x_t of a cleaner x_s: r x_s + sqrt(sigma_t^2 - r^2 sigma_s^2) z, r = alpha_t / alpha_s."""
    a, b = levels(path, begin), levels(path, end)
    with np.errstate(divide="ignore", invalid="ignore"):
        r = b.alpha / a.alpha
    return Steps(t=begin, to=end, x=r, noise=np.sqrt(np.maximum(b.sigma**2 - (r * a.sigma) ** 2, 0.0)))


def lerp(a: Float[Array, "B *x"], b: Float[Array, "B *x"], weight: Float[Array, "B"] | float) -> Float[Array, "B *x"]:
    """(1 - weight) a + weight b. Of noise, whose length says that it is noise, take `embeddings.slerp`."""
    w = over(jnp.asarray(weight, a.dtype), a)
    return (1 - w) * a + w * b
