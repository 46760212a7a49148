"""The contrastive losses in every form, on one, two and eight devices, against float64 formulas written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import flops, sharding
from mmjax.core.errors import UserError
from mmjax.objectives import clip_distillation, contrastive, ring, sigmoid

WIDTH, LOG_SCALE = 640, np.log(100.0)
MESHES = {1: {"data": 1}, 2: {"data": 2}, 8: {"data": 2, "fsdp": 4}}


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def pairs(n, width=WIDTH, seed=0):
    r = np.random.default_rng(seed)
    images = unit(r.standard_normal((n, width)))
    return images, unit(images + 0.5 * r.standard_normal((n, width)))


def mesh_of(devices):
    return sharding.make_mesh(MESHES[devices], jax.devices()[:devices])


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def lse(x, axis):
    return x.max(axis) + np.log(np.exp(x - x.max(axis, keepdims=True)).sum(axis))


def spread(slope, images, texts, logits):
    """The gradient by images, texts and log_scale of something whose derivative by the logits is `slope`."""
    scale = np.exp(LOG_SCALE)
    return scale * slope @ texts, scale * slope.T @ images, (slope * logits).sum()


def reference(images, texts):
    """InfoNCE and its gradients: the slope by logits is (row softmax + column softmax - 2 identity) / 2B."""
    logits = np.exp(LOG_SCALE) * images @ texts.T
    n = len(logits)
    value = ((lse(logits, 1) + lse(logits, 0)) / 2 - np.diag(logits)).mean()
    slope = (softmax(logits, 1) + softmax(logits, 0) - 2 * np.eye(n)) / (2 * n)
    return value, *spread(slope, images, texts, logits)


def reference_sigmoid(images, texts, bias):
    cosines = np.exp(LOG_SCALE) * images @ texts.T
    logits, z = cosines + bias, 2 * np.eye(len(images)) - 1
    value = np.logaddexp(0, -z * logits).sum() / len(images)
    slope = -z / (1 + np.exp(z * logits)) / len(images)
    return value, *spread(slope, images, texts, cosines), slope.sum()


def reference_distilled(images, texts, teacher, weight):
    logits, wanted = np.exp(LOG_SCALE) * images @ texts.T, np.exp(3.0) * teacher[0] @ teacher[1].T
    value, *grads = reference(images, texts)
    n, slope = len(logits), 0.0
    for axis in (1, 0):
        p = softmax(wanted, axis)
        value += weight * -(p * (logits - np.expand_dims(lse(logits, axis), axis))).sum() / (2 * n)
        slope = slope + weight * (softmax(logits, axis) - p) / (2 * n)
    return value, *(a + b for a, b in zip(grads, spread(slope, images, texts, logits), strict=True))


def value_and_grads(loss, args, dtype, **how):
    args = [jnp.asarray(a, dtype) for a in args]
    f = lambda *a: loss(*a, **how)
    (value, metrics), grads = jax.jit(jax.value_and_grad(f, argnums=tuple(range(len(args))), has_aux=True))(*args)
    return [np.asarray(x) for x in (value, *grads)], {k: float(v) for k, v in metrics.items()}


def errors(got, want):
    return [np.abs(np.asarray(g, np.float64) - w).max() for g, w in zip(got, want, strict=True)]


# 51 pairs: no power of two, divisible by neither two nor eight devices nor a tile of 5. The last of eight devices has two of its seven.
WAYS = [
    ("dense", 1, 5),
    ("gathered", 2, 5),
    ("gathered", 8, 5),
    ("ring", 1, 5),
    ("ring", 1, 64),
    ("ring", 2, 5),
    ("ring", 8, 5),
    ("ring", 8, 7),
]


@pytest.mark.parametrize(("form", "devices", "tile"), WAYS)
def test_forms_equal_the_formula(form, devices, tile):
    images, texts = pairs(51)
    want = reference(images, texts)
    how = {"tile": tile, "mesh": mesh_of(devices)}
    with jax.enable_x64(True):
        got, metrics = value_and_grads(contrastive.info_nce, (images, texts, LOG_SCALE), jnp.float64, form=form, **how)
    assert max(errors(got, want)) < 1e-10
    logits = images @ texts.T
    assert metrics["batch_accuracy"] == pytest.approx((np.diag(logits) >= logits.max(1)).mean(), abs=1e-12)
    assert (metrics["image_to_text"] + metrics["text_to_image"]) / 2 == pytest.approx(want[0], abs=1e-10)
    assert abs(metrics["image_to_text"] - metrics["text_to_image"]) > 1e-4  # else the two could be swapped


@pytest.mark.parametrize("devices", [1, 8])
def test_float32_is_as_good_as_dense(devices):
    images, texts = (x.astype(np.float32) for x in pairs(104))
    want = reference(images.astype(np.float64), texts.astype(np.float64))
    error = lambda form: errors(
        value_and_grads(contrastive.info_nce, (images, texts, LOG_SCALE), jnp.float32, form=form, tile=7, mesh=mesh_of(devices))[0], want
    )
    dense = error("dense")
    for form in ("gathered", "ring"):
        assert all(e <= 2 * d + 1e-5 for e, d in zip(error(form), dense, strict=True)), form


@pytest.mark.parametrize(("form", "devices"), [("dense", 1), ("ring", 1), ("ring", 8)])
def test_sigmoid_equals_the_formula(form, devices):
    images, texts = pairs(51)
    want = reference_sigmoid(images, texts, -10.0)
    args = (images, texts, LOG_SCALE, -10.0)
    with jax.enable_x64(True):
        got, metrics = value_and_grads(sigmoid.sigmoid, args, jnp.float64, form=form, tile=5, mesh=mesh_of(devices))
    assert max(errors(got, want)) < 1e-10
    logits = images @ texts.T
    assert metrics["batch_accuracy"] == pytest.approx((np.diag(logits) >= logits.max(1)).mean(), abs=1e-12)


def test_sigmoid_starts_where_siglip_does():
    """With t = 10 and b = -10 right pairs cost ln 2, and the many wrong ones, orthogonal here, almost nothing."""
    eye = jnp.eye(64)
    for form in sigmoid.FORMS:
        value, _ = sigmoid.sigmoid(eye, eye, jnp.float32(np.log(10)), jnp.float32(-10), form, 16)
        np.testing.assert_allclose(value, np.log(2) + 63 * np.log1p(np.exp(-10)), rtol=1e-5)


@pytest.mark.parametrize(("form", "devices"), [("dense", 1), ("ring", 1), ("ring", 8)])
def test_distillation_equals_the_formula(form, devices):
    images, texts = pairs(51)
    teacher = pairs(51, 24, seed=1)
    want = reference_distilled(images, texts, teacher, 0.7)
    with jax.enable_x64(True):
        extra = [jnp.asarray(x) for x in (*teacher, 3.0)]
        loss = lambda *a, **how: clip_distillation.distilled_info_nce(*a, *extra, weight=0.7, **how)
        got, _ = value_and_grads(loss, (images, texts, LOG_SCALE), jnp.float64, form=form, tile=5, mesh=mesh_of(devices))
    assert max(errors(got, want)) < 1e-10


def test_a_teacher_that_agrees_costs_its_entropy_and_pulls_nowhere():
    images, texts = pairs(9)
    logits = np.exp(3.0) * images @ texts.T
    entropy = [-(softmax(logits, a) * np.log(softmax(logits, a))).sum() / 9 for a in (0, 1)]
    with jax.enable_x64(True):
        args = [jnp.asarray(x) for x in (images, texts, 3.0)]
        for form in clip_distillation.FORMS:
            f = lambda *a, form=form: clip_distillation.distilled_info_nce(*a, *args, form=form, tile=4)[1]["distillation"]
            value, grads = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(*args)
            np.testing.assert_allclose(value, np.mean(entropy), rtol=1e-10)
            assert max(float(jnp.abs(g).max()) for g in grads) < 1e-12


@pytest.mark.parametrize("devices", [1, 8])
def test_any_use_of_the_sums_is_differentiated(devices):
    """Every row's, column's and pair's cotangent its own: what the mean of InfoNCE, where they are all equal, would not show."""
    images, texts = pairs(19, 16)
    r = np.random.default_rng(2)
    weights = [r.standard_normal(19) for _ in range(3)]
    logits = 3 * images @ texts.T
    slope = weights[0][:, None] * softmax(logits, 1) + weights[1][None] * softmax(logits, 0) + np.diag(weights[2])
    mesh = mesh_of(devices)
    with jax.enable_x64(True):

        def f(images, texts, scale):
            rows, columns, diagonal = ring.matrix_sums(contrastive.LOG_SUM_EXP, ring.Factors(images, texts, scale), tile=4, mesh=mesh)
            return weights[0] @ rows["lse"] + weights[1] @ columns["lse"] + weights[2] @ diagonal

        got = jax.jit(jax.grad(f, argnums=(0, 1, 2)))(*(jnp.asarray(x) for x in (images, texts, 3.0)))
    want = 3 * slope @ texts, 3 * slope.T @ images, (slope * logits).sum() / 3
    assert max(errors(got, want)) < 1e-12


