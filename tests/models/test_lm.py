"""The language model's published sizes, and that how it is computed changes nothing. What it computes: tests/convert/test_language.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import rng, sharding, tree
from mmjax.core.errors import UserError
from mmjax.core.sharding import RULES
from mmjax.layers import masks, rope, split_axes, unstack_params
from mmjax.models import lm
from tests.convert.language_cases import deviation
from tests.golden.weights import normal

CLOSE = 1e-5
TINY = {"vocab": 37, "length": 24, "width": 24, "depth": 2, "heads": 6, "kv_heads": 2, "mlp": 40}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 37, (3, 12)), jnp.int32)


def tiny(**how):
    return lm.build({**TINY, **how})


@pytest.fixture(scope="module")
def params():
    """Of the size of trained ones: at first all scores are nearly equal."""
    shapes, _ = shapes_of(tiny())
    draw = lambda path, x: jnp.asarray(normal(path, x.shape) * (0.3 if x.ndim > 1 else 0.1) + path.endswith("scale"))
    return tree.unflatten({path: draw(path, x) for path, x in tree.flatten(shapes).items()})


@pytest.fixture(scope="module")
def logits(params):
    return np.asarray(jax.jit(tiny().apply)({"params": params}, TOKENS))


def shapes_of(model):
    return split_axes(jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8), jnp.int32))["params"])


COUNTS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "mpt-1b": 1_311_442_944,
    "mpt-7b": 6_649_286_656,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "redpajama-3b": 2_775_864_320,
    "neox-20b": 20_554_567_680,
    # 12 D^2 a layer, a norm twice a layer and once more, and the table.
    "chinchilla-1.4b": 12 * 2048**2 * 24 + 2048 * 49 + 32000 * 2048,
    "chinchilla-7b": 12 * 4096**2 * 40 + 4096 * 81 + 32000 * 4096,
    "chinchilla-70b": 12 * 8192**2 * 80 + 8192 * 161 + 32000 * 8192,
}


def test_published_sizes():
    assert lm.VARIANTS.keys() == COUNTS.keys()
    for name, count in COUNTS.items():
        shapes, axes = shapes_of(lm.build({"variant": name}))
        assert tree.count(shapes) == count, name
        for path, names in tree.flatten(axes).items():
            assert set(names) <= set(RULES) and (names[:1] == ("layers",)) == ("blocks/" in path), path


def test_initial_values():
    """Radford et al. 2019, section 2.3: 0.02, and what goes into the sums of depth blocks with two each over the root of their number."""
    made = tree.flatten(split_axes(jax.jit(tiny(width=96, head_width=8).init)(jax.random.key(0), TOKENS)["params"])[0])
    for path, std in {"token/embedding": 0.02, "blocks/attn/q/kernel": 0.02, "blocks/mlp/up/kernel": 0.02}.items():
        assert float(made[path].std()) == pytest.approx(std, rel=0.05), path
    for path in ("blocks/attn/out/kernel", "blocks/mlp/down/kernel"):
        assert float(made[path].std()) == pytest.approx(0.02 / 4**0.5, rel=0.05), path


def test_scan_remat_and_dropout_by_key(params, logits):
    """The same draws and gradients unrolled and computed anew; one example's draws from its own key alone."""
    keys = rng.per_example(jax.random.key(0), jnp.arange(3))

    def outputs(params, **how):
        model = tiny(dropout=0.3, **how)

        def loss(table, keys):
            x = model.apply({"params": params | {"token": table}}, TOKENS, keys=keys)
            return jnp.square(x).mean(), x

        run = jax.jit(jax.grad(loss, has_aux=True))
        return *run(params["token"], keys), run(params["token"], keys[::-1])[1]

    want_grad, want, other = outputs(params)
    grad, got, _ = outputs(unstack_params(params), scan=False, remat="full")
    assert np.abs(want - logits).max() > 0.1 and deviation(got, np.asarray(want)) < CLOSE
    assert deviation(grad["embedding"], np.asarray(want_grad["embedding"])) < CLOSE
    assert deviation(other[1], np.asarray(want[1])) < CLOSE and np.abs(other - want)[::2].max() > 0.1


