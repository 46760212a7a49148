"""What a benchmark ran on, for the record."""

import datetime
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import jax


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu() -> str:
    """The model's name, where the system tells."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """Hardware by name, versions, date and how busy the machine was."""
    devices = jax.devices()
    where = f"{cpu()}, {cores()} cores"
    versions = {name: importlib.metadata.version(name) for name in ("mmjax", "jax", "jaxlib", "flax", "optax", "numpy")}
    return {
        "hardware": where if devices[0].platform == "cpu" else f"{len(devices)} x {devices[0].device_kind}; {where}",
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), **versions},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def slug(hardware: str) -> str:
    """As a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "_", hardware.lower()).strip("_")
