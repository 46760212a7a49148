"""Runs that a benchmark compares: trained by the command line, what is done already not again, and what they measured."""

import subprocess
import sys
from pathlib import Path

from mmjax.core import metrics

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def train(config: str, workdir: Path, *words: str) -> Path:
    """The workdir of a finished run of a config, a path below configs/ and its argument; `words` are key=value.

    Raises:
      subprocess.CalledProcessError: the run failed; its message is on standard error.
    """
    command = [sys.executable, "-m", "mmjax.cli.main", "train", "--config", str(CONFIGS / config), "--workdir", str(workdir), *words]
    print("== " + " ".join(command[2:]), file=sys.stderr, flush=True)
    subprocess.run(command, check=True)
    return workdir


def last(workdir: Path) -> dict[str, float]:
    """Of every metric the last value written, and the seconds of training so far."""
    out: dict[str, float] = {}
    for line in metrics.read(workdir):
        out |= line
    return out
