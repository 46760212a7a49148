"""Joining the processes of one run."""

import argparse

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmjax.core.errors import UserError


def join(args: argparse.Namespace) -> None:
    """Calls `jax.distributed.initialize` if the command line asks for it; before anything touches a device.

    Raises:
      UserError: incomplete addresses, or a coordinator nobody answers at.
    """
    given = {
        "coordinator_address": args.coordinator,
        "num_processes": args.num_processes,
        "process_id": args.process_id,
    }
    if not args.distributed and not any(v is not None for v in given.values()):
        return
    given = {k: v for k, v in given.items() if v is not None}
    if given and len(given) < 3:
        raise UserError(
            "several hosts: give --coordinator HOST:PORT, --num_processes N and --process_id I together, or --distributed alone"
        )
    try:
        jax.distributed.initialize(**given)
    except (ValueError, RuntimeError) as e:
        raise UserError(f"several hosts: cannot join ({str(e).splitlines()[0]}); off Cloud TPU and SLURM give --coordinator too") from e


def agree(mark: str, what: str) -> None:
    """Raises `UserError`, on every process, if `mark` is not the same on all: a few hex digits of something that must be."""
    if jax.process_count() == 1:
        return
    marks = multihost_utils.process_allgather(np.frombuffer(mark.encode(), np.uint8)).reshape(jax.process_count(), -1)
    other = next((i for i, row in enumerate(marks) if not np.array_equal(row, marks[0])), None)
    if other is not None:
        texts = [bytes(marks[i]).decode() for i in (0, other)]
        raise UserError(f"several hosts: process {other} has other {what} ({texts[1]}) than process 0 ({texts[0]}); give all the same")


def first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0
