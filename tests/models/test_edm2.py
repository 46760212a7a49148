"""EDM2's U-Net against its own code (tests/golden/unets.py), published sizes, and that magnitudes are kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.convert import unet as convert
from mmjax.core import tree
from mmjax.core.errors import UserError
from mmjax.layers import split_axes
from mmjax.models import edm2
from mmjax.models.edm2 import EDM2, mp_concat, mp_silu, mp_sum, normalised, unit
from tests.golden.weights import normal
from tests.models.unet_golden import CLASSES, GOLDEN, LABELS, NOISE, SIDE, TOLERANCE, abstract, converted, count, deviation, image

pytestmark = pytest.mark.slow  # minutes of compilation in all

COUNTS = {
    "edm2-xxs": 31_309_029,
    "edm2-xs": 124_713_253,
    "edm2-s": 280_212_837,
    "edm2-m": 497_807_781,
    "edm2-l": 777_498_085,
    "edm2-xl": 1_119_283_749,
    "edm2-xxl": 1_523_164_773,
}
SMALL = EDM2(width=32, multiples=(1, 2), blocks=1, attention=(0, 1), head_width=16, classes=CLASSES)


@functools.cache
def new():
    """Parameters as they begin."""
    return split_axes(jax.jit(SMALL.init)(jax.random.key(0), image("edm2/x", 4), NOISE, labels=LABELS)["params"])[0]


@functools.cache
def case():
    x = image("edm2/x", 4)
    return converted("edm2", lambda _: convert.edm2(SMALL, SIDE), abstract(SMALL, x, NOISE, labels=LABELS)), x


def test_as_the_reference():
    params, x = case()
    out = jax.jit(SMALL.apply)({"params": params}, x, NOISE, labels=LABELS)
    assert deviation(out, GOLDEN["edm2/out"]) < TOLERANCE
    log_variance = SMALL.apply({"params": params}, NOISE, method="log_variance")
    assert deviation(log_variance, GOLDEN["edm2/log_variance"]) < TOLERANCE


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name):
    assert COUNTS.keys() == edm2.VARIANTS.keys()
    model = edm2.build(name)
    inputs = (jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32))
    assert count(abstract(model, *inputs), model.frozen_paths) == COUNTS[name]


def test_primitives_keep_magnitudes():
    """Closed forms on a million standard normal numbers: root mean squares of 1, within sampling error."""
    a, b = (jnp.asarray(normal(name, (1000, 1000))) for name in "ab")
    rms = lambda x: float(jnp.sqrt(jnp.square(x).mean()))
    assert abs(rms(mp_silu(a)) - 1) < 5e-3
    for share in (0.1, 0.3, 0.5):
        assert abs(rms(mp_sum(a, b, share)) - 1) < 3e-3
        both = mp_concat(a[:, :100], b[:, :900], share)
        assert abs(rms(both) - 1) < 3e-3
        ratio = rms(both[:, 100:]) * 3 / rms(both[:, :100])  # what each part contributes, by its sum of squares
        assert abs(ratio - share / (1 - share)) < 5e-3 * ratio
    assert np.allclose(np.square(unit(a * 7)).mean(-1), 1, atol=1e-3)


def test_a_new_network_keeps_magnitudes_inside():
    """Activations of every block have a root mean square near 1 with random embeddings' gains at 0."""
    x = image("edm2/x", 4)
    _, found = jax.jit(lambda p: SMALL.apply({"params": p}, x, NOISE, labels=LABELS, capture_intermediates=True))(new())
    blocks = {k: v["__call__"][0] for k, v in found["intermediates"].items() if "block" in k or "resample" in k}
    assert len(blocks) == 10
    for name, x in blocks.items():
        assert 0.7 < float(jnp.sqrt(jnp.square(x).mean())) < 1.4, name


