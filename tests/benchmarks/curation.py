"""Curation of a million made-up captions with a Zipf tail over 50,000 queries: exact caps checked, time and memory as JSON.

    python tests/benchmarks/curation.py [--pairs 1000000] [--per_query 20000] [--form exact] [--threads 0]

The captions are computed from their number, so nothing but the curation itself takes memory. Each holds 1 to 4 queries between
filler words; a query's rank r is drawn with a probability that falls as 1 / r. The counts that the curation reports are held
against those of the generator, which knows what it wrote.
"""

import argparse
import json
import platform
import resource
import sys
import time

import numpy as np

from mmjax.data import curate
from mmjax.data.source import Info


def queries(n: int) -> tuple[str, ...]:
    """n made-up words of one length, none of them within another or across two."""
    return tuple(f"q{i:05x}z" for i in range(n))


class Captions:
    """Captions by number."""

    def __init__(self, pairs: int, words: tuple[str, ...], seed: int = 0):
        self._pairs, self._words, self._seed = pairs, words, seed
        self.info = Info("zipf", "train", (), (), None, {"caption": "text"})

    def __len__(self) -> int:
        return self._pairs

    def ranks(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(how many queries each caption holds [N], which ones [N, 4]): rank r with a probability of about 1 / (r log n)."""
        n = len(self._words)
        draw = lambda j: curate.keyed(self._seed * 8 + j, rows.astype(np.uint64)).astype(np.float64) / 2.0**64
        ranks = np.stack([np.minimum((n + 1) ** draw(j) - 1, n - 1).astype(np.int64) for j in range(4)], axis=1)
        return 1 + (4 * draw(4)).astype(np.int64), ranks

    def __getitem__(self, i: int) -> dict[str, str]:
        block, place = divmod(i, 4096)  # drawn 4,096 at a time: one at a time the drawing would take longer than the curation
        if getattr(self, "_block", (None,))[0] != block:
            self._block = (block, *(x.tolist() for x in self.ranks(np.arange(block * 4096, (block + 1) * 4096))))
        _, counts, ranks = self._block
        words = [self._words[r] for r in ranks[place][: counts[place]]]
        return {"caption": f"a photo of {' and '.join(words)} taken on a sunny day"}


def truth(source: Captions, n: int) -> np.ndarray:
    """Captions that hold each query, from what was drawn."""
    counts = np.zeros(n, np.int64)
    for start in range(0, len(source), 1 << 16):
        rows = np.arange(start, min(start + (1 << 16), len(source)))
        few, ranks = source.ranks(rows)
        used = np.arange(4) < few[:, None]
        held = np.unique(np.stack([np.repeat(rows, few), ranks[used]], axis=1), axis=0)
        np.add.at(counts, held[:, 1], 1)
    return counts


def check(source: Captions, plan: curate.Plan, result: curate.Curated, counts: np.ndarray) -> dict[str, object]:
    """Holds an exact result against the definition: of each query its t pairs of the smallest hash, and no other pair."""
    kept = np.zeros(len(source), bool)
    kept[result.kept] = True
    t, n = plan.per_query, len(plan.queries)
    hashes = curate.keyed(plan.seed, np.arange(len(source), dtype=np.uint64))
    few, ranks = source.ranks(np.arange(len(source)))
    owner, query = np.repeat(np.arange(len(source)), few), ranks[np.arange(4) < few[:, None]]
    held = np.unique(query * len(source) + owner)
    query, owner = np.divmod(held, len(source))
    order = np.lexsort((hashes[owner], query))
    query, owner = query[order], owner[order]
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    chosen = np.unique(owner[rank < t])
    brought = np.bincount(query[rank < t], minlength=n)
    return {
        "as_by_sorting": bool(np.array_equal(chosen, result.kept)),
        "caps_exact": bool(np.array_equal(brought, np.minimum(counts, t))) and bool(kept[owner[rank < t]].all()),
        "most_brought_in_by_a_query": int(brought.max()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--per_query", type=int, default=20_000)
    parser.add_argument("--form", choices=("exact", "probability"), default="exact")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    words = queries(args.queries)
    source = Captions(args.pairs, words)
    plan = curate.Plan(words, args.per_query, args.form)
    megabytes = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    before, began = megabytes(), time.perf_counter()
    result = curate.curate(source, plan, threads=args.threads)
    seconds, peak = time.perf_counter() - began, megabytes()
    began = time.perf_counter()
    for i in range(args.pairs):
        source[i]
    making = time.perf_counter() - began
    counts, report = truth(source, args.queries), result.report
    found = {q["query"]: q["matched"] for q in report["head"] + report["tail"]}
    out = {
        "pairs": args.pairs,
        "queries": args.queries,
        "per_query": args.per_query,
        "form": args.form,
        "matches": report["matches"]["matched"],
        "queries_over_limit": report["queries_over_limit"],
        "kept": report["kept"],
        "largest_query": {"matched": int(counts.max()), "kept": report["head"][0]["kept"]},
        "counts_right": report["matches"]["matched"] == int(counts.sum()) and all(counts[words.index(q)] == c for q, c in found.items()),
        "seconds": round(seconds, 2),
        "of_which_making_captions": round(making, 2),
        "pairs_per_second": round(args.pairs / seconds),
        "peak_memory_mib": round(peak),
        "of_which_before_curation_mib": round(before),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    if args.form == "exact":
        out |= check(source, plan, result, counts)
    print(json.dumps(out, indent=1))
    wrong = not out["counts_right"] or (args.form == "exact" and not (out["as_by_sorting"] and out["caps_exact"]))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
