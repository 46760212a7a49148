"""What every reader hands out: names and shapes at once, values when asked for."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

import ml_dtypes
import numpy as np

from mmjax.core.errors import UserError

# What the types are called in safetensors files.
DTYPES = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "I16": np.dtype("int16"),
    "I8": np.dtype("int8"),
    "U64": np.dtype("uint64"),
    "U32": np.dtype("uint32"),
    "U16": np.dtype("uint16"),
    "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file.

    Attributes:
      read: its values; a view of the mapped file where the format allows, so that taking a part of it reads that part. Do not keep it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


Tensors = Mapping[str, Tensor]


def of_array(x: np.ndarray) -> Tensor:
    """An array in memory as a tensor."""
    return Tensor(tuple(x.shape), np.dtype(x.dtype), lambda: x)


def describe(x: Tensor | np.ndarray) -> str:
    """`float32[768,512]`."""
    return f"{np.dtype(x.dtype).name}[{','.join(map(str, x.shape))}]"


def some(items: Iterable[str], n: int = 10) -> str:
    """The first `n`, and how many more."""
    items = list(items)
    return ", ".join(items[:n]) + (f", and {len(items) - n} more" if len(items) > n else "")


def positive_shape(shape: object, what: str) -> tuple[int, ...]:
    """A shape read from a file, as a tuple.

    Raises:
      UserError: anything but a list of non-negative integers.
    """
    if not isinstance(shape, list | tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise UserError(f"{what} has the shape {str(shape)[:80]}; the file is damaged")
    return tuple(shape)