def test_forced_normalisation():
    params, x = case()
    forced = jax.jit(normalised)(params)
    flat, old = tree.flatten(forced), tree.flatten(params)
    assert flat.keys() == old.keys()
    for path, value in flat.items():
        if path.endswith("kernel"):
            rms = lambda x: np.sqrt(np.square(x).mean(tuple(range(x.ndim - 1))))
            np.testing.assert_allclose(rms(value), rms(old[path]) / (rms(old[path]) + 1e-4), rtol=1e-5)
        else:
            np.testing.assert_array_equal(value, old[path])
    kernel = jnp.asarray(normal("forced", (6, 4, 3, 3)).transpose(2, 3, 1, 0))
    assert deviation(normalised({"kernel": kernel})["kernel"], GOLDEN["edm2/forced"]) < 1e-6
    # A network sees its weights normalised anyhow.
    apply = jax.jit(lambda p: SMALL.apply({"params": p}, x, NOISE, labels=LABELS))
    longer = tree.unflatten({path: x * 10 if path.endswith("kernel") else x for path, x in flat.items()})
    assert deviation(apply(longer), np.asarray(apply(forced))) < 2e-3
    # New weights are as forced normalisation leaves them.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), normalised(new()), new())


def gradients(model: EDM2) -> tuple[dict, dict]:
    """(parameters, gradients) of a network of one level and two blocks."""
    x = image("tiny", 4, 8)
    params = tree.unflatten({k: jnp.asarray(normal(k, p.shape)) for k, p in tree.flatten(abstract(model, x, NOISE)).items()})
    return params, jax.jit(jax.grad(lambda p: (model.apply({"params": p}, x, NOISE) ** 2).mean()))(params)


def test_gradients_are_orthogonal_to_weights_and_leave_features_alone():
    model = EDM2(width=16, multiples=(1,), blocks=0, attention=(1,), head_width=8)
    params, grads = gradients(model)
    kernel, grad = (tree.flatten(t)["mid_block0/conv1/kernel"].reshape(-1, 16) for t in (params, grads))
    along = jnp.abs((kernel * grad).sum(0)) / (jnp.linalg.norm(kernel, axis=0) * jnp.linalg.norm(grad, axis=0))
    assert float(along.max()) < 1e-3  # not 0, for what is divided by has EPS beside it
    for name in ("rates", "phases"):
        assert not np.asarray(grads["fourier"][name]).any()
    # Recomputation changes nothing.
    other, largest = gradients(model.clone(remat="full"))[1], max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest), other, grads)


def test_bfloat16_and_dropout():
    params, x = case()
    apply = lambda model, **kw: jax.jit(lambda p: model.apply({"params": p}, x, NOISE, labels=LABELS, **kw))(params)
    out = apply(SMALL.clone(dtype=jnp.bfloat16))
    assert out.dtype == jnp.float32
    assert 1e-4 < deviation(out, GOLDEN["edm2/out"]) < 0.05
    keys = jax.random.split(jax.random.key(0), 2)
    assert deviation(apply(SMALL.clone(dropout=0.2), keys=keys), GOLDEN["edm2/out"]) > 0.01


def test_no_label_is_the_class_past_the_last():
    params, x = case()
    apply = jax.jit(lambda labels=None: SMALL.apply({"params": params}, x, NOISE, labels=labels))
    np.testing.assert_array_equal(apply(), apply(labels=jnp.full(2, CLASSES)))
    assert deviation(apply(labels=LABELS), apply()) > 1e-3


@pytest.mark.parametrize(
    ("fields", "inputs", "words"),
    [
        ({}, {"x": jnp.zeros((1, 16, 15, 4))}, "16 x 15 cannot be halved 1 times"),
        ({}, {"x": jnp.zeros((1, 16, 16, 3))}, "takes x with 4 channels, got 3"),
        ({"attention": (1,)}, {}, "expected 2 numbers"),
        ({"head_width": 24}, {}, "does not split into heads of 24"),
        ({"remat": "ful"}, {}, "did you mean 'full'"),
    ],
)
def test_bad_input_is_named(fields, inputs, words):
    inputs = {"x": jnp.zeros((1, 16, 16, 4)), "t": jnp.zeros(1), **inputs}
    with pytest.raises(UserError, match=words):
        jax.eval_shape(SMALL.clone(**fields).init, jax.random.key(0), **inputs)
    with pytest.raises(UserError, match="did you mean 'edm2-s'"):
        edm2.build("edm2-ss")
