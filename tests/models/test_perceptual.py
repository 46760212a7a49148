"""LPIPS and PatchGAN against their authors' code (tests/golden/perceptual.py)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.convert import lpips as convert
from mmjax.convert import safetensors
from mmjax.core import tree
from mmjax.core.errors import UserError
from mmjax.layers import split_axes
from mmjax.models import lpips
from mmjax.models.discriminator import PatchGAN
from mmjax.models.lpips import LPIPS, distance
from tests.convert.by_rules import assert_comes_back, shapes_of
from tests.golden.weights import normal, tensors
from tests.models.torch_layouts import Golden, converted, deviation, linear, norms

pytestmark = pytest.mark.slow  # minutes of compilation in all

CLOSE = 1e-5
GOLDEN = Golden("perceptual")
PIXELS = (2, 32, 48, 3)
X, Y = (jnp.asarray(normal(name, PIXELS)) for name in "xy")


@functools.cache
def loaded(tmp):
    safetensors.write(tmp / "both.safetensors", named())
    return convert.load(tmp / "both.safetensors")


@functools.cache
def named():
    return tensors(GOLDEN.shapes["lpips"])


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    return loaded(tmp_path_factory.mktemp("lpips"))


def test_distances_and_their_gradient(params):
    model = LPIPS()

    def total(y):
        found = model.apply({"params": params}, X, y)
        return found.sum(), found

    grad, found = jax.jit(jax.grad(total, has_aux=True))(Y)
    assert deviation(found, GOLDEN["lpips"]) < CLOSE
    assert deviation(grad, GOLDEN["lpips_grad"]) < 3 * CLOSE


def test_from_two_files_of_torchvisions_and_lpips_names(params, tmp_path):
    """torchvision counts its layers through; the heads' file has nothing else. The classifier is left out."""
    number = lambda name: f"features.{name.split('.')[2]}.{name.split('.')[3]}"
    net = {number(name): x for name, x in named().items() if name.startswith("net.")}
    safetensors.write(tmp_path / "vgg16.safetensors", {**net, "classifier.0.bias": np.zeros(4, np.float32)})
    safetensors.write(tmp_path / "heads.safetensors", {name: x for name, x in named().items() if name.startswith("lin")})
    found = convert.load(tmp_path / "vgg16.safetensors", tmp_path / "heads.safetensors")
    jax.tree.map(np.testing.assert_array_equal, found, params)
    with pytest.raises(UserError, match="5 missing: lin0.model.1.weight"):
        convert.load(tmp_path / "vgg16.safetensors")


def test_weights_come_back(params):
    assert_comes_back(convert.rules(LPIPS(), named()), named(), params)


def test_count():
    """VGG-16's convolutions have 14,714,688 parameters, the heads a number a channel."""
    made = jax.eval_shape(lambda: LPIPS().init(jax.random.key(0), X, Y))
    assert tree.count(split_axes(made["params"])[0]) == 14_714_688 + 64 + 128 + 256 + 512 + 512


def test_any_networks_features():
    """By hand: unit vectors, squared differences, the mean over places, the sum over channels and maps."""
    a, b = np.array([[[3.0, 4.0], [0.0, 1.0]]]), np.array([[[3.0, 4.0], [1.0, 0.0]]])
    tokens, maps = (jnp.asarray(x, jnp.float32) for x in (a, b)), (jnp.asarray(x.reshape(1, 1, 2, 2), jnp.float32) for x in (a, b))
    (t1, t2), (m1, m2) = tokens, maps
    assert float(distance([t1], [t2])[0]) == pytest.approx(1.0)
    assert float(distance([t1, m1], [t2, m2])[0]) == pytest.approx(2.0)
    assert float(distance([t1], [t2], [jnp.asarray([3.0, 1.0])])[0]) == pytest.approx(2.0)


def test_a_feature_of_zeros_has_a_gradient():
    grad = jax.grad(lambda x: distance([x], [jnp.ones((1, 2, 3))])[0])(jnp.zeros((1, 2, 3)))
    assert np.isfinite(grad).all()


def test_pictures_too_small_for_vgg():
    with pytest.raises(UserError, match="^VGG takes pictures of 16 pixels or more, got 8 x 48"):
        jax.eval_shape(lambda: LPIPS().init(jax.random.key(0), X[:, :8], Y[:, :8]))
    assert lpips.VGG16[-1] == (512, 3)


# --- the discriminator ---------------------------------------------------------------------------------------------------

# Convolutions and norms stand in one list with rectifiers: 0; 2, 3; 5, 6; 8.
PATCHGAN = (
    *linear(r"main\.0", "conv0", "conv"),
    *linear(r"main\.2", "conv1", "conv"),
    *norms(r"main\.3", "norm1"),
    *linear(r"main\.5", "conv2", "conv"),
    *norms(r"main\.6", "norm2"),
    *linear(r"main\.8", "conv3", "conv"),
)
SMALL = PatchGAN(width=8, depth=2)
GAINS = ("scale", "bias")
STATISTICS = (*GAINS, "mean", "var")


def test_logits_with_running_and_with_batch_statistics():
    params = converted(tensors(GOLDEN.shapes["patchgan"]), PATCHGAN)
    assert deviation(SMALL.apply({"params": params}, X), GOLDEN["patchgan/eval"]) < CLOSE
    got, new = SMALL.apply({"params": params}, X, True, mutable=["state"])
    assert deviation(got, GOLDEN["patchgan/train"]) < CLOSE
    for theirs, ours in (("main.3", "norm1"), ("main.6", "norm2")):
        assert deviation(new["state"][ours]["mean"], GOLDEN[f"patchgan/{theirs}.running_mean"]) < CLOSE
        assert deviation(new["state"][ours]["var"], GOLDEN[f"patchgan/{theirs}.running_var"]) < CLOSE


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_norms_decide_the_parameters(norm):
    names = {"conv0/bias", "conv3/bias", *(f"conv{i}/kernel" for i in range(4))}
    names |= {f"norm{i}/{name}" for i in (1, 2) for name in {"batch": STATISTICS, "group": GAINS, "none": ()}[norm]}
    names |= {"conv1/bias", "conv2/bias"} if norm != "batch" else set()
    assert set(shapes_of(SMALL.clone(norm=norm).init, PIXELS)) == names


def test_a_logit_sees_70_pixels():
    model = PatchGAN(width=2, norm="none")
    x = jnp.asarray(normal("wide", (1, 96, 96, 1)))
    params = tree.unflatten({name: jnp.asarray(normal(name, s.shape)) for name, s in shapes_of(model.init, x.shape).items()})
    grad = jax.jit(jax.grad(lambda x: model.apply({"params": params}, x)[0, 5, 5]))(x)
    rows = np.flatnonzero(np.abs(grad).max((0, 2, 3)))
    assert rows.max() - rows.min() + 1 == 70


@pytest.mark.parametrize(
    ("options", "side", "message"),
    [
        ({"norm": "actnorm"}, 32, "^PatchGAN norm is 'actnorm'; known: batch, group, none"),
        ({"depth": 0}, 32, "^PatchGAN depth is 0"),
        ({}, 20, "^PatchGAN of depth 3 takes pictures of 24 pixels or more, got 20 x 20"),
    ],
)
def test_bad_options(options, side, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: PatchGAN(**options).init(jax.random.key(0), jnp.zeros((1, side, side, 3))))
