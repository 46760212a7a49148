"""Random batches of a task's shapes, for dry runs and benchmarks: no source, no decoding."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core import tree


def synthetic_batch(
    batch_spec: Mapping[str, Any], seed: int, cursor: int, rows: Sequence[int] | np.ndarray | None = None
) -> dict[str, Any]:
    """Numpy arrays of `batch_spec`'s shapes and dtypes; row r is a function of (seed, cursor + r) alone.

    Floats are standard normal, uint8 covers 0..255 (images), other integers are 0 or 1 (valid as token, label or flag whatever
    the vocabulary), booleans are fair coins.

    Args:
      batch_spec: nested dict of `jax.ShapeDtypeStruct`, leading axis = examples of the global batch.
      cursor: examples drawn before this batch.
      rows: this host's row numbers in the global batch; default all.
    """
    flat = tree.flatten(batch_spec)
    count = next(iter(flat.values())).shape[0] if flat else 0
    rows = range(count) if rows is None else rows
    out: dict[str, list[np.ndarray]] = {path: [] for path in flat}
    for row in rows:
        rng = np.random.Generator(np.random.Philox(key=[seed, cursor + row]))
        for path, spec in flat.items():
            out[path].append(_draw(rng, spec.shape[1:], np.dtype(spec.dtype)))
    return tree.unflatten({path: np.stack(values) for path, values in out.items()})


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if dtype == np.uint8:
        return rng.integers(0, 256, shape, np.uint8)
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape, np.float32).astype(dtype)
