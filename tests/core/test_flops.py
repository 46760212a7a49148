"""Counted operations against XLA's own count of the unrolled program, and against closed forms."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from mmjax.core import device_peaks, flops

B, T, D, HEADS, DEPTH = 2, 16, 192, 4, 12
# Forward matmuls of one layer: qkv, output and two feed-forward projections, then scores and mixing.
LAYER = 2 * B * T * D * (3 * D + D + 4 * D + 4 * D) + 2 * (2 * B * T * T * D)


def shape(*dims, dtype="float32"):
    return jax.ShapeDtypeStruct(dims, dtype)


def xla(fn, *args, compiled=True):
    """XLA's count of operations, transcendental ones apart: of the program as written, or after optimization (but of machine code)."""
    lowered = jax.jit(fn).lower(*args)
    quick = {"xla_backend_optimization_level": 0}
    analysis = lowered.compile(compiler_options=quick).cost_analysis() if compiled else lowered.cost_analysis()
    return analysis.get("flops", 0), analysis.get("transcendentals", 0)


def layer(x, w):
    def norm(x):
        return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)

    q, k, v = jnp.moveaxis((norm(x) @ w["qkv"]).reshape(B, T, 3, HEADS, D // HEADS), 2, 0)
    attention = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k), -1)
    x = x + jnp.einsum("bhts,bshd->bthd", attention, v).reshape(B, T, D) @ w["out"]
    return x + jnp.tanh(norm(x) @ w["up"]) @ w["down"]


def stack(w, x, *, scan, remat):
    body = jax.checkpoint(layer) if remat else layer
    if scan:
        return jnp.square(jax.lax.scan(lambda c, w: (body(c, w), None), x, w)[0]).mean()
    for layer_weights in w:
        x = body(x, layer_weights)
    return jnp.square(x).mean()


WEIGHTS = {
    "qkv": shape(DEPTH, D, 3 * D),
    "out": shape(DEPTH, D, D),
    "up": shape(DEPTH, D, 4 * D),
    "down": shape(DEPTH, 4 * D, D),
}
UNSTACKED = [jax.tree.map(lambda a: shape(*a.shape[1:]), WEIGHTS)] * DEPTH
X = shape(B, T, D)


