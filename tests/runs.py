"""What tests of whole runs share: reading back everything a run left behind, and running one in another process."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from etils import epath

from mmjax.core import checkpoint_read, metrics

ROOT = Path(__file__).resolve().parents[1]
SMOKE = str(ROOT / "configs" / "clip" / "digits.py") + ":smoke"


def arrays(workdir, step=None) -> dict[str, tuple]:
    """path -> dtype, shape and bytes of every array of a checkpoint (the newest): parameters, averages, optimizer state, counters."""
    folder = epath.Path(workdir) / "checkpoints"
    folder = folder / str(step or checkpoint_read.contents(folder).step)
    held = checkpoint_read.read_manifest(folder)["arrays"]
    wanted = {p: jax.ShapeDtypeStruct(tuple(a["shape"]), a["dtype"]) for p, a in held.items()}
    loaded = checkpoint_read.load_arrays(folder, wanted, held)
    return {path: (str(x.dtype), x.shape, np.asarray(x).tobytes()) for path, x in loaded.items()}


def metric_lines(workdir) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock."""
    return [metrics.strip_timing(line) for line in metrics.read(Path(workdir))]


def environment(devices: int = 1) -> dict[str, str]:
    """Of a child process with so many fake devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    cache = {
        "JAX_ENABLE_COMPILATION_CACHE": str(devices == 1).lower(),  # see conftest.py
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    return {**os.environ, **cache, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}


def start(*arguments: str, devices: int = 1, **kwargs) -> subprocess.Popen:
    """`mmjax ARGUMENTS` in another process, its output captured."""
    command = [sys.executable, "-m", "mmjax.cli.main", *arguments]
    return subprocess.Popen(
        command, env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, **kwargs
    )


def finish(process: subprocess.Popen, timeout: float = 300) -> tuple[int, str]:
    """(exit status, output)."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output
