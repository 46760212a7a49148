"""Random tensors that are a function of their name and shape alone, so that no golden file needs to hold weights.

Numpy only: the scripts that run a reference and the tests that run mmjax both take weights and inputs from here.
"""

import hashlib
import math

import numpy as np


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 standard normal numbers: a Philox stream keyed by the hash of the name."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, np.float32)


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of a PyTorch model, float32. None keeps a trivial value: biases are not zero, gains not one, variances not equal.

    Matrices and kernels have 1 / sqrt(fan-in), tables and position embeddings too; the gains of a residual branch's last norm
    (`bn3.weight`) are small, for with given statistics nothing else would bound a deep network.
    """
    x = normal(name, shape)
    if name.endswith("running_var"):
        return np.abs(x) + np.float32(0.5)
    if name.endswith("gain") or (x.ndim == 1 and name.endswith("weight")):
        return np.asarray(np.float32(0.3 if name.endswith("bn3.weight") else 1.0) + np.float32(0.2) * x)
    fan_in = math.prod(shape[1:])
    return np.asarray(np.float32(0.3 if len(shape) < 2 else fan_in**-0.5) * x)


def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """`tensor` for every entry."""
    return {name: tensor(name, tuple(shape)) for name, shape in shapes.items()}
