"""Runs a predict function over a whole split or a list of texts, in batches spread over the mesh."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int, Int64, Num

from mmjax.core.sharding import local_rows, put_batch
from mmjax.core.types import Params
from mmjax.data.loader import eval_batches
from mmjax.data.source import Source
from mmjax.data.transforms import Transform


def pad_to_mesh(batch_size: int, mesh: Mesh) -> int:
    """The smallest multiple of the mesh's batch ways that holds `batch_size`."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-batch_size // ways) * ways


def compile_over(mesh: Mesh, fn: Callable) -> Callable:
    """jit of `fn(params, *x)` whose result every process holds whole."""
    return jax.jit(fn, out_shardings=NamedSharding(mesh, PartitionSpec()))


def split(
    fn: Callable, params: Params, source: Source, transform: Transform, keys: tuple[str, str], batch_size: int, mesh: Mesh
) -> tuple[Num[np.ndarray, "N *d"], Num[np.ndarray, "N *e"], Int64[np.ndarray, "N"]]:
    """`fn(params, example[keys[0]])`, `example[keys[1]]` and the record's number, for all N sound records of a source, in its order,
    on every process. Bad records are left out.

    `fn` comes from `compile_over`; `batch_size` must split over the mesh (`pad_to_mesh`).

    Raises:
      UserError: every record is bad.
    """
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    found, start = [], 0
    for batch in eval_batches(source, transform, batch_size=batch_size, rows=local_rows(batch_size, mesh)):
        x, target, mask = (put_batch(batch[k], batch_size, mesh) for k in (*keys, "_mask"))
        out, (target, mask) = np.asarray(fn(params, x)), jax.device_get(whole((target, mask)))
        found.append((out[mask > 0], target[mask > 0], start + np.flatnonzero(mask)))
        start += batch_size
    out, target, places = (np.concatenate(x) for x in zip(*found, strict=True))
    return out, target, places


def left_out(source: Source, places: Int64[np.ndarray, "N"]) -> dict[str, float]:
    """`bad_samples`, how many of the source's records an evaluation did without; no entry where it used them all."""
    return {"bad_samples": float(len(source) - len(places))} if len(places) < len(source) else {}


def unit(x: Float[np.ndarray, "*n E"]) -> Float[np.ndarray, "*n E"]:
    """Embeddings scaled to length 1, so that products are cosines; zeros stay zeros."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.finfo(x.dtype).tiny)


def texts(fn: Callable, params: Params, tokens: Int[np.ndarray, "N L"], batch_size: int, mesh: Mesh) -> Float[np.ndarray, "N E"]:
    """Embeddings of N token rows, in padded batches of `batch_size`."""
    return np.concatenate(list(rows(fn, params, (tokens,), batch_size, mesh)))


def rows(
    fn: Callable, params: Params, arrays: Sequence[Num[np.ndarray, "N ..."]], batch_size: int, mesh: Mesh
) -> Iterator[Num[np.ndarray, "b ..."]]:
    """`fn(params, *rows of the arrays)` for N rows, batch after batch, on every process; the last batch is padded, and cut again."""
    mine = local_rows(batch_size, mesh)
    for start in range(0, len(arrays[0]), batch_size):
        chunks = [a[start : start + batch_size] for a in arrays]
        count = len(chunks[0])
        padded = [np.concatenate([c, np.repeat(c[-1:], batch_size - count, axis=0)]) for c in chunks]
        yield np.asarray(fn(params, *(put_batch(p[mine], batch_size, mesh) for p in padded)))[:count]
