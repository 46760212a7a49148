"""Scores of many examples in a few numbers: mean, bootstrap interval and count, overall and by type; as data and as a table.

N examples.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

RESAMPLES = 2000
Values = Float[np.ndarray, "N"] | Int[np.ndarray, "N"] | Bool[np.ndarray, "N"]


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean of `count` scores, with a 95 % interval."""

    mean: float
    low: float
    high: float
    count: int


def bootstrap(values: Values, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """(low, high) around the mean of N >= 1 values: percentiles of the means of 2,000 resamples, always the same for the same values."""
    return _interval(_resampled(values, np.random.default_rng(seed)), level)


def _resampled(values: Values, rng: np.random.Generator) -> Float[np.ndarray, "R"]:
    """Means of resamples.

    Drawn as counts of the distinct values, which is the same thing, and cheap for scores that are right or wrong.
    """
    distinct, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    n = len(values)
    return np.array([rng.multinomial(n, counts / n) @ distinct / n for _ in range(RESAMPLES)])


def _interval(means: Float[np.ndarray, "R"], level: float = 0.95) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean(values: Values) -> Mean:
    """Of N >= 1 scores."""
    return Mean(float(np.mean(values)), *bootstrap(values), len(values))


def mean_of_means(groups: Sequence[Float[np.ndarray, "_"]], seed: int = 0) -> Mean:
    """Of one or more groups of scores, each with the same weight however large; resampled within each group. `count` is of scores."""
    rng = np.random.default_rng(seed)
    means = np.mean([_resampled(values, rng) for values in groups], axis=0)
    return Mean(float(np.mean([np.mean(values) for values in groups])), *_interval(means), sum(map(len, groups)))


def by_type(values: Values, types: Sequence[str | None]) -> dict[str, Mean]:
    """type -> the mean of its examples, types in the order of their names (numbers as numbers); None is no type."""
    places: dict[str, list[int]] = {}
    for i, kind in enumerate(types):
        if kind is not None:
            places.setdefault(kind, []).append(i)
    order = sorted(places, key=lambda kind: (int(kind) if kind.isdecimal() else -1, kind))
    return {kind: mean(np.asarray(values)[places[kind]]) for kind in order}


def by_typologies(values: Values, types: Sequence[Mapping[str, str]]) -> dict[str, dict[str, Mean]]:
    """`by_type` for every typology that occurs: {"structural": {"query": ..., ...}, "semantic": ...}."""
    names = dict.fromkeys(name for t in types for name in t)
    return {name: by_type(values, [t.get(name) for t in types]) for name in names}


def render(overall: Mapping[str, Mean], typologies: Mapping[str, Mapping[str, Mean]] | None = None) -> str:
    """A table in percent: a line a score, then a block a typology."""
    blocks = {"": overall, **(typologies or {})}
    width = max(len(name) + (2 if title else 0) for title, block in blocks.items() for name in block)
    lines = [f"{'':<{width}}  {'%':>6}  {'95 % interval':<15}  {'examples':>8}"]
    for title, block in blocks.items():
        lines += [title] if title else []
        for name, m in block.items():
            label = f"  {name}" if title else name
            interval = f"{100 * m.low:6.2f} - {100 * m.high:6.2f}"
            lines.append(f"{label:<{width}}  {100 * m.mean:6.2f}  {interval:<15}  {m.count:>8}")
    return "\n".join(lines)
