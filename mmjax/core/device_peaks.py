"""Published peaks of matrix products, and how much of them a run uses.

Figures are dense (no structured sparsity) and for one jax device, which is a whole chip except on TPU v2, v3 and 7x, where
a chip is two devices. "float32" is what jax's default matmul precision runs for float32 operands: TF32 tensor cores on
NVIDIA since Ampere, one bfloat16 pass on TPU, plain float32 on older GPUs. Sources: Google Cloud's TPU system architecture
pages and NVIDIA's data sheets, whose sparse figures are halved here.
"""

import re
from collections.abc import Sequence

import jax

_TPU, _GPU = ("bfloat16", "float32"), ("bfloat16", "float16", "float32")

# (regex over the whole of `device_kind`, TFLOP/s by dtype); the first match counts.
PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    ("TPU v2", dict.fromkeys(_TPU, 22.5)),
    ("TPU v3", dict.fromkeys(_TPU, 61.5)),
    ("TPU v4 lite|TPU v4i", dict.fromkeys(_TPU, 138.0)),
    ("TPU v4", dict.fromkeys(_TPU, 275.0)),
    ("TPU v5 lite|TPU v5e", dict.fromkeys(_TPU, 197.0)),
    ("TPU v5|TPU v5p", dict.fromkeys(_TPU, 459.0)),
    ("TPU v6 lite|TPU v6e", dict.fromkeys(_TPU, 918.0)),
    ("TPU7x|TPU v7x?", dict.fromkeys(_TPU, 1153.5)),
    ("NVIDIA B200.*", dict(zip(_GPU, (2250.0, 2250.0, 1125.0), strict=True))),
    ("NVIDIA GB200.*", dict(zip(_GPU, (2500.0, 2500.0, 1250.0), strict=True))),
    ("NVIDIA H(100|200) NVL.*", dict(zip(_GPU, (835.5, 835.5, 417.5), strict=True))),
    ("NVIDIA H100 PCIe.*", dict(zip(_GPU, (756.5, 756.5, 378.0), strict=True))),
    ("NVIDIA (H100|H200|GH200).*", dict(zip(_GPU, (989.5, 989.5, 494.5), strict=True))),
    ("NVIDIA A100.*", dict(zip(_GPU, (312.0, 312.0, 156.0), strict=True))),
    ("NVIDIA L40S.*", dict(zip(_GPU, (362.05, 362.05, 183.0), strict=True))),
    ("NVIDIA L40", dict(zip(_GPU, (181.05, 181.05, 90.5), strict=True))),
    ("NVIDIA L4", dict(zip(_GPU, (121.0, 121.0, 60.0), strict=True))),
    ("NVIDIA A10G", dict(zip(_GPU, (70.0, 70.0, 35.0), strict=True))),
    ("NVIDIA A10", dict(zip(_GPU, (125.0, 125.0, 62.5), strict=True))),
    # Volta and Turing have no bfloat16 units.
    ("(Tesla|NVIDIA) V100-SXM.*", {"float16": 125.0, "float32": 15.7}),
    ("(Tesla|NVIDIA) V100-PCIE.*", {"float16": 112.0, "float32": 14.0}),
    ("(Tesla|NVIDIA) T4", {"float16": 65.0, "float32": 8.1}),
)


def peak(device_kind: str, dtype: str = "bfloat16") -> float | None:
    """Peak matmul FLOP/s of one jax device, by `jax.Device.device_kind` and the dtype computed in; None if not known."""
    for pattern, by_dtype in PEAKS:
        if re.fullmatch(pattern, device_kind):
            tera = by_dtype.get(dtype)
            return None if tera is None else tera * 1e12
    return None


def utilisation(flops_per_step: float | int, step_seconds: float, devices: Sequence[jax.Device], dtype: str = "bfloat16") -> float | None:
    """The share of the devices' peak a step uses, in [0, 1]; None if a device's peak is not known (any CPU's).

    It is model-FLOPs utilisation (PaLM, arXiv:2204.02311, appendix B) if `flops_per_step` leaves out what rematerialisation
    computes again.
    """
    peaks = [peak(d.device_kind, dtype) for d in devices]
    if not peaks or None in peaks or step_seconds <= 0:
        return None
    return flops_per_step / step_seconds / sum(peaks)
