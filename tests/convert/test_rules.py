"""The engine: every op undoes itself, every tensor and leaf has one rule, and a device is given what it holds."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.convert import safetensors
from mmjax.convert.rules import Rule, constant, conv, export, identity, leaves, patches, place, reshape, split, tied, transpose
from mmjax.convert.tensors import Tensor, of_array
from mmjax.core import sharding
from mmjax.core.errors import UserError

OPS = {
    "identity": (identity, [(3, 4)], [(3, 4)]),
    "transpose": (transpose, [(3, 4)], [(4, 3)]),
    "conv": (conv, [(5, 2, 3, 4)], [(3, 4, 2, 5)]),
    "reshape": (reshape((1, 6, 2), (6, 2)), [(1, 6, 2)], [(6, 2)]),
    "patches": (patches(4, 3), [(5, 3, 4, 4)], [(48, 5)]),
    "split": (split(3, transpose), [(12, 5)], [(5, 4)] * 3),
    "tied": (tied(2), [(3,), (3,)], [(3,)]),
}


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def shapes_of(**paths):
    return {path.replace("__", "/"): jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in paths.items()}


def tensors_of(**named):
    return {name.replace("__", "."): of_array(x) for name, x in named.items()}


@pytest.mark.parametrize("name", OPS)
def test_inverse_undoes_forward(name):
    op, theirs, ours = OPS[name]
    given = [numbers(*theirs[0])] * len(theirs) if name == "tied" else [numbers(*shape) for shape in theirs]
    made = op.forward(*given)
    assert [x.shape for x in made] == ours
    for a, b in zip(op.inverse(*made), given, strict=True):
        np.testing.assert_array_equal(a, b)


def test_patches_are_the_convolution():
    """An independent sum over one patch."""
    kernel, image = numbers(2, 3, 4, 4), numbers(4, 4, 3)[::-1]
    flat = image.reshape(-1) @ patches(4, 3).forward(kernel)[0]
    np.testing.assert_allclose(flat, np.einsum("ochw,hwc->o", kernel, image), rtol=1e-6)


def test_layers_are_stacked_and_taken_apart():
    sources = tensors_of(h__0__w=numbers(2, 3), h__1__w=10 + numbers(2, 3), w=numbers(3))
    both = [Rule("h.{i}.w", "blocks/w", transpose), Rule("w", "w", identity)]
    found = leaves(both, sources, shapes_of(blocks__w=(2, 3, 2), w=(3,)), "file")
    np.testing.assert_array_equal(found["blocks/w"][...], np.stack([numbers(2, 3).T, 10 + numbers(2, 3).T]))
    np.testing.assert_array_equal(found["blocks/w"][1, 2:], 10 + numbers(2, 3).T[2:])
    back = export(both, found)
    assert back.keys() == sources.keys()
    for name, x in sources.items():
        assert (back[name].shape, back[name].dtype) == (x.shape, x.dtype)
        np.testing.assert_array_equal(back[name].read(), x.read())


def test_layers_may_count_from_one_and_lie_unrolled():
    sources = tensors_of(h__1__w=numbers(3), h__2__w=numbers(3) + 5)
    rule = [Rule("h.{i+1}.w", "a/blocks/w", identity)]
    stacked = leaves(rule, sources, shapes_of(a__blocks__w=(2, 3)), "file")
    single = leaves(rule, sources, shapes_of(a__blocks_0__w=(3,), a__blocks_1__w=(3,)), "file")
    np.testing.assert_array_equal(stacked["a/blocks/w"][1], numbers(3) + 5)
    np.testing.assert_array_equal(single["a/blocks_1/w"][...], numbers(3) + 5)
    assert export(rule, {path: np.asarray(x) for path, x in single.items()}).keys() == sources.keys()


def test_one_error_lists_all_that_is_wrong():
    sources = tensors_of(**{f"x{i}": numbers(2) for i in range(12)}, a=numbers(4, 3))
    wanted = [Rule("a", "a", transpose), Rule("b", "b", transpose), Rule("h.{i}", "blocks/c", identity)]
    with pytest.raises(UserError) as e:
        leaves(wanted, sources, shapes_of(a=(4, 3), b=(2, 5), blocks__c=(2, 7)), "some/file")
    text = str(e.value)
    assert text.startswith("some/file: ") and "\n" not in text
    assert "3 missing: b [5,2], h.0 [7], h.1 [7]; 1 misshapen: a float32[4,3] where [3,4] is expected; 12 left over: x0 float32[2]," in text
    assert text.endswith("x9 float32[2], and 2 more")


def test_rules_that_do_not_cover_a_model_are_a_mistake_of_ours():
    sources, shapes = tensors_of(a=numbers(2)), shapes_of(a=(2,), b=(2,))
    with pytest.raises(ValueError, match=r"every leaf once: \['b'\]"):
        leaves([Rule("a", "a", identity)], sources, shapes, "file")
    with pytest.raises(ValueError, match=r"every leaf once: \['a', 'b'\]"):
        leaves([Rule("a", "a", identity), Rule("b", "a", identity)], sources, shapes, "file")
    with pytest.raises(ValueError, match=r"read a tensor twice: \['a'\]"):
        leaves([Rule("a", "a", identity), Rule("a", "b", identity)], sources, shapes, "file")


def test_constants_are_held_against_what_they_must_be():
    def load(value, x):
        return leaves([Rule("a", "a", identity), Rule("n", (), constant(value))], tensors_of(a=numbers(2), n=x), shapes_of(a=(2,)), "file")

    made = [Rule("a", "a", identity), Rule("n", (), constant(np.arange(3)))]
    np.testing.assert_array_equal(export(made, load(np.arange(3), np.arange(3)))["n"].read(), np.arange(3))
    assert export([Rule("a", "a", identity), Rule("n", (), constant(None))], load(None, np.arange(3))).keys() == {"a"}
    with pytest.raises(UserError, match="file: n: it is not the constant expected there"):
        load(np.arange(3), np.arange(3) + 1)


def test_tied_tensors_must_be_equal():
    rule = [Rule(("a", "b"), "a", tied(2))]
    found = leaves(rule, tensors_of(a=numbers(3), b=numbers(3)), shapes_of(a=(3,)), "file")
    assert export(rule, found).keys() == {"a", "b"}
    with pytest.raises(UserError, match="file: a, b: the tensors are not equal"):
        leaves(rule, tensors_of(a=numbers(3), b=numbers(3) + 1), shapes_of(a=(3,)), "file")["a"][...]


def test_types_are_cast_and_overflow_is_said():
    sources = {"a": of_array(np.array([1.0, 70000.0], np.float32))}
    load = lambda dtype: leaves([Rule("a", "a", identity)], sources, shapes_of(a=(2,)), "file", dtype)["a"][...]
    assert load(jnp.bfloat16).dtype == jnp.bfloat16
    with pytest.raises(UserError, match="file: a does not fit in float16; load it in float32 or bfloat16"):
        load(np.float16)


def test_what_is_read_is_a_copy():
    x = numbers(3)
    leaf = leaves([Rule("a", "a", identity)], {"a": of_array(x)}, shapes_of(a=(3,)), "file")["a"]
    part = leaf[...]
    x[:] = -1
    assert part[2] == 2


def test_a_device_is_given_what_it_holds_and_no_more_is_read():
    """A leaf of 8 layers split over 8 devices reads every tensor once; one that all hold is read once as well."""
    read = []

    def lazy(name, x):
        return Tensor(x.shape, x.dtype, lambda: read.append(name) or x)

    sources = {f"h.{i}": lazy(i, numbers(4, 6) + 100 * i) for i in range(8)}
    leaf = leaves([Rule("h.{i}", "blocks/w", transpose)], sources, shapes_of(blocks__w=(8, 6, 4)), "file")["blocks/w"]
    assert not read
    mesh = sharding.make_mesh({"fsdp": 8})
    want = np.stack([numbers(4, 6).T + 100 * i for i in range(8)])
    split_ = place(leaf, NamedSharding(mesh, PartitionSpec("fsdp")))
    np.testing.assert_array_equal(split_, want)
    assert sorted(read) == list(range(8)) and split_.addressable_shards[0].data.shape == (1, 6, 4)
    read.clear()
    np.testing.assert_array_equal(place(leaf, NamedSharding(mesh, PartitionSpec())), want)
    assert sorted(read) == list(range(8))
    read.clear()
    pairs = place(leaf, NamedSharding(sharding.make_mesh({"data": 2, "fsdp": 4}), PartitionSpec("fsdp")))
    np.testing.assert_array_equal(pairs, want)
    assert sorted(read) == list(range(8))  # though two devices hold each part
    np.testing.assert_array_equal(place(leaf, None), want)


def test_memory_is_that_of_the_largest_leaf(tmp_path):
    """Not of the file: with 40 leaves of 2 MB placed and dropped one by one, the peak stays at a few of them."""
    safetensors.write(tmp_path / "a.safetensors", {f"w{i}": np.zeros((500, 1000), np.float32) for i in range(40)})
    sources = safetensors.read(tmp_path / "a.safetensors")
    named = [Rule(f"w{i}", f"w{i}", transpose) for i in range(40)]
    found = leaves(named, sources, {f"w{i}": jax.ShapeDtypeStruct((1000, 500), jnp.float32) for i in range(40)}, "file")
    tracemalloc.start()
    for leaf in found.values():
        place(leaf, None).block_until_ready()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 2_000_000, peak
