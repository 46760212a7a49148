"""Mixtures: several sources in one stream of positions, each with its exact share and its own epochs.

`schedule` fixes which component each position of a period belongs to; the period repeats for ever, so any position is looked up
on its own: p = period * k + r is component `who[r]`, and the (k * count + rank[r])-th example of that component.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Int64

from mmjax.core.errors import UserError
from mmjax.data.bad import place
from mmjax.data.order import Order
from mmjax.data.source import Info, Source, within
from mmjax.data.transforms import Transform

_LONGEST = 1 << 17  # of an exact period
_ROUNDED = 1 << 16  # the period where an exact one would be longer


def shares(weights: Sequence[Any]) -> tuple[int, ...]:
    """Positions a period that each component gets: the smallest integers in the ratio of `weights`, read as the decimals they print as.

    Where that needs a period over 131,072 the shares are rounded to multiples of 1 / 65,536 (largest remainder).

    Raises:
      UserError: no weight, one that is no positive number, or one too small beside the others.
    """
    for w in weights:
        if isinstance(w, bool) or not isinstance(w, int | float) or not math.isfinite(w) or w <= 0:
            raise UserError(f"data.mixture: weight {w!r} is no positive number; leave a source out rather than give it 0")
    if not weights:
        raise UserError("data.mixture: there is no component in it; expected ((weight, {keys of data}), ...)")
    exact = [Fraction(str(w)) for w in weights]
    exact = [w / sum(exact) for w in exact]
    period = math.lcm(*(w.denominator for w in exact))
    if period <= _LONGEST:
        return tuple(int(w * period) for w in exact)
    counts = [int(w * _ROUNDED) for w in exact]
    remainders = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i] * _ROUNDED, i))
    for i in remainders[: _ROUNDED - sum(counts)]:
        counts[i] += 1
    if not all(counts):
        raise UserError(f"data.mixture: weight {weights[counts.index(0)]!r} is less than 1 / {_ROUNDED} of the whole")
    divisor = math.gcd(*counts)
    return tuple(c // divisor for c in counts)


@functools.lru_cache(maxsize=16)
def schedule(counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(component of each position of a period, how many of that component's came before it in the period), both int32[P].

    With w_i = counts[i] / P, after any number n of positions component i has had c_i(n) of them with |c_i(n) - n w_i| < 1.

    Algorithm: the j-th turn (from 1) of component i may fall on positions (counted from 1) floor((j - 1) / w_i) + 1 to
    ceil(j / w_i); each position goes to the turn that is allowed there and whose last chance comes first, the lower component
    among equals (earliest deadline first, with the windows of S. Baruah et al. 1996, "Proportionate progress").

    Why it works. (1) If every turn is in its window the bound holds: the j-th turn on position t >= floor((j - 1) / w) + 1 means
    j - 1 < t w, so c(n) < n w + 1; and being placed by ceil(j / w) means that while n positions have seen only j - 1 turns,
    n < j / w, so c(n) > n w - 1. (2) Such a placement exists: give component i the share w_i of every position; its j-th unit of
    work then lies between (j - 1) / w_i and j / w_i, within the window, and every position is filled exactly, which is a
    fractional perfect matching of turns to positions, and a bipartite graph with one has an integral one (Birkhoff). (3) Earliest
    deadline first finds it, as it does whenever jobs of unit length have any feasible placement: exchanging two jobs into
    deadline order breaks no window. (4) Turn counts[i] ends by ceil(P) = P and the next one starts at P + 1, so the period closes.
    """
    period = sum(counts)
    who, rank = np.empty(period, np.int32), np.empty(period, np.int32)
    turns = [0] * len(counts)
    opens = [1] * len(counts)
    closes = [-(-period // c) for c in counts]
    for t in range(1, period + 1):
        i = min((i for i in range(len(counts)) if opens[i] <= t), key=closes.__getitem__)
        who[t - 1], rank[t - 1] = i, turns[i]
        turns[i] += 1
        opens[i] = turns[i] * period // counts[i] + 1
        closes[i] = -(-(turns[i] + 1) * period // counts[i])
    return who, rank


@dataclasses.dataclass(frozen=True)
class MixtureOrder:
    """Position -> record of a `Concat` source: exact shares, every component in its own order and epochs.

    Attributes:
      counts: from `shares`.
      orders: of the components. Their seeds differ, or equal sources would go in step.
    """

    counts: tuple[int, ...]
    orders: tuple[Order, ...]

    def place(self, positions: Int64[np.ndarray, "R"]) -> tuple[Int64[np.ndarray, "R"], Int64[np.ndarray, "R"]]:
        """(component, position within that component)."""
        who, rank = schedule(self.counts)
        periods, rest = np.divmod(positions, len(who))
        component = who[rest].astype(np.int64)
        return component, periods * np.asarray(self.counts, np.int64)[component] + rank[rest]

    def __call__(self, positions: Int64[np.ndarray, "R"]) -> Int64[np.ndarray, "R"]:
        """The records at these positions."""
        component, within = self.place(positions)
        out, offset = np.empty_like(positions), 0
        for i, order in enumerate(self.orders):
            here = component == i
            if here.any():
                out[here] = order(within[here]) + offset
            offset += order.n
        return out

    def replacement(self, position: int, attempt: int) -> int:
        """A record of the same component, so that bad records do not shift the shares."""
        component, within = (int(x[0]) for x in self.place(np.array([position], np.int64)))
        return self.orders[component].replacement(within, attempt) + sum(order.n for order in self.orders[:component])


class Concat:
    """Several sources one after another as one. A record's `_component` says which it came from."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = tuple(sources)
        self._ends = np.cumsum([len(s) for s in self.sources])
        first = self.sources[0].info
        self.info = Info(
            name="+".join(s.info.name for s in self.sources),
            split="+".join(dict.fromkeys(s.info.split for s in self.sources)),
            classes=first.classes,
            prompts=first.prompts,
            tokenizer=first.tokenizer,
            features={key: what for s in reversed(self.sources) for key, what in s.info.features.items()},
            fingerprint="+".join(s.info.fingerprint for s in self.sources),
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        component, within = self.find(i)
        return {**self.sources[component][within], "_component": component}

    def find(self, i: int) -> tuple[int, int]:
        """(component, its record)."""
        within(self, i)
        component = int(np.searchsorted(self._ends, i, side="right"))
        return component, i - int(self._ends[component - 1] if component else 0)

    def describe(self, i: int) -> str:
        """A record in words, for messages."""
        component, within = self.find(i)
        return place(self.sources[component], within)


@dataclasses.dataclass(frozen=True)
class ByComponent:
    """Each component's own transform; all must end in the same keys and shapes."""

    transforms: tuple[Transform, ...]

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> Mapping[str, Any]:
        rest = {key: value for key, value in example.items() if key != "_component"}
        return self.transforms[example["_component"]](rest, rng)

    def deferred(self) -> "tuple[ByComponent, Any]":
        """As `Chain.deferred`, where all components normalise alike."""
        split = [t.deferred() if hasattr(t, "deferred") else (t, None) for t in self.transforms]
        if any(normalize != split[0][1] for _, normalize in split):
            return self, None
        return ByComponent(tuple(t for t, _ in split)), split[0][1]