@pytest.mark.parametrize(
    "spec, a, b",
    [
        ("ij,jk->ik", (8, 16), (16, 4)),
        ("bij,bjk->bik", (3, 8, 16), (3, 16, 4)),
        ("bijh,bkh->bijk", (2, 3, 4, 5), (2, 6, 5)),
    ],
)
def test_matmul_is_exact(spec, a, b):
    fn, args = (lambda a, b: jnp.einsum(spec, a, b)), (shape(*a), shape(*b))
    assert flops.count(fn, *args).matmul_flops == flops.count(fn, *args).flops == xla(fn, *args)[0]


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (0, 3))])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("groups, dilation", [(1, 1), (1, 2), (4, 1), (2, 2)])
def test_convolution_and_its_gradients_are_exact(padding, stride, groups, dilation):
    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def pulled_back(x, kernel, y):  # linear in every argument: nothing but convolutions
        return jax.vjp(conv, x, kernel)[1](y)

    x, kernel = shape(2, 9, 10, 4), shape(3, 2, 4 // groups, 8)
    y = jax.eval_shape(conv, x, kernel)
    for fn, args in ((conv, (x, kernel)), (pulled_back, (x, kernel, y))):
        assert flops.count(fn, *args).matmul_flops == xla(fn, *args, compiled=False)[0]


def test_same_convolution_by_hand():
    # 8x8 image, 3x3 kernel, one pixel of padding: 3 * 8 - 2 taps an axis fall on the image.
    cost = flops.count(lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME"), shape(2, 3, 8, 8), shape(5, 3, 3, 3))
    assert cost.flops == 2 * 2 * 3 * 5 * 22 * 22


@pytest.mark.parametrize("remat", [False, True])
def test_scanned_stack_equals_closed_form(remat):
    forward = flops.count(lambda w, x: stack(w, x, scan=True, remat=remat), WEIGHTS, X)
    assert forward.matmul_flops == DEPTH * LAYER
    backward = flops.count(jax.grad(lambda w, x: stack(w, x, scan=True, remat=remat)), WEIGHTS, X)
    # Twice the forward for two operands, once more to compute it again (all but the last product, which no derivative needs).
    assert backward.matmul_flops == DEPTH * (3 * LAYER + (LAYER - 2 * B * T * D * 4 * D) * remat)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_scanned_stack_agrees_with_xla_unrolled(remat, grad):
    def fn(scan):
        loss = lambda w, x: stack(w, x, scan=scan, remat=remat)
        return jax.grad(loss, (0, 1)) if grad else loss

    ours = flops.count(fn(scan=True), WEIGHTS, X)
    as_written, transcendentals = xla(fn(scan=False), UNSTACKED, X, compiled=False)
    assert ours.flops == pytest.approx(as_written, rel=1e-5)
    assert ours.transcendentals == pytest.approx(transcendentals, rel=1e-2)
    if grad and remat:
        compiled, _ = xla(fn(scan=False), UNSTACKED, X)
        assert ours.flops == pytest.approx(compiled, rel=0.03)  # fusion computes some elementwise work twice
        once, _ = xla(fn(scan=True), WEIGHTS, X)
        assert once < ours.flops / 5  # the reason this module exists
    assert not ours.caveats


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x + 1,
        lambda x: jnp.where(x > 0, x, 0),
        lambda x: x**5,
        lambda x: x.sum(),
        lambda x: x.max(1),
        lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 2), (2, 2), "VALID"),
        lambda x: jnp.exp(x) / jnp.sqrt(x),
        lambda x: x.T.reshape(-1)[::2],
        lambda x: x.astype("int32") * 3,
        lambda x: x.at[jnp.array([1, 2])].add(1.0),
    ],
)
def test_elementwise_and_reductions_are_xlas(fn):
    cost = flops.count(fn, shape(8, 16))
    ours, theirs = (cost.flops, cost.transcendentals), xla(fn, shape(8, 16), compiled=False)
    assert ours == pytest.approx(theirs, abs=8)  # XLA also counts the comparisons and sums of a few indices


def test_random_bits_are_counted():
    def draw(words):
        return jax.random.normal(jax.random.wrap_key_data(words), (4096,))

    ours = flops.count(lambda words: jax.random.bits(jax.random.wrap_key_data(words), (4096,)), shape(2, dtype="uint32"))
    assert ours.flops == pytest.approx(
        xla(lambda w: jax.random.bits(jax.random.wrap_key_data(w), (4096,)), shape(2, dtype="uint32"))[0], rel=0.01
    )
    assert not flops.count(draw, shape(2, dtype="uint32")).caveats


def test_wrappers_change_nothing():
    @jax.custom_vjp
    def custom(x, w):
        return x @ w

    custom.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, y: (y @ r[1].T, r[0].T @ y))
    args, product = (shape(4, 8), shape(8, 8)), 2 * 4 * 8 * 8
    for fn in (jax.jit(lambda x, w: x @ w), jax.checkpoint(lambda x, w: x @ w), custom, jax.jit(jax.jit(custom))):
        assert flops.count(fn, *args).flops == product
    pulled = flops.count(lambda x, w, y: jax.vjp(custom, x, w)[1](y), *args, shape(4, 8))
    assert pulled.matmul_flops == 2 * product  # the forward product is dead code


def test_dead_code_is_not_counted():
    def fn(x):
        _, unused = jax.jit(lambda x: (x + 1, x @ x))(x)
        del unused
        carry, _ = jax.lax.scan(lambda c, _: ((c[0] + 1, c[1] @ c[1]), c[1] @ c[1]), (x, x), length=5)
        return carry[0]

    assert flops.count(fn, shape(8, 8)).flops == 5 * 64


