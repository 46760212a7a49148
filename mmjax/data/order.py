"""A shuffle without a list: where record `i` of an epoch lies is computed from (seed, epoch, i) alone, in O(1) memory.

Kept here rather than taken from Grain because the order belongs to a run's definition (an upgrade must not change it) and
because it is computed for all rows of a batch at once (Grain's takes some 50 microseconds a record in Python).
"""

import functools

import numpy as np
from jaxtyping import Int64

_ROUNDS = 8


@functools.lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int) -> np.ndarray:
    return np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64)


def _mix(x: np.ndarray, key: np.uint64) -> np.ndarray:
    """A keyed 64-bit hash (the finalizer of MurmurHash3 by D. Stafford's constants, as in SplitMix64)."""
    x = (x ^ key) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(places: Int64[np.ndarray, "R"], n: int, seed: int, epoch: int) -> Int64[np.ndarray, "R"]:
    """The images of `places` (each in 0..n-1) under the permutation of 0..n-1 that belongs to (seed, epoch).

    A Feistel network over the bits of n - 1 (J. Black and P. Rogaway, "Ciphers with arbitrary finite domains", 2002): results
    outside 0..n-1 are sent through again, which keeps it one to one. The domain is below 4n, so that takes a few passes.
    """
    bits = max(2, (n - 1).bit_length())
    low = np.uint64(bits - bits // 2)  # width of the right part; the left part has the rest
    left_mask, right_mask = np.uint64((1 << (bits // 2)) - 1), np.uint64((1 << int(low)) - 1)
    keys = _round_keys(seed, epoch)
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
