"""Writes diffusion_schedulers.npz: the states that diffusers' schedulers walk through, given a network and noise that tests make again.

    pip install -e '.[parity]' && pip install --no-deps diffusers==0.42.1
    python tests/golden/diffusion_schedulers.py

Every case of CASES as `CASE/times`, the scheduler's own timesteps (or sigmas), and `CASE/states` [N + 1, B, C, H, W], of a float64 run.
The network is `network` below, a function of one number at a time; the start is normal("CASE/start"), the noise of step i
normal("CASE/noise/i"), of tests/golden/weights.py. Products of alphas, which the schedulers keep in float32, are made again in float64:
1 - alpha_bar has lost four digits at the first times.
"""

import numpy as np
import reference
import torch
from weights import normal

SHAPE = (2, 3, 2, 2)
LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
# name -> scheduler, its arguments, number of steps, arguments of step()
CASES = {
    "ddpm_small": ("DDPMScheduler", {**LINEAR, "variance_type": "fixed_small", "clip_sample": False}, 10, {}),
    "ddpm_large": ("DDPMScheduler", {**LINEAR, "variance_type": "fixed_large", "clip_sample": True}, 10, {}),
    "ddpm_learned": (
        "DDPMScheduler",
        {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range", "clip_sample": True},
        10,
        {},
    ),
    "ddpm_trailing": (
        "DDPMScheduler",
        {**LINEAR, "timestep_spacing": "trailing", "clip_sample": False, "prediction_type": "v_prediction"},
        7,
        {},
    ),
    "ddim": ("DDIMScheduler", {**LINEAR, "clip_sample": False}, 10, {}),
    "ddim_eta": ("DDIMScheduler", {**LINEAR, "clip_sample": False}, 10, {"eta": 0.5}),
    "ddim_clip": ("DDIMScheduler", {**LINEAR, "clip_sample": True}, 10, {}),
    "ddim_clip_rederived": ("DDIMScheduler", {**LINEAR, "clip_sample": True}, 10, {"use_clipped_model_output": True}),
    "ddim_zero_snr": (
        "DDIMScheduler",
        {**STABLE, "clip_sample": False, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        10,
        {},
    ),
    "ddim_trailing": ("DDIMScheduler", {**LINEAR, "clip_sample": False, "timestep_spacing": "trailing"}, 7, {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {**LINEAR, "algorithm_type": "dpmsolver++"}, 10, {}),
    "dpmpp_2m_long": ("DPMSolverMultistepScheduler", {**STABLE, "prediction_type": "v_prediction"}, 20, {}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {**LINEAR, "algorithm_type": "sde-dpmsolver++"}, 10, {}),
    "euler_discrete": ("EulerDiscreteScheduler", {**STABLE, "timestep_spacing": "linspace"}, 10, {}),
    "edm_euler": ("EDMEulerScheduler", {}, 10, {}),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 8, {}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, 8, {}),
    "unclip": ("UnCLIPScheduler", {"variance_type": "learned_range", "prediction_type": "sample", "clip_sample_range": 2.0}, 12, {}),
    # Karlo's: of the prior, and of the decoder.
    "unclip_prior": ("UnCLIPScheduler", {"prediction_type": "sample", "clip_sample_range": 10.0}, 25, {}),
    "unclip_decoder": ("UnCLIPScheduler", {"variance_type": "learned_range"}, 25, {}),
}


def network(x: torch.Tensor, u: float, double: bool = False) -> torch.Tensor:
    """The prediction at x and a time u of about 0..1; where a variance is learned its channels follow."""
    out = 0.8 * torch.tanh(x + u) - 0.3 * u * x
    return torch.cat([out, torch.sin(2 * x)], 1) if double else out


def walk(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The scheduler's times and the states."""
    import diffusers

    kind, arguments, steps, options = CASES[name]
    scheduler = getattr(diffusers, kind)(**arguments)
    if hasattr(scheduler, "alphas_cumprod"):
        scheduler.betas = scheduler.betas.double()
        scheduler.alphas = 1 - scheduler.betas
        scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(normal(f"{name}/start", SHAPE)).double() * float(getattr(scheduler, "init_noise_sigma", 1.0))
    drawn = lambda i: torch.from_numpy(normal(f"{name}/noise/{i}", SHAPE)).double()
    sigmas = kind.startswith(("Euler", "EDM", "Flow"))
    times = scheduler.sigmas if sigmas else scheduler.timesteps
    states = [x]
    module = __import__(scheduler.__module__, fromlist=["randn_tensor"])
    for i, t in enumerate(scheduler.timesteps):
        module.randn_tensor = lambda *args, i=i, **kwargs: drawn(i)
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        # EDM's network is told log(sigma) / 4, the others a time of 0..1000
        u = float(t) if kind.startswith("EDM") else float(t) / 1000
        extra = dict(options)
        if kind == "UnCLIPScheduler":
            extra["prev_timestep"] = int(scheduler.timesteps[i + 1]) if i + 1 < steps else None
        said = network(seen, u, arguments.get("variance_type") == "learned_range")
        x = scheduler.step(said, t, x, return_dict=False, **extra)[0].double()
        if kind != "FlowMatchHeunDiscreteScheduler" or i % 2 == 1 or i + 1 == len(scheduler.timesteps):
            states.append(x)
    return times.double().numpy(), torch.stack(states).numpy()


def main() -> None:
    torch.set_num_threads(1)
    reference.without_torchvision()
    out = {}
    for name in CASES:
        times, states = walk(name)
        assert np.isfinite(states).all(), name
        out |= {f"{name}/times": times, f"{name}/states": states.astype(np.float32)}
    reference.save(__file__, out, {}, ("diffusers",))


if __name__ == "__main__":
    main()