def test_a_carry_needed_only_by_the_next_trip_is_counted():
    def fn(x):
        (out, _), _ = jax.lax.scan(lambda c, _: ((c[0] + c[1], c[1] @ c[1]), None), (x, x), length=5)
        return out

    assert flops.count(fn, shape(8, 8)).flops == 5 * (64 + 2 * 8**3)


def test_nested_scans_multiply():
    def inner(c):
        return jax.lax.scan(lambda c, _: (c @ c, None), c, length=3)[0]

    cost = flops.count(lambda x: jax.lax.scan(lambda c, _: (inner(c), None), x, length=4)[0], shape(8, 8))
    assert cost.flops == 12 * 2 * 8**3


def test_cond_takes_the_dearer_branch_and_while_is_flagged():
    x = shape(8, 8)
    assert flops.count(lambda x, p: jax.lax.cond(p, lambda x: x @ x, lambda x: x + x, x), x, shape(dtype="bool")).matmul_flops == 2 * 8**3
    loop = flops.count(lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 3, lambda x: x @ x, x), x)
    assert (loop.matmul_flops, loop.unbounded_loops) == (2 * 8**3, 1)
    assert "while loop" in loop.caveats[0]
    assert not flops.count(lambda x: jax.lax.fori_loop(0, 7, lambda i, x: x @ x, x), x).caveats


def test_shard_map_counts_every_device():
    n = jax.device_count()
    mesh = jax.make_mesh((n,), ("data",), axis_types=(AxisType.Auto,))
    fn = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(PartitionSpec("data"), PartitionSpec()), out_specs=PartitionSpec("data"))
    assert flops.count(fn, shape(8 * n, 4), shape(4, 4)).flops == 2 * 8 * n * 4 * 4


def test_pallas_grid_multiplies():
    pl = pytest.importorskip("jax.experimental.pallas")

    def kernel(x, o):
        o[...] = x[...] @ x[...]

    block = pl.BlockSpec((8, 8), lambda i: (i, 0))
    fn = pl.pallas_call(kernel, out_shape=shape(32, 8), grid=(4,), in_specs=[block], out_specs=block, interpret=True)
    assert flops.count(fn, shape(32, 8)).flops == 4 * 2 * 8**3


def test_what_has_no_known_cost_is_named():
    cost = flops.count(lambda x: jnp.linalg.svd(x)[1].sum(), shape(8, 8))
    assert "svd" in cost.uncounted and "svd" in cost.caveats[0]
    host = flops.count(lambda x: jax.pure_callback(np.sin, x, x), shape(8, 8))
    assert host.uncounted == {"pure_callback"}


def test_bytes():
    cost = flops.count(lambda x, i: x[i].astype("bfloat16"), shape(8, 4), shape(3, dtype="int32"))
    assert (cost.argument_bytes, cost.output_bytes) == (8 * 4 * 4 + 3 * 4, 3 * 4 * 2)


@pytest.mark.parametrize(
    "kind, dtype, tera",
    [
        ("TPU v4", "bfloat16", 275),
        ("TPU v4 lite", "bfloat16", 138),
        ("TPU v5 lite", "bfloat16", 197),
        ("TPU v5p", "bfloat16", 459),
        ("TPU v6 lite", "bfloat16", 918),
        ("NVIDIA A100-SXM4-80GB", "float32", 156),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5),
        ("NVIDIA H100 NVL", "bfloat16", 835.5),
        ("NVIDIA H200", "bfloat16", 989.5),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40S", "bfloat16", 362.05),
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("cpu", "float32", None),
        ("TPU v99", "bfloat16", None),
    ],
)
def test_peaks(kind, dtype, tera):
    assert device_peaks.peak(kind, dtype) == (None if tera is None else tera * 1e12)


def test_utilisation():
    devices = [mock.Mock(spec=jax.Device, device_kind="TPU v4")] * 4
    assert device_peaks.utilisation(275e12, 0.5, devices) == pytest.approx(0.5)
    assert device_peaks.utilisation(1e12, 1.0, jax.devices("cpu")) is None
    assert device_peaks.utilisation(1e12, 1.0, []) is None
