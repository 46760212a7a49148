"""How varied the pictures of one prompt are: the entropy of what it leaves open, beside that of the training pictures.

A prompt for one thing, "a circle", leaves the thing's colour, size, outline and place open, and how many things are beside it. Entropy is
of the values seen over the n pictures that meet the prompt, in bits.

n pictures show at most log2(n) bits, and on average less than the distribution they are drawn from has, by about (m - 1) / (2 n ln 2) for
m values. So the training pictures' entropy is given as n draws from them would show it, which is exact: a model that has learnt their
distribution reaches `training`, not more. Only `corrected` adds that term (Miller 1955), and is still short where n is below m.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from mmjax.data.scenes.describe import ATTRIBUTES, Description, fitting
from mmjax.data.scenes.prompts import Requirement
from mmjax.data.scenes.world import Object
from mmjax.evals.judged import Judged

Objects = Sequence[Object]


def place(thing: Object) -> tuple[int, int]:
    """Which of nine parts of the picture its centre is in."""
    part = lambda v: min(max(int(v * 3), 0), 2)
    return part(thing.y), part(thing.x)


# What may be open -> its value, of the thing that the prompt is about and of all things in the picture.
OPEN: Mapping[str, Callable[[Object, Objects], Any]] = {
    **{name: lambda thing, objects, name=name: getattr(thing, name) for name in ATTRIBUTES},
    "place": lambda thing, objects: place(thing),
    "number": lambda thing, objects: len(objects),
}


def entropy(counts: Iterable[int]) -> float:
    """Of the shares of counts, in bits; 0 for nothing."""
    counts = [c for c in counts if c]
    n = sum(counts)
    return 0.0 if len(counts) < 2 else -sum(c / n * math.log2(c / n) for c in counts)


def corrected(counts: Iterable[int]) -> float:
    """`entropy` and the first term of what so few draws are short of, in bits (G. A. Miller, 1955)."""
    counts = [c for c in counts if c]
    return entropy(counts) + ((len(counts) - 1) / (2 * sum(counts) * math.log(2)) if counts else 0.0)


def expected(shares: Iterable[float], n: int) -> float:
    """What `entropy` is on average of n independent draws, in bits: exact, since each value's count alone is binomial."""
    k = np.arange(1, n + 1)
    terms = -(k / n) * np.log2(k / n)
    ways = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    chance = lambda p: np.exp(ways + special.xlogy(k, p) + special.xlog1py(n - k, -p))  # scipy.stats has it, and takes a second to load
    return float(sum(chance(p) @ terms for p in shares if p > 0))


@dataclasses.dataclass(frozen=True)
class Diversity:
    """Means over prompts. `training`: what as many draws from the training pictures show; None without those."""

    bits: float
    corrected: float
    training: float | None
    prompts: int


def measure(judged: Judged, training: Iterable[Objects] | None = None) -> dict[str, Diversity]:
    """What prompts for one thing leave open -> its diversity. Wordings that require the same are one prompt.

    The thing is the largest that fits. A prompt counts if two of its pictures meet it and, where training pictures are given, one of
    these shows such a thing.
    """
    shown: dict[Description, list[Objects]] = {}
    for prompt, readings, met in zip(judged.prompts, judged.readings, judged.met.tolist(), strict=True):
        if (description := _one_thing(prompt.requirement)) is not None:
            shown.setdefault(description, []).extend([o.object() for o in r.objects] for r, ok in zip(readings, met, strict=True) if ok)
    known = None if training is None else _counted(training, shown)
    out: dict[str, list[tuple[float, float, float]]] = {}
    for description, pictures in shown.items():
        generated = _counted(pictures, [description])[description]
        for name in (name for name in OPEN if getattr(description, name, None) is None):
            counts, n = generated[name].values(), generated[name].total()
            seen = None if known is None else known[description][name]
            if n >= 2 and (seen is None or seen):
                shares = [] if seen is None else [c / seen.total() for c in seen.values()]
                out.setdefault(name, []).append((entropy(counts), corrected(counts), expected(shares, n)))
    return {
        name: Diversity(*map(float, np.mean(rows, axis=0)[:2]), None if known is None else float(np.mean([r[2] for r in rows])), len(rows))
        for name, rows in out.items()
    }


def _one_thing(requirement: Requirement) -> Description | None:
    """What a prompt says of the one thing it is about; None if it is about more."""
    if len(requirement.things) != 1 or requirement.word is not None:
        return None
    thing = requirement.things[0]
    return None if thing.exact or thing.count != 1 else thing.description


def _counted(pictures: Iterable[Objects], descriptions: Iterable[Description]) -> dict[Description, dict[str, Counter]]:
    """description -> what is open -> how often each value occurs, of the largest thing that fits."""
    out: dict[Description, dict[str, Counter]] = {d: {name: Counter() for name in OPEN} for d in descriptions}
    for objects in pictures:
        for description, counters in out.items():
            if found := fitting(objects, description):
                thing = objects[max(found, key=lambda i: objects[i].r)]
                for name, value in OPEN.items():
                    counters[name][value(thing, objects)] += 1
    return out


def table(found: Mapping[str, Diversity]) -> str:
    """A line for each that was open."""
    lines = [f"{'entropy in bits':<16}  {'seen':>6}  {'corrected':>9}  {'training':>8}  {'prompts':>7}"]
    for name, d in found.items():
        training = "-" if d.training is None else f"{d.training:.2f}"
        lines.append(f"{name:<16}  {d.bits:6.2f}  {d.corrected:9.2f}  {training:>8}  {d.prompts:7}")
    if any(d.training is not None for d in found.values()):
        lines.append("training: what as many draws from the training pictures show on average; a perfect model reaches it")
    return "\n".join(lines)
