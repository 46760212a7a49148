"""What config.model of the diffusion task says that would do nothing, or fail later, is refused when it is read."""

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from mmjax.core.errors import UserError
from mmjax.diffusion import path as paths
from mmjax.diffusion import samplers
from mmjax.diffusion.spacing import times
from mmjax.tasks import diffusion, diffusion_sampling

DIT = {"type": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2}
UNET = {"type": "unet", "channels": (8,), "groups": 4, "in_channels": 1, "out_channels": 1}
CROSS = {**UNET, "kind": "cross"}
LABELS = {"labels": True, "network": {**DIT, "classes": 3, "label_dropout": 0.1}}
WORDS = {"text": {"vocab": 20, "length": 5, "width": 12, "depth": 1, "heads": 2, "mlp": 24}}
EDM2 = {"type": "edm2", "width": 32, "multiples": (1, 2), "attention": (0, 0), "in_channels": 1, "out_channels": 2}
BOTH = {"text": WORDS["text"], "embedding": {"width": 8}, "network": {**UNET, "kind": "added"}}


def parsed(**model):
    c = ConfigDict({"size": 8, "channels": 1, "network": DIT, "path": {"name": "discrete", "steps": 50}, **model})
    return diffusion.parse(c, jnp.float32)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"loss": "bound", "weighting": {"name": "min_snr"}}, "weighting is of a squared error, and loss 'bound' has none"),
        ({"loss": "bound", "network": EDM2, "uncertainty": True}, "uncertainty divides a squared error, loss 'simple'; loss is 'bound'"),
        ({"loss": "hybrid", "variance": "learned_range"}, "puts out 1 channels, expected 2, as variance 'learned_range' needs"),
        ({"channels": 3, "network": {**UNET, "in_channels": 3}}, "puts out 1 channels, expected 3, or twice as many"),
        ({**LABELS, **WORDS}, "has both labels and text"),
        ({"labels": True, "network": {**UNET, "classes": 3}, "label_context": {"classes": 3, "width": 8}}, "both labels and label_context"),
        ({"label_context": {"classes": 3, "width": 8, "dropou": 0.1}}, "unknown key 'dropou'; did you mean 'dropout'"),
        ({**WORDS, "network": {**CROSS, "vector": 16}}, "vector is 16, the width of config.model.text is 12: make them equal"),
        (
            {"context": {"length": 3, "width": 12}, "network": {**CROSS, "vector": 12}},
            "vector is 12, a text's own feature: set config.model.t",
        ),
        ({**WORDS, "network": CROSS, "weights": {"txt": "CLIP"}}, "weights names 'txt'; did you mean 'text'"),
        ({"weights": {"text": "CLIP"}}, "weights.text is 'CLIP', and there is no config.model.text to take it"),
        ({"context": {"length": 3, "width": 8, "dropout": 0.1}}, "unknown key 'dropout'; known: length, masked, width"),
    ],
)
def test_model(model, message):
    with pytest.raises(UserError, match=message):
        parsed(**model)


@pytest.mark.parametrize(
    ("model", "sampler", "message"),
    [
        (LABELS, {"guidance": 2.0, "interval": (3.0, 1.0)}, r"guidance interval is \(3.0, 1.0\), expected 0 <= low < high"),
        (LABELS, {"guidance": 2.0, "rescale": 3.0}, "guidance rescale is 3.0, expected a share"),
        (LABELS, {"clip": "static", "clip_range": -1.0}, "clip_range is -1.0, expected a positive number"),
        (LABELS, {"solver": "ddpm", "options": {"variance": "fixd_small"}}, "variance is 'fixd_small'; did you mean 'fixed_small'"),
        (
            {"network": {**DIT, "learn_sigma": True}, "variance": "learned_range"},
            {"solver": "ddpm", "options": {"variance": "learned_range"}, "path": {"name": "vp"}},
            "of two steps or more on the path trained on",
        ),
        (BOTH, {"caption_guidance": 2.0, "guided_channels": 1}, "caption_guidance does not go with guided_channels"),
    ],
)
def test_sampler(model, sampler, message):
    system = parsed(**model)
    with pytest.raises(UserError, match=message):
        diffusion_sampling.parse({"steps": 5, **sampler}, system)


@pytest.mark.parametrize(
    ("solver", "options", "begins"),
    [
        ("euler_maruyama", {}, False),
        ("euler_maruyama", {"diffusion": "sigma"}, True),
        ("edm", {}, False),
        ("predictor_corrector", {"predictor": "euler_maruyama"}, False),
        ("predictor_corrector", {}, True),
        ("heun", {}, True),
    ],
)
def test_a_solver_that_needs_a_signal(solver, options, begins):
    path, run = paths.flow(), lambda walked: samplers.check_start(solver, options, paths.flow(), walked)
    run(times(path, 3)[1:])
    if begins:
        return run(times(path, 3))
    with pytest.raises(UserError, match=f"solver '{solver}': no signal at time 1 of the path 'flow'; begin at a cleaner time"):
        run(times(path, 3))


def test_a_walk_that_stands_still():
    with pytest.raises(UserError, match="times must fall"):
        diffusion_sampling.parse({"steps": 20, "times": {"shift": 3.0}}, parsed())
