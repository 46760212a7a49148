"""DiT against its authors' and diffusers' (tests/golden/dit.py), published sizes, classes, and its ways of computing against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.convert import dit as convert
from mmjax.core import rng, sharding, tree
from mmjax.core.errors import UserError
from mmjax.layers import split_axes, unstack_params
from mmjax.models import dit
from mmjax.models.dit import DiT
from tests.convert.by_rules import assert_comes_back, imported, shapes_of
from tests.golden.weights import normal, tensors
from tests.models.torch_layouts import Golden, deviation

CLOSE = 1e-5
GOLDEN = Golden("dit")
SIZES = {"patch": 2, "width": 32, "depth": 3, "heads": 4, "classes": 10, "label_dropout": 0.1, "learn_sigma": True}
FORMS = {"original": {}, "diffusers": {"freq_shift": 1, "eps": 1e-5}}
RULES = {"original": convert.original_rules, "diffusers": convert.diffusers_rules}
FIELDS = {**SIZES, "channels": 4, "size": 8}
T, LABELS = jnp.asarray([0.0, 17.25, 999.0]), jnp.asarray([3, 9, 10])
EMBEDDED = ".norm1.emb."


def x_of(channels=4):
    return jnp.asarray(normal("x", (3, 8, 8, channels)))


def named(form):
    """The reference's tensors: positions as they are, and one embedding of time and class for all blocks."""
    out = tensors(GOLDEN.shapes[form])
    if "pos_embed" in out:
        out["pos_embed"] = GOLDEN["positions"]
    first = lambda name: "transformer_blocks.0" + name[name.index(EMBEDDED) :]
    return {name: out[first(name)] if EMBEDDED in name else x for name, x in out.items()}


def shapes(model):
    return shapes_of(lambda key, x, t: model.init(key, x, t, labels=None if model.label_dropout else LABELS), (3, 8, 8, 4), (3,))


@functools.cache
def params(form="original"):
    tensors_ = named(form)
    return imported(RULES[form](FIELDS, tensors_), tensors_, shapes(DiT(**SIZES)))


@functools.cache
def run(model):
    return jax.jit(lambda p, x, t, **given: model.apply({"params": p}, x, t, **given))


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_reference(form):
    got = run(DiT(**SIZES, **FORMS[form]))(params(form), x_of(), T, labels=LABELS)
    assert got.shape == (3, 8, 8, 8) and got.dtype == jnp.float32
    assert deviation(got, GOLDEN[form]) < CLOSE


def test_the_two_references_differ_in_frequencies_and_eps():
    """diffusers' time embedding alone moves the answer for the published weights by far more than a rounding."""
    got = run(DiT(**SIZES, freq_shift=1))(params("original"), x_of(), T, labels=LABELS)
    assert deviation(got, GOLDEN["original"]) > 100 * CLOSE
    got = run(DiT(**SIZES, eps=0.1))(params("original"), x_of(), T, labels=LABELS)  # 1e-5 and 1e-6 are too near to be told apart here
    assert deviation(got, GOLDEN["original"]) > 100 * CLOSE


@pytest.mark.parametrize("form", FORMS)
def test_weights_come_back(form):
    tensors_ = named(form)
    assert_comes_back(RULES[form](FIELDS, tensors_), tensors_, params(form))


