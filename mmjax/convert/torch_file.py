"""PyTorch's .pt, .pth, .ckpt and .bin: a zip of one pickle, read as data (`pickles`), and one uncompressed entry a storage, mapped.

State dicts, training checkpoints with one inside, and TorchScript archives such as OpenAI's.
"""

import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mmjax.convert import pickles
from mmjax.convert.pickles import Object, TensorView
from mmjax.convert.safetensors import mapped
from mmjax.convert.tensors import Tensor, some
from mmjax.core.errors import UserError

STORAGES = {
    "DoubleStorage": np.dtype("float64"),
    "FloatStorage": np.dtype("float32"),
    "HalfStorage": np.dtype("float16"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("int64"),
    "IntStorage": np.dtype("int32"),
    "ShortStorage": np.dtype("int16"),
    "CharStorage": np.dtype("int8"),
    "ByteStorage": np.dtype("uint8"),
    "BoolStorage": np.dtype("bool"),
}
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training loops store the weights
_MAX_PICKLE = 256 << 20  # bytes; the pickle holds names and shapes only
_MAX_MODULES = 1_000_000


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by their names in the state dict, of a row of tensors by their places in it ("0", "1"); none read yet.

    Raises:
      UserError: a file of before PyTorch 1.6, one whose pickle does more than describe tensors, or a damaged one.
    """
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as f:
            old = f.read(2)[:1] == b"\x80"
        if old:
            raise UserError(
                f"{path}: a bare pickle, PyTorch's format of before 1.6, which cannot be read without running it. Where you trust it, "
                "convert it: torch.save(torch.load(OLD, map_location='cpu', weights_only=True), NEW)"
            )
        raise UserError(f"{path}: no PyTorch file (no zip archive), or truncated")
    archive = _Archive(path)
    tensors = {name: archive.tensor(name, view) for name, view in _state_dict(archive.load_pickle(), path)}
    if not tensors:
        raise UserError(f"{path}: holds no tensors")
    return tensors


def _state_dict(top: Any, path: Path) -> Iterator[tuple[str, TensorView]]:
    if isinstance(top, Object):
        return _walk(top)
    if isinstance(top, tuple | list) and top and all(isinstance(view, TensorView) for view in top):
        return ((str(i), view) for i, view in enumerate(top))
    for wrapper in WRAPPERS:
        if isinstance(top, Mapping) and isinstance(top.get(wrapper), Mapping | Object):
            return _state_dict(top[wrapper], path)
    if not isinstance(top, Mapping):
        raise UserError(f"{path}: holds a {type(top).__name__}, expected a state dict")
    found = {str(name): view for name, view in top.items() if isinstance(view, TensorView)}
    if not found:
        raise UserError(f"{path}: no tensors in it, but {some(map(repr, top))}; expected a state dict, at the top or under {WRAPPERS[0]!r}")
    if all(name.startswith("module.") for name in found):  # the wrapper of distributed training
        found = {name.removeprefix("module."): view for name, view in found.items()}
    return iter(found.items())


def _walk(top: Object) -> Iterator[tuple[str, TensorView]]:
    """Attributes that are tensors, by the path of attributes to them. Counted: an object can be an attribute many times, and its own."""
    todo, seen = [("", top)], 0
    while todo:
        prefix, module = todo.pop()
        seen += 1
        if seen > _MAX_MODULES or len(prefix) > 1000:
            raise UserError(f"TorchScript modules without end in it, at {prefix[:80]!r}; refused")
        inner = []
        for name, value in module.attributes.items():
            if isinstance(value, TensorView):
                yield f"{prefix}{name}", value
            elif isinstance(value, Object):
                inner.append((f"{prefix}{name}.", value))
        todo += reversed(inner)


class _Archive:
    """The zip: one folder with data.pkl and data/0, data/1, ..."""

    def __init__(self, path: Path):
        self.path, self.sound = path, set()
        try:
            with zipfile.ZipFile(path) as z:
                self.entries = {info.filename: info for info in z.infolist()}
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as e:
            raise UserError(f"{path}: a damaged zip archive ({e})") from None
        found = [name for name in self.entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(found) != 1:
            raise UserError(f"{path}: no PyTorch file: {len(found)} entries FOLDER/data.pkl in the archive, expected 1")
        self.folder = found[0].removesuffix("data.pkl")
        order = self.entries.get(f"{self.folder}byteorder")
        if order is not None and bytes(self.bytes_of(order)) != b"little":
            raise UserError(f"{path}: written on a big-endian machine; save it again on a little-endian one")

    def bytes_of(self, info: zipfile.ZipInfo) -> np.ndarray:
        """An entry, mapped; PyTorch compresses none."""
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise UserError(f"{self.path}: entry {info.filename!r} is compressed, which PyTorch's never are; refused")
        with open(self.path, "rb") as f:
            f.seek(info.header_offset)
            head = f.read(30)
        if len(head) < 30 or head[:4] != b"PK\x03\x04":
            raise UserError(f"{self.path}: entry {info.filename!r} is damaged; the file is corrupt or truncated")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
        if start + info.file_size > self.path.stat().st_size:
            raise UserError(f"{self.path}: truncated in entry {info.filename!r}")
        return mapped(self.path, np.dtype(np.uint8), start, info.file_size)

    def load_pickle(self) -> Any:
        info = self.entries[f"{self.folder}data.pkl"]
        if info.file_size > _MAX_PICKLE:
            raise UserError(f"{self.path}: its pickle has {info.file_size} bytes; names and shapes never take so many, refused")
        data = self.bytes_of(info).tobytes()
        if info.CRC and zlib.crc32(data) != info.CRC:
            raise UserError(f"{self.path}: entry {info.filename!r} does not have its checksum; the file is corrupt")
        return pickles.load(data, str(self.path))

    def tensor(self, name: str, view: TensorView) -> Tensor:
        """A tensor whose every element lies within its storage, and its storage within the file."""
        what = f"{self.path}: tensor {name!r}"
        if view.storage.kind not in STORAGES:
            raise UserError(f"{what} is of type {view.storage.kind}, which is not read; known: {', '.join(STORAGES)}")
        info = self.entries.get(f"{self.folder}data/{view.storage.key}")
        if info is None:
            raise UserError(f"{what} lies in entry 'data/{view.storage.key[:40]}', which the archive lacks; the file is damaged")
        dtype = STORAGES[view.storage.kind]
        check_window(view, info.file_size // dtype.itemsize, what)
        return Tensor(view.shape, dtype, lambda: self.values(name, info, dtype, view))

    def values(self, name: str, info: zipfile.ZipInfo, dtype: np.dtype, view: TensorView) -> np.ndarray:
        raw = self.bytes_of(info)
        if info.CRC and info.filename not in self.sound and zlib.crc32(raw) != info.CRC:  # 0 where PyTorch was told to write none
            raise UserError(f"{self.path}: tensor {name!r} (entry {info.filename!r}) does not have its checksum; the file is corrupt")
        self.sound.add(info.filename)
        flat = raw[: len(raw) // dtype.itemsize * dtype.itemsize].view(dtype)[view.offset :]
        steps = tuple(step * dtype.itemsize for step in view.strides)
        return np.lib.stride_tricks.as_strided(flat, view.shape, steps, writeable=False)


def check_window(view: TensorView, size: int, what: str) -> None:
    """Raises `UserError` for a tensor that reaches outside a storage of `size` elements, or repeats them to more than are there."""
    if len(view.shape) != len(view.strides) or min((*view.shape, *view.strides, view.offset)) < 0:
        raise UserError(f"{what} has shape {view.shape}, strides {view.strides} and offset {view.offset}; the file is damaged")
    count = math.prod(view.shape)
    last = view.offset + sum((n - 1) * step for n, step in zip(view.shape, view.strides, strict=True)) if count else 0
    if count and last >= size:
        raise UserError(f"{what} reaches element {last} of a storage of {size}; the file is damaged")
    # A window may repeat elements (an expanded tensor), but no weight is larger than all that is stored.
    if count > size:
        raise UserError(f"{what} has {count} elements of a storage of {size}; refused")
