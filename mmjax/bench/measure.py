"""Sides that take turns, and the roofline they are held to, measured between them."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Side = Callable[[int], float]  # steps -> seconds they took, all work done
TURN = 2.0  # seconds a turn lasts at least, so that neither clock nor wake-up counts


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step has to do.

    Attributes:
      flops: of matrix products and convolutions, without what rematerialisation repeats.
      bytes: that the compiled program's operations read and write; None where XLA's count is not to be had.
    """

    flops: int
    bytes: float | None


def alternate(
    sides: Mapping[str, Side], rounds: int, turn: float = TURN, say: Callable[[str], None] = lambda _: None
) -> dict[str, list[float]]:
    """Seconds a step of every side, `rounds` each. The order turns round every round, so that no side always follows the same one.

    Every side has run before its first turn counts: one step warms it, a second says how many fill a turn.
    """
    steps = {}
    for name, run in sides.items():
        run(1)
        steps[name] = max(1, math.ceil(turn / max(run(1), 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            times[name].append(sides[name](steps[name]) / steps[name])
        say(f"round {number + 1} of {rounds}: " + ", ".join(f"{name} {t[-1]:.4g} s" for name, t in times.items()))
    return times


def timed(fn: Callable, *args: Any) -> Side:
    """A side that calls a jitted function on the same arguments."""

    def run(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            out = fn(*args)
        jax.block_until_ready(out)
        return time.perf_counter() - began

    return run


def matmul(size: int, dtype: DTypeLike) -> tuple[Side, int]:
    """A product of two square matrices, and its FLOPs."""
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    return timed(jax.jit(jnp.matmul), x, x), 2 * size**3


def convolution(size: int, dtype: DTypeLike) -> tuple[Side, int]:
    """Sixteen pictures of size x size under 3 x 3 kernels from 128 channels to 128, forwards, and its FLOPs."""
    count, width = 16, 128
    x = jax.random.normal(jax.random.key(0), (count, size, size, width), dtype)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, width, width), dtype)
    run = jax.jit(lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    return timed(run, x, kernel), 2 * count * size**2 * 9 * width**2


def stream(size: int) -> tuple[Side, int]:
    """A float32 array of `size` numbers read and written in place, and the bytes of both: no page is new, as in a donated step."""
    add, x = jax.jit(lambda x: x + 1, donate_argnums=0), jnp.zeros(size, jnp.float32)

    def run(steps: int) -> float:
        nonlocal x
        began = time.perf_counter()
        for _ in range(steps):
            x = add(x)
        x.block_until_ready()
        return time.perf_counter() - began

    return run, 8 * size


def median_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """The median over rounds of a / b: what the machine does to both in a round cancels."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def roofline(work: Work, seconds: float, rate: float, bandwidth: float) -> dict[str, Any]:
    """Williams et al. 2009 (doi:10.1145/1498765.1498785): what bounds a step, from measured rates.

    Args:
      seconds: a step took.
      rate: of a large matrix product, FLOP/s.
      bandwidth: of a large array's copy, bytes/s.
    """
    out: dict[str, Any] = {"flops": work.flops, "bytes": work.bytes, "ridge": rate / bandwidth, "products_seconds": work.flops / rate}
    if work.bytes:
        intensity = work.flops / work.bytes
        out |= {
            "intensity": intensity,
            "bound": "arithmetic" if intensity >= rate / bandwidth else "memory",
            "traffic_seconds": work.bytes / bandwidth,
        }
    floor = max(out["products_seconds"], out.get("traffic_seconds", 0.0))
    return {**out, "floor_seconds": floor, "share_of_floor": floor / seconds}
