"""DDPM++, NCSN++ and EDM's ADM against EDM's own code (tests/golden/unets.py), published sizes, and resampling against its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.convert import unet as convert
from mmjax.core import tree
from mmjax.core.errors import UserError
from mmjax.layers import double, halve, low_pass
from mmjax.models import song_unet
from mmjax.models.song_unet import SongUNet
from mmjax.models.unet import UNet
from tests.golden.weights import normal
from tests.models.unet_golden import CLASSES, GOLDEN, LABELS, NOISE, SIDE, TOLERANCE, abstract, converted, count, deviation, image

pytestmark = pytest.mark.slow  # minutes of compilation in all

COUNTS = {
    "ddpmpp-cifar10": 55_733_891,
    "ddpmpp-cifar10-cond": 55_735_299,
    "ncsnpp-cifar10": 56_397_827,
    "ncsnpp-cifar10-cond": 56_400_643,
    "ddpmpp-64": 61_805_571,
    "ncsnpp-64": 62_761_091,
}
SMALL = {"width": 16, "channels": (16, 32), "blocks": 1, "attention": (0, 1), "classes": CLASSES, "augment": 9}
CASES = {
    "ddpmpp": SongUNet(**SMALL),
    "ncsnpp": SongUNet(**SMALL, embedding="fourier", taps=(1.0, 3.0, 3.0, 1.0), residual_input=True),
}


@functools.cache
def case(name: str):
    model, x, inputs = CASES[name], image(f"{name}/x", 3), {"labels": LABELS, "augment": jnp.asarray(normal("augment", (2, 9)))}
    params = converted(name, lambda _: convert.edm(model, SIDE, prefix=""), abstract(model, x, NOISE, **inputs))
    return model, params, x, inputs


@pytest.mark.parametrize("name", CASES)
def test_as_the_reference(name):
    model, params, x, inputs = case(name)
    out = jax.jit(model.apply)({"params": params}, x, NOISE, **inputs)
    assert deviation(out, GOLDEN[f"{name}/out"]) < TOLERANCE


def test_edms_adm_is_the_general_unet():
    model = UNet(channels=(128, 128), blocks=1, attention=(0, 1), head_width=64, scale_shift=True, resample="residual", classes=CLASSES)
    x = image("dhariwal/x", 3, 8)
    params = converted("dhariwal", lambda _: convert.edm(model, 8, prefix=""), abstract(model, x, NOISE, labels=LABELS))
    out = jax.jit(model.apply)({"params": params}, x, NOISE, labels=LABELS)
    assert deviation(out, GOLDEN["dhariwal/out"]) < TOLERANCE


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name):
    assert COUNTS.keys() == song_unet.VARIANTS.keys() == song_unet.SIZES.keys()
    model = song_unet.build(name)
    inputs = (jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32))
    assert count(abstract(model, *inputs), model.frozen_paths) == COUNTS[name]


def test_missing_labels_and_augmentations_are_zeros():
    model, params, x, inputs = case("ddpmpp")
    apply = jax.jit(lambda **kw: model.apply({"params": params}, x, NOISE, **kw))
    np.testing.assert_allclose(apply(), apply(labels=jnp.full(2, CLASSES), augment=jnp.zeros((2, 9))), rtol=0, atol=1e-6)
    assert deviation(apply(**inputs), apply()) > 1e-3
    dropping = model.clone(label_dropout=1.0, dropout=0.0)
    keys = jax.random.split(jax.random.key(0), 2)
    dropped = jax.jit(lambda: dropping.apply({"params": params}, x, NOISE, labels=LABELS, keys=keys))()
    np.testing.assert_allclose(dropped, apply(), rtol=0, atol=1e-6)


def test_fourier_rates_get_no_gradient():
    model, x = SongUNet(width=8, channels=(8,), blocks=0, embedding="fourier"), image("tiny", 3, 8)
    params = tree.unflatten({k: jnp.asarray(0.3 * normal(k, p.shape)) for k, p in tree.flatten(abstract(model, x, NOISE)).items()})
    grads = jax.jit(jax.grad(lambda p: (model.apply({"params": p}, x, NOISE) ** 2).mean()))(params)
    assert not np.asarray(grads["fourier"]["rates"]).any()
    assert np.asarray(grads["time1"]["kernel"]).any()


@pytest.mark.parametrize("taps", [(1.0, 1.0), (1.0, 3.0, 3.0, 1.0), (1.0, 2.0, 5.0, 3.0)])
def test_resampling_is_its_definition(taps):
    """In float64, by matrices: zeros around, a window of weights at every second place; doubling is four times the transpose."""
    n, size, pad = 8, len(taps), len(taps) // 2 - 1
    half = np.zeros((n // 2, n))
    for row in range(n // 2):
        for i, tap in enumerate(taps):
            if 0 <= 2 * row + i - pad < n:
                half[row, 2 * row + i - pad] = tap / sum(taps)
    x = normal("resampled", (1, n, n, 3))
    down = np.einsum("ia,jb,nabc->nijc", half, half, x)
    np.testing.assert_allclose(halve(jnp.asarray(x), taps), down, atol=1e-6)
    small = normal("small", (1, n // 2, n // 2, 3))
    np.testing.assert_allclose(double(jnp.asarray(small), taps), 4 * np.einsum("ia,jb,nijc->nabc", half, half, small), atol=1e-6)
    assert low_pass(jnp.asarray(x), taps, pad=size // 2).shape == (1, n + 1, n + 1, 3)
    np.testing.assert_allclose(double(jnp.ones((1, 8, 8, 1)))[0, :, :, 0], 1.0)


@pytest.mark.parametrize(
    ("fields", "inputs", "words"),
    [
        ({}, {"x": jnp.zeros((1, 15, 16, 3))}, "15 x 16 cannot be halved 1 times"),
        ({"embedding": "fourrier"}, {}, "did you mean 'fourier'"),
        ({"classes": 0}, {"labels": jnp.zeros(1, int)}, "made without classes"),
        ({"augment": 0}, {"augment": jnp.zeros((1, 9))}, "takes 0 numbers of an augmentation"),
        ({"taps": (1.0, 2.0, 1.0)}, {}, "an even number of taps"),
    ],
)
def test_bad_input_is_named(fields, inputs, words):
    inputs = {"x": jnp.zeros((1, 16, 16, 3)), "t": jnp.zeros(1), **inputs}
    with pytest.raises(UserError, match=words):
        jax.eval_shape(SongUNet(**{**SMALL, **fields}).init, jax.random.key(0), **inputs)
    with pytest.raises(UserError, match="did you mean 'ddpmpp-cifar10'"):
        song_unet.build("ddpmpp-cifar")