def test_dropout_reaches_both_branches(params):
    """What a block adds where the other branch gives nothing: 0, or twice what it is without dropout, half the time each."""
    x, keys = jnp.asarray(normal("x", (3, 12, 24))), rng.per_example(jax.random.key(0), jnp.arange(3))
    layer = jax.tree.map(lambda x: x[0], params["blocks"])
    run = jax.jit(lambda layer: [tiny(dropout=0.5).block().apply({"params": layer}, x, k) - x for k in (None, keys)])
    for branch, last in (("attn", "out"), ("mlp", "down")):
        off = {**layer, branch: {**layer[branch], last: jax.tree.map(jnp.zeros_like, layer[branch][last])}}
        plain, added = map(np.asarray, run(off))
        dropped = np.isclose(added, 0, atol=1e-6)
        assert dropped.mean() == pytest.approx(0.5, abs=0.06)
        np.testing.assert_allclose(added[~dropped], 2 * plain[~dropped], rtol=1e-4, atol=1e-5)


def test_packed_texts_are_as_if_alone(params, logits):
    """Two texts in a row, with positions that begin anew: segment and causal masks together."""
    segments = jnp.asarray([[1] * 5 + [2] * 7] * 3)
    positions = jnp.asarray([[*range(5), *range(7)]] * 3)
    packed = jnp.concatenate([TOKENS[:, :5], TOKENS[:, :7]], axis=1)
    got = jax.jit(tiny().apply)({"params": params}, packed, positions=positions, segments=segments)
    assert deviation(got[:, :5], logits[:, :5]) < CLOSE and deviation(got[:, 5:], logits[:, :7]) < CLOSE


def test_a_mask_stands_in_place_of_the_causal_one(params, logits):
    run = jax.jit(lambda mask: tiny().apply({"params": params}, TOKENS, mask=mask))
    assert deviation(run(masks.causal(12)), logits) < CLOSE
    prefix = np.asarray(run(masks.prefix(jnp.asarray([4, 1, 12]), 12)))
    assert deviation(prefix[1], logits[1]) < CLOSE  # a prefix of one token
    assert np.abs(prefix[0, 0] - logits[0, 0]).max() > 0.1 and np.abs(prefix[2, 0] - logits[2, 0]).max() > 0.1


def test_pieces_make_the_whole(params, logits):
    """As systems built on it use them: unbound blocks over stacked parameters, with and without a cache."""
    model, bound = tiny(), {"params": params}

    @jax.jit
    def run(params):
        places = jnp.arange(12)[None]
        x = model.apply(bound, TOKENS, places, method="embed")
        y, where, block = x, model.where(places), model.block()
        y = jax.lax.scan(lambda y, layer: (block.apply({"params": layer}, y, **where), None), x, params["blocks"])[0]
        cache, out = model.init_cache(3, 12), x
        start, places = jnp.zeros(3, jnp.int32), jnp.broadcast_to(places, (3, 12))
        for i in range(2):
            layer = jax.tree.map(lambda x, i=i: x[i], params["blocks"])
            out, _ = block.apply({"params": layer}, out, cache[i], start, **model.where(places, slots=12), method="cached")
        head = lambda m, x: m.head(m.finish(x))
        return model.apply(bound, y, method=head), model.apply(bound, out, method=head)

    for got in run(params):
        assert deviation(got, logits) < CLOSE


def test_cache():
    """Batch in front, key heads as they are, in the type that is asked for."""
    for dtype in (jnp.float32, jnp.bfloat16):
        cache = jax.eval_shape(lambda dtype=dtype: tiny().init_cache(3, 16, dtype))
        assert [{k: (x.shape, x.dtype) for k, x in layer.items()} for layer in cache] == [dict.fromkeys("kv", ((3, 2, 16, 4), dtype))] * 2


