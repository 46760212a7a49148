"""What makes a saved directory trustworthy: checksums of its arrays, CRCs of its files, and the manifest that holds both.

The arrays' checksums are taken from the live arrays when they are saved and compared with the restored ones, so they
cover everything between: serialisation, disk, and reading back. The files' CRCs cover every byte on disk, metadata included.
"""

import functools
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, UInt32

from mmjax.version import __version__

FORMAT = 1
NAME = "manifest.json"


class Damaged(Exception):
    """The bytes on disk are not the ones written. The message names the file or the array."""


# --- arrays -----------------------------------------------------------------------------------------------------------------


def _mix(h: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A bijection of 32-bit words: xor-shifts and odd factors can each be undone."""
    h = (h ^ (h >> 16)) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * np.uint32(0x846CA68B)
    return h ^ (h >> 16)


def _words(x: jax.Array) -> jax.Array:
    """The bits of `x` as uint32: one word an element, or a trailing axis of two for 8-byte elements."""
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    size = x.dtype.itemsize
    if size == 8:
        return lax.bitcast_convert_type(x, jnp.uint32)
    return lax.bitcast_convert_type(x, f"uint{8 * size}").astype(jnp.uint32)


@functools.partial(jax.jit, static_argnums=1)
def _partial_sum(x: jax.Array, shape: tuple[int, ...], offsets: list) -> UInt32[Array, ""]:
    """Sum mod 2^32 of the hashes of a block of an array of `shape` whose corner lies at `offsets`."""
    words = _words(x)
    if words.ndim > x.ndim:
        shape, offsets = (*shape, 2), [*offsets, 0]
    position, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        index = lax.broadcasted_iota(jnp.uint32, words.shape, axis) + jnp.uint32(offsets[axis])
        position, stride = position + index * np.uint32(stride % 2**32), stride * shape[axis]
    return jnp.sum(_mix(words ^ _mix(position)), dtype=jnp.uint32)


def _axes(spec: PartitionSpec, ndim: int) -> list[tuple[str, ...]]:
    """The mesh axes each dimension is split over."""
    entries = [*spec, *[None] * (ndim - len(spec))]
    return [() if a is None else (a,) if isinstance(a, str) else tuple(a) for a in entries]


def _block_sum(x: jax.Array, spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> UInt32[Array, ""]:
    """`_partial_sum` of this device's block under shard_map; zero where the block is a copy of another device's."""
    axes = _axes(spec, x.ndim)
    offsets = [lax.axis_index(a).astype(jnp.uint32) * x.shape[d] if a else 0 for d, a in enumerate(axes)]
    spare = [a for a in mesh.axis_names if not any(a in used for used in axes)]
    first = functools.reduce(jnp.logical_and, [lax.axis_index(a) == 0 for a in spare], jnp.bool_(True))
    return _partial_sum(x, shape, offsets) * first.astype(jnp.uint32)


@functools.lru_cache(maxsize=32)
def _meshed(mesh: Mesh, specs: tuple[PartitionSpec, ...], shapes: tuple[tuple[int, ...], ...]):
    """One program for arrays on a mesh: every device hashes its own blocks, then a single all-reduce of one word an array.

    One collective, since on a host that plays many devices programs with hundreds of them can starve each other.
    """

    def body(blocks):
        local = [_block_sum(x, spec, shape, mesh) for x, spec, shape in zip(blocks, specs, shapes, strict=True)]
        return lax.psum(jnp.stack(local), mesh.axis_names)

    return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(specs,), out_specs=PartitionSpec(), check_vma=False))


@jax.jit
def _single(arrays: tuple) -> UInt32[Array, "N"]:
    """The same for arrays that lie on one device."""
    return jnp.stack([_partial_sum(x, x.shape, [0] * x.ndim) for x in arrays])


def start_checksums(flat: Mapping[str, Any]) -> list[tuple[list[str], jax.Array]]:
    """Starts computing the checksum of every array where it lies, and returns without waiting; see `finish_checksums`.

    An array's checksum is the sum mod 2^32 over its words w at row-major global positions p of mix(w xor mix(p)), with mix a
    bijection of 32-bit words. For a fixed position it is injective in the word, so any change within one word changes the
    sum. Integer addition has no order, so the sum is the same on every mesh and number of hosts.

    Args:
      flat: path -> array of bool, integer or real dtype of 1, 2, 4 or 8 bytes; any shape, scalars and empty arrays included.
    """
    groups: dict[Any, list[str]] = {}
    for path, x in flat.items():
        sharding = getattr(x, "sharding", None)
        groups.setdefault(sharding.mesh if isinstance(sharding, NamedSharding) else sharding, []).append(path)
    out = []
    for mesh, paths in groups.items():
        arrays = tuple(flat[p] for p in paths)
        if isinstance(mesh, Mesh):
            sums = _meshed(mesh, tuple(x.sharding.spec for x in arrays), tuple(x.shape for x in arrays))(arrays)
        else:
            sums = _single(arrays)
        out.append((paths, sums))
    return out


def finish_checksums(started: list[tuple[list[str], jax.Array]]) -> dict[str, str]:
    """path -> checksum in eight hex digits; waits for the devices."""
    return {path: f"{int(word):08x}" for paths, sums in started for path, word in zip(paths, np.asarray(sums), strict=True)}


def describe(flat: Mapping[str, Any]) -> dict[str, dict]:
    """path -> {"shape", "dtype"} as the manifest writes them, of arrays or ShapeDtypeStructs."""
    return {path: {"shape": list(x.shape), "dtype": np.dtype(x.dtype).name} for path, x in flat.items()}


# --- files ------------------------------------------------------------------------------------------------------------------


def _walk(directory: epath.Path, prefix: str = "") -> list[str]:
    """Relative paths of all files below `directory`, sorted."""
    found = []
    for child in directory.iterdir():
        name = f"{prefix}{child.name}"
        found += _walk(child, name + "/") if child.is_dir() else [name]
    return sorted(found)


def _fingerprint(path: epath.Path) -> list[int]:
    """[bytes, CRC-32] of a file. CRC-32 changes with any burst of up to 32 flipped bits."""
    size, crc = 0, 0
    with path.open("rb") as f:
        while chunk := f.read(1 << 22):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]


def files(directory: epath.Path) -> dict[str, list[int]]:
    """Relative path -> [bytes, CRC-32] of every file below `directory` but the manifest itself."""
    names = [n for n in _walk(directory) if n != NAME]
    with ThreadPoolExecutor(4) as pool:  # zlib lets go of the interpreter lock
        return dict(zip(names, pool.map(lambda n: _fingerprint(directory / n), names), strict=True))


def verify_files(directory: epath.Path, manifest: Mapping[str, Any]) -> None:
    """Compares every file with the manifest.

    Raises:
      Damaged: naming the first file that is missing, not ours, of another length, or of other content.
    """
    there, expected = files(directory), manifest["files"]
    for name in sorted(expected.keys() | there.keys()):
        if name not in there:
            raise Damaged(f"file {name} is missing")
        if name not in expected:
            raise Damaged(f"file {name} was not there when the checkpoint was written")
        (size, crc), (want_size, want_crc) = there[name], expected[name]
        if size != want_size:
            raise Damaged(f"file {name} has {size} bytes, {want_size} were written")
        if crc != want_crc:
            raise Damaged(f"file {name}: its content has changed since it was written (CRC-32 {crc:08x}, was {want_crc:08x})")


def sync(path: epath.Path, *, below: bool = True) -> None:
    """Flushes a local directory (and with `below` all that is in it) to disk; does nothing on remote storage."""
    root = os.fspath(path)
    if "://" in root:
        return
    inside = [os.path.join(parent, n) for parent, folders, names in os.walk(root) for n in names + folders] if below else []
    for name in [*inside, root]:
        handle = os.open(name, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# --- the manifest -----------------------------------------------------------------------------------------------------------


def _dump(body: Mapping[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, indent=1) + "\n"


def write(directory: epath.Path, arrays: Mapping[str, dict], *, frozen: str | None, meta: Mapping[str, Any]) -> dict:
    """Writes `manifest.json` over the files now in `directory` and returns it.

    Args:
      arrays: path -> {"shape", "dtype", "checksum"}.
      frozen: the checksum of the manifest of the frozen leaves that belong to this checkpoint.
      meta: JSON values kept for the reader.
    """
    body = {"format": FORMAT, "mmjax": __version__, "arrays": arrays, "files": files(directory), "frozen": frozen, "meta": meta}
    body["checksum"] = hashlib.sha256(_dump(body).encode()).hexdigest()
    (directory / NAME).write_text(_dump(body))
    return json.loads(_dump(body))


def read(directory: epath.Path) -> dict[str, Any]:
    """The manifest of a checkpoint directory.

    Raises:
      Damaged: it is missing, or not the bytes that were written (any flipped bit, white space included).
    """
    path = directory / NAME
    if not path.exists():
        raise Damaged(f"file {NAME} is missing")
    try:
        raw = path.read_bytes()
        body = json.loads(raw)
        checksum = body.pop("checksum")
        intact = checksum == hashlib.sha256(_dump(body).encode()).hexdigest()
        body["checksum"] = checksum
        intact = intact and _dump(body).encode() == raw
    except (ValueError, KeyError, AttributeError, TypeError) as e:
        raise Damaged(f"file {NAME} cannot be read ({type(e).__name__})") from e
    if not intact:
        raise Damaged(f"file {NAME} does not match its own checksum")
    return body
