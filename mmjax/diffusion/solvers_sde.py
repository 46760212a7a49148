"""Solvers of reverse-time SDEs: Euler-Maruyama with a diffusion of choice, predictor-corrector, and EDM's stochastic sampler.

For any w(t) >= 0, dx = [v(x, t) - w(t) score(x, t)] dt + sqrt(2 w(t)) dW run backwards in time has the path's marginals, with v the
velocity of the probability-flow ODE and score = -eps / sigma (Ma et al. 2024, SiT, equation 7). w = g^2 / 2 is the reverse of the diffusion
that makes the path (Song et al. 2021); w = 0 the ODE.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from mmjax.core.errors import UserError, suggest
from mmjax.diffusion.path import Path
from mmjax.diffusion.path import edm as sigma_path
from mmjax.diffusion.prediction import on_path
from mmjax.diffusion.solvers_discrete import ancestral
from mmjax.diffusion.solvers_ode import EULER, HEUN, looks, runge_kutta
from mmjax.diffusion.walk import Problem, Solution, Steps, finite, interleaved, levels, rates, walk

# w in units of 1 / (the path's whole length in time), at n = how far along to noise, in 0..1, sigma, and a norm (SiT, table 2).
# SiT's "SBDM" is g^2 / 2, in no such units.
DIFFUSIONS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "constant": lambda n, sigma, norm: np.full_like(n, norm),
    "sigma": lambda n, sigma, norm: norm * sigma,
    "linear": lambda n, sigma, norm: norm * n,
    "decreasing": lambda n, sigma, norm: 0.25 * (norm * np.cos(math.pi * (1 - n)) + 1) ** 2,
    "increasing-decreasing": lambda n, sigma, norm: norm * np.sin(math.pi * (1 - n)) ** 2,
}
LAST = ("mean", "tweedie", "euler", "noise")


def diffusion(path: Path, times: Float[np.ndarray, "n"], form: str, norm: float) -> Float[np.ndarray, "n"]:
    """w(t) of a form of `DIFFUSIONS`, or of "sbdm", norm * g^2 / 2.

    Raises:
      UserError: an unknown form, a negative norm, an infinite diffusion.
    """
    known = [*DIFFUSIONS, "sbdm"]
    if form not in known:
        raise UserError(f"diffusion is {form!r}{suggest(form, known)}")
    if not norm >= 0:
        raise UserError(f"diffusion {form!r}: norm is {norm}, expected 0 (the ODE) or more")
    if form == "sbdm":
        w = norm / 2 * _diffusion2(path, times)
        finite({"g^2": w}, times, path, "diffusion 'sbdm'", "begin at a cleaner time or take diffusion 'sigma'")
        return w
    span = path.noise - path.clean
    return DIFFUSIONS[form]((times - path.clean) / span, levels(path, times).sigma, norm) / span


def _diffusion2(path: Path, times: np.ndarray) -> np.ndarray:
    """g^2 = 2 sigma (sigma' - sigma alpha' / alpha)."""
    d_alpha, d_sigma = rates(path, times)
    at = levels(path, times)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 2 * at.sigma * (d_sigma - at.sigma * d_alpha / at.alpha)


def reverse(path: Path, t: np.ndarray, s: np.ndarray, form: str, norm: float) -> Steps:
    """Euler-Maruyama steps from t to s."""
    h, w, sigma = t - s, diffusion(path, t, form, norm), levels(path, t).sigma
    d_alpha, d_sigma = rates(path, t)
    finite({"d alpha / dt": d_alpha, "d sigma / dt": d_sigma}, t, path, "the reverse SDE", "begin at a cleaner time")
    return Steps(t=t, to=s, x=np.ones_like(t), x0=-h * d_alpha, eps=-h * (d_sigma + w / sigma), noise=np.sqrt(2 * w * h))


def euler_maruyama(problem: Problem, *, diffusion: str = "sbdm", norm: float = 1.0, last: str = "mean") -> Solution:
    """Euler-Maruyama on the reverse SDE, one look a step.

    Args:
      diffusion: w(t): "sbdm", g^2 / 2, the reverse of the path's own diffusion; or one of SiT's: "constant", "sigma", "linear",
        "decreasing", "increasing-decreasing". Their time has unit length, whatever the path's.
      norm: factor on it.
      last: the last step: "mean" draws no noise, "tweedie" gives x0, "euler" follows the ODE, "noise" is like the others. SiT's step sizes
        are those of times that end in 0.04, 0.

    Raises:
      UserError: an unknown name, a diffusion that is infinite at one of the times (sbdm where there is no signal).
    """
    if last not in LAST:
        raise UserError(f"solver 'euler_maruyama': last is {last!r}{suggest(last, LAST)}")
    t, s = problem.times[:-1], problem.times[1:]
    steps = reverse(problem.path, t, s, diffusion, norm)
    if last != "noise":
        final = {
            "mean": steps,
            "tweedie": Steps(t, s, x0=levels(problem.path, s).alpha),
            "euler": reverse(problem.path, t, s, "constant", 0.0),
        }[last]
        columns = {name: _ending(getattr(steps, name), getattr(final, name)) for name in ("x", "x0", "eps")}
        steps = steps._replace(**columns, noise=_ending(steps.noise, 0.0))
    return walk(problem, steps)


def _ending(column: np.ndarray, last: np.ndarray | float) -> np.ndarray:
    return np.concatenate([column[:-1], np.atleast_1d(last)[-1:]])


PREDICTORS = ("ancestral", "euler_maruyama")


def predictor_corrector(problem: Problem, *, predictor: str = "ancestral", snr: float = 0.16, corrector_steps: int = 1) -> Solution:
    """At each noise level Langevin steps, then a predictor's step to the next (Song et al. 2021, algorithm 1).

    A Langevin step moves by d = 2 (snr sigma)^2 along the score and adds noise of variance 2 d: annealed Langevin dynamics' size. Song et
    al. also scale it by norms averaged over the batch, which would make a sample depend on its neighbours; sqrt(2) snr is what both agree
    on where the score is that of pure noise.

    Args:
      predictor: "ancestral" (DDPM's step; on `ve` Song et al.'s too) or "euler_maruyama" (the reverse SDE, mean only at last).
      snr: the corrector's signal-to-noise ratio.
      corrector_steps: a level; 0 leaves the predictor alone.
    """
    if predictor not in PREDICTORS:
        raise UserError(f"solver 'predictor_corrector': predictor is {predictor!r}{suggest(predictor, PREDICTORS)}")
    if corrector_steps < 0 or not snr > 0:
        raise UserError(
            f"solver 'predictor_corrector': snr {snr} and {corrector_steps} corrector steps; expected snr > 0 and 0 or more steps"
        )
    path, t, s = problem.path, problem.times[:-1], problem.times[1:]
    if predictor == "ancestral":
        down = ancestral(path, t, s)
    else:
        down = reverse(path, t, s, "sbdm", 1.0)
        down = down._replace(noise=_ending(down.noise, 0.0))
    sigma = levels(path, t).sigma
    size = 2 * (snr * sigma) ** 2
    langevin = Steps(t=t, to=t, x=np.ones_like(t), eps=-size / sigma, noise=np.sqrt(2 * size), ends=False)
    return walk(problem, interleaved([langevin] * corrector_steps + [down]))


def edm(
    problem: Problem,
    *,
    churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
    second_order: bool = True,
) -> Solution:
    """EDM's stochastic sampler (Karras et al. 2022, algorithm 2), Heun's method in sigma after a little noise; 2 N - 1 looks for N steps.

    Any path is walked as x / alpha over sigma / alpha, so a network of another path is sampled as in the paper's section 4. With churn 0 it
    is algorithm 1.

    Args:
      churn: S_churn, over the whole walk: a step adds noise up to sigma (1 + min(churn / N, sqrt(2) - 1)).
      s_min, s_max: the range of sigma in which noise is added.
      s_noise: S_noise, the standard deviation of what is added, over what should be.
      second_order: False leaves out Heun's correction.

    Raises:
      UserError: a start without signal, where sigma / alpha is infinite.
    """
    at = levels(problem.path, problem.times)
    with np.errstate(divide="ignore"):
        sigma = at.sigma / at.alpha
    finite({"sigma / alpha": sigma}, problem.times, problem.path, "solver 'edm'", "begin at a cleaner time")
    if churn < 0 or not s_noise > 0:
        raise UserError(f"solver 'edm': churn is {churn} and s_noise {s_noise}; expected churn 0 or more and a positive s_noise")
    now, to = sigma[:-1], sigma[1:]
    gain = np.where((now >= s_min) & (now <= s_max), min(churn / len(now), math.sqrt(2) - 1), 0.0)
    begin = now * (1 + gain)
    scaled = sigma_path(sigma_max=float(2 * sigma[0]))
    rows = looks(scaled, begin, to, HEUN if second_order else EULER, EULER, kick=s_noise * np.sqrt(begin**2 - now**2))
    inner = dataclasses.replace(
        problem, denoise=on_path(problem.denoise, problem.path, scaled), x=problem.x / float(at.alpha[0]), times=sigma, path=scaled
    )
    found = runge_kutta(inner, rows._replace(to=_times_of(rows.to, sigma, problem.times)), scale=at.alpha)
    rest = float(at.alpha[-1])
    states = None if found.states is None else found.states.at[0].set(problem.x)
    return found._replace(x=found.x * rest, states=states)


def _times_of(values: np.ndarray, sigma: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The problem's own time of each sigma."""
    return np.interp(values, sigma[::-1], times[::-1])
