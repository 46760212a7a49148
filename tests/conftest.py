"""Eight fake devices, strict rank promotion, shapes checked at run time."""

import os
from pathlib import Path

# Most of the suite's time is compilation of tiny programs, and at LLVM's level 0 it takes half of that. A level that is given stays.
LEVEL = "--xla_backend_optimization_level"
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([given, "--xla_force_host_platform_device_count=8", *([] if LEVEL in given else [f"{LEVEL}=0"])]).strip()
os.environ["JAX_PLATFORMS"] = "cpu"
# No persistent compilation cache in this process: a program with collectives over fake CPU devices, loaded from the cache
# instead of compiled, deadlocks in the rendezvous and aborts (jaxlib 0.10.2). Children with one device use it: tests/runs.py.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
if "MMJAX_DATA" not in os.environ:
    os.environ["MMJAX_DATA"] = str(Path(__file__).resolve().parents[1] / ".cache" / "data")
    Path(os.environ["MMJAX_DATA"]).parent.mkdir(exist_ok=True)

from jaxtyping import install_import_hook

# Everything under mmjax that is imported from here on has its annotations checked when it is called.
install_import_hook("mmjax", "beartype.beartype")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow; run with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)
