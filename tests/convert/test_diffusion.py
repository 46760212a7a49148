"""`from_pretrained` and `mmjax convert` of diffusion's networks, against the libraries that publish them."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import mmjax
from mmjax.cli.main import main
from mmjax.convert import diffusion, models, schedulers, transfer, unet_shapes
from mmjax.convert.rules import export
from mmjax.convert.source import Source, open_source
from mmjax.core import sharding, tree
from mmjax.core.errors import UserError
from mmjax.diffusion import path as paths
from mmjax.diffusion import spacing
from mmjax.models import autoencoder_kl, unet, unet_classifier
from mmjax.tasks import diffusion as task
from tests.convert.diffusion_cases import (
    CONFIGS,
    FOLDERS,
    ORIGINAL,
    SCHEDULERS,
    STEM,
    assert_close,
    assert_same,
    folder,
    outputs,
    parameters,
    pipeline,
    weights,
)
from tests.convert.test_readers import archive, window

NEW = ORIGINAL["guided_new"]
NEWS = tuple(NEW.items())

# --- every layout, against its library -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CONFIGS)
def test_folders_of_diffusers(case, tmp_path):
    loaded = mmjax.from_pretrained(folder(case, tmp_path))
    assert_close(case, loaded)
    assert loaded.config["layout"] == "diffusers" and loaded.tokenizer is None


@pytest.mark.parametrize("case", ORIGINAL)
def test_state_dicts_of_the_authors(case, tmp_path):
    """Shapes tell all but heads and what a network never saw the difference of."""
    loaded = mmjax.from_pretrained(folder(case, tmp_path), variant=_fields(case))
    assert_close(case, loaded)


def _fields(case):
    more = {"groups": 32} if case in ("guided_legacy", "guided_new", "guided_upsampler") else None
    return ORIGINAL[case] if more is None else {**ORIGINAL[case], **more}


def test_a_noisy_classifier(tmp_path):
    fields = {"channels": (32, 64), "blocks": 1, "attention": (0, 1), "head_width": 16}
    loaded = mmjax.from_pretrained(folder("guided_classifier", tmp_path), variant=fields)
    assert_close("guided_classifier", loaded)
    assert loaded.config["model"]["size"] == 16 and set(loaded.predict) == {"classify"}


def test_dit_and_sit_are_told_apart_by_name(tmp_path, monkeypatch):
    path = folder("dit_original", tmp_path)
    loaded = mmjax.from_pretrained(path, variant={"heads": 4})
    assert_close("dit_original", loaded)
    assert loaded.config["model"]["size"] == 8 and "path" not in loaded.config["model"]
    assert loaded.config["model"]["network"]["freq_shift"] == 0
    sizes = {"patch": 2, "width": 32, "depth": 3, "heads": 4}
    monkeypatch.setattr(diffusion.transformers, "VARIANTS", {"DiT-T/2": sizes, "SiT-T/2": sizes, "SiT-T/4": {**sizes, "patch": 4}})
    monkeypatch.setattr(diffusion.dit, "VARIANTS", {"DiT-T/2": sizes})
    sit, dit = (mmjax.from_pretrained(path, variant=name).config["model"] for name in ("SiT-T/2", "DiT-T/2"))
    assert sit["network"] == dit["network"] and sit["network"]["heads"] == 4
    assert (sit["path"], sit["prediction"], sit["reversed"]) == ({"name": "flow"}, "velocity", True)
    assert (dit["path"]["name"], dit["prediction"], dit["variance"]) == ("discrete", "eps", "learned_range") and "reversed" not in dit
    with pytest.raises(UserError, match="variant 'SiT-T/4' has patch 4, and the tensors have 2"):
        mmjax.from_pretrained(path, variant="SiT-T/4")


def test_diffusers_dit_as_it_was_trained(tmp_path):
    """The frequencies of the published weights, in place of those that diffusers computes with."""
    path = folder("dit", tmp_path)
    theirs, own = mmjax.from_pretrained(path), mmjax.from_pretrained(path, variant={"freq_shift": 0, "eps": 1e-6})
    assert theirs.config["model"]["network"]["freq_shift"] == 1 and theirs.config["model"]["network"]["eps"] == 1e-5
    assert_same("dit", theirs)
    got, want = outputs("dit", own)["out"]
    assert np.abs(got - want).max() / np.abs(want).max() > 1e-2


@pytest.mark.parametrize("name, scale", [(None, 1.0), ("sd", 0.18215), ({"scale": 0.5, "shift": 0.1}, 0.5)])
def test_latent_diffusions_autoencoder(name, scale, tmp_path):
    loaded = mmjax.from_pretrained(folder("autoencoder_original", tmp_path), variant=name)
    assert loaded.config["model"]["latent"]["scale"] == scale
    if name is None:
        assert_close("autoencoder_original", loaded)


def test_the_scale_of_latents_is_in_the_config(tmp_path):
    given = {"scaling_factor": 1.5305, "shift_factor": 0.0609}
    latent = mmjax.from_pretrained(folder("autoencoder_no_quant", tmp_path, config=given)).config["model"]["latent"]
    assert (latent["scale"], latent["shift"]) == (1.5305, 0.0609)


# --- folders, files, parts -----------------------------------------------------------------------------------------------


def test_components_of_a_pipeline(tmp_path):
    path = pipeline(tmp_path / "p", "ddim", unet="sd1", vae="autoencoder_diffusers")
    net, first = mmjax.from_pretrained(path, component="unet"), mmjax.from_pretrained(path, component="vae")
    assert_same("sd1", net)
    assert_same("autoencoder_diffusers", first)
    model = net.config["model"]
    assert model["path"]["betas"] == "scaled_linear" and model["prediction"] == "eps" and model["sampler"]["solver"] == "ddim"
    assert model["context"]["width"] == 12
    assert mmjax.from_pretrained(path).config == net.config  # what denoises
    assert "path" not in mmjax.from_pretrained(path / "unet").config["model"]
    for component, message in (
        ("tokenizer", "the pipeline has no component 'tokenizer'; component is one of scheduler, unet, vae"),
        ("safety_checker", "the pipeline has no component 'safety_checker'"),
        ("scheduler", "no weights in it"),
    ):
        with pytest.raises(UserError, match=message):
            mmjax.from_pretrained(path, component=component)
    shutil.rmtree(path / "vae")
    with pytest.raises(UserError, match="folder 'vae', which model_index.json names, is missing"):
        mmjax.from_pretrained(path, component="vae")


def test_a_pipeline_in_one_folder(tmp_path):
    """As the first DDPM checkpoints lie: the network's files beside the index."""
    path = pipeline(tmp_path / "p", unet="ddpm")
    for file in [*(path / "unet").iterdir(), *(path / "scheduler").iterdir()]:
        shutil.move(file, path)
    (path / "unet").rmdir()
    loaded = mmjax.from_pretrained(path)
    assert_same("ddpm", loaded)
    assert loaded.config["model"]["sampler"]["solver"] == "ddpm"


