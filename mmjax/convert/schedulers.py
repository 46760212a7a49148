"""diffusers' scheduler_config.json -> the fields `path`, `prediction`, `variance`, `time_scale` and `sampler` of config.model.

Where theirs and ours differ: every walk here ends at clean data, also where theirs ends at time 0 (`set_alpha_to_one` false); DDIM steps to
the next time, not to t - T // N; sigmas of EulerDiscrete are those of whole times.
"""

from collections.abc import Mapping
from typing import Any

from mmjax.convert.source import Source
from mmjax.core.errors import UserError, suggest

Json = Mapping[str, Any]

BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {
    **{"fixed_small": "fixed_small", "fixed_small_log": "fixed_small", "fixed_large": "fixed_large", "fixed_large_log": "fixed_large"},
    **{"learned": "learned", "learned_range": "learned_range"},
}
SPACINGS = ("linspace", "leading", "trailing")
ALGORITHMS = {"dpmsolver++": "dpmpp_2m", "sde-dpmsolver++": "dpmpp_2m_sde"}
# Settings with one value here, by scheduler; those left out of a config have it.
FIXED: dict[str, Json] = {
    "DDPMScheduler": {"clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0},
    "DDIMScheduler": {"clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0},
    "EulerDiscreteScheduler": {
        **{"interpolation_type": "linear", "timestep_type": "discrete", "final_sigmas_type": "zero"},
        **{"use_exponential_sigmas": False, "use_beta_sigmas": False, "sigma_min": None, "sigma_max": None},
    },
    "DPMSolverMultistepScheduler": {
        **{"solver_order": 2, "solver_type": "midpoint", "lower_order_final": True, "euler_at_final": False, "final_sigmas_type": "zero"},
        **{"use_exponential_sigmas": False, "use_beta_sigmas": False, "use_lu_lambdas": False, "use_flow_sigmas": False},
        **{"dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0, "use_dynamic_shifting": False},
    },
    "FlowMatchEulerDiscreteScheduler": {
        **{"use_dynamic_shifting": False, "invert_sigmas": False, "shift_terminal": None, "stochastic_sampling": False},
        **{"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False},
    },
    "UnCLIPScheduler": {},
}
# Their betas and predictions are written the same way, and their solvers are not ours: `sampler` is left to the user.
UNSOLVED = ("PNDMScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")


def read(source: Source) -> dict[str, Any]:
    """What the scheduler_config.json of a pipeline says, or of a folder that has one; nothing where there is none.

    Raises:
      UserError: as `describe`, with the way to the weights.
    """
    config = source.jsons.get("scheduler_config.json")
    if config is None:
        return {}
    try:
        return describe(config, "scheduler_config.json")
    except UserError as e:
        raise UserError(f"{source.folder}: {e}; weights alone are read where config.json and they lie in a folder by themselves") from None


def describe(config: Json, where: str) -> dict[str, Any]:
    """Fields of config.model.

    Raises:
      UserError: an unknown scheduler, or a setting that nothing here does.
    """
    name = config.get("_class_name") if isinstance(config, Mapping) else None
    if name not in (*FIXED, *UNSOLVED):
        raise UserError(f"{where}: scheduler {name!r}{suggest(str(name), (*FIXED, *UNSOLVED))}")
    for key, want in FIXED.get(name, {}).items():
        got = config.get(key, want)
        if got != want and not (want is None and got is False) and not (want is False and got is None) and _matters(config, key):
            raise UserError(f"{where}: {key} is {got!r}, and what is here has {want!r}")
    if name == "FlowMatchEulerDiscreteScheduler":
        return _flow(config, where)
    out = {"path": _path(config, where), "prediction": _one(config, "prediction_type", "epsilon", PREDICTIONS, where)}
    learned = VARIANCES.get(config.get("variance_type") or "", "")
    out |= {"variance": learned} if learned.startswith("learned") else {}
    solve = SOLVED.get(name)
    return out if solve is None else {**out, "sampler": solve(config, where)}


def _matters(config: Json, key: str) -> bool:
    """Ranges matter where something is held to them."""
    switch = {"clip_sample_range": "clip_sample", "dynamic_thresholding_ratio": "thresholding", "sample_max_value": "thresholding"}.get(key)
    return switch is None or config.get(switch, switch == "clip_sample")


def _one(config: Json, key: str, default: str, known: Mapping[str, str], where: str) -> str:
    value = config.get(key, default)
    if value not in known:
        raise UserError(f"{where}: {key} is {value!r}{suggest(str(value), known)}")
    return known[value]


def _path(config: Json, where: str) -> dict[str, Any]:
    if config.get("trained_betas") is not None:
        raise UserError(f"{where}: trained_betas is a table; expected a beta_schedule of {', '.join(BETAS)}")
    betas = _one(config, "beta_schedule", "squaredcos_cap_v2" if config["_class_name"] == "UnCLIPScheduler" else "linear", BETAS, where)
    out = {"name": "discrete", "betas": betas, "steps": config.get("num_train_timesteps", 1000)}
    if betas != "cosine":
        out |= {"beta_start": config.get("beta_start", 1e-4), "beta_end": config.get("beta_end", 0.02)}
    return out | ({"zero_terminal_snr": True} if config.get("rescale_betas_zero_snr") else {})


def _spaced(config: Json, where: str, default: str, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """`spacing`, and `times` with what it takes."""
    if config.get("use_karras_sigmas"):
        return {"spacing": "karras"}
    spacing = _one(config, "timestep_spacing", default, {name: name for name in SPACINGS}, where)
    offset = config.get("steps_offset", 0)
    out: dict[str, Any] = {"spacing": (names or {}).get(spacing, spacing)}
    return out | ({"times": {"offset": offset}} if spacing == "leading" and offset else {})


def _clipped(config: Json, default: bool) -> dict[str, Any]:
    clip = "dynamic" if config.get("thresholding") else "static" if config.get("clip_sample", default) else ""
    return {"clip": clip} if clip else {}


def _ddpm(config: Json, where: str) -> dict[str, Any]:
    variance = _one(config, "variance_type", "fixed_small", VARIANCES, where)
    return {"solver": "ddpm", "options": {"variance": variance}, **_spaced(config, where, "leading"), **_clipped(config, True)}


def _ddim(config: Json, where: str) -> dict[str, Any]:
    return {"solver": "ddim", **_spaced(config, where, "leading"), **_clipped(config, True)}


def _euler(config: Json, where: str) -> dict[str, Any]:
    """Euler's method on x / alpha over sigma / alpha is DDIM."""
    return {"solver": "ddim", **_spaced(config, where, "linspace")}


def _dpm(config: Json, where: str) -> dict[str, Any]:
    if config.get("lambda_min_clipped", float("-inf")) not in (float("-inf"), "-inf", None):
        raise UserError(f"{where}: lambda_min_clipped is {config['lambda_min_clipped']!r}, and what is here walks the whole path")
    opened = {"linspace": "linspace_open", "leading": "leading_open"}
    solver = _one(config, "algorithm_type", "dpmsolver++", ALGORITHMS, where)
    return {"solver": solver, **_spaced(config, where, "linspace", opened), **_clipped(config, False)}


def _unclip(config: Json, where: str) -> dict[str, Any]:
    clip = _clipped(config, True)
    limits = {"clip_range": float(config.get("clip_sample_range", 1.0))} if clip else {}
    variance = _one(config, "variance_type", "fixed_small", VARIANCES, where)
    return {"solver": "ddpm", "spacing": "unclip", "options": {"variance": variance}, **clip, **limits}


def _flow(config: Json, where: str) -> dict[str, Any]:
    """Their times are 0..1000, and shifted twice (spacing.times, `shift_ends_too`)."""
    shift = config.get("shift", 1.0)
    times: dict[str, Any] = {"times": {"shift": shift, "shift_ends_too": True}}
    sampler = {"solver": "euler", "spacing": "linspace", **times}
    return {
        "path": {"name": "flow"},
        "prediction": "velocity",
        "time_scale": float(config.get("num_train_timesteps", 1000)),
        "sampler": sampler,
    }


SOLVED = {"DDPMScheduler": _ddpm, "DDIMScheduler": _ddim, "EulerDiscreteScheduler": _euler, "DPMSolverMultistepScheduler": _dpm}
SOLVED |= {"UnCLIPScheduler": _unclip}
