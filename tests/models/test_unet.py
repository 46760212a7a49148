"""The U-Net against diffusers' and guided-diffusion's (tests/golden/unets.py), published sizes, and its ways of computing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.convert import unet as convert
from mmjax.core import tree
from mmjax.core.errors import UserError
from mmjax.layers import GroupNorm, stack_params, unstack_params
from mmjax.models import unet, unet_classifier
from mmjax.models.unet import UNet
from mmjax.models.unet_classifier import UNetClassifier
from tests.golden.weights import normal
from tests.models.unet_golden import (
    CLASSES,
    CONTEXT,
    GOLDEN,
    LABELS,
    SIDE,
    TIMES,
    TOLERANCE,
    WORDS,
    abstract,
    converted,
    count,
    deviation,
    image,
)

pytestmark = pytest.mark.slow  # minutes of compilation in all

# The facts' table, counted from the authors' code.
COUNTS = {
    "ddpm-cifar10": 35_746_307,
    "ddpm-256": 113_673_219,
    "iddpm-cifar10": 52_546_438,
    "iddpm-imagenet64": 121_063_942,
    "iddpm-imagenet64-cond": 273_049_350,
    "iddpm-upsampler-256": 279_792_390,
    "iddpm-lsun256": 113_676_678,
    "adm-64": 295_904_454,
    "adm-128": 421_529_606,
    "adm-256": 553_838_086,
    "adm-256-uncond": 552_814_086,
    "adm-512": 558_997_638,
    "adm-u-256": 311_795_910,
    "adm-u-512": 308_835_270,
    "edm-imagenet64": 295_899_267,
    "unclip-64": 2_238_164_486,  # 2,097,586,694 without the words' keys and values
    "unclip-256": 729_710_726,
    "unclip-1024": 282_064_326,
    "karlo-64": 885_439_686,
    "karlo-256": 691_579_523,
    "ldm4-imagenet256": 400_920_579,
    "ldm8-imagenet256": 394_984_196,
    "ldm-txt2img": 872_300_484,
    "sd1": 859_520_964,
    "sd2": 865_910_724,
    "sdxl": 2_567_463_684,
}
CLASSIFIER_COUNTS = {"adm-64": 65_438_568, "adm-128": 42_568_040, "adm-256": 54_096_360, "adm-512": 54_448_360}

SMALL = {"channels": (16, 32), "blocks": 1, "groups": 8}
WORDED = {**SMALL, "in_channels": 4, "out_channels": 4}
GUIDED = {"channels": (32, 64), "blocks": 1, "attention": (0, 1)}
BLOCKS = {"scale_shift": True, "resample": "residual", "out_channels": 6}
SIZES = jnp.asarray([[64.0, 48, 0, 5, 64, 64], [32, 32, 3, 0, 16, 64]])


def words() -> jax.Array:
    return jnp.asarray(normal("context", (2, WORDS, CONTEXT)))


def array(name: str, width: int) -> jax.Array:
    return jnp.asarray(normal(name, (2, width)))


# Fields, inputs beside image and time, and the rules of the reference's layout.
CASES = {
    "ddpm": (
        {**SMALL, "attention": (0, 1), "eps": 1e-6, "time_order": "sin_cos", "freq_shift": 1, "resample": "conv_same"},
        lambda: {},
        convert.diffusers,
    ),
    "adm": ({**SMALL, "attention": (0, 1), "head_width": 8, "classes": CLASSES, **BLOCKS}, lambda: {"labels": LABELS}, convert.diffusers),
    "sd1": ({**WORDED, "attention": (1, 0), "kind": "cross", "heads": 2}, lambda: {"context": words()}, convert.diffusers),
    "sdxl": (
        {**WORDED, "attention": (0, 2), "mid_attention": 2, "kind": "cross", "heads": (2, 4), "vector": 20, "numbers": 6},
        lambda: {"context": words(), "vector": array("pooled", 20), "numbers": SIZES},
        convert.diffusers,
    ),
    "karlo": (
        {**WORDED, "attention": (0, 1), "kind": "added", "head_width": 8, **BLOCKS, "out_channels": 8},
        lambda: {"context": words(), "embedding": array("embedding", 64)},
        convert.diffusers,
    ),
    "guided_legacy": ({**GUIDED, **BLOCKS, "heads": 4, "classes": CLASSES}, lambda: {"labels": LABELS}, convert.adm),
    "guided_new": ({**GUIDED, "head_width": 16}, lambda: {}, functools.partial(convert.adm, order="new")),
    "guided_upsampler": ({**GUIDED, **BLOCKS, "heads": 2, "low_res": 3}, lambda: {"low_res": image("low_res", 3, 4)}, convert.adm),
}


@functools.cache
def case(name: str):
    """(model, parameters, image, further inputs)."""
    fields, inputs, rules = CASES[name]
    model, inputs = UNet(**fields), inputs()
    x = image(f"{name}/x", model.in_channels)
    return model, converted(name, lambda names: rules(model, names), abstract(model, x, TIMES, **inputs)), x, inputs


@pytest.mark.parametrize("name", CASES)
def test_as_the_reference(name):
    model, params, x, inputs = case(name)
    out = jax.jit(model.apply)({"params": params}, x, TIMES, **inputs)
    assert out.dtype == jnp.float32
    assert deviation(out, GOLDEN[f"{name}/out"]) < TOLERANCE


def test_classifier_as_the_reference():
    model, x = UNetClassifier(**GUIDED, head_width=16, classes=CLASSES), image("guided_classifier/x", 3)
    params = converted("guided_classifier", lambda names: convert.adm(model, names), abstract(model, x, TIMES))
    logits = jax.jit(model.apply)({"params": params}, x, TIMES)
    assert deviation(logits, GOLDEN["guided_classifier/out"]) < TOLERANCE


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name):
    model, spec = unet.build(name), lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    assert COUNTS.keys() == unet.VARIANTS.keys() == unet.SIZES.keys()
    side = 2 ** (len(model.channels) - 1)  # parameters do not depend on it
    inputs = {"context": spec(1, 2, unet.CONTEXTS[name])} if model.kind != "self" else {}
    inputs |= {"labels": jax.ShapeDtypeStruct((1,), jnp.int32)} if model.classes else {}
    inputs |= {"low_res": spec(1, 1, 1, 3)} if model.low_res else {}
    inputs |= {"vector": spec(1, model.vector), "numbers": spec(1, model.numbers)} if model.vector else {}
    assert count(abstract(model, spec(1, side, side, model.in_channels), spec(1), **inputs)) == COUNTS[name]


@pytest.mark.parametrize("name", CLASSIFIER_COUNTS)
def test_published_classifiers(name):
    size = unet_classifier.SIZES[name]
    spec = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    assert count(abstract(unet_classifier.build(name), spec(1, size, size, 3), spec(1))) == CLASSIFIER_COUNTS[name]


def test_bfloat16_is_near_and_norms_stay_float32():
    model, params, x, inputs = case("sd1")
    out = jax.jit(model.clone(dtype=jnp.bfloat16).apply)({"params": params}, x, TIMES, **inputs)
    assert out.dtype == jnp.float32
    assert 1e-4 < deviation(out, GOLDEN["sd1/out"]) < 0.03
    # A large offset leaves a group's spread below what bfloat16 can tell: only float32 statistics find it.
    wide = 1.0 + 1e-4 * normal("spread", (1, 4, 4, 8))
    norm = GroupNorm(2, eps=1e-12, dtype=jnp.bfloat16)
    y = norm.apply({"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}, jnp.asarray(wide))
    assert abs(float(np.asarray(y, np.float32).std()) - 1) < 0.02


TINY = UNet(channels=(8, 8), blocks=1, groups=4, attention=(0, 2), mid_attention=0, kind="cross", heads=2, dropout=0.3)


@functools.cache
def tiny():
    """(parameters none of which is 0, inputs)."""
    inputs = {"x": image("tiny", 3, 8), "t": TIMES, "context": words()}
    flat = tree.flatten(abstract(TINY, **inputs))
    return tree.unflatten({path: jnp.asarray(0.3 * normal(path, p.shape)) for path, p in flat.items()}), inputs


@functools.cache
def tiny_gradients(**how):
    params, inputs = tiny()
    model, keys = TINY.clone(**how), jax.random.split(jax.random.key(0), 2)
    params = stack_params(params) if model.scan else params
    value, grads = jax.jit(jax.value_and_grad(lambda p: (model.apply({"params": p}, **inputs, keys=keys) ** 2).mean()))(params)
    return value, unstack_params(grads) if model.scan else grads


@pytest.mark.parametrize("how", [{"remat": "full"}, {"scan": True, "remat": "dots"}])
def test_ways_of_computing_agree(how):
    (want, grads), (got, other) = tiny_gradients(), tiny_gradients(**how)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest), other, grads)


def test_dropout_is_an_examples_own():
    params, inputs = tiny()
    keys = jax.random.split(jax.random.key(0), 2)
    apply = jax.jit(lambda x, context, keys: TINY.apply({"params": params}, x, TIMES[: len(x)] * 0, context=context, keys=keys))
    both = apply(inputs["x"], inputs["context"], keys)
    for i in range(2):
        alone = apply(inputs["x"][i : i + 1], inputs["context"][i : i + 1], keys[i : i + 1])
        np.testing.assert_allclose(alone[0], both[i], atol=1e-5 * float(jnp.abs(both).max()))
    assert deviation(apply(inputs["x"][:1], inputs["context"][:1], keys[1:]), both[:1]) > 0.01


@pytest.mark.parametrize("kind", ["cross", "added"])
def test_a_masked_word_is_not_seen(kind):
    model, inputs = TINY.clone(kind=kind), tiny()[1]
    shapes = tree.flatten(abstract(model, **inputs))
    params = tree.unflatten({path: jnp.asarray(0.3 * normal(path, p.shape)) for path, p in shapes.items()})
    mask = jnp.ones((2, WORDS), bool).at[:, 5:].set(False)
    apply = jax.jit(lambda context, mask: model.apply({"params": params}, inputs["x"], TIMES, context=context, context_mask=mask))
    masked = apply(words(), mask)
    np.testing.assert_allclose(masked, apply(words()[:, :5], mask[:, :5]), atol=1e-5 * float(jnp.abs(masked).max()))
    assert deviation(masked, np.asarray(apply(words(), mask | True))) > 1e-3


def test_dropped_labels_are_the_null_class():
    model = UNet(channels=(8,), blocks=1, groups=4, mid_attention=0, classes=3, label_dropout=1.0)
    x, labels = image("tiny", 3, 8), LABELS % 3
    shapes = tree.flatten(abstract(model, x, TIMES, labels=labels))
    params = tree.unflatten({path: jnp.asarray(0.3 * normal(path, p.shape)) for path, p in shapes.items()})
    apply = jax.jit(lambda **kw: model.apply({"params": params}, x, TIMES, **kw))
    null = np.asarray(apply())
    for same in ({"labels": labels, "keys": jax.random.split(jax.random.key(1), 2)}, {"labels": jnp.full(2, 3)}):
        assert deviation(apply(**same), null) < 1e-6
    assert deviation(apply(labels=labels), null) > 1e-4


@pytest.mark.parametrize(
    ("fields", "inputs", "words"),
    [
        ({}, {"x": jnp.zeros((1, 18, 15, 3))}, "18 x 15 cannot be halved 1 times"),
        ({}, {"x": jnp.zeros((1, 16, 16, 4))}, "takes x with 3 channels, got 4"),
        ({}, {"labels": jnp.zeros(1, int)}, "made without classes"),
        ({"classes": 4}, {}, "needs labels"),
        ({}, {"context": jnp.zeros((1, 2, 3))}, "takes no context"),
        ({"kind": "cross"}, {}, "takes a context"),
        ({"low_res": 3}, {}, "takes low_res with 3 channels, got 0"),
        ({}, {"low_res": jnp.zeros((1, 8, 8, 3))}, "no place for it"),
        ({"groups": 5}, {}, "16 channels do not fall into 5 groups"),
    ],
)
def test_bad_input_is_named(fields, inputs, words):
    inputs = {"x": jnp.zeros((1, 16, 16, 3)), "t": jnp.zeros(1), **inputs}
    with pytest.raises(UserError, match=words):
        jax.eval_shape(UNet(**{**SMALL, **fields}).init, jax.random.key(0), **inputs)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("ddpm-cifar", "did you mean 'ddpm-cifar10'"),
        ({"blocks": 2}, "lacks 'channels'"),
        ({"channels": (8, 8), "kind": "crossed"}, "did you mean 'cross'"),
        ({"channels": (8, 8), "resample": "convs"}, "did you mean 'conv'"),
        ({"channels": (8, 8), "remat": "ful"}, "did you mean 'full'"),
        ({"channels": (8, 8), "attention": (1,)}, "expected 2 numbers"),
        ({"channels": (8, 8), "head_width": 3}, "does not split into heads of 3"),
        ({"channels": (8, 8), "chanels": 1}, "did you mean 'channels'"),
    ],
)
def test_bad_fields_are_named(fields, words):
    with pytest.raises(UserError, match=words):
        unet.build(fields)


def test_sizes_halve():
    for name, size in unet.SIZES.items():
        assert size % 2 ** (len(unet.VARIANTS[name]["channels"]) - 1) == 0
    assert SIDE == 16
