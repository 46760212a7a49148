"""Noise schedules of discrete variance-preserving diffusion: tables of beta_i, i = 0..T-1, in float64 on the host.

alpha_bar_i is the product of 1 - beta up to and with i: x_i = sqrt(alpha_bar_i) x0 + sqrt(1 - alpha_bar_i) eps.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from mmjax.core.errors import UserError, suggest

Table = Float[np.ndarray, "T"]


def _linear(steps: int, start: float | None, end: float | None) -> Table:
    """1e-4 to 0.02 at T = 1000 (Ho et al. 2020, section 4); at another T times 1000 / T, which keeps alpha_bar_T nearly."""
    scale = 1000 / steps
    return np.linspace(1e-4 * scale if start is None else start, 0.02 * scale if end is None else end, steps)


def _scaled_linear(steps: int, start: float | None, end: float | None) -> Table:
    """Linear in the square root of beta, by default 0.00085 to 0.012 of Stable Diffusion (latent diffusion: 0.0015 to 0.0195)."""
    return np.linspace(np.sqrt(0.00085 if start is None else start), np.sqrt(0.012 if end is None else end), steps) ** 2


def _cosine(steps: int, start: float | None, end: float | None) -> Table:
    """alpha_bar falls as a squared cosine (Nichol & Dhariwal 2021, equation 17), beta at most 0.999."""
    if (start, end) != (None, None):
        raise UserError(f"a cosine schedule has no beta_start and beta_end, got {start} and {end}; leave both out")
    level = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - level[1:] / level[:-1], 0.999)


def _sigmoid(steps: int, start: float | None, end: float | None) -> Table:
    """beta climbs along a sigmoid from -6 to 6 (Xu et al. 2022, GeoDiff), from 1e-4 to 0.02 unless given."""
    start, end = 1e-4 if start is None else start, 0.02 if end is None else end
    return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps)))


BETAS: dict[str, Callable[[int, float | None, float | None], Table]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "cosine": _cosine,
    "sigmoid": _sigmoid,
}


def betas(kind: str, steps: int = 1000, start: float | None = None, end: float | None = None, zero_terminal_snr: bool = False) -> Table:
    """The table of a schedule by name (a key of `BETAS`), from `start` to `end` where it has such ends.

    Raises:
      UserError: an unknown schedule, fewer than two steps, a beta that is no probability.
    """
    if kind not in BETAS:
        raise UserError(f"beta schedule is {kind!r}{suggest(kind, BETAS)}")
    if steps < 2:
        raise UserError(f"a beta schedule of {steps} steps; expected at least 2, for example 1000")
    table = BETAS[kind](steps, start, end)
    if not (table.min() > 0 and table.max() < 1):
        raise UserError(
            f"the {kind} schedule of {steps} steps has betas from {table.min():.4g} to {table.max():.4g}; expected all between 0 and 1: "
            "take more steps or give beta_start and beta_end"
        )
    return rescale_to_zero_terminal_snr(table) if zero_terminal_snr else table


def alpha_bar(table: Table) -> Table:
    """Cumulative products of 1 - beta."""
    return np.cumprod(1 - table)


def rescale_to_zero_terminal_snr(table: Table) -> Table:
    """Shifts and scales sqrt(alpha_bar) so that its last entry is 0 and its first is kept (Lin et al. 2023, algorithm 1)."""
    root = np.sqrt(alpha_bar(table))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    level = root**2
    return 1 - level / np.concatenate([[1.0], level[:-1]])
