"""The safetensors format: 8 bytes of header length, a JSON header of types, shapes and byte ranges, and the bytes.

Read through the file's map, so a part of a tensor costs the reading of that part. In types numpy has no name for (bfloat16), too.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from mmjax.convert.tensors import DTYPES, Tensor, Tensors, positive_shape, some
from mmjax.core.errors import UserError

NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100 << 20  # bytes, the format's own bound
_SHARD = 5 << 30  # bytes, above which a set of tensors is written in several files


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, none read yet.

    Raises:
      UserError: a truncated or damaged file, with the tensor that shows it.
    """
    size = path.stat().st_size
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise UserError(f"{path}: no safetensors file, or truncated: its header would take {length} bytes of a file of {size}")
        text = f.read(length)
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        spans = {name: tuple(map(int, entry["data_offsets"])) for name, entry in entries.items()}
        kinds = {name: DTYPES[entry["dtype"]] for name, entry in entries.items()}
        shapes = {name: positive_shape(entry["shape"], f"{path}: tensor {name!r}") for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise UserError(f"{path}: the safetensors header is damaged ({type(e).__name__}: {str(e)[:80]})") from None
    data = size - 8 - length
    out, covered = {}, 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        want = math.prod(shapes[name]) * kinds[name].itemsize
        if begin != covered or end - begin != want:
            raise UserError(
                f"{path}: tensor {name!r} claims bytes {begin} to {end}, expected {want} from {covered} on; the file is damaged"
            )
        if end > data:
            raise UserError(f"{path}: truncated: tensor {name!r} ends at byte {end} of {data}")
        out[name] = Tensor(shapes[name], kinds[name], _reader(path, kinds[name], 8 + length + begin, shapes[name]))
        covered = end
    if covered != data:
        raise UserError(f"{path}: {data - covered} bytes belong to no tensor; the file is damaged")
    return {name: out[name] for name in entries}


def _reader(path: Path, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    return lambda: mapped(path, dtype, offset, math.prod(shape)).reshape(shape)


def mapped(path: Path, dtype: np.dtype, offset: int, count: int) -> np.ndarray:
    """`count` elements of a file from a byte on, mapped and not read."""
    if not count:
        return np.empty((0,), dtype)
    # As bytes: the map starts anywhere, and ml_dtypes' types cannot be asked of a map.
    return np.memmap(path, np.uint8, "r", offset, (count * dtype.itemsize,)).view(np.ndarray).view(dtype)


def write(path: Path, tensors: Mapping[str, Tensor | np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes one file, tensor by tensor: largest elements first, then by name, as the format's own library does. Whole or not at all."""
    order = sorted(tensors, key=lambda name: (-np.dtype(tensors[name].dtype).itemsize, name))
    header, offset = {}, 0
    if metadata:
        header["__metadata__"] = dict(metadata)
    for name in order:
        x = tensors[name]
        nbytes = math.prod(x.shape) * np.dtype(x.dtype).itemsize
        header[name] = {"dtype": NAMES[np.dtype(x.dtype)], "shape": list(x.shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                x = tensors[name]
                value = np.ascontiguousarray(x.read() if isinstance(x, Tensor) else x)
                f.write(value.reshape(-1).view(np.uint8).data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_set(folder: Path, stem: str, tensors: Tensors, metadata: Mapping[str, str] | None = None, limit: int = _SHARD) -> list[str]:
    """`stem`.safetensors, or beyond `limit` bytes `stem`-0000i-of-0000n.safetensors and an index, as Hugging Face shards. Returns names."""
    shards: list[list[str]] = [[]]
    room = limit
    for name, x in tensors.items():
        if shards[-1] and x.nbytes > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= x.nbytes
    if len(shards) == 1:
        write(folder / f"{stem}.safetensors", tensors, metadata)
        return [f"{stem}.safetensors"]
    files = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, names in zip(files, shards, strict=True):
        write(folder / file, {name: tensors[name] for name in names}, metadata)
    where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    index = {"metadata": {"total_size": sum(x.nbytes for x in tensors.values())}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return [f"{stem}.safetensors.index.json", *files]


def read_index(path: Path, read_file: Callable[[Path], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a set of files that an index.json names.

    Raises:
      UserError: a damaged index, a file that is missing, or one that lacks a tensor the index promises.
    """
    try:
        where = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(where.values()))
        # The index speaks of its own folder only.
        inside = all(isinstance(file, str) and Path(file).name == file for file in files)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path}: no index of weights ({type(e).__name__}: {str(e)[:80]})") from None
    if not inside:
        raise UserError(f"{path}: names files outside its folder: {some(files, 3)}")
    return {name: x for file in files for name, x in _promised(path, file, where, read_file).items()}


def _promised(index: Path, file: str, where: Mapping[str, str], read_file: Callable) -> dict[str, Tensor]:
    path = index.parent / file
    names = [name for name, at in where.items() if at == file]
    if not path.is_file():
        raise UserError(f"{index}: file {file!r}, with {len(names)} of the tensors, is missing")
    found = read_file(path)
    absent: Iterable[str] = [name for name in names if name not in found]
    if absent:
        raise UserError(f"{index}: {file!r} lacks tensors the index promises: {some(absent)}")
    return dict(found)