def test_nothing_overflows():
    """exp(100) is no float32: without the maximum taken out first, a scale of 100 is infinite. At 1e4 tiles' sums are far apart too."""
    eye = jnp.eye(12)
    for form in contrastive.FORMS:
        loss = lambda a, b, s, form=form: contrastive.info_nce(a, b, s, form, 5)[0]
        f = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        for scale in (100.0, 1e4):
            for texts, want in ((eye, 0.0), (eye[::-1], scale)):
                value, grads = f(eye, texts, jnp.float32(np.log(scale)))
                np.testing.assert_allclose(value, want, rtol=1e-5)
                assert all(bool(jnp.isfinite(g).all()) for g in grads)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_ring_holds_no_matrix(devices):
    """Temporary memory of the whole gradient, a device: some times the embeddings and a tile; a matrix of b x B would be far more."""
    n, width, tile = 4096, 32, 128
    mesh = mesh_of(devices)
    f = jax.jit(jax.grad(lambda *a: contrastive.info_nce(*a, form="ring", tile=tile, mesh=mesh)[0], argnums=(0, 1, 2)))
    place = sharding.batch_sharding(mesh)
    rows = jax.ShapeDtypeStruct((n, width), jnp.float32, sharding=place)
    compiled = f.lower(rows, rows, jax.ShapeDtypeStruct((), jnp.float32)).compile()
    b = n // devices
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * (8 * b * width + 8 * tile**2 + 64 * b) < 4 * b * n / 4


