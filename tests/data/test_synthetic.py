import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.synthetic import synthetic_batch

SPEC = {
    "image": jax.ShapeDtypeStruct((4, 3, 3, 1), jnp.float32),
    "raw": jax.ShapeDtypeStruct((4, 64), jnp.uint8),
    "text": {"tokens": jax.ShapeDtypeStruct((4, 16), jnp.int32), "half": jax.ShapeDtypeStruct((4,), jnp.bfloat16)},
}


def test_shapes_dtypes_and_ranges():
    batch = synthetic_batch(SPEC, 0, 0)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), batch) == jax.tree.map(lambda s: (s.shape, s.dtype), SPEC)
    assert set(np.unique(batch["text"]["tokens"])) == {0, 1}
    assert batch["raw"].max() > 200


def test_rows_follow_seed_and_cursor_alone():
    whole, later = synthetic_batch(SPEC, 0, 10), synthetic_batch(SPEC, 0, 12)
    np.testing.assert_array_equal(whole["image"][2:], later["image"][:2])
    np.testing.assert_array_equal(synthetic_batch(SPEC, 0, 10, rows=[3, 1])["image"], whole["image"][[3, 1]])
    assert not np.array_equal(synthetic_batch(SPEC, 1, 10)["image"], whole["image"])
