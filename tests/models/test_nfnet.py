"""NFNet against timm's (tests/golden/nfnet.py), published sizes, and its ways of computing against each other."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import sharding, tree
from mmjax.core.errors import UserError
from mmjax.layers import split_axes, stack_params, unstack_params
from mmjax.models import nfnet
from mmjax.models.nfnet import NFNet
from tests.golden.weights import normal
from tests.models.torch_layouts import NFNET, Golden, deviation, grad_norms, same_structure

SMALL = NFNet(depths=(1, 1, 3, 1), widths=(32, 32, 48, 48), group=8, classes=10)
BATCH = 4
# Measured against the float64 reference: 5e-7 on logits, 8e-7 on F0's.
TOLERANCE = 3e-6


@pytest.fixture(scope="module")
def golden():
    return Golden("nfnet")


@functools.cache
def small(name="tanh", size=48):
    """Parameters, unrolled, and images."""
    return unstack_params(Golden("nfnet").params(name, NFNET)), jnp.asarray(normal(f"{name}/images", (BATCH, size, size, 3)))


@functools.cache
def apply(model):
    """Compiled once for all tests."""
    return jax.jit(lambda params, images, keys=None: model.apply({"params": params}, images, keys))


def test_logits(golden):
    params, images = small()
    same_structure(stack_params(params), SMALL.clone(scan=True), 48)
    logits = apply(SMALL)(params, images)
    assert logits.dtype == jnp.float32
    assert deviation(logits, golden["tanh/logits"]) < TOLERANCE


def test_features_of_odd_maps_with_the_exact_gelu(golden):
    """39 pixels: maps of odd sides, which "same" padding must split as the reference does."""
    params, images = small("erf", 39)
    tower = SMALL.clone(act="gelu", classes=0)
    features = apply(tower)({k: v for k, v in params.items() if k != "head"}, images)
    assert features.shape == (BATCH, tower.features)
    assert deviation(features, golden["erf/features"]) < TOLERANCE
    assert deviation(features @ params["head"]["kernel"] + params["head"]["bias"][None], golden["erf/logits"]) < TOLERANCE


def test_gradients(golden):
    params, images = small()

    def loss(p):
        logits = SMALL.apply({"params": p}, images)
        return (logits * jnp.asarray(normal("cotangent", logits.shape))).sum()

    wanted = golden.under("tanh/grad_norm/")
    got = grad_norms(jax.jit(jax.grad(loss))(params), wanted, NFNET)
    largest = max(wanted.values())
    for tensor, want in wanted.items():
        assert abs(got[tensor] - want) < 1e-5 * max(want, 1e-2 * largest), tensor


@pytest.mark.slow
def test_full_f0(golden):
    params, model = unstack_params(golden.params("F0", NFNET)), NFNet(classes=1000, **nfnet.VARIANTS["F0"])
    logits = apply(model)(params, jnp.asarray(normal("F0/images", (2, 96, 96, 3))))
    assert deviation(logits, golden["F0/logits"]) < TOLERANCE


def test_draws_depend_on_an_examples_key_alone_and_not_on_scanning():
    params, images = small()
    keys = jax.random.split(jax.random.key(3), BATCH)
    model = SMALL.clone(dropout=0.3, stochastic_depth=0.9)
    want = apply(model)(params, images, keys)
    assert np.abs(want - apply(SMALL)(params, images)).max() > 0.1
    order = np.array([2, 0, 0, 3])
    np.testing.assert_allclose(apply(model)(params, images[order], keys[order]), want[order], rtol=0, atol=1e-5)
    scanned = model.clone(scan=True, remat="full")
    np.testing.assert_allclose(apply(scanned)(stack_params(params), images, keys), want, rtol=0, atol=1e-5)


def test_schedule_by_hand():
    """Variance 1 before the first block; after a stage's first block 1 + alpha^2, whatever was before."""
    scales = [s for stage, _ in nfnet.schedule((1, 2, 3, 1), 0.2, 0.25) for s in stage]
    variances = [1, 1.04, 1.04, 1.08, 1.04, 1.08, 1.12]
    np.testing.assert_allclose(scales, [1 / math.sqrt(v) for v in variances], rtol=1e-12)
    rates = [r for _, stage in nfnet.schedule((1, 2, 3, 1), 0.2, 0.25) for r in stage]
    np.testing.assert_allclose(rates, [0.25 * i / 7 for i in range(7)], rtol=1e-12)