def test_fields_from_shapes_and_from_a_config():
    from mmjax.convert.tensors import of_array

    found = convert.original_describe({k: of_array(v) for k, v in named("original").items()}, "a file")
    assert found == {k: v for k, v in FIELDS.items() if k != "size"} | {"mlp_ratio": 4.0, "heads": 1}  # 32 wide: not a published width
    config = {"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 3, "patch_size": 2}
    config |= {"sample_size": 8, "num_embeds_ada_norm": 10, "norm_eps": 1e-5}
    assert convert.diffusers_describe(config, "a file") == {**FIELDS, "freq_shift": 0, "eps": 1e-6}
    assert convert.diffusers_describe(config, "a file", compatible=True) == {**FIELDS, **FORMS["diffusers"]}


def test_another_table_of_positions_is_refused():
    changed = {**named("original"), "pos_embed": GOLDEN["positions"][:, ::-1]}
    with pytest.raises(UserError, match="pos_embed: it is not the table of sines and cosines"):
        imported(convert.original_rules(FIELDS, changed), changed, shapes(DiT(**SIZES)))


# --- classes -------------------------------------------------------------------------------------------------------------


def test_no_labels_are_the_null_class():
    f = run(DiT(**SIZES))
    np.testing.assert_array_equal(f(params(), x_of(), T), f(params(), x_of(), T, labels=jnp.full(3, 10)))


def test_labels_are_dropped_by_an_examples_key_alone():
    model = DiT(**{**SIZES, "label_dropout": 0.5})
    keys = jax.random.split(jax.random.key(1), 3)
    dropped = np.array([bool(jax.random.bernoulli(rng.named(key, "label"), 0.5)) for key in keys])
    assert dropped.any() and not dropped.all()
    labels = jnp.where(dropped, 10, LABELS)
    got = run(model)(params(), x_of(), T, labels=LABELS, keys=keys)
    np.testing.assert_allclose(got, run(model)(params(), x_of(), T, labels=labels), rtol=0, atol=1e-6)


# --- what it starts as, and ways of computing ----------------------------------------------------------------------------


def test_blocks_start_as_the_identity():
    """adaLN-Zero: without a head of 0 the answer is that of no blocks at all, whatever the time."""
    model = DiT(**SIZES, context=True)
    context = jnp.ones((3, 5, 6))
    p, _ = split_axes(model.init(jax.random.key(0), x_of(), T, labels=LABELS, context=context)["params"])
    assert not run(model)(p, x_of(), T, labels=LABELS, context=context).any()
    p["head"]["kernel"] = jnp.asarray(normal("head", p["head"]["kernel"].shape))
    got = run(model)(p, x_of(), T, labels=LABELS, context=context)
    bare = {k: v for k, v in p.items() if k != "blocks"}
    want = run(DiT(**{**SIZES, "depth": 0}, scan=False))(bare, x_of(), T[::-1], labels=LABELS)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_unrolled_and_recomputed():
    want = run(DiT(**SIZES))(params(), x_of(), T, labels=LABELS)
    got = run(DiT(**SIZES, scan=False, remat="full"))(unstack_params(params()), x_of(), T, labels=LABELS)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_a_context_is_looked_at():
    model = DiT(**SIZES, context=True)
    context = jnp.asarray(normal("context", (3, 5, 6)))
    drawn = {k: jnp.asarray(0.3 * normal(k, s.shape)) for k, s in _with_context(model, context).items()}
    p = tree.unflatten(drawn)
    got = run(model)(p, x_of(), T, labels=LABELS, context=context)
    other = run(model)(p, x_of(), T, labels=LABELS, context=context.at[1].add(1.0))
    changed = np.abs(np.asarray(got - other)).reshape(3, -1).max(1)
    assert changed[1] > 1e-3 and not changed[[0, 2]].any()


def _with_context(model, context):
    return shapes_of(lambda key, x, t: model.init(key, x, t, labels=LABELS, context=context), (3, 8, 8, 4), (3,))


def test_times_are_scaled():
    f = run(DiT(**SIZES, time_scale=1000.0))
    np.testing.assert_allclose(
        f(params(), x_of(), jnp.asarray([0.0, 0.25, 0.5])),
        run(DiT(**SIZES))(params(), x_of(), jnp.asarray([0.0, 250, 500])),
        rtol=0,
        atol=1e-5,
    )


def test_other_sizes_of_pictures():
    f = run(DiT(**SIZES))
    wide = jnp.concatenate([x_of(), x_of()], axis=2)
    assert f(params(), wide, T).shape == (3, 8, 16, 8)


def test_a_mesh_computes_what_one_device_does():
    model = DiT(**SIZES)
    x, t, labels = (jnp.concatenate([a, a[:1]]) for a in (x_of(), T, LABELS))
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    _, axes = split_axes(jax.eval_shape(lambda: model.init(jax.random.key(0), x, t, labels=labels))["params"])
    placed = jax.device_put(params(), sharding.params_shardings(params(), axes, mesh))
    with sharding.use(mesh):
        f = jax.jit(lambda p, x, t, labels: model.apply({"params": p}, x, t, labels=labels))
        got = f(placed, *(jax.device_put(a, sharding.batch_sharding(mesh)) for a in (x, t, labels)))
    np.testing.assert_allclose(got, run(model)(params(), x, t, labels=labels), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        ({"patch": 3}, {}, "^DiT takes images whose sides are multiples of its patch of 3, got 8 x 8"),
        ({"classes": 0}, {"labels": LABELS}, "^DiT was made without classes, and is given labels"),
        ({"label_dropout": 0.0}, {}, "^DiT of classes needs labels"),
        ({"context": True}, {}, "^DiT was made with context, and is given none"),
        ({}, {"context": jnp.ones((3, 2, 4))}, "^DiT was made without context, and is given one"),
    ],
)
def test_bad_input(change, given, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: DiT(**{**SIZES, **change}).init(jax.random.key(0), x_of(), T, **given))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("DiT-XL/3", "^config.model: there is no DiT 'DiT-XL/3'; did you mean 'DiT-XL/"),
        ({"patch": 2, "width": 30, "depth": 1, "heads": 4}, "^config.model: width 30 is to be a multiple"),
        ({"patch": 2, "width": 32, "depth": 1}, "^config.model lacks 'heads'"),
        ({"patch": 2, "widht": 32}, "^config.model: DiT has no field 'widht'; did you mean 'width'"),
    ],
)
def test_bad_fields(model, message):
    with pytest.raises(UserError, match=message):
        dit.build(model)


# Peebles and Xie 2023, table 1 (33M, 130M, 458M, 675M), exactly, without the fixed positions.
COUNTS = {
    "S": (32_865_056, 32_920_448, 33_142_016),
    "B": (130_315_808, 130_426_496, 130_869_248),
    "L": (457_840_672, 457_988_224, 458_578_432),
    "XL": (674_834_720, 675_000_704, 675_664_640),
}


@pytest.mark.parametrize("name", dit.VARIANTS)
def test_published_sizes(name):
    size, _, patch = name.partition("-")[2].partition("/")
    model = dit.build(name)
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 4)), jnp.zeros(1)))
    found, axes = split_axes(made["params"])
    assert tree.count(found) == COUNTS[size][(2, 4, 8).index(int(patch))]
    for path, names in tree.flatten(axes).items():
        assert set(names) <= set(sharding.RULES), path
