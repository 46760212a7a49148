"""A shuffle without a list: where record `i` of an epoch lies is computed from (seed, epoch, i) alone.

Kept here rather than taken from Grain because the order belongs to a run's definition (an upgrade must not change it) and
because it is computed for all rows of a batch at once (Grain's takes some 50 microseconds a record in Python).
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int64

_ROUNDS = 8
_KEPT = 4  # epochs whose layout of shards is kept; threads may be in two at a time
_SHARDS, _WINDOW, _REPLACEMENT = 1, 2, 3  # what else than a whole epoch is drawn from a seed


@functools.lru_cache(maxsize=64)
def _round_keys(*words: int) -> np.ndarray:
    return np.random.SeedSequence(words).generate_state(_ROUNDS, np.uint64)


def _mix(x: np.ndarray, key: np.uint64) -> np.ndarray:
    """A keyed 64-bit hash (the finalizer of MurmurHash3 by D. Stafford's constants, as in SplitMix64)."""
    x = (x ^ key) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(places: Int64[np.ndarray, "R"], n: int, seed: int, epoch: int, *purpose: int) -> Int64[np.ndarray, "R"]:
    """The images of `places` (each in 0..n-1) under the permutation of 0..n-1 that belongs to (seed, epoch, purpose).

    A Feistel network over the bits of n - 1 (J. Black and P. Rogaway, "Ciphers with arbitrary finite domains", 2002): results
    outside 0..n-1 are sent through again, which keeps it one to one. The domain is below 4n, so that takes a few passes.
    """
    bits = max(2, (n - 1).bit_length())
    low = np.uint64(bits - bits // 2)  # width of the right part; the left part has the rest
    left_mask, right_mask = np.uint64((1 << (bits // 2)) - 1), np.uint64((1 << int(low)) - 1)
    keys = _round_keys(seed, epoch, *purpose)
    out = places.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> low, out[todo] & right_mask
        for i in range(0, _ROUNDS, 2):
            left ^= _mix(right, keys[i]) & left_mask
            right ^= _mix(left, keys[i + 1]) & right_mask
        out[todo] = (left << low) | right
        todo = todo[out[todo] >= n]
    return out.astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Order:
    """Position since the start of a run -> record, of a source of `n` records: every epoch a permutation of them all.

    One level: the permutation is that of (seed, epoch), in O(1) memory.

    Two levels, where the source says in `groups` how many records each of its shards holds and `window` is below their number:
    the shards are permuted, taken `window` at a time, and the records of such a window are permuted among themselves. Reading
    then touches `window` shards at a time (twice that where two windows meet), which is what disks and object stores want, and
    the order needs memory for a number a shard. Any position is computed on its own, as with one level.

    Attributes:
      shuffle: False is the source's own order, every epoch.
      block: so many consecutive records stay together and in order, as length groups do; one level only. It divides `n`.
    """

    n: int
    seed: int
    groups: tuple[int, ...] = ()
    window: int = 0
    shuffle: bool = True
    block: int = 1
    _layouts: dict = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        if self.groups and sum(self.groups) != self.n:
            raise ValueError(f"groups hold {sum(self.groups)} records, the source {self.n}")
        if self.window < 0 or self.block < 1 or self.n % self.block:
            raise ValueError(f"window {self.window} or block {self.block} does not fit {self.n} records")

    @property
    def two_level(self) -> bool:
        """Whether shards matter: with a window over all of them one level is the same thing."""
        return self.block == 1 and 0 < self.window < len(self.groups)

    def __call__(self, positions: Int64[np.ndarray, "R"]) -> Int64[np.ndarray, "R"]:
        """The records at these positions (any, from 0 on)."""
        epochs, places = np.divmod(positions, self.n)
        if not self.shuffle:
            return places
        out = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            out[here] = self._windowed(places[here], epoch) if self.two_level else self._flat(places[here], epoch)
        return out

    def _flat(self, places: np.ndarray, epoch: int) -> np.ndarray:
        block, within = np.divmod(places, self.block)
        return permute(block, self.n // self.block, self.seed, epoch) * self.block + within

    def _windowed(self, places: np.ndarray, epoch: int) -> np.ndarray:
        starts, ends = self._layout(epoch)
        edges = ends[self.window - 1 :: self.window]  # where each window but a shorter last one ends
        windows = np.searchsorted(edges, places, side="right")
        out = np.empty_like(places)
        for w in np.unique(windows).tolist():
            here = windows == w
            first, last = w * self.window, min((w + 1) * self.window, len(ends)) - 1
            begin = int(ends[first - 1]) if first else 0
            inner = permute(places[here] - begin, int(ends[last]) - begin, self.seed, epoch, _WINDOW, w) + begin
            shard = np.searchsorted(ends, inner, side="right")
            before = np.where(shard > 0, ends[shard - 1], 0)
            out[here] = starts[shard] + inner - before
        return out

    def replacement(self, position: int, attempt: int) -> int:
        """A record, each with the same chance, to stand in at `position` where `attempt` (from 1 on) records have failed before it."""
        x = np.array([position], np.uint64)
        for key in _round_keys(self.seed, 0, _REPLACEMENT, attempt)[:2]:
            x = _mix(x, key)
        return int(x[0]) * self.n >> 64

    def _layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(first record of the i-th shard of this epoch, records of the epoch up to and with it)."""
        layout = self._layouts.get(epoch)
        if layout is None:
            while len(self._layouts) >= _KEPT:
                self._layouts.pop(next(iter(list(self._layouts))), None)
            sizes = np.asarray(self.groups, np.int64)
            shards = permute(np.arange(len(sizes)), len(sizes), self.seed, epoch, _SHARDS, len(sizes))
            self._layouts[epoch] = layout = (np.cumsum(sizes) - sizes)[shards], np.cumsum(sizes[shards])
        return layout
