"""Which times a solver walks: N + 1 of them, from noise downwards, the clean end last. Float64 on the host, at configuration.

Spacings by place lie on a grid of T steps, place i from 0 to T - 1; of a continuous path the grid is 1000 fine, place i is the time
clean + (noise - clean) (i + 1) / 1000, and places need not be whole.

    linspace        N places from T - 1 to 0, both included: the respaced steps of Nichol & Dhariwal 2021; also unclip
    linspace_open   N + 1 such places, the lowest left out: DPM-Solver's linspace in diffusers
    leading         multiples of floor(T / N), from 0, plus `offset` (Stable Diffusion: 1)
    leading_open    multiples of floor(T / (N + 1)), from the first, plus `offset`: DPM-Solver's leading in diffusers
    trailing        T - 1, and down by T / N (Lin et al. 2023, table 2); of a continuous path N equal steps from noise to clean
    karras          sigma^(1 / rho) in equal steps (Karras et al. 2022, equation 5), sigma the ratio sigma / alpha of the path
    log_snr         the logarithm of that ratio in equal steps (Lu et al. 2022)
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from mmjax.core.errors import UserError, suggest
from mmjax.diffusion.path import Path
from mmjax.diffusion.walk import on_host

Times = Float[np.ndarray, "N"]
GRID = 1000  # steps of a continuous path's grid
SIGMA_MIN = 0.002  # the least sigma / alpha of a continuous path's walk, unless given (Karras et al. 2022, table 1)
Whole = Callable[[Times], Times]  # to whole places, or none


def _linspace(n: int, steps: int, offset: int, whole: Whole) -> Times:
    return whole(np.linspace(0, steps - 1, n))[::-1] if n > 1 else np.array([steps - 1.0])


def _linspace_open(n: int, steps: int, offset: int, whole: Whole) -> Times:
    return whole(np.linspace(0, steps - 1, n + 1))[:0:-1]


def _leading(n: int, steps: int, offset: int, whole: Whole) -> Times:
    return _from_clean(np.arange(n) * (steps // n) + offset, steps)


def _leading_open(n: int, steps: int, offset: int, whole: Whole) -> Times:
    return _from_clean(np.arange(1, n + 1) * (steps // (n + 1)) + offset, steps)


def _trailing(n: int, steps: int, offset: int, whole: Whole) -> Times:
    return whole(steps - np.arange(n) * (steps / n)) - 1


def _from_clean(places: np.ndarray, steps: int) -> Times:
    if places[-1] > steps - 1 or len(np.unique(places)) < len(places):
        raise UserError(f"{len(places)} leading steps from {places[0]} to {places[-1]} do not fit a schedule of {steps}; take fewer steps")
    return places[::-1].astype(np.float64)


PLACES: dict[str, Callable[[int, int, int, Whole], Times]] = {
    "linspace": _linspace,
    "unclip": _linspace,
    "linspace_open": _linspace_open,
    "leading": _leading,
    "leading_open": _leading_open,
    "trailing": _trailing,
}
SPACINGS = (*PLACES, "karras", "log_snr")


def times(
    path: Path,
    n: int,
    spacing: str = "trailing",
    *,
    shift: float = 1.0,
    offset: int = 0,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    shift_ends_too: bool = False,
) -> Float[np.ndarray, "N_plus_1"]:
    """The times of n steps.

    Args:
      shift: factor on sigma / alpha of every time (`density.shifted`, not rounded): a number, or `density.shift_of_size` or
        `density.dynamic_shift` of the picture at hand.
      offset: of the leading ones.
      rho, sigma_min, sigma_max: of karras, and the last two of log_snr; by default the ratios at the path's own first and last steps,
        where they are finite, or `SIGMA_MIN`.
      shift_ends_too: for parity with diffusers' flow-matching schedulers, which space linearly between ends that are shifted already and
        then shift once more (their issue 13243): with linspace on the flow path only.

    Raises:
      UserError: an unknown spacing, fewer than one step, more than a discrete path has, a noise end with no finite ratio.
    """
    _check(path, n, spacing, shift, shift_ends_too)
    if spacing in PLACES:
        walked = _on_grid(path, PLACES[spacing], n, offset)
        if shift_ends_too:
            top, low = _shifted(path, np.array([path.noise, 1 / GRID]), shift)
            walked = np.linspace(top, low, n)
    else:
        walked = _by_ratio(path, n, None if spacing == "log_snr" else rho, sigma_min, sigma_max)
    if shift != 1:
        walked = _shifted(path, walked, shift)
    return np.append(walked, path.clean)


def _on_grid(path: Path, places: Callable, n: int, offset: int) -> Times:
    """Numpy rounds halves to even, as the references do."""
    if path.steps is not None:
        return places(n, path.steps, offset, np.round)
    return path.clean + (path.noise - path.clean) * (places(n, GRID, offset, lambda x: x) + 1) / GRID


def _by_ratio(path: Path, n: int, rho: float | None, low: float | None, high: float | None) -> Times:
    first = path.noise if path.steps is None else float(path.steps - 1)
    ratio = lambda t: float(np.exp(-on_host(path.log_snr, np.array(t))))
    if low is None:
        low = ratio(0.0) if path.steps is not None else max(SIGMA_MIN, ratio(path.clean))
    if high is None:
        high = ratio(first)
    if not 0 < low < high < np.inf:
        raise UserError(
            f"spacing by sigma from {high:g} to {low:g} on the path {path.name!r}; expected finite ratios sigma / alpha, falling: "
            "give sigma_max and sigma_min"
        )
    noisy_end = ratio(path.clean) >= low  # a clean end with noise (ve) is itself the lowest ratio, and is appended
    u = np.linspace(0, 1, n + 1)[:-1] if noisy_end else np.linspace(0, 1, n)
    if rho is None:
        ratios = np.exp(np.log(high) + u * (np.log(low) - np.log(high)))
    else:
        ratios = (high ** (1 / rho) + u * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return on_host(path.at_log_snr, -np.log(ratios))


def _shifted(path: Path, t: Times, factor: float) -> Times:
    if path.name == "flow":
        return factor * t / (1 + (factor - 1) * t)
    return on_host(lambda t: path.at_log_snr(path.log_snr(t) - np.log(factor)), t)


def _check(path: Path, n: int, spacing: str, shift: float, shift_ends_too: bool) -> None:
    if spacing not in SPACINGS:
        raise UserError(f"spacing of times is {spacing!r}{suggest(spacing, SPACINGS)}")
    if n < 1:
        raise UserError(f"{n} sampling steps; expected at least 1")
    if path.steps is not None and n > path.steps:
        raise UserError(f"{n} sampling steps of a schedule of {path.steps}; expected at most {path.steps}")
    if not 0 < shift < np.inf:
        raise UserError(f"shift of times is {shift}; expected a positive number")
    if shift_ends_too and (path.name != "flow" or spacing != "linspace"):
        raise UserError(f"shift_ends_too is of spacing 'linspace' on the path 'flow', given {spacing!r} on {path.name!r}")