def test_on_a_mesh(params, logits):
    """Batch, widths and heads split over eight devices; two key heads do not split over the tensor axis of four."""
    model = tiny()
    mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "tensor": 4})
    shapes, axes = shapes_of(model)
    placed = jax.device_put(params, sharding.params_shardings(shapes, axes, mesh))
    with sharding.use(mesh):
        got = jax.jit(lambda params: model.apply({"params": params}, jnp.concatenate([TOKENS, TOKENS[:1]])))(placed)
    assert deviation(np.asarray(got)[:3], logits) < CLOSE


# Rotations and slopes.


def test_rotated_products_know_distances_alone():
    """A query at m and a key at n: their product is that of m - n and 0, and the entries that are not turned stay."""
    r = np.random.default_rng(0)
    q, k = (jnp.asarray(r.standard_normal((1, 8, 1, 10)), jnp.float32)[:, :1].repeat(8, 1) for _ in range(2))
    turned = [rope.rotate(x, *rope.angles(jnp.arange(8)[None] + shift, 6)) for x in (q, k) for shift in (0, 5)]
    for one, other in zip(turned[::2], turned[1::2], strict=True):
        np.testing.assert_array_equal(one[..., 6:], other[..., 6:])
    product = lambda a, b: np.einsum("lk,sk->ls", a[0, :, 0], b[0, :, 0])
    np.testing.assert_allclose(product(turned[0], turned[2]), product(turned[1], turned[3]), atol=1e-5)
    cos, sin = rope.angles(jnp.asarray([[3]]), 4, base=100.0, stretch=2.0)
    np.testing.assert_allclose(cos[0, 0], np.cos([1.5, 0.15]), rtol=1e-6)
    np.testing.assert_allclose(sin[0, 0], np.sin([1.5, 0.15]), rtol=1e-6)


def test_slopes():
    """Press et al., section 3: of eight heads 1/2 to 1/256. Six heads: every second one of eight first."""
    np.testing.assert_array_equal(rope.alibi_slopes(8), 0.5 ** np.arange(1, 9))
    np.testing.assert_array_equal(rope.alibi_slopes(6), 0.5 ** np.array([2, 4, 6, 8, 1, 3]))
    bias = rope.alibi(jnp.asarray([[4]]), jnp.arange(6)[None], 8)
    np.testing.assert_array_equal(bias[0, 1, 0], [-1, -0.75, -0.5, -0.25, 0, 0.25])


# What does not fit is said.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "gpt3"}, "variant is 'gpt3'; did you mean 'gpt2'"),
        ({"vocab": 5, "length": 5}, "config.model.lm lacks 'width'"),
        ({**TINY, "heads": 5}, "heads is 5, which must divide width 24 and be a multiple of kv_heads 2"),
        ({**TINY, "rope_theta": 1e4}, "LanguageModel has no field 'rope_theta'"),
    ],
)
def test_fields_that_do_not_fit(fields, message):
    with pytest.raises(UserError, match=message):
        lm.build(fields)


@pytest.mark.parametrize(
    ("fields", "length", "message"),
    [
        ({"positions": "rotary"}, 8, "model.positions is 'rotary'"),
        ({"residual": "after"}, 8, "model.residual is 'after'"),
        ({"norm": "batch"}, 8, "model.norm is 'batch'"),
        ({}, 25, "tokens have length 25, the language model takes at most 24"),
    ],
)
def test_values_that_are_not_known(fields, length, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(tiny(**fields).init, jax.random.key(0), jnp.zeros((1, length), jnp.int32))


def test_a_step_of_unrolled_parameters_copies_none(params):
    """By the compiled program's own count of bytes: stacked blocks are read, written one by one and read again."""
    model, step = tiny(), jax.jit(lambda params, cache: lm.forward(tiny(), params)(TOKENS[:, :1], jnp.zeros(3, jnp.int32), cache))
    apart, cache = lm.unrolled(params), model.init_cache(3, 8)
    blocks = sum(x.nbytes for x in jax.tree.leaves(params["blocks"]))
    bytes_of = lambda params: step.lower(params, cache).compile().cost_analysis()["bytes accessed"]
    assert bytes_of(params) - bytes_of(apart) > 1.5 * blocks
    assert lm.unrolled(apart) is apart
