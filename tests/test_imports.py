"""The directions of docs/design.md: who may import whom, and that flax stays in layers and models."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "mmjax"
MAY_IMPORT = {
    "core": {"core"},
    "layers": {"core", "layers"},
    "models": {"core", "layers", "models"},
    "objectives": {"core", "objectives"},
    "data": {"core", "data"},
    "decoding": {"core", "decoding"},
    "diffusion": {"core", "diffusion"},
    "evals": {"core", "data", "evals", "convert"},
    "tasks": {"convert", "core", "decoding", "diffusion", "layers", "models", "objectives", "tasks"},
    "convert": {"core", "data", "decoding", "layers", "models", "convert"},
    "bench": {"core", "bench"},
    "cli": {"core", "data", "decoding", "diffusion", "evals", "models", "objectives", "tasks", "convert", "bench", "cli"},
}
MAY_IMPORT_FLAX = {"layers", "models"}
FILES = sorted(ROOT.rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{a.name}" for a in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    package = path.relative_to(ROOT).parts[0] if path.parent != ROOT else None
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "flax":
            assert package in MAY_IMPORT_FLAX, f"{path} imports {name}"
        if parts[:2] == ["jax", "_src"]:
            raise AssertionError(f"{path} imports a private module, {name}")
        if parts[0] == "mmjax" and package and len(parts) > 1 and (ROOT / parts[1]).is_dir():
            assert parts[1] in MAY_IMPORT[package], f"{path} imports {name}"


def test_every_package_is_in_the_table():
    assert {p.name for p in ROOT.iterdir() if (p / "__init__.py").is_file()} == set(MAY_IMPORT)


def test_help_is_light():
    """No jax, no flax, no TensorFlow; and it answers in under half a second (the best of three: machines are noisy)."""
    heavy = ("jax", "flax", "numpy", "tensorflow")
    code = f"import sys; from mmjax.cli.main import parser; parser().format_help(); print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "mmjax.cli.main", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.5