@pytest.mark.parametrize("act", nfnet.GAMMAS)
def test_scaled_activations_keep_the_variance_of_a_normal(act):
    """By the trapezoidal rule on [-12, 12]; the authors fitted their constant to draws, so it is good to some 1e-3."""
    z = np.linspace(-12, 12, 24_001)
    weight = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    y = np.asarray(nfnet.activation(act)(jnp.asarray(z, jnp.float32)), np.float64)
    mean = np.trapezoid(weight * y, z)
    assert np.trapezoid(weight * (y - mean) ** 2, z) == pytest.approx(1, abs=3e-3)


def test_branches_and_features_start_as_published():
    """Every branch at gain 0 (SkipInit), every convolution at gain 1, the head with a deviation of 0.01."""

    @jax.jit
    def start(key):
        params = split_axes(SMALL.init(key, jnp.zeros((1, 32, 32, 3)))["params"])[0]
        gains = {path: x for path, x in tree.flatten(params).items() if path.endswith("gain")}
        return gains, params["head"]["kernel"].std()

    gains, std = start(jax.random.key(0))
    for path, x in gains.items():
        assert (x == (x.ndim > 0)).all(), path
    assert sum(x.ndim == 0 for x in gains.values()) == 6
    assert float(std) == pytest.approx(0.01, rel=0.1)


def test_a_mesh_computes_what_one_device_does():
    params, images = small()
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    _, axes = split_axes(jax.eval_shape(SMALL.init, jax.random.key(0), images)["params"])
    placed = jax.device_put(params, sharding.params_shardings(params, axes, mesh))
    with sharding.use(mesh):
        got = jax.jit(lambda p, x: SMALL.apply({"params": p}, x))(placed, jax.device_put(images, sharding.batch_sharding(mesh)))
    np.testing.assert_allclose(got, apply(SMALL)(params, images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"act": "gelu_erf"}, "^NFNet act is 'gelu_erf'; did you mean 'gelu_tanh'|^NFNet act is 'gelu_erf'; did you mean 'gelu'"),
        ({"group": 7}, "^NFNet width 32: its half does not fall into groups of 7 channels"),
        ({"depths": (1, 2, 3)}, r"^NFNet depths are \(1, 2, 3\)"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(SMALL.clone(**options).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


# With 1000 classes, by hand formula and by timm's dm_nfnet_f* (F0 to F6).
COUNTS = {
    "F0": 71_489_284,
    "F1": 132_634_256,
    "F2": 193_779_228,
    "F3": 254_924_200,
    "F4": 316_069_172,
    "F5": 377_214_144,
    "F6": 438_359_116,
    "F7": 499_504_088,
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name):
    assert nfnet.VARIANTS.keys() == nfnet.SIZES.keys() == COUNTS.keys()
    images = jax.ShapeDtypeStruct((1, nfnet.SIZES[name][0], nfnet.SIZES[name][0], 3), jnp.float32)
    model = NFNet(classes=1000, **nfnet.VARIANTS[name])
    params, axes = split_axes(jax.eval_shape(model.clone(scan=True).init, jax.random.key(0), images)["params"])
    assert tree.count(params) == COUNTS[name]
    assert tree.count({k: v for k, v in params.items() if k != "head"}) == COUNTS[name] - 3_073_000
    for path, names in tree.flatten(axes).items():
        assert set(names) <= set(sharding.RULES), path
