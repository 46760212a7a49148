"""numpy's .npz: a zip of .npy files. Objects (pickles) in them are refused."""

import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmjax.convert.tensors import Tensor
from mmjax.core.errors import UserError


def read(path: Path) -> dict[str, Tensor]:
    """The arrays of a file, none read yet.

    Raises:
      UserError: no zip file, an array of Python objects, or a damaged one.
    """
    try:
        with zipfile.ZipFile(path) as z:
            infos = [info for info in z.infolist() if info.filename.endswith(".npy")]
            return {info.filename.removesuffix(".npy"): _entry(path, z, info) for info in infos}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as e:
        raise UserError(f"{path}: no .npz file, or truncated ({e})") from None


def _entry(path: Path, z: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    name = info.filename.removesuffix(".npy")
    try:
        with z.open(info) as f:
            version = np.lib.format.read_magic(f)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read_header(f)
            start = f.tell()
    except ValueError as e:
        raise UserError(f"{path}: array {name!r} is damaged: {str(e).splitlines()[0][:80]}") from None
    if dtype.hasobject:
        raise UserError(f"{path}: array {name!r} holds pickled Python objects, which are not read; save numbers only")
    if info.file_size != start + math.prod(shape) * dtype.itemsize:
        raise UserError(f"{path}: array {name!r} has {info.file_size - start} bytes, expected {math.prod(shape) * dtype.itemsize}")
    if dtype == np.dtype("V2"):  # what numpy writes for bfloat16
        return Tensor(shape, np.dtype("bfloat16"), lambda: _values(path, info)().view("bfloat16"))
    return Tensor(shape, dtype, _values(path, info))


def _values(path: Path, info: zipfile.ZipInfo) -> Callable[[], np.ndarray]:
    def values() -> np.ndarray:
        try:
            with zipfile.ZipFile(path) as z, z.open(info) as f:
                x = np.lib.format.read_array(f, allow_pickle=False)
                f.read(1)  # to the end, where zipfile compares the checksum
                return x
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as e:
            raise UserError(f"{path}: array {info.filename.removesuffix('.npy')!r} is damaged: {e}") from None

    return values