def test_one_file_of_all_weights(tmp_path):
    """Stable Diffusion's: the autoencoder and the U-Net under prefixes, and much that is neither."""
    both = {f"first_stage_model.{k}": x for k, x in weights("autoencoder_original").items()}
    both |= {f"model.diffusion_model.{k}": x for k, x in weights("guided_new").items()} | {"betas": np.zeros(3, np.float32)}
    path = tmp_path / "all.safetensors"
    diffusion_write(path, both)
    assert_same("autoencoder_original", mmjax.from_pretrained(path, component="vae"))
    assert_same("guided_new", mmjax.from_pretrained(path, component="unet", variant=NEW), NEWS)
    with pytest.raises(UserError, match="holds all weights of a pipeline; give component='unet'|weights of a whole pipeline in one file"):
        mmjax.from_pretrained(path)
    with pytest.raises(UserError, match="component 'tokenizer'"):
        mmjax.from_pretrained(path, component="tokenizer")


def diffusion_write(path, named):
    from mmjax.convert import safetensors

    safetensors.write(path, named)


def test_in_parts_in_halves_and_as_a_pickle(tmp_path):
    parts = folder("ddpm", tmp_path / "parts", limit=20_000)
    assert len(list(parts.glob(f"{STEM}-*.safetensors"))) > 2
    assert_same("ddpm", mmjax.from_pretrained(parts))
    half = folder("ddpm", tmp_path / "half", change=lambda name, x: x.astype(np.float16))
    want = {k: x.astype(np.float16).astype(np.float32) for k, x in parameters("ddpm").items()}
    for name, x in tree.flatten(mmjax.from_pretrained(half).params).items():
        np.testing.assert_array_equal(x, want[name], err_msg=name)
    path = folder("ddpm", tmp_path / "bin")
    (path / f"{STEM}.safetensors").unlink()
    named = weights("ddpm")
    strides = lambda x: tuple(s // 4 for s in x.strides)
    state = {k: window("FloatStorage", str(i), x.size, 0, x.shape, strides(x)) for i, (k, x) in enumerate(named.items())}
    archive(path / f"{STEM}.bin", state, {str(i): np.ascontiguousarray(x) for i, x in enumerate(named.values())})
    assert_same("ddpm", mmjax.from_pretrained(path))


def test_half_precision_and_a_mesh(tmp_path):
    path = folder("sd1", tmp_path)
    small = mmjax.from_pretrained(path, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(small.params)} == {jnp.dtype(jnp.bfloat16)}
    assert_close("sd1", small, 0.05)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
    split = mmjax.from_pretrained(path, mesh=mesh)
    assert_same("sd1", split)
    kernel = split.params["network"]["mid_res0"]["conv1"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size


def test_old_names_of_attention(tmp_path):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    path = folder("ddpm", tmp_path)
    named = {}
    for name, x in weights("ddpm").items():
        for new, was in old.items():
            name = name.replace(f".{new}.", f".{was}.")
        named[name] = x
    diffusion_write(path / f"{STEM}.safetensors", named)
    assert_same("ddpm", mmjax.from_pretrained(path))


# --- schedulers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in SCHEDULERS if n != "pndm"])
def test_schedulers_walk_the_same_times(name):
    said = schedulers.describe(SCHEDULERS[name], "a file")
    sampler = said["sampler"]
    walked = spacing.times(paths.make(said["path"]), 10, sampler["spacing"], **sampler.get("times", {}))
    np.testing.assert_allclose(walked[:-1], FOLDERS[f"{name}/times"], rtol=2e-6)
    learned = said.get("variance", "").startswith("learned")
    network = {"type": "unet", "channels": (8, 8), "blocks": 1, "groups": 4, "out_channels": 6 if learned else 3}
    config = {"size": 8, "channels": 3, "network": network, **said}
    assert task.parse_sampler(task.parse(ConfigDict(config), jnp.float32)).solver == sampler["solver"]  # config.model of a run


def test_what_schedulers_say():
    say = lambda name, **more: schedulers.describe(SCHEDULERS[name] | more, "a file")
    assert say("ddpm")["sampler"] == {"solver": "ddpm", "options": {"variance": "fixed_small"}, "spacing": "leading", "clip": "static"}
    assert say("ddpm_learned")["variance"] == "learned_range" and say("ddpm_learned")["path"] == {
        "name": "discrete",
        "betas": "cosine",
        "steps": 400,
    }
    assert say("ddim_zero_snr")["prediction"] == "v" and say("ddim_zero_snr")["path"]["zero_terminal_snr"]
    assert say("dpm", use_karras_sigmas=True)["sampler"] == {"solver": "dpmpp_2m", "spacing": "karras"}
    assert say("ddim", thresholding=True)["sampler"]["clip"] == "dynamic"
    assert "sampler" not in say("pndm") and say("pndm")["path"]["beta_end"] == 0.012
    assert say("flow")["time_scale"] == 1000.0


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("ddpm", {"_class_name": "DDPMSheduler"}, "scheduler 'DDPMSheduler', did you mean 'DDPMScheduler'|scheduler 'DDPMSheduler'"),
        ("ddpm", {"beta_schedule": "laplace"}, "beta_schedule is 'laplace'"),
        ("ddpm", {"prediction_type": "flow"}, "prediction_type is 'flow'"),
        ("ddpm", {"clip_sample_range": 2.0}, "clip_sample_range is 2.0, and what is here has 1.0"),
        ("ddpm", {"trained_betas": [0.1]}, "trained_betas is a table"),
        ("dpm", {"solver_order": 3}, "solver_order is 3, and what is here has 2"),
        ("dpm", {"algorithm_type": "dpmsolver"}, "algorithm_type is 'dpmsolver'"),
        ("dpm", {"lambda_min_clipped": -5.1}, "lambda_min_clipped is -5.1"),
        ("flow", {"use_dynamic_shifting": True}, "use_dynamic_shifting is True"),
        ("euler", {"timestep_spacing": "log"}, "timestep_spacing is 'log'"),
    ],
)
def test_unknown_settings_of_schedulers(name, change, message):
    with pytest.raises(UserError, match=message) as e:
        schedulers.describe(SCHEDULERS[name] | change, "a file: scheduler_config.json")
    assert "\n" not in str(e.value)


