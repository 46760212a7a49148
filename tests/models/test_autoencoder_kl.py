"""AutoencoderKL against diffusers' and its authors' (tests/golden/autoencoder_kl.py), and published sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.convert import autoencoder_kl as convert
from mmjax.core import sharding, tree
from mmjax.core.errors import UserError
from mmjax.layers import split_axes
from mmjax.models import autoencoder_kl
from mmjax.models.autoencoder_kl import AutoencoderKL, draw
from tests.convert.by_rules import assert_comes_back, imported, shapes_of
from tests.golden.weights import normal, tensors
from tests.models.torch_layouts import Golden, deviation

CLOSE = 1e-5
GOLDEN = Golden("autoencoder_kl")
PIXELS = (2, 16, 24, 3)
FIELDS = {
    "diffusers": {"latent": 4, "mults": (1, 2, 2), "width": 8, "groups": 4},
    "no_quant": {"latent": 16, "mults": (1, 2), "width": 8, "groups": 8, "quant": False},
    "original": {"latent": 3, "mults": (1, 2, 2), "width": 32, "blocks": 1},
}
RULES = {"diffusers": convert.diffusers_rules, "no_quant": convert.diffusers_rules, "original": convert.ldm_rules}


@functools.cache
def loaded(name):
    model, named = AutoencoderKL(**FIELDS[name]), tensors(GOLDEN.shapes[name])
    return model, imported(RULES[name](FIELDS[name], named), named, shapes_of(model.init, PIXELS))


@functools.cache
def run(model, method):
    return jax.jit(lambda params, x: model.apply({"params": params}, x, method=method))


@pytest.mark.parametrize("name", FIELDS)
def test_encodes_and_decodes_as_the_reference(name):
    model, params = loaded(name)
    mean, logvar = run(model, "encode")(params, jnp.asarray(normal("x", PIXELS)))
    assert mean.shape == (2, 16 // model.factor, 24 // model.factor, model.latent) and mean.dtype == jnp.float32
    assert deviation(mean, GOLDEN[f"{name}/mean"]) < CLOSE and deviation(logvar, GOLDEN[f"{name}/logvar"]) < CLOSE
    decoded = run(model, "decode")(params, jnp.asarray(normal(f"{name}/z", mean.shape)))
    assert decoded.shape == PIXELS and deviation(decoded, GOLDEN[f"{name}/decoded"]) < CLOSE


@pytest.mark.parametrize("name", FIELDS)
def test_weights_come_back(name):
    named = tensors(GOLDEN.shapes[name])
    assert_comes_back(RULES[name](FIELDS[name], named), named, loaded(name)[1])


def test_names_of_attention_before_diffusers_0_17():
    named, old = tensors(GOLDEN.shapes["diffusers"]), {}
    for name, x in named.items():
        for new, before in convert.OLD_ATTENTION.items():
            name = name.replace(f".{new}.", f".{before}.")
        old[name] = x
    model, params = loaded("diffusers")
    found = imported(convert.diffusers_rules(FIELDS["diffusers"], old), old, shapes_of(model.init, PIXELS))
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_fields_from_a_config():
    config = {"latent_channels": 4, "block_out_channels": [8, 16, 16], "layers_per_block": 2, "norm_num_groups": 4, "in_channels": 3}
    config |= {"out_channels": 3, "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    found = convert.diffusers_describe(config, "a file")
    assert AutoencoderKL(**found) == AutoencoderKL(**FIELDS["diffusers"])
    assert convert.latent_scale({"scaling_factor": 1.5305, "shift_factor": 0.0609}) == autoencoder_kl.SCALES["sd3"]
    with pytest.raises(UserError, match="^a file: act_fn is 'relu', and the autoencoder here has 'silu'"):
        convert.diffusers_describe({**config, "act_fn": "relu"}, "a file")


def test_log_variances_are_clamped():
    model, params = loaded("no_quant")
    large = {**params, "encoder": {**params["encoder"], "conv_out": jax.tree.map(lambda a: 1000 * a, params["encoder"]["conv_out"])}}
    _, logvar = run(model, "encode")(large, jnp.asarray(normal("x", PIXELS)))
    assert float(logvar.min()) == -30 and float(logvar.max()) == 20


def test_draws_have_the_moments_and_an_examples_key_alone():
    keys = jax.random.split(jax.random.key(0), 4)
    mean, logvar = jnp.full((4, 2000), 3.0), jnp.full((4, 2000), 2 * np.log(0.5))
    z = draw(mean, logvar, keys)
    assert float(z.mean()) == pytest.approx(3, abs=0.03) and float(z.std()) == pytest.approx(0.5, abs=0.02)
    np.testing.assert_array_equal(draw(mean[1:2], logvar[1:2], keys[1:2])[0], z[1])


@pytest.mark.slow
def test_recomputed_blocks_have_the_same_gradients():
    model, params = loaded("no_quant")
    x = jnp.asarray(normal("x", PIXELS))

    def loss(model):
        return jax.jit(jax.grad(lambda p: jnp.square(model.apply({"params": p}, x)[0] - x).mean()))(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), loss(model), loss(model.clone(remat=True)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: jax.eval_shape(lambda: run(*_at("encode"))(loaded("diffusers")[1], jnp.zeros((1, 18, 16, 3)))),
            "multiples of 4, got 18 x 16",
        ),
        (lambda: jax.eval_shape(lambda: run(*_at("decode"))(loaded("diffusers")[1], jnp.zeros((1, 4, 4, 3)))), "have 4 channels, got 3"),
        (lambda: autoencoder_kl.build("kl-f9"), "there is no autoencoder 'kl-f9'; did you mean 'kl-f8'"),
        (lambda: autoencoder_kl.build({"latent": 4, "mults": (1, 2), "width": 48}), r"width 48 x mults \(1, 2\) is to fall into 32 groups"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UserError, match=message):
        call()


def _at(method):
    return loaded("diffusers")[0], method


# Stable Diffusion's, Stable Diffusion 3's and LDM's KL-f4, counted in PyTorch: encoder, decoder, all.
COUNTS = {
    "kl-f8": (34_163_592, 49_490_179, 83_653_863),
    "kl-f8-16": (34_274_208, 49_545_475, 83_819_683),
    "kl-f4": (None, None, 55_312_063),
}


@pytest.mark.parametrize("name", autoencoder_kl.VARIANTS)
def test_published_sizes(name):
    model = autoencoder_kl.build(name)
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    params, axes = split_axes(made["params"])
    encoder, decoder, whole = COUNTS[name]
    assert tree.count(params) == whole
    if encoder:
        assert (tree.count(params["encoder"]), tree.count(params["decoder"])) == (encoder, decoder)
    for path, names in tree.flatten(axes).items():
        assert set(names) <= set(sharding.RULES), path
