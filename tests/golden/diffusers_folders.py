"""Writes diffusers_folders.npz: the configs that diffusers writes beside weights, and the times that its schedulers walk.

    pip install -e '.[parity]' && pip install --no-deps diffusers==0.42.1 importlib_metadata
    python tests/golden/diffusers_folders.py

The networks are those of unets.py, dit.py and autoencoder_kl.py, whose weights and outputs lie in those files. As JSON: `configs`,
network -> config.json; `pipeline`, file -> content of a saved DDPMPipeline; `schedulers`, case -> scheduler_config.json. As
`CASE/times`: timesteps of STEPS steps (sigmas of a flow's), without the end.

    python tests/golden/diffusers_folders.py FOLDER

Loads the folders NAME that `mmjax convert export --to hf` made there of the same networks, and says what differs.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import reference
import torch

STEPS = 10
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS = {
    "ddpm": ("DDPMScheduler", {}),
    "ddpm_learned": ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range", "num_train_timesteps": 400}),
    "ddim": ("DDIMScheduler", {**STABLE, "set_alpha_to_one": False, "clip_sample": False, "steps_offset": 1}),
    "ddim_zero_snr": (
        "DDIMScheduler",
        {**STABLE, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False},
    ),
    "euler": ("EulerDiscreteScheduler", {**STABLE, "timestep_spacing": "leading", "steps_offset": 1}),
    "dpm": ("DPMSolverMultistepScheduler", {**STABLE}),
    "dpm_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "timestep_spacing": "leading", "steps_offset": 1}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "pndm": ("PNDMScheduler", {**STABLE, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}),
}


def plain(text: str) -> dict:
    return {k: v for k, v in json.loads(text).items() if k != "_name_or_path"}


def networks() -> dict[str, torch.nn.Module]:
    import autoencoder_kl
    import dit
    import unets
    from diffusers import UNet2DConditionModel, UNet2DModel

    out = {name: UNet2DModel(**unets.UNETS, **fields) for name, fields in unets.DIFFUSERS.items()}
    for name, fields in unets.CONDITIONED.items():
        out[name] = UNet2DConditionModel(**unets.UNETS, cross_attention_dim=unets.CONTEXT, **fields)
    out["dit"] = dit.diffusers()
    for name, sizes in autoencoder_kl.SIZES.items():
        out[f"autoencoder_{name}"] = autoencoder_kl.diffusers(**sizes, quant=name == "diffusers")
    return out


def main() -> None:
    import diffusers

    models = networks()
    out = {}
    for name, (kind, fields) in SCHEDULERS.items():
        scheduler = getattr(diffusers, kind)(**fields)
        scheduler.set_timesteps(STEPS)
        times = scheduler.sigmas[:-1] if name == "flow" else scheduler.timesteps
        out[f"{name}/times"] = np.asarray(times, np.float64)
    with tempfile.TemporaryDirectory() as folder:
        diffusers.DDPMPipeline(models["ddpm"], diffusers.DDPMScheduler()).save_pretrained(folder)
        files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
        pipeline = {str(p.relative_to(folder)): plain(p.read_text()) if p.suffix == ".json" else None for p in files}
    made = lambda kind, fields: plain(getattr(diffusers, kind)(**fields).to_json_string())
    told = {
        "configs": {name: plain(model.to_json_string()) for name, model in models.items()},
        "schedulers": {name: made(kind, fields) for name, (kind, fields) in SCHEDULERS.items()},
        "pipeline": pipeline,
    }
    out |= {name: np.array(json.dumps(value)) for name, value in told.items()}
    reference.save(__file__, out, {}, ("diffusers",))


# What is loaded, by name of the folder: class, and the reference's own case.
EXPORTED = {"ddpm": "UNet2DModel", "adm": "UNet2DModel", "sd1": "UNet2DConditionModel", "sdxl": "UNet2DConditionModel"}
EXPORTED |= {"karlo": "UNet2DConditionModel", "dit": "DiTTransformer2DModel"}
EXPORTED |= {"autoencoder_diffusers": "AutoencoderKL", "autoencoder_no_quant": "AutoencoderKL"}


def check(folder: Path) -> None:
    """FOLDER/NAME, exported from here, loads in diffusers with the tensors that the same network has there."""
    import diffusers

    for name, model in networks().items():
        loaded, report = getattr(diffusers, EXPORTED[name]).from_pretrained(folder / name, output_loading_info=True)
        assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), (name, report)
        mine, theirs = dict(loaded.config), dict(model.config)
        differ = {k: (theirs[k], mine[k]) for k in theirs if not k.startswith("_") and _listed(theirs[k]) != _listed(mine[k])}
        print(name, "loads; settings written otherwise:", differ)


def _listed(x: object) -> object:
    return list(x) if isinstance(x, tuple) else x


if __name__ == "__main__":
    torch.set_num_threads(1)
    check(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