def test_work_is_a_third_more_than_with_the_matrix():
    n, width = 512, 64
    shapes = [jax.ShapeDtypeStruct((n, width), jnp.float32)] * 2 + [jax.ShapeDtypeStruct((), jnp.float32)]
    grad = lambda form: jax.grad(lambda *a: contrastive.info_nce(*a, form=form, tile=128)[0], argnums=(0, 1, 2))
    products = {form: flops.count(grad(form), *shapes).by_primitive["dot_general"] for form in ("dense", "ring")}
    assert products == {"dense": 3 * 2 * n * n * width, "ring": 4 * 2 * n * n * width}


def test_bad_input_is_one_line():
    x, s = jnp.eye(4), jnp.float32(0)
    for message, call in {
        "form of the contrastive loss is 'rings'; did you mean 'ring'?": lambda: contrastive.info_nce(x, x, s, form="rings"),
        "tile of the contrastive loss is 0; expected a positive": lambda: contrastive.info_nce(x, x, s, form="ring", tile=0),
        "the sigmoid loss has no form 'gathered'; take one of dense, ring": lambda: sigmoid.sigmoid(x, x, s, s, form="gathered"),
        "distillation has no form 'gathered'": lambda: clip_distillation.distilled_info_nce(x, x, s, x, x, s, form="gathered"),
    }.items():
        with pytest.raises(UserError, match=message.replace("?", r"\?")) as e:
            call()
        assert "\n" not in str(e.value)