# --- bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case, config, message",
    [
        ("ddpm", {"_class_name": "AutoencoderKL"}, "is of class 'AutoencoderKL', and the tensors beside it are of UNet2DModel or"),
        ("ddpm", {"down_block_types": ["DownBlock2D", "AttnDwnBlock2D"]}, "down_block_types has 'AttnDwnBlock2D'.*AttnDownBlock2D"),
        ("ddpm", {"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "up_block_types UpBlock2D, UpBlock2D do not mirror"),
        ("ddpm", {"act_fn": "relu"}, "act_fn is 'relu', and the networks here have 'silu'"),
        ("ddpm", {"block_out_channels": [16, 16]}, "the tensors do not make the model the config describes.*misshapen"),
        ("ddpm", {"layers_per_block": 2}, "missing"),
        ("ddpm", {"block_out_channels": 3}, "not as diffusers writes it"),
        ("ddpm", {"attention_head_dim": 5}, "does not split into heads of 5"),
        (
            "ddpm",
            {"down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"], "up_block_types": None},
            "not as diffusers|do not mirror",
        ),
        ("sd1", {"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type is 'text_proj'"),
        ("sd1", {"addition_embed_type": "image"}, "addition_embed_type is 'image'"),
        ("sd1", {"cross_attention_dim": [12, 24]}, "cross_attention_dim is"),
        ("dit", {"norm_type": "layer_norm"}, "expected norm_type 'ada_norm_zero'"),
        ("dit", {"num_layers": 2}, "left over: transformer_blocks.2"),
        ("autoencoder_diffusers", {"_class_name": "VQModel"}, "is of class 'VQModel', and the tensors beside it are of AutoencoderKL"),
        ("autoencoder_diffusers", {"mid_block_add_attention": False}, "mid_block_add_attention is False"),
    ],
)
def test_configs_that_do_not_go_with_the_tensors(case, config, message, tmp_path):
    with pytest.raises(UserError, match=message) as e:
        mmjax.from_pretrained(folder(case, tmp_path, config=config))
    assert "\n" not in str(e.value)


def test_what_a_state_dict_leaves_open(tmp_path):
    path = folder("guided_legacy", tmp_path / "a")
    for given, message in (
        ({}, "shapes do not tell how many heads a U-Net of widths .32, 64. has.*variant="),
        ({"variant": "adm-256"}, "variant 'adm-256' has channels"),
        ({"variant": "adm-25"}, "variant is 'adm-25'.*adm-256"),
        ({"variant": {"haeds": 4}}, "UNet has no field 'haeds'.*heads"),
        ({"variant": {"heads": 4, "order": "old"}}, "order is 'old'"),
        ({"act": "gelu"}, "act is 'gelu', of towers"),
        ({"component": "decoder"}, "component 'decoder' without model_index.json|but no model_index.json"),
    ):
        with pytest.raises(UserError, match=message):
            mmjax.from_pretrained(path, **({"variant": {"heads": 4}} | given if "variant" not in given and given else given))
    lone = folder("ddpm", tmp_path / "b")
    (lone / "config.json").unlink()
    with pytest.raises(UserError, match="config.json is missing, which says what the shapes"):
        mmjax.from_pretrained(lone)
    with pytest.raises(UserError, match="leave nothing open"):
        mmjax.from_pretrained(folder("autoencoder_diffusers", tmp_path / "c"), variant="sd")
    codebook = {**weights("autoencoder_original"), "quantize.embedding.weight": np.zeros((4, 3), np.float32)}
    diffusion_write(tmp_path / "vq.safetensors", codebook)
    with pytest.raises(UserError, match="quantize.embedding.weight: an autoencoder with a codebook"):
        mmjax.from_pretrained(tmp_path / "vq.safetensors")


def test_inputs_of_the_wrong_kind(tmp_path):
    loaded = mmjax.from_pretrained(folder("sd1", tmp_path))
    run = lambda x, t, **given: loaded.predict["network"](loaded.params, x, t, **given)
    x, words = np.zeros((2, 16, 16, 4), np.float32), np.zeros((2, 3, 12), np.float32)
    assert run(x, 5, context=words).shape == (2, 16, 16, 4)  # one time for all
    for args, given, message in (
        ((x[0], 5), {"context": words}, r"x: shape \(16, 16, 4\), expected \(B, H, W, C\)"),
        ((x.astype(int), 5), {"context": words}, "x: type int.*expected floats"),
        ((x, np.zeros(3)), {"context": words}, r"t: shape \(3,\), expected one time for each of 2"),
        ((x, 5), {}, "kind 'cross' takes a context"),
        ((x, 5), {"context": words, "labels": np.zeros(2, int)}, "without classes"),
        ((np.zeros((2, 15, 16, 4), np.float32), 5), {"context": words}, "cannot be halved"),
    ):
        with pytest.raises(UserError, match=message):
            run(*args, **given)
    with pytest.raises(TypeError, match="got 'contxt'"):
        run(x, 5, contxt=words)


# --- out, in, and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CONFIGS)
def test_exported_folders_are_diffusers_own(case, tmp_path):
    """The same tensors under the same names, and a config whose every setting is the one that diffusers wrote."""
    path = folder(case, tmp_path / "a")
    done = transfer.export_to(path, "hf", tmp_path / "b")
    assert set(done.files) == {"config.json", f"{STEM}.safetensors"} and done.notes == []
    want, got = (open_source(p).tensors for p in (path, tmp_path / "b"))
    assert got.keys() == want.keys()
    for name, x in want.items():
        np.testing.assert_array_equal(got[name].read().reshape(-1), x.read().reshape(-1), err_msg=name)
    written = json.loads((tmp_path / "b" / "config.json").read_text())
    differ = {k: (v, CONFIGS[case][k]) for k, v in written.items() if k in CONFIGS[case] and v != CONFIGS[case][k]}
    assert not differ.keys() - {"attn_norm_num_groups"}, differ  # None, and written out
    assert mmjax.from_pretrained(tmp_path / "b").config == mmjax.from_pretrained(path).config


@pytest.mark.parametrize("case", [*CONFIGS, *ORIGINAL, "dit_original", "autoencoder_original", "guided_classifier"])
def test_every_tensor_comes_back(case, tmp_path):
    variant = ORIGINAL.get(case)
    if case == "guided_classifier":
        variant = {"channels": (32, 64), "blocks": 1, "attention": (0, 1), "head_width": 16}
    done = transfer.check(folder(case, tmp_path), variant=variant)
    assert not done.differ and not done.dropped and len(done.equal) == len(weights(case))


def test_out_of_one_layout_into_another(tmp_path):
    """guided-diffusion's network as UNet2DModel."""
    path = folder("guided_new", tmp_path / "a")
    transfer.export_to(path, "hf", tmp_path / "b", variant=NEW)
    assert_close("guided_new", mmjax.from_pretrained(tmp_path / "b"))
    done = transfer.export_to(folder("dit_original", tmp_path / "c"), "hf", tmp_path / "d", variant={"heads": 4})
    assert len(done.notes) == 1 and "freq_shift 1 in place of 0" in done.notes[0]
    again = mmjax.from_pretrained(tmp_path / "d", variant={"freq_shift": 0, "eps": 1e-6})
    assert_same("dit_original", again, (("heads", 4),))
    transfer.export_to(folder("autoencoder_original", tmp_path / "e"), "hf", tmp_path / "f", variant="sd")
    assert_same("autoencoder_original", mmjax.from_pretrained(tmp_path / "f"))
    assert json.loads((tmp_path / "f" / "config.json").read_text())["scaling_factor"] == 0.18215


def test_networks_that_diffusers_lacks(tmp_path):
    for case, message in (
        ("ddpmpp", "no class for networks of type 'song_unet'"),
        ("guided_upsampler", "take a coarser image as channels of x"),
    ):
        with pytest.raises(UserError, match=message):
            transfer.export_to(folder(case, tmp_path / case), "hf", tmp_path / "o", variant=_fields(case))
    with pytest.raises(UserError, match="--to is 'openclip', which has no unet of widths 16, 32; known for it: hf"):
        transfer.export_to(folder("ddpm", tmp_path / "a"), "openclip", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_the_command(tmp_path, capsys):
    path = pipeline(tmp_path / "p", unet="ddpm", vae="autoencoder_diffusers")
    ours = tmp_path / "ours"
    assert main(["convert", "import", str(path), "--component", "unet", "--out", str(ours)]) == 0
    assert "parameters of unet of widths 16, 32 written to" in capsys.readouterr().out
    loaded = mmjax.from_pretrained(ours)
    assert_same("ddpm", loaded)
    assert loaded.config == {**mmjax.from_pretrained(path).config, "layout": "diffusers"}
    assert main(["convert", "export", str(ours), "--to", "hf", "--out", str(tmp_path / "out")]) == 0
    assert_same("ddpm", mmjax.from_pretrained(tmp_path / "out"))
    assert main(["convert", "check", str(path), "--component", "vae"]) == 0
    assert "KL autoencoder of 4 channels at 1 / 4, layout diffusers" in capsys.readouterr().out
    guided = folder("guided_legacy", tmp_path / "g")
    assert main(["convert", "check", str(guided), "--variant", '{"heads": 4}']) == 0
    assert main(["convert", "check", str(guided), "--variant", '{"heads": 4']) == 2
    assert "--variant: no JSON" in capsys.readouterr().err


def test_training_has_the_same_paths(tmp_path):
    """What is imported is what `init_from` of task "diffusion" looks for: network and autoencoder."""
    path = pipeline(tmp_path / "p", "ddim", unet="sd1", vae="autoencoder_diffusers")
    net, first = (transfer.load_leaves(path, component=name) for name in ("unet", "vae"))
    latent = first[0].config["model"]["latent"]
    config = {**net[0].config["model"], "size": 64, "channels": 3, "latent": latent}
    system = task.parse(ConfigDict(config), jnp.float32)
    params = jax.eval_shape(lambda key: task.split_axes(task._init(system, key))[0], jax.random.key(0))
    want = {name: x.shape for name, x in tree.flatten(params).items()}
    assert {name: x.shape for leaves in (net[1], first[1]) for name, x in leaves.items()} == want


# --- published sizes -----------------------------------------------------------------------------------------------------


def _as_file(root, fields, make):
    """A state dict of a published network: names and shapes without numbers."""
    shapes = models.build(fields).shapes
    return export(make(fields, ()), {k: np.broadcast_to(np.float32(0), x.shape) for k, x in shapes.items()})


@pytest.mark.parametrize(
    "name", ["iddpm-cifar10", "adm-64", "adm-512", "adm-u-256", "ldm4-imagenet256", "sd1", pytest.param("sdxl", marks=pytest.mark.slow)]
)
def test_published_unets_from_shapes(name):
    """The published names, found by the shapes of their tensors: the same module again."""
    known = unet.VARIANTS[name]
    width = {"context": {"length": 77, "width": unet.CONTEXTS[name]}} if name in unet.CONTEXTS else {}
    channels = known.get("in_channels", 3)
    fields = {"network": {"type": "unet", **known}, "channels": channels, **width}
    order = diffusion.ADM.forms["adm_new"] if name == "adm-64" else diffusion.ADM.rules
    found, said = unet_shapes.adm(Source(Path("x"), Path("x"), _as_file("network", fields, order), {}))
    assert found.pop("context", None) == unet.CONTEXTS.get(name)
    assert unet.build(found) == unet.build({**known, "dropout": known.get("dropout", 0.0)})
    assert said == ("new" if name == "adm-64" else "legacy")
    assert unet_shapes.published_size(found, unet.CONTEXTS.get(name)) == unet.SIZES[name]


@pytest.mark.parametrize("name", unet_classifier.VARIANTS)
def test_published_classifiers_from_shapes(name):
    fields = {"classifier": unet_classifier.VARIANTS[name], "size": unet_classifier.SIZES[name], "channels": 3}
    found, size = unet_shapes.classifier(Source(Path("x"), Path("x"), _as_file("classifier", fields, diffusion.ADM_CLASSIFIER.rules), {}))
    assert size == unet_classifier.SIZES[name] and unet_classifier.build(found) == unet_classifier.build(fields["classifier"])


@pytest.mark.parametrize("name", ["kl-f4", "kl-f8-16"])
def test_published_autoencoders_from_shapes(name):
    fields = {"latent": {"autoencoder": autoencoder_kl.VARIANTS[name]}}
    named = _as_file("first_stage", fields, diffusion.LDM_AUTOENCODER.rules)
    config = diffusion.LDM_AUTOENCODER.describe(Source(Path("x"), Path("x"), named, {}))
    assert autoencoder_kl.build(config["model"]["latent"]["autoencoder"]) == autoencoder_kl.build(name)
